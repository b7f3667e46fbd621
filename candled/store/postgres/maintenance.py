"""Deletion of old data in PostgreSQL: old feeds, old minutes if configured, and bars of an interval by command."""

import logging

from candled.model import DAY_MS, WEEK, Interval
from candled.store.interface import FEED_DAYS, FEEDS_KEPT

from . import statements as sql
from .pool import DatabaseConnection
from .rollups import in_minutes, read_spans
from .schema import timescale

logger = logging.getLogger(__name__)

DELETE_CHUNK_MS = 28 * DAY_MS


def drop_feeds(connection: DatabaseConnection, now_ms: int) -> None:
    """Drop the feeds that ended long before `now_ms` (UTC epoch milliseconds), with their changes."""
    connection.execute(sql.SEE_FEEDS, (now_ms,))
    connection.execute(sql.DROP_FEEDS, (FEEDS_KEPT, now_ms - FEED_DAYS * DAY_MS))
    connection.commit()


def drop_interval(connection: DatabaseConnection, interval: Interval) -> int:
    """Drop the bars of an interval and stop updating them; return their number."""
    connection.execute(sql.DELETE_INTERVAL, (str(interval),))
    connection.commit()
    dropped = 0
    for market_id, _, _ in read_spans(connection):
        connection.execute(sql.LOCK_MARKET, (market_id,))  # a writer that still folds from these bars ends first
        dropped += connection.execute(sql.DROP_BARS, (market_id, in_minutes(interval)))
        connection.commit()
    return dropped


def drop_minutes(connection: DatabaseConnection, before_ms: int, *, in_chunks: bool) -> None:
    """Drop the minutes of all weeks that end by `before_ms` (UTC epoch milliseconds), so that no bar loses a part.

    Set `in_chunks` if they are stored in TimescaleDB's chunks.
    """
    before_ms = WEEK.floor(before_ms)
    if before_ms <= 0:
        return
    connection.execute(sql.SET_KEPT_FROM, (before_ms, before_ms))
    connection.commit()
    if in_chunks:
        connection.fetch_rows(sql.LOCK_ALL_MARKETS)  # a writer may still be folding minutes of a dropped chunk
        dropped = timescale.drop_chunks(connection, before_ms)
        connection.commit()
        if dropped:
            logger.info("dropped %s chunks of minutes", dropped)
        return
    deleted = sum(_delete_minutes(connection, market_id, before_ms) for market_id, _, _ in read_spans(connection))
    if deleted:
        logger.info("dropped %s minutes", deleted)


def _delete_minutes(connection: DatabaseConnection, market_id: int, before_ms: int) -> int:
    """Delete the market's minutes before a time in small transactions, oldest first; return their number."""
    deleted = 0
    while True:
        [(oldest_ms,)] = connection.fetch_rows(sql.OLDEST_MINUTE, (market_id,))
        if oldest_ms is None or oldest_ms >= before_ms:
            connection.commit()
            return deleted
        connection.execute(sql.LOCK_MARKET, (market_id,))
        end_ms = min(before_ms, oldest_ms + DELETE_CHUNK_MS)
        deleted += connection.execute(sql.DELETE_MINUTES, (market_id, oldest_ms, end_ms))
        connection.commit()
