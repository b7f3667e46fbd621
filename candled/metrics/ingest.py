"""The metrics of exchanges: of their feeds, their REST APIs and the history read from them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from candled.ingest.counts import IngestCounts
from candled.ingest.feeds import INTERRUPTION_KINDS
from candled.ingest.measures import IngestMeasures
from candled.model import REASONS, STATES, StateCounts
from candled.tasks import Pace

from .samples import Samples

if TYPE_CHECKING:
    from candled.ingest.http import HttpClient
    from candled.ingest_side import ShardedIngest

_SYMBOL_US = 40  # to add the series of a symbol, on a slow machine


def collect_states(samples: Samples, exchange: str, counts: StateCounts) -> None:
    """Add the states of an exchange's symbols."""
    samples.add_all("feed_state", ((state, counts.states[state]) for state in STATES), exchange)
    samples.add("feed_unhealthy_symbols", counts.unhealthy, exchange)


def collect_ingest(samples: Samples, ingest: "ShardedIngest", measures: Mapping[str, IngestMeasures]) -> None:
    """Add everything about the exchanges that this process reads."""
    for exchange, counts in ingest.counts.items():
        found = measures.get(exchange, IngestMeasures())
        _collect_feeds(samples, exchange, found, counts)
        _collect_history(samples, exchange, found, counts)
        _collect_requests(samples, exchange, ingest.clients[exchange])


async def collect_symbols(samples: Samples, ingest: "ShardedIngest", pace: Pace) -> None:
    """Add the series of single symbols, in several passes of the loop."""
    for exchange, one in ingest.measure_symbols():
        name = str(one.symbol)
        samples.add("symbol_state", 1, exchange, name, one.state)
        samples.add("symbol_missing_candles", one.missing, exchange, name)
        samples.add("symbol_revisions", one.revisions, exchange, name)
        if one.pushed_ms is not None:
            samples.add("feed_last_candle_timestamp_seconds", one.pushed_ms / 1000, exchange, name)
        await pace.spend(_SYMBOL_US)


def _collect_feeds(samples: Samples, exchange: str, measures: IngestMeasures, counts: IngestCounts) -> None:
    samples.add("feed_connections", measures.connected_feeds, exchange)
    samples.add("feed_connections_wanted", measures.feeds, exchange)
    samples.add("feed_connects_total", counts.connects, exchange)
    reconnects = ((kind, counts.interruptions[kind]) for kind in INTERRUPTION_KINDS)
    samples.add_all("feed_reconnects_total", reconnects, exchange)
    samples.add("feed_events_total", counts.candle_events, exchange)
    samples.add("feed_malformed_frames_total", counts.malformed_frames, exchange)
    samples.add("feed_errors_total", counts.complaints, exchange)
    samples.add("feed_invalid_candles_total", counts.closed_invalid_rows + measures.invalid_rows, exchange)
    samples.add("feed_revisions_total", counts.closed_revisions + measures.revisions, exchange)
    samples.add_histogram("feed_lag_seconds", counts.lag_s, exchange)
    if measures.pushed_ms is not None:
        samples.add("feed_last_event_timestamp_seconds", measures.pushed_ms / 1000, exchange)
    samples.add("exchange_clock_skew_seconds", measures.skew_ms / 1000, exchange)
    samples.add("exchange_rest_up", measures.is_rest_available, exchange)


def _collect_history(samples: Samples, exchange: str, measures: IngestMeasures, counts: IngestCounts) -> None:
    samples.add_all("gaps_open", ((reason, measures.gaps[reason]) for reason in REASONS), exchange)
    samples.add_all("gap_candles_open", ((reason, measures.gap_minutes[reason]) for reason in REASONS), exchange)
    samples.add("gap_candles_repaired_total", counts.repaired, exchange)
    samples.add("audit_checked_total", counts.checked, exchange)
    samples.add("audit_mismatch_total", counts.mismatched, exchange)
    samples.add("audit_unconfirmed_candles", measures.unconfirmed, exchange)
    if measures.compared:
        samples.add("parity_ratio", 1 - measures.differing / measures.compared, exchange)
    samples.add("store_audits_total", counts.store_audits, exchange)
    samples.add("store_audit_lost_candles_total", counts.lost_minutes, exchange)


def _collect_requests(samples: Samples, exchange: str, client: "HttpClient") -> None:
    samples.add_all("exchange_requests_total", client.statuses.items(), exchange)
    for host, facts in client.describe().items():
        budgets = {"host": facts["budgetLeft"], **facts["budgets"]}
        for budget, left in budgets.items():
            samples.add("exchange_budget_remaining_ratio", left, exchange, host, budget)
        samples.add("exchange_pause_seconds", facts["closedForSeconds"], exchange, host)
