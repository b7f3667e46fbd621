"""How far the exchange's clock is from one of ours."""

from collections import deque


class ClockSkew:
    """Estimates exchange clock minus our clock, in milliseconds.

    A statement arrives after it was made, so each sample is low by the time it travelled: the largest recent
    sample is the nearest to the truth.
    """

    def __init__(self, samples: int = 64) -> None:
        self._samples: deque[int] = deque(maxlen=samples)

    def observe(self, as_of_ms: int, received_ms: int) -> None:
        """Take one statement of the exchange's clock and when it reached us."""
        self._samples.append(as_of_ms - received_ms)

    @property
    def is_known(self) -> bool:
        """Whether there was a sample."""
        return bool(self._samples)

    @property
    def ms(self) -> int:
        """The estimate; 0 before the first sample."""
        return max(self._samples, default=0)
