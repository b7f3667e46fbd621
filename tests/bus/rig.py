"""Processes around one Redis, played within the test: some lead and publish, some only hear."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from candled.bus import FeedMetadata, Message, MessagesLost, MinuteChanged, StateChanged
from candled.bus.factory import RedisParts
from candled.bus.processes import ProcessFacts
from candled.bus.redis.leases import Lease, LeaseState
from candled.clock import SystemClock
from candled.exchange import Clock
from candled.model import Candle, MarketKey, Position, Symbol
from candled.universe import Universe
from tests import deadlines
from tests.rows import minute

BTC, ETH = (MarketKey("bitget", Symbol(base, "USDT")) for base in ("BTC", "ETH"))
MARKETS = (BTC, ETH)

LONG = "CANDLED_TEST_LONG" in os.environ
SPEED = 1 if LONG else 2

_prefixes = count()


class FastClock(SystemClock):
    """A clock whose seconds pass quickly for the bus: its heartbeats, waits and limits. On a busy machine they do not.

    What Redis measures (how long a lease and a budget last) passes as always, and so do time-outs of sockets.
    """

    def monotonic(self) -> float:
        return deadlines.now() * SPEED

    async def sleep(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        await asyncio.sleep(seconds / SPEED)
        while (left := until - self.monotonic()) > 0:
            await asyncio.sleep(left / SPEED)


CLOCK = FastClock()


def new_prefix() -> str:
    """Parts the tests of one run on a Redis they share."""
    return f"test-{next(_prefixes)}-{time.monotonic_ns()}:"


def make_facts(process: str, **more: Any) -> ProcessFacts:
    """What a process announces about itself."""
    facts = {"host": "one", "roles": ("serve",), "version": "1.0", "since": "2025-10-06T08:00:00.000Z"}
    return ProcessFacts(process=process, **{**facts, "clients": 1, "rooms": 2, **more})


def universe_of(markets: Iterable[MarketKey]) -> Universe:
    """The markets of a process; bitget is the default exchange."""
    symbols: dict[str, list[Symbol]] = {"bitget": []}
    for market in markets:
        symbols.setdefault(market.exchange, []).append(market.symbol)
    universe = Universe(list(symbols))
    for exchange, chosen in symbols.items():
        universe.set_markets(exchange, chosen)
    return universe


class RecordingListener:
    """A listener: what a process would show, and whether it was told of everything it did not hear."""

    def __init__(self) -> None:
        self.received: list[tuple[float, Message, Position]] = []
        self.newest: dict[MarketKey, Candle] = {}
        self.states: dict[MarketKey, str] = {}
        self.at: dict[MarketKey, Position] = {}
        self.missed = 0
        self.open_gaps: set[MarketKey] = set()  # messages are missing, and no `MessagesLost` came yet

    def on_feed_message(self, message: Message, position: Position) -> None:
        self.received.append((deadlines.now(), message, position))
        market, before = message.market, self.at.get(message.market)
        self.at[market] = position
        begins = before is not None and before.epoch.startswith("here.") and position.seq == 1  # no feed was there
        if before is not None and not begins and (before.epoch != position.epoch or position.seq > before.seq + 1):
            self.open_gaps.add(market)
        if isinstance(message, MessagesLost):
            self.missed += 1
            self.open_gaps.discard(market)
        elif isinstance(message, StateChanged):
            self.states[market] = message.state
        elif isinstance(message, MinuteChanged):
            shown = self.newest.get(market)
            if shown is None or message.candle.open_ms > shown.open_ms or message.candle.supersedes(shown):
                self.newest[market] = message.candle

    def candles(self, market: MarketKey = BTC) -> list[Candle]:
        """Every version of a minute in the order it was heard."""
        return [one.candle for _, one, _ in self.received if isinstance(one, MinuteChanged) and one.market == market]


class Process:
    """What one process has of the bus, with an ear at it."""

    def __init__(self, parts: RedisParts, universe: Universe, *, listens: bool) -> None:
        self.parts = parts
        self.universe = universe
        self.bus = parts.bus
        self.leases = parts.leases
        self.listener = RecordingListener()
        self._volume = count(1)
        if listens:
            parts.bus.add_listener(self.listener)

    @property
    def is_ready(self) -> bool:
        """Whether it is connected, and has read what there was before."""
        return bool(self.bus.describe()["connected"]) and self.listener.missed >= len(MARKETS)

    @property
    def state(self) -> LeaseState:
        """Of the first shard."""
        assert self.leases is not None
        return self.leases.all[0].state

    def publish(self, market: MarketKey = BTC, number: int = 0, *, final: bool = False) -> Candle:
        """Publish the next version of a minute."""
        candle = minute(number, volume=str(next(self._volume)), final=final)
        self.bus.publish(MinuteChanged(market, candle, FeedMetadata()))
        if self.state is LeaseState.LEADER:  # the process that takes over reads the exchange, and no message is lost
            self.listener.open_gaps.discard(market)
        return candle


@asynccontextmanager
async def process(
    url: str,
    prefix: str,
    *,
    ingests: bool = False,
    serves: bool = True,
    shards: int = 1,
    lease_s: float = 6.0,
    markets: tuple[MarketKey, ...] = MARKETS,
    follows: bool = True,
    clock: Clock = CLOCK,
    **more: Any,
) -> AsyncIterator[Process]:
    """One process, stopped in an orderly way at the end."""
    universe = universe_of(markets)
    parts = RedisParts(
        url,
        clock,
        universe,
        prefix=prefix,
        shards=shards,
        lease_s=lease_s,
        ingests=ingests,
        serves=serves,
        **more,
    )
    one = Process(parts, universe, listens=serves)
    await parts.lists.load()
    parts.start()
    leases = one.leases.all if follows and one.leases is not None else []
    followers = [asyncio.ensure_future(_follow(lease)) for lease in leases]
    try:
        yield one
    finally:
        for follower in followers:
            follower.cancel()
        await parts.stop()


async def _follow(lease: Lease) -> None:
    """As whoever ingests: each state is carried out at once."""
    async for _ in lease.watch_states():
        continue


async def until(is_so: Callable[[], Any], within_s: float = 10.0) -> float:
    """Wait until something holds; return the seconds that took.

    Raises:
        AssertionError: it did not come to hold.
    """
    started = deadlines.now()
    while not is_so():
        assert deadlines.now() - started < within_s, f"the condition was not true within {within_s} s"
        await asyncio.sleep(0.01)
    return deadlines.now() - started


# A call that waits for Redis holds the loop for a second and more. On an idle machine less than 0.1 s is measured; a
# virtual one that gets no processor for a moment, which nobody tells it, reads 0.2 s.
LOOP_BLOCKED_S = 0.5
