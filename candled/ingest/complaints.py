"""Bad input of one source: how much of it there is, and when to log it."""

_QUIET_MS = 60_000


class Complaints:
    """Counts bad input. A series of it is worth two log lines: its first one, and its end with their number.

    Pure: times are arguments, milliseconds of a clock that never goes back. A series ends after a minute without.
    """

    def __init__(self) -> None:
        #: all there were
        self.total = 0
        #: the newest one, in words; empty before the first
        self.newest = ""
        self._series = 0
        self._newest_ms = 0

    def note(self, reason: str, now_ms: int) -> bool:
        """Count one; return whether it begins a series, so that it should be logged."""
        self.total += 1
        self._series += 1
        self.newest, self._newest_ms = reason, now_ms
        return self._series == 1

    def ended(self, now_ms: int) -> int:
        """Return how many there were in a series that is over, once; 0 where there is nothing to log."""
        if not self._series or now_ms - self._newest_ms < _QUIET_MS:
            return 0
        count, self._series = self._series, 0
        return count
