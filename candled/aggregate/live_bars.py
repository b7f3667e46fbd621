"""Keeps the bars of all markets right: from the bus as minutes change, from the store where the past does."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from candled.bus import Healed, Message, MinuteChanged
from candled.errors import StoreUnavailable, Unavailable
from candled.exchange import Clock
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Range

from .ladder import Change, Ladder

logger = logging.getLogger(__name__)

_AT_FIRST = 120  # bars of each interval loaded at start, and kept until more are asked for: what most charts ask for
_MINUTES_KEPT = 1000  # while the store is away they are nowhere else
_WEEK = Interval.parse("1W")
_RETRY_S = 1.0
_STORED_AFTER_S = 2.0


class History(Protocol):
    """The reads this module needs; `candled.store.history.History` has them."""

    async def bars(self, market: MarketKey, interval: Interval, before_ms: int, limit: int) -> Sequence[Candle]: ...
    async def bars_between(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int
    ) -> Sequence[Candle]: ...
    async def running(self, market: MarketKey) -> Candle | None: ...
    async def complete_from(self, market: MarketKey) -> int | None: ...


class BarsListener(Protocol):
    """Who hears of changed bars."""

    def changed(self, market: MarketKey, change: Change) -> None:
        """A bar changed, perhaps an older one."""

    def healed(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> None:
        """Bars of `[start_ms, end_ms)` changed, or more history is there."""


class LiveBars:
    """All bars of the served markets. A bar is shown from where its market's history is complete, never cut."""

    def __init__(
        self, markets: Iterable[MarketKey], intervals: Sequence[Interval], history: History, clock: Clock
    ) -> None:
        self._history = history
        self._clock = clock
        self._intervals = tuple(sorted(intervals))
        self._listeners: list[BarsListener] = []
        self._markets = {key: _Market(new_ladder(self._intervals)) for key in markets}
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, listener: BarsListener) -> None:
        """Tell `listener` of every later change."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Load the newest bars of every market; until then minutes from the bus wait."""
        for key in self._markets:
            await self._seed(key)

    async def stop(self) -> None:
        """End what runs in the background."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ from the bus

    def on_message(self, message: Message) -> None:
        """A bus listener."""
        market = self._markets.get(message.market)
        if market is None:
            return
        if isinstance(message, Healed):
            market.complete_from_ms = message.complete_from_ms
            self._read_again(message.market, message.start_ms, message.end_ms)
        elif isinstance(message, MinuteChanged):
            if market.seeded:
                self._feed(message.market, market, message.candle)
            else:
                market.early.append(message.candle)

    # ------------------------------------------------------------ for whoever serves

    def ready(self, key: MarketKey, interval: Interval, count: int) -> bool:
        """Whether `tail` can give the newest `count` bars, or all there are, from memory."""
        market = self._markets[key]
        if not market.seeded:
            return False
        series = market.ladder.series(interval)
        if series.capacity < count:  # what is there now could be dropped before `tail`
            return False
        shown_from_ms = market.complete_from_ms or 0
        return series.since_ms <= shown_from_ms or len(series.tail(count, shown_from_ms)) >= count

    def is_warm(self, key: MarketKey, interval: Interval, count: int) -> bool:
        """Whether the running week is complete, or the newest `count` bars are."""
        market = self._markets[key]
        if not market.seeded or market.complete_from_ms is None:
            return False
        if market.complete_from_ms <= _WEEK.floor(self._clock.now_ms()):
            return True
        return len(market.ladder.series(interval).tail(count, market.complete_from_ms)) >= count

    def tail(self, key: MarketKey, interval: Interval, count: int) -> list[Candle]:
        """The newest `count` whole bars in memory, oldest first, ending with the running one."""
        market = self._markets[key]
        if market.complete_from_ms is None:
            return []
        return market.ladder.series(interval).tail(count, market.complete_from_ms)

    async def prepare(self, key: MarketKey, interval: Interval, count: int, patience_s: float) -> None:
        """Make `tail` ready: wait for a market that is warming up, at most `patience_s`, then read older bars.

        Raises:
            Unavailable: the store cannot be read.
        """
        market = self._markets[key]
        market.ladder.series(interval).widen(count)
        deadline = self._clock.monotonic() + patience_s
        while not self.is_warm(key, interval, count) and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.05)
        while not self.ready(key, interval, count):
            if not market.seeded:
                raise Unavailable("the store cannot be read yet")
            series = market.ladder.series(interval)
            generation, since_ms = market.generation, series.since_ms
            missing = count - len(series)
            older = await self._history.bars(key, interval, since_ms, missing)
            if (generation, since_ms) == (market.generation, series.since_ms):
                series.prepend(older, older[0].open_ms if len(older) >= missing else 0)

    def describe(self) -> dict[str, Any]:
        """For `/health/ws-stats`."""
        return {"oneMinuteCandlesCount": sum(market.ladder.minutes_held for market in self._markets.values())}

    # ------------------------------------------------------------ inside

    async def _seed(self, key: MarketKey) -> None:
        market = self._markets[key]
        try:
            complete_from_ms = await self._history.complete_from(key)
            loaded = {}
            for interval in market.ladder.levels:
                count = market.ladder.parts_needed(interval, _AT_FIRST)
                loaded[interval] = (count, await self._history.bars(key, interval, 2**62, count))
            running = await self._history.running(key)
        except StoreUnavailable as error:
            logger.warning("%s: its bars cannot be loaded: %s; trying again", key, error)
            self._spawn(self._seed_later(key))
            return
        for interval, (count, bars) in loaded.items():
            market.ladder.seed(interval, bars, bars[0].open_ms if len(bars) >= count else 0)
        if market.complete_from_ms is None:
            market.complete_from_ms = complete_from_ms
        market.seeded = True
        if running is not None and running.open_ms + MINUTE_MS > self._clock.now_ms():
            self._feed(key, market, running)
        for candle in market.early:
            self._feed(key, market, candle)
        market.early.clear()

    async def _seed_later(self, key: MarketKey) -> None:
        await self._clock.sleep(_RETRY_S)
        await self._seed(key)

    def _feed(self, key: MarketKey, market: "_Market", minute: Candle) -> None:
        changes = market.ladder.feed(minute)
        if changes is None:
            if minute.final:
                self._spawn(self._read_later(key, minute.open_ms))
            return
        if market.complete_from_ms is None:
            return
        for change in changes:
            if change.bar.open_ms >= market.complete_from_ms:
                for listener in self._listeners:
                    listener.changed(key, change)

    async def _read_later(self, key: MarketKey, open_ms: int) -> None:
        """Read a minute older than memory from the store, once it is stored."""
        await self._clock.sleep(_STORED_AFTER_S)
        self._read_again(key, open_ms, open_ms + MINUTE_MS)

    def _read_again(self, key: MarketKey, start_ms: int, end_ms: int) -> None:
        market = self._markets[key]
        market.generation += 1
        market.stale = Range(start_ms, end_ms).hull(market.stale)
        if not market.reading:
            market.reading = True
            self._spawn(self._reread(key, market))

    async def _reread(self, key: MarketKey, market: "_Market") -> None:
        """Read what changed in the store until nothing is left; one reader per market."""
        try:
            while market.stale is not None:
                if not market.seeded:
                    await self._clock.sleep(_RETRY_S)
                    continue
                stale, market.stale = market.stale, None
                try:
                    await self._reread_range(key, market, stale)
                except StoreUnavailable as error:
                    logger.warning("%s: a repaired range cannot be read yet: %s", key, error)
                    market.stale = stale.hull(market.stale)
                    await self._clock.sleep(_RETRY_S)
        finally:
            market.reading = False

    async def _reread_range(self, key: MarketKey, market: "_Market", stale: Range) -> None:
        rows = {}
        for interval in market.ladder.levels:
            series = market.ladder.series(interval)
            keep_ms = interval.floor(stale.end_ms - 1) - series.capacity * interval.ms
            if interval.floor(stale.start_ms) < keep_ms and series.since_ms < keep_ms:
                series.forget_before(keep_ms)  # no more than can be kept is read, however long the range
            start_ms = max(interval.floor(stale.start_ms), series.since_ms)
            if start_ms < stale.end_ms:
                rows[interval] = await self._history.bars_between(key, interval, start_ms, stale.end_ms)
        changes = market.ladder.merge(rows, stale.start_ms, stale.end_ms)
        for interval in market.ladder.shown:
            changed = [change.bar.open_ms for change in changes if change.interval == interval]
            end_ms = (
                max(changed) + interval.ms if changed else min(stale.end_ms, market.ladder.series(interval).since_ms)
            )
            start_ms = min(changed) if changed else stale.start_ms
            for listener in self._listeners:
                listener.healed(key, interval, start_ms, end_ms)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("reading bars failed", exc_info=task.exception())


def new_ladder(intervals: Sequence[Interval]) -> Ladder:
    """An empty ladder that keeps what is kept of a market nobody asks much of."""
    ladder = Ladder(intervals, _AT_FIRST)
    ladder.series(MINUTE).widen(_MINUTES_KEPT)
    return ladder


class _Market:
    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.seeded = False
        self.reading = False
        self.complete_from_ms: int | None = None
        self.early: list[Candle] = []
        self.stale: Range | None = None
        self.generation = 0  # counts changes of the past, so that a read that overlapped one is not believed
