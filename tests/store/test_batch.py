"""What a batch does to the rows of a store."""

from candled.model import MINUTE_MS, Interval, RangeSet
from candled.store.batch import touched_bars
from tests.store.rows import MONDAY_MS

WEEK_MS = 7 * 1440 * MINUTE_MS


def test_a_change_touches_the_bars_it_lies_in_and_no_others():
    five_minutes = Interval.parse("5m")
    changed = RangeSet([(0, 300_000), (840_000, 960_000)])
    assert list(touched_bars(changed, five_minutes)) == [(0, 300_000), (600_000, 1_200_000)]


def test_a_minute_on_sunday_touches_the_week_that_ends_then():
    changed = RangeSet([(MONDAY_MS - MINUTE_MS, MONDAY_MS)])
    assert list(touched_bars(changed, Interval.parse("1W"))) == [(MONDAY_MS - WEEK_MS, MONDAY_MS)]
