"""Makes the status page's document from the parts of the daemon, in slices. No slice blocks the loop for long."""

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candled.ingest.measures import IngestMeasures
from candled.model import iso_ms

from .last_hour import EVERY_S, LastHour
from .market_rows import MarketRows, encode
from .problems import ExchangeReadings, Readings, find_problems
from .processes import ProcessList

if TYPE_CHECKING:
    from candled.bus.redis.processes import ProcessRegistry
    from candled.parts import Parts

_LATE_S = 0.1
_HOUR_S, _QUARTER_S, _FIVE_MINUTES_S = 3600.0, 900.0, 300.0
_UNREAD = IngestMeasures()


class StatusReport:
    """The document of the status page. `process` names this one if several share its port; `registry` knows the others.

    Call `take_sample` every `EVERY_S` seconds.
    """

    def __init__(self, parts: "Parts", process: str | None, registry: "ProcessRegistry | None") -> None:
        self._parts = parts
        #: This process and the others.
        self.processes = ProcessList(parts, process, registry)
        self._process = process
        self._hour = LastHour()
        self._markets = MarketRows(parts)

    def take_sample(self) -> None:
        """Add the present numbers to the last hour."""
        parts = self._parts
        messages, server = parts.hub.counts, parts.server
        counters: dict[str, float] = {
            "messages": messages.updates + messages.sent.total(),
            "bytes": server.sent_bytes,
            "requests": server.counts.requests.total(),
            "refusals": server.describe()["work"]["refused"],
            "rejected": parts.writer.describe()["rejected"],
            "ticks": parts.lag.histogram.count,
            "late": parts.lag.count_over(_LATE_S),
        }
        counters |= {f"blocks {plugin}": one.count for plugin, one in parts.watchdog.blockages.items()}
        ingested = {} if parts.ingest is None else parts.ingest.counts
        counters["candles"] = sum(one.candle_events for one in ingested.values())
        counters |= {f"lost {name}": one.lost_minutes for name, one in ingested.items()}
        gauges = {
            "clients": server.connection_count,
            "rooms": parts.hub.room_count,
            "lag_ms": round(parts.lag.take_worst() * 1000, 1),
            "descriptors": _used_descriptors(),
        }
        self._hour.add_sample(parts.clock.monotonic(), gauges, counters)

    async def render(self, *, shows_details: bool) -> bytes:
        """Return the document as JSON.

        Args:
            shows_details: True to include error texts and the names of hosts.
        """
        parts = self._parts
        rows, measures = await self._markets.read(shows_details=shows_details)
        summary = parts.health.summarize_measures(measures)
        writer, bus = parts.health.describe_writer(), parts.bus.describe()
        exchanges = {
            name: self._describe_exchange(name, one, measures.get(name), shows_details=shows_details)
            for name, one in summary["exchanges"].items()
        }
        problems = find_problems(self._read(summary, writer, bus, measures))
        document = {
            "time": iso_ms(parts.clock.now_ms()),
            "status": "warn" if problems else "pass",
            "process": {
                "name": self._process,
                "version": summary["version"],
                "uptimeSeconds": summary["uptimeSeconds"],
                "roles": summary["roles"],
                "stopping": parts.server.reports.is_stopping(),
            },
            "problems": [one._asdict() for one in problems],
            "exchanges": exchanges,
            "store": self._describe_store(writer, shows_details=shows_details),
            "bus": self._describe_bus(bus, shows_details=shows_details),
            **self.processes.describe(shows_details=shows_details),
            "clients": self._describe_clients(),
            "lastHour": self._describe_hour(),
        }
        head = encode(document)
        return b'%s,"markets":[%s]}\n' % (head[:-1], b",".join(rows))

    def _describe_exchange(
        self, name: str, summary: Mapping[str, Any], measures: IngestMeasures | None, *, shows_details: bool
    ) -> dict[str, Any]:
        facts = {key: value for key, value in summary.items() if key != "reasons"}
        if measures is None or self._parts.ingest is None:
            return facts
        hosts = self._parts.ingest.clients[name].describe()
        budgets = [left for host in hosts.values() for left in (host["budgetLeft"], *host["budgets"].values())]
        facts |= {
            "connections": measures.connected_feeds,
            "connectionsWanted": measures.feeds,
            "restAvailable": measures.is_rest_available,
            "clockSkewMs": measures.skew_ms,
            "compared": measures.compared,
            "parity": round(1 - measures.differing / measures.compared, 6) if measures.compared else None,
            "unconfirmedMinutes": measures.unconfirmed,
            "gaps": {
                reason: {"count": count, "minutes": measures.gap_minutes[reason]}
                for reason, count in sorted(measures.gaps.items())
            },
            "budgetLeft": min(budgets, default=1.0),
            "pauseSeconds": _longest_pause(hosts),
        }
        return {**facts, "hosts": hosts} if shows_details else facts

    def _describe_store(self, writer: Mapping[str, Any], *, shows_details: bool) -> dict[str, Any]:
        parts, journal, written_ms = self._parts, writer["journal"], writer["lastFlushMs"]
        facts = {
            "kind": parts.config.store.url.partition(":")[0],
            "state": writer["state"],
            "readable": parts.history.problem is None,
            "conflicts": len(parts.upkeep.conflicts),
            "queuedRows": writer["waiting"],
            "lastWrite": None if written_ms is None else iso_ms(written_ms),
            "journal": None if journal is None else {key: journal[key] for key in ("rows", "bytes", "limit")},
        }
        return {**facts, "error": writer["lastError"]} if shows_details and writer["state"] != "ok" else facts

    def _describe_bus(self, bus: Mapping[str, Any], *, shows_details: bool) -> dict[str, Any]:
        ages = bus.get("heartbeatAgeMs", {})
        leases = {str(lease["shard"]): lease for lease in bus.get("leases", ())}
        facts = {
            "kind": bus["kind"],
            "connected": bus["connected"],
            "lagMs": bus.get("lagMs"),
            "ingestProcesses": bus.get("processes"),
            "process": bus.get("process"),
            "shards": [
                {
                    "shard": int(shard),
                    "state": leases[shard]["state"] if shard in leases else None,
                    "leader": leases[shard]["leader"] if shard in leases else None,
                    "heartbeatAgeMs": ages.get(shard),
                }
                for shard in sorted({*ages, *leases}, key=int)
            ],
        }
        return {**facts, "error": bus["trouble"]} if shows_details and "trouble" in bus else facts

    def _describe_clients(self) -> dict[str, Any]:
        server, hub = self._parts.server, self._parts.hub
        return {
            "connections": server.connection_count,
            "limit": server.most_connections,
            "rooms": hub.room_count,
            "subscriptions": hub.subscription_count,
            "slow": len(server.transport.blocked),
            "queuedBytes": server.transport.queued_bytes,
            "httpConnections": server.describe()["http"]["connections"],
        }

    def _describe_hour(self) -> dict[str, Any]:
        hour = self._hour
        lists = {
            "messagesPerSecond": hour.list_rates("messages"),
            "bytesPerSecond": hour.list_rates("bytes"),
            "requestsPerSecond": hour.list_rates("requests"),
            "clients": hour.list_gauge("clients"),
            "loopLagMs": hour.list_gauge("lag_ms"),
        }
        if self._parts.ingest is not None:
            lists["candlesPerSecond"] = hour.list_rates("candles")
        return {"everySeconds": EVERY_S, **{name: _rounded(values) for name, values in lists.items()}}

    def _read(
        self,
        summary: Mapping[str, Any],
        writer: Mapping[str, Any],
        bus: Mapping[str, Any],
        measures: Mapping[str, IngestMeasures],
    ) -> Readings:
        """Return the numbers that problems are found in."""
        parts, hour, journal = self._parts, self._hour, writer["journal"]
        ticks = hour.find_increase("ticks", _FIVE_MINUTES_S)
        counts = parts.health.count_states(measures)
        tls, journal_limit = parts.server.tls, journal["limit"] if journal else 0
        return Readings(
            is_healthy=summary["status"] == "pass",
            exchanges={
                name: ExchangeReadings(
                    measures=measures.get(name, _UNREAD),
                    symbols=counts[name].states.total(),
                    unhealthy=counts[name].unhealthy,
                    pause_s=0.0 if parts.ingest is None else _longest_pause(parts.ingest.clients[name].describe()),
                    lost=hour.find_increase(f"lost {name}", _HOUR_S),
                )
                for name in counts
            },
            store_state=writer["state"],
            is_readable=parts.history.problem is None,
            conflicts=len(parts.upkeep.conflicts),
            rejected=hour.find_increase("rejected", _QUARTER_S),
            journal=journal["bytes"] / journal_limit if journal_limit else 0.0,
            is_bus_connected=bool(bus["connected"]),
            heartbeat_s=max(bus.get("heartbeatAgeMs", {}).values(), default=0) / 1000,
            late_share=hour.find_increase("late", _FIVE_MINUTES_S) / ticks if ticks else 0.0,
            blocks={plugin: hour.find_increase(f"blocks {plugin}", _QUARTER_S) for plugin in parts.watchdog.blockages},
            certificate_s=None if tls is None else (tls.expires_ms - parts.clock.now_ms()) / 1000,
            descriptors=(hour.list_gauge("descriptors") or [0.0])[-1] or 0.0,
            connections=parts.server.connection_count,
            most_connections=parts.server.most_connections,
            refusals_per_s=hour.find_increase("refusals", _FIVE_MINUTES_S) / _FIVE_MINUTES_S,
        )


def _longest_pause(hosts: Mapping[str, Mapping[str, Any]]) -> float:
    return max((host["closedForSeconds"] for host in hosts.values()), default=0.0)


def _used_descriptors() -> float:
    """Return the used share of the process's file descriptors; 0 if the system does not report them."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return 0.0
    return 0.0 if limit == resource.RLIM_INFINITY else used / limit


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 1) for value in values]
