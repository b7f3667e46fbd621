"""Days of a market, from their stored minutes and gaps."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.ingest.coverage import Coverage
from candled.model import DAY_MS, MINUTE_MS, Gap, Range
from candled.status.days import CALM, DAYS, FEW, FULL, NONE, SOME, grade_day, join_equal, last_days
from tests.rows import MONDAY_MS

DAY = Range(MONDAY_MS, MONDAY_MS + DAY_MS)


def minutes(first: int, end: int) -> Range:
    return Range(MONDAY_MS + first * MINUTE_MS, MONDAY_MS + end * MINUTE_MS)


def coverage(stored, gaps=(), from_minute: int = 0) -> Coverage:
    known = [
        Gap(start_ms=span.start_ms, end_ms=span.end_ms, reason=reason)
        for reason, first, end in gaps
        for span in [minutes(first, end)]
    ]
    return Coverage(
        present=[minutes(*span) for span in stored],
        known_gaps=known,
        since_ms=None,
        from_ms=minutes(from_minute, 0).start_ms,
        absence="no_trades",
    )


@pytest.mark.parametrize(
    ("stored", "gaps", "from_minute", "level"),
    [
        ([(0, 1440)], [], 0, FULL),
        ([(0, 600), (637, 1440)], [("no_trades", 600, 637)], 0, CALM),
        ([(0, 600), (637, 1440)], [], 0, SOME),
        ([(0, 600), (637, 1440)], [("exchange_outage", 600, 637)], 0, SOME),
        ([(0, 600)], [], 0, FEW),
        ([], [], 0, FEW),
        ([], [("no_trades", 0, 1440)], 0, CALM),
        ([], [("beyond_history", 0, 1440)], 0, NONE),
        ([(600, 1440)], [("beyond_history", 0, 600)], 0, FULL),
        ([(600, 1440)], [], 600, FULL),  # older minutes are not wanted
        ([(2000, 2400)], [], 2000, NONE),
    ],
)
def test_a_day_has_the_level_of_its_missing_minutes(stored, gaps, from_minute, level):
    assert grade_day([coverage(stored, gaps, from_minute)], DAY) == level


def test_a_day_may_belong_to_two_ranges_of_history():
    newer, older = coverage([(600, 1440)], [], 600), coverage([(0, 500)], [], 0)
    assert grade_day([newer, older], DAY) == SOME
    assert grade_day([newer, coverage([(0, 600)])], DAY) == FULL


def test_a_day_may_have_very_many_gaps():
    gaps = [("no_trades", minute, minute + 1) for minute in range(0, 1440, 2)]
    assert grade_day([coverage([(minute, minute + 1) for minute in range(1, 1440, 2)], gaps)], DAY) == CALM


def test_the_last_days_end_before_the_minutes_that_may_not_have_arrived():
    days = last_days(MONDAY_MS + 150_000)
    assert len(days) == DAYS
    assert days[-1] == Range(MONDAY_MS - DAY_MS, MONDAY_MS)  # nothing of today is expected yet
    assert last_days(MONDAY_MS + 180_000)[-1] == minutes(0, 1)


@given(st.text("fqsmn", max_size=200))
def test_runs_contain_the_levels(levels):
    runs = join_equal(levels)
    assert "".join(level * int(count) for level, count in re.findall(r"(\D)(\d+)", runs)) == levels
    assert len(runs) <= max(2 * len(levels), 3)
