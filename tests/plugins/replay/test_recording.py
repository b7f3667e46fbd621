"""A recording as a pure function of time."""

from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled import MINUTE_MS, Candle
from candled_plugins.replay.exchange import BUNDLED, read_recording
from candled_plugins.replay.recording import DAY_MS, HOUR_MS, WEEK_MS, BadRecording, Recording

MONDAY_MS = 1_751_846_400_000  # 2025-07-07T00:00:00Z
HEADER = "time_ms,open,high,low,close,volume"
RISING = Candle.parse(MONDAY_MS, "100.00", "103.50", "99.10", "102.25", "7.12345", "712.5")


def recording(minutes: int, *, base_ms: int = MONDAY_MS, missing: frozenset[int] = frozenset()) -> Recording:
    """Minute `n` has the volume `n`."""
    rows = [
        f"{base_ms + n * MINUTE_MS},10.5,{12 + n % 7},9.25,{10 + n % 2},{n}.5"
        for n in range(minutes)
        if n not in missing
    ]
    return Recording.parse([HEADER, *rows])


def whole(rec: Recording, open_ms: int) -> Candle | None:
    """The minute once it is over."""
    return rec.minute_at(open_ms, open_ms + MINUTE_MS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minutes", "period_ms"),
    [
        (60, HOUR_MS),
        (119, HOUR_MS),
        (24 * 60 - 1, 23 * HOUR_MS),
        (24 * 60, DAY_MS),
        (3 * 24 * 60 + 7, 3 * DAY_MS),
        (7 * 24 * 60, WEEK_MS),
        (20 * 24 * 60, 2 * WEEK_MS),
    ],
)
def test_the_loop_is_the_most_whole_weeks_or_else_days_or_else_hours(minutes: int, period_ms: int) -> None:
    assert recording(minutes).period_ms == period_ms


def test_less_than_an_hour_cannot_be_looped() -> None:
    with pytest.raises(BadRecording, match="an hour or more to loop over, got 59 minutes"):
        recording(59)


@pytest.mark.slow
@given(at=st.integers(0, 4 * 10**7), loops=st.integers(-3, 3))
def test_a_minute_has_the_values_it_had_a_loop_ago(at: int, loops: int) -> None:
    rec = recording(130)
    open_ms = at * MINUTE_MS
    one, other = whole(rec, open_ms), whole(rec, open_ms + abs(loops) * rec.period_ms)
    assert one is not None
    assert other is not None
    assert one.values == other.values


@given(n=st.integers(0, 119))
def test_the_recorded_time_itself_shows_the_recorded_row(n: int) -> None:
    candle = whole(recording(130), MONDAY_MS + n * MINUTE_MS)
    assert candle is not None
    assert candle.volume == Decimal(f"{n}.5")


def test_after_the_last_minute_of_the_loop_comes_the_first_and_the_rest_is_not_played() -> None:
    rec = recording(130)
    now_ms = MONDAY_MS + 200 * MINUTE_MS
    around = rec.minutes_between(MONDAY_MS + 118 * MINUTE_MS, MONDAY_MS + 122 * MINUTE_MS, now_ms)
    assert [candle.volume for candle in around] == [Decimal(text) for text in ("118.5", "119.5", "0.5", "1.5")]
    assert [candle.open_ms for candle in around] == [MONDAY_MS + n * MINUTE_MS for n in (118, 119, 120, 121)]


def test_a_missing_minute_is_missing_in_every_loop() -> None:
    rec = recording(60, missing=frozenset({7, 8}))
    for loop in (0, 1, 500):
        start_ms = MONDAY_MS + loop * HOUR_MS
        opens = [candle.open_ms for candle in rec.minutes_between(start_ms, start_ms + HOUR_MS, start_ms + HOUR_MS)]
        assert opens == [start_ms + n * MINUTE_MS for n in range(60) if n not in (7, 8)]


def test_the_future_is_not_published() -> None:
    rec = recording(60)
    now_ms = MONDAY_MS + 5 * MINUTE_MS
    assert rec.minutes_between(MONDAY_MS, MONDAY_MS + HOUR_MS, now_ms)[-1].open_ms == now_ms
    assert rec.minute_at(now_ms + MINUTE_MS, now_ms) is None


@pytest.mark.parametrize(
    ("second", "close", "high", "low"),
    [(0, "100.00", "100.00", "100.00"), (20, "99.10", "100.00", "99.10"), (40, "103.50", "103.50", "99.10")],
)
def test_a_rising_minute_goes_to_its_low_and_then_to_its_high(second: int, close: str, high: str, low: str) -> None:
    candle = playing(RISING).minute_at(MONDAY_MS, MONDAY_MS + second * 1000)
    assert candle is not None
    assert (candle.close, candle.high, candle.low) == (Decimal(close), Decimal(high), Decimal(low))


def test_a_falling_minute_goes_to_its_high_first() -> None:
    falling = RISING._replace(open=Decimal("102.25"), close=Decimal("100.00"))
    candle = playing(falling).minute_at(MONDAY_MS, MONDAY_MS + 20_000)
    assert candle is not None
    assert (candle.close, candle.low) == (Decimal("103.50"), Decimal("102.25"))


def test_half_of_the_volume_has_come_in_the_middle_cut_to_the_recorded_digits() -> None:
    candle = playing(RISING).minute_at(MONDAY_MS, MONDAY_MS + 30_000)
    assert candle is not None
    assert (str(candle.volume), str(candle.quote_volume)) == ("3.56172", "356.2")


def playing(candle: Candle) -> Recording:
    numbers = ",".join(format(number, "f") for number in candle.values if number is not None)
    return Recording({candle.open_ms + n * MINUTE_MS: numbers for n in range(60)})


prices = st.decimals("0.0001", "99999", places=4)
volumes = st.decimals("0", "100000", places=8)


@st.composite
def candles(draw: st.DrawFn) -> Candle:
    low, *inner, high = sorted(draw(st.tuples(prices, prices, prices, prices)))
    open_, close = draw(st.permutations(inner))
    return Candle(MONDAY_MS, open_, high, low, close, draw(volumes), draw(st.none() | volumes)).checked()


@pytest.mark.slow
@given(candle=candles(), moments=st.lists(st.integers(0, MINUTE_MS - 1), min_size=2).map(sorted))
def test_growth_is_possible_at_every_moment_never_shrinks_and_stays_within_the_minute(
    candle: Candle, moments: list[int]
) -> None:
    rec = playing(candle)
    versions = [rec.minute_at(MONDAY_MS, MONDAY_MS + moment) for moment in moments]
    for moment, version in zip(moments, versions, strict=True):
        assert version is not None
        version.checked()
        assert version.open == candle.open
        assert version.as_of_ms == MONDAY_MS + moment
        assert candle.low <= version.low <= version.high <= candle.high
        assert version.volume <= candle.volume
        assert (version.quote_volume is None) == (candle.quote_volume is None)
    for earlier, later in pairwise(versions):
        assert earlier is not None
        assert later is not None
        assert later.volume >= earlier.volume
        assert later.high >= earlier.high
        assert later.low <= earlier.low
        assert earlier.quote_volume is None or later.quote_volume >= earlier.quote_volume


@pytest.mark.slow
@given(candle=candles())
def test_growth_ends_in_the_recorded_candle(candle: Candle) -> None:
    rec = playing(candle)
    end_ms = MONDAY_MS + MINUTE_MS
    assert rec.minute_at(MONDAY_MS, end_ms) == candle._replace(as_of_ms=end_ms)
    almost = rec.minute_at(MONDAY_MS, end_ms - 1)
    assert almost is not None
    assert (almost.high, almost.low) == (candle.high, candle.low)


@pytest.mark.slow
@given(steps=st.lists(st.integers(1, 5 * MINUTE_MS), min_size=1, max_size=40), start=st.integers(0, HOUR_MS))
def test_a_listener_of_any_pace_receives_every_minute_to_its_end_and_in_order(steps: list[int], start: int) -> None:
    rec = recording(60, missing=frozenset({30}))
    sent_ms = first_ms = MONDAY_MS + start
    received: list[Candle] = []
    for step in steps:
        received += rec.versions_between(sent_ms, sent_ms + step)
        sent_ms += step
    stamps = [(candle.open_ms, candle.as_of_ms) for candle in received]
    assert stamps == sorted(stamps)
    last = {candle.open_ms: candle for candle in received}
    assert list(last.values()) == rec.minutes_between(first_ms - first_ms % MINUTE_MS, sent_ms + 1, sent_ms)


def test_quote_volume_is_kept_and_a_blank_one_is_absent() -> None:
    rows = [f"{MONDAY_MS + n * MINUTE_MS},1,1,1,1,2,{'' if n == 1 else '3.5'},17" for n in range(60)]
    rec = Recording.parse([HEADER + ",quote_volume,trades", *rows, ""])
    first, second, *_ = rec.minutes_between(MONDAY_MS, MONDAY_MS + HOUR_MS, MONDAY_MS + HOUR_MS)
    assert (first.quote_volume, second.quote_volume) == (Decimal("3.5"), None)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("x,1,1,1,1,1", "line 3: expected a time and decimal numbers"),
        (f"{MONDAY_MS + MINUTE_MS},1,1,1,1", "line 3: expected 6 columns, got 5"),
        (f"{MONDAY_MS + MINUTE_MS},1,2,1,3,1", "line 3: expected low <= open, close <= high"),
        (f"{MONDAY_MS + 1},1,1,1,1,1", "line 3: expected an opening time on a boundary"),
        (f"{MONDAY_MS},1,1,1,1,1", f"line 3: expected a time after {MONDAY_MS}, got {MONDAY_MS}"),
    ],
)
def test_a_bad_row_is_named_by_its_line(line: str, problem: str) -> None:
    with pytest.raises(BadRecording) as caught:
        Recording.parse([HEADER, f"{MONDAY_MS},1,1,1,1,1", line])
    assert caught.value.problems[0].startswith(problem)
    assert len(caught.value.problems) == 1


def test_a_file_full_of_bad_rows_is_not_listed_in_full() -> None:
    with pytest.raises(BadRecording) as caught:
        Recording.parse([HEADER, *["x,1,1,1,1,1"] * 100])
    assert len(caught.value.problems) == 6
    assert caught.value.problems[-1] == "and 95 more bad lines"


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("", "line 1: no column time_ms, open, high, low, close, volume"),
        ("time_ms,open,high,low,close", "line 1: no column volume"),
        (HEADER + ",vwap", "line 1: unknown column vwap"),
    ],
)
def test_a_header_of_another_kind_is_refused(header: str, problem: str) -> None:
    with pytest.raises(BadRecording, match=problem):
        Recording.parse([header, f"{MONDAY_MS},1,1,1,1,1"])


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.csv.gz")), ids=lambda path: path.name)
def test_the_bundled_recordings_are_two_whole_weeks_from_a_monday(path: Path) -> None:
    rec = read_recording(str(path))
    assert rec.period_ms == 2 * WEEK_MS
    assert (rec.base_ms - MONDAY_MS) % WEEK_MS == 0
    minutes = rec.minutes_between(rec.base_ms, rec.base_ms + rec.period_ms, rec.base_ms + rec.period_ms)
    assert len(minutes) == 14 * 24 * 60
    unchecked = read_recording(f"bundled:{path.name.removesuffix('.csv.gz')}")
    assert unchecked.minutes_between(rec.base_ms, rec.base_ms + rec.period_ms, rec.base_ms + rec.period_ms) == minutes
    assert (unchecked.price_decimals, unchecked.volume_decimals) == (rec.price_decimals, rec.volume_decimals)
