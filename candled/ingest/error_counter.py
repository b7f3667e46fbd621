"""A counter of errors of one kind that decides which of them are logged."""

_QUIET_MS = 60_000


class ErrorCounter:
    """A count of errors. Each series is logged twice: its first error, and its end with the number of errors.

    This class is pure: times are arguments, in milliseconds of a clock that never goes back. A series ends after a
    minute without an error.
    """

    def __init__(self) -> None:
        #: The number of all errors.
        self.total = 0
        self._series = 0
        self._newest_ms = 0

    def add_error(self, now_ms: int) -> bool:
        """Count one error; return whether it begins a series and should be logged."""
        self.total += 1
        self._series += 1
        self._newest_ms = now_ms
        return self._series == 1

    def end_series(self, now_ms: int) -> int:
        """Return the number of errors of a series that has just ended, once; otherwise 0."""
        if not self._series or now_ms - self._newest_ms < _QUIET_MS:
            return 0
        count, self._series = self._series, 0
        return count
