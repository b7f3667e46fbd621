"""The ingest of one market in virtual time: an exchange and a store in memory, and a record of what left."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from candled.bus import HistoryChanged, MinuteChanged, StateChanged
from candled.bus.memory_bus import MemoryBus
from candled.errors import Unavailable
from candled.exchange import Candles, Event, Exchange, StreamFeed
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.http import HttpClient
from candled.ingest.market_loader import IngestOptions
from candled.model import (
    ALL_TIME,
    MINUTE,
    MINUTE_MS,
    Candle,
    Gap,
    Interval,
    Market,
    MarketKey,
    Range,
    RangeSet,
    Symbol,
    fold,
)
from candled.model.gaps import clip_gap, replace_gaps
from tests.clocks import ManualClock
from tests.fakes.tapes import Row, Synthetic, grown
from tests.rows import MONDAY_MS

BTC = Symbol.parse("BTC/USDT")
KEY = MarketKey("virtual", BTC)
START_MS = MONDAY_MS + 6 * 3_600_000
THURSDAY_MS = 1_759_968_000_000  # 2025-10-09T00:00Z

Stamp = Callable[[int], int]


class Machine(ManualClock):
    """A machine's clock.

    Attributes:
        machine_ms: how far it is from the exchange's.
        asleep_ms: how long it slept in all: its steady clock stands still meanwhile, as Linux's does.
    """

    machine_ms = asleep_ms = 0

    def now_ms(self) -> int:
        return self.true_ms + self.machine_ms

    @property
    def true_ms(self) -> int:
        return super().now_ms() + self.asleep_ms


class VirtualFeed(StreamFeed):
    """Pushes the forming minute regularly, once a minute the last version of the one before, and what is queued."""

    def __init__(self, exchange: "VirtualExchange") -> None:
        super().__init__([BTC])
        self.queue: list[Event] = []
        self._exchange = exchange

    async def stream_events(self, http: Any) -> AsyncIterator[Event]:
        exchange, seen_ms = self._exchange, None
        while True:
            if exchange.stream == "down":
                raise ConnectionError("the stream is cut")
            queued, self.queue = self.queue, []
            for event in queued:
                yield event
            minute_ms = MINUTE.floor(exchange.true.true_ms)
            if exchange.stream == "up":
                for open_ms in sorted({seen_ms or minute_ms, minute_ms}):
                    frame = exchange.frame(open_ms)
                    if frame.candles:
                        yield frame
                seen_ms = minute_ms
            await exchange.clock.sleep(exchange.push_s)


class VirtualExchange(Exchange):
    """One market as a function of time. It trades in every minute but those of `quiet`.

    Attributes:
        begins_ms: it has nothing before.
        lacks: minutes that it has lost.
        stream: `up`, `silent` or `down`.
        rest: `up`, `empty` (a success with nothing) or `down`.
        stamp, rest_stamp, date: how frames, rows of REST and its `Date` state the time; None: not at all.
        revised: minutes with other values, from now on.
        listed: its list of markets; None: it cannot be read.
        has_bars: REST has longer bars too.
    """

    name = "virtual"
    Settings = dict
    max_history_minutes = 1000
    publishes_empty_candles = True
    opens_at_previous_close = True

    def __init__(self, clock: Machine, begins_ms: int = 0, *, push_s: float = 2.0, travel_s: float = 0.0) -> None:
        super().__init__({}, clock)
        self.true = clock
        self.push_s = push_s
        self.feed = VirtualFeed(self)
        self.begins_ms = begins_ms
        self.quiet: Callable[[int], bool] = lambda open_ms: False
        self.lacks: Callable[[int], bool] = lambda open_ms: False
        self.stream, self.rest = "up", "up"
        self.stamp: Stamp = lambda at_ms: at_ms
        self.rest_stamp: Stamp | None = lambda at_ms: at_ms
        self.date: Stamp | None = None
        self.revised: dict[int, Row] = {}
        self.listed: list[Market] | None = [Market(symbol=BTC, price_decimals=2, volume_decimals=3)]
        self.has_bars = False
        self.asked: list[tuple[int, Range]] = []  # when, and for what
        self.lists = 0  # how often the list was asked for
        self._tape = Synthetic(7)
        self._travel_s = travel_s

    def row(self, open_ms: int) -> Row:
        if open_ms in self.revised:
            return self.revised[open_ms]
        row = self._tape.row(open_ms)
        if self.quiet(open_ms):
            return Row(*[row.open] * 4, Decimal(0), Decimal(0))
        return row if row.volume else row._replace(volume=Decimal(1), quote_volume=row.close)

    def version(self, open_ms: int, at_ms: int, as_of_ms: int | None = None) -> Candle | None:
        """A minute as it is at a time; None where the exchange has nothing."""
        if at_ms < open_ms or open_ms < self.begins_ms or self.lacks(open_ms):
            return None
        row = grown(self.row(open_ms), at_ms - open_ms)
        return row.candle(open_ms, as_of_ms=at_ms if as_of_ms is None else as_of_ms)

    def frame(self, *opens: int, stamp: Stamp | None = None, snapshot: bool = False) -> Candles:
        """Minutes as the stream states them, by default the forming one."""
        now_ms = self.true.true_ms
        as_of_ms = (stamp or self.stamp)(now_ms)
        versions = [self.version(open_ms, now_ms, as_of_ms) for open_ms in opens or [MINUTE.floor(now_ms)]]
        shown = tuple(one for one in versions if one is not None and (one.volume or self.publishes_empty_candles))
        return Candles(BTC, shown, snapshot=snapshot)

    async def fetch_markets(self, http: Any) -> list[Market]:
        self.lists += 1
        await self._travel(http)
        if self.listed is None:
            raise Unavailable("the list is down")
        return self.listed

    def make_feed(self, symbols: Any) -> Any:
        return self.feed

    async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[Any]:
        self.asked.append((self.true.true_ms, Range(start_ms, end_ms)))
        await self._travel(http)
        if self.rest == "down":
            raise Unavailable("no route to host")
        if self.rest == "empty":
            return []
        now_ms = self.true.true_ms
        as_of_ms = 0 if self.rest_stamp is None else self.rest_stamp(now_ms)
        versions = (self.version(open_ms, now_ms, as_of_ms) for open_ms in range(start_ms, end_ms, MINUTE_MS))
        return [one for one in versions if one is not None and (one.volume or self.publishes_empty_candles)]

    async def fetch_bars(
        self, http: Any, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int
    ) -> list[Candle] | None:
        if not self.has_bars:
            return None
        if self.rest == "down":
            raise Unavailable("no route to host")
        now_ms, buckets = self.true.true_ms, {}
        for open_ms in range(max(start_ms, self.begins_ms), min(end_ms, now_ms), MINUTE_MS):
            buckets.setdefault(interval.floor(open_ms), []).append(self.version(open_ms, now_ms))
        return [fold(parts, open_ms) for open_ms, parts in sorted(buckets.items())]

    async def _travel(self, http: Any) -> None:
        asked_ms = round(self.true.monotonic() * 1000)
        if self._travel_s:
            await self.true.sleep(self._travel_s)
        if self.date is not None and self.rest != "down":
            http.on_date(self.date(self.true.true_ms) // 1000 * 1000, asked_ms, round(self.true.monotonic() * 1000))


class Memory:
    """A store of one market: its final minutes, and what is known of their absence."""

    is_behind = False

    def __init__(self) -> None:
        self.rows: dict[int, Candle] = {}
        self.saved_gaps: list[Gap] = []
        self.since_ms: int | None = None
        self.logged: list[Range] = []

    def enqueue_row(self, market: MarketKey, candle: Candle, *, changes: Any = None) -> bool:
        if candle.final:
            known = self.rows.get(candle.open_ms)
            self.rows[candle.open_ms] = candle if known is None else candle.merged_with(known)
        return True

    async def flush(self) -> None: ...
    async def flush_market(self, market: Any) -> None: ...
    async def register_feed(self, markets: Any, epoch: str) -> None: ...

    async def log_changes(self, market: MarketKey, epoch: Any, changes: Sequence[tuple[int, Range]]) -> None:
        self.logged += [span for _, span in changes]

    async def save_coverage(self, market: Any, since_ms: int | None, known_gaps: Any, within: Range | None) -> None:
        self.since_ms = since_ms
        if within is not None:
            self.saved_gaps = replace_gaps(self.saved_gaps, known_gaps, within)

    async def newest_minutes(self, exchange: str) -> dict[Symbol, int]:
        return {BTC: max(self.rows)} if self.rows else {}

    async def newest_minute(self, market: MarketKey) -> int | None:
        return max(self.rows, default=None)

    async def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Range]:
        return list(
            RangeSet.of_parts((sorted(open_ms for open_ms in self.rows if start_ms <= open_ms < end_ms)), MINUTE_MS)
        )

    async def read_minutes(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Candle]:
        return [self.rows[open_ms] for open_ms in sorted(self.rows) if start_ms <= open_ms < end_ms]

    async def read_forming(self, market: MarketKey) -> list[Candle]:
        return []

    async def complete_from(self, market: MarketKey) -> int | None:
        return self.since_ms

    async def served_from(self, market: MarketKey) -> int | None:
        known = [one for one in (self.since_ms, min(self.rows, default=None)) if one is not None]
        return min(known, default=None)

    async def kept_from(self) -> int:
        return 0

    async def unpublished(self, exchange: str) -> dict[Symbol, list[Range]]:
        return {}

    async def has_before(self, market: MarketKey, at_ms: int) -> bool:
        return any(open_ms < at_ms for open_ms in self.rows)

    async def known_gaps(self, market: MarketKey, within: Range = ALL_TIME) -> list[Gap]:
        return [piece for gap in self.saved_gaps for piece in clip_gap(gap, *within)]


class Harness:
    """An ingest of the exchange, and what it publishes.

    Every message is looked at as it leaves: none may say that a minute is final before it is over.
    """

    def __init__(
        self, exchange: VirtualExchange, store: Memory | None = None, *, backfill_ms: int = 0, confirm: bool = True
    ) -> None:
        self.exchange = exchange
        self.clock = exchange.true
        self.store = store or Memory()
        self.received: list[Any] = []
        self.false_finals: list[Candle] = []
        self.shown_at_ms = 0
        bus = MemoryBus("one")
        bus.add_listener(self)
        self.ingest = ExchangeIngest(
            KEY.exchange,
            exchange,
            [BTC],
            clock=self.clock,
            bus=bus,
            store=self.store,
            http=HttpClient(self.clock, exchange.requests_per_s),
            options=IngestOptions(
                backfill_ms=backfill_ms,
                grace_period_ms=6_000,
                quiet_after_ms=60_000,
                checkpoint_ms=5_000,
                confirm=confirm,
            ),
        )

    def on_feed_message(self, message: Any, _: Any) -> None:
        self.received.append(message)
        if isinstance(message, MinuteChanged):
            candle = message.candle
            if candle.open_ms == MINUTE.floor(self.clock.true_ms):
                self.shown_at_ms = self.clock.true_ms
            if candle.final and candle.open_ms + MINUTE_MS > self.clock.true_ms:
                self.false_finals.append(candle)

    async def start(self) -> None:
        starting = asyncio.ensure_future(self.ingest.start())
        await self.clock.advance(0)
        await starting

    async def stop(self) -> None:
        await self.ingest.stop()

    def push(self, event: Event) -> None:
        """Have the stream send an event with its next frame."""
        self.exchange.feed.queue.append(event)

    def push_snapshot(self) -> None:
        running = MINUTE.floor(self.clock.true_ms)
        opens = range(running - 499 * MINUTE_MS, running + 1, MINUTE_MS)
        self.push(self.exchange.frame(*opens, snapshot=True))

    async def run(self, seconds: float) -> None:
        """Let time pass."""
        await self.clock.advance(seconds)

    async def leap(self, seconds: float) -> None:
        """Let time pass with one look at the end: for hours in which nothing changes."""
        await self.clock.leap(seconds - 20)
        await self.clock.advance(20)

    @property
    def health(self) -> dict[str, Any]:
        return {**self.ingest.describe(), "symbols": {str(one): facts for one, facts in self.ingest.describe_symbols()}}

    @property
    def market(self) -> dict[str, Any]:
        return self.health["symbols"][str(BTC)]

    @property
    def state(self) -> tuple[str, str | None]:
        return self.market["state"], self.market["reason"]

    @property
    def states(self) -> list[tuple[str, str]]:
        """The states that were published, each once for as long as it lasted."""
        states = [(one.state, one.reason) for one in self.received if isinstance(one, StateChanged)]
        return [one for index, one in enumerate(states) if index == 0 or states[index - 1] != one]

    @property
    def minutes(self) -> list[Candle]:
        return [one.candle for one in self.received if isinstance(one, MinuteChanged)]

    @property
    def repaired(self) -> list[HistoryChanged]:
        return [one for one in self.received if isinstance(one, HistoryChanged)]

    def wrong(self, start_ms: int = MONDAY_MS, end_ms: int | None = None) -> list[int]:
        """The minutes that are not stored as the exchange has them, by default all but the last two."""
        end_ms = MINUTE.floor(self.clock.true_ms) - 2 * MINUTE_MS if end_ms is None else end_ms
        wrong = [open_ms for open_ms in self.store.rows if open_ms > self.clock.true_ms]
        for open_ms in range(start_ms, end_ms, MINUTE_MS):
            truth, stored = self.exchange.version(open_ms, open_ms + MINUTE_MS), self.store.rows.get(open_ms)
            if (truth and truth.values) != (stored and stored.values):
                wrong.append(open_ms)
        return wrong

    def asked_for_the_future(self) -> list[tuple[int, Range]]:
        return [one for one in self.exchange.asked if one[1].end_ms > MINUTE.floor(one[0]) + MINUTE_MS]


async def started(store: Memory | None = None, *, start_ms: int = START_MS, **options: Any) -> Harness:
    """Start a site whose stream sends a snapshot and then a frame a second, and whose REST states the time.

    `options` are attributes of the exchange and of the clock.
    """
    exchange = VirtualExchange(Machine(start_ms), push_s=1.0, travel_s=0.1)
    exchange.date = lambda at_ms: at_ms
    for name, value in options.items():
        setattr(exchange if hasattr(exchange, name) else exchange.true, name, value)
    harness = Harness(exchange, store)
    await harness.start()
    harness.push_snapshot()
    return harness


@asynccontextmanager
async def running(
    *,
    start_ms: int = THURSDAY_MS + 6 * 3_600_000,
    store: Memory | None = None,
    clock: Machine | None = None,
    prepare: Callable[[VirtualExchange], None] = lambda exchange: None,
    **options: Any,
) -> AsyncIterator[Harness]:
    """Run a site without a snapshot; `prepare` sets the exchange up before the start."""
    exchange = VirtualExchange(clock or Machine(start_ms))
    prepare(exchange)
    harness = Harness(exchange, store, **options)
    await harness.start()
    try:
        yield harness
    finally:
        await harness.stop()
