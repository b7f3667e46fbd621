"""Pages of bars from memory and the store, each bar exactly once and always complete."""

import asyncio
import hashlib
import random
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from candled.errors import StoreRejected, Unavailable
from candled.exchange import Clock
from candled.model import DAY, END_OF_TIME_MS, MINUTE, Candle, Interval, MarketKey, Topic, fold
from candled.rooms.encoded_bars import BARS_PER_TURN, EncodedBarCache, Printer
from candled.serve.content_coding import PLAIN, ContentCoding
from candled.store.history import HistoryReader

from .encoding_turns import EncodingTurns, encode_slices
from .past_pages import PastPages
from .queries import (
    MOST_BARS,
    BarQuery,
    HistoryRequest,
    Page,
    PrintedPage,
    WrittenPage,
    join_pages,
    join_parts,
    print_bars,
)

if TYPE_CHECKING:
    from candled.aggregate.live_bars import LiveBars

T = TypeVar("T")

_ALL = 10**6  # more than memory holds
_TRUSTED_S = 10.0
_MOST_SLICES = 250  # passes for encoding the bars of a page, even if they change again and again
_MOST_UNSHARED = 2  # pages made at a time that only one request gets; each has up to 5,000 bars
_PAGE_OVERHEAD = 600  # bytes of a kept page besides its texts


class _Beginning(NamedTuple):
    """A market's very first bar, as read from the store. Valid `until` a time, or until the market's past changes."""

    first_ms: int
    past_version: int
    until: float


class _Span(NamedTuple):
    """Bars that are all in memory: those that begin at `times[first:stop]`. `times` continue to the newest bar."""

    times: Sequence[int]
    first: int
    stop: int
    end_ms: int  # end of the range that these bars cover
    has_more: bool
    is_lasting: bool

    @property
    def chosen(self) -> Sequence[int]:
        """Opening times of the bars."""
        return self.times[self.first : self.stop]


def day_interval(intervals: Iterable[Interval]) -> Interval:
    """Return the longest of `intervals` whose bars make a UTC day."""
    return max((one for one in intervals if one.ms <= DAY.ms), default=MINUTE)


class BarReader:
    """Reads pages of bars. A page costs a bounded number of bounded reads of the store.

    Bars in memory are not read from the store; `printed` uses cached texts for them. Every method raises `Unavailable`
    if the store cannot be read.
    """

    def __init__(self, live: "LiveBars", stored: HistoryReader, texts: EncodedBarCache, clock: Clock) -> None:
        self._live = live
        self._stored = stored
        self._texts = texts
        self._clock = clock
        self._unshared = asyncio.Semaphore(_MOST_UNSHARED)
        self._name = f"{random.getrandbits(48):x}"  # part of ETags, because their version numbers are per process
        self._turns = EncodingTurns(clock)
        self._past = PastPages(live, stored, texts, self._name)
        # series whose first bar is in memory, so the store has no older ones
        self._begins: dict[tuple[MarketKey, Interval], _Beginning] = {}

    def printed_now(
        self, market: MarketKey, interval: Interval, printer: Printer, asked: HistoryRequest, known: str = ""
    ) -> PrintedPage | None:
        """Return the result of `printed` if it can be made from memory without waiting, else None.

        If more than `BARS_PER_TURN` bars lack their texts, some of them are encoded, and the result is None.
        """
        span = self._in_memory(market, interval, asked)
        if span is not None:
            return self._print_span(market, interval, printer, span, known)
        past = self._past.find(*self._of_past(market, interval, printer, asked), known)
        both = None if past is not None else self._split(market, interval, asked)
        if both is None:
            return past
        older = self._past.find(*self._of_past(market, interval, printer, both[0]), "")
        newer = older and self._print_span(market, interval, printer, both[1], "")
        if older is None or newer is None:
            return None
        return join_pages(older, newer, printer.separator, known, is_full=len(both[1].chosen) == asked.limit)

    def _print_span(
        self, market: MarketKey, interval: Interval, printer: Printer, span: _Span, known: str
    ) -> PrintedPage | None:
        if printer.cares and self._live.is_behind(market):
            return None
        times, first, stop, *_ = span
        position = self._live.feed_position(market)
        is_final, last_final = self._finality(market, interval, span)
        if first == stop:
            return PrintedPage([b""] * printer.columns, None, None, False, 0, span.has_more, is_final, position)
        form = self._texts.get_form(Topic(market, interval), printer)
        finality_count = self._live.finality_count(market)
        form.refresh(self._live, finality_count)
        encoded = bisect_right(times, form.last_ms)  # keep cached texts, even if fewer bars are requested now
        begin = min(first, encoded - 1) if encoded else first
        count = len(times) - 1 - begin
        if not form.encode_bars(self._live, times[begin:], count, finality_count, BARS_PER_TURN):
            self._texts.mark_used(form)
            return None
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
            columns: Sequence[bytes] = ()
        elif is_newest:
            texts = form.newest_columns(last, last_final)
            older = form.columns(times[first], last.open_ms)
            columns = [before + text for before, text in zip(older, texts, strict=True)]
        else:
            columns = [text[:-1] for text in form.columns(times[first], times[stop - 1] + 1)]
        self._texts.mark_used(form)
        return PrintedPage(
            columns, times[first], last.open_ms, last_final, last.as_of_ms, span.has_more, is_final, position,
            tag, span.is_lasting,
        )  # fmt: skip

    def state_of(self, query: BarQuery) -> tuple[object, ...]:
        """Return a value that is equal to a former one only if the query's answer has not changed since."""
        return self._live.state_of(query.market, query.interval)

    def written_now(self, query: BarQuery, known: str = "", coding: ContentCoding = PLAIN) -> WrittenPage | None:
        """Return a query's answer, if memory has its bars; without the body if `known` contains its ETag."""
        market, interval = query.market, query.interval
        known = "" if query.has_revision else known
        state = self.state_of(query)
        if query.page is not None and query.state == state:
            written = self._write(query, query.page, known, coding)
            if written is not None:
                return written
        page = self.printed_now(market, interval, query.printer, query.asked, coding.plain_tags(known))
        if page is None or page.tag is None:
            return None
        query.state, query.page = state, replace(page, columns=()) if page.is_lasting else None
        return self._write(query, page, known, coding)

    async def written(self, query: BarQuery, known: str, coding: ContentCoding) -> WrittenPage:
        """Return a query's answer; without the body if `known` contains its ETag."""
        written = self.written_now(query, known, coding)
        if written is None:
            known = "" if query.has_revision else known
            plain = coding.plain_tags(known)
            page = await self.printed(query.market, query.interval, query.printer, query.asked, plain)
            written = self._write(query, page, known, coding)
            assert written is not None, "a page that was just printed"
        return written

    def _write(self, query: BarQuery, page: PrintedPage, known: str, coding: ContentCoding) -> WrittenPage | None:
        """Return the answer with a page; None if the page has no columns and they are needed."""
        tag, revision = page.tag, None
        if query.has_revision:
            tag = revision = self._revision_of(query, page)
        elif tag is not None and tag in coding.plain_tags(known):
            coded = coding.tag_of(tag)
            return WrittenPage(page, None, "", coded if coded in known else tag)
        body = self._find_part(query, page, coding.name) if coding.name and tag else None
        if body is not None and tag is not None:
            return WrittenPage(page, body, coding.name, coding.tag_of(tag), revision)
        body = self._find_part(query, page, "") if tag else None
        if body is None:
            if not page.columns:
                return None
            body = query.write(page)
            if tag and not page.is_past:  # the texts of the past are cached as a page, and joining them costs little
                self._keep_part(query, page, "", body)
        if not coding.applies_to(body):
            return WrittenPage(page, body, "", tag, revision)
        body = coding.encode(body)
        if tag:
            self._keep_part(query, page, coding.name, body)
        return WrittenPage(page, body, coding.name, tag and coding.tag_of(tag), revision)

    def _revision_of(self, query: BarQuery, page: PrintedPage) -> str | None:
        """Return the revision of a final page as an ETag, computed once for each version of the page; else None."""
        if not page.is_final or page.last_ms is None:
            return None
        revision = self._find_part(query, page, "revision")
        if revision is None and page.columns:
            revision = b'"%b"' % hashlib.sha256(page.columns[0]).hexdigest()[:16].encode()
            self._keep_part(query, page, "revision", revision)
        return None if revision is None else revision.decode()

    def _find_part(self, query: BarQuery, page: PrintedPage, name: str) -> bytes | None:
        """Return the value that `_keep_part` kept for this version of a page."""
        key = (query.asked, query.variant, name)
        if page.tag is None:
            return None
        if page.is_past:
            found: tuple[str, bytes] | None = self._texts.find_page((query.market, query.interval, query.printer, *key))
            return found[1] if found is not None and found[0] == page.tag else None
        return self._texts.kept_body(Topic(query.market, query.interval), query.printer, key, page.tag)

    def _keep_part(self, query: BarQuery, page: PrintedPage, name: str, part: bytes) -> None:
        """Keep a value computed from a page until the page gets another tag."""
        key = (query.asked, query.variant, name)
        if page.tag is None or not part:
            return
        if page.is_past:
            name_of_part = (query.market, query.interval, query.printer, *key)
            self._texts.keep_page(name_of_part, (page.tag, part), len(part) + _PAGE_OVERHEAD)
        else:
            self._texts.keep_body(Topic(query.market, query.interval), query.printer, key, page.tag, part)

    async def printed(
        self, market: MarketKey, interval: Interval, printer: Printer, asked: HistoryRequest, known: str = ""
    ) -> PrintedPage:
        """Return the requested bars, oldest first and printed; without the texts if `known` contains their ETag."""
        page = await self._printed_in_turns(market, interval, printer, asked, known)
        if page is None and self._is_tail(market, interval, asked):
            await self._readable(self._live.load_bars(market, interval, asked.limit + 1, 0.0))
            page = await self._printed_in_turns(market, interval, printer, asked, known)
        if page is None:
            page = await self._readable(self._past.read(*self._of_past(market, interval, printer, asked), known))
        both = None if page is not None else self._split(market, interval, asked)
        if both is not None:
            older = await self._readable(self._past.read(*self._of_past(market, interval, printer, both[0]), ""))
            page = older and await self._printed_in_turns(market, interval, printer, asked, known)
        if page is None:
            async with self._unshared:
                page = await self._join_unshared(market, interval, printer, asked)
                if page is not None:
                    return page
                read = await self.read_page(market, interval, asked)
                # If reading has shown that memory has all bars of the page, this answer gets the tag of later ones.
                page = await self._printed_in_turns(market, interval, printer, asked, known)
                page = page or await self._print(read, printer)
        return page

    async def _printed_in_turns(
        self, market: MarketKey, interval: Interval, printer: Printer, asked: HistoryRequest, known: str
    ) -> PrintedPage | None:
        """Do the same as `printed_now`, but encode all bars that lack their texts."""
        page = self.printed_now(market, interval, printer, asked, known)

        def encode(number: int) -> bool:
            nonlocal page
            if number == _MOST_SLICES or not self._is_in_memory(market, interval, printer, asked):
                return True
            page = self.printed_now(market, interval, printer, asked, known)
            return page is not None

        if page is None and self._is_in_memory(market, interval, printer, asked):
            await self._turns.run(encode)
        return page

    async def _join_unshared(
        self, market: MarketKey, interval: Interval, printer: Printer, asked: HistoryRequest
    ) -> PrintedPage | None:
        """Return a page after reading only the bars that are older than memory; None if memory has changed meanwhile.

        It serves bars that are not final, which are not cached.
        """
        both, version, newer = self._split(market, interval, asked), self._live.past_version(market), None
        read = None if both is None else await self.read_page(market, interval, both[0])
        if both is None or read is None or not read.bars:
            return None
        older = await self._print(read, printer)

        def encode(number: int) -> bool:
            nonlocal newer
            now = self._split(market, interval, asked)
            if now is None or now[0] != both[0] or self._live.past_version(market) != version:
                return True
            newer = self._print_span(market, interval, printer, now[1], "")
            return newer is not None or number == _MOST_SLICES

        await self._turns.run(encode)
        is_full = len(both[1].chosen) == asked.limit
        return None if newer is None else join_pages(older, newer, printer.separator, "", is_full=is_full)

    async def _print(self, page: Page, printer: Printer) -> PrintedPage:
        parts = await encode_slices(page.bars, lambda bars: print_bars(bars, printer), self._clock)
        return join_parts(page, printer, parts)

    async def read_page(self, market: MarketKey, interval: Interval, asked: HistoryRequest) -> Page:
        """Return the requested bars, oldest first.

        The forming bar is included. A bar that begins before the first stored minute is not, because it would be
        incomplete.
        """
        span = self._in_memory(market, interval, asked)
        if span is not None:
            return self._page_of(market, interval, span)
        return await self._readable(self._joined_page(market, interval, *asked))

    async def walk_pages(self, market: MarketKey, interval: Interval, asked: HistoryRequest) -> AsyncIterator[Page]:
        """Yield all bars of a range, whatever the limit is, page by page, oldest first; at least one page."""
        asked = asked._replace(limit=MOST_BARS, newest_first=False)
        while True:
            page = await self.read_page(market, interval, asked)
            yield page
            if not page.has_more:
                return
            asked = asked._replace(start_ms=page.bars[-1].open_ms + interval.ms)

    async def read_history(
        self, market: MarketKey, interval: Interval, before_ms: int, limit: int
    ) -> tuple[Sequence[Candle], bool]:
        """Return the last `limit` bars with `open_ms < before_ms`, oldest first, and True if no older bars exist."""
        page = await self.read_page(market, interval, HistoryRequest(limit, end_ms=before_ms))
        return page.bars, not page.has_more

    async def read_day(self, market: MarketKey, intervals: Iterable[Interval]) -> tuple[Candle, Candle | None] | None:
        """Return the current UTC day so far as one bar, and the last bar before it.

        The day is that of the newest bar, folded from the longest of `intervals` that fits.

        Returns:
            None if no bars exist.
        """
        interval = day_interval(intervals)
        newest = await self.read_page(market, interval, HistoryRequest(1))
        if not newest.bars:
            return None
        day_ms = DAY.floor(newest.bars[0].open_ms)
        today = await self.read_page(market, interval, HistoryRequest(DAY.ms // interval.ms, day_ms))
        before = await self.read_page(market, interval, HistoryRequest(1, end_ms=day_ms))
        return fold(today.bars, day_ms), before.bars[0] if before.bars else None

    # ------------------------------------------------------------ in memory

    def _of_past(
        self, market: MarketKey, interval: Interval, printer: Printer, asked: HistoryRequest
    ) -> tuple[Topic, Printer, HistoryRequest, int]:
        times = self._live.newest_times(market, interval, _ALL)
        return Topic(market, interval), printer, asked, self._final_until_ms(market, interval, times)

    def _in_memory(self, market: MarketKey, interval: Interval, asked: HistoryRequest) -> _Span | None:
        """Return the bars of a page if memory has them all and it is known if there are more; else None."""
        limit, start_ms, end_ms, newest_first = asked
        times = self._live.newest_times(market, interval, _ALL)
        if not times:
            return None
        first, stop = bisect_left(times, start_ms), bisect_left(times, end_ms)
        count = max(stop - first, 0)
        is_lasting = start_ms >= times[0] or (newest_first and count > limit)
        if not is_lasting and not self._begins_with(market, interval, times):
            return None
        if newest_first:
            first = stop - min(count, limit)
        else:
            stop = first + min(count, limit)
            if count > limit:
                end_ms = times[stop - 1] + interval.ms
        return _Span(times, first, stop, end_ms, count > limit, is_lasting)

    def _is_in_memory(self, market: MarketKey, interval: Interval, printer: Printer, asked: HistoryRequest) -> bool:
        """Return True if `printed_now` needs nothing but more passes."""
        if printer.cares and self._live.is_behind(market):
            return False
        if self._in_memory(market, interval, asked) is not None:
            return True
        both = self._split(market, interval, asked)
        older = None if both is None else self._past.find(*self._of_past(market, interval, printer, both[0]), "")
        return older is not None

    def _split(
        self, market: MarketKey, interval: Interval, asked: HistoryRequest
    ) -> tuple[HistoryRequest, _Span] | None:
        """Return the part of a page that is older than memory, and the bars in memory; None if it has only one part."""
        limit, start_ms, end_ms, newest_first = asked
        times = self._live.newest_times(market, interval, _ALL)
        if not times or not newest_first or not start_ms < times[0] < end_ms:
            return None
        stop = bisect_left(times, end_ms)
        if stop > limit:
            return None
        # if memory fills the page, the answer still says if there are older bars
        older = HistoryRequest(max(limit - stop, 1), start_ms, times[0])
        return older, _Span(times, 0, stop, end_ms, False, True)

    def _begins_with(self, market: MarketKey, interval: Interval, times: Sequence[int]) -> bool:
        """Return True if no bars older than these exist, according to a recent read of the store."""
        known = self._begins.get((market, interval))
        if known is None or known[:2] != (times[0], self._live.past_version(market)):
            return False
        return self._clock.monotonic() < known.until

    def _page_of(self, market: MarketKey, interval: Interval, span: _Span) -> Page:
        position, chosen = self._live.feed_position(market), span.chosen
        is_final, _ = self._finality(market, interval, span)
        bars = self._live.bars_between(market, interval, chosen[0], chosen[-1] + 1) if chosen else []
        current = self._with_finality(market, interval, bars)
        return Page(current, span.has_more, is_final, position)

    def _finality(self, market: MarketKey, interval: Interval, span: _Span) -> tuple[bool, bool]:
        """Return two flags: True if the page is final, and True if its last bar is final."""
        is_range_final, length_ms = self._live.is_range_final, interval.ms
        if span.first == span.stop:
            return span.end_ms <= self._final_until_ms(market, interval, span.times), False
        first_ms, last_ms = span.times[span.first], span.times[span.stop - 1]
        last_final = is_range_final(market, last_ms, last_ms + length_ms)
        if not last_final or span.end_ms > self._final_until_ms(market, interval, span.times):
            return False, last_final
        all_final = is_range_final(market, first_ms, last_ms + length_ms) or all(
            is_range_final(market, at_ms, at_ms + length_ms) for at_ms in span.chosen
        )
        return all_final, True

    # ------------------------------------------------------------ with the store

    async def _readable(self, reading: Awaitable[T]) -> T:
        try:
            return await reading
        except StoreRejected as error:  # not open yet, or broken: for a client it is unavailable
            raise Unavailable(str(error)) from error

    def _is_tail(self, market: MarketKey, interval: Interval, asked: HistoryRequest) -> bool:
        """Return True if the request is for the newest bars, and for at most as many as a room may keep in memory."""
        newest = self._live.newest_times(market, interval, 1)
        return bool(newest) and asked.newest_first and asked.limit <= MOST_BARS and asked.end_ms > newest[0]

    async def _joined_page(
        self, market: MarketKey, interval: Interval, limit: int, start_ms: int, end_ms: int, newest_first: bool
    ) -> Page:
        asked_ms, past_version = start_ms, self._live.past_version(market)
        since_ms = await self._stored.served_from(market)
        position = self._live.feed_position(market)
        if since_ms is None:
            return Page((), False, False, position)
        start_ms, end_ms = max(start_ms, since_ms), min(end_ms, END_OF_TIME_MS)
        times = self._live.newest_times(market, interval, _ALL)
        final_until_ms = self._final_until_ms(market, interval, times)
        memory_from_ms = times[0] if times else END_OF_TIME_MS  # all bars from this one on are in memory
        in_memory: list[Candle] = []
        if memory_from_ms < end_ms:
            in_memory = self._live.bars_between(market, interval, max(start_ms, memory_from_ms), end_ms)
        read = self._read_last if newest_first else self._read_first
        bars = await read(market, interval, start_ms, min(end_ms, memory_from_ms), in_memory, limit + 1)
        has_more = len(bars) > limit
        is_whole = asked_ms <= since_ms and not (newest_first and has_more)
        if is_whole and bars and bars[0].open_ms == memory_from_ms:
            until = self._clock.monotonic() + _TRUSTED_S
            self._begins[market, interval] = _Beginning(bars[0].open_ms, past_version, until)
        if has_more:
            bars = bars[-limit:] if newest_first else bars[:limit]
            end_ms = end_ms if newest_first else bars[-1].open_ms + interval.ms
        current = self._with_finality(market, interval, bars)
        is_final = end_ms <= final_until_ms and all(bar.final for bar in current)
        return Page(current, has_more, is_final, position)

    async def _read_last(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, in_memory: list[Candle], count: int
    ) -> list[Candle]:
        """Return the last `count` of the stored bars in `[start_ms, end_ms)` and the newer bars `in_memory`."""
        missing = count - len(in_memory)
        if missing <= 0 or start_ms >= end_ms:
            return in_memory[-count:]
        older = await self._stored.read_bars(market, interval, end_ms, missing)
        return [*(bar for bar in older if bar.open_ms >= start_ms), *in_memory]

    async def _read_first(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, in_memory: list[Candle], count: int
    ) -> list[Candle]:
        """Return the first `count` of the stored bars in `[start_ms, end_ms)` and the newer bars `in_memory`.

        Without gaps they all lie in the first stretch. Later stretches grow, so that a long gap costs few reads. A
        stretch with more bars than were read is read again in smaller parts.
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
        return [*found, *in_memory][:count]

    def _with_finality(self, market: MarketKey, interval: Interval, bars: Sequence[Candle]) -> tuple[Candle, ...]:
        """Return the bars with their current finality."""
        found: list[Candle] = []
        for first in range(0, len(bars), BARS_PER_TURN):
            some = bars[first : first + BARS_PER_TURN]
            all_final = self._live.is_range_final(market, some[0].open_ms, some[-1].open_ms + interval.ms)
            states = ((bar, all_final or self._live.is_final(market, interval, bar)) for bar in some)
            found += [bar if bar.final == final else bar._replace(final=final) for bar, final in states]
        return tuple(found)

    def _final_until_ms(self, market: MarketKey, interval: Interval, times: Sequence[int]) -> int:
        """Return the end of the newest final bar in memory, UTC epoch ms; 0 if there is none."""
        is_range_final, length_ms = self._live.is_range_final, interval.ms
        return next(
            (at_ms + length_ms for at_ms in reversed(times) if is_range_final(market, at_ms, at_ms + length_ms)), 0
        )
