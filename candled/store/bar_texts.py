"""Stored numbers as the texts that clients receive, without making decimals of them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec

from candled.model import BarTexts, Candle

_decode_rows = msgspec.json.Decoder(list[tuple[int, str, str, str, str, str, str | None]]).decode
_decode_numbers = msgspec.json.Decoder(list[float]).decode


def bar_texts(rows: str, read_candles: Callable[[], Iterable[Candle]]) -> BarTexts:
    """Return the texts of bars, at a quarter of the cost of parsing candles and formatting them.

    Args:
        rows: a JSON array of the bars, oldest first, each of them as `[open_ms, "open", "high", "low", "close",
            "volume", "quote volume" or null]`.
        read_candles: returns the same bars as candles. It is called if a number is not plain, and raises if one is
            invalid.
    """
    try:
        columns = list(zip(*_decode_rows(rows), strict=True))
        if not columns:
            return BarTexts()
        times, *numbers, quotes = columns
        _check_plain([*chain(*numbers), *(quote for quote in quotes if quote is not None)])
    except (msgspec.DecodeError, ValueError):
        return BarTexts.of(read_candles())
    return BarTexts._make((times, *map(_shortest, numbers), _shortest(quotes)))


def _check_plain(texts: Sequence[str]) -> None:
    """Check that each text is a number with neither a sign nor an exponent.

    Raises:
        ValueError, msgspec.DecodeError: one is not.
    """
    numbers = ",".join(texts).encode()
    if numbers.translate(None, b"0123456789.,") or len(_decode_numbers(b"[%b]" % numbers)) != len(texts):
        raise ValueError("not a plain number")


def _shortest(column: Sequence[Any]) -> Sequence[Any]:
    """Return plain numbers in the form of `decimal_text`; None remains None."""
    return [text.rstrip("0").rstrip(".") if text and text[-1] == "0" and "." in text else text for text in column]
