"""Changes of the past that are queued for the store. They must be logged before their minutes are stored."""

from collections.abc import Iterable, Sequence

from candled.model import MINUTE_MS, Candle, MarketKey, Position, Range, RangeSet

from .interface import SEQ_UNPUBLISHED

Log = dict[tuple[MarketKey, str | None], list[tuple[int, Range]]]
"""Market and epoch (None: the newest feed) → changes, each with the seq of the message that published it."""


class PendingChangeLog:
    """The queued minutes that change the past, each with the position of the message that published it."""

    def __init__(self) -> None:
        self._positions: dict[MarketKey, dict[int, Position]] = {}

    def add_change(self, market: MarketKey, open_ms: int, position: Position) -> None:
        """Record that a queued minute changes the past."""
        self._positions.setdefault(market, {})[open_ms] = position

    def changes_of(self, rows: Iterable[tuple[MarketKey, Candle]]) -> Log:
        """Return the changes that a page of rows makes in the past. Adjacent ones with the same message are joined."""
        minutes: dict[tuple[MarketKey, Position], list[int]] = {}
        for market, candle in rows if self._positions else ():
            position = self._positions.get(market, {}).get(candle.open_ms) if candle.final else None
            if position is not None:
                minutes.setdefault((market, position), []).append(candle.open_ms)
        log: Log = {}
        for (market, position), times in minutes.items():
            entries = log.setdefault((market, position.epoch), [])
            entries += [(position.seq, span) for span in RangeSet.of_parts(times, MINUTE_MS)]
        return log

    def drop_log(self, log: Log) -> None:
        """Forget changes that are logged and stored."""
        for (market, epoch), entries in log.items():
            positions = self._positions.get(market, {})
            for seq, (start_ms, end_ms) in entries:
                for open_ms in range(start_ms, end_ms, MINUTE_MS):
                    if positions.get(open_ms) == (epoch, seq):
                        del positions[open_ms]
            if not positions:
                self._positions.pop(market, None)


def unpublished_changes(rows: Sequence[tuple[MarketKey, Candle]]) -> Log:
    """Return a log in which all final rows are unpublished changes.

    Rows of the journal have waited so long that it is no longer known which of them change the past.
    """
    minutes: dict[MarketKey, list[int]] = {}
    for market, candle in rows:
        if candle.final:
            minutes.setdefault(market, []).append(candle.open_ms)
    return {
        (market, None): [(SEQ_UNPUBLISHED, span) for span in RangeSet.of_parts(sorted(times), MINUTE_MS)]
        for market, times in minutes.items()
    }
