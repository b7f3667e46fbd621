"""Reads all metrics from the parts of the daemon, at each scrape. Between two scrapes the parts only count."""

import platform
from collections.abc import Iterable, Iterator
from copy import copy

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric, Sample

from candled import __version__
from candled.parts import Parts
from candled.tasks import Pace

from .ingest import collect_ingest, collect_states, collect_symbols
from .samples import Samples
from .serving import collect_bars, collect_clients, collect_requests, collect_tokens
from .storing import collect_bus, collect_store

_SLICE, _SAMPLE_US = 200, 15  # samples, and the time to encode one on a slow machine


class Metrics:
    """The text of `/metrics`, made in several passes of the loop: none of them lasts long, however many symbols."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    async def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        pace, texts = Pace(self._parts.clock), []
        samples = await self._collect(pace)
        for family in (*self._process.collect(), *samples.families()):
            for text, count in _encode(family):
                texts.append(text)
                await pace.spend(count * _SAMPLE_US)
        return b"".join(texts)

    async def _collect(self, pace: Pace) -> Samples:
        """Read the parts."""
        samples, parts, ingest = Samples(), self._parts, self._parts.ingest
        measures = {} if ingest is None else await ingest.measure(pace)
        summary = parts.health.summarize_measures(measures)
        _collect_process(samples, parts, is_healthy=summary["status"] == "pass")
        for name, counts in parts.health.count_states(measures).items():
            collect_states(samples, name, counts)
        if ingest is not None:
            collect_ingest(samples, ingest, measures)
            if parts.config.server.metrics_per_symbol:
                await collect_symbols(samples, ingest, pace)
        for collect in (collect_store, collect_bus, collect_clients, collect_requests, collect_tokens, collect_bars):
            collect(samples, parts)
        return samples


class _Slice:
    """A registry with some samples of one family."""

    def __init__(self, family: Metric, samples: list[Sample]) -> None:
        self._family = copy(family)
        self._family.samples = samples

    def collect(self) -> Iterable[Metric]:
        """Return the family."""
        return [self._family]


def _encode(family: Metric) -> Iterator[tuple[bytes, int]]:
    """Yield the text of a family in slices, each with the number of its samples."""
    for start in range(0, max(1, len(family.samples)), _SLICE):
        samples = family.samples[start : start + _SLICE]
        text = generate_latest(_Slice(family, samples))
        # only the first slice has the family's meaning and type
        yield text if start == 0 else text.split(b"\n", 2)[2], len(samples)


def _collect_process(samples: Samples, parts: Parts, *, is_healthy: bool) -> None:
    config = parts.config
    kinds = (url.partition(":")[0] for url in (config.store.url, config.bus.url))
    samples.add("build_info", 1, __version__, platform.python_version())
    samples.add("process_info", 1, ",".join(config.roles), *kinds)
    samples.add("healthy", is_healthy)
    samples.add("stopping", parts.server.reports.is_stopping())
    samples.add_histogram("loop_lag_seconds", parts.lag.histogram)
    blocks = ((plugin, one.count) for plugin, one in parts.watchdog.blockages.items())
    samples.add_all("plugin_blocks_total", blocks)
    for plugin, thread in parts.hooks.threads.items():
        counts = thread.counts
        results = {"ok": counts.called - counts.failed, "failed": counts.failed, "dropped": counts.dropped}
        samples.add_all("closed_bar_calls_total", results.items(), plugin)
        samples.add("closed_bar_calls_waiting", thread.queued, plugin)
