"""A limit of the snapshots that an exchange sends at the same time. Pure."""

from collections.abc import Callable, Collection

from candled.model import Symbol

_PLACES = 5
# Snapshots a second until the first pause, and after it; the seconds without requests that count as a pause.
_FIRST_PER_S, _PER_S, _PAUSE_S = 50.0, 15.0, 5.0
_LATE_S = 0.2  # a late call may take the places of this much time together
#: The time that a snapshot usually takes, seconds.
SNAPSHOT_WITHIN_S = 1.0


class SnapshotPlaces:
    """The places for subscriptions whose snapshot has not arrived, shared by all connections of an exchange.

    Reading and applying a snapshot of hundreds of minutes takes several milliseconds. Many snapshots together would
    delay the updates of all other markets. So at most 15 a second are requested, or 50 up to the first pause. A
    subscription without a snapshot frees its place after a second. While the store `is_behind` with the rows of earlier
    snapshots, one frame a second may be sent: live candles must not wait for a slow store. Times are monotonic seconds.
    """

    def __init__(self, places: int = _PLACES, is_behind: Callable[[], bool] = lambda: False) -> None:
        self._places = places
        self._is_behind = is_behind
        #: By symbol: when its place becomes free without a snapshot, the earliest first.
        self._taken: dict[Symbol, float] = {}
        self._taken_at = float("-inf")
        #: When the next frame may be sent at the earliest; None before the first.
        self._next_at: float | None = None
        self._per_s = _FIRST_PER_S

    def restart(self) -> None:
        """Allow the pace of a start again, because no market has updates."""
        self._next_at, self._per_s = None, _FIRST_PER_S

    def is_starting(self, now: float) -> bool:
        """Return whether there was no pause since the start."""
        return self._per_s == _FIRST_PER_S and (self._next_at is None or now <= self._next_at + _PAUSE_S)

    def has_room(self, now: float) -> bool:
        """Return whether another frame with subscriptions may be sent."""
        while self._taken and next(iter(self._taken.values())) <= now:
            del self._taken[next(iter(self._taken))]
        is_early = self._next_at is not None and now < self._next_at
        must_wait = now < self._taken_at + SNAPSHOT_WITHIN_S and self._is_behind()
        return len(self._taken) < self._places and not is_early and not must_wait

    def take(self, symbols: Collection[Symbol], now: float) -> None:
        """Take a place for each symbol of a frame that is sent now, even if fewer are free."""
        if not self.is_starting(now):
            self._per_s = _PER_S
        next_at = now if self._next_at is None else self._next_at
        self._taken_at, self._next_at = now, max(now - _LATE_S, next_at) + len(symbols) / self._per_s
        for symbol in symbols:
            self._taken.pop(symbol, None)
            self._taken[symbol] = now + SNAPSHOT_WITHIN_S

    def free(self, symbol: Symbol) -> None:
        """Free the place of a symbol that was answered."""
        self._taken.pop(symbol, None)
