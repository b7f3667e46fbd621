"""Another program writes to Redis once: no market freezes, no number jumps, no process leads or waits forever.

One table of messages and one of keys. A real server, a process that leads and publishes ten times a second, one that
serves, and one that would lead; the forgery is made between.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from redis import asyncio as aioredis

from candled.bus import FeedMetadata, MinuteChanged, StateChanged
from candled.bus.codec import Names
from candled.bus.factory import RedisParts
from candled.bus.redis.leases import LeaseState
from candled.clock import SystemClock
from candled.model import MINUTE_MS, Candle
from tests import deadlines
from tests.bus.rig import BTC, CLOCK, MARKETS, Process, new_prefix, process, universe_of, until
from tests.redis_servers import own_redis

pytestmark = pytest.mark.usefixtures("redis")

FORGED = 666  # the price
WELL_WITHIN_S = 5.0
HUGE = 10**22
SCRIPT_MOST = 2**53


class Deployment:
    """What the table of forgeries knows of the site."""

    def __init__(self, leader: Process, serving: Process, waiting: Process, client: Any, names: Names) -> None:
        self.leader = leader
        self.serving = serving
        self.waiting = waiting
        self.client = client
        self.names = names
        self._number = 0

    async def publish(self) -> None:
        """Publish forever, the present minute as it grows."""
        while True:
            self._number += 1
            ingesting = self.leader if self.leader.leases.all[0].must_ingest else self.waiting
            if ingesting.leases.all[0].must_ingest:
                now_ms = SystemClock().now_ms()
                open_ms = now_ms - now_ms % MINUTE_MS
                candle = Candle.parse(open_ms, "10", "10", "10", "10", str(self._number), as_of_ms=now_ms)
                for market in MARKETS:
                    ingesting.bus.publish(MinuteChanged(market, candle, FeedMetadata(open_ms)))
                    ingesting.bus.publish(StateChanged(market, "live", 1))
            await asyncio.sleep(0.1)

    @property
    def token(self) -> int:
        return self.leader.leases.all[0].token

    @property
    def seq(self) -> int:
        return self.leader.listener.at[BTC].seq

    def candle(self, **changes: Any) -> str:
        """A message as the leader would send it, but for what is forged."""
        now_ms = SystemClock().now_ms()
        return json.dumps(
            {
                "type": "candle",
                "epoch": self.leader.leases.all[0].epoch,
                "seq": self.seq + 1,
                "time": now_ms - now_ms % MINUTE_MS,
                **dict.fromkeys(("open", "high", "low", "close"), FORGED),
                "volume": 0.5,
                **changes,
            }
        )

    @property
    def ignored(self) -> int:
        """How many messages the serving process refused as forged."""
        facts = self.serving.bus.describe()["ignored"]
        return sum(facts.get(key, 0) for key in ("unreadable", "future", "unproved", "outside"))

    def beat(self, **changes: Any) -> str:
        seqs = {self.names.candles_channel(market): self.seq for market in MARKETS}
        return json.dumps({"shard": 0, "epoch": self.leader.leases.all[0].epoch, "seqs": seqs, **changes})

    async def is_well(self) -> None:
        """Wait until what is published from now on comes within a second, and everybody says that all is well."""
        processes = (self.leader, self.serving, self.waiting)

        def states() -> list[LeaseState]:
            return sorted((self.leader.state, self.waiting.state), key=lambda state: state.value)

        def is_so() -> bool:
            newest = {one.listener.newest[BTC].volume for one in processes}
            return (
                states() == [LeaseState.FOLLOWER, LeaseState.LEADER]
                and max(newest) - min(newest) <= 10
                and all(one.listener.newest[BTC].close == 10 for one in processes)
                and all(one.listener.states == dict.fromkeys(MARKETS, "live") for one in processes)
                and all("trouble" not in one.bus.describe() for one in processes)
            )

        await until(is_so, WELL_WITHIN_S)
        seen = self.serving.listener.newest[BTC].volume
        await until(lambda: self.serving.listener.newest[BTC].volume > seen + 5, 2.0)


@asynccontextmanager
async def deployment(url: str) -> AsyncIterator[Deployment]:
    prefix = new_prefix()
    async with (
        process(url, prefix, ingests=True, lease_s=3.0) as leader,
        process(url, prefix) as serving,
        aioredis.Redis.from_url(url) as client,
    ):
        await until(lambda: leader.state is LeaseState.LEADER and serving.is_ready)
        async with process(url, prefix, ingests=True, lease_s=3.0) as waiting:
            one = Deployment(leader, serving, waiting, client, Names(prefix, "bitget", 1))
            publishing = asyncio.ensure_future(one.publish())
            try:
                await until(lambda: all(BTC in each.listener.newest for each in (leader, serving, waiting)))
                await one.is_well()
                yield one
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)


# ---------------------------------------------------------------- messages

MESSAGES: dict[str, Callable[[Deployment], str]] = {
    "a jump": lambda one: one.candle(seq=one.seq + 10**6),
    "the largest number": lambda one: one.candle(seq=SCRIPT_MOST),
    "a number beyond all": lambda one: one.candle(seq=HUGE),
    "the next leader's": lambda one: one.candle(epoch=f"0.{one.token + 1}", seq=1),
    "the largest token": lambda one: one.candle(epoch=f"0.{SCRIPT_MOST}", seq=1),
    "a token of 10^22": lambda one: one.candle(epoch=f"0.{HUGE}", seq=1),
    "a minute of the year 9999": lambda one: one.candle(time="9999-12-31T23:59:00Z"),
    "a jump to the year 9999": lambda one: one.candle(time="9999-12-31T23:59:00Z", seq=one.seq + 10**6),
    "a minute in an hour": lambda one: one.candle(
        time=SystemClock().now_ms() // MINUTE_MS * MINUTE_MS + 60 * MINUTE_MS
    ),
    "a statement of the year 9999": lambda one: one.candle(asOf="9999-12-31T23:59:00Z"),
    "all is final": lambda one: one.candle(watermark="9999-12-31T23:59:00Z"),
    "of another market": lambda one: one.candle(symbol="XRP/USDT"),
    "of another program": lambda one: one.candle(epoch="", seq=0),
    "a repair of everything": lambda one: json.dumps(
        {"type": "healed", "epoch": f"0.{one.token}", "seq": one.seq + 10**6, "from": 0, "until": 10**12}
    ),
    "no JSON": lambda one: "{",
    "nothing": lambda one: "",
    "a million brackets": lambda one: "[" * 10**6,
}


@contextmanager
def named(kind: str) -> Iterator[None]:
    """Name the row of a table in what fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"the row {kind!r}")
        raise


@pytest.fixture(scope="module")
def server():
    with own_redis() as one:
        yield one


async def test_a_forged_message_changes_nothing(server):
    async with deployment(server.url) as one:
        for kind, message in MESSAGES.items():
            with named(kind):
                before = one.ignored
                for _ in range(2):
                    await one.client.publish(one.names.candles_channel(BTC), message(one))
                    await asyncio.sleep(0.05)
                await one.is_well()
                assert FORGED not in {int(candle.close) for candle in one.serving.listener.candles()}
                assert one.ignored > before
                assert one.leader.state is LeaseState.LEADER


HEARTBEATS: dict[str, Callable[[Deployment], str]] = {
    "more than there is": lambda one: one.beat(seqs={one.names.candles_channel(BTC): one.seq + 10**6}),
    "nothing published": lambda one: one.beat(seqs={one.names.candles_channel(BTC): 0}),
    "no markets": lambda one: one.beat(seqs={}),
    "another leader": lambda one: one.beat(epoch=f"0.{one.token + 10**6}"),
    "the largest token": lambda one: one.beat(epoch=f"0.{SCRIPT_MOST}"),
    "a token of 10^22": lambda one: one.beat(epoch=f"0.{HUGE}"),
    "another shard": lambda one: one.beat(shard=7),
    "the year 9999": lambda one: one.beat(asOf="9999-12-31T23:59:00Z"),
    "no JSON": lambda one: "{",
}


async def test_a_forged_heartbeat_heals_within_seconds(server):
    async with deployment(server.url) as one:
        for kind, heartbeat in HEARTBEATS.items():
            with named(kind):
                for _ in range(2):
                    await one.client.publish(one.names.heartbeat_channel(0), heartbeat(one))
                await one.is_well()
                latest_ms = SystemClock().now_ms() + 86_400_000  # two forged in a row count until the leader's next
                clock = one.serving.bus._tracker
                await until(lambda: clock.leader_ms(0, CLOCK.monotonic()) < latest_ms, WELL_WITHIN_S)  # noqa: B023
                await one.client.publish(one.names.candles_channel(BTC), MESSAGES["a minute of the year 9999"](one))
                await one.is_well()
                assert FORGED not in {int(candle.close) for candle in one.serving.listener.candles()}


# ---------------------------------------------------------------- keys

Write = Callable[[Deployment], tuple[Any, ...]]

KEYS: dict[str, Write] = {
    "fence: a token of 10^22": lambda one: ("SET", one.names.fence_key(BTC), f"{HUGE} 0"),
    "fence: the largest token": lambda one: ("SET", one.names.fence_key(BTC), f"{SCRIPT_MOST} 0"),
    "fence: the next token": lambda one: ("SET", one.names.fence_key(BTC), f"{one.token + 1} 0"),
    "fence: a number of 10^18": lambda one: ("SET", one.names.fence_key(BTC), f"{one.token} {10**18}"),
    "fence: garbage": lambda one: ("SET", one.names.fence_key(BTC), "garbage"),
    "fence: a megabyte": lambda one: ("SET", one.names.fence_key(BTC), "9" * 10**6),
    "fence: a hash": lambda one: ("HSET", one.names.fence_key(BTC), "a", "b"),
    "newest: garbage": lambda one: ("SET", one.names.newest_key(BTC), "garbage"),
    "newest: a list": lambda one: ("LPUSH", one.names.newest_key(BTC), "garbage"),
    "newest: ten megabytes": lambda one: ("SET", one.names.newest_key(BTC), "9" * 10**7),
    "lease: a token of 10^22": lambda one: ("SET", one.names.lease_key(0), f"{HUGE} somebody", "PX", 6000),
    "lease: without an end": lambda one: ("SET", one.names.lease_key(0), f"{one.token + 1} somebody"),
    "lease: for a year": lambda one: ("SET", one.names.lease_key(0), f"{one.token + 1} somebody", "EX", 31_536_000),
    "lease: garbage": lambda one: ("SET", one.names.lease_key(0), "garbage"),
    "lease: a set": lambda one: ("SADD", one.names.lease_key(0), "garbage"),
    "token: 10^22": lambda one: ("SET", one.names.token_key(0), HUGE),
    "token: garbage": lambda one: ("SET", one.names.token_key(0), "garbage"),
    "token: a list": lambda one: ("LPUSH", one.names.token_key(0), "garbage"),
    "processes: other shards, forever": lambda one: ("ZADD", one.names.processes_key, 10**15, "somebody/2"),
    "processes: a thousand": lambda one: (
        "ZADD", one.names.processes_key, *(part for number in range(1000) for part in (10**15, f"{number}/1")),
    ),
    "processes: no text": lambda one: ("ZADD", one.names.processes_key, 10**15, b"\xff\xfe"),
    "processes: a text": lambda one: ("SET", one.names.processes_key, "garbage"),
}  # fmt: skip


OF_LEASES = ("lease", "token")  # after each of these a new leader follows


async def test_a_forged_key_heals_within_seconds(server):
    async with deployment(server.url) as one:
        for kind, write in KEYS.items():
            if not kind.startswith(OF_LEASES):
                with named(kind):
                    await forge(one, write)


@pytest.mark.parametrize("kind", [kind for kind in KEYS if kind.startswith(OF_LEASES)])
async def test_a_forged_key_of_a_lease_keeps_no_new_leader_out(kind, server):
    async with deployment(server.url) as one:
        await forge(one, KEYS[kind])
        one.leader.leases.all[0].is_wanted = False
        one.leader.leases._on_change(one.leader.leases.all[0], one.leader.leases.all[0].release())
        await one.client.delete(one.names.lease_key(0))
        await until(lambda: one.waiting.state is LeaseState.LEADER, WELL_WITHIN_S)
        assert one.waiting.leases.all[0].token < SCRIPT_MOST


async def forge(one: Deployment, write: Write) -> None:
    """Write a key; wait until all is well, also for a process that joins later and reads it."""
    words = write(one)
    if words[0] != "SET":
        await one.client.delete(words[1])
    await one.client.execute_command(*words)
    await one.is_well()
    one.serving.bus._tracker.mark_missed(MARKETS, "connected")
    one.serving.bus._has_missed.set()
    await one.is_well()


BUDGETS: dict[str, tuple[Any, ...]] = {
    "closed forever": ("HSET", "tokens", "0", "at", "0", "closed", str(10**18)),
    "to come in a year": ("HSET", "tokens", "0", "at", str(10**15), "closed", "0"),
    "a debt": ("HSET", "tokens", str(-(10**9)), "at", "0", "closed", "0"),
    "no numbers": ("HSET", "tokens", "x", "at", "nan", "closed", "inf"),
    "a text": ("SET", "garbage"),
}


@pytest.mark.parametrize("kind", BUDGETS)
async def test_a_forged_request_budget_does_not_keep_anybody_from_an_exchange(kind, server):
    prefix = new_prefix()
    parts = RedisParts(server.url, SystemClock(), universe_of(MARKETS), prefix=prefix, ingests=True, serves=False)
    async with aioredis.Redis.from_url(server.url) as client:
        word, *rest = BUDGETS[kind]
        await client.execute_command(word, Names(prefix, "bitget", 1).budget_key("host"), *rest)
        for _ in range(3):
            await deadlines.wait_for(parts.budgets.budget_for("host", 10.0).acquire(), 1.0)
    await parts.stop()
