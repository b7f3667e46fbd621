"""Who leads, on a real Redis: takeover, fairness, being cut off, and a Redis that forgets."""

import asyncio
import contextlib

import pytest
from redis import asyncio as aioredis

from candled.bus.codec import Names, token_of
from candled.bus.redis.leases import LeaseState
from candled.clock import SystemClock
from tests.bus.rig import BTC, CLOCK, new_prefix, process, until
from tests.proxy import Proxy
from tests.redis_servers import own_redis, shared_redis

pytestmark = pytest.mark.usefixtures("redis")

LEADER, FOLLOWER, UNSURE = LeaseState.LEADER, LeaseState.FOLLOWER, LeaseState.UNSURE


@pytest.fixture
def prefix():
    return new_prefix()


def led(*processes) -> list[int]:
    """How many shards each leads."""
    return [sum(lease.state is LEADER for lease in one.leases.all) for one in processes]


async def test_one_of_several_leads(prefix):
    url = shared_redis()
    async with contextlib.AsyncExitStack() as stack:
        all_ = [await stack.enter_async_context(process(url, prefix, ingests=True)) for _ in range(3)]
        await until(lambda: sorted(led(*all_)) == [0, 0, 1])
        await CLOCK.sleep(2.5)
        assert sorted(led(*all_)) == [0, 0, 1]
        assert all(one.leases.processes == 3 for one in all_)
        facts = [one.bus.describe() for one in all_]
        (leader,) = [one["process"] for one in facts if one["leases"][0]["state"] == "leader"]
        assert [one["leases"][0]["leader"] for one in facts] == [leader] * 3


async def test_a_leader_that_stops_in_order_is_succeeded_immediately_with_a_higher_token(prefix):
    url = shared_redis()
    async with contextlib.AsyncExitStack() as stack:
        second = None
        async with process(url, prefix, ingests=True) as first:
            await until(lambda: first.state is LEADER)
            second = await stack.enter_async_context(process(url, prefix, ingests=True))
            token = first.leases.all[0].token
            await CLOCK.sleep(1.2)
        took_s = await until(lambda: second.state is LEADER, 4.0)
        assert took_s < 2.0
        assert second.leases.all[0].token > token
        assert token_of(second.leases.all[0].epoch) == second.leases.all[0].token


async def test_a_leader_that_is_cut_off_stops_publishing_before_another_takes_over(prefix):
    with own_redis() as server, Proxy(server.address) as proxy:
        far = f"redis://127.0.0.1:{proxy.address[1]}"
        async with (
            process(far, prefix, ingests=True, lease_s=2.0, clock=SystemClock()) as cut_off,
            process(server.url, prefix) as listener,
        ):
            await until(lambda: cut_off.state is LEADER)
            async with process(server.url, prefix, ingests=True, lease_s=2.0) as other:
                cut_off.publish()
                await until(lambda: cut_off.bus.describe()["published"] == 1)
                proxy.freeze()
                await until(lambda: not cut_off.leases.all[0].may_publish() or other.state is LEADER, 5.0)
                assert other.state is FOLLOWER
                await until(lambda: cut_off.state is UNSURE, 0.5)
                await until(lambda: other.state is LEADER, 5.0)
                cut_off.publish()
                assert cut_off.listener.newest[BTC].volume == 2  # its own charts go on
                candle = other.publish()
                proxy.thaw()
                await until(lambda: cut_off.state is FOLLOWER, 6.0)
                await until(
                    lambda: (
                        cut_off.listener.newest[BTC].volume == 2 and cut_off.listener.at[BTC] == other.listener.at[BTC]
                    )
                )
                await until(lambda: listener.listener.at[BTC] == other.listener.at[BTC])
                facts = cut_off.bus.describe()  # what could not be published is the other's now
                assert (facts["connected"], facts["waitingMarkets"], "trouble" in facts) == (True, 0, False)
                assert [one.volume for one in listener.listener.candles()].count(
                    2
                ) == 0  # messages published meanwhile reached no subscriber
                assert candle in listener.listener.candles()


async def test_a_leader_that_was_cut_off_for_a_while_goes_on_with_its_feed(prefix):
    with own_redis() as server, Proxy(server.address) as proxy:
        far = f"redis://127.0.0.1:{proxy.address[1]}"
        async with process(far, prefix, ingests=True, lease_s=2.0, clock=SystemClock()) as one:
            await until(lambda: one.state is LEADER)
            epoch = one.leases.all[0].epoch
            proxy.freeze()
            await until(lambda: one.state is UNSURE, 6.0)
            await asyncio.sleep(0.5)  # the lease has run out in Redis too
            proxy.thaw()
            await until(lambda: one.state is LEADER, 6.0)
            assert one.leases.all[0].epoch == epoch


async def test_a_redis_that_forgot_everything_gives_out_no_token_twice(prefix):
    with own_redis() as server:
        async with process(server.url, prefix, ingests=True, lease_s=2.0) as one:
            await until(lambda: one.state is LEADER)
            token = one.leases.all[0].token
            server.kill()
            one.publish()
            server.start()
            await until(lambda: one.state is LEADER and one.leases.all[0].token > token, 6.0)
            one.publish()
            await until(lambda: one.bus.describe()["published"] == 1)


async def test_without_redis_a_process_with_clients_begins_alone_and_one_without_waits(prefix):
    nowhere, began_s = "redis://127.0.0.1:1", CLOCK.monotonic()
    async with (
        process(nowhere, prefix, ingests=True, lease_s=2.0, alone_after_s=1.5) as combined,
        process(nowhere, prefix, ingests=True, lease_s=2.0, alone_after_s=1.5, serves=False) as alone,
    ):
        await until(lambda: combined.state is UNSURE, 4.0)
        assert CLOCK.monotonic() - began_s > 1.4
        combined.publish()
        assert combined.listener.candles()
        assert alone.state is FOLLOWER


async def test_shards_are_spread_and_spread_again(prefix):
    url = shared_redis()
    async with process(url, prefix, ingests=True, shards=6, lease_s=2.0) as first:
        await until(lambda: led(first) == [6])
        async with process(url, prefix, ingests=True, shards=6, lease_s=2.0) as second:
            await until(lambda: led(first, second) == [3, 3], 45.0)
            async with process(url, prefix, ingests=True, shards=6, lease_s=2.0) as third:
                await until(lambda: led(first, second, third) == [2, 2, 2], 30.0)
                await CLOCK.sleep(2.5)
                assert led(first, second, third) == [2, 2, 2]
            await until(lambda: led(first, second) == [3, 3], 8.0)


async def test_a_shard_that_is_given_up_is_released_once_its_ingest_has_stopped(prefix):
    url = shared_redis()
    async with process(url, prefix, ingests=True, shards=2, lease_s=2.0, follows=False) as first:
        stopped = asyncio.Event()
        followers = [asyncio.ensure_future(_stop_slowly(lease, stopped)) for lease in first.leases.all]
        await until(lambda: led(first) == [2])
        async with process(url, prefix, ingests=True, shards=2, lease_s=2.0) as second:
            await until(lambda: led(first) == [1], 8.0)
            await CLOCK.sleep(1.0)
            assert led(second) == [0]
            stopped.set()
            await until(lambda: led(second) == [1], 3.0)
        for follower in followers:
            follower.cancel()


async def _stop_slowly(lease, stopped):
    has_led = False
    async for state in lease.watch_states():
        if has_led and state is FOLLOWER:
            await stopped.wait()
        has_led = has_led or state is LEADER


async def test_processes_that_disagree_on_the_shards_do_not_take_over_from_each_other(prefix, caplog):
    url = shared_redis()
    async with process(url, prefix, ingests=True, shards=1) as one:
        await until(lambda: one.state is LEADER)
        async with process(url, prefix, ingests=True, shards=2) as other:
            await CLOCK.sleep(2.5)
            assert led(one, other) == [1, 0]
            assert any("other ingest.shards than 2" in record.message for record in caplog.records)
    async with process(url, prefix, ingests=True, shards=2) as other:
        await until(lambda: led(other) == [2])


async def test_every_change_is_reported_in_order_and_an_overtaken_one_is_left_out(prefix):
    url = shared_redis()
    async with process(url, prefix, ingests=True, follows=False) as one:
        lease, states_seen = one.leases.all[0], []
        states = lease.watch_states()
        states_seen.append(await anext(states))
        await until(lambda: one.state is LEADER)
        states_seen.append(await anext(states))
        assert not lease.is_handled
        lease.release()
        lease.mark_unsure()
        states_seen.append(await anext(states))
        assert states_seen == [FOLLOWER, LEADER, UNSURE]


async def test_the_lease_is_kept_as_documented(prefix):
    url = shared_redis()
    async with process(url, prefix, ingests=True) as one, aioredis.Redis.from_url(url) as client:
        await until(lambda: one.state is LEADER)
        names = Names(prefix, "bitget", 1)
        token, owner = (await client.get(names.lease_key(0))).decode().split()
        assert int(token) == one.leases.all[0].token
        assert 0 < await client.pttl(names.lease_key(0)) <= 6000
        assert [member.decode() for member in await client.zrange(names.processes_key, 0, -1)] == [f"{owner}/1"]
    async with aioredis.Redis.from_url(url) as client:
        assert await client.get(names.lease_key(0)) is None
        assert await client.zrange(names.processes_key, 0, -1) == []
