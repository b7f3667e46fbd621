"""The metrics of the store and of the bus."""

from collections.abc import Mapping
from typing import Any

from candled.parts import Parts

from .samples import Samples

_STORE_STATES = ("ok", "unavailable", "rejecting")
_LEASE_STATES = ("leader", "follower", "unsure")
_GAPS = ("hole", "heartbeat")  # the reasons for reading a symbol again that mean missing messages


def collect_store(samples: Samples, parts: Parts) -> None:
    """Add the store and the journal."""
    writer, history, facts = parts.writer, parts.history, parts.health.describe_writer()
    samples.add_all("db_state", ((state, state == facts["state"]) for state in _STORE_STATES))
    samples.add("db_read_up", history.problem is None)
    samples.add("db_conflicts", len(parts.upkeep.conflicts))
    samples.add("db_queue_rows", facts["waiting"])
    samples.add_histogram("db_write_seconds", writer.write_s)
    samples.add_histogram("db_batch_rows", writer.batch_rows)
    samples.add("db_rows_written_total", facts["written"])
    samples.add("db_rows_refused_total", facts["refused"])
    samples.add("db_rows_rejected_total", facts["rejected"])
    samples.add_all("db_errors_total", ((kind, writer.errors[kind]) for kind in ("unavailable", "rejected")))
    samples.add_all("db_reads_total", ((result, history.reads[result]) for result in ("ok", "failed")))
    if facts["lastFlushMs"] is not None:
        samples.add("db_last_write_timestamp_seconds", facts["lastFlushMs"] / 1000)
    kind = parts.store.describe()
    if "bytes" in kind:
        samples.add_all("db_file_bytes", {"data": kind["bytes"], "log": kind["walBytes"]}.items())
    if "freeWriters" in kind:
        samples.add_all("db_free_connections", {"write": kind["freeWriters"], "read": kind["freeReaders"]}.items())
    journal = facts["journal"]
    if journal is not None:
        samples.add("journal_rows", journal["rows"])
        samples.add("journal_bytes", journal["bytes"])
        samples.add("journal_limit_bytes", journal["limit"])


def collect_bus(samples: Samples, parts: Parts) -> None:
    """Add the bus. A bus in memory reports less than Redis does. A process that only serves has no leases."""
    facts: Mapping[str, Any] = parts.bus.describe()
    samples.add("bus_connected", facts["connected"])
    samples.add("bus_unpublished_symbols", len(parts.bus.unpublished_markets()))
    if "generation" in facts:
        _collect_receiving(samples, facts)
    if "published" in facts:
        samples.add("bus_published_total", facts["published"])
        samples.add("bus_refused_total", facts["refused"])
        samples.add("bus_queue_symbols", facts["waitingMarkets"])
    if "leases" in facts:
        states = [lease["state"] for lease in facts["leases"]]
        samples.add_all("leases", ((state, states.count(state)) for state in _LEASE_STATES))
        samples.add("lease_transitions_total", facts["leaseChanges"])
        samples.add("ingest_processes", facts["processes"])


def _collect_receiving(samples: Samples, facts: Mapping[str, Any]) -> None:
    if facts["lagMs"] is not None:
        samples.add("bus_lag_seconds", facts["lagMs"] / 1000)
    samples.add("bus_connects_total", facts["generation"])
    samples.add_all("bus_disconnects_total", facts["linkEnds"].items())
    rereads: Mapping[str, int] = facts["healed"]
    samples.add("bus_sequence_gaps_total", sum(rereads.get(reason, 0) for reason in _GAPS))
    samples.add_all("bus_rereads_total", ((reason.replace(" ", "_"), count) for reason, count in rereads.items()))
    ignored: Mapping[str, int] = facts["ignored"]
    samples.add_all("bus_ignored_total", ((reason.replace(" ", "_"), count) for reason, count in ignored.items()))
    samples.add("bus_heartbeat_age_seconds", max(facts["heartbeatAgeMs"].values(), default=0) / 1000)
