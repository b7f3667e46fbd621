"""The ingest of one market in virtual time: a scripted exchange, a store in memory, and a record of what left."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from candled.bus import HistoryChanged, MinuteChanged, StateChanged
from candled.bus.memory_bus import MemoryBus
from candled.errors import Unavailable
from candled.exchange import Candles, Event, Exchange, Feed, InvalidRow, StreamFeed
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.market_loader import IngestOptions
from candled.model import MINUTE, MINUTE_MS, Candle, Gap, Market, MarketKey, Range, RangeSet, Symbol
from candled.model.gaps import replace_gaps
from candled.store.batch import minute_ranges
from candled.store.interface import ALL_TIME
from tests.clocks import ManualClock
from tests.fakes.tapes import Row, Synthetic, grown
from tests.rows import MONDAY_MS

BTC = Symbol.parse("BTC/USDT")
KEY = MarketKey("virtual", BTC)
START_MS = MONDAY_MS + 6 * 3_600_000

Stamp = Callable[[int], int]


def true_stamp(at_ms: int) -> int:
    return at_ms


class SettableClock(ManualClock):
    """A machine's clock: `machine_ms` is how far it is from the exchange's."""

    machine_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.machine_ms

    @property
    def true_ms(self) -> int:
        return super().now_ms()


class Tape(StreamFeed):
    """Yields the events it is given."""

    def __init__(self) -> None:
        super().__init__([BTC])
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    async def stream_events(self) -> AsyncIterator[Event]:
        while True:
            yield await self.queue.get()


class Scripted(Exchange):
    """An exchange as a function of time.

    Attributes:
        rest_stamp, date: how its REST answers state the time, in their rows and as `Date`; None: no date.
        rest_down: it does not answer.
        revised: minutes with other values than the tape's, from now on.
        change_rows: what becomes of the rows of an answer.
    """

    name = "virtual"
    requests_per_s = 10.0
    max_history_minutes = 999
    publishes_empty_candles = True
    opens_at_previous_close = True

    def __init__(self, clock: SettableClock) -> None:
        super().__init__(None, clock)
        self.true = clock
        self.tape = Synthetic(7)
        self.feed = Tape()
        self.rest_stamp: Stamp = true_stamp
        self.date: Stamp | None = true_stamp
        self.rest_down = False
        self.revised: dict[int, Row] = {}
        self.change_rows: Callable[[list[Any]], Sequence[Any]] = lambda rows: rows
        self.asked: list[tuple[int, int, int]] = []  # when, from, to

    def row(self, open_ms: int) -> Row:
        return self.revised.get(open_ms) or self.tape.row(open_ms)

    def version(self, open_ms: int, as_of_ms: int, at_ms: int | None = None) -> Candle:
        """A minute as it stands, stated at `as_of_ms`."""
        at_ms = self.true.true_ms if at_ms is None else at_ms
        return grown(self.row(open_ms), at_ms - open_ms).candle(open_ms, as_of_ms=as_of_ms)

    async def fetch_markets(self, http: Any) -> list[Market]:
        await self._travel(http)
        return [Market(symbol=BTC, price_decimals=2, volume_decimals=3)]

    def make_feeds(self, symbols: Sequence[Symbol]) -> list[Feed]:
        return [self.feed]

    async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle | InvalidRow]:
        self.asked.append((self.true.true_ms, start_ms, end_ms))
        await self._travel(http)
        now_ms = self.true.true_ms
        opens = range(start_ms, min(end_ms, MINUTE.floor(now_ms) + MINUTE_MS), MINUTE_MS)
        return list(self.change_rows([self.version(open_ms, self.rest_stamp(now_ms)) for open_ms in opens]))

    async def _travel(self, http: Any) -> None:
        asked = self.true.monotonic()
        await self.true.sleep(0.1)
        if self.rest_down:
            raise Unavailable("no route")
        if self.date is not None:
            see = getattr(http, "on_date", None) or (lambda *_: None)
            see(self.date(self.true.true_ms) // 1000 * 1000, asked, self.true.monotonic())


class Http:
    """No requests at all."""

    on_date = None

    def is_busy(self) -> bool:
        return False

    def describe(self) -> dict[str, Any]:
        return {}


class Memory:
    """A store of one market: its final minutes, and what is known of their absence."""

    def __init__(self) -> None:
        self.rows: dict[int, Candle] = {}
        self.saved_gaps: list[Gap] = []
        self.since_ms: int | None = None
        self.logged: list[Range] = []

    def enqueue(self, market: MarketKey, candle: Candle, *, changes: Any = None) -> bool:
        if candle.final:
            known = self.rows.get(candle.open_ms)
            self.rows[candle.open_ms] = candle if known is None else candle.merged_with(known)
        return True

    async def flush(self) -> None: ...

    async def register_feed(self, markets: Sequence[MarketKey], epoch: str) -> None: ...

    async def log_changes(self, market: MarketKey, epoch: Any, changes: Sequence[tuple[int, Range]]) -> None:
        self.logged += [span for _, span in changes]

    async def save_coverage(self, market: MarketKey, since_ms: Any, known_gaps: Sequence[Gap], within: Any) -> None:
        self.since_ms = since_ms
        if within is not None:
            self.saved_gaps = replace_gaps(self.saved_gaps, known_gaps, within)

    async def newest_minutes(self, exchange: str) -> Mapping[Symbol, int]:
        return {BTC: max(self.rows)} if self.rows else {}

    async def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Range]:
        return list(minute_ranges(sorted(open_ms for open_ms in self.rows if start_ms <= open_ms < end_ms)))

    async def read_minutes(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Candle]:
        return [self.rows[open_ms] for open_ms in sorted(self.rows) if start_ms <= open_ms < end_ms]

    async def read_forming(self, market: MarketKey) -> list[Candle]:
        return []

    async def complete_from(self, market: MarketKey) -> int | None:
        return self.since_ms

    async def served_from(self, market: MarketKey) -> int | None:
        return min(self.rows, default=None)

    async def unpublished(self, exchange: str) -> Mapping[Symbol, Sequence[Range]]:
        return {}

    async def has_before(self, market: MarketKey, at_ms: int) -> bool:
        return any(open_ms < at_ms for open_ms in self.rows)

    async def known_gaps(self, market: MarketKey, within: Range = ALL_TIME) -> list[Gap]:
        return [gap for gap in self.saved_gaps if gap.start_ms < within.end_ms and within.start_ms < gap.end_ms]


class Site:
    """Everything together; `run` lets seconds pass, with one frame of the stream in each.

    Every message is looked at as it leaves: none may say that a minute is final before it is over.
    """

    def __init__(self, store: Memory | None = None, *, machine_ms: int = 0, start_ms: int = START_MS) -> None:
        self.clock = SettableClock(start_ms)
        self.clock.machine_ms = machine_ms
        self.exchange = Scripted(self.clock)
        self.store = store or Memory()
        self.bus = MemoryBus("one")
        self.bus.add_listener(self._hear)
        self.stamp: Stamp = true_stamp
        self.false_finals: list[Candle] = []
        self.changes: list[Candle] = []
        self.healed: list[HistoryChanged] = []
        self.states: list[str] = []
        self.shown_at_ms = 0
        self.ingest = ExchangeIngest(
            KEY.exchange,
            self.exchange,
            [BTC],
            clock=self.clock,
            bus=self.bus,
            store=self.store,
            http=Http(),
            options=IngestOptions(
                backfill_ms=0, grace_period_ms=6_000, quiet_after_ms=60_000, checkpoint_ms=5_000, confirm=True
            ),
        )

    def _hear(self, message: Any, position: Any) -> None:
        if isinstance(message, StateChanged):
            self.states.append(message.state)
        elif isinstance(message, HistoryChanged):
            self.healed.append(message)
        elif isinstance(message, MinuteChanged):
            candle = message.candle
            self.changes.append(candle)
            if candle.open_ms == MINUTE.floor(self.clock.true_ms):
                self.shown_at_ms = self.clock.true_ms
            if candle.final and candle.open_ms + MINUTE_MS > self.clock.true_ms:
                self.false_finals.append(candle)

    async def start(self) -> None:
        starting = asyncio.ensure_future(self.ingest.start())
        await self.clock.advance(0)
        await starting
        self.push(self.snapshot())

    async def stop(self) -> None:
        await self.ingest.stop()

    def snapshot(self) -> Candles:
        now_ms = self.clock.true_ms
        running = MINUTE.floor(now_ms)
        opens = range(running - 499 * MINUTE_MS, running + 1, MINUTE_MS)
        rows = tuple(self.exchange.version(open_ms, self.stamp(now_ms)) for open_ms in opens)
        return Candles(BTC, rows, snapshot=True)

    def push(self, event: Event) -> None:
        self.exchange.feed.queue.put_nowait(event)

    def frame(self, stamp: Stamp | None = None) -> Candles:
        now_ms = self.clock.true_ms
        return Candles(BTC, (self.exchange.version(MINUTE.floor(now_ms), (stamp or self.stamp)(now_ms)),))

    async def run(self, seconds: int, *, stream: bool = True) -> None:
        for _ in range(seconds):
            second = self.clock.true_ms // 1000 % 60
            if stream and second == 0:  # the last version of a minute comes a little late
                ended = MINUTE.floor(self.clock.true_ms) - MINUTE_MS
                self.push(Candles(BTC, (self.exchange.version(ended, self.stamp(self.clock.true_ms)),)))
            if stream:
                self.push(self.frame())
            await self.clock.advance(1)

    @property
    def health(self) -> dict[str, Any]:
        return self.ingest.describe()

    @property
    def market(self) -> dict[str, Any]:
        return self.health["symbols"][str(BTC)]

    def wrong(self) -> list[int]:
        """The minutes of the store that are missing, wrong or extra, but for the last two; their opening times."""
        until_ms = MINUTE.floor(self.clock.true_ms) - 2 * MINUTE_MS
        truth = {open_ms: tuple(self.exchange.row(open_ms)) for open_ms in range(MONDAY_MS, until_ms, MINUTE_MS)}
        stored = {open_ms: row.values for open_ms, row in self.store.rows.items() if MONDAY_MS <= open_ms < until_ms}
        future = [open_ms for open_ms in self.store.rows if open_ms > self.clock.true_ms]
        return future + [key for key in sorted(truth.keys() | stored) if truth.get(key) != stored.get(key)]

    def asked_for_the_future(self) -> list[tuple[int, int, int]]:
        return [one for one in self.exchange.asked if one[2] > MINUTE.floor(one[0]) + MINUTE_MS]


def range_set(known_gaps: Sequence[Gap]) -> RangeSet:
    return RangeSet((gap.start_ms, gap.end_ms) for gap in known_gaps)
