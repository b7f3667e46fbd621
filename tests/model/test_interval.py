from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.model import DEFAULT_INTERVALS, MINUTE, Interval, sources

DAY, WEEK = Interval.parse("1D"), Interval.parse("1W")


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("text", ["1m", "3m", "5m", "30m", "90m", "1h", "2h", "12h", "1D", "1W"])
def test_the_text_of_an_interval_is_the_inverse_of_parse(text):
    assert str(Interval.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3D", "cannot be aligned"),
        ("2W", "cannot be aligned"),
        ("7m", "does not divide a day"),
        ("5h", "does not divide a day"),
        ("36h", "cannot be aligned"),
        ("60m", "write 1h"),
        ("24h", "write 1D"),
        ("7D", "write 1W"),
        ("1d", "did you mean 1D"),
        ("1M", "did you mean 1m"),
        ("1s", "unknown unit"),
        ("0m", "expected a number"),
        ("-5m", "expected a number"),
        ("5", "expected a number"),
        ("", "expected a number"),
        ("5m ", "expected a number"),
    ],
)
def test_an_interval_that_cannot_be_is_refused_with_its_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        Interval.parse(text)


@pytest.mark.parametrize(
    ("interval", "at", "start"),
    [
        ("1W", "1970-01-05T00:00", "1970-01-05T00:00"),
        ("1W", "2024-12-31T23:59", "2024-12-30T00:00"),
        ("1W", "2025-01-05T23:59", "2024-12-30T00:00"),
        ("1W", "2024-02-29T12:00", "2024-02-26T00:00"),
        ("1D", "2024-02-29T23:59", "2024-02-29T00:00"),
        ("1D", "2025-03-30T01:30", "2025-03-30T00:00"),
        ("4h", "2025-03-30T23:59", "2025-03-30T20:00"),
        ("90m", "2025-03-30T02:59", "2025-03-30T01:30"),
        ("15m", "2025-03-30T02:59", "2025-03-30T02:45"),
    ],
)
def test_days_begin_at_midnight_utc_and_weeks_on_monday(interval, at, start):
    assert Interval.parse(interval).floor(ms(at)) == ms(start)


@given(st.integers(0, 4 * 10**12), st.sampled_from(DEFAULT_INTERVALS))
def test_a_bar_includes_its_time_and_starts_at_its_own_start(at_ms, interval):
    start_ms = interval.floor(at_ms)
    assert start_ms <= at_ms < start_ms + interval.ms
    assert interval.floor(start_ms) == start_ms


@given(st.integers(0, 4 * 10**12))
def test_every_source_nests_in_its_longer_interval(at_ms):
    for longer, source in sources(DEFAULT_INTERVALS).items():
        assert longer.floor(source.floor(at_ms)) == longer.floor(at_ms)


def test_every_monday_of_a_year_opens_a_week():
    """Promise 28: 366 days, no misplaced bar."""
    start = ms("2024-01-01T00:00")
    for day in range(366):
        moment = datetime.fromtimestamp(WEEK.floor(start + day * DAY.ms + 12_345) / 1000, UTC)
        assert (moment.weekday(), moment.hour, moment.minute) == (0, 0, 0)


def test_intervals_are_folded_from_the_longest_that_nests():
    chain = sources([Interval.parse(text) for text in ("3m", "5m", "15m", "1h", "90m", "1W")])
    assert {str(longer): str(source) for longer, source in chain.items()} == {
        "3m": "1m", "5m": "1m", "15m": "5m", "1h": "15m", "90m": "15m", "1W": "90m",
    }  # fmt: skip
    assert sources([MINUTE]) == {}
