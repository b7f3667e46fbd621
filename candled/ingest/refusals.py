"""Subscriptions that an exchange refused, and when to ask for each again."""

from collections.abc import Iterable
from dataclasses import dataclass

from candled.model import Symbol

_FIRST_PAUSE_S = 60.0
_LONGEST_PAUSE_S = 3600.0


@dataclass(slots=True)
class _Refusal:
    #: how often the symbol was refused in a row
    count: int = 0
    #: when to ask again, monotonic seconds; None while an answer is awaited
    retry_at: float | None = None


class Refusals:
    """Remembers refused symbols across connections: each is asked for again after growing pauses, without an end.

    Pure: `now` is monotonic seconds. The pauses double from one minute to one hour.
    """

    def __init__(self) -> None:
        self._known: dict[Symbol, _Refusal] = {}

    def note(self, symbol: Symbol, now: float) -> None:
        """Note that the exchange refused a symbol."""
        refusal = self._known.setdefault(symbol, _Refusal())
        refusal.retry_at = now + min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(refusal.count, 30))
        refusal.count += 1

    def forget(self, symbol: Symbol) -> None:
        """Note that a symbol brought candles."""
        self._known.pop(symbol, None)

    def hasten(self, symbol: Symbol, now: float) -> None:
        """Ask for a refused symbol now: there is a sign that the exchange has it."""
        refusal = self._known.get(symbol)
        if refusal is not None:
            refusal.count, refusal.retry_at = 0, now

    def admitted(self, symbols: Iterable[Symbol], now: float) -> tuple[Symbol, ...]:
        """Return the symbols that a new connection asks for: all but those whose pause is not over."""
        admitted = []
        for symbol in symbols:
            refusal = self._known.get(symbol)
            if refusal is not None:
                if refusal.retry_at is not None and refusal.retry_at > now:
                    continue
                refusal.retry_at = None
            admitted.append(symbol)
        return tuple(admitted)

    def take_due(self, now: float) -> tuple[Symbol, ...]:
        """Return the symbols whose pause is over, each once."""
        due = tuple(symbol for symbol, one in self._known.items() if one.retry_at is not None and one.retry_at <= now)
        for symbol in due:
            self._known[symbol].retry_at = None
        return due
