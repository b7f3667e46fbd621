import sys
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.aggregate.packed import PackedBars
from candled.aggregate.series import Series
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, decimal_text
from tests.rows import MONDAY_MS, minute, recorded
from tests.tiers import few_examples

FIVE = Interval.parse("5m")

NUMBERS = st.one_of(
    st.integers(0, 10**7).map(lambda units: Decimal(units).scaleb(-2)),
    st.decimals(min_value=0, allow_nan=False, allow_infinity=False, places=8, max_value=10**6),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.sampled_from(["1E+3", "0E-8", "-0", "1.50", "123456789012345678901234567890", "9E-30", "9.2E+18", "-1"]).map(
        Decimal
    ),
)
STAMPS = st.one_of(st.integers(MONDAY_MS, MONDAY_MS + 10**9), st.integers(0, 2**62))


@st.composite
def bars(draw: st.DrawFn, slot: int) -> Candle:
    return Candle(
        MONDAY_MS + slot * MINUTE_MS,
        *(draw(NUMBERS) for _ in range(5)),
        draw(st.none() | NUMBERS),
        draw(STAMPS),
        draw(st.booleans()),
        draw(st.integers(0, 300)),
        draw(st.sampled_from(["", "live", "rest", "backfill", "agg", "trades", "elsewhere"])),
    )


class Plain:
    """What a series should do, with a dict of all bars there ever were."""

    def __init__(self) -> None:
        self.bars: dict[int, tuple[Candle, int]] = {}
        self.series = Series(MINUTE, FIVE, 10)
        self.seen = (-1, {}, -1)

    def put(self, bar: Candle, seq: int) -> None:
        if bar.open_ms < self.series.since_ms:
            return  # left to the store
        self.bars[bar.open_ms] = bar, seq
        self.series.put_bar(bar, seq)

    def put_all(self, added: list[Candle], seq: int) -> None:
        added = [bar for bar in added if bar.open_ms >= self.series.since_ms]
        self.bars |= {bar.open_ms: (bar, seq) for bar in added}
        self.series.put_bars(added, seq)

    def reach_back(self, minutes: int) -> None:
        since_ms = max(0, self.series.since_ms - minutes * MINUTE_MS)
        older = [open_ms for open_ms in self.bars if since_ms <= open_ms < self.series.since_ms]
        self.bars |= {open_ms: (self.bars[open_ms][0], 0) for open_ms in older}  # as from the store
        self.series.prepend_bars([self.bars[open_ms][0] for open_ms in sorted(older)], since_ms)

    def check(self) -> None:
        series = self.series
        kept = sorted(open_ms for open_ms in self.bars if open_ms >= series.since_ms)
        expected = [self.bars[open_ms][0] for open_ms in kept]
        assert len(series) == len(kept)
        assert series.newest_bars(1000, 0) == expected
        assert series.newest_bar == (expected[-1] if expected else None)
        assert [series.get_bar(open_ms) for open_ms in kept] == expected
        assert series.get_bar(MONDAY_MS - MINUTE_MS) is None
        for count, since_ms in ((0, 0), (1, 0), (3, 0), (5, MONDAY_MS + 17 * MINUTE_MS)):
            tail = [bar for bar in expected if bar.open_ms >= since_ms][-count or len(expected) :]
            assert series.newest_bars(count, since_ms) == tail
            assert list(series.newest_times(count, since_ms)) == [bar.open_ms for bar in tail]
        start_ms, end_ms = MONDAY_MS + 7 * MINUTE_MS, MONDAY_MS + 22 * MINUTE_MS
        assert series.bars_between(start_ms, end_ms) == [bar for bar in expected if start_ms <= bar.open_ms < end_ms]
        for seq in (0, 3, 12):
            later = [self.bars[open_ms][0] for open_ms in kept if self.bars[open_ms][1] > seq]
            assert series.changed_since(seq) == later
        self.check_revision(expected[:-1])

    def check_revision(self, closed: list[Candle]) -> None:
        """What was made of closed bars holds as long as `revision` is the same."""
        revision, known, last_ms = self.seen
        now = {bar.open_ms: (bar.values, bar.rev, bar.src) for bar in closed}
        if revision == self.series.revision:
            assert {at: shown for at, shown in now.items() if at <= last_ms} == {
                at: shown for at, shown in known.items() if at >= self.series.since_ms
            }
        self.seen = self.series.revision, now, max(now, default=-1)


@pytest.mark.slow
@few_examples
@given(st.data())
def test_a_series_gives_back_what_was_put_whatever_the_order_and_the_digits(data):
    plain = Plain()
    at = 0
    for seq in range(1, data.draw(st.integers(1, 30), label="steps")):
        step = data.draw(
            st.sampled_from(["next", "next", "next", "newest", "late", "several", "forget", "back", "widen"])
        )
        if step == "next":
            at += data.draw(st.integers(1, 3))
            plain.put(data.draw(bars(at)), seq)
        elif step == "newest":
            plain.put(data.draw(bars(at)), seq)
        elif step == "late":
            plain.put(data.draw(bars(data.draw(st.integers(0, at)))), seq)
        elif step == "several":
            slots = sorted(data.draw(st.sets(st.integers(0, at + 8), max_size=12)))
            plain.put_all([data.draw(bars(slot)) for slot in slots], seq)
            at = max([at, *slots])
        elif step == "forget":
            plain.series.drop_before(MONDAY_MS + data.draw(st.integers(0, at + 2)) * MINUTE_MS)
        elif step == "back":
            plain.reach_back(data.draw(st.integers(0, 20)))
        else:
            plain.series.grow_capacity(data.draw(st.integers(0, 20)))
        plain.check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["btcusdt-week.csv.gz", "ethusd-thin-week.csv.gz", "bitget-usdt-futures-ewzusdt.csv.gz"]
)
def test_recorded_bars_come_back_digit_for_digit(name):
    candles = recorded(name)
    series = Series(MINUTE, None, len(candles))
    for candle in candles:
        series.put_bar(candle)
    kept = series.newest_bars(len(candles), 0)
    assert kept == candles
    assert [list(map(decimal_text, bar[1:6])) for bar in kept] == [list(map(decimal_text, bar[1:6])) for bar in candles]


def test_a_recorded_bar_takes_a_tenth_of_what_it_takes_as_an_object():
    candles = recorded("btcusdt-week.csv.gz", 1000)
    series = Series(MINUTE, None, len(candles))
    for candle in candles:
        series.put_bar(candle)
    packed = sum(sys.getsizeof(getattr(series, name)) for name in ("_times", "_change_ids"))
    packed += sys.getsizeof(series._packed._rows)
    objects = sum(sys.getsizeof(candle) + sum(sys.getsizeof(number) for number in candle[:8]) for candle in candles)
    assert not series._packed._odd
    assert packed < objects / 10


def test_changes_of_the_newest_bar_and_dropped_ones_are_no_revision():
    series = Series(MINUTE, None, 10)
    for number in range(40):
        series.put_bar(minute(number))
        series.put_bar(minute(number, volume="2"))
    assert len(series) < 12
    assert series.revision == 0


def test_a_statement_that_shows_clients_nothing_new_is_no_revision():
    series = Series(MINUTE, None, 10)
    for number in range(5):
        series.put_bar(minute(number))
    series.put_bar(minute(2, as_of=90_000, final=True))
    assert series.revision == 0
    assert series.get_bar(minute(2).open_ms).final
    series.put_bar(minute(2, volume="2"))
    series.put_bar(minute(2, volume="2")._replace(rev=1))
    assert series.revision == 2


def test_a_quote_volume_of_twelve_digits_after_the_point_is_packed_even_for_a_week():
    packed = PackedBars()
    whole = minute(0)._replace(quote_volume=Decimal("13345678901.352892715820"))
    packed.insert_bars(len(packed), [whole])
    packed.insert_bars(len(packed), [minute(1)])
    assert packed.get_bars(0, [minute(0).open_ms, minute(1).open_ms]) == [whole, minute(1)]
    assert not packed._odd


@pytest.mark.parametrize("number", ["1E+30", "1E-30", "12345678901234567890.1234567890123"])
def test_a_bar_of_too_many_digits_costs_the_others_nothing(number):
    packed = PackedBars()
    for at in range(100):
        packed.insert_bars(len(packed), [minute(at)])
    before = len(packed._rows)
    packed.insert_bars(len(packed), [minute(100, volume=number)])
    packed.insert_bars(len(packed), [minute(101)])
    assert len(packed) == 102
    assert len(packed._rows) == before // 100 * 102
    times = [minute(at).open_ms for at in range(102)]
    assert packed.get_bars(99, times[99:]) == [minute(99), minute(100, volume=number), minute(101)]
    packed.replace_bar(100, minute(100))
    assert not packed._odd
    packed.replace_bar(100, minute(100, volume=number))
    packed.drop_oldest(101, times[:101])
    assert not packed._odd
    assert packed.get_bars(0, times[101:]) == [minute(101)]
