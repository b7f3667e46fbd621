"""The clock of the loop's passes: processor time at nearly the cost of reading the wall clock."""

from collections.abc import Callable

#: The most that the clock is ahead of the processor time, in seconds.
AHEAD_S = 0.0003


class PassClock:
    """A clock of the thread's processor time, in seconds, which is at most `AHEAD_S` ahead.

    Reading the processor time is a system call, which takes up to a hundred times as long as reading the wall clock.
    Processor time never grows faster than wall time. So the wall time since the last reading is added to it, until the
    sum may be too far ahead.

    Args:
        wall: a monotonic clock, in seconds.
        processor: the thread's processor time, in seconds.
    """

    def __init__(self, wall: Callable[[], float], processor: Callable[[], float]) -> None:
        self._wall = wall
        self._processor = processor
        # processor time minus the wall's, at the last reading, and the wall's time from which a new reading is needed
        self._offset_s = self._expires_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        now = self._wall()
        if now >= self._expires_s:
            self._offset_s = self._processor() - now
            self._expires_s = now + AHEAD_S
        return now + self._offset_s
