"""Steps that plugins share: pages of bars, and the rows of a range."""

import asyncio

from hypothesis import example, given
from hypothesis import strategies as st

from candled import Candle, InvalidRow, fetch_bar_pages, rows_within
from candled.model import Interval

M5 = Interval.parse("5m")


def bar(number: int) -> Candle:
    return Candle.parse(number * M5.ms, "1", "1", "1", "1", "1", None, as_of_ms=0, final=True)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 7))
@example(first=0, count=7, page_rows=7)
def test_a_range_is_fetched_in_pages_that_neither_overlap_nor_leave_a_gap(first, count, page_rows):
    asked: list[int] = []

    async def fetch(from_ms: int, until_ms: int) -> list[Candle]:
        numbers = range(from_ms // M5.ms, until_ms // M5.ms)
        assert 0 < len(numbers) <= page_rows
        asked.extend(numbers)
        return [bar(number) for number in reversed(numbers)]

    start_ms, end_ms = first * M5.ms, (first + count) * M5.ms
    found = asyncio.run(fetch_bar_pages(fetch, M5, start_ms, end_ms, page_rows=page_rows))
    assert asked == list(range(first, first + count))
    assert found == [bar(number) for number in asked]


def test_the_rows_of_a_range_begin_with_its_start_and_end_before_its_end():
    unread = InvalidRow(None, "no time")
    rows = [bar(1), bar(2), unread, bar(3), InvalidRow(3 * M5.ms, "no price"), bar(4)]
    assert rows_within(rows, 2 * M5.ms, 3 * M5.ms) == [bar(2), unread]
