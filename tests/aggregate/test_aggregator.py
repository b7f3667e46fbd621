import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.aggregate.aggregator import Aggregator
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, BarChange, Candle, Interval, fold
from tests.rows import MONDAY_MS, minute, recorded

DAY = Interval.parse("1D")
WEEK = Interval.parse("1W")
FIVE = Interval.parse("5m")


def aggregator(capacity: int = 20_000, intervals=DEFAULT_INTERVALS) -> Aggregator:
    return Aggregator(intervals, capacity)


def plain(candles: list[Candle], interval: Interval) -> list[tuple]:
    """Simple decimal arithmetic over rows, written without any of candled's own folding."""
    buckets: dict[int, list[Candle]] = {}
    for candle in candles:
        buckets.setdefault(interval.floor(candle.open_ms), []).append(candle)
    return [
        (
            start,
            rows[0].open,
            max(row.high for row in rows),
            min(row.low for row in rows),
            rows[-1].close,
            sum(Fraction(row.volume) for row in rows),
        )
        for start, rows in sorted(buckets.items())
    ]


def shown(bars: list[Candle]) -> list[tuple]:
    return [(bar.open_ms, bar.open, bar.high, bar.low, bar.close, Fraction(bar.volume)) for bar in bars]


SHIPPED = [
    "btcusdt-week.csv.gz",
    "ethusd-thin-week.csv.gz",
    "bitget-spot-btcusdt.csv.gz",
    "bitget-usdt-futures-ewzusdt.csv.gz",
]
# a folder with more recordings, to be compared as well
MORE = (
    sorted(Path(os.environ["CANDLED_TEST_RECORDINGS"]).glob("*.csv.gz"))
    if "CANDLED_TEST_RECORDINGS" in os.environ
    else []
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHIPPED, *MORE], ids=lambda name: Path(name).name)
def test_bars_of_the_recordings_equal_simple_decimal_arithmetic(name):
    candles = recorded(name)
    bars = aggregator(capacity=len(candles))
    for candle in candles:
        bars.apply_minute(candle)
    for interval in DEFAULT_INTERVALS:
        assert shown(bars.series_of(interval).newest_bars(len(candles), 0)) == plain(candles, interval)


@pytest.mark.slow
@given(st.data())
def test_any_order_duplication_and_delay_of_versions_gives_the_same_bars(data):
    truth = [
        minute(n, str(10 + n % 3), str(1 + n), final=True)
        for n in data.draw(st.lists(st.integers(0, 40), unique=True, min_size=1))
    ]
    versions = []
    for candle in truth:
        versions.append(candle)
        for part in data.draw(st.lists(st.integers(1, 9), max_size=3)):
            grown = candle.volume * part / 10
            versions.append(candle._replace(volume=grown, as_of_ms=candle.open_ms + part * 5_000, final=False))
    shuffled = data.draw(st.permutations(versions)) + data.draw(st.lists(st.sampled_from(versions), max_size=10))
    bars = aggregator()
    for version in shuffled:
        bars.apply_minute(version)
    for interval in DEFAULT_INTERVALS:
        assert shown(bars.series_of(interval).newest_bars(1000, 0)) == plain(sorted(truth), interval)


@st.composite
def versions(draw: st.DrawFn) -> Candle:
    """One of few prices and volumes, so that much stays the same, of one of few minutes, so that they often meet."""
    change_id = draw(st.integers(0, 90)) * 1000
    final = change_id > 60_000 and draw(st.booleans())
    volume, rev = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    candle = minute(draw(st.integers(0, 70)), str(draw(st.integers(8, 12))), str(volume), as_of=change_id, final=final)
    quote = draw(st.sampled_from([None, Decimal(1), Decimal("2.5")]))
    return candle._replace(quote_volume=quote, rev=rev, src=draw(st.sampled_from(["live", "rest"])))


def visible(bar: Candle) -> tuple[object, ...]:
    """Return the parts of a bar that a client can see change before it is final."""
    return bar.values, bar.rev, bar.src


def everything(bars: Aggregator) -> dict[tuple[Interval, int], Candle]:
    return {
        (interval, bar.open_ms): bar
        for interval in bars.levels
        for bar in bars.series_of(interval).bars_between(0, 2**62)
    }


def whole(minutes: list[Candle], interval: Interval, open_ms: int) -> Candle:
    """The bar of an interval that begins at `open_ms`, from minutes alone."""
    some = [one for one in minutes if interval.floor(one.open_ms) == open_ms]
    ended = some[-1].open_ms + MINUTE_MS == open_ms + interval.ms
    return some[0] if interval == MINUTE else fold(some, open_ms, final=some[-1].final and ended)


def folded(bars: Aggregator) -> dict[tuple[Interval, int], Candle]:
    """What the bars should be of which all minutes are in memory."""
    base = bars.series_of(MINUTE)
    minutes = base.bars_between(0, 2**62)
    return {
        (interval, open_ms): whole(minutes, interval, open_ms)
        for interval, open_ms in everything(bars)
        if open_ms >= base.since_ms
    }


LENGTHS = [
    DEFAULT_INTERVALS,
    tuple(Interval.parse(text) for text in ("2m", "3m", "5m", "15m", "20m", "1h")),  # 1m has three parents
    (MINUTE, Interval.parse("1h"), WEEK),
]


@pytest.mark.slow
@given(st.sampled_from(LENGTHS), st.integers(1, 80), st.lists(st.one_of(versions(), st.integers(0, 70)), max_size=60))
def test_after_every_message_each_bar_is_the_plain_fold_of_its_minutes(intervals, capacity, messages):
    bars = Aggregator(intervals, capacity)
    stored: dict[int, Candle] = {}
    before: dict[tuple[Interval, int], Candle] = {}
    notified: list[dict[tuple[Interval, int], Candle]] = []
    for change_id, message in enumerate(messages, 1):
        if isinstance(message, Candle):
            kept = stored.get(message.open_ms)
            if kept is None or message.supersedes(kept):
                stored[message.open_ms] = message
            changes = bars.apply_minute(message, change_id) or []
        else:
            changes = heal(bars, stored, message, change_id)
        now = everything(bars)
        assert now == now | folded(bars)
        notified.append({(change.interval, change.bar.open_ms): change.bar for change in changes})
        assert {at: bar for at, bar in notified[-1].items() if at in now} == {
            at: bar for at, bar in now.items() if at not in before or visible(bar) != visible(before[at])
        }
        before = now
    for change_id in range(len(messages)):
        later = {at for changes in notified[change_id:] for at in changes}
        assert [
            (interval, bar.open_ms)
            for interval in bars.levels
            for bar in bars.series_of(interval).changed_since(change_id)
        ] == [at for at in everything(bars) if at in later]


def heal(bars: Aggregator, stored: dict[int, Candle], at: int, change_id: int) -> list:
    """Ten minutes are read from the store; every other one that is missing there came to it meanwhile."""
    start_ms, end_ms = MONDAY_MS + at * MINUTE_MS, MONDAY_MS + (at + 10) * MINUTE_MS
    for number in range(at, at + 10, 2):
        stored.setdefault(MONDAY_MS + number * MINUTE_MS, minute(number, volume="7", final=True))
    minutes = [stored[open_ms] for open_ms in sorted(stored)]
    rows = {}
    for interval in bars.levels:
        since_ms = max(interval.floor(start_ms), bars.series_of(interval).since_ms)
        touched = sorted({interval.floor(one.open_ms) for one in minutes})
        rows[interval] = [whole(minutes, interval, at_ms) for at_ms in touched if since_ms <= at_ms < end_ms]
    return bars.merge_stored(rows, start_ms, end_ms, change_id)


@pytest.mark.parametrize("close", ["11", "12"])
def test_a_final_version_replaces_a_forming_one_with_a_later_time(close):
    """A leader may have pushed the forming version to this process alone, and ended before it was stored."""
    final = minute(0, "11", as_of=60_963, final=True)
    for read_from in ("feed", "store"):
        bars = aggregator()
        bars.apply_minute(minute(0, close, as_of=61_099), 2)
        if read_from == "feed":
            bars.apply_minute(final, 4)
        else:
            bars.merge_stored({MINUTE: [final]}, MONDAY_MS, MONDAY_MS + MINUTE_MS, 4)
        assert bars.series_of(MINUTE).get_bar(MONDAY_MS) == final
        assert bars.apply_minute(minute(0, close, as_of=61_200), 6) == []  # it comes late
        assert bars.series_of(MINUTE).get_bar(MONDAY_MS) == final
        assert [bars.series_of(one).newest_bar.close for one in bars.levels] == [Decimal(11)] * 7


def test_a_version_with_the_same_values_is_no_change_and_keeps_the_published_one():
    bars = aggregator()
    bars.apply_minute(minute(0, as_of=70_000)._replace(rev=1, src="live"), 2)
    bars.apply_minute(minute(1), 4)
    assert bars.apply_minute(minute(0, as_of=90_000, final=True)._replace(src="live"), 6) == []
    kept = bars.series_of(MINUTE).get_bar(MONDAY_MS)
    assert (kept.rev, kept.src, kept.final) == (1, "live", True)
    assert [bars.series_of(interval).changed_since(4) for interval in bars.levels] == [[]] * 7
    assert [bars.series_of(interval).revision for interval in bars.levels] == [0] * 7
    bars.apply_minute(minute(0, "11", as_of=95_000, final=True)._replace(rev=2, src="rest"), 8)
    kept = bars.series_of(MINUTE).get_bar(MONDAY_MS)
    assert (kept.rev, kept.src) == (2, "rest")
    assert bars.series_of(WEEK).newest_bar.rev == 2
    assert [bar.open_ms for bar in bars.series_of(MINUTE).changed_since(4)] == [MONDAY_MS]


def test_another_source_of_the_same_values_is_published():
    """A leader ended before it had stored what it told; to whoever reads the store the minute is its successor's."""
    bars = aggregator()
    bars.apply_minute(minute(0, as_of=70_000)._replace(src="live"), 2)
    bars.apply_minute(minute(1), 4)
    later = minute(0, as_of=90_000, final=True)._replace(src="rest")
    assert bars.apply_minute(later, 6) == [BarChange(MINUTE, later)]
    again = minute(0, as_of=95_000, final=True)._replace(src="backfill")
    assert bars.merge_stored({MINUTE: [again]}, MONDAY_MS, MONDAY_MS + MINUTE_MS, 8) == [BarChange(MINUTE, again)]
    assert bars.series_of(MINUTE).get_bar(MONDAY_MS) == again
    assert [bars.series_of(interval).revision for interval in bars.levels] == [2, 0, 0, 0, 0, 0, 0]


def test_the_version_in_memory_takes_the_larger_number_of_revisions_from_the_store():
    """Its writer did not know that it replaced another final version: the store does."""
    bars = aggregator()
    sent, stored = minute(0, as_of=90_000, final=True), minute(0, as_of=90_000, final=True)._replace(rev=2)
    bars.apply_minute(sent, 2)
    changes = bars.merge_stored({MINUTE: [stored]}, MONDAY_MS, MONDAY_MS + MINUTE_MS, 4)
    assert [(str(change.interval), change.bar.rev) for change in changes] == [
        (name, 2) for name in ("1m", "5m", "15m", "1h", "4h", "1D", "1W")
    ]
    assert bars.merge_stored({MINUTE: [sent]}, MONDAY_MS, MONDAY_MS + MINUTE_MS, 6) == []
    older = minute(0, "12", as_of=80_000, final=True)._replace(rev=9)
    assert bars.merge_stored({MINUTE: [older]}, MONDAY_MS, MONDAY_MS + MINUTE_MS, 8) == []


def test_an_older_copy_never_undoes_a_revision():
    bars = aggregator()
    bars.apply_minute(minute(0, "11", as_of=70_000, final=True))
    bars.apply_minute(minute(0, "12", as_of=90_000, final=True))
    assert bars.apply_minute(minute(0, "11", as_of=70_000, final=True)) == []
    assert bars.series_of(FIVE).newest_bar.close == 12


@pytest.mark.slow
def test_minutes_that_fell_out_of_the_window_still_count_in_the_running_week():
    """Fault 1: a running 1D or 1W bar that forgets minutes older than the in-memory window."""
    candles = recorded("btcusdt-week.csv.gz")
    bars = aggregator(capacity=200)
    for candle in candles:
        bars.apply_minute(candle)
    assert bars.cached_minute_count < 300
    assert shown([bars.series_of(WEEK).newest_bar]) == plain(candles, WEEK)
    assert shown([bars.series_of(DAY).newest_bar]) == plain(candles, DAY)[-1:]


def test_a_late_last_version_of_a_minute_reaches_the_closed_bars_of_every_interval():
    """Fault 3: the last version of a minute, arriving after the boundary, missing from the closed bars."""
    last_of_day = 24 * 60 - 1
    bars = aggregator()
    for number in (last_of_day - 1, last_of_day):
        bars.apply_minute(minute(number, volume="1", as_of=59_000))
    bars.apply_minute(minute(last_of_day + 1))
    changes = bars.apply_minute(minute(last_of_day, "19", volume="5", as_of=61_000))
    assert [str(change.interval) for change in changes] == ["1m", "5m", "15m", "1h", "4h", "1D", "1W"]
    assert bars.series_of(DAY).get_bar(MONDAY_MS).high == 19
    assert bars.series_of(DAY).get_bar(MONDAY_MS).volume == 6
    assert bars.series_of(WEEK).newest_bar.volume == 7


def test_a_minute_older_than_memory_is_left_to_the_store():
    bars = aggregator(capacity=20)
    for number in range(60):
        bars.apply_minute(minute(number))
    assert bars.apply_minute(minute(0, "99")) is None


def test_a_quote_volume_that_one_minute_lacks_is_absent_not_zero():
    """Fault 12: a missing quoteVolume counted as 0."""
    bars = aggregator()
    bars.apply_minute(minute(0)._replace(quote_volume=Decimal("5.5")))
    bars.apply_minute(minute(1))
    assert bars.series_of(MINUTE).get_bar(MONDAY_MS).quote_volume == Decimal("5.5")
    assert bars.series_of(FIVE).newest_bar.quote_volume is None


def test_an_unchanged_copy_changes_nothing():
    bars = aggregator()
    bars.apply_minute(minute(0, as_of=30_000))
    assert bars.apply_minute(minute(0, as_of=40_000)) == []


def test_a_stored_range_merges_with_newer_minutes_in_memory():
    bars = aggregator()
    bars.apply_minute(minute(7, "12", as_of=30_000))
    stored = [minute(number, volume="2", final=True) for number in range(7)]
    five = [stored[0]._replace(volume=Decimal(10)), stored[5]._replace(volume=Decimal(4))]
    changes = bars.merge_stored({MINUTE: stored, FIVE: five}, MONDAY_MS, MONDAY_MS + 7 * MINUTE_MS)
    assert {str(change.interval) for change in changes} >= {"1m", "5m"}
    assert bars.series_of(FIVE).get_bar(MONDAY_MS).volume == 10
    assert bars.series_of(FIVE).newest_bar.volume == 5  # two stored minutes and the running one


@pytest.mark.slow
def test_all_minutes_of_a_week_are_kept_when_the_week_is_folded_from_them():
    bars = aggregator(capacity=100, intervals=(MINUTE, WEEK))
    for number in range(3000):
        bars.apply_minute(minute(number))
    assert bars.series_of(WEEK).newest_bar.volume == 3000
    assert bars.apply_minute(minute(5, volume="2", as_of=90_000))[-1].bar.volume == 3001
