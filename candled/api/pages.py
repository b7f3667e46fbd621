"""Pages of bars: what is in memory joined with what is stored, each bar exactly once and none of them cut."""

import random
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from candled.bus import Position
from candled.errors import StoreRejected, Unavailable
from candled.exchange import Clock
from candled.model import MINUTE, Candle, Interval, MarketKey, fold
from candled.protocol.messages import Topic
from candled.rooms.encoded_bars import EncodedBarCache, Printer

T = TypeVar("T")

EVER_MS = 10**14  # later than any candle, and within what every store can hold
MOST_BARS = 1000
_ALL = 10**6  # more than memory holds
_BELIEVED_S = 10.0
_DAY = Interval.parse("1D")


class LiveSource(Protocol):
    """The bars in memory; `candled.aggregate.live_bars.LiveBars` has them."""

    def newest_bars(self, key: MarketKey, interval: Interval, count: int) -> list[Candle]: ...
    def newest_times(self, key: MarketKey, interval: Interval, count: int) -> Sequence[int]: ...
    def get_bar(self, key: MarketKey, interval: Interval, open_ms: int) -> Candle | None: ...
    def between(self, key: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]: ...
    def generation(self, key: MarketKey) -> int: ...
    async def load_bars(self, key: MarketKey, interval: Interval, count: int, patience_s: float) -> None: ...
    def revision_of(self, key: MarketKey, interval: Interval) -> int: ...
    def revised_from(self, key: MarketKey, interval: Interval, revision: int) -> int: ...
    def settlements(self, key: MarketKey) -> int: ...
    def is_behind(self, key: MarketKey) -> bool: ...
    def is_final(self, key: MarketKey, interval: Interval, bar: Candle) -> bool: ...
    def settles(self, key: MarketKey, start_ms: int, end_ms: int) -> bool: ...
    def feed_position(self, key: MarketKey) -> Position | None: ...


class BarStore(Protocol):
    """The reads this module needs; `candled.store.history.HistoryReader` has them, and joins identical ones."""

    async def read_bars(
        self, market: MarketKey, interval: Interval, before_ms: int, limit: int
    ) -> Sequence[Candle]: ...
    async def read_bars_between(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int
    ) -> Sequence[Candle]: ...
    async def served_from(self, market: MarketKey) -> int | None: ...


class HistoryRequest(NamedTuple):
    """At most `limit` bars with `start_ms <= open_ms < end_ms`: the last of them, or the first."""

    limit: int
    start_ms: int = 0
    end_ms: int = EVER_MS
    newest_first: bool = True


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


@dataclass(frozen=True, slots=True)
class PrintedPage:
    """The bars of a page as a dialect prints them: each column's texts with commas between them.

    The other fields are as those of `Page`; `last_as_of_ms` is the exchange's clock when it stated the last bar.
    """

    columns: Sequence[bytes]
    first_ms: int | None
    last_ms: int | None
    last_final: bool
    last_as_of_ms: int
    has_more: bool
    settled: bool
    position: Position | None
    #: A strong ETag, where one is known without looking at the bytes.
    tag: str | None = None
    #: The client has these bytes already; there are no columns then.
    is_known: bool = False


class _Beginning(NamedTuple):
    """The first bar of all, as the store said until when it is believed, if its past does not change before."""

    first_ms: int
    generation: int
    until: float


class _Span(NamedTuple):
    """Bars that are all in memory: those that open at `times[first:stop]`; `times` go on to the newest bar."""

    times: Sequence[int]
    first: int
    stop: int
    end_ms: int  # of the range that they are the bars of
    has_more: bool

    @property
    def chosen(self) -> Sequence[int]:
        return self.times[self.first : self.stop]


class BarReader:
    """Reads bars for whoever serves them. A page costs a bounded number of bounded reads of the store.

    What memory has is answered from there alone; with `printed`, from texts that are kept. Every method raises
    `Unavailable` where the store cannot be read now.
    """

    def __init__(self, live: LiveSource, stored: BarStore, texts: EncodedBarCache, clock: Clock) -> None:
        self._live = live
        self._stored = stored
        self._texts = texts
        self._clock = clock
        self._name = f"{random.getrandbits(48):x}"  # in ETags, whose numbers count in this process
        # where the store had nothing older than what memory has: until when that is believed
        self._begins: dict[tuple[MarketKey, Interval], _Beginning] = {}

    def printed_now(
        self, market: MarketKey, interval: Interval, printer: Printer, asked: HistoryRequest, known: str = ""
    ) -> PrintedPage | None:
        """Return what `printed` does, if memory has it: nothing is waited for."""
        span = self._in_memory(market, interval, asked)
        if span is None or (printer.cares and self._live.is_behind(market)):
            return None
        times, first, stop, *_ = span
        position = self._live.feed_position(market)
        settled, last_final = self._finality(market, interval, span)
        if first == stop:
            return PrintedPage([b""] * printer.columns, None, None, False, 0, span.has_more, settled, position)
        form = self._texts.get_form(Topic(market, interval), printer)
        settlements = self._live.settlements(market)
        form.refresh(self._live, settlements)
        held = bisect_right(times, form.last_ms)  # texts that are kept stay, even if fewer bars are asked for now
        begin = min(first, held - 1) if held else first
        form.load_bars(self._live, times[begin:], len(times) - 1 - begin, settlements)
        last = self._live.get_bar(market, interval, times[stop - 1])
        assert last is not None, "a bar whose time is known"
        is_newest = stop == len(times)
        numbers = (
            form.version(times[stop - 1 - is_newest]) if stop - first > is_newest else 0,
            form.newest_version(last, last_final) if is_newest else 0,
            times[first],
            last.open_ms,
            int(span.has_more),
            *((printer.positioned and position) or ()),
        )
        tag = f'"{self._name}.{".".join(map(str, numbers))}"'
        if tag in known:
            self._texts.mark_used(form)
            columns: Sequence[bytes] = ()
        elif is_newest:
            texts = form.newest_columns(last, last_final)
            older = form.columns(times[first], last.open_ms)
            columns = [before + text for before, text in zip(older, texts, strict=True)]
        else:
            columns = [text[:-1] for text in form.columns(times[first], times[stop - 1] + 1)]
        self._texts.mark_used(form)
        return PrintedPage(
            columns, times[first], last.open_ms, last_final, last.as_of_ms, span.has_more, settled, position,
            tag, tag in known,
        )  # fmt: skip

    async def printed(
        self, market: MarketKey, interval: Interval, printer: Printer, asked: HistoryRequest, known: str = ""
    ) -> PrintedPage:
        """Return the asked bars, oldest first, as `page` does, but printed, if none of the ETags `known` is theirs."""
        page = self.printed_now(market, interval, printer, asked, known)
        if page is None and self._is_tail(market, interval, asked):
            await self._readable(self._live.load_bars(market, interval, asked.limit + 1, 0.0))
            page = self.printed_now(market, interval, printer, asked, known)
        if page is None:
            read = await self._read_page(market, interval, asked)
            # it may be known only now that memory has all of it: then the next answer has the same tag
            page = self.printed_now(market, interval, printer, asked, known) or print_page(read, printer)
        return page

    async def read_page(
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

        The running bar is among them. A bar that begins before anything that is stored is not: it would be cut.
        """
        return await self._read_page(market, interval, HistoryRequest(limit, start_ms, end_ms, newest_first))

    async def walk_pages(
        self, market: MarketKey, interval: Interval, *, start_ms: int = 0, end_ms: int = EVER_MS
    ) -> AsyncIterator[Page]:
        """All bars of a range, page by page, oldest first; at least one page."""
        while True:
            page = await self.read_page(
                market, interval, start_ms=start_ms, end_ms=end_ms, limit=MOST_BARS, newest_first=False
            )
            yield page
            if not page.has_more:
                return
            start_ms = page.bars[-1].open_ms + interval.ms

    async def read_history(
        self, market: MarketKey, interval: Interval, before_ms: int, limit: int
    ) -> tuple[Sequence[Candle], bool]:
        """The last `limit` bars with `open_ms < before_ms`, oldest first, and whether nothing older exists."""
        page = await self.read_page(market, interval, end_ms=before_ms, limit=limit)
        return page.bars, not page.has_more

    async def read_day(self, market: MarketKey, intervals: Iterable[Interval]) -> tuple[Candle, Candle | None] | None:
        """The newest UTC day so far as one bar, and the last bar before it; folded from one of the served `intervals`.

        None: there is nothing of this market.
        """
        interval = max((one for one in intervals if one.ms <= _DAY.ms), default=MINUTE)
        newest = await self.read_page(market, interval, limit=1)
        if not newest.bars:
            return None
        day_ms = _DAY.floor(newest.bars[0].open_ms)
        today = await self.read_page(market, interval, start_ms=day_ms, limit=_DAY.ms // interval.ms)
        before = await self.read_page(market, interval, end_ms=day_ms, limit=1)
        return fold(today.bars, day_ms), before.bars[0] if before.bars else None

    # ------------------------------------------------------------ in memory

    async def _read_page(self, market: MarketKey, interval: Interval, asked: HistoryRequest) -> Page:
        span = self._in_memory(market, interval, asked)
        if span is not None:
            return self._page_of(market, interval, span)
        return await self._readable(self._joined_page(market, interval, *asked))

    def _in_memory(self, market: MarketKey, interval: Interval, asked: HistoryRequest) -> _Span | None:
        """Return the bars of a page if memory has them all, and knows whether there are more; else None."""
        limit, start_ms, end_ms, newest_first = asked
        times = self._live.newest_times(market, interval, _ALL)
        if not times:
            return None
        first, stop = bisect_left(times, start_ms), bisect_left(times, end_ms)
        count = max(stop - first, 0)
        if (
            start_ms < times[0]
            and not (newest_first and count > limit)
            and not self._begins_with(market, interval, times)
        ):
            return None
        if newest_first:
            first = stop - min(count, limit)
        else:
            stop = first + min(count, limit)
            if count > limit:
                end_ms = times[stop - 1] + interval.ms
        return _Span(times, first, stop, end_ms, count > limit)

    def _begins_with(self, market: MarketKey, interval: Interval, times: Sequence[int]) -> bool:
        """Return whether nothing older than these bars exists, as far as the store said lately."""
        known = self._begins.get((market, interval))
        if known is None or known[:2] != (times[0], self._live.generation(market)):
            return False
        return self._clock.monotonic() < known.until

    def _page_of(self, market: MarketKey, interval: Interval, span: _Span) -> Page:
        position, chosen = self._live.feed_position(market), span.chosen
        settled, _ = self._finality(market, interval, span)
        bars = self._live.between(market, interval, chosen[0], chosen[-1] + 1) if chosen else []
        judged = tuple(self._with_finality(market, interval, bar) for bar in bars)
        return Page(judged, span.has_more, settled, position)

    def _finality(self, market: MarketKey, interval: Interval, span: _Span) -> tuple[bool, bool]:
        """Return whether a page of these bars is settled, and whether its last bar is final."""
        settles, length_ms = self._live.settles, interval.ms
        if span.first == span.stop:
            return span.end_ms <= self._settled_ms(market, interval, span.times), False
        first_ms, last_ms = span.times[span.first], span.times[span.stop - 1]
        last_final = settles(market, last_ms, last_ms + length_ms)
        if not last_final or span.end_ms > self._settled_ms(market, interval, span.times):
            return False, last_final
        all_final = settles(market, first_ms, last_ms + length_ms) or all(
            settles(market, at_ms, at_ms + length_ms) for at_ms in span.chosen
        )
        return all_final, True

    # ------------------------------------------------------------ with the store

    async def _readable(self, reading: Awaitable[T]) -> T:
        try:
            return await reading
        except StoreRejected as error:  # it is not open yet, or broken: to a client it is unavailable
            raise Unavailable(str(error)) from error

    def _is_tail(self, market: MarketKey, interval: Interval, asked: HistoryRequest) -> bool:
        """Return whether bars up to the newest are asked for, as many as memory may have to keep for a room too."""
        newest = self._live.newest_times(market, interval, 1)
        return bool(newest) and asked.newest_first and asked.limit <= MOST_BARS and asked.end_ms > newest[0]

    async def _joined_page(
        self, market: MarketKey, interval: Interval, limit: int, start_ms: int, end_ms: int, newest_first: bool
    ) -> Page:
        asked_ms, generation = start_ms, self._live.generation(market)
        since_ms = await self._stored.served_from(market)
        position = self._live.feed_position(market)
        if since_ms is None:
            return Page((), False, False, position)
        start_ms, end_ms = max(start_ms, since_ms), min(end_ms, EVER_MS)
        memory = self._live.newest_bars(market, interval, _ALL)
        settled_ms = self._settled_ms(market, interval, [bar.open_ms for bar in memory])
        seam_ms = memory[0].open_ms if memory else EVER_MS  # every bar from there on is in memory
        held = [bar for bar in memory if start_ms <= bar.open_ms < end_ms]
        read = self._read_last if newest_first else self._read_first
        bars = await read(market, interval, start_ms, min(end_ms, seam_ms), held, limit + 1)
        has_more = len(bars) > limit
        is_whole = asked_ms <= since_ms and not (newest_first and has_more)
        if is_whole and memory and bars and bars[0].open_ms == memory[0].open_ms:
            until = self._clock.monotonic() + _BELIEVED_S
            self._begins[market, interval] = _Beginning(bars[0].open_ms, generation, until)
        if has_more:
            bars = bars[-limit:] if newest_first else bars[:limit]
            end_ms = end_ms if newest_first else bars[-1].open_ms + interval.ms
        judged = tuple(self._with_finality(market, interval, bar) for bar in bars)
        settled = end_ms <= settled_ms and all(bar.final for bar in judged)
        return Page(judged, has_more, settled, position)

    async def _read_last(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, held: list[Candle], count: int
    ) -> list[Candle]:
        """The last `count` of the stored bars in `[start_ms, end_ms)`, followed by the held ones."""
        missing = count - len(held)
        if missing <= 0 or start_ms >= end_ms:
            return held[-count:]
        older = await self._stored.read_bars(market, interval, end_ms, missing)
        return [*(bar for bar in older if bar.open_ms >= start_ms), *held]

    async def _read_first(
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
                rows = await self._stored.read_bars_between(market, interval, start_ms, until_ms)
            else:
                rows = await self._stored.read_bars(market, interval, until_ms, count)
                if len(rows) == count and rows[0].open_ms > start_ms:
                    stretch_ms = max(stretch_ms // 16, dense_ms)
                    continue
            found += (row for row in rows if row.open_ms >= start_ms)
            start_ms = until_ms
            stretch_ms *= 4
        return [*found, *held][:count]

    def _with_finality(self, market: MarketKey, interval: Interval, bar: Candle) -> Candle:
        """The bar, saying whether it is final."""
        final = self._live.is_final(market, interval, bar)
        return bar if bar.final == final else bar._replace(final=final)

    def _settled_ms(self, market: MarketKey, interval: Interval, times: Sequence[int]) -> int:
        """Return the end of the newest final bar in memory, UTC epoch ms; 0 where there is none."""
        settles, length_ms = self._live.settles, interval.ms
        return next((at_ms + length_ms for at_ms in reversed(times) if settles(market, at_ms, at_ms + length_ms)), 0)


def print_page(page: Page, printer: Printer) -> PrintedPage:
    """Print each bar of a page."""
    bars = page.bars
    rows = [printer.print(bar, bar.final) for bar in bars]
    return PrintedPage(
        [",".join(column).encode() for column in zip(*rows, strict=True)] or [b""] * printer.columns,
        page.oldest_ms,
        bars[-1].open_ms if bars else None,
        bool(bars) and bars[-1].final,
        bars[-1].as_of_ms if bars else 0,
        page.has_more,
        page.settled,
        page.position,
    )
