"""Texts of stored numbers, compared with those printed of decimal numbers."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.api.printers import CSV, json_printer, klines_printer, ndjson_printer, page_printer, udf_printer
from candled.errors import StoreRejected
from candled.model import MINUTE, BarTexts
from candled.protocol.messages import STRINGS
from candled.store.bar_texts import bar_texts
from candled.store.batch import number_text
from candled.store.sqlite.rows import UnreadableRow, as_candles

NUMBERS = st.decimals(0, 10**30, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [Decimal(text) for text in ("0", "0.0", "-0", "100", "1E+5", "1E-30", "1.10", "7000.000")]
)
ROWS = st.lists(st.tuples(*([NUMBERS] * 5), st.none() | NUMBERS), max_size=20)
PRINTERS = [
    CSV,
    klines_printer(MINUTE),
    klines_printer(MINUTE, 1000),
    *(make(numbers) for make in (json_printer, ndjson_printer, page_printer, udf_printer) for numbers in (0, STRINGS)),
]


def unexpected():
    raise AssertionError("numbers without a sign and an exponent need no decimals")


def stored(rows):
    return [
        (at * 60_000, *(None if number is None else number_text(number) for number in numbers))
        for at, numbers in enumerate(rows)
    ]


def candles(rows):
    return as_candles([(*row, 7, 3, 0) for row in rows])


def lists(texts):
    return [list(column) for column in texts]


@pytest.mark.slow
@given(ROWS)
def test_texts_equal_those_of_the_candles(rows):
    rows = stored(rows)
    is_plain = not any(str(text).startswith("-") for row in rows for text in row)
    texts = bar_texts(json.dumps(rows), unexpected if is_plain else lambda: candles(rows))
    assert lists(texts) == lists(BarTexts.of(candles(rows)))


@pytest.mark.slow
@given(ROWS)
def test_every_printer_prints_columns_as_it_prints_single_bars(rows):
    bars = candles(stored(rows))
    for printer in PRINTERS:
        columns = lists(zip(*(printer.print(bar, True) for bar in bars), strict=True)) or [[]] * printer.columns
        assert lists(printer.print_texts(BarTexts.of(bars))) == columns
        assert all(text.isascii() for column in columns for text in column)


@pytest.mark.parametrize(
    "wrong", ["", "abc", "1.2.3", "1.", ".5", "1e5", " 1", "1\n2", "1,2", "١", "0x10", "NaN", "-1", "007", None, 1.5, 3]
)
@pytest.mark.parametrize("column", range(1, 7))
def test_an_unusual_number_is_read_as_by_the_other_way_or_refused_by_it(wrong, column):
    rows = [(0, *["1.50"] * 6), (60_000, *["2"] * 6)]
    rows[1] = (*rows[1][:column], wrong, *rows[1][column + 1 :])
    try:
        expected: BarTexts | None = BarTexts.of(candles(rows))
    except UnreadableRow:
        expected = None
    if expected is None:
        with pytest.raises(UnreadableRow, match="1970-01-01T00:01"):
            bar_texts(json.dumps(rows), lambda: candles(rows))
    else:
        assert lists(bar_texts(json.dumps(rows), lambda: candles(rows))) == lists(expected)


def test_a_number_with_a_far_exponent_is_not_stored_at_all():
    with pytest.raises(StoreRejected):
        number_text(Decimal("1E+9999"))
    assert bar_texts("[]", unexpected) == BarTexts()
