"""The rows of an exchange's answer about minutes: valid candles and invalid rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from candled.errors import InvalidCandle
from candled.exchange import InvalidRow
from candled.model import MINUTE, MINUTE_MS, Candle, Range, RangeSet


@dataclass(slots=True)
class Answer:
    """The rows of an answer that lie in the requested range."""

    #: Valid candles, oldest first, one per minute.
    candles: list[Candle] = field(default_factory=list)
    #: Rows that are not valid candles, or that contradict each other.
    invalid: list[InvalidRow] = field(default_factory=list)

    def unreadable(self, span: Range) -> RangeSet:
        """Return the minutes of `span` that have a row, but no valid candle.

        If the time of a row is unreadable, it may belong to any minute without a candle.
        """
        minutes = RangeSet((candle.open_ms, candle.open_ms + MINUTE_MS) for candle in self.candles)
        if any(row.open_ms is None for row in self.invalid):
            return minutes.missing(*span)
        found = RangeSet()
        for row in self.invalid:
            open_ms = MINUTE.floor(row.open_ms or 0)
            if open_ms not in minutes:
                found.add(open_ms, open_ms + MINUTE_MS)
        return found


# Exchanges print no numbers beyond these, and sums of numbers between them are exact.
_MOST, _LEAST = Decimal("1e40"), Decimal("1e-40")


def check(candle: Candle) -> Candle:
    """Return this candle if it is valid and all sums over such candles are exact.

    Raises:
        InvalidCandle: as in `Candle.checked`, or a number is beyond any that exchanges print.
    """
    candle.checked()
    volume, quote = candle.volume, candle.quote_volume
    is_fit = candle.high <= _MOST and candle.low >= _LEAST and volume <= _MOST and (not volume or volume >= _LEAST)
    if not is_fit or (quote and not _LEAST <= quote <= _MOST):
        raise InvalidCandle(f"expected numbers from {_LEAST} to {_MOST}, got {str(candle)[:200]}")
    return candle


def sift(rows: Iterable[Candle | InvalidRow], span: Range) -> Answer:
    """Sort the rows of an answer about the minutes of `span`. They may come in any order, and from several pages.

    Of two versions of a minute made at different times, the later one is used. Two different versions made at the same
    time contradict each other: neither is used.
    """
    answer = Answer()
    versions: dict[int, list[Candle]] = {}
    for row in rows:
        if row.open_ms is not None and not span.start_ms <= row.open_ms < span.end_ms:
            continue
        if isinstance(row, InvalidRow):
            answer.invalid.append(row)
            continue
        try:
            candle = check(row)
        except InvalidCandle as error:
            answer.invalid.append(InvalidRow(row.open_ms, str(error)))
            continue
        versions.setdefault(candle.open_ms, []).append(candle)
    for open_ms in sorted(versions):
        newest_ms = max(candle.as_of_ms for candle in versions[open_ms])
        newest = [candle for candle in versions[open_ms] if candle.as_of_ms == newest_ms]
        if any(candle.values != newest[0].values for candle in newest):
            answer.invalid.append(InvalidRow(open_ms, f"{len(newest)} different rows of one minute: {newest[:2]}"))
        else:
            answer.candles.append(newest[0])
    return answer
