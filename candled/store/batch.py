"""The effect of a batch of candles on the rows of a store, as plain arithmetic shared by all stores."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache

from candled.errors import StoreRejected
from candled.model import MINUTE_MS, Candle, Interval, MarketKey, Range, RangeSet, Symbol, fold, group_parts, sources

from .interface import SEQ_UNPUBLISHED

# The values of `Candle.src`. A store saves the position in this list, so append new ones at the end.
SOURCES = ("", "live", "rest", "backfill", "agg", "trades")


def source_number(src: str) -> int:
    """Return the number of a source; 0 for an unknown one, which is then read as ""."""
    return _NUMBERS.get(src, 0)


_NUMBERS = {src: number for number, src in enumerate(SOURCES)}


def number_text(number: Decimal) -> str:
    """Return all digits of a number, without an exponent.

    Raises:
        StoreRejected: it has far more digits than any exchange prints.
    """
    text = str(number)
    if "E" not in text:
        return text
    if abs(number.adjusted()) > _FARTHEST_DIGIT:
        raise StoreRejected(f"unsupported number: {text}")
    return format(number, "f")


def number_texts(numbers: Iterable[Decimal]) -> list[str]:
    """Return `number_text` of many numbers."""
    numbers = list(numbers)
    texts = list(map(str, numbers))
    return list(map(number_text, numbers)) if "E" in "".join(texts) else texts


_FARTHEST_DIGIT = 300


@dataclass(slots=True)
class MarketBatch:
    """The minutes of one market in a batch."""

    #: The final minutes by opening time, UTC epoch milliseconds.
    minutes: dict[int, Candle] = field(default_factory=dict)
    #: The forming minutes by opening time, UTC epoch milliseconds.
    forming: dict[int, Candle] = field(default_factory=dict)


def group_by_market(rows: Iterable[tuple[MarketKey, Candle]]) -> dict[MarketKey, MarketBatch]:
    """Group rows by market, with the versions of each minute merged."""
    result: dict[MarketKey, MarketBatch] = defaultdict(MarketBatch)
    for market, candle in rows:
        minutes = result[market].minutes if candle.final else result[market].forming
        minutes[candle.open_ms] = candle.merged_with(minutes.get(candle.open_ms))
    return result


def group_by_symbol(rows: Iterable[tuple[str, int, int]]) -> dict[Symbol, list[Range]]:
    """Group rows of symbol, start and end into disjoint sorted ranges."""
    result: dict[Symbol, RangeSet] = {}
    for symbol, start_ms, end_ms in rows:
        result.setdefault(Symbol.parse(symbol), RangeSet()).add(start_ms, end_ms)
    return {symbol: list(ranges) for symbol, ranges in result.items()}


def touched_bars(changed: RangeSet, interval: Interval) -> RangeSet:
    """Return the ranges of all bars of `interval` that overlap `changed`."""
    return RangeSet((interval.floor(start), interval.floor(end - 1) + interval.ms) for start, end in changed)


def merge_changes(batch: Mapping[int, Candle], stored: Mapping[int, Candle]) -> list[Candle]:
    """Return the minutes of `batch` that are new or change stored ones, as they are to be stored, oldest first."""
    if not stored:
        return [batch[open_ms] for open_ms in sorted(batch)]
    merged = (batch[open_ms].merged_with(stored.get(open_ms)) for open_ms in sorted(batch))
    return [candle for candle in merged if candle is not stored.get(candle.open_ms)]


def unknown_revisions(batch: Mapping[int, Candle], stored: Iterable[tuple[int, int]]) -> list[tuple[int, Range]]:
    """Return the changes to log for minutes that were stored with more revisions than their writer had counted.

    The writer did not know the version that it replaced, such as one of a process that had ended. So the writer's
    messages have a smaller `rev` than the store. Ingest finds the changes in the log, and readers read them again.

    Args:
        batch: the minutes as they were sent, by opening time.
        stored: opening times of changed minutes, and their `rev`.
    """
    times = [open_ms for open_ms, rev in stored if rev > batch[open_ms].rev]
    return [(SEQ_UNPUBLISHED, span) for span in RangeSet.of_parts(times, MINUTE_MS)]


def fold_bars(parts: Sequence[Candle], interval: Interval) -> list[Candle]:
    """Fold the sorted bars of a shorter interval into bars of `interval`. Pass all stored parts of each bar."""
    return [fold(group, open_ms, final=True) for open_ms, group in group_parts(parts, interval)]


@lru_cache(maxsize=8)
def fold_sources(kept: tuple[tuple[Interval, bool], ...]) -> Mapping[Interval, Interval]:
    """Map each kept interval, shortest first, to the longest interval that it can be folded from.

    `kept` has each interval, and True if its past is folded too: only then can others be folded from it.
    """
    folded = {interval for interval, is_folded in kept if is_folded}
    return {interval: sources({*folded, interval})[interval] for interval in sorted(one for one, _ in kept)}
