"""What a batch of candles does to the rows of a store, as plain arithmetic; every store shares it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from itertools import groupby

from candled.errors import StoreRejected
from candled.model import MINUTE_MS, Candle, Interval, MarketKey, Range, RangeSet, Symbol, fold, sources

# What `Candle.src` may be; a store keeps the place in this list. New ones go to the end.
SOURCES = ("", "live", "rest", "backfill", "agg")


def source_number(src: str) -> int:
    """The number of a source; 0 for one that has none, which then comes back as not known."""
    return _NUMBERS.get(src, 0)


_NUMBERS = {src: number for number, src in enumerate(SOURCES)}


def number_text(number: Decimal) -> str:
    """Every digit of a number and never an exponent.

    Raises:
        StoreRejected: it would take far more of them than any exchange prints.
    """
    text = str(number)
    if "E" not in text:
        return text
    if abs(number.adjusted()) > _FARTHEST_DIGIT:
        raise StoreRejected(f"a number it cannot hold: {text}")
    return format(number, "f")


_FARTHEST_DIGIT = 300


@dataclass(slots=True)
class MarketBatch:
    """What one batch says of one market: final and forming minutes by opening time."""

    minutes: dict[int, Candle] = field(default_factory=dict)
    forming: dict[int, Candle] = field(default_factory=dict)


def by_market(rows: Iterable[tuple[MarketKey, Candle]]) -> dict[MarketKey, MarketBatch]:
    """Sort rows into markets, keeping one version of each minute: the one that supersedes the others."""
    result: dict[MarketKey, MarketBatch] = {}
    for market, candle in rows:
        batch = result.get(market)
        if batch is None:
            batch = result[market] = MarketBatch()
        if not candle.final:
            before = batch.forming.get(candle.open_ms)
            if before is None or candle.supersedes(before):
                batch.forming[candle.open_ms] = candle
            continue
        known = batch.minutes.get(candle.open_ms)
        batch.minutes[candle.open_ms] = candle if known is None else candle.merged_with(known)
    return result


def by_symbol(rows: Iterable[tuple[str, int, int]]) -> dict[Symbol, list[Range]]:
    """Group rows of symbol, start and end into disjoint sorted ranges."""
    result: dict[Symbol, RangeSet] = {}
    for symbol, start_ms, end_ms in rows:
        result.setdefault(Symbol.parse(symbol), RangeSet()).add(start_ms, end_ms)
    return {symbol: list(ranges) for symbol, ranges in result.items()}


def minute_ranges(open_ms: Iterable[int]) -> RangeSet:
    """The stretches of neighbouring minutes that these opening times (UTC epoch milliseconds) form."""
    return RangeSet((at_ms, at_ms + MINUTE_MS) for at_ms in open_ms)


def touched(changed: RangeSet, interval: Interval) -> RangeSet:
    """The whole bars of `interval` in which something of `changed` lies."""
    return RangeSet((interval.floor(start), interval.floor(end - 1) + interval.ms) for start, end in changed)


def news(batch: Mapping[int, Candle], stored: Mapping[int, Candle]) -> list[Candle]:
    """The minutes that `batch` adds to what is stored, or changes, as they are to be stored, oldest first."""
    result = []
    for open_ms in sorted(batch):
        known = stored.get(open_ms)
        kept = batch[open_ms] if known is None else batch[open_ms].merged_with(known)
        if kept is not known:
            result.append(kept)
    return result


def fold_bars(parts: Sequence[Candle], interval: Interval) -> list[Candle]:
    """Fold the sorted bars of a shorter interval into bars of `interval`, which nests them."""
    return [
        fold(list(group), open_ms, final=True)
        for open_ms, group in groupby(parts, key=lambda part: interval.floor(part.open_ms))
    ]


@lru_cache(maxsize=8)
def levels(kept: tuple[tuple[Interval, bool], ...]) -> Mapping[Interval, Interval]:
    """Map each kept interval to the longest one to fold it from, shortest first.

    Each comes with whether its past is folded too: only then can it be the source of another.
    """
    folded = {interval for interval, is_folded in kept if is_folded}
    return {interval: sources({*folded, interval})[interval] for interval in sorted(one for one, _ in kept)}
