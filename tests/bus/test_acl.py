"""deploy/redis.acl at a real Redis: candled needs no more than it gives, and it gives nothing to forge candles with."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from candled.bus.codec import Names
from candled.bus.factory import RedisParts
from candled.bus.redis.leases import LeaseState
from candled.clock import SystemClock
from candled.universe_choice import DemandRules
from tests.bus.rig import BTC, CLOCK, MARKETS, make_facts, process, universe_of, until
from tests.redis_servers import NO_RETRY, RedisCluster, RedisServer, own_redis, program

pytestmark = pytest.mark.usefixtures("redis")

FILE = Path(__file__).parents[2] / "deploy" / "redis.acl"
NAMES = Names("", "bitget", 1)
USERS = ("candled-ingest", "candled-serve", "candled-listen")


def password(user: str) -> str:
    return user.removeprefix("candled-").upper() + "-PASSWORD"


def rules() -> dict[str, list[str]]:
    """The words of each account; what stands in brackets is one of them."""
    lines = [line for line in FILE.read_text("utf-8").splitlines() if line.startswith("user ")]
    words = (re.findall(r"\([^)]*\)|\S+", line) for line in lines)
    return {name: rest for _, name, *rest in words}


class Server(RedisServer):
    """A server on which nobody is let in without an account."""

    def client(self) -> "redis.Redis[bytes]":
        return self.client_of("candled-ingest")

    def url_of(self, user: str) -> str:
        return f"redis://{user}:{password(user)}@127.0.0.1:{self.port}/0"

    def client_of(self, user: str) -> "redis.Redis[bytes]":
        account = {"username": user, "password": password(user)}
        return redis.Redis("127.0.0.1", self.port, **account, socket_timeout=5, retry=NO_RETRY)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server(program(), aclfile=str(FILE), enable_debug_command="yes")
    try:
        one.start()
        yield one
    finally:
        one.remove()


def test_the_file_names_the_accounts_and_disables_the_default_one():
    assert set(rules()) == {"default", *USERS}
    assert "off" in rules()["default"]


async def test_processes_with_these_accounts_lead_publish_receive_and_take_over(server, caplog):
    async with (
        process(server.url_of("candled-serve"), "") as serving,
        process(server.url_of("candled-ingest"), "", ingests=True, lease_s=3.0) as leader,
    ):
        await until(lambda: leader.state is LeaseState.LEADER and serving.is_ready)
        async with process(server.url_of("candled-ingest"), "", ingests=True, lease_s=3.0) as second:
            await until(lambda: second.is_ready and leader.leases.processes == 2)
            candle = leader.publish()
            await until(lambda: serving.listener.newest.get(BTC) == second.listener.newest.get(BTC) == candle)
            serving.bus._tracker.mark_missed(MARKETS, "connected")
            serving.bus._has_missed.set()
            await leader.parts.stop()
            await until(lambda: second.state is LeaseState.LEADER)
            candle = second.publish(number=1)
            await until(lambda: serving.listener.newest.get(BTC) == candle)
            assert [one.bus.describe().get("trouble") for one in (second, serving)] == [None, None]
    assert not [record for record in caplog.records if "NOPERM" in record.message]


@pytest.mark.parametrize("user", ["candled-ingest", "candled-serve"])
async def test_requests_are_counted_and_budgets_shared(server, user):
    is_ingest = user == "candled-ingest"
    parts = RedisParts(server.url_of(user), SystemClock(), universe_of(MARKETS), ingests=is_ingest, serves=True)
    try:
        assert [(await parts.counter.count_hit(user, 5.0))[0] for _ in range(2)] == [1, 2]
        if is_ingest:
            await parts.budgets.budget_for("host", 5.0).acquire()
            await parts.book.write_listed("bitget", [BTC.symbol])
        rules = DemandRules(most=1)
        assert await parts.book.request_market(BTC, rules)
        await parts.book.renew_markets("bitget", [BTC.symbol])
        assert await parts.book.read_markets("bitget", rules) == [BTC.symbol]
        await parts.book.read_listed("bitget")
        parts.processes.start(lambda: make_facts(parts.processes.process))
        own = NAMES.process_key(parts.processes.process)
        await until(lambda: server.client_of("candled-ingest").getrange(own, 0, 9))
        assert parts.bus.describe().get("trouble") is None
    finally:
        await parts.stop()


FORGERIES = [
    ("PUBLISH", NAMES.candles_channel(BTC), "{}"),
    ("SPUBLISH", NAMES.candles_channel(BTC), "{}"),
    ("PUBLISH", NAMES.heartbeat_channel(0), "{}"),
    ("SET", NAMES.newest_key(BTC), "{}"),
    ("DEL", NAMES.newest_key(BTC)),
    ("SET", NAMES.fence_key(BTC), "1"),
    ("SET", NAMES.markets_key("bitget"), "{}"),
    ("SET", NAMES.markets_fence_key("bitget"), "1"),
    ("PUBLISH", NAMES.markets_channel("bitget"), "{}"),
    ("SET", NAMES.lease_key(0), "1 me"),
    ("SET", NAMES.token_key(0), "1"),
    ("ZADD", NAMES.processes_key, 1, "me"),
    ("SET", NAMES.listed_key("bitget"), "X/USDT"),
    ("HSET", NAMES.budget_key("host"), "closed", "1"),
    ("EVAL", "return 1", 0),
    ("EVAL", "redis.call('PUBLISH', ARGV[1], '{}')", 0, NAMES.candles_channel(BTC)),
    ("SET", "anything", "1"),
]
RUIN = [
    ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", "0"), ("CONFIG", "GET", "*"), ("CONFIG", "SET", "port", "1"),
    ("SHUTDOWN",), ("DEBUG", "SLEEP", "0"), ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("ACL", "LIST"),
    ("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "pubsub"), ("REPLICAOF", "NO", "ONE"), ("MONITOR",),
    ("MODULE", "LIST"), ("FUNCTION", "LIST"), ("SAVE",), ("MIGRATE", "127.0.0.1", "1", "x", "0", "1"),
    ("SET", "anything", "1"),
]  # fmt: skip


@pytest.mark.parametrize("words", FORGERIES, ids=lambda words: " ".join(map(str, words[:2])))
@pytest.mark.parametrize("user", ["candled-serve", "candled-listen"])
def test_an_account_that_only_reads_can_forge_nothing(server, user, words):
    with server.client_of(user) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*words)


@pytest.mark.parametrize("words", RUIN, ids=lambda words: " ".join(words[:2]))
@pytest.mark.parametrize("user", USERS)
def test_no_account_can_ruin_the_server(server, user, words):
    with server.client_of(user) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*words)


def test_without_an_account_nothing_is_answered(server):
    with (
        redis.Redis("127.0.0.1", server.port, retry=NO_RETRY) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.get(NAMES.newest_key(BTC))


def test_a_listener_hears_what_is_published(server):
    with server.client_of("candled-listen") as client, client.pubsub() as pubsub:
        pubsub.subscribe(NAMES.candles_channel(BTC))
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        client.get(NAMES.newest_key(BTC))


async def test_on_a_cluster_they_do_as_well():
    with RedisCluster() as cluster:
        for node in cluster.nodes:
            with node.client() as client:
                for name in USERS:
                    client.execute_command("ACL", "SETUSER", name, *rules()[name])
        urls = [
            cluster.url.replace("://", f"://{user}:{password(user)}@") for user in ("candled-ingest", "candled-serve")
        ]
        async with process(urls[0], "", ingests=True) as leader, process(urls[1], "") as serving:
            await until(lambda: leader.state is LeaseState.LEADER and serving.is_ready)
            candle = leader.publish()
            await until(lambda: serving.listener.newest.get(BTC) == candle)
            await CLOCK.sleep(1.5)
            assert [one.bus.describe().get("trouble") for one in (leader, serving)] == [None, None]


def test_with_a_prefix_the_patterns_have_it_too():
    """As docs/reference/bus.md says."""
    text = re.sub(r"((?:%R)?[~&]\{?)(?=candle)", r"\1staging:", FILE.read_text("utf-8"))
    names = Names("staging:", "bitget", 1)
    with own_redis() as one, one.client() as client:
        words = next(line for line in text.splitlines() if line.startswith("user candled-ingest")).split()
        client.execute_command("ACL", "SETUSER", *words[1:])
        with redis.Redis("127.0.0.1", one.port, username="candled-ingest", password="INGEST-PASSWORD") as ingest:
            for key in (
                names.newest_key(BTC),
                names.fence_key(BTC),
                names.lease_key(0),
                names.token_key(0),
                names.count_key("x"),
            ):
                ingest.set(key, "1")
            ingest.publish(names.candles_channel(BTC), "{}")
            with pytest.raises(redis.exceptions.NoPermissionError):
                ingest.set(NAMES.newest_key(BTC), "1")
