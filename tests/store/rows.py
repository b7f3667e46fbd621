"""Candles for the tests of the store: made by hand, and cut from real recordings."""

import csv
import gzip
from decimal import Decimal
from functools import cache
from itertools import count
from pathlib import Path

from candled.model import MINUTE_MS, Candle, MarketKey, Symbol

MONDAY_MS = 1_748_822_400_000  # 2025-06-02T00:00Z, a Monday
BTC = MarketKey("bitget", Symbol.parse("BTC/USDT"))
ETH = MarketKey("bitget", Symbol.parse("ETH/USDT"))
DATA = Path(__file__).parent.parent / "data"

_numbers = count()


def minute(
    at: int,
    close: str = "2",
    volume: str = "1",
    *,
    quote: str | None = None,
    as_of_ms: int = 1,
    final: bool = True,
    rev: int = 0,
    src: str = "",
) -> Candle:
    """The candle `at` minutes after Monday 00:00 UTC."""
    open_ms = MONDAY_MS + at * MINUTE_MS
    candle = Candle.parse(open_ms, "2", "9", "1", close, volume, quote, as_of_ms=as_of_ms, final=final)
    return candle._replace(rev=rev, src=src)


def new_market() -> MarketKey:
    """A market that no other test writes to."""
    return MarketKey("bitget", Symbol(f"N{next(_numbers)}", "USDT"))


def recorded(name: str) -> list[Candle]:
    """The final minutes of a recording in tests/data."""
    return [*_recorded(name)]


@cache
def _recorded(name: str) -> list[Candle]:
    with gzip.open(DATA / name, "rt", newline="") as file:
        return [
            Candle(
                int(row["time_ms"]),
                Decimal(row["open"]),
                Decimal(row["high"]),
                Decimal(row["low"]),
                Decimal(row["close"]),
                Decimal(row["volume"]),
                final=True,
            )
            for row in csv.DictReader(file)
        ]
