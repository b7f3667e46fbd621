"""Several processes around a real Redis that is well."""

import asyncio
import json
import logging

import pytest
import redis
from redis import asyncio as aioredis

from candled.bus import FeedMetadata, HistoryChanged, MessagesLost, MinuteChanged, StateChanged
from candled.bus.codec import Names
from candled.bus.redis.leases import LeaseState
from candled.bus.redis.lua import PUBLISH
from candled.clock import SystemClock
from candled.model import Decimals, MarketKey, Symbol
from tests import deadlines
from tests.bus.rig import BTC, CLOCK, ETH, MARKETS, new_prefix, process, until
from tests.redis_servers import own_redis, shared_redis
from tests.rows import minute

pytestmark = pytest.mark.usefixtures("redis")


@pytest.fixture
def prefix():
    return new_prefix()


@pytest.fixture
def names(prefix):
    return Names(prefix, "bitget", 1)


async def test_every_process_receives_what_one_publishes(prefix):
    url = shared_redis()
    async with (
        process(url, prefix, ingests=True) as leader,
        process(url, prefix) as first,
        process(url, prefix) as second,
    ):
        await until(lambda: leader.state is LeaseState.LEADER)
        await until(lambda: first.is_ready and second.is_ready)
        sent = [leader.publish(number=number, final=number < 3) for number in range(4)]
        leader.bus.publish(HistoryChanged(BTC, 0, 60_000, 0, FeedMetadata(60_000)))
        leader.bus.publish(StateChanged(BTC, "live", 5))
        for one in (first, second):
            await until(lambda one=one: one.listener.states.get(BTC) == "live")
            assert one.listener.candles() == sent
            message_kinds = [
                type(message) for _, message, _ in one.listener.received if not isinstance(message, MessagesLost)
            ]
            assert message_kinds[-2:] == [HistoryChanged, StateChanged]
            assert one.listener.at[BTC] == leader.listener.at[BTC]
            assert one.listener.open_gaps == set()


async def test_a_combined_process_receives_its_own_message_once_and_immediately(prefix):
    async with process(shared_redis(), prefix, ingests=True) as one:
        await until(lambda: one.state is LeaseState.LEADER and one.bus.describe()["connected"])
        await asyncio.sleep(0.1)
        before = len(one.listener.received)
        candle = one.publish()
        assert one.listener.candles() == [candle]
        await until(lambda: one.bus.describe()["published"] == 1 and one.bus.describe()["ignored"].get("own", 0) == 0)
        await CLOCK.sleep(1.2)  # a heartbeat
        assert len(one.listener.received) == before + 1


async def test_a_later_process_gets_the_newest_minutes_and_has_to_read_the_rest(prefix):
    url = shared_redis()
    async with process(url, prefix, ingests=True) as leader:
        await until(lambda: leader.state is LeaseState.LEADER)
        sent = [leader.publish(number=number, final=number < 4) for number in range(5)]
        leader.bus.publish(StateChanged(BTC, "quiet", 1_000, decimals=Decimals(2, 6)))
        await until(lambda: leader.bus.describe()["published"] == 6)
        async with process(url, prefix) as late:
            await until(lambda: late.listener.missed)
            kinds = [type(message) for _, message, _ in late.listener.received if message.market == BTC]
            assert kinds[:5] == [MessagesLost] + [MinuteChanged] * 3 + [StateChanged]
            assert late.listener.candles() == sent[-3:]
            assert {position for _, message, position in late.listener.received if message.market == BTC} == {
                leader.listener.at[BTC]
            }
            assert late.listener.states[BTC] == "quiet"
            assert [
                message.decimals for _, message, _ in late.listener.received if isinstance(message, StateChanged)
            ] == [Decimals(2, 6)]


async def test_the_key_of_a_market_is_as_documented(prefix, names):
    url = shared_redis()
    async with process(url, prefix, ingests=True) as leader, aioredis.Redis.from_url(url) as client:
        await until(lambda: leader.state is LeaseState.LEADER)
        leader.bus.publish(MinuteChanged(BTC, minute(0, final=True), FeedMetadata(minute(1).open_ms, None, 0)))
        leader.publish(number=1)
        await until(lambda: leader.bus.describe()["published"] == 2)
        kept = json.loads(await client.get(names.newest_key(BTC)))
        assert [bar["time"] for bar in kept["candles"]] == ["2025-05-19T00:00:00.000Z", "2025-05-19T00:01:00.000Z"]
        assert (kept["epoch"], kept["seq"]) == leader.listener.at[BTC]
        assert 0 < await client.ttl(names.newest_key(BTC)) <= 7 * 86_400
        assert await client.get(names.newest_key(ETH)) is None


async def test_a_lost_message_is_noticed_by_the_heartbeat_even_if_it_was_the_last(prefix, names):
    url = shared_redis()
    async with process(url, prefix, ingests=True) as leader, process(url, prefix) as other:
        await until(lambda: leader.state is LeaseState.LEADER and other.is_ready)
        leader.publish()
        await until(lambda: other.listener.candles())
        # Redis accepts a message and drops it: the subscription is gone, and the server does not say so
        subscriber = other.bus._subscriber
        received, subscriber.on_message = subscriber.on_message, _deaf_to(names.candles_channel(BTC), subscriber)
        last = leader.publish()
        await until(lambda: leader.bus.describe()["published"] == 2)
        subscriber.on_message = received
        took_s = await until(lambda: other.listener.newest[BTC] == last, 5.0)
        assert took_s < 3.0
        assert other.bus.describe()["healed"]["heartbeat"] == 1
        assert other.listener.open_gaps == set()


def _deaf_to(channel, subscriber):
    received = subscriber.on_message
    return lambda name, data: None if name == channel else received(name, data)


async def test_a_mistake_while_receiving_ends_that_connection_only(prefix, caplog):
    url = shared_redis()
    async with process(url, prefix, ingests=True) as leader, process(url, prefix) as other:
        await until(lambda: leader.state is LeaseState.LEADER and other.is_ready)
        subscriber = other.bus._subscriber
        received = subscriber.on_message

        def mistaken(channel, data):
            subscriber.on_message = received
            raise KeyError(channel)

        subscriber.on_message = mistaken
        last = leader.publish()
        await until(lambda: other.listener.newest.get(BTC) == last, 5.0)
        assert other.bus.describe()["linkEnds"] == {"KeyError": 1}
        assert other.listener.open_gaps == set()
        assert "receiving from Redis at" in caplog.text


async def test_what_redis_refuses_for_a_while_is_published_without_waiting_for_the_next_message(prefix):
    with own_redis() as server:
        async with process(server.url, prefix, ingests=True) as leader, process(server.url, prefix) as other:
            await until(lambda: leader.state is LeaseState.LEADER and other.is_ready)
            with server.client() as client:
                client.config_set("maxmemory", 1)
                last = leader.publish(final=True)
                await until(lambda: leader.bus.describe()["refused"])
                client.config_set("maxmemory", 0)
            await until(lambda: other.listener.newest.get(BTC) == last, 3.0)


async def test_a_broken_message_is_counted_and_logged_once(prefix, names, caplog):
    url = shared_redis()
    async with process(url, prefix) as one, aioredis.Redis.from_url(url) as client:
        await until(lambda: one.is_ready)
        for text in (b"garbage", b'{"type":"trade"}', b"\x00" * 100_000):
            await client.publish(names.candles_channel(BTC), text)
        await client.publish(names.heartbeat_channel(0), b"[]")
        await until(lambda: one.bus.describe()["ignored"] == {"unreadable": 4})
        assert sum("cannot be read" in record.message for record in caplog.records) == 1
        assert one.bus.describe()["generation"] == 1


@pytest.mark.parametrize("text", ["-inf", "nan", "1e999", "-1e9", "garbage", ""])
async def test_a_forged_loopback_message_is_no_sign_of_life(prefix, names, text):
    url = shared_redis()
    async with process(url, prefix) as one, aioredis.Redis.from_url(url) as client:
        await until(lambda: one.is_ready and one.bus.describe()["lagMs"] is not None)
        (connection,) = one.bus._subscriber._connections.values()
        read, seen = connection._accept_message, {}

        def accept(message):
            before = connection._loopback_at, connection.lag_s
            read(message)
            seen[message["data"]] = before == (connection._loopback_at, connection.lag_s)

        connection._accept_message = accept
        await client.publish(connection._private, text)
        await until(lambda: text.encode() in seen)
        assert seen[text.encode()], "it changed nothing"
        json.dumps(one.bus.describe(), allow_nan=False)


async def test_a_broken_key_is_no_obstacle(prefix, names):
    url = shared_redis()
    async with aioredis.Redis.from_url(url) as client:
        await client.set(names.newest_key(BTC), b"garbage")
        async with process(url, prefix) as one:
            await until(lambda: one.listener.missed == 2)
            assert one.bus.describe()["ignored"] == {"unreadable": 1}


async def test_a_minute_of_another_program_counts_only_where_no_process_leads(prefix, names):
    url, text = shared_redis(), b'{"time":"2025-05-19T00:00:00Z","open":10,"high":10,"low":10,"close":10,"volume":7}'
    async with process(url, prefix) as one, aioredis.Redis.from_url(url) as client:
        await until(lambda: one.listener.states.get(BTC) == "stale", 6.0)
        await client.publish(names.candles_channel(BTC), text)
        await until(lambda: one.listener.candles())
        assert str(one.listener.newest[BTC].volume) == "7"
        assert (one.listener.states[BTC], one.listener.states[ETH]) == ("live", "stale")
        async with process(url, prefix, ingests=True) as leader:
            await until(lambda: leader.state is LeaseState.LEADER)
            await until(lambda: "late heartbeat" in one.bus.describe()["healed"])
            await client.publish(names.candles_channel(BTC), text.replace(b":7", b":8"))
            await until(lambda: one.bus.describe()["ignored"].get("outside") == 1)
            await until(lambda: leader.bus.describe()["ignored"].get("outside") == 1)
            assert str(one.listener.newest[BTC].volume) == "7"


async def test_without_a_leader_the_markets_are_stale_and_with_one_they_have_its_state(prefix):
    url = shared_redis()
    async with process(url, prefix) as one:
        started = CLOCK.monotonic()
        await until(lambda: one.listener.states == {BTC: "stale", ETH: "stale"}, 4.5)
        assert CLOCK.monotonic() - started > 2.5
        async with process(url, prefix, ingests=True) as leader:
            await until(lambda: leader.state is LeaseState.LEADER)
            leader.publish()
            leader.bus.publish(StateChanged(BTC, "live", 1))
            await until(lambda: one.listener.states[BTC] == "live")
        await until(lambda: one.listener.states[BTC] == "stale", 6.0)


async def test_a_leader_that_was_replaced_is_refused(prefix, names, caplog):
    url = shared_redis()
    caplog.set_level(logging.INFO)
    async with process(url, prefix, ingests=True) as old, aioredis.Redis.from_url(url) as client:
        await until(lambda: old.state is LeaseState.LEADER)
        old.publish()
        await until(lambda: old.bus.describe()["published"] == 1)
        token = old.leases.all[0].token
        await client.set(names.lease_key(0), f"{token + 1} somebody", px=5000)
        await client.set(names.fence_key(BTC), token + 1)
        old.publish()
        await until(lambda: old.state is LeaseState.FOLLOWER, 2.0)
        assert old.bus.describe()["refused"] == 1
        assert json.loads(await client.get(names.newest_key(BTC)))["seq"] == 1


async def test_a_leader_takes_a_higher_token_where_redis_knows_one_but_not_its_lease(prefix, names):
    url = shared_redis()
    async with process(url, prefix, ingests=True) as one, aioredis.Redis.from_url(url) as client:
        await until(lambda: one.state is LeaseState.LEADER)
        token = one.leases.all[0].token
        await client.set(names.fence_key(BTC), token + 10**9)
        one.publish()
        await until(lambda: one.bus.describe()["refused"] == 1)
        await until(lambda: one.state is LeaseState.LEADER and one.leases.all[0].token > token + 10**9, 3.0)
        one.publish()
        await until(lambda: one.bus.describe()["published"] == 1)


async def test_a_call_that_a_later_one_of_the_same_leader_overtook_changes_nothing(prefix, names):
    """It waited in a connection that hung, and that the leader had given up."""
    keys, channel = (names.fence_key(BTC), names.newest_key(BTC)), names.candles_channel(BTC)
    async with aioredis.Redis.from_url(shared_redis()) as client, client.pubsub() as hearer:
        await hearer.subscribe(channel)
        answers = [
            await client.eval(PUBLISH.text, 2, *keys, token, number, 0, channel, "PUBLISH", 60, newest, *messages)
            for token, number, newest, messages in (
                (7, 3, "third", ["2", "3"]),
                (7, 1, "first", ["1"]),
                (7, 3, "third", ["3"]),  # its answer was lost
                (7, 0, "", []),
                (8, 1, "another feed", ["next 1"]),
                (7, 4, "fourth", ["4"]),
            )
        ]
        received = []
        while (message := await hearer.get_message(timeout=0.5)) is not None:
            received += [message["data"]] if message["type"] == "message" else []
        assert answers == [None, b"late 3", None, b"late 3", None, b"8"]
        assert received == [b"2", b"3", b"3", b"next 1"]
        assert await client.get(names.newest_key(BTC)) == b"another feed"
        assert await client.get(names.fence_key(BTC)) == b"8 1"


async def test_a_process_that_only_serves_publishes_nothing(prefix):
    async with process(shared_redis(), prefix) as one:
        with pytest.raises(RuntimeError):
            one.publish()


async def test_a_process_that_only_ingests_receives_no_candles(prefix):
    """It receives notices about lists of markets only."""
    async with process(shared_redis(), prefix, ingests=True, serves=False) as one:
        await until(lambda: one.state is LeaseState.LEADER and one.bus.describe()["connected"])
        assert one.bus._all_channels() == [f"{prefix}candled:{{markets-bitget}}:changed"]
        await CLOCK.sleep(1.5)
        assert one.bus.describe().get("trouble") is None


async def test_a_listeners_fault_stops_no_other_listener(prefix, caplog):
    url = shared_redis()
    async with process(url, prefix, ingests=True) as leader, process(url, prefix) as other:
        other.bus.add_listener(Faulty())
        leader.bus.add_listener(Faulty())
        await until(lambda: leader.state is LeaseState.LEADER and other.is_ready)
        for _ in range(2):
            candle = leader.publish()
            await until(lambda candle=candle: other.listener.newest.get(BTC) == candle)
        assert any("a listener failed" in record.message for record in caplog.records)


class Faulty:
    def on_feed_message(self, message, position):
        raise ValueError("no")


async def test_a_thousand_markets_in_one_moment_all_arrive(prefix):
    url = shared_redis()
    markets = tuple(MarketKey("bitget", Symbol(f"COIN{number}", "USDT")) for number in range(1000))
    async with (
        # A leader without a lease publishes nothing, and a slow machine must not cost it the lease.
        process(url, prefix, ingests=True, markets=markets, clock=SystemClock(), lease_s=60.0) as leader,
        process(url, prefix, markets=markets, clock=SystemClock(), lease_s=60.0) as other,
    ):
        await until(lambda: leader.state is LeaseState.LEADER and other.is_ready)
        for _ in range(3):
            sent = {market: leader.publish(market) for market in markets}
            await until(lambda sent=sent: other.listener.newest == sent, 30)
        assert other.listener.open_gaps == set()
        assert set(other.bus.describe()["healed"]) <= {"connected", "epoch"}


async def test_two_candleds_with_different_prefixes_receive_nothing_of_each_other():
    url = shared_redis()
    async with process(url, new_prefix(), ingests=True) as one, process(url, new_prefix()) as other:
        await until(lambda: one.state is LeaseState.LEADER and other.is_ready)
        one.publish()
        await until(lambda: one.bus.describe()["published"] == 1)
        await asyncio.sleep(0.3)
        assert other.listener.candles() == []


async def test_a_socket_in_the_file_system_does_as_well(tmp_path, prefix):
    with own_redis(unixsocket=str(tmp_path / "redis.sock")):
        url = f"unix://{tmp_path}/redis.sock"
        async with process(url, prefix, ingests=True) as leader, process(url, prefix) as other:
            await until(lambda: leader.state is LeaseState.LEADER and other.is_ready)
            candle = leader.publish()
            await until(lambda: other.listener.newest.get(BTC) == candle)


async def test_a_socket_with_an_account_and_a_database_of_its_own(tmp_path, prefix):
    with own_redis(unixsocket=str(tmp_path / "redis.sock")) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "me", "on", ">p@ss", "~*", "&*", "+@all")
            client.execute_command("ACL", "SETUSER", "default", "off")
        url = f"unix://me:p%40ss@{tmp_path}/redis.sock?db=3"
        async with (
            process(url, prefix, ingests=True) as leader,
            process(url, prefix) as other,
            process(f"unix://{tmp_path}/redis.sock", prefix) as stranger,
            process(f"unix://{tmp_path}/nothing.sock", prefix) as lost,
        ):
            await until(lambda: leader.state is LeaseState.LEADER and other.is_ready)
            candle = leader.publish()
            await until(lambda: other.listener.newest.get(BTC) == candle)
            await until(lambda: "authenticated" in str(stranger.bus.describe().get("trouble")))
            await until(lambda: f"{tmp_path}/nothing.sock" in str(lost.bus.describe().get("trouble")))
        me = redis.Redis(unix_socket_path=str(tmp_path / "redis.sock"), username="me", password="p@ss", db=3)
        with me:
            assert me.exists(f"{{{prefix}candles:BTC/USDT:1m}}:newest")


async def test_a_password_is_used_and_a_wrong_one_is_reported(prefix):
    with own_redis(requirepass="right") as server:
        async with (
            process(f"redis://:right@127.0.0.1:{server.port}", prefix, ingests=True) as leader,
            process(f"redis://:wrong@127.0.0.1:{server.port}", prefix) as stranger,
        ):
            await until(lambda: leader.state is LeaseState.LEADER)
            await until(lambda: "trouble" in stranger.bus.describe())
            assert not stranger.bus.describe()["connected"]
            assert "wrong" not in json.dumps(stranger.bus.describe())


async def test_publishing_takes_no_time_whatever_redis_does(prefix):
    """Ingest publishes between two awaits: what it may cost is the numbering alone."""
    async with process(shared_redis(), prefix, ingests=True, serves=False) as one:
        await until(lambda: one.state is LeaseState.LEADER)
        took = []
        for number in range(2000):
            started = deadlines.now()
            one.publish(MARKETS[number % 2])
            took.append(deadlines.now() - started)
        assert sorted(took)[1980] < 0.005


async def test_other_tasks_run_while_a_flood_of_messages_is_received(prefix, names):
    """redis-py returns buffered messages without waiting, so the loop would do nothing else until there are none."""
    url, count = shared_redis(), 3000
    async with process(url, prefix) as one:
        await until(lambda: one.is_ready)

        def flood() -> None:
            with redis.Redis.from_url(url) as client, client.pipeline(transaction=False) as pipeline:
                for _ in range(count):
                    pipeline.publish(names.candles_channel(BTC), "{")
                pipeline.execute()

        flooding = asyncio.ensure_future(asyncio.to_thread(flood))
        received = [0]
        async with deadlines.timeout(30):
            while received[-1] < count:
                await asyncio.sleep(0)
                received.append(one.bus.describe()["ignored"].get("unreadable", 0))
        await flooding
        assert max(later - earlier for earlier, later in zip(received, received[1:], strict=False)) <= count / 4
