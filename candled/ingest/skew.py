"""How far the exchange's clock is from one of ours."""

from collections import deque

_SAMPLES = 64


class ClockSkew:
    """Estimates exchange clock minus our clock, in milliseconds.

    A statement arrives after it was made, so each sample is low by the time it travelled: the largest recent
    sample is the nearest to the truth.
    """

    def __init__(self, samples: int = _SAMPLES) -> None:
        self.ms = 0  # the estimate; 0 before the first sample
        self._samples: deque[int] = deque(maxlen=samples)

    def observe(self, as_of_ms: int, received_ms: int) -> None:
        """Take one statement of the exchange's clock and when it reached us."""
        samples, sample = self._samples, as_of_ms - received_ms
        leaving = samples[0] if len(samples) == samples.maxlen else None
        samples.append(sample)
        if len(samples) == 1 or sample >= self.ms:
            self.ms = sample
        elif leaving == self.ms:
            self.ms = max(samples)

    @property
    def is_known(self) -> bool:
        """Whether there was a sample."""
        return bool(self._samples)
