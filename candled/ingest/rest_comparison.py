"""The comparison of one market's minutes with a REST response."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from candled.exchange import InvalidRow
from candled.model import MINUTE_MS, Candle, RangeSet

if TYPE_CHECKING:
    from .coverage import Coverage, Window
    from .market_status import Rules
    from .minutes import Minutes


# For this long after the end of a minute, a REST response may come from a cache. A response with less volume than the
# stream had is accepted only if it is repeated after `_REPEATED_MS`.
_CACHED_MS = 300_000
_REPEATED_MS = 120_000
# If the prices of this many minutes are disjoint from the stream's, or of fewer minutes but by this factor, the rows
# belong to another market.
_FOREIGN_MINUTES, _FOREIGN_FACTOR = 3, 2

_OPEN, _AS_OF = attrgetter("open_ms"), attrgetter("as_of_ms")
_STREAMED = ("live", "trades")  # the sources of minutes from the stream


class RestComparison:
    """Finds the differences between REST and the stream.

    This class is pure: the time is an argument, on the exchange's clock.
    """

    def __init__(self, rules: "Rules", coverage: "Coverage", minutes: "Minutes") -> None:
        self._rules = rules
        self._coverage = coverage
        self._minutes = minutes
        #: Minutes with less volume in REST than in the stream → the time of the first such response, and its values.
        self._lesser: dict[int, tuple[int, tuple[object, ...]]] = {}

    def find_foreign(self, rows: Sequence[Candle | InvalidRow]) -> InvalidRow | None:
        """Return a row with an error text if a response is about another market, otherwise None.

        The response is rejected if its prices are disjoint from the stream's in all minutes that both have: in at least
        three minutes, or by a factor of two.
        """
        pairs = [
            (row, streamed)
            for row in rows
            if isinstance(row, Candle)
            and (streamed := self._minutes.get_minute(row.open_ms)) is not None
            and streamed.src in _STREAMED
        ]
        most = 1 if len(pairs) >= _FOREIGN_MINUTES else _FOREIGN_FACTOR
        is_disjoint = all(row.low > most * one.high or most * row.high < one.low for row, one in pairs)
        if not pairs or not is_disjoint:
            return None
        row, streamed = pairs[-1]
        difference = f"{row.low} to {row.high}, where the stream had {streamed.low} to {streamed.high}"
        return InvalidRow(row.open_ms, f"rows of another market: {difference}")

    def find_outdated(self, candles: Sequence[Candle], known: Mapping[int, Candle], now_ms: int) -> RangeSet:
        """Return the minutes that are older in REST than in the stream. Their volume is smaller, and it only grows."""
        outdated = RangeSet()
        for open_ms in [old for old in self._lesser if now_ms - old > 2 * _CACHED_MS]:
            del self._lesser[open_ms]
        for candle in candles:
            open_ms, streamed = candle.open_ms, known.get(candle.open_ms)
            if streamed is None:
                continue
            is_less = streamed.src in _STREAMED and candle.volume < streamed.volume
            if not is_less or not self._rules.has_ended(candle) or now_ms - open_ms - MINUTE_MS > _CACHED_MS:
                continue
            since_ms, values = self._lesser.get(open_ms, (now_ms, candle.values))
            if values != candle.values:
                since_ms = now_ms
            self._lesser[open_ms] = since_ms, candle.values
            if now_ms - since_ms < _REPEATED_MS:
                outdated.add(open_ms, open_ms + MINUTE_MS)
        return outdated

    def count_blank(
        self, candles: Sequence[Candle], known: Mapping[int, Candle], coverage: "Coverage", until_ms: int
    ) -> int:
        """Count the candles at the beginning of a response, up to `until_ms`, to which nothing can be compared.

        Their minutes have ended, no version of them is known, and the exchange was not asked for them before.
        """
        count = bisect_right(candles, min(until_ms, min(known, default=until_ms + 1) - 1), key=_OPEN)
        end_ms = candles[count - 1].open_ms + MINUTE_MS if count else 0
        if not count or not coverage.is_blank(candles[0].open_ms, end_ms):
            return 0
        has_ended = min(map(_AS_OF, candles[:count])) >= end_ms + self._rules.grace_period_ms
        return count if has_ended else 0

    def count_differences(
        self,
        window: "Window",
        candles: Sequence[Candle],
        known: Mapping[int, Candle],
        unreadable: RangeSet,
        asked_ms: int,
        now_ms: int,
    ) -> tuple[int, int]:
        """Count the final minutes compared with REST for the first time, and all minutes that differ from it."""
        checked = mismatched = 0
        until_ms = min(window.end_ms, self._rules.expected_until(now_ms))
        awaiting = set(self._coverage.unconfirmed.minutes_within(window.start_ms, until_ms))
        compared = known.keys() | awaiting
        answered = {one.open_ms: one for one in candles if one.open_ms in compared and self._rules.has_ended(one)}
        for open_ms in awaiting | answered.keys():
            streamed, row = known.get(open_ms) or self._minutes.get_minute(open_ms), answered.get(open_ms)
            if streamed is None or not streamed.final:
                continue
            differs = row is None or row[1:7] != streamed[1:7]
            if (not differs and open_ms not in awaiting) or open_ms in unreadable:
                continue
            if self._coverage.unconfirmed.was_deferred(open_ms) and open_ms not in self._lesser:  # already counted
                continue
            if row is not None and changed_during_request(streamed, row, asked_ms, now_ms):
                continue
            checked += differs or open_ms in awaiting
            mismatched += differs
        return checked, mismatched


def changed_during_request(known: Candle, candle: Candle, asked_ms: int, now_ms: int) -> bool:
    """Return whether another version of a minute was pushed during the REST request and may therefore be newer."""
    return asked_ms < known.as_of_ms <= now_ms and known.values != candle.values
