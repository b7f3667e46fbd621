"""Aligned pages of the stored past: each read from the store once, encoded, and shared by all ranges that cover it."""

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from candled.model import END_OF_TIME_MS, MarketKey, Topic
from candled.rooms.encoded_bars import EncodedBarCache, EncodedBars, Printer
from candled.store.history import HistoryReader

from .queries import MOST_BARS, HistoryRequest, PrintedPage

if TYPE_CHECKING:
    from candled.aggregate.live_bars import LiveBars

_PAGE_OVERHEAD = 1500  # bytes of a kept page besides its texts
_ALL = 10**6  # more than memory holds
_numbers = count(1)


class _PastPage(NamedTuple):
    """The bars of one aligned page that begin before `end_ms`, all of them final."""

    bars: EncodedBars
    end_ms: int  # less than the page's end if memory begins within the page
    past_version: int
    number: int  # unique in this process


class _Missing(NamedTuple):
    """A page that has to be read first."""

    number: int


class PastPages:
    """Makes answers older than memory from encoded pages of up to 1,000 bars.

    A page is valid until the market's past changes. Every method that reads raises what the store raises.
    """

    def __init__(self, live: "LiveBars", stored: HistoryReader, texts: EncodedBarCache, tag_name: str) -> None:
        self._live = live
        self._stored = stored
        self._texts = texts
        self._tag_name = tag_name
        # by market: the version of its past, and the time from which its bars are served
        self._served_from: dict[MarketKey, tuple[int, int | None]] = {}

    def find(
        self, topic: Topic, printer: Printer, asked: HistoryRequest, final_until_ms: int, known: str
    ) -> PrintedPage | None:
        """Return a page of bars if its bars are final, older than memory, and cached; without texts if it is `known`.

        `final_until_ms` is the end of the newest final bar in memory.
        """
        made = self._make(topic, printer, asked, final_until_ms, known, {})
        return made if isinstance(made, PrintedPage) else None

    async def read(
        self, topic: Topic, printer: Printer, asked: HistoryRequest, final_until_ms: int, known: str
    ) -> PrintedPage | None:
        """Do the same as `find`, but read pages that are not cached; None if the bars must be read without pages."""
        await self._read_served_from(topic.market)
        pages: dict[int, _PastPage] = {}  # so that a small cache cannot drop one before the next is read
        for _ in range(_most_pages(asked)):
            made = self._make(topic, printer, asked, final_until_ms, known, pages)
            if not isinstance(made, _Missing):
                return made
            page = await self._read_page(topic, printer, made.number)
            if page is None:
                return None
            pages[made.number] = page
        made = self._make(topic, printer, asked, final_until_ms, known, pages)
        return made if isinstance(made, PrintedPage) else None

    # ------------------------------------------------------------ from pages

    def _make(
        self,
        topic: Topic,
        printer: Printer,
        asked: HistoryRequest,
        final_until_ms: int,
        known: str,
        read: dict[int, _PastPage],
    ) -> PrintedPage | _Missing | None:
        """Return the answer, or the page that it needs first, or None if it cannot be made from pages."""
        found = self._collect(topic, printer, asked, read)
        if found is None or isinstance(found, _Missing):
            return found
        used, times = found
        limit, _, end_ms, newest_first = asked
        has_more = len(times) > limit
        times = times[-limit:] if newest_first else times[:limit]
        if has_more and not newest_first:
            end_ms = times[-1] + topic.interval.ms
        if not times or end_ms > final_until_ms:
            return None
        if not self._live.is_range_final(topic.market, times[0], times[-1] + topic.interval.ms):
            return None
        position = self._live.feed_position(topic.market)
        versions = (page.number for page in used)
        values = ("past", *versions, times[0], times[-1], int(has_more), *((printer.positioned and position) or ()))
        tag = f'"{self._tag_name}.{".".join(map(str, values))}"'
        columns: Sequence[bytes] = ()
        if tag not in known:
            parts = [page.bars.columns(times[0], times[-1] + 1) for page in used]
            columns = [b"".join(texts)[:-1] for texts in zip(*parts, strict=True)]
        return PrintedPage(columns, times[0], times[-1], True, 0, has_more, True, position, tag, is_past=True)

    def _collect(
        self, topic: Topic, printer: Printer, asked: HistoryRequest, read: dict[int, _PastPage]
    ) -> tuple[list[_PastPage], list[int]] | _Missing | None:
        """Return the pages of a range, up to the one with a bar beyond the limit, and the times of their bars in it."""
        limit, start_ms, end_ms, newest_first = asked
        version, served_from_ms = self._served_from.get(topic.market, (-1, None))
        memory_from_ms = self._memory_from_ms(topic)
        if version != self._live.past_version(topic.market) or served_from_ms is None or memory_from_ms is None:
            return None
        is_cut = end_ms > memory_from_ms  # the range continues in memory
        start_ms, end_ms = max(start_ms, served_from_ms), min(end_ms, memory_from_ms)
        if start_ms >= end_ms or (newest_first and is_cut):
            return None
        length_ms = MOST_BARS * topic.interval.ms
        numbers = range(start_ms // length_ms, (end_ms - 1) // length_ms + 1)
        used: list[_PastPage] = []
        times: list[int] = []
        for number in reversed(numbers) if newest_first else numbers:
            if len(used) == _most_pages(asked):  # gaps of years: the store finds the bars behind them faster
                return None
            until_ms = min((number + 1) * length_ms, end_ms)
            page = read.get(number) or self._texts.find_page((topic, printer.name, number))
            if page is None or page.past_version != version or page.end_ms < until_ms:
                return _Missing(number)
            found = page.bars.times_between(start_ms, until_ms)
            used, times = ([page, *used], [*found, *times]) if newest_first else ([*used, page], [*times, *found])
            if len(times) > limit:
                return used, times
        return None if is_cut else (used, times)

    def _memory_from_ms(self, topic: Topic) -> int | None:
        """Return the time from which all bars are in memory; None if none are."""
        times = self._live.newest_times(*topic, _ALL)
        return times[0] if times else None

    # ------------------------------------------------------------ from the store

    async def _read_served_from(self, market: MarketKey) -> None:
        version = self._live.past_version(market)
        if self._served_from.get(market, (-1, None))[0] != version:
            self._served_from[market] = version, await self._stored.served_from(market)

    async def _read_page(self, topic: Topic, printer: Printer, number: int) -> _PastPage | None:
        """Read and encode a page; return None if not all of its bars are final."""
        market, interval = topic
        version, served_from_ms = self._served_from[market]
        memory_from_ms = self._memory_from_ms(topic) or END_OF_TIME_MS
        start_ms = max(number * MOST_BARS * interval.ms, served_from_ms or 0)
        end_ms = min((number + 1) * MOST_BARS * interval.ms, memory_from_ms)
        rows = await self._stored.read_texts_between(market, interval, start_ms, end_ms)
        if version != self._live.past_version(market) or not self._live.is_range_final(market, start_ms, end_ms):
            return None
        key = topic, printer.name, number
        page: _PastPage | None = self._texts.find_page(key)
        if page is None or page.past_version != version or page.end_ms < end_ms:  # not read by another request
            page = _PastPage(EncodedBars(topic, printer), end_ms, version, next(_numbers))
            page.bars.append_final(rows)  # all bars, which takes as long as `BARS_PER_TURN` bars in memory
            self._texts.keep_page(key, page, page.bars.size_bytes + _PAGE_OVERHEAD)
        return page


def _most_pages(asked: HistoryRequest) -> int:
    return asked.limit // MOST_BARS + 3
