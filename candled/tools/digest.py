"""A digest of a day of minutes, by which two stores are compared."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from candled.model import DAY_MS, Candle, decimal_text


class DayDigest(NamedTuple):
    """A UTC day that begins at `day_ms` (epoch milliseconds), the number of its minutes, and their digest."""

    day_ms: int
    minutes: int
    sha256: str


def day_digests(minutes: Iterable[Candle]) -> Iterator[DayDigest]:
    """Yield the digest of each UTC day that has minutes. Days and `minutes` are oldest first.

    A digest is the SHA-256, in hexadecimal, of one line of ASCII per minute, oldest first, each ended by a line feed:
    `time_ms,open,high,low,close,volume,quote_volume`. Numbers are in shortest form (no exponent, no zeros at the end:
    `67234.5`, `0.00000001`, `0`); a missing quote volume is empty. `as_of_ms` is not part of it, so stores that
    received the same candles in different ways agree.
    """
    for day, of_day in groupby(minutes, key=lambda minute: minute.open_ms // DAY_MS):
        lines = [_line(minute) for minute in of_day]
        yield DayDigest(day * DAY_MS, len(lines), hashlib.sha256("".join(lines).encode("ascii")).hexdigest())


def _line(minute: Candle) -> str:
    numbers = ("" if number is None else decimal_text(number) for number in minute.values)
    return f"{minute.open_ms},{','.join(numbers)}\n"
