"""Deletion of old data in PostgreSQL: old feeds, old minutes if configured, and bars of an interval by command."""

import logging

from candled.model import Interval
from candled.store.interface import FEED_DAYS, FEEDS_KEPT

from . import statements as sql
from .pool import DatabaseConnection
from .rollups import in_minutes, spans
from .schema import timescale

logger = logging.getLogger(__name__)

DAY_MS = 86_400_000
DELETE_CHUNK_MS = 28 * DAY_MS

_MONDAYS = Interval.parse("1W")


def forget_feeds(link: DatabaseConnection, now_ms: int) -> None:
    """Drop the feeds that ended long before `now_ms` (UTC epoch milliseconds), with their changes."""
    link.execute(sql.SEE_FEEDS, (now_ms,))
    link.execute(sql.DROP_FEEDS, (FEEDS_KEPT, now_ms - FEED_DAYS * DAY_MS))
    link.commit()


def drop_interval(link: DatabaseConnection, interval: Interval) -> int:
    """Drop the bars of an interval and stop updating them; return how many there were."""
    link.execute(sql.FORGET_INTERVAL, (str(interval),))
    link.commit()
    dropped = 0
    for market_id, _, _ in spans(link):
        link.execute(sql.LOCK_MARKET, (market_id,))  # a writer that still folds from these bars ends first
        dropped += link.execute(sql.DROP_BARS, (market_id, in_minutes(interval)))
        link.commit()
    return dropped


def drop_minutes(link: DatabaseConnection, before_ms: int, *, in_chunks: bool) -> None:
    """Drop the minutes of all weeks that end by `before_ms` (UTC epoch milliseconds), so that no bar loses a part.

    Set `in_chunks` if they are stored in TimescaleDB's chunks.
    """
    before_ms = _MONDAYS.floor(before_ms)
    if before_ms <= 0:
        return
    link.execute(sql.SET_KEPT_FROM, (before_ms, before_ms))
    link.commit()
    if in_chunks:
        link.fetch_rows(sql.LOCK_ALL_MARKETS)  # a writer may still be folding minutes of a dropped chunk
        dropped = timescale.drop_chunks(link, before_ms)
        link.commit()
        if dropped:
            logger.info("dropped %s chunks of minutes", dropped)
        return
    deleted = sum(_delete_minutes(link, market_id, before_ms) for market_id, _, _ in spans(link))
    if deleted:
        logger.info("dropped %s minutes", deleted)


def _delete_minutes(link: DatabaseConnection, market_id: int, before_ms: int) -> int:
    """Delete the market's minutes before a time in small transactions, oldest first; return how many."""
    deleted = 0
    while True:
        [(oldest_ms,)] = link.fetch_rows(sql.OLDEST_MINUTE, (market_id,))
        if oldest_ms is None or oldest_ms >= before_ms:
            link.commit()
            return deleted
        link.execute(sql.LOCK_MARKET, (market_id,))
        end_ms = min(before_ms, oldest_ms + DELETE_CHUNK_MS)
        deleted += link.execute(sql.DELETE_MINUTES, (market_id, oldest_ms, end_ms))
        link.commit()
