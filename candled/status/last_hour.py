"""The last hour of a process in samples, for the charts of the status page. Pure."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EVERY_S = 10.0
SAMPLES = 360


@dataclass(frozen=True, slots=True)
class _Sample:
    #: Monotonic seconds.
    at: float
    #: The gauges by name, in their own units.
    gauges: Mapping[str, float]
    #: The counters by name, as totals since the process started.
    counters: Mapping[str, float]


class LastHour:
    """Samples of gauges, and of counters that only grow. Call `add_sample` every `EVERY_S` seconds."""

    def __init__(self) -> None:
        # None for a time without a sample: the loop was blocked, or the machine was suspended
        self._samples: deque[_Sample | None] = deque(maxlen=SAMPLES + 1)

    def add_sample(self, now: float, gauges: Mapping[str, float], counters: Mapping[str, float]) -> None:
        """Add the numbers at `now`, monotonic seconds. A sample of the same moment is ignored."""
        if self._samples and now <= self._newest.at:
            return
        if self._samples:
            missed = round((now - self._newest.at) / EVERY_S) - 1
            self._samples.extend([None] * min(missed, SAMPLES))
        self._samples.append(_Sample(now, dict(gauges), dict(counters)))

    def list_gauge(self, name: str) -> Sequence[float | None]:
        """Return a gauge, oldest first; None where it is not known. All lists are equally long."""
        return [None if one is None else one.gauges.get(name) for one in list(self._samples)[1:]]

    def list_rates(self, name: str) -> Sequence[float | None]:
        """Return the increase of a counter per second, oldest first; None where it is not known."""
        rates: list[float | None] = []
        before: _Sample | None = None
        for sample in self._samples:
            if sample is None or before is None:
                rates.append(None)
            else:
                rates.append(_grown(before, sample, name) / (sample.at - before.at))
            before = sample or before
        return rates[1:]

    def find_increase(self, name: str, within_s: float) -> float:
        """Return by how much a counter grew in the last `within_s` seconds. A counter begins at 0."""
        if not self._samples:
            return 0.0
        newest = self._newest
        oldest = next(one for one in self._samples if one is not None and one.at >= newest.at - within_s)
        return _grown(oldest, newest, name)

    @property
    def _newest(self) -> _Sample:
        newest = self._samples[-1]
        assert newest is not None, "None is only added before a sample"
        return newest


def _grown(before: _Sample, after: _Sample, name: str) -> float:
    """Return the increase of a counter between two samples; 0 if it was reset."""
    return max(0.0, after.counters.get(name, 0.0) - before.counters.get(name, 0.0))
