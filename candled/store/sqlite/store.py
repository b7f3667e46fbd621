"""The embedded store: one SQLite file in write-ahead-log mode."""

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import DecimalException
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from candled.errors import StoreNotReady, StoreRejected
from candled.model import (
    ALL_TIME,
    DAY_MS,
    MINUTE,
    MINUTE_MS,
    WEEK,
    BarTexts,
    Candle,
    Gap,
    Interval,
    MarketKey,
    Range,
    RangeSet,
    sources,
)
from candled.model.gaps import replace_gaps
from candled.store.bar_texts import bar_texts
from candled.store.batch import MarketBatch, group_by_market, merge_changes, touched_bars, unknown_revisions
from candled.store.interface import FEED_DAYS, FEEDS_KEPT, FORMING_KEPT_MS, SEQ_UNPUBLISHED, BadRow, Table
from candled.store.sql_store import FOLD_CHUNK_MS, SqlStore, as_known_gaps, known_gap_row, log_progress, log_unused

from . import statements as sql
from .file import WRONG_FILE, DatabaseFile, primary_code
from .retention import drop_minutes
from .rollups import (
    KnownBars,
    RowBuffer,
    bars_between,
    fold_levels,
    json_between,
    parse_interval,
    put_rows,
    read_fold_sources,
    rebuild_rollups,
)
from .rows import UnreadableRow, as_candles, bar_rows, minute_rows, problem, time_text

logger = logging.getLogger(__name__)

SCHEMA = len(sql.STEPS)
APPLICATION_ID = 0x63616E64  # "cand": distinguishes candled's files from those of other programs


def schema_version(connection: sqlite3.Connection) -> int:
    """Return the version of the schema that a file has; 0 for a new one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _log_changes(
    connection: sqlite3.Connection, market_id: int, epoch: str | None, changes: Sequence[tuple[int, Range]]
) -> bool:
    """Log changes as `Store.log_changes` does; return False if the market does not have this feed."""
    feed = connection.execute(sql.FEED, (market_id, epoch)).fetchone()
    if feed is None:
        return False
    published = [(market_id, feed[0], SEQ_UNPUBLISHED, *span) for seq, span in changes if seq < SEQ_UNPUBLISHED]
    connection.executemany(sql.DROP_UNPUBLISHED, published)
    connection.executemany(sql.LOG_CHANGE, [(market_id, feed[0], seq, *span) for seq, span in changes])
    return True


def _kept_from(connection: sqlite3.Connection) -> int:
    return int(connection.execute(sql.KEPT_FROM).fetchone()[0])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ---------------------------------------------------------------- the store


class SqliteStore(SqlStore):
    """The candles of all markets in the file `path`, with bars of longer intervals next to the minutes.

    Decimals are stored as text, with all digits that the exchange printed. Methods may be called from several threads;
    each has its own connection. With `intervals`, the file belongs to this process until it is closed: only one daemon
    at a time may have it. Guests, opened without intervals, may use it next to that daemon, and writers take turns.
    Without `upgrade`, the daemon refuses a file that is missing or not up to date, as guests always do.
    `retention_days` is how long minutes are kept; None for no limit.
    """

    _sql = sql
    schema_steps = sql.STEP_NAMES

    def __init__(
        self,
        path: str | Path,
        intervals: Iterable[Interval] | None,
        *,
        upgrade: bool = True,
        retention_days: int | None = None,
    ) -> None:
        self._path = Path(path)
        self._configured = None if intervals is None else frozenset(intervals) - {MINUTE}
        self._upgrade_schema = upgrade
        self._retention_days = retention_days
        self._file = DatabaseFile(self._path, may_create=intervals is not None and upgrade)
        self._label = f"{self._path.name}: "
        self._ids: dict[MarketKey, int] = {}

    def open(self) -> None:
        """See `Store.open`.

        Raises:
            StoreUnavailable: another daemon has the file, another program has locked it, or the disk is full or
                failing.
            StoreRejected: the directory is missing, the file cannot be written, is damaged, belongs to another program,
                or has another schema.
        """
        self._file.is_open = True
        try:
            with self._file.errors_translated():
                if self._configured is None:
                    self._check_file(self._file.thread_connection())
                else:
                    self._take_file()
                    if not self._upgrade_schema:
                        self._check_file(self._file.thread_connection())
                    self._prepare_file(SCHEMA)
                    for _ in self._fold_new_intervals(self._configured):
                        pass
                    self._file.watch_identity()
                self._kept = frozenset(self._folded_intervals())
        except BaseException as error:
            self.close()
            if isinstance(error.__cause__, sqlite3.Error) and primary_code(error.__cause__) in WRONG_FILE:
                raise StoreRejected(f"{self._path}: cannot be opened for writing ({error.__cause__})") from error
            raise

    def read_schema(self) -> int:
        """See `SqlStore.read_schema`."""
        if not self._path.exists():
            return 0
        self._file.is_open = True
        try:
            with self._file.errors_translated():
                return self._read_version(self._file.thread_connection())
        finally:
            self.close()

    def migrate(self, version: int) -> None:
        """See `SqlStore.migrate`. No daemon may have the file."""
        self._file.is_open = True
        try:
            with self._file.errors_translated():
                self._take_file()
                self._prepare_file(version)
        finally:
            self.close()

    def close(self) -> None:
        """Close every connection. SQLite then moves the write-ahead log into the file and removes it."""
        self._ids.clear()
        self._file.close_connections()

    def write_minutes(self, rows: Sequence[tuple[MarketKey, Candle]]) -> None:
        """See `Store.write_minutes`. A batch that changes no row only costs reads.

        Invalid rows next to the minutes would prevent the write. They are deleted, as `candled verify --repair` does.
        """
        batches = group_by_market(rows)
        if not batches:
            return
        try:
            self._write_batches(batches)
        except StoreRejected as error:
            if not isinstance(error.__cause__, UnreadableRow | DecimalException) or not self._delete_bad_rows(batches):
                raise
            self._write_batches(batches)

    def _write_batches(self, batches: Mapping[MarketKey, MarketBatch]) -> None:
        with self._file.begin_transaction() as connection:
            ids = {market: self._add_market(connection, market) for market in batches}
            kept_ms, levels, buffer = _kept_from(connection), read_fold_sources(connection), RowBuffer(connection)
            for market, batch in batches.items():
                minutes = {open_ms: candle for open_ms, candle in batch.minutes.items() if open_ms >= kept_ms}
                if minutes:
                    self._write_minutes(buffer, ids[market], minutes, levels)
                self._write_forming(connection, ids[market], batch)
            buffer.write_buffered()
        self._ids.update(ids)

    def drop_interval(self, interval: Interval) -> int:
        """See `Store.drop_interval`. Only the owner of the file may do this, so no daemon is running."""
        if self._configured is None:
            raise StoreRejected(f"{self._path.name}: only its owner can drop an interval")
        self._kept -= {interval}
        return self._drop_bars(interval)

    def rebuild_rollups(self, market: MarketKey, spans: Sequence[Range]) -> None:
        """See `Store.rebuild_rollups`."""
        with self._file.begin_transaction() as connection:
            rebuild_rollups(connection, self._add_market(connection, market), RangeSet(spans), _kept_from(connection))

    def put_bars(self, market: MarketKey, interval: Interval, bars: Sequence[Candle]) -> None:
        """See `SqlStore.put_bars`."""
        with self._file.begin_transaction() as connection:
            market_id = self._add_market(connection, market)
            put_rows(connection, sql.PUT_BAR, bar_rows([(market_id, interval.ms, bar) for bar in bars]))

    def set_kept_from(self, since_ms: int) -> None:
        """See `SqlStore.set_kept_from`."""
        with self._file.begin_transaction() as connection:
            connection.execute(sql.SET_KEPT_FROM, (since_ms,))

    def discard_rows(self, market: MarketKey, rows: Sequence[BadRow]) -> None:
        """See `Store.discard_rows`."""
        bars = [(row.time, row.interval.ms) for row in rows if row.table != "forming" and isinstance(row.time, int)]
        with self._file.begin_transaction() as connection:
            market_id = self._add_market(connection, market)
            for row in rows:
                connection.execute(sql.DISCARD[row.table], (market_id, row.interval.ms, row.time))
            spans = RangeSet((open_ms, open_ms + length_ms) for open_ms, length_ms in bars)
            rebuild_rollups(connection, market_id, spans, _kept_from(connection))

    def read_bars(self, market: MarketKey, interval: Interval, *, before_ms: int, limit: int) -> list[Candle]:
        """See `Store.read_bars`."""
        limit = max(limit, 0)  # SQLite treats a negative limit as no limit
        if interval == MINUTE:
            rows = self._fetch_of_market(sql.MINUTES_BEFORE, market, before_ms, limit)
        else:
            rows = self._fetch_of_market(sql.BARS_BEFORE, market, self._check_interval(interval).ms, before_ms, limit)
        return self._as_candles(reversed(rows))

    def read_bars_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        """See `Store.read_bars_between`."""
        self._check_interval(interval)
        market_id = self._market_id(market)
        if market_id is None:
            return []
        with self._file.errors_translated():
            return bars_between(self._file.thread_connection(), market_id, interval, start_ms, end_ms)

    def read_texts_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> BarTexts:
        """See `Store.read_texts_between`."""
        self._check_interval(interval)
        market_id = self._market_id(market)
        if market_id is None:
            return BarTexts()
        with self._file.errors_translated():
            rows = json_between(self._file.thread_connection(), market_id, interval, start_ms, end_ms)
        return bar_texts(rows, partial(self.read_bars_between, market, interval, start_ms, end_ms))

    def kept_from(self) -> int:
        """See `Store.kept_from`."""
        return int(self._fetch_rows(sql.KEPT_FROM)[0][0])

    def bad_rows(self, market: MarketKey, within: Range = ALL_TIME) -> list[BadRow]:
        """See `Store.bad_rows`. The file checks no types, so any column may contain anything."""
        found: list[BadRow] = []
        for table in sql.SUSPECTS:
            found += self._bad_rows_of(table, market, sql.SUSPECTS[table], *within)
            found += self._bad_rows_of(table, market, sql.WITHOUT_TIME[table])
        return found

    def _bad_rows_of(self, table: Table, market: MarketKey, suspects: str, *within: int) -> list[BadRow]:
        return [
            BadRow(table=table, interval=parse_interval(interval_ms), time=row[0], problem=wrong)
            for interval_ms, *row in self._fetch_of_market(suspects, market, *within)
            if (wrong := problem(row)) is not None
        ]

    def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Range]:
        """See `Store.stored_ranges`."""
        return [Range(*row) for row in self._fetch_of_market(sql.STORED_RANGES, market, start_ms, end_ms)]

    def set_complete_from(self, market: MarketKey, since_ms: int) -> None:
        """See `Store.set_complete_from`."""
        with self._file.begin_transaction() as connection:
            connection.execute(sql.SET_COMPLETE_FROM, (since_ms, since_ms, self._add_market(connection, market)))

    def save_known_gaps(self, market: MarketKey, known_gaps: Sequence[Gap], within: Range = ALL_TIME) -> None:
        """See `Store.save_known_gaps`."""
        with self._file.begin_transaction() as connection:
            market_id = self._add_market(connection, market)
            near = as_known_gaps(connection.execute(sql.KNOWN_GAPS, (market_id, *within)))
            connection.executemany(sql.DROP_KNOWN_GAP, [(market_id, gap.start_ms) for gap in near])
            rows = [(market_id, *known_gap_row(gap)) for gap in replace_gaps(near, known_gaps, within)]
            connection.executemany(sql.PUT_KNOWN_GAP, rows)

    def register_feed(self, markets: Sequence[MarketKey], epoch: str) -> None:
        """See `Store.register_feed`."""
        with self._file.begin_transaction() as connection:
            for market in markets:
                connection.execute(sql.REGISTER_FEED, (self._add_market(connection, market), epoch))

    def log_changes(self, market: MarketKey, epoch: str | None, changes: Sequence[tuple[int, Range]]) -> None:
        """See `Store.log_changes`."""
        with self._file.begin_transaction() as connection:
            market_id = self._add_market(connection, market)
            if not _log_changes(connection, market_id, epoch, changes) and epoch is not None:
                raise StoreRejected(f"{self._path.name}: {market} does not have the feed {epoch}, or no longer has it")

    def cancel_read(self, thread: int) -> None:
        """See `Store.cancel_read`."""
        self._file.interrupt(thread)

    def tidy_up(self, now_ms: int) -> None:
        """Delete old feeds and old forming minutes, and let SQLite refresh its statistics. No final minute is lost."""
        with self._file.begin_transaction() as connection:
            connection.execute(sql.DROP_OLD_FORMING, (FORMING_KEPT_MS,))
            connection.execute(sql.SEE_FEEDS, (now_ms,))
            for kept in connection.execute(sql.OLD_FEEDS, (FEEDS_KEPT, now_ms - FEED_DAYS * DAY_MS)).fetchall():
                connection.execute(sql.DROP_CHANGES, kept)
                connection.execute(sql.DROP_FEEDS, kept)
        self._fetch_rows("PRAGMA optimize")

    def drop_old_minutes(self, now_ms: int) -> Iterator[None]:
        """See `Store.drop_old_minutes`."""
        if self._retention_days is not None:
            yield from drop_minutes(self._file, now_ms - self._retention_days * DAY_MS)

    def check_in(self) -> Sequence[str]:
        """See `Store.check_in`. No other daemon can have the file, unless its lock file was deleted."""
        self._file.verify()
        return ()

    def describe(self) -> dict[str, Any]:
        """Return facts for `/health`: those of every store, and the size of the file and of its log in bytes."""
        log = self._path.with_name(self._path.name + "-wal")
        return {
            "kind": "sqlite",
            "schema": SCHEMA,
            "intervals": [str(interval) for interval in sorted(self._kept)],
            "bytes": _size(self._path),
            "walBytes": _size(log),
        }

    # ------------------------------------------------------------ opening

    def _take_file(self) -> None:
        if not self._path.parent.is_dir():
            raise StoreRejected(f"{self._path}: the directory {self._path.parent} does not exist")
        self._file.take()

    def _prepare_file(self, version: int) -> None:
        """Set the modes of the file, and bring its tables to a version."""
        connection = self._file.thread_connection()
        self._read_version(connection)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # without effect on a file that has tables
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreRejected(
                f"{self._path}: SQLite cannot keep a write-ahead log here (mode {mode!r}); is it on a network drive?"
            )
        with self._file.begin_transaction():  # shows now, not at the first candle, whether the file is writable
            self._change_schema(connection, version)

    def _check_file(self, connection: sqlite3.Connection) -> None:
        """Refuse a file whose tables are not those of this program. The file is not changed."""
        version = self._read_version(connection)
        if version < SCHEMA:
            raise StoreNotReady(
                f"{self._path}: {f'is at schema {version}' if version else 'has no tables yet'}, this program needs "
                f"schema {SCHEMA}: run `candled init-db`, or let the daemon do it (store.init: true)"
            )

    def _read_version(self, connection: sqlite3.Connection) -> int:
        """Return the version of the tables. Refuse a file of another program or of a newer version.

        The file is not changed before this check.
        """
        version = schema_version(connection)
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if owner != APPLICATION_ID and (version or owner or tables):
            raise StoreRejected(f"{self._path}: this SQLite file belongs to another program")
        if version > SCHEMA:
            raise StoreRejected(
                f"{self._path}: written by a newer candled (schema {version}; this one knows up to {SCHEMA})"
            )
        return version

    def _change_schema(self, connection: sqlite3.Connection, wanted: int) -> None:
        """Apply the missing steps, all of them to a new file, or undo the last one."""
        version = schema_version(connection)  # read under the lock, because another process may have upgraded it
        if version == wanted:
            return
        if version:
            logger.info("changing %s from schema %s to %s", self._path, version, wanted)
        steps = sql.STEPS[version:wanted] if version < wanted else (sql.UNDO_LAST_STEP,)
        for statement in chain.from_iterable(steps):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {wanted}")

    # ------------------------------------------------------------ intervals

    def add_intervals(self, intervals: Iterable[Interval]) -> Iterator[None]:
        """See `Store.add_intervals`."""
        self._configured = (self._configured or frozenset()) | (frozenset(intervals) - {MINUTE})
        yield from self._fold_new_intervals(self._configured)
        self._kept = frozenset(self._folded_intervals())

    def _fold_new_intervals(self, wanted: frozenset[Interval]) -> Iterator[None]:
        """Keep bars of the wanted intervals from now on. If this is interrupted, the next start continues it.

        Bars of other intervals are kept and updated too, except those whose folding was interrupted.
        """
        with self._file.begin_transaction() as connection:
            connection.executemany(sql.ADD_INTERVAL, [(interval.ms,) for interval in wanted])
        folded = self._folded_intervals()  # from here on, every writer updates the new ones too
        for (interval_ms,) in self._fetch_rows(sql.UNFOLDED):
            if parse_interval(interval_ms) not in wanted:
                self._drop_bars(parse_interval(interval_ms))
        fresh = wanted - folded
        if fresh:
            yield from self._fold_history(
                {one: source for one, source in sources(fresh | folded).items() if one in fresh}
            )
            with self._file.begin_transaction() as connection:
                connection.executemany(sql.SET_FOLDED, [(interval.ms,) for interval in fresh])
        log_unused(folded - wanted)

    def _drop_bars(self, interval: Interval) -> int:
        with self._file.begin_transaction() as connection:
            connection.execute(sql.DROP_INTERVAL, (interval.ms,))
            market_ids = connection.execute(sql.MARKET_IDS).fetchall()
            return sum(connection.execute(sql.DROP_BARS, (id, interval.ms)).rowcount for (id,) in market_ids)

    def _folded_intervals(self) -> set[Interval]:
        return {parse_interval(interval_ms) for (interval_ms,) in self._fetch_rows(sql.FOLDED)}

    def _fold_history(self, fresh: Mapping[Interval, Interval]) -> Iterator[None]:
        market_ids = [market_id for (market_id,) in self._fetch_rows(sql.MARKET_IDS)]
        for done, market_id in enumerate(market_ids, start=1):
            yield from self._fold_market(market_id, fresh)
            log_progress(fresh, done, len(market_ids))

    def _fold_market(self, market_id: int, fresh: Mapping[Interval, Interval]) -> Iterator[None]:
        oldest_ms, newest_ms = self._fetch_rows(sql.SPAN, market_id)[0]
        if oldest_ms is None:
            return
        oldest_ms = max(oldest_ms, self.kept_from())  # an earlier bar would lack the minutes that were dropped
        # A bar across the edge of two chunks is folded with each of them. The second time, all its parts exist.
        for start_ms in range(oldest_ms, newest_ms + 1, FOLD_CHUNK_MS):
            with self._file.begin_transaction() as connection:
                fold_levels(connection, market_id, RangeSet([(start_ms, start_ms + FOLD_CHUNK_MS)]), fresh)
            yield

    # ------------------------------------------------------------ writing

    def _write_minutes(
        self, buffer: RowBuffer, market_id: int, minutes: Mapping[int, Candle], levels: Mapping[Interval, Interval]
    ) -> None:
        known = KnownBars(buffer, market_id)
        shortest = next(iter(levels), MINUTE)  # the minutes of its bars are needed to fold them
        stored = {
            candle.open_ms: candle
            for start_ms, end_ms in touched_bars(RangeSet.of_parts(minutes, MINUTE_MS), shortest)
            for candle in known.bars_between(MINUTE, start_ms, end_ms)
        }
        changed = merge_changes(minutes, stored)
        if not changed:
            return
        known.put_minutes(changed)
        known.fold_levels(RangeSet.of_parts((candle.open_ms for candle in changed), MINUTE_MS), levels)
        unknown = unknown_revisions(minutes, ((candle.open_ms, candle.rev) for candle in changed))
        if unknown:
            _log_changes(buffer.connection, market_id, None, unknown)

    def _delete_bad_rows(self, batches: Mapping[MarketKey, MarketBatch]) -> bool:
        """Delete invalid rows in the weeks of some minutes; return whether there were any.

        Longer bars are recomputed. Deleted minutes become gaps and are logged as changes, so that ingest fetches them.
        """
        found = False
        for market, batch in batches.items():
            times = [*batch.minutes, *batch.forming]
            weeks = Range(WEEK.floor(min(times)), WEEK.floor(max(times)) + WEEK.ms)
            rows = self._bad_rows_of("forming", market, sql.SUSPECTS["forming"], *ALL_TIME)
            for table in ("candles", "rollups"):
                rows += self._bad_rows_of(table, market, sql.SUSPECTS[table], *weeks)
            if not rows:
                continue
            found = True
            first = f"{time_text(rows[0].time)}: {rows[0].problem} (table {rows[0].table})"
            logger.warning("%s: %s: deleting %d rows that are no bars: %s", self._path.name, market, len(rows), first)
            minutes = [row.time for row in rows if row.table == "candles" and isinstance(row.time, int)]
            self.log_changes(market, None, [(SEQ_UNPUBLISHED, span) for span in RangeSet.of_parts(minutes, MINUTE_MS)])
            self.discard_rows(market, rows)
        return found

    def _write_forming(self, connection: sqlite3.Connection, market_id: int, batch: MarketBatch) -> None:
        rows = connection.execute(sql.FORMING, (market_id,)).fetchall()
        stored = {candle.open_ms: candle for candle in as_candles(rows, final=False)}
        for open_ms, candle in batch.forming.items():
            known = stored.get(open_ms)
            kept = candle.merged_with(known)
            if kept is known or open_ms in batch.minutes:
                continue
            if known is not None or not connection.execute(sql.IS_FINAL, (market_id, open_ms)).fetchone():
                connection.execute(sql.PUT_FORMING, minute_rows([(market_id, kept)])[0])
        ended = stored.keys() & batch.minutes.keys()
        connection.executemany(sql.DROP_FORMING, [(market_id, open_ms) for open_ms in ended])

    def _add_market(self, connection: sqlite3.Connection, market: MarketKey) -> int:
        """Return the number of a market, adding the market if needed.

        It is not cached here, because the transaction may fail.
        """
        known = self._ids.get(market)
        if known is not None:
            return known
        names = (market.exchange, str(market.symbol))
        connection.execute(sql.ADD_MARKET, names)
        return int(connection.execute(sql.MARKET_ID, names).fetchone()[0])

    # ------------------------------------------------------------ reading

    def _market_id(self, market: MarketKey) -> int | None:
        if market not in self._ids and (rows := self._fetch_rows(sql.MARKET_ID, market.exchange, str(market.symbol))):
            self._ids[market] = rows[0][0]
        return self._ids.get(market)

    def _fetch_rows(self, statement: str, *parameters: object) -> list[Any]:
        return self._file.fetch_rows(statement, *parameters)

    def _fetch_of_market(self, statement: str, market: MarketKey, *parameters: object) -> list[Any]:
        market_id = self._market_id(market)
        return [] if market_id is None else self._fetch_rows(statement, market_id, *parameters)

    def _as_candles(self, rows: Iterable[Any], *, final: bool = True) -> list[Candle]:
        with self._file.errors_translated():
            return as_candles(rows, final=final)
