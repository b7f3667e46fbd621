"""Measures how late timers of the event loop run: by that much everything else is late too."""

from candled.exchange import Clock
from candled.histogram import Histogram

EVERY_S = 0.1
LAG_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class LoopLag:
    """A sample of the loop's lag. Call `tick` every `EVERY_S` seconds through the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due = float("inf")
        #: The seconds by which the calls were late.
        self.histogram = Histogram(LAG_S)
        self._worst_s = 0.0

    def tick(self) -> None:
        """Count how late this call is."""
        now = self._clock.monotonic()
        if self._due <= now:
            self.histogram.observe(now - self._due)
            self._worst_s = max(self._worst_s, now - self._due)
        self._due = now + EVERY_S

    def take_worst(self) -> float:
        """Return the largest lag since the last call, in seconds."""
        worst_s, self._worst_s = self._worst_s, 0.0
        return worst_s

    def count_over(self, seconds: float) -> int:
        """Return the number of calls that were later than `seconds`, one of `LAG_S`."""
        return self.histogram.count - self.histogram.cumulative()[LAG_S.index(seconds)]
