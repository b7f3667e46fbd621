"""Markets are opened some at a time, and the exchange is read meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from candled.bus import MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.errors import StoreUnavailable
from candled.exchange import Candles, Event, Exchange, StreamFeed
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.http import HttpClient
from candled.ingest.market_loader import IngestOptions
from candled.model import Candle, Symbol
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS, minute

SYMBOLS = [Symbol("S" + str(number), "USDT") for number in range(40)]
SLOW = SYMBOLS[3]


class Feed(StreamFeed):
    """Brings what a test puts into it, and breaks at None."""

    def __init__(self) -> None:
        super().__init__(SYMBOLS)
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue()

    async def stream_events(self, http: Any) -> AsyncIterator[Event]:
        while (event := await self.queue.get()) is not None:
            yield event


class Quiet(Exchange):
    """One feed of all symbols; REST has nothing."""

    name = "quiet"

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(None, clock)
        self.feed = Feed()

    def now_ms(self) -> int:
        return self.clock.now_ms()  # nothing has to be found out about it

    async def fetch_markets(self, http: Any) -> list[Any]:
        return []

    def make_feed(self, symbols: Any) -> Any:
        return self.feed

    async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle]:
        return []


class Store:
    """Empty; reads of `stalled` symbols wait for `release`, and the first `failures` reads fail."""

    def __init__(self, stalled: frozenset[Symbol] = frozenset(), failures: int = 0) -> None:
        self.release = asyncio.Event()
        self.stored: list[tuple[Symbol, Candle]] = []
        self.reading = self.most_reading = 0
        self.overviews = self.singles = 0
        self._stalled = stalled
        self._failures = failures

    async def _read(self, symbol: Symbol | None) -> None:
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        try:
            if self._failures:
                self._failures -= 1
                raise StoreUnavailable("not yet")
            if symbol in self._stalled:
                await self.release.wait()
            await asyncio.sleep(0)
        finally:
            self.reading -= 1

    async def newest_minutes(self, exchange: str) -> dict[Symbol, int]:
        self.overviews += 1
        await self._read(None)
        return {}

    async def newest_minute(self, market: Any) -> None:
        self.singles += 1
        await self._read(market.symbol)

    async def stored_ranges(self, market: Any, start_ms: int, end_ms: int) -> list[Any]:
        await self._read(market.symbol)
        return []

    read_minutes = stored_ranges

    async def read_forming(self, market: Any) -> list[Candle]:
        await self._read(market.symbol)
        return []

    async def complete_from(self, market: Any) -> None:
        await self._read(market.symbol)

    async def kept_from(self) -> int:
        return 0

    async def has_before(self, market: Any, at_ms: int) -> bool:
        await self._read(market.symbol)
        return False

    async def known_gaps(self, market: Any, within: Any) -> list[Any]:
        await self._read(market.symbol)
        return []

    def enqueue_row(self, market: Any, candle: Candle, *, changes: Any = None) -> bool:
        self.stored.append((market.symbol, candle))
        return True

    async def flush(self) -> None: ...
    async def flush_market(self, market: Any) -> None: ...
    async def register_feed(self, markets: Any, epoch: str) -> None: ...
    async def log_changes(self, market: Any, epoch: Any, changes: Any) -> None: ...
    async def save_coverage(self, market: Any, since_ms: Any, known_gaps: Any, within: Any) -> None: ...


class Stage:
    """An `ExchangeIngest` that starts, and the minutes that it publishes."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        bus = MemoryBus("one")
        bus.add_listener(self)
        self.clock = clock
        self.store = store
        self.exchange = Quiet(clock)
        self.received: list[tuple[Symbol, Candle]] = []
        options = IngestOptions(
            backfill_ms=0, grace_period_ms=6000, quiet_after_ms=60_000, checkpoint_ms=1, confirm=False
        )  # fmt: skip
        self.ingest = ExchangeIngest(
            "quiet", self.exchange, SYMBOLS, clock=clock, bus=bus, store=store, http=HttpClient(clock, 1.0),
            options=options,
        )  # fmt: skip
        self.starting = asyncio.ensure_future(self.ingest.start())

    def on_feed_message(self, message: Any, _: Any) -> None:
        if isinstance(message, MinuteChanged):
            self.received.append((message.market.symbol, message.candle))

    async def push(self, symbol: Symbol, *candles: Candle) -> None:
        """The feed brings candles of a symbol."""
        await self.exchange.feed.queue.put(Candles(symbol, candles))
        await self.clock.settle(200)

    def state(self, symbol: Symbol) -> dict[str, Any]:
        return dict(self.ingest.describe_symbols())[symbol]

    def minutes(self, symbol: Symbol) -> list[tuple[int, Any]]:
        return [(candle.open_ms, candle.volume) for one, candle in self.received if one == symbol]


@asynccontextmanager
async def starting(store: Store) -> AsyncIterator[Stage]:
    stage = Stage(store, ManualClock(MONDAY_MS + 36_000_000))
    try:
        await stage.clock.settle(2000)
        yield stage
    finally:
        stage.starting.cancel()
        await asyncio.gather(stage.starting, return_exceptions=True)
        await stage.ingest.stop()


def now(seconds: float, volume: str = "1") -> Candle:
    """The minute 600, as it is so many seconds after its beginning."""
    return minute(600, volume=volume, as_of=seconds * 1000)


async def test_a_few_are_opened_at_a_time():
    async with starting(Store()) as stage:
        assert stage.starting.done()
        assert 2 <= stage.store.most_reading <= 8


async def test_markets_that_are_added_in_many_steps_share_the_reading_of_all_newest_minutes():
    added = [Symbol(f"T{number}", "USDT") for number in range(20)]
    async with starting(Store()) as stage:
        for first in range(0, 20, 5):
            stage.ingest.add_markets(added[first : first + 5])
        await stage.clock.settle(200)
        assert all(stage.state(symbol)["trouble"] is None for symbol in added)
        assert stage.store.overviews == 2  # the first one at the start


async def test_for_a_single_market_only_its_own_newest_minute_is_read():
    async with starting(Store()) as stage:
        stage.ingest.add_markets([Symbol("T", "USDT")])
        await stage.clock.settle(200)
        assert stage.state(Symbol("T", "USDT"))["trouble"] is None
        assert (stage.store.overviews, stage.store.singles) == (1, 1)


async def test_the_others_are_read_while_one_is_not_open():
    async with starting(Store(frozenset({SLOW}))) as stage:
        assert not stage.starting.done()
        await stage.push(SYMBOLS[-1], now(1))
        assert stage.minutes(SYMBOLS[-1]) == [(minute(600).open_ms, 1)]
        assert stage.state(SYMBOLS[-1])["connected"]


async def test_one_that_is_not_open_is_reported_as_loading():
    async with starting(Store(frozenset({SLOW}))) as stage:
        assert stage.state(SLOW) == {
            "state": "warming", "reason": "starting", "connected": True,
            "trouble": "is not loaded from the store yet",
        }  # fmt: skip
        stage.store.release.set()
        await stage.clock.settle(200)
        assert stage.starting.done()
        assert stage.state(SLOW)["trouble"] is None


async def test_what_came_of_it_meanwhile_is_taken_when_it_is_open():
    async with starting(Store(frozenset({SLOW}))) as stage:
        for second in range(1, 4):
            await stage.push(SLOW, now(second, str(second)))
        assert stage.minutes(SLOW) == []
        stage.store.release.set()
        await stage.clock.settle(200)
        assert stage.minutes(SLOW) == [(minute(600).open_ms, volume) for volume in (1, 2, 3)]
        await stage.push(SLOW, now(4, "4"))
        assert stage.minutes(SLOW)[-1] == (minute(600).open_ms, 4)


async def test_what_came_before_an_interruption_is_left_to_rest():
    """Nobody knows how the minute went on; a version from before must not look like the last one."""
    async with starting(Store(frozenset({SLOW}))) as stage:
        await stage.push(SLOW, now(1))
        await stage.exchange.feed.queue.put(None)
        await stage.clock.settle(200)
        assert not stage.state(SLOW)["connected"]
        stage.store.release.set()
        await stage.clock.settle(200)
        assert stage.minutes(SLOW) == []


async def test_an_end_before_all_are_open_puts_aside_what_came(caplog):
    async with starting(Store(frozenset({SLOW}))) as stage:
        await stage.push(SYMBOLS[0], now(1))
        stage.starting.cancel()
        stage.store.stored.clear()
        await stage.ingest.stop()
        assert [symbol for symbol, _ in stage.store.stored] == [SYMBOLS[0]]


@pytest.mark.slow
async def test_a_store_that_is_unavailable_is_named_once_and_asked_again(caplog):
    async with starting(Store(failures=30)) as stage:
        for _ in range(240):
            if stage.starting.done():
                break
            await stage.clock.advance(10.0)
        assert stage.starting.done()
        await stage.push(SYMBOLS[-1], now(1))
        assert len(stage.minutes(SYMBOLS[-1])) == 1
    assert caplog.text.count("the store cannot be read yet") <= 2
