"""Events of feeds that cannot be processed yet, in bounded memory. Pure."""

from collections import deque
from collections.abc import Iterable, Sequence

from candled.exchange import Candles, SubscriptionRejected
from candled.model import Symbol

from .short_snapshots import NEWEST, newest_minutes

_MOST_EVENTS = 1000  # of a market
_MOST_ROWS = 50_000  # of all markets, about 40 MB

EarlyEvent = tuple[Candles | SubscriptionRejected, int | None]
"""An event, and when it was received on the exchange's clock, UTC epoch ms; None before the clock was reliable."""


class EarlyEvents:
    """Keeps the events of feeds until their markets are open, or until the exchange's clock is known.

    If that takes long, for example because the store is unavailable, old events are dropped: those of a market with too
    many events, and of the market with the most rows if all markets together have too many rows. REST has their
    minutes.
    """

    def __init__(self, most_events: int = _MOST_EVENTS, most_rows: int = _MOST_ROWS) -> None:
        self._most_events = most_events
        self._most_rows = most_rows
        self._events: dict[Symbol, deque[EarlyEvent]] = {}
        self._rows: dict[Symbol, int] = {}
        #: The number of rows of all markets.
        self.rows = 0

    def add_event(self, event: Candles | SubscriptionRejected, received_ms: int | None) -> None:
        """Keep an event."""
        symbol, rows = event.symbol, _rows_of(event)
        events = self._events.setdefault(symbol, deque())
        events.append((event, received_ms))
        self._rows[symbol] = self._rows.get(symbol, 0) + rows
        self.rows += rows
        if len(events) > self._most_events:
            self._drop_oldest(symbol)
        while self.rows > self._most_rows:
            self._drop_oldest(max(self._rows, key=self._rows.__getitem__))

    def take_events(self, symbol: Symbol) -> Sequence[EarlyEvent]:
        """Return the events of a market, oldest first, and keep them no longer."""
        self.rows -= self._rows.pop(symbol, 0)
        return self._events.pop(symbol, ())

    def take_all(self) -> Sequence[Candles | SubscriptionRejected]:
        """Return the events of all markets, and keep them no longer."""
        return [event for symbol in list(self._events) for event, _ in self.take_events(symbol)]

    def forget_markets(self, symbols: Iterable[Symbol]) -> None:
        """Drop the events of some markets."""
        for symbol in symbols:
            self.take_events(symbol)

    def _drop_oldest(self, symbol: Symbol) -> None:
        event, received_ms = self._events[symbol].popleft()
        rows = _rows_of(event)
        if isinstance(event, Candles) and event.snapshot and len(event.candles) > NEWEST:
            event = newest_minutes(event)
            self._events[symbol].appendleft((event, received_ms))
            rows -= _rows_of(event)
        self._rows[symbol] -= rows
        self.rows -= rows


def _rows_of(event: Candles | SubscriptionRejected) -> int:
    return 1 + len(event.candles) + len(event.invalid) if isinstance(event, Candles) else 1
