"""Subscriptions that an exchange rejected, and when to request each again."""

from collections.abc import Iterable
from dataclasses import dataclass

from candled.model import Symbol

_FIRST_PAUSE_S = 60.0
_LONGEST_PAUSE_S = 3600.0


@dataclass(slots=True)
class _Rejection:
    #: How often the symbol was rejected in a row.
    count: int = 0
    #: When to ask again, monotonic seconds; None while a reply is pending.
    retry_at: float | None = None


class RejectedSymbols:
    """The rejected symbols of all connections. Each is requested again after growing pauses, without limit.

    This class is pure: `now` is monotonic seconds. The pauses double from one minute to one hour.
    """

    def __init__(self) -> None:
        self._known: dict[Symbol, _Rejection] = {}

    def add_rejection(self, symbol: Symbol, now: float) -> None:
        """Record that the exchange rejected a symbol."""
        rejection = self._known.setdefault(symbol, _Rejection())
        rejection.retry_at = now + min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(rejection.count, 30))
        rejection.count += 1

    def remove_symbol(self, symbol: Symbol) -> None:
        """Record that a symbol delivered candles."""
        self._known.pop(symbol, None)

    def retry_now(self, symbol: Symbol, now: float) -> None:
        """Request a rejected symbol now, because the exchange seems to have it."""
        rejection = self._known.get(symbol)
        if rejection is not None:
            rejection.count, rejection.retry_at = 0, now

    def select_allowed(self, symbols: Iterable[Symbol], now: float) -> tuple[Symbol, ...]:
        """Return the symbols to request on a new connection: all but those that are still in a pause."""
        allowed = []
        for symbol in symbols:
            rejection = self._known.get(symbol)
            if rejection is not None:
                if rejection.retry_at is not None and rejection.retry_at > now:
                    continue
                rejection.retry_at = None
            allowed.append(symbol)
        return tuple(allowed)

    def take_due(self, now: float) -> tuple[Symbol, ...]:
        """Return the symbols whose pause is over, each once."""
        due = tuple(symbol for symbol, one in self._known.items() if one.retry_at is not None and one.retry_at <= now)
        for symbol in due:
            self._known[symbol].retry_at = None
        return due
