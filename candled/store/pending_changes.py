"""Changes of the past on their way to the store, which have to be in its log before they are in its minutes."""

from collections.abc import Iterable, Sequence

from candled.bus import Position
from candled.model import MINUTE_MS, Candle, MarketKey, Range

from .batch import minute_ranges
from .interface import SEQ_UNPUBLISHED

Log = dict[tuple[MarketKey, str | None], list[tuple[int, Range]]]
"""By market and epoch, which None leaves to the newest feed: the seq of the message that told of it, and the change."""


class PendingChangeLog:
    """Which of the waiting minutes change the past, and the message that told of it."""

    def __init__(self) -> None:
        self._positions: dict[MarketKey, dict[int, Position]] = {}

    def add_change(self, market: MarketKey, open_ms: int, position: Position) -> None:
        """Note that a minute about to be stored changes the past."""
        self._positions.setdefault(market, {})[open_ms] = position

    def changes_of(self, rows: Iterable[tuple[MarketKey, Candle]]) -> Log:
        """What a page of rows changes in the past, neighbours told by one message together."""
        minutes: dict[tuple[MarketKey, Position], list[int]] = {}
        for market, candle in rows if self._positions else ():
            position = self._positions.get(market, {}).get(candle.open_ms) if candle.final else None
            if position is not None:
                minutes.setdefault((market, position), []).append(candle.open_ms)
        log: Log = {}
        for (market, position), times in minutes.items():
            entries = log.setdefault((market, position.epoch), [])
            entries += [(position.seq, span) for span in minute_ranges(times)]
        return log

    def drop_log(self, log: Log) -> None:
        """Forget what is logged and stored."""
        for (market, epoch), entries in log.items():
            positions = self._positions.get(market, {})
            for seq, (start_ms, end_ms) in entries:
                for open_ms in range(start_ms, end_ms, MINUTE_MS):
                    if positions.get(open_ms) == (epoch, seq):
                        del positions[open_ms]
            if not positions:
                self._positions.pop(market, None)


def of_the_journal(rows: Sequence[tuple[MarketKey, Candle]]) -> Log:
    """Rows of the journal have waited long, and nobody knows any more what they change: all of it."""
    minutes: dict[MarketKey, list[int]] = {}
    for market, candle in rows:
        if candle.final:
            minutes.setdefault(market, []).append(candle.open_ms)
    return {
        (market, None): [(SEQ_UNPUBLISHED, span) for span in minute_ranges(sorted(times))]
        for market, times in minutes.items()
    }
