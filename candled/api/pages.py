"""Pages of bars: what is in memory joined with what is stored, each bar exactly once and none of them cut."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from candled.bus import Position
from candled.errors import StoreRejected, Unavailable
from candled.model import MINUTE, Candle, Interval, MarketKey, fold

EVER_MS = 10**14  # later than any candle, and within what every store can hold
MOST_BARS = 1000
_ALL = 10**6  # more than memory holds
_DAY = Interval.parse("1D")


class Live(Protocol):
    """The bars in memory; `candled.aggregate.live_bars.LiveBars` has them."""

    def tail(self, key: MarketKey, interval: Interval, count: int) -> list[Candle]: ...
    def is_final(self, key: MarketKey, interval: Interval, bar: Candle) -> bool: ...
    def position(self, key: MarketKey) -> Position | None: ...


class Stored(Protocol):
    """The reads this module needs; `candled.store.history.History` has them, and joins identical ones."""

    async def bars(self, market: MarketKey, interval: Interval, before_ms: int, limit: int) -> Sequence[Candle]: ...
    async def bars_between(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int
    ) -> Sequence[Candle]: ...
    async def complete_from(self, market: MarketKey) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Page:
    """Some bars, oldest first; each says truly whether it is `final`.

    `has_more`: the asked range holds further bars, older ones where the newest were asked for, else newer ones.
    `settled`: nothing of the answer changes any more, unless history is repaired or more of it is fetched.
    `position`: everything that the market's feed said up to there is in the bars.
    """

    bars: tuple[Candle, ...]
    has_more: bool
    settled: bool
    position: Position | None = None

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest bar begins; None where there is none."""
        return self.bars[0].open_ms if self.bars else None


class Pages:
    """Reads bars for whoever serves them. A page costs a bounded number of bounded reads of the store.

    Every method raises `Unavailable` where the store cannot be read now.
    """

    def __init__(self, live: Live, stored: Stored) -> None:
        self._live = live
        self._stored = stored

    async def page(
        self,
        market: MarketKey,
        interval: Interval,
        *,
        start_ms: int = 0,
        end_ms: int = EVER_MS,
        limit: int,
        newest_first: bool = True,
    ) -> Page:
        """At most `limit` bars with `start_ms <= open_ms < end_ms`, oldest first: the last or the first of them.

        The running bar is among them. Bars from before the market's history is complete are not.
        """
        try:
            return await self._page(market, interval, start_ms, end_ms, limit, newest_first)
        except StoreRejected as error:  # it is not open yet, or broken: to whoever asks it is away
            raise Unavailable(str(error)) from error

    async def walk(
        self, market: MarketKey, interval: Interval, *, start_ms: int = 0, end_ms: int = EVER_MS
    ) -> AsyncIterator[Page]:
        """All bars of a range, page by page, oldest first; at least one page."""
        while True:
            page = await self.page(
                market, interval, start_ms=start_ms, end_ms=end_ms, limit=MOST_BARS, newest_first=False
            )
            yield page
            if not page.has_more:
                return
            start_ms = page.bars[-1].open_ms + interval.ms

    async def history(
        self, market: MarketKey, interval: Interval, before_ms: int, limit: int
    ) -> tuple[Sequence[Candle], bool]:
        """The last `limit` bars with `open_ms < before_ms`, oldest first, and whether nothing older exists."""
        page = await self.page(market, interval, end_ms=before_ms, limit=limit)
        return page.bars, not page.has_more

    async def day(self, market: MarketKey, intervals: Iterable[Interval]) -> tuple[Candle, Candle | None] | None:
        """The newest UTC day so far as one bar, and the last bar before it; folded from one of the served `intervals`.

        None: there is nothing of this market.
        """
        interval = max((one for one in intervals if one.ms <= _DAY.ms), default=MINUTE)
        newest = await self.page(market, interval, limit=1)
        if not newest.bars:
            return None
        day_ms = _DAY.floor(newest.bars[0].open_ms)
        today = await self.page(market, interval, start_ms=day_ms, limit=_DAY.ms // interval.ms)
        before = await self.page(market, interval, end_ms=day_ms, limit=1)
        return fold(today.bars, day_ms), before.bars[0] if before.bars else None

    async def _page(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, limit: int, newest_first: bool
    ) -> Page:
        since_ms = await self._stored.complete_from(market)
        position = self._live.position(market)
        if since_ms is None:
            return Page((), False, False, position)
        start_ms, end_ms = max(start_ms, since_ms), min(end_ms, EVER_MS)
        memory = self._live.tail(market, interval, _ALL)
        settled_ms = self._settled_ms(market, interval, memory)
        seam_ms = memory[0].open_ms if memory else EVER_MS  # every bar from there on is in memory
        held = [bar for bar in memory if start_ms <= bar.open_ms < end_ms]
        read = self._last if newest_first else self._first
        bars = await read(market, interval, start_ms, min(end_ms, seam_ms), held, limit + 1)
        has_more = len(bars) > limit
        if has_more:
            bars = bars[-limit:] if newest_first else bars[:limit]
            end_ms = end_ms if newest_first else bars[-1].open_ms + interval.ms
        judged = tuple(self._judged(market, interval, bar) for bar in bars)
        settled = end_ms <= settled_ms and all(bar.final for bar in judged)
        return Page(judged, has_more, settled, position)

    async def _last(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, held: list[Candle], count: int
    ) -> list[Candle]:
        """The last `count` of the stored bars in `[start_ms, end_ms)`, followed by the held ones."""
        missing = count - len(held)
        if missing <= 0 or start_ms >= end_ms:
            return held[-count:]
        older = await self._stored.bars(market, interval, end_ms, missing)
        return [*(bar for bar in older if bar.open_ms >= start_ms), *held]

    async def _first(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, held: list[Candle], count: int
    ) -> list[Candle]:
        """The first `count` of the stored bars in `[start_ms, end_ms)` followed by the held ones.

        Where none is missing they all lie in the first stretch. Farther on the stretches grow, so that a long gap
        costs few reads; one that turns out to hold more than was read is read again in smaller ones.
        """
        found: list[Candle] = []
        dense_ms = count * interval.ms
        stretch_ms = dense_ms
        while start_ms < end_ms and len(found) < count:
            until_ms = min(start_ms + stretch_ms, end_ms)
            if until_ms - start_ms <= dense_ms:
                rows = await self._stored.bars_between(market, interval, start_ms, until_ms)
            else:
                rows = await self._stored.bars(market, interval, until_ms, count)
                if len(rows) == count and rows[0].open_ms > start_ms:
                    stretch_ms = max(stretch_ms // 16, dense_ms)
                    continue
            found += (row for row in rows if row.open_ms >= start_ms)
            start_ms = until_ms
            stretch_ms *= 4
        return [*found, *held][:count]

    def _judged(self, market: MarketKey, interval: Interval, bar: Candle) -> Candle:
        """The bar, saying whether it is final."""
        final = self._live.is_final(market, interval, bar)
        return bar if bar.final == final else bar._replace(final=final)

    def _settled_ms(self, market: MarketKey, interval: Interval, memory: Sequence[Candle]) -> int:
        """The end of the newest final bar in memory, UTC epoch ms; 0 where there is none."""
        final = (bar.open_ms + interval.ms for bar in reversed(memory) if self._live.is_final(market, interval, bar))
        return next(final, 0)
