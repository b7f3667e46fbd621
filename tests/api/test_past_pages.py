"""Ranges of the past are joined from aligned pages, each of them read and encoded once."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.api import past_pages
from candled.api.past_pages import PastPages
from candled.api.queries import HistoryRequest
from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS, Topic
from candled.rooms.encoded_bars import EncodedBarCache, Printer
from tests.api.stage import BTC
from tests.api.test_pages import RANGES, StoredBars, stored_bars_lists
from tests.rows import MONDAY_MS, minute

SIZE = 10  # bars of a page here
TOPIC = Topic(BTC, MINUTE)
TIMES = Printer("times", lambda bar, _: (str(bar.open_ms),), print_texts=lambda bars: (list(map(str, bars.times)),))
TWICE = Printer(
    "twice",
    lambda bar, _: (str(bar.open_ms), f"{bar.close}"),
    columns=2,
    print_texts=lambda bars: (list(map(str, bars.times)), bars.closes),
)
FIRST = -MONDAY_MS // MINUTE_MS % SIZE  # the number of the first minute that begins a page


@pytest.fixture(autouse=True, scope="module")
def small_pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(past_pages, "MOST_BARS", SIZE)
        yield


class Past(StoredBars):
    """Dense minutes, the newest 50 of them in memory."""

    def __init__(self, count: int = 500) -> None:
        bars = [minute(number, final=True) for number in range(count)]
        super().__init__(bars, in_memory=50, unstored=0, complete_from=MONDAY_MS)
        self.version = 0
        self.unsure = range(0)
        self.pages = PastPages(self, self, EncodedBarCache(), "x")

    def past_version(self, key):
        return self.version

    def is_range_final(self, key, start_ms, end_ms):
        return not any(start_ms <= MONDAY_MS + number * MINUTE_MS < end_ms for number in self.unsure)

    def ask(self, first: int, stop: int | None, limit: int, printer: Printer = TIMES, *, newest_first: bool = True):
        end_ms = END_OF_TIME_MS if stop is None else MONDAY_MS + stop * MINUTE_MS
        asked = HistoryRequest(limit, MONDAY_MS + first * MINUTE_MS, end_ms, newest_first)
        return asyncio.run(self.pages.read(TOPIC, printer, asked, END_OF_TIME_MS, ""))


@pytest.mark.slow
@given(stored_bars_lists(), st.integers(1, 25), RANGES, st.booleans())
def test_a_range_is_the_pages_it_covers(stored_bars, limit, span, newest_first):
    start_ms, end_ms = (MONDAY_MS + number * MINUTE_MS for number in span)
    asked = HistoryRequest(limit, start_ms, end_ms, newest_first)
    texts = EncodedBarCache()
    pages = PastPages(stored_bars, stored_bars, texts, "x")
    made = asyncio.run(pages.read(TOPIC, TIMES, asked, END_OF_TIME_MS, ""))
    if made is None:
        return
    bars = [bar.open_ms for bar in stored_bars.every if max(start_ms, stored_bars.complete_ms) <= bar.open_ms < end_ms]
    wanted = bars[-limit:] if newest_first else bars[:limit]
    assert made.columns == [",".join(map(str, wanted)).encode()]
    assert (made.first_ms, made.last_ms, made.has_more) == (wanted[0], wanted[-1], len(bars) > limit)
    assert wanted[-1] < stored_bars.newest_times(BTC, MINUTE, 10**6)[0]
    assert stored_bars.most_rows <= SIZE
    reads = stored_bars.reads
    again = pages.find(TOPIC, TIMES, asked, END_OF_TIME_MS, str(made.tag))
    assert (again.tag, again.columns, stored_bars.reads) == (made.tag, (), reads)


@pytest.mark.parametrize(
    ("first", "stop", "limit", "newest_first", "found", "pages"),
    [
        (FIRST, FIRST + 10, 10, True, range(FIRST, FIRST + 10), 1),  # exactly one page
        (FIRST + 5, FIRST + 15, 10, True, range(FIRST + 5, FIRST + 15), 2),  # over a boundary
        (FIRST + 5, None, 10, False, range(FIRST + 5, FIRST + 15), 2),
        (0, FIRST + 29, 25, True, range(FIRST + 4, FIRST + 29), 3),
        (0, 450, 15, True, range(435, 450), 2),  # up to the first bar in memory, within a page
        (440, 451, 5, True, None, 0),  # a part is in memory
        (445, None, 10, False, None, 1),
    ],
)
def test_a_dense_range_needs_its_pages_only(first, stop, limit, newest_first, found, pages):
    past = Past()
    made = past.ask(first, stop, limit, newest_first=newest_first)
    times = None if made is None else [int(text) for text in made.columns[0].split(b",")]
    assert times == (None if found is None else [MONDAY_MS + number * MINUTE_MS for number in found])
    assert past.reads == pages


@pytest.mark.slow
def test_overlapping_ranges_of_all_limits_share_pages_for_each_dialect():
    past = Past()
    for printer, reads in ((TIMES, 10), (TWICE, 20)):
        for first in range(FIRST, FIRST + 80, 3):
            for limit in (1, 7, 20):
                assert past.ask(first, first + 20, limit, printer) is not None
        assert past.reads == reads


def test_pages_are_read_again_after_a_change_of_the_past_and_not_kept_before_it_is_final():
    past = Past()
    tag = past.ask(FIRST, FIRST + 20, 20).tag
    past.version += 1
    past.unsure = range(FIRST + 15, FIRST + 16)
    assert past.ask(FIRST, FIRST + 20, 20) is None
    assert past.ask(FIRST + 10, FIRST + 14, 4) is None  # the changed bar is behind it, in the same page
    past.unsure = range(0)
    reads = past.reads
    again = past.ask(FIRST, FIRST + 20, 20)
    assert again.tag != tag
    assert past.reads == reads + 2


def test_a_cache_without_room_for_a_page_answers_too():
    past = Past()
    past.pages = PastPages(past, past, EncodedBarCache(100), "x")
    assert past.ask(FIRST + 5, FIRST + 25, 20) is not None
    assert past.reads == 3
