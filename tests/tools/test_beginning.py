import pytest

from candled.model import MINUTE, MINUTE_MS, Range
from candled.tools.history_start import EARLIEST_MS, find_any, find_beginning
from tests.tools.exchange import DAY_MS, NOON_MS, at

WIDTH_MS = 180 * MINUTE_MS


class Past:
    """An exchange with every minute since `listed_ms` but those of some outages."""

    def __init__(self, listed_ms: int, *outages: tuple[int, int]) -> None:
        self.listed_ms = listed_ms
        self.outages = outages
        self.questions = 0

    async def ask(self, span: Range) -> int | None:
        assert span.end_ms - span.start_ms <= WIDTH_MS
        self.questions += 1
        open_ms = max(self.listed_ms, span.start_ms)
        for start_ms, end_ms in self.outages:
            if start_ms <= open_ms < end_ms:
                open_ms = end_ms
        return open_ms if open_ms < span.end_ms else None


@pytest.mark.parametrize("age", [0.001, 1, 30.3, 365, 3000, 9000])
async def test_the_beginning_is_found_to_the_minute_in_few_questions(age):
    listed_ms = MINUTE.floor(at(-age))
    past = Past(listed_ms)
    assert await find_beginning(past.ask, EARLIEST_MS, NOON_MS, WIDTH_MS) == listed_ms
    assert past.questions < 35


async def test_a_market_older_than_anything_looked_at_begins_there():
    past = Past(0)
    assert await find_beginning(past.ask, EARLIEST_MS, NOON_MS, WIDTH_MS) == EARLIEST_MS


async def test_an_outage_where_the_halving_looks_is_not_taken_for_the_beginning():
    middle_ms = (EARLIEST_MS + NOON_MS) // 2
    past = Past(middle_ms - 300 * DAY_MS, (middle_ms - DAY_MS // 2, middle_ms + DAY_MS // 2))
    assert await find_beginning(past.ask, EARLIEST_MS, NOON_MS, WIDTH_MS) == past.listed_ms


async def test_a_market_that_has_stopped_is_found():
    past = Past(at(-900), (at(-400), NOON_MS))
    found_ms = await find_any(past.ask, EARLIEST_MS, NOON_MS, WIDTH_MS)
    assert at(-900) <= found_ms < at(-400)


async def test_a_market_that_never_was_is_not_found():
    past = Past(NOON_MS)
    assert await find_any(past.ask, EARLIEST_MS, NOON_MS, WIDTH_MS) is None
    assert past.questions < 35
