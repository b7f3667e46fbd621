"""Reads all metrics from the parts of the daemon, when they are asked for. Between two scrapes the parts only count."""

import platform
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric

from candled import __version__
from candled.parts import Parts

from .ingest import collect_ingest, collect_states, collect_symbols
from .samples import Samples
from .serving import collect_bars, collect_clients, collect_requests, collect_tokens
from .storing import collect_bus, collect_store


class Metrics:
    """The text of `/metrics`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Read the parts. The registry calls this for each scrape."""
        samples, parts, ingest = Samples(), self._parts, self._parts.ingest
        measures = {} if ingest is None else ingest.measure()
        summary = parts.health.summarize(measures)
        _collect_process(samples, parts, is_healthy=summary["status"] == "pass")
        for name, counts in parts.health.count_states(measures).items():
            collect_states(samples, name, counts)
        if ingest is not None:
            collect_ingest(samples, ingest, measures)
            if parts.config.server.metrics_per_symbol:
                collect_symbols(samples, ingest)
        facts = parts.health.describe_writer()
        collect_store(samples, parts.store, facts, parts.writer, parts.history, parts.upkeep)
        collect_bus(samples, parts.bus)
        collect_clients(samples, parts.server, parts.hub)
        collect_requests(samples, parts.server)
        collect_tokens(samples, parts.server)
        collect_bars(samples, parts.bars, parts.cache)
        return samples.families()


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
