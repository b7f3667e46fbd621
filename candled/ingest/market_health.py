"""The state of a market for `/health`."""

from typing import Any

from candled.model import MINUTE_MS, Gap, iso_ms

from .market import MarketIngest


def describe_market(market: MarketIngest, now_ms: int, since_ms: int, *, is_silent: bool) -> dict[str, Any]:
    """Return a market's part of `/health`.

    `since_ms` is the time at which its state began. `is_silent` means that its subscription delivers nothing.
    """
    coverage, known_gaps, condition = market.coverage, market.known_gaps, market.status.condition(now_ms)
    silent = "subscribed, but the exchange sends nothing" if is_silent else None
    return {
        "state": condition.state,
        "reason": condition.reason or None,
        "since": iso_ms(since_ms),
        "connected": market.presence.connected,
        "lastMessageAgeMs": None if market.presence.pushed_ms is None else max(0, now_ms - market.presence.pushed_ms),
        "newestMinute": None if market.minutes.newest_ms is None else iso_ms(market.minutes.newest_ms),
        "completeFrom": None if coverage.since_ms is None else iso_ms(coverage.since_ms),
        "beginning": None if coverage.beginning is None else _describe_gap(coverage.beginning),
        "missingMinutes": market.missing_minutes(now_ms),
        "holes": {
            "count": len(known_gaps),
            "minutes": sum(gap.end_ms - gap.start_ms for gap in known_gaps) // MINUTE_MS,
            "newest": [_describe_gap(gap) for gap in known_gaps[-5:]],
        },
        "revisions": market.revisions,
        "invalidCandles": market.rows.invalid.total,
        "unbelievedStamps": market.rows.implausible_timestamps,
        "unconfirmedMinutes": coverage.unconfirmed.minute_count,
        "listing": market.status.listing,
        "trouble": market.status.describe_problems(condition) or silent,
    }


def _describe_gap(gap: Gap) -> dict[str, Any]:
    return {
        "from": iso_ms(gap.start_ms),
        "to": iso_ms(gap.end_ms),
        "reason": gap.reason,
        "attempts": gap.attempts,
        "nextTry": None if gap.retry_ms is None else iso_ms(gap.retry_ms),
    }
