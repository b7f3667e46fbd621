"""The pacing of one room: at most one update a second, each bar's last state before the next bar's first."""

from candled.model import Candle

MIN_GAP_S = 1.0
RESYNC_GAP_S = 5.0
MOST_BEHIND = 5  # bars waiting for their turn before a fresh `initial` is the faster way


class Pace:
    """Decides when which bar of one room is sent. Pure: `now` is monotonic seconds.

    One slot per bar, oldest first: a bar's newest state replaces what waits in its slot. A change of a bar older than
    the last one sent cannot be an update any more; it asks for a resync, that is a fresh `initial`.
    """

    __slots__ = ("_next_at", "_resync", "_resynced_at", "_slots", "sent")

    def __init__(self) -> None:
        self.sent: Candle | None = None
        self._slots: dict[int, Candle] = {}
        self._next_at = 0.0
        self._resync = False
        self._resynced_at = float("-inf")

    def start(self, newest: Candle | None, now: float) -> None:
        """The room's first member was told everything up to `newest`."""
        self.sent = newest
        self._slots.clear()
        self._next_at = max(self._next_at, now)
        self._resync = False

    def offer(self, bar: Candle) -> bool:
        """Take a changed bar; False if it is older than what was sent, so that only a resync can show it."""
        sent = self.sent
        if sent is not None:
            if bar.open_ms < sent.open_ms:
                return False
            if bar.open_ms == sent.open_ms and bar.values == sent.values:
                self._slots.pop(bar.open_ms, None)
                return True
        self._slots[bar.open_ms] = bar
        if len(self._slots) > MOST_BEHIND:
            self._resync = True
        return True

    @property
    def behind(self) -> int | None:
        """The newest bar that waits; None when nothing waits."""
        return max(self._slots) if self._slots else None

    @property
    def oldest_waiting(self) -> int | None:
        """The oldest bar that waits; None when nothing waits."""
        return min(self._slots) if self._slots else None

    def ask_resync(self) -> None:
        """Some members need a fresh `initial`."""
        self._resync = True

    @property
    def due_at(self) -> float | None:
        """When `take` has something next; None when nothing waits."""
        times = [self._next_at] if self._slots else []
        if self._resync:
            times.append(self._resynced_at + RESYNC_GAP_S)
        return min(times, default=None)

    def take(self, now: float) -> Candle | None:
        """The bar to send now, if its time has come."""
        if not self._slots or now < self._next_at:
            return None
        bar = self._slots.pop(min(self._slots))
        self.sent = bar
        self._next_at = now + MIN_GAP_S
        return bar

    def take_resync(self, now: float) -> bool:
        """Whether members that need it get a fresh `initial` now.

        With more bars waiting than `MOST_BEHIND` everybody needs it: `overrun` said so before.
        """
        if not self._resync or now < self._resynced_at + RESYNC_GAP_S:
            return False
        self._resync = False
        self._resynced_at = now
        return True

    @property
    def overrun(self) -> bool:
        """Whether so many bars wait that all members are better served by a fresh `initial`."""
        return len(self._slots) > MOST_BEHIND
