"""Invalid input from one source: how many cases there are, and when to log them."""

_QUIET_MS = 60_000


class Complaints:
    """A count of invalid input. Each series is logged twice: its first case, and its end with the number of cases.

    This class is pure: times are arguments, in milliseconds of a clock that never goes back. A series ends after a
    minute without a case.
    """

    def __init__(self) -> None:
        #: The number of all cases.
        self.total = 0
        #: The newest case, in words; empty before the first.
        self.newest = ""
        self._series = 0
        self._newest_ms = 0

    def note(self, reason: str, now_ms: int) -> bool:
        """Count one case; return whether it begins a series and should be logged."""
        self.total += 1
        self._series += 1
        self.newest, self._newest_ms = reason, now_ms
        return self._series == 1

    def ended(self, now_ms: int) -> int:
        """Return the number of cases of a series that has just ended, once; otherwise 0."""
        if not self._series or now_ms - self._newest_ms < _QUIET_MS:
            return 0
        count, self._series = self._series, 0
        return count
