"""Longer bars in PostgreSQL: recomputed after changes of minutes, and over all history for a new interval."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from candled.model import MINUTE, MINUTE_MS, Interval, RangeSet, sources
from candled.store.batch import fold_sources, touched_bars
from candled.store.sql_store import FOLD_CHUNK_MS, log_progress, log_unused

from . import statements as sql
from .pool import DatabaseConnection
from .rows import as_arrays


def in_minutes(interval: Interval) -> int:
    """Return the length of an interval in minutes, as used in the tables."""
    return interval.ms // MINUTE_MS


def fold_changes(connection: DatabaseConnection, changed: Mapping[int, RangeSet]) -> None:
    """Recompute every longer bar that overlaps the changed ranges of some markets. The caller has locked the markets.

    The list of intervals is read only now, after locking. If another process adds an interval, it is in this list, or
    its folding waits for the locks and then sees the minutes of this transaction.
    """
    _fold(connection, changed, fold_sources(read_intervals(connection)))


def rebuild_rollups(connection: DatabaseConnection, market_id: int, changed: RangeSet, from_ms: int) -> None:
    """Drop and recompute every longer bar that overlaps the ranges and begins at or after `from_ms`."""
    for interval, source in fold_sources(read_intervals(connection)).items():
        bars = touched_bars(changed, interval)
        bars.remove(0, interval.floor(from_ms + interval.ms - 1))
        for span in bars:
            connection.execute(sql.DROP_BARS_BETWEEN, (market_id, in_minutes(interval), *span))
        _fold_level(connection, interval, source, [(market_id, *span) for span in bars])


def fold_history(connection: DatabaseConnection, intervals: Iterable[Interval]) -> Iterator[None]:
    """Fold stored minutes into the intervals that are new to the database, step by step.

    If interrupted, it starts again.
    """
    wanted = sorted(intervals)
    connection.execute(sql.ADD_INTERVALS, ([str(interval) for interval in wanted],))
    connection.commit()  # from here on, every writer updates the new ones too
    folded = read_folded(connection)
    connection.commit()
    log_unused(folded - set(wanted))
    fresh = set(wanted) - folded
    if not fresh:
        return
    chosen = {interval: source for interval, source in sources(fresh | folded).items() if interval in fresh}
    markets = read_spans(connection)
    for done, (market_id, first_ms, last_ms) in enumerate(markets, start=1):
        # A bar across the edge of two chunks is folded with each of them. The second time, all its parts exist.
        for start_ms in range(first_ms, last_ms + 1, FOLD_CHUNK_MS):
            connection.execute(sql.LOCK_MARKET, (market_id,))
            _fold(connection, {market_id: RangeSet([(start_ms, start_ms + FOLD_CHUNK_MS)])}, chosen)
            connection.commit()
            yield
        log_progress(chosen, done, len(markets))
    connection.execute(sql.SET_FOLDED, ([str(interval) for interval in fresh],))
    connection.commit()


def read_spans(connection: DatabaseConnection) -> list[tuple[int, int, int]]:
    """Return number, first and last minute of every market that has minutes."""
    rows = connection.fetch_rows(sql.SPANS)
    connection.commit()
    return [(market_id, first_ms, last_ms) for market_id, first_ms, last_ms in rows]


def read_intervals(connection: DatabaseConnection) -> tuple[tuple[Interval, bool], ...]:
    """Return the intervals that every writer updates, each with True if its past is folded too."""
    return tuple((Interval.parse(name), is_folded) for name, is_folded in connection.fetch_rows(sql.INTERVALS))


def read_folded(connection: DatabaseConnection) -> frozenset[Interval]:
    """Return the intervals whose past is folded, so that their bars can be read."""
    return frozenset(interval for interval, is_folded in read_intervals(connection) if is_folded)


def _fold(connection: DatabaseConnection, changed: Mapping[int, RangeSet], chosen: Mapping[Interval, Interval]) -> None:
    """Recompute every bar of `chosen` that overlaps the changed ranges of the markets."""
    for interval, source in chosen.items():
        bars = [(id, *span) for id in sorted(changed) for span in touched_bars(changed[id], interval)]
        _fold_level(connection, interval, source, bars)


def _fold_level(
    connection: DatabaseConnection, interval: Interval, source: Interval, bars: Sequence[tuple[int, int, int]]
) -> None:
    """Fold `source` bars into the bars of `interval` in some ranges: market's number, start and end, in ms."""
    if not bars:
        return
    bounds = min(start_ms for _, start_ms, _ in bars), max(end_ms for _, _, end_ms in bars)
    parameters = (in_minutes(interval), in_minutes(interval), *as_arrays(bars), *bounds)
    if source == MINUTE:
        connection.execute(sql.FOLD_MINUTES, parameters)
    else:
        connection.execute(sql.FOLD_BARS, (*parameters, in_minutes(source)))
