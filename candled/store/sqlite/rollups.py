"""Longer bars in the file, folded from stored ones."""

import sqlite3
from collections.abc import Mapping

from candled.errors import StoreRejected
from candled.model import MINUTE, Candle, Interval, RangeSet
from candled.store.batch import fold_bars, fold_sources, touched_bars

from . import statements as sql
from .rows import as_candles, bar_row


def bars_between(
    connection: sqlite3.Connection, market_id: int, interval: Interval, start_ms: int, end_ms: int
) -> list[Candle]:
    """Return the bars that begin in `[start_ms, end_ms)`, oldest first."""
    return as_candles(rows_between(connection, market_id, interval, start_ms, end_ms))


def rows_between(
    connection: sqlite3.Connection,
    market_id: int,
    interval: Interval,
    start_ms: int,
    end_ms: int,
    *,
    as_json: bool = False,
) -> sqlite3.Cursor:
    """Return the rows of the bars that begin in `[start_ms, end_ms)`, oldest first, or one row with their JSON."""
    if interval == MINUTE:
        statement = sql.JSON_OF_MINUTES if as_json else sql.MINUTES_BETWEEN
        return connection.execute(statement, (market_id, start_ms, end_ms))
    statement = sql.JSON_OF_BARS if as_json else sql.BARS_BETWEEN
    return connection.execute(statement, (market_id, interval.ms, start_ms, end_ms))


def fold_levels(
    connection: sqlite3.Connection, market_id: int, changed: RangeSet, levels: Mapping[Interval, Interval]
) -> None:
    """Recompute every bar of `levels` (each with the interval it is folded from) that overlaps `changed`."""
    for interval, source in levels.items():
        bars = [
            bar
            for start_ms, end_ms in touched_bars(changed, interval)
            for bar in fold_bars(bars_between(connection, market_id, source, start_ms, end_ms), interval)
        ]
        connection.executemany(sql.PUT_BAR, [(market_id, interval.ms, *bar_row(bar)) for bar in bars])


def rebuild_rollups(connection: sqlite3.Connection, market_id: int, changed: RangeSet, kept_from_ms: int) -> None:
    """Recompute every longer bar that overlaps `changed`, and drop those without minutes.

    Bars that begin before `kept_from_ms` stay as they are, because their minutes were dropped.
    """
    changed.remove(0, kept_from_ms)
    kept = read_fold_sources(connection)
    for interval in kept:
        rows = [(market_id, interval.ms, *span) for span in touched_bars(changed, interval)]
        connection.executemany(sql.DROP_BARS_BETWEEN, rows)
    fold_levels(connection, market_id, changed, kept)


def read_fold_sources(connection: sqlite3.Connection) -> Mapping[Interval, Interval]:
    """Return the intervals whose bars must be updated with their minutes, as recorded in the file."""
    rows = connection.execute(sql.INTERVALS).fetchall()
    return fold_sources(tuple((parse_interval(interval_ms), bool(is_folded)) for interval_ms, is_folded in rows))


def parse_interval(ms: int) -> Interval:
    """Return the interval of a stored length.

    Raises:
        StoreRejected: no interval has that length.
    """
    try:
        return Interval.of_ms(ms)
    except ValueError as error:
        raise StoreRejected(f"the table of intervals is damaged: {error}") from error
