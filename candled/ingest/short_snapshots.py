"""Snapshots that are shortened to their newest minutes, because REST will be asked for the others anyway. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from candled.exchange import Candles
from candled.model import MINUTE_MS, Range, Symbol

if TYPE_CHECKING:
    from .market import MarketIngest

#: The minutes of a snapshot that are kept.
NEWEST = 3


def newest_minutes(snapshot: Candles) -> Candles:
    """Return a snapshot with its newest minutes only."""
    candles = tuple(sorted(snapshot.candles)[-NEWEST:])
    invalid = tuple(row for row in snapshot.invalid if row.open_ms is None or row.open_ms > candles[0].open_ms)
    return replace(snapshot, candles=candles, invalid=invalid)


@dataclass(frozen=True, slots=True)
class _LeftOut:
    span: Range
    #: The minutes of `span` that the snapshot had.
    minutes: int


class ShortSnapshots:
    """Shortens the snapshots of markets whose older history REST will be asked for.

    Storing hundreds of minutes of a snapshot, and reading them again to compare them with REST's answer, is most of the
    work at the start of a market. If REST fails, or lacks minutes that were left out, the subscription must be renewed,
    and all of the next snapshot is used.
    """

    def __init__(self, max_history_minutes: int) -> None:
        self._page_ms = max_history_minutes * MINUTE_MS
        self._left_out: dict[Symbol, _LeftOut] = {}
        #: The markets whose subscriptions to renew, until their next snapshot.
        self.unmet: set[Symbol] = set()

    @property
    def is_shortening(self) -> bool:
        """True while REST has not answered for all minutes that were left out."""
        return bool(self._left_out)

    def use_snapshot(self, snapshot: Candles, market: "MarketIngest", *, may_shorten: bool) -> Candles:
        """Return the part of a snapshot to use: all of it, or its newest minutes."""
        symbol, is_unmet = snapshot.symbol, snapshot.symbol in self.unmet
        self.forget_markets([symbol])
        left_out = None if is_unmet or not may_shorten else self._find_excess(snapshot, market)
        if left_out is None:
            return snapshot
        self._left_out[symbol] = left_out
        return newest_minutes(snapshot)

    def _find_excess(self, snapshot: Candles, market: "MarketIngest") -> _LeftOut | None:
        """Return the minutes of a snapshot that REST is asked for in the same requests as for those before it."""
        minutes, coverage = sorted(candle.open_ms for candle in snapshot.candles), market.coverage
        if len(minutes) <= NEWEST or not market.status.is_rest_usable:
            return None
        missing = coverage.unasked_within(coverage.from_ms, minutes[0])
        if not missing:
            return None
        start_ms = next(iter(missing)).start_ms
        requests, shortened = (-(-(at_ms - start_ms) // self._page_ms) for at_ms in (minutes[0], minutes[-1]))
        return _LeftOut(Range(minutes[0], minutes[-NEWEST]), len(minutes) - NEWEST) if requests == shortened else None

    def on_answer(self, market: "MarketIngest") -> None:
        """Check after an answer of REST that it contains the minutes that were left out."""
        left_out, coverage = self._left_out.get(market.key.symbol), market.coverage
        if left_out is None or coverage.unasked_within(*left_out.span):
            return
        del self._left_out[market.key.symbol]
        if (left_out.span.end_ms - left_out.span.start_ms) // MINUTE_MS - coverage.count_missing(
            *left_out.span
        ) < left_out.minutes:
            self.unmet.add(market.key.symbol)

    def on_failure(self, symbols: Collection[Symbol]) -> None:
        """Record that REST cannot be asked about some markets."""
        failed = self._left_out.keys() & symbols
        self.unmet |= failed
        for symbol in failed:
            del self._left_out[symbol]

    def forget_markets(self, symbols: Iterable[Symbol]) -> None:
        """Forget some markets."""
        for symbol in symbols:
            self.unmet.discard(symbol)
            self._left_out.pop(symbol, None)
