"""Collects samples by family, and makes the metrics of prometheus-client from them."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from candled.histogram import Histogram

from .families import BY_NAME, PREFIX, Family

_Made = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_KINDS = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


class Samples:
    """The samples of one scrape."""

    def __init__(self) -> None:
        self._made: dict[str, _Made] = {}

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add the value of a counter or a gauge, with the values of its labels in order.

        Raises:
            KeyError: no family has this name.
        """
        made = self._find(BY_NAME[name])
        assert not isinstance(made, HistogramMetricFamily)
        made.add_metric(labels, value)

    def add_all(self, name: str, values: Iterable[tuple[str, float]], *labels: str) -> None:
        """Add a value for each of several values of the last label."""
        for last, value in values:
            self.add(name, value, *labels, last)

    def add_histogram(self, name: str, histogram: Histogram, *labels: str) -> None:
        """Add a histogram."""
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        made = self._find(BY_NAME[name])
        assert isinstance(made, HistogramMetricFamily)
        made.add_metric(labels, list(zip(bounds, histogram.cumulative(), strict=True)), histogram.sum)

    def families(self) -> Iterator[Metric]:
        """Yield the families that have samples."""
        yield from self._made.values()

    def _find(self, family: Family) -> _Made:
        made = self._made.get(family.name)
        if made is None:
            kind = _KINDS[family.kind]
            made = self._made[family.name] = kind(PREFIX + family.name, family.meaning, labels=family.labels)
        return made
