"""Candles and holes as the rows of SQLite's tables, and back."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from candled.model import Candle

from .batch import SOURCES, number_text, source_number
from .interface import Hole


def bar_row(candle: Candle) -> tuple[int, str, str, str, str, str, str | None, int, int]:
    """The columns of a longer bar: decimals as text, every digit as given and never with an exponent."""
    quote = candle.quote_volume
    return (
        candle.open_ms,
        number_text(candle.open),
        number_text(candle.high),
        number_text(candle.low),
        number_text(candle.close),
        number_text(candle.volume),
        None if quote is None else number_text(quote),
        candle.as_of_ms,
        candle.rev,
    )


def minute_row(candle: Candle) -> tuple[int | str | None, ...]:
    """The columns of a minute: the same, and where it came from."""
    return (*bar_row(candle), source_number(candle.src))


def as_candles(rows: Iterable[Any], *, final: bool = True) -> list[Candle]:
    """The candles of rows whose last column is the number of their source."""
    return [
        Candle(
            open_ms,
            Decimal(open),
            Decimal(high),
            Decimal(low),
            Decimal(close),
            Decimal(volume),
            None if quote is None else Decimal(quote),
            as_of_ms,
            final,
            rev,
            SOURCES[src],
        )
        for open_ms, open, high, low, close, volume, quote, as_of_ms, rev, src in rows
    ]


def as_holes(rows: Iterable[Any]) -> list[Hole]:
    """The holes of rows."""
    return [
        Hole(start_ms=start_ms, end_ms=end_ms, reason=reason, attempts=attempts, retry_ms=retry_ms)
        for start_ms, end_ms, reason, attempts, retry_ms in rows
    ]
