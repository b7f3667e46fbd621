"""Every bar exactly once: over the seam between memory and store, over gaps, in both directions, to a clear end."""

import asyncio
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.api.pages import BarReader
from candled.api.queries import HistoryRequest
from candled.model import DEFAULT_INTERVALS, END_OF_TIME_MS, MINUTE, MINUTE_MS, BarTexts, fold
from candled.rooms.encoded_bars import EncodedBarCache
from tests.api.stage import BTC, open_stage
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS, minute


class StoredBars:
    """Bars of one interval, the newest of them in memory and all but the running ones in store."""

    def __init__(self, bars, *, in_memory, unstored, complete_from):
        self.every = bars
        self.in_memory = in_memory
        self.stored = bars[: len(bars) - unstored]
        self.complete_ms = complete_from
        self.most_rows = 0
        self.reads = 0

    def newest_bars(self, key, interval, count):
        if self.complete_ms is None:
            return []
        shown = [bar for bar in self.every[len(self.every) - self.in_memory :] if bar.open_ms >= self.complete_ms]
        return shown[-count:]

    def newest_times(self, key, interval, count):
        return [bar.open_ms for bar in self.newest_bars(key, interval, count)]

    def get_bar(self, key, interval, open_ms):
        return next((bar for bar in self.newest_bars(key, interval, 10**6) if bar.open_ms == open_ms), None)

    def bars_between(self, key, interval, start_ms, end_ms):
        return [bar for bar in self.newest_bars(key, interval, 10**6) if start_ms <= bar.open_ms < end_ms]

    def past_version(self, key):
        return 0

    def is_final(self, key, interval, bar):
        return bar.final

    def is_range_final(self, key, start_ms, end_ms):
        return all(bar.final for bar in self.every if start_ms <= bar.open_ms < end_ms)

    def feed_position(self, key):
        return None

    def _answer(self, rows):
        self.reads += 1
        self.most_rows = max(self.most_rows, len(rows))
        return tuple(rows)

    async def read_bars(self, market, interval, before_ms, limit):
        return self._answer([bar for bar in self.stored if bar.open_ms < before_ms][-limit:])

    async def read_bars_between(self, market, interval, start_ms, end_ms):
        return self._answer([bar for bar in self.stored if start_ms <= bar.open_ms < end_ms])

    async def read_texts_between(self, market, interval, start_ms, end_ms):
        return BarTexts.of(await self.read_bars_between(market, interval, start_ms, end_ms))

    async def served_from(self, market):
        return self.complete_ms


def pages_of(stored_bars: StoredBars) -> BarReader:
    return BarReader(stored_bars, stored_bars, EncodedBarCache(), ManualClock(0))


@st.composite
def stored_bars_lists(draw):
    """Minutes with gaps of all lengths; some of the newest only in memory."""
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 1, 2, 3, 50, 3000]), min_size=1, max_size=60))
    numbers, at = [], 0
    for step in steps:
        numbers.append(at)
        at += step
    bars = [minute(number, final=True) for number in numbers]
    in_memory = draw(st.integers(0, len(bars)))
    unstored = draw(st.integers(0, in_memory))
    complete_from = MONDAY_MS + draw(st.sampled_from([0, 0, 7, numbers[-1], numbers[-1] + 1])) * MINUTE_MS
    return StoredBars(bars, in_memory=in_memory, unstored=unstored, complete_from=complete_from)


RANGES = st.tuples(st.integers(-5, 400), st.integers(-5, 400)) | st.just((-5, 10**9))


@pytest.mark.slow
@given(stored_bars_lists(), st.integers(1, 9), RANGES)
def test_paging_back_gives_every_bar_of_the_range_once_and_then_ends(stored_bars, limit, span):
    start_ms, end_ms = (MONDAY_MS + number * MINUTE_MS for number in span)
    wanted = [bar for bar in stored_bars.every if max(start_ms, stored_bars.complete_ms) <= bar.open_ms < end_ms]

    async def read():
        pages, found, before_ms = pages_of(stored_bars), [], end_ms
        while True:
            page = await pages.read_page(BTC, MINUTE, HistoryRequest(limit, start_ms, before_ms))
            assert len(page.bars) <= limit
            found = [*page.bars, *found]
            if not page.has_more:
                return found
            before_ms = page.bars[0].open_ms

    assert asyncio.run(read()) == wanted
    assert stored_bars.most_rows <= limit + 1


@pytest.mark.slow
@given(stored_bars_lists(), st.integers(1, 9), RANGES)
def test_paging_forward_gives_every_bar_of_the_range_once_and_then_ends(stored_bars, limit, span):
    start_ms, end_ms = (MONDAY_MS + number * MINUTE_MS for number in span)
    wanted = [bar for bar in stored_bars.every if max(start_ms, stored_bars.complete_ms) <= bar.open_ms < end_ms]

    async def read():
        pages, found, from_ms = pages_of(stored_bars), [], start_ms
        while True:
            page = await pages.read_page(BTC, MINUTE, HistoryRequest(limit, from_ms, end_ms, newest_first=False))
            assert len(page.bars) <= limit
            found += page.bars
            if not page.has_more:
                return found
            from_ms = page.bars[-1].open_ms + MINUTE_MS

    assert asyncio.run(read()) == wanted
    assert stored_bars.most_rows <= limit + 1


def test_a_gap_of_years_and_thin_trading_cost_few_reads():
    numbers = [*range(10), *range(2_000_000, 2_000_000 + 400_000, 400), 5_000_000]
    stored_bars = StoredBars(
        [minute(number, final=True) for number in numbers], in_memory=1, unstored=0, complete_from=MONDAY_MS
    )
    page = asyncio.run(pages_of(stored_bars).read_page(BTC, MINUTE, HistoryRequest(1000, newest_first=False)))
    assert (len(page.bars), page.has_more) == (1000, True)
    assert stored_bars.reads < 25


def test_without_complete_history_there_is_nothing():
    stored_bars = StoredBars([minute(0)], in_memory=1, unstored=0, complete_from=MONDAY_MS)
    stored_bars.complete_ms = None
    page = asyncio.run(pages_of(stored_bars).read_page(BTC, MINUTE, HistoryRequest(5)))
    assert (page.bars, page.has_more, page.is_final) == ((), False, False)


@pytest.mark.parametrize(
    ("end_ms", "expected_final"),
    [
        (MONDAY_MS + 3 * MINUTE_MS, True),
        (MONDAY_MS + 4 * MINUTE_MS, False),  # the running minute
        (END_OF_TIME_MS, False),
    ],
)
def test_a_page_is_final_up_to_the_first_bar_that_is_not_final(end_ms, expected_final):
    bars = [*(minute(number, final=True) for number in range(3)), minute(3)]
    stored_bars = StoredBars(bars, in_memory=2, unstored=1, complete_from=MONDAY_MS)
    page = asyncio.run(pages_of(stored_bars).read_page(BTC, MINUTE, HistoryRequest(2, end_ms=end_ms)))
    assert page.is_final is expected_final


def test_a_page_cut_by_its_limit_is_final_though_its_range_is_not():
    bars = [*(minute(number, final=True) for number in range(3)), minute(3)]
    stored_bars = StoredBars(bars, in_memory=2, unstored=1, complete_from=MONDAY_MS)
    page = asyncio.run(pages_of(stored_bars).read_page(BTC, MINUTE, HistoryRequest(2, newest_first=False)))
    assert (page.is_final, page.has_more) == (True, True)


# ---------------------------------------------------------------- over real memory and a real store


@pytest.mark.slow
async def test_from_now_to_the_first_candle_over_memory_and_store(tmp_path):
    """1,500 minutes with gaps: more than memory holds of them, and a running one that no store has."""
    numbers = [number for number in range(1500) if number % 97 and not 700 <= number < 760]
    minutes = [minute(number, volume=str(number + 1), final=True) for number in numbers]
    async with open_stage(tmp_path, {BTC: minutes}) as one:
        running = minute(1500, volume="0.5")
        one.push(running)
        everything = [*minutes, running]
        for interval in DEFAULT_INTERVALS:
            buckets = {}
            for candle in everything:
                buckets.setdefault(interval.floor(candle.open_ms), []).append(candle)
            wanted = [fold(parts, open_ms).values for open_ms, parts in sorted(buckets.items())]
            for limit in (7, 333):
                found, before_ms, end = [], END_OF_TIME_MS, False
                while not end:
                    bars, end = await one.pages.read_history(BTC, interval, before_ms, limit)
                    found = [*bars, *found]
                    before_ms = found[0].open_ms if found else 0
                assert [bar.values for bar in found] == wanted
            walked = [bar async for page in one.pages.walk_pages(BTC, interval, HistoryRequest(1)) for bar in page.bars]
            assert [bar.values for bar in walked] == wanted
        assert sum(bar.volume for bar in walked) == sum(n + 1 for n in numbers) + Decimal("0.5")


@pytest.mark.slow
async def test_the_same_question_asked_by_many_is_one_read(tmp_path, monkeypatch):
    async with open_stage(tmp_path, 3000) as one:
        reads = []
        real = one.store.read_bars
        monkeypatch.setattr(one.store, "read_bars", lambda *args, **more: reads.append(args) or real(*args, **more))
        pages = await asyncio.gather(*(one.pages.read_page(BTC, MINUTE, HistoryRequest(2500)) for _ in range(50)))
        assert {len(page.bars) for page in pages} == {2500}
        assert len(reads) == 1
