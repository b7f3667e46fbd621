"""The rows of the status page's markets, read in slices. No slice blocks the loop for long."""

import json
from typing import TYPE_CHECKING, Any

from candled.ingest.market import MarketIngest
from candled.ingest.measures import IngestMeasures
from candled.model import FeedState, MarketKey
from candled.tasks import Pace

from .days import FULL, grade_day, join_equal, last_days

if TYPE_CHECKING:
    from candled.parts import Parts

# The work of the parts of a row, in microseconds of a slow machine.
_MARKET, _FEED, _DAY, _UNEVEN_DAY = 100, 10, 1, 50
_DAYS_LAST_S = 30.0  # how long the days of a market are kept


class MarketRows:
    """Reads the markets of this process: those of ingest from their exchanges, and those of the bars over the bus."""

    def __init__(self, parts: "Parts") -> None:
        self._parts = parts
        # the graded days of each market, and the monotonic time until which they are kept
        self._days: dict[MarketKey, tuple[float, str]] = {}

    async def read(self, *, shows_details: bool) -> tuple[list[bytes], dict[str, IngestMeasures]]:
        """Return a row of JSON for each market, and the numbers of the exchanges that are read here."""
        rows: dict[MarketKey, bytes] = {}
        measures: dict[str, IngestMeasures] = {}
        parts, pace = self._parts, Pace(self._parts.clock)
        for ingest in [] if parts.ingest is None else parts.ingest.running:
            own, silent = measures.setdefault(ingest.name, IngestMeasures()), ingest.silent_symbols
            ingest.measure_feeds(own)
            unpublished = parts.bus.unpublished_markets()
            for symbol in list(ingest.symbols):
                await pace.spend(_MARKET)
                if symbol not in ingest.symbols:  # removed meanwhile
                    continue
                key = MarketKey(ingest.name, symbol)
                market = ingest.measure_market(symbol, own, silent)
                row = _describe_market(key, market, ingest.now_ms, shows_details=shows_details)
                if key in unpublished:
                    row |= {"state": "stale", "reason": "not_published"}
                if market is not None:
                    row["days"] = await self._find_days(market, ingest.now_ms, pace)
                rows[key] = encode(row)
        for key, feed in parts.bars.list_feeds().items():
            if key not in rows:
                await pace.spend(_FEED)
                rows[key] = encode(_describe_feed(key, feed, shows_details=shows_details))
        self._days = {key: days for key, days in self._days.items() if key in rows}
        return list(rows.values()), measures

    async def _find_days(self, market: MarketIngest, now_ms: int, pace: Pace) -> str:
        """Return the levels of a market's last days. They are kept for a while, because they change slowly."""
        now, kept = self._parts.clock.monotonic(), self._days.get(market.key)
        if kept is None or now >= kept[0]:
            levels = []
            for day in last_days(now_ms):
                level = grade_day(market.coverages, day)
                levels.append(level)
                await pace.spend(_DAY if level == FULL else _UNEVEN_DAY)
            # each market has a time of its own, so that not all are due in the same second
            share = hash(market.key) % 100 / 100
            kept = self._days[market.key] = now + _DAYS_LAST_S * (1 + share), join_equal(levels)
        return kept[1]


def _describe_market(
    key: MarketKey, market: MarketIngest | None, now_ms: int, *, shows_details: bool
) -> dict[str, Any]:
    """Return the row of a market that is read here; keys without a value are left out."""
    row: dict[str, Any] = {"exchange": key.exchange, "symbol": str(key.symbol)}
    if market is None:
        return {**row, "state": "warming", "reason": "starting"}
    condition = market.status.condition(now_ms)
    row["state"] = condition.state
    if condition.reason:
        row["reason"] = condition.reason
    if market.presence.pushed_ms is not None:
        row["lagMs"] = max(0, now_ms - market.presence.pushed_ms)
    gaps = {"missing": missing} if (missing := market.missing_minutes(now_ms)) else {}
    for coverage in market.coverages:
        for reason, (_, minutes) in coverage.gap_counts.items():
            gaps[reason] = gaps.get(reason, 0) + minutes
    if gaps:
        row["gaps"] = gaps
    problem = market.status.describe_problems(condition)
    return {**row, "error": problem} if shows_details and problem else row


def _describe_feed(key: MarketKey, feed: FeedState, *, shows_details: bool) -> dict[str, Any]:
    """Return the row of a market whose candles arrive over the bus."""
    row: dict[str, Any] = {"exchange": key.exchange, "symbol": str(key.symbol), "state": feed.state}
    if feed.reason:
        row["reason"] = feed.reason
    return {**row, "error": feed.problem} if shows_details and feed.problem else row


def encode(value: Any) -> bytes:
    """Return JSON without blanks."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")  # an exchange's text may contain half a character
