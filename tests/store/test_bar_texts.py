"""Texts of stored numbers, compared with those printed of decimal numbers."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.errors import StoreRejected
from candled.model import BarTexts, Candle
from candled.store.bar_texts import bar_texts
from candled.store.batch import number_text
from candled.store.sqlite.rows import UnreadableRow, as_candles

NUMBERS = st.decimals(0, 10**30, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [Decimal(text) for text in ("0", "0.0", "-0", "100", "1E+5", "1E-30", "1.10", "7000.000")]
)
ROWS = st.lists(st.tuples(*([NUMBERS] * 5), st.none() | NUMBERS, st.integers(0, 4)), max_size=20)


def unexpected(_):
    raise AssertionError("numbers without a sign and an exponent need no decimals")


@pytest.mark.slow
@given(ROWS)
def test_texts_equal_those_of_the_candles(rows):
    stored = [
        (at * 60_000, *(None if number is None else number_text(number) for number in numbers), 7, 3, source)
        for at, (*numbers, source) in enumerate(rows)
    ]
    expected = [BarTexts.of(candle) for candle in as_candles(stored)]
    is_plain = not any(str(text).startswith("-") for row in stored for text in row)
    assert bar_texts(iter(stored), unexpected if is_plain else as_candles) == expected


@pytest.mark.parametrize(
    "wrong", ["", "abc", "1.2.3", "1.", ".5", "1e5", " 1", "1\n2", "١", "0x10", "NaN", "-1", "007", None, 1.5, b"1"]
)
@pytest.mark.parametrize("column", range(1, 7))
def test_an_unusual_number_is_read_as_by_the_other_way_or_refused_by_it(wrong, column):
    rows = [(0, *["1.50"] * 6, 0, 0, 0), (60_000, *["2"] * 6, 0, 0, 0)]
    rows[1] = (*rows[1][:column], wrong, *rows[1][column + 1 :])
    try:
        expected: list[BarTexts] | None = [BarTexts.of(candle) for candle in as_candles(rows)]
    except UnreadableRow:
        expected = None
    if expected is None:
        with pytest.raises(UnreadableRow, match="1970-01-01T00:01"):
            bar_texts(rows, as_candles)
    else:
        assert bar_texts(rows, as_candles) == expected


def test_a_number_with_a_far_exponent_is_not_stored_at_all():
    with pytest.raises(StoreRejected):
        number_text(Decimal("1E+9999"))
    assert bar_texts([], unexpected) == []
    assert isinstance(BarTexts.of(Candle.parse(0, "1", "1", "1", "1", "1")).open, str)
