"""Snapshots that are shortened to their newest minutes, because REST will be asked for the others anyway. Pure."""

from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from candled.exchange import Candles
from candled.model import MINUTE_MS, RangeSet, Symbol

if TYPE_CHECKING:
    from .market import MarketIngest

_OPEN = attrgetter("open_ms")
#: The minutes of a snapshot that are kept.
NEWEST = 3


def newest_minutes(snapshot: Candles) -> Candles:
    """Return a snapshot with its newest minutes only."""
    candles = tuple(sorted(snapshot.candles, key=_OPEN)[-NEWEST:])
    invalid = tuple(row for row in snapshot.invalid if row.open_ms is None or row.open_ms > candles[0].open_ms)
    return replace(snapshot, candles=candles, invalid=invalid)


class ShortSnapshots:
    """Shortens the snapshots of markets whose older history REST will be asked for.

    Storing hundreds of minutes of a snapshot, and reading them again to compare them with REST's answer, is most of the
    work at the start of a market. If REST fails, or lacks minutes that were left out, the subscription must be renewed,
    and all of the next snapshot is used.
    """

    def __init__(self, max_history_minutes: int) -> None:
        self._page_ms = max_history_minutes * MINUTE_MS
        #: The minutes that were left out, until REST has answered for them.
        self._left_out: dict[Symbol, RangeSet] = {}
        #: True if the newest snapshot was shortened, so that the next ones of other markets probably are.
        self.is_shortening = False
        #: The markets whose subscriptions to renew, until their next snapshot.
        self.unmet: set[Symbol] = set()

    def use_snapshot(self, snapshot: Candles, market: "MarketIngest", *, may_shorten: bool) -> Candles:
        """Return the part of a snapshot to use: all of it, or its newest minutes."""
        symbol, is_unmet = snapshot.symbol, snapshot.symbol in self.unmet
        self.forget_markets([symbol])
        left_out = RangeSet() if is_unmet or not may_shorten else self._find_excess(snapshot, market)
        self.is_shortening = bool(left_out)
        if not left_out:
            return snapshot
        self._left_out[symbol] = left_out
        return newest_minutes(snapshot)

    def _find_excess(self, snapshot: Candles, market: "MarketIngest") -> RangeSet:
        """Return the older minutes of a snapshot, if REST delivers them without an additional request; else none.

        Nothing is left out of a snapshot with stored minutes, because it may correct them.
        """
        minutes, coverage = sorted(candle.open_ms for candle in snapshot.candles), market.coverage
        if len(minutes) <= NEWEST or market.ended_ms is not None or not market.status.is_rest_usable:
            return RangeSet()
        missing = coverage.unasked_within(coverage.from_ms, minutes[0])
        if not missing or coverage.covered_within(minutes[0], minutes[-NEWEST]):
            return RangeSet()
        start_ms = next(iter(missing)).start_ms
        requests, shortened = (-(-(at_ms - start_ms) // self._page_ms) for at_ms in (minutes[0], minutes[-1]))
        return RangeSet.of_parts(minutes[:-NEWEST], MINUTE_MS) if requests == shortened else RangeSet()

    def on_answer(self, market: "MarketIngest") -> None:
        """Once REST was asked for all minutes that were left out, check that they are stored."""
        left_out, coverage = self._left_out.get(market.key.symbol), market.coverage
        if left_out is None or any(coverage.unasked_within(*span) for span in left_out):
            return
        del self._left_out[market.key.symbol]
        if any(coverage.unstored_within(*span) for span in left_out):
            self.unmet.add(market.key.symbol)

    def on_failure(self, symbol: Symbol) -> None:
        """Record that REST cannot be asked about a market."""
        if self._left_out.pop(symbol, None) is not None:
            self.unmet.add(symbol)

    def forget_markets(self, symbols: Iterable[Symbol]) -> None:
        """Forget some markets."""
        for symbol in symbols:
            self.unmet.discard(symbol)
            self._left_out.pop(symbol, None)
