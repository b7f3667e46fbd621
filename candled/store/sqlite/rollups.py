"""Longer bars in the file, folded from stored ones."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat

import msgspec

from candled.errors import StoreRejected
from candled.model import MINUTE, Candle, Interval, RangeSet
from candled.store.batch import fold_bars, fold_sources, touched_bars

from . import statements as sql
from .file import primary_code
from .rows import Value, as_candles, bar_rows, minute_rows

_decode_rows = msgspec.json.Decoder(list[tuple[int, str, str, str, str, str, str | None, int, int, int]]).decode
_ROWS_AT_ONCE = (64, 16, 4, 1)  # at most 999 values, the limit of an old SQLite


class RowBuffer:
    """Rows to be written at the end of a transaction: those of many markets take a few statements."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._minutes: list[tuple[int, Candle]] = []
        self._bars: list[tuple[int, int, Candle]] = []

    def add_minutes(self, market_id: int, minutes: Iterable[Candle]) -> None:
        """Add a market's minutes."""
        self._minutes += zip(repeat(market_id), minutes)

    def add_bars(self, market_id: int, interval: Interval, bars: Iterable[Candle]) -> None:
        """Add a market's longer bars."""
        self._bars += zip(repeat(market_id), repeat(interval.ms), bars)

    def write_buffered(self) -> None:
        """Write all rows."""
        put_rows(self.connection, sql.PUT_MINUTE, minute_rows(self._minutes))
        put_rows(self.connection, sql.PUT_BAR, bar_rows(self._bars))
        self._minutes, self._bars = [], []


class KnownBars:
    """One market's bars during a transaction. Those that were read or folded before are not read again."""

    def __init__(self, buffer: RowBuffer, market_id: int) -> None:
        self._buffer = buffer
        self._market_id = market_id
        #: By interval: the ranges whose bars are known, and these bars by opening time.
        self._known: dict[Interval, tuple[RangeSet, dict[int, Candle]]] = defaultdict(lambda: (RangeSet(), {}))

    def bars_between(self, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        """Return the bars that begin in `[start_ms, end_ms)`, oldest first."""
        spans, bars = self._known[interval]
        unread = list(spans.missing(start_ms, end_ms))
        if unread:
            first_ms, last_ms = unread[0].start_ms, unread[-1].end_ms
            read = bars_between(self._buffer.connection, self._market_id, interval, first_ms, last_ms)
            for bar in read:
                bars.setdefault(bar.open_ms, bar)
            spans.add(first_ms, last_ms)
        return [bars[open_ms] for open_ms in sorted(bars) if start_ms <= open_ms < end_ms]

    def put_minutes(self, minutes: Sequence[Candle]) -> None:
        """Have minutes written at the end of the transaction."""
        self._buffer.add_minutes(self._market_id, minutes)
        self._known[MINUTE][1].update((one.open_ms, one) for one in minutes)

    def fold_levels(self, changed: RangeSet, levels: Mapping[Interval, Interval]) -> None:
        """Recompute every bar of `levels` (each with the interval it is folded from) that overlaps `changed`."""
        for interval, source in levels.items():
            self._fold_level(interval, source, changed)

    def _fold_level(self, interval: Interval, source: Interval, changed: RangeSet) -> None:
        """Recompute every bar of `interval` that overlaps `changed` from bars of `source`, and have them written."""
        spans, bars = self._known[interval]
        folded = []
        for start_ms, end_ms in touched_bars(changed, interval):
            folded += fold_bars(self.bars_between(source, start_ms, end_ms), interval)
            spans.add(start_ms, end_ms)
        bars.update((bar.open_ms, bar) for bar in folded)
        self._buffer.add_bars(self._market_id, interval, folded)


def put_rows(connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Value, ...]]) -> None:
    """Execute a statement for all rows, many of them per call: after each call, the thread may wait for others."""
    first = 0
    for count in _ROWS_AT_ONCE:
        while first + count <= len(rows):
            connection.execute(sql.of_rows(statement, count), tuple(chain(*rows[first : first + count])))
            first += count


def bars_between(
    connection: sqlite3.Connection, market_id: int, interval: Interval, start_ms: int, end_ms: int
) -> list[Candle]:
    """Return the bars that begin in `[start_ms, end_ms)`, oldest first."""
    text = json_between(connection, market_id, interval, start_ms, end_ms, sql.MINUTES_AS_JSON, sql.BARS_AS_JSON)
    try:
        return as_candles(_decode_rows(text))
    except msgspec.DecodeError:  # perhaps values of other types
        statement = sql.MINUTES_BETWEEN if interval == MINUTE else sql.BARS_BETWEEN
        return as_candles(connection.execute(statement, _range_of(market_id, interval, start_ms, end_ms)))


def json_between(
    connection: sqlite3.Connection,
    market_id: int,
    interval: Interval,
    start_ms: int,
    end_ms: int,
    of_minutes: str = sql.JSON_OF_MINUTES,
    of_bars: str = sql.JSON_OF_BARS,
) -> str:
    """Return the JSON of the bars that begin in `[start_ms, end_ms)`, oldest first; "" if JSON cannot hold a value."""
    statement = of_minutes if interval == MINUTE else of_bars
    try:
        cursor = connection.execute(statement, _range_of(market_id, interval, start_ms, end_ms))
        return str(cursor.fetchone()[0])
    except sqlite3.OperationalError as error:
        if primary_code(error) != sqlite3.SQLITE_ERROR:
            raise
        return ""


def _range_of(market_id: int, interval: Interval, start_ms: int, end_ms: int) -> tuple[int, ...]:
    """Return the parameters of a statement that reads a range."""
    kind = () if interval == MINUTE else (interval.ms,)
    return (market_id, *kind, start_ms, end_ms)


def fold_levels(
    connection: sqlite3.Connection, market_id: int, changed: RangeSet, levels: Mapping[Interval, Interval]
) -> None:
    """Recompute every bar of `levels` (each with the interval it is folded from) that overlaps `changed`."""
    buffer = RowBuffer(connection)
    KnownBars(buffer, market_id).fold_levels(changed, levels)
    buffer.write_buffered()


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
    """Map each interval that the file records, which every writer updates, to the one that it is folded from."""
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
