"""A small exchange and a small store for tests of `ExchangeIngest` in virtual time: no socket, no thread, no file."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from candled.bus import MinuteChanged, StateChanged
from candled.bus.memory_bus import MemoryBus
from candled.errors import Unavailable
from candled.exchange import Candles, Exchange, StreamFeed
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.http import HttpClient
from candled.ingest.market_loader import IngestOptions
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, Market, MarketKey, Range, RangeSet, Symbol, fold
from candled.model.gaps import clip_gap, replace_gaps
from tests.clocks import ManualClock

BTC = Symbol.parse("BTC/USDT")
KEY = MarketKey("small", BTC)
THURSDAY_MS = 1_759_968_000_000  # 2025-10-09T00:00Z
PUSH_S = 2.0


class SmallFeed(StreamFeed):
    """Pushes the forming minute every `PUSH_S`, and the last version of the minute before it."""

    def __init__(self, exchange: "SmallExchange") -> None:
        super().__init__([BTC])
        self._exchange = exchange

    async def stream_events(self) -> AsyncIterator[Any]:
        exchange, seen_ms = self._exchange, None
        while True:
            if exchange.stream == "down":
                raise ConnectionError("the stream is cut")
            now_ms = exchange.now()
            minute_ms = MINUTE.floor(now_ms)
            if exchange.stream == "up":
                for open_ms in sorted({seen_ms or minute_ms, minute_ms}):
                    candle = exchange.version(open_ms, now_ms)
                    if candle is not None and (candle.volume or exchange.publishes_empty_candles):
                        yield Candles(BTC, (candle,))
                seen_ms = minute_ms
            await exchange.clock.sleep(PUSH_S)


class SmallExchange(Exchange):
    """One market that trades in every minute but those of `quiet`, and has nothing before `begins_ms`.

    `stream` is `up`, `silent` or `down`; `rest` is `up`, `empty` (a success with nothing) or `down`.
    """

    name = "small"
    Settings = dict
    max_history_minutes = 1000
    publishes_empty_candles = True

    def __init__(self, clock: ManualClock, begins_ms: int = 0) -> None:
        super().__init__({}, clock)
        self.begins_ms = begins_ms
        self.quiet: Callable[[int], bool] = lambda open_ms: False
        self.missing = RangeSet()
        self.stream, self.rest = "up", "up"
        self.listed: list[Market] | None = [Market(symbol=BTC)]
        self.has_bars = False
        self.stamps_rows = True  # whether its rows state the time of the answer
        self.has_dates = False  # whether its answers have a `Date`
        self.asked: list[tuple[int, Range]] = []
        self.lists = 0

    def now(self) -> int:
        return self.clock.now_ms()

    def version(self, open_ms: int, at_ms: int) -> Candle | None:
        """The minute as it is at a time: it grows from 0 to 60 units of volume, and its close with it."""
        if at_ms < open_ms or open_ms < self.begins_ms or open_ms in self.missing:
            return None
        grown = min(at_ms - open_ms, MINUTE_MS) // 1000
        is_quiet = self.quiet(open_ms)
        price = Decimal(1000 + open_ms // MINUTE_MS % 1000)
        close = price if is_quiet else price + Decimal(grown) / 100
        return Candle(open_ms, price, close, price, close, Decimal(0 if is_quiet else grown), None, at_ms)

    async def fetch_markets(self, http: Any) -> list[Market]:
        self.lists += 1
        if self.listed is None:
            raise Unavailable("the list is down")
        return self.listed

    def make_feeds(self, symbols: Any) -> list[Any]:
        return [SmallFeed(self)]

    async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle]:
        self.asked.append((self.now(), Range(start_ms, end_ms)))
        if self.rest == "down":
            raise Unavailable("no route to host")
        if self.has_dates and http.on_date is not None:
            http.on_date(self.now() // 1000 * 1000, self.clock.monotonic(), self.clock.monotonic())
        if self.rest == "empty":
            return []
        versions = (self.version(open_ms, self.now()) for open_ms in range(start_ms, end_ms, MINUTE_MS))
        rows = [one for one in versions if one is not None and (one.volume or self.publishes_empty_candles)]
        return rows if self.stamps_rows else [row._replace(as_of_ms=0) for row in rows]

    async def fetch_bars(
        self, http: Any, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int
    ) -> list[Candle] | None:
        if not self.has_bars:
            return None
        if self.rest == "down":
            raise Unavailable("no route to host")
        buckets: dict[int, list[Candle]] = {}
        for open_ms in range(max(start_ms, self.begins_ms), min(end_ms, self.now()), MINUTE_MS):
            candle = self.version(open_ms, self.now())
            if candle is not None:
                buckets.setdefault(interval.floor(open_ms), []).append(candle)
        return [fold(parts, open_ms) for open_ms, parts in sorted(buckets.items())]


class SmallStore:
    """The newest version of each final minute, and what is known of the others."""

    def __init__(self) -> None:
        self.stored: dict[int, Candle] = {}
        self.known: list[Any] = []
        self.since_ms: int | None = None

    def enqueue(self, market: Any, candle: Candle, *, changes: Any = None) -> bool:
        if candle.final:
            self.stored[candle.open_ms] = candle
        return True

    async def flush(self) -> None: ...
    async def register_feed(self, markets: Any, epoch: str) -> None: ...
    async def log_changes(self, market: Any, epoch: Any, changes: Any) -> None: ...

    async def save_coverage(self, market: Any, since_ms: int | None, known_gaps: Any, within: Range | None) -> None:
        self.since_ms = since_ms
        if within is not None:
            self.known = replace_gaps(self.known, known_gaps, within)

    async def newest_minutes(self, exchange: str) -> dict[Symbol, int]:
        return {BTC: max(self.stored)} if self.stored else {}

    async def stored_ranges(self, market: Any, start_ms: int, end_ms: int) -> list[Range]:
        return list(RangeSet((one, one + MINUTE_MS) for one in sorted(self.stored) if start_ms <= one < end_ms))

    async def read_minutes(self, market: Any, start_ms: int, end_ms: int) -> list[Candle]:
        return [candle for open_ms, candle in sorted(self.stored.items()) if start_ms <= open_ms < end_ms]

    async def read_forming(self, market: Any) -> list[Candle]:
        return []

    async def complete_from(self, market: Any) -> int | None:
        return self.since_ms

    async def served_from(self, market: Any) -> int | None:
        known = [one for one in (self.since_ms, min(self.stored, default=None)) if one is not None]
        return min(known, default=None)

    async def unpublished(self, exchange: str) -> dict[Symbol, list[Range]]:
        return {}

    async def has_before(self, market: Any, at_ms: int) -> bool:
        return any(open_ms < at_ms for open_ms in self.stored)

    async def known_gaps(self, market: Any, within: Range) -> list[Any]:
        return [piece for gap in self.known for piece in clip_gap(gap, *within)]


@dataclass
class Run:
    """An ingest of the small exchange, and what it tells."""

    clock: ManualClock
    exchange: SmallExchange
    store: SmallStore
    ingest: ExchangeIngest
    heard: list[Any]

    async def seconds(self, count: float) -> None:
        await self.clock.advance(count)

    async def leap(self, seconds: float) -> None:
        """Let time pass with one look at the end: for hours in which nothing changes."""
        await self.clock.leap(seconds - 60)
        await self.clock.advance(60)

    def health(self) -> dict[str, Any]:
        return self.ingest.describe()["symbols"][str(BTC)]

    @property
    def state(self) -> tuple[str, str | None]:
        facts = self.health()
        return facts["state"], facts["reason"]

    def states(self) -> list[tuple[str, str]]:
        """The states that were told, each once for as long as it lasted."""
        told = [(one.state, one.reason) for one in self.heard if isinstance(one, StateChanged)]
        return [one for index, one in enumerate(told) if index == 0 or told[index - 1] != one]

    def minutes(self) -> list[Candle]:
        return [one.candle for one in self.heard if isinstance(one, MinuteChanged)]

    def wrong(self, start_ms: int, end_ms: int) -> list[int]:
        """The minutes of a range that are not stored as the exchange has them."""
        later_ms, wrong = end_ms + 3_600_000, []
        for open_ms in range(start_ms, end_ms, MINUTE_MS):
            theirs, ours = self.exchange.version(open_ms, later_ms), self.store.stored.get(open_ms)
            if (theirs and theirs.values) != (ours and ours.values):
                wrong.append(open_ms)
        return wrong


@asynccontextmanager
async def running(
    *,
    start_ms: int = THURSDAY_MS + 6 * 3_600_000,
    backfill_ms: int = 0,
    store: SmallStore | None = None,
    clock: ManualClock | None = None,
    confirm: bool = True,
    prepare: Callable[[SmallExchange], None] = lambda exchange: None,
) -> AsyncIterator[Run]:
    """Run an ingest; `prepare` sets the exchange up before the start."""
    clock = clock or ManualClock(start_ms)
    exchange, store, bus, heard = SmallExchange(clock), store or SmallStore(), MemoryBus("one"), []
    prepare(exchange)
    bus.add_listener(lambda message, position: heard.append(message))
    options = IngestOptions(
        backfill_ms=backfill_ms, grace_period_ms=6_000, quiet_after_ms=60_000, checkpoint_ms=5_000, confirm=confirm
    )
    http = HttpClient(clock, exchange.requests_per_s)
    ingest = ExchangeIngest("small", exchange, [BTC], clock=clock, bus=bus, store=store, http=http, options=options)
    await ingest.start()
    try:
        yield Run(clock, exchange, store, ingest, heard)
    finally:
        await ingest.stop()
        http.close()
