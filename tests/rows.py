"""Small candles and recorded ones, for tests."""

import csv
import gzip
from decimal import Decimal
from functools import cache
from pathlib import Path

from candled.model import MINUTE_MS, Candle

DATA = Path(__file__).parent / "data"
MONDAY_MS = 1_747_612_800_000  # 2025-05-19T00:00Z, a Monday


def minute(
    number: int,
    close: str = "10",
    volume: str = "1",
    *,
    as_of: int | None = None,
    final: bool = False,
    start: int = MONDAY_MS,
) -> Candle:
    """The candle of the `number`-th minute after `start`; `as_of` is in ms after the minute's opening."""
    open_ms = start + number * MINUTE_MS
    price = Decimal(close)
    low, high = min(price, Decimal(10)), max(price, Decimal(10))
    stamp = open_ms + (MINUTE_MS if as_of is None else as_of)
    return Candle(open_ms, Decimal(10), high, low, price, Decimal(volume), None, stamp, final)


def recorded(name: str, limit: int | None = None) -> list[Candle]:
    """The candles of a file in tests/data, as final ones."""
    return _recorded(name)[:limit]


@cache
def _recorded(name: str) -> list[Candle]:
    with gzip.open(DATA / name, "rt", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [
        Candle.parse(
            row["time_ms"], row["open"], row["high"], row["low"], row["close"], row["volume"], row.get("quote_volume"),
            as_of_ms=int(row["time_ms"]) + MINUTE_MS, final=True,
        )
        for row in rows
    ]  # fmt: skip
