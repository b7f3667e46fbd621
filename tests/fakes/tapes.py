"""What a fake exchange has traded: endless minutes as pure functions of time, recorded or made up."""

import csv
import gzip
import zlib
from decimal import ROUND_DOWN, Decimal
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

from candled.model import MINUTE_MS, Candle

DATA = Path(__file__).parent.parent / "data"
_QUIET_SHARE = 5  # percent of the synthetic minutes that have no trade
_WAYPOINTS = (Decimal("0.3"), Decimal("0.6"), Decimal("0.95"))


class Row(NamedTuple):
    """One minute without its time: prices, base volume, quote volume."""

    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal

    def candle(self, open_ms: int, *, as_of_ms: int = 0, final: bool = False) -> Candle:
        return Candle(open_ms, *self, as_of_ms, final)


class Tape(Protocol):
    """The final values of every minute there ever was and will be."""

    def row(self, open_ms: int) -> Row:
        """The minute that opens at `open_ms`, UTC epoch milliseconds on the minute."""


class Recorded:
    """Recorded candles, repeated for ever: a minute's values depend on nothing but its time.

    Every row opens at the close of the row before it, as Bitget's do, also where the recording begins again.
    """

    def __init__(self, rows: list[Row]) -> None:
        self._rows = [
            row._replace(open=last.close, high=max(row.high, last.close), low=min(row.low, last.close))
            for last, row in zip([*rows[-1:], *rows], rows, strict=False)
        ]

    @classmethod
    @cache
    def load(cls, name: str) -> "Recorded":
        """Read `tests/data/<name>.csv.gz`; a quote volume that was not recorded is volume times the middle price."""
        with gzip.open(DATA / f"{name}.csv.gz", "rt", newline="") as file:
            return cls([_recorded_row(fields) for fields in csv.DictReader(file)])

    def row(self, open_ms: int) -> Row:
        return self._rows[open_ms // MINUTE_MS % len(self._rows)]


def _recorded_row(fields: dict[str, str]) -> Row:
    opened, high, low, close, volume = (Decimal(fields[key]) for key in ("open", "high", "low", "close", "volume"))
    recorded = fields.get("quote_volume")
    return Row(opened, high, low, close, volume, Decimal(recorded) if recorded else volume * (opened + close) / 2)


class Synthetic:
    """Made-up candles that differ by `seed`; some minutes are quiet, and every one opens at the last close."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def row(self, open_ms: int) -> Row:
        return _synthetic_row(self._seed, open_ms // MINUTE_MS)


# Shared by all tapes: the same minutes of the same seeds come in test after test.
@lru_cache(maxsize=1 << 17)
def _synthetic_row(seed: int, minute: int) -> Row:
    opened, close = _close(seed, minute - 1), _close(seed, minute)
    if _is_quiet(seed, minute):
        return Row(opened, opened, opened, opened, Decimal(0), Decimal(0))
    spread, volume = Decimal(_noise(seed, minute, 2) % 90 + 1) / 100, Decimal(_noise(seed, minute, 3) % 10**7) / 1000
    volume += Decimal("0.001")
    high, low = max(opened, close) + spread, min(opened, close) - spread
    return Row(opened, high, low, close, volume, volume * (opened + close) / 2)


def _close(seed: int, minute: int) -> Decimal:
    while _is_quiet(seed, minute):
        minute -= 1
    return Decimal(1000 + seed % 97 * 100) + Decimal(_noise(seed, minute, 1) % 5000) / 100


def _is_quiet(seed: int, minute: int) -> bool:
    return _noise(seed, minute, 0) % 100 < _QUIET_SHARE


def _noise(seed: int, minute: int, stream: int) -> int:
    return zlib.crc32(b"%d %d %d" % (seed, minute, stream))


def grown(row: Row, elapsed_ms: int) -> Row:
    """The minute as it stands `elapsed_ms` after its opening.

    The price goes in straight lines from the open over low and high (high and low where the minute falls) to the
    close, and volumes grow with time; everything is `row` itself only when the minute is over.
    """
    if elapsed_ms >= MINUTE_MS:
        return row
    share = Decimal(max(0, elapsed_ms)) / MINUTE_MS
    first, second = (row.low, row.high) if row.close >= row.open else (row.high, row.low)
    path = list(zip((Decimal(0), *_WAYPOINTS), (row.open, first, second, row.close), strict=True))
    price = _price_at(share, path)
    seen = [price, *(value for at, value in path if at <= share)]
    volume, quote_volume = (_part(share, whole) for whole in (row.volume, row.quote_volume))
    return Row(row.open, max(seen), min(seen), price, volume, quote_volume)


def _price_at(share: Decimal, path: list[tuple[Decimal, Decimal]]) -> Decimal:
    for (begin, start), (end, goal) in pairwise(path):
        if share < end:
            way = start + (goal - start) * (share - begin) / (end - begin)
            return way.quantize(min(start, goal, key=_exponent), ROUND_DOWN)
    return path[-1][1]


def _part(share: Decimal, whole: Decimal) -> Decimal:
    return (whole * share).quantize(whole, ROUND_DOWN)


def _exponent(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent
