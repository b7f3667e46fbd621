"""The present state of one exchange's ingest in numbers, for the summary of `/health` and for metrics."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from candled.model import MINUTE_MS, StateCounts, Symbol

from .market import MarketIngest


class SymbolMeasures(NamedTuple):
    """The numbers of one symbol."""

    symbol: Symbol
    state: str
    #: When the stream last delivered a candle, UTC epoch milliseconds on the exchange's clock; None before the first.
    pushed_ms: int | None = None
    #: Minutes still to be fetched, and final minutes that were corrected.
    missing: int = 0
    revisions: int = 0


@dataclass(slots=True)
class IngestMeasures:
    """The numbers of one exchange, of all shards that this process reads."""

    #: The open markets, by state and by reason.
    states: StateCounts = field(default_factory=StateCounts)
    #: The number of feeds.
    feeds: int = 0
    #: The number of feeds that are connected.
    connected_feeds: int = 0
    #: The number of gaps by reason. `missing` ones are still to be fetched.
    gaps: Counter[str] = field(default_factory=Counter)
    #: The number of minutes in gaps by reason.
    gap_minutes: Counter[str] = field(default_factory=Counter)
    #: Final minutes that REST has not confirmed yet.
    unconfirmed: int = 0
    #: Final minutes that were corrected, of the markets that are open.
    revisions: int = 0
    #: Rows that are not valid candles, of the markets that are open.
    invalid_rows: int = 0
    #: When a feed last delivered a candle, UTC epoch milliseconds on the exchange's clock; None before the first.
    pushed_ms: int | None = None
    #: How far the exchange's clock is ahead of this machine's, in milliseconds. Of several shards, the largest.
    skew_ms: int = 0
    #: True if the exchange's REST API can be read, by all shards.
    is_rest_available: bool = True
    #: Minutes compared with REST in the last 24 hours.
    compared: int = 0
    #: Those of the compared minutes that differed.
    differing: int = 0

    def count_market(self, market: MarketIngest, now_ms: int, *, is_silent: bool) -> None:
        """Add an open market. `is_silent` means that its subscription delivers nothing."""
        condition, beginning = market.status.condition(now_ms), market.coverage.beginning
        is_unsure = beginning is not None and beginning.reason == "unconfirmed"
        has_problem = is_silent or is_unsure or market.status.has_problem
        self.states.count_state(condition.state, condition.reason, has_problem=has_problem)
        missing = market.find_missing(now_ms)
        if missing:
            self.gaps["missing"] += len(missing)
            self.gap_minutes["missing"] += missing.total_ms // MINUTE_MS
        for coverage in market.coverages:
            for reason, (count, minutes) in coverage.gap_counts.items():
                self.gaps[reason] += count
                self.gap_minutes[reason] += minutes
        self.unconfirmed += market.coverage.unconfirmed.minute_count
        self.revisions += market.revisions
        self.invalid_rows += market.rows.invalid.total
        pushed_ms = market.presence.pushed_ms
        if pushed_ms is not None and (self.pushed_ms is None or pushed_ms > self.pushed_ms):
            self.pushed_ms = pushed_ms
