"""Conversions between candles and PostgreSQL's arrays and rows."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from candled.errors import StoreRejected
from candled.model import Candle
from candled.store.batch import SOURCES, number_text, source_number

LONGEST_NUMBER = 100  # characters; sums of a week of such numbers are exact in memory too


def as_columns(markets: Sequence[int], candles: Sequence[Candle]) -> list[str]:
    """Return market numbers and candles as one array per column, at a quarter of the cost of a list of rows.

    Raises:
        StoreRejected: a number is longer than any exchange prints, so some sums would not be exact.
    """
    open_ms, *numbers, as_of_ms, _, rev, src = zip(*candles, strict=True)
    return [
        as_array(markets),
        as_array(open_ms),
        *map(_numbers, numbers),
        as_array(as_of_ms),
        as_array(rev),
        as_array(map(source_number, src)),
    ]


def _numbers(numbers: Sequence[Decimal | None]) -> str:
    texts = list(map(str, numbers))
    joined = ",".join(texts)
    if "E" in joined or "N" in joined:  # an exponent, which hides the length of a number, or None
        texts = ["NULL" if number is None else number_text(number) for number in numbers]
        joined = ",".join(texts)
    if max(map(len, texts)) > LONGEST_NUMBER:
        raise StoreRejected(f"unsupported number: longer than {LONGEST_NUMBER} digits")
    return "{" + joined + "}"


def as_array(numbers: Iterable[int]) -> str:
    """Return an array in PostgreSQL's notation."""
    return "{" + ",".join(map(str, numbers)) + "}"


def as_arrays(rows: Iterable[Iterable[int]]) -> list[str]:
    """Return one array per column of some rows."""
    return list(map(as_array, zip(*rows, strict=True)))


def as_candles(rows: Iterable[tuple[Any, ...]], *, final: bool = True) -> list[Candle]:
    """Return the candles of rows whose last column is the number of their source."""
    return [Candle._make((*row[:-2], final, row[-2], SOURCES[row[-1]])) for row in rows]
