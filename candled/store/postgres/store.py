"""The store for large installations: PostgreSQL, with TimescaleDB if the server has it."""

import json
import logging
import os
import platform
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from typing import Any, TypeVar

from candled.errors import StoreRejected
from candled.model import (
    ALL_TIME,
    DAY_MS,
    MINUTE,
    MINUTE_MS,
    BarTexts,
    Candle,
    Gap,
    Interval,
    MarketKey,
    Range,
    RangeSet,
)
from candled.model.gaps import replace_gaps
from candled.store.bar_texts import bar_texts
from candled.store.batch import group_by_market, unknown_revisions
from candled.store.interface import FORMING_KEPT_MS, SEQ_UNPUBLISHED, BadRow
from candled.store.sql_store import SqlStore, as_known_gaps, known_gap_row

from . import statements as sql
from .maintenance import drop_feeds, drop_interval, drop_minutes
from .markets import limited_time, lock_markets, names_of, put_forming, read_kept_from, spans_within
from .pool import DatabaseConnection, Pool, Watchdog, parse_address
from .rollups import fold_changes, fold_history, in_minutes, read_folded, rebuild_rollups
from .rows import as_arrays, as_candles, as_columns
from .schema import SCHEMA, STEP_NAMES, check_schema, migrate_schema, read_version, timescale

logger = logging.getLogger(__name__)

T = TypeVar("T")

OLDEST_SERVER = 140_000  # date_bin needs PostgreSQL 14
RANGES_CHUNK_MS = 100 * DAY_MS
MAINTENANCE_LIMIT_S = 3600.0


class PostgresStore(SqlStore):
    """The candles of all markets in the schema `candled` of the database at `url`.

    Bars of longer intervals are stored next to the minutes. Several processes may use one database, each with its own
    intervals: every writer updates all intervals that any of them was ever configured for, until one is dropped by
    command. A guest, opened without intervals, adds none. Methods may be called from any thread. At most `writers`
    write and `readers` read at a time, and further calls wait. Each statement ends within `limit_s` seconds, even if
    the connection fails; `open` and `tidy_up` may take longer.

    `compress_after_days` (requires TimescaleDB under the Timescale licence) and `retention_days` control how `tidy_up`
    treats old minutes; None disables each. Longer bars are never dropped. Without `upgrade`, and always as a guest,
    `open` refuses a database whose tables are missing or not up to date, and changes none of them.
    """

    _sql = sql
    schema_steps = STEP_NAMES
    _unit_ms = MINUTE_MS

    def __init__(
        self,
        url: str,
        intervals: Iterable[Interval] | None,
        *,
        compress_after_days: int | None = None,
        retention_days: int | None = None,
        upgrade: bool = True,
        writers: int = 2,
        readers: int = 4,
        limit_s: float = 10.0,
    ) -> None:
        self._parameters = parse_address(url)
        self._configured = None if intervals is None else frozenset(intervals) - {MINUTE}
        self._id = secrets.token_hex(8)
        self._since_ms: int | None = None
        self._compress_after_days = compress_after_days
        self._retention_days = retention_days
        self._upgrade = upgrade
        self._sizes = writers, readers
        self._limit_s = limit_s
        self._pools: tuple[Watchdog, Pool, Pool] | None = None
        self._facts: dict[str, Any] = {"kind": "postgresql", "schema": SCHEMA}
        self._timescale = timescale.Timescale()

    # ------------------------------------------------------------ opening and closing

    def open(self) -> None:
        """See `Store.open`. Other processes may use the database at the same time.

        Raises:
            StoreUnavailable: the server cannot be reached, or does not accept connections now.
            StoreRejected: the server is too old, the schema is not the required one, or the role may not create tables.
        """
        self.close()
        with self._own_connection() as connection:
            if self._configured is None:
                check_schema(connection)
                self._store_features(connection, timescale.find_features(connection))
            else:
                self._prepare_tables(connection, self._configured)
            self._kept = read_folded(connection)
        watchdog = Watchdog()
        writers, readers = self._sizes
        connect = partial(DatabaseConnection, self._parameters, watchdog, limit_s=self._limit_s)
        self._pools = (
            watchdog,
            Pool(partial(connect, autocommit=False), writers, wait_s=self._limit_s),
            Pool(partial(connect, autocommit=True), readers, wait_s=self._limit_s),
        )

    def read_schema(self) -> int:
        """See `SqlStore.read_schema`."""
        with self._own_connection() as connection:
            return read_version(connection)

    def migrate(self, version: int) -> None:
        """See `SqlStore.migrate`. Waits for other processes that prepare the database."""
        with self._own_connection() as connection:
            connection.fetch_rows(sql.PREPARE)
            migrate_schema(connection, version)

    def close(self) -> None:
        """Close every connection. Calls in progress on other threads end first or fail."""
        pools, self._pools = self._pools, None
        if pools is None:
            return
        watchdog, writers, readers = pools
        writers.close()
        readers.close()
        watchdog.close()

    def describe(self) -> dict[str, Any]:
        """Return facts for `/health`: those of every store, versions, and the number of free connections.

        `kind` is `timescaledb` or `postgresql`.
        """
        facts = {**self._facts, "intervals": [str(interval) for interval in sorted(self._kept)]}
        if self._pools is None:
            return facts
        _, writers, readers = self._pools
        return {**facts, "freeWriters": writers.free_slots(), "freeReaders": readers.free_slots()}

    def add_intervals(self, intervals: Iterable[Interval]) -> Iterator[None]:
        """See `Store.add_intervals`."""
        self._configured = (self._configured or frozenset()) | (frozenset(intervals) - {MINUTE})
        self._opened_pools()  # raises if the store is not open
        with self._own_connection() as connection:
            connection.fetch_rows(sql.PREPARE)  # one process folds, the others find it done
            yield from fold_history(connection, self._configured)
            self._kept = read_folded(connection)

    def drop_interval(self, interval: Interval) -> int:
        """See `Store.drop_interval`."""
        self._opened_pools()  # raises if the store is not open
        with self._own_connection() as connection:
            others = connection.fetch_rows(sql.OTHERS, (self._id, 0))
            connection.commit()
            users = [name for name, used in others if str(interval) in used.get("intervals", "").split(", ")]
            if users:
                raise StoreRejected(f"bars of {interval} are in use by {', '.join(users)}: stop it first")
            self._kept -= {interval}
            return drop_interval(connection, interval)

    def check_in(self) -> Sequence[str]:
        """See `Store.check_in`. Considers processes seen since this one began and in the last two minutes."""
        own = self._own_settings()
        with self._borrow_to_write() as connection:
            connection.execute(sql.DELETE_OLD_PROCESSES)
            connection.execute(sql.CHECK_IN, (self._id, f"{platform.node()}:{os.getpid()}", json.dumps(own)))
            if self._since_ms is None:
                [(self._since_ms,)] = connection.fetch_rows(sql.NOW)
            others = connection.fetch_rows(sql.OTHERS, (self._id, self._since_ms))
        return [
            f"{name} uses this store with {key} {settings.get(key)}, this process with {own[key]}"
            for name, settings in others
            for key in own
            if settings.get(key) != own[key]
        ]

    def _own_settings(self) -> dict[str, str]:
        """Return the settings that processes sharing a database should agree on."""
        return {
            "intervals": ", ".join(str(interval) for interval in sorted(self._configured or ())) or "none",
            "compress_after": _days(self._compress_after_days),
            "retention": _days(self._retention_days),
        }

    # ------------------------------------------------------------ writing

    def write_minutes(self, rows: Sequence[tuple[MarketKey, Candle]]) -> None:
        """See `Store.write_minutes`. Writers of the same market wait for each other, without deadlocks.

        If this raises `StoreUnavailable`, the rows may have been stored. Writing them again then changes nothing.
        """
        batches = group_by_market(rows)
        if not batches:
            return
        with self._borrow_to_write() as connection:
            ids = lock_markets(connection, batches)
            minutes = {ids[market]: batch.minutes for market, batch in batches.items() if batch.minutes}
            forming = {ids[market]: batch.forming for market, batch in batches.items() if batch.forming}
            if minutes:
                self._write_minutes(connection, minutes)
            if forming:
                put_forming(connection, forming)

    def _write_minutes(self, connection: DatabaseConnection, minutes: Mapping[int, Mapping[int, Candle]]) -> None:
        times = {id: sorted(minutes[id]) for id in sorted(minutes)}
        markets = [id for id in times for _ in times[id]]
        candles = [candle for id in times for candle in map(minutes[id].__getitem__, times[id])]
        columns = as_columns(markets, candles)
        connection.execute(sql.DROP_FORMING, columns[:2])
        changed = connection.fetch_rows(sql.PUT_MINUTES, columns)
        if not changed:
            return
        spans = [row[:3] for row in changed]
        connection.execute(sql.WIDEN_SPANS, as_arrays(spans))
        changes = {
            id: RangeSet.of_parts([open_ms for open_ms in times[id] if first_ms <= open_ms <= last_ms], MINUTE_MS)
            for id, first_ms, last_ms in spans
        }
        fold_changes(connection, changes)
        for id, _, _, revised, revs in changed:
            unknown = unknown_revisions(minutes[id], zip(revised or (), revs or (), strict=True))
            if unknown:
                _log_changes(connection, id, None, unknown)

    def rebuild_rollups(self, market: MarketKey, spans: Sequence[Range]) -> None:
        """See `Store.rebuild_rollups`."""
        with self._borrow_to_write() as connection:
            market_id = lock_markets(connection, [market])[market]
            rebuild_rollups(connection, market_id, RangeSet(spans), read_kept_from(connection))

    def put_bars(self, market: MarketKey, interval: Interval, bars: Sequence[Candle]) -> None:
        """See `SqlStore.put_bars`."""
        if not bars:
            return
        with self._borrow_to_write() as connection:
            market_id = lock_markets(connection, [market])[market]
            connection.execute(sql.PUT_BARS, (in_minutes(interval), *as_columns([market_id] * len(bars), bars)))

    def set_kept_from(self, since_ms: int) -> None:
        """See `SqlStore.set_kept_from`."""
        with self._borrow_to_write() as connection:
            connection.execute(sql.SET_KEPT_FROM, (since_ms, since_ms))

    def discard_rows(self, market: MarketKey, rows: Sequence[BadRow]) -> None:
        """See `Store.discard_rows`."""
        bars = [(row.table, row.interval, row.time) for row in rows if isinstance(row.time, int)]
        with self._borrow_to_write() as connection:
            market_id = lock_markets(connection, [market])[market]
            for table, statement in sql.DISCARD.items():
                connection.execute(statement, (market_id, [open_ms for at, _, open_ms in bars if at == table]))
            connection.execute(sql.SET_SPAN, (market_id,))
            spans = [(open_ms, open_ms + interval.ms) for at, interval, open_ms in bars if at != "forming"]
            rebuild_rollups(connection, market_id, RangeSet(spans), read_kept_from(connection))

    def set_complete_from(self, market: MarketKey, since_ms: int) -> None:
        """See `Store.set_complete_from`."""
        with self._borrow_to_write() as connection:
            ids = lock_markets(connection, [market])
            connection.execute(sql.SET_COMPLETE_FROM, (since_ms, ids[market]))

    def save_known_gaps(self, market: MarketKey, known_gaps: Sequence[Gap], within: Range = ALL_TIME) -> None:
        """See `Store.save_known_gaps`."""
        with self._borrow_to_write() as connection:
            market_id = lock_markets(connection, [market])[market]
            near = as_known_gaps(connection.fetch_rows(sql.KNOWN_GAPS, (*names_of(market), *within)))
            connection.execute(sql.DROP_KNOWN_GAPS, (market_id, [gap.start_ms for gap in near]))
            if rows := list(map(known_gap_row, replace_gaps(near, known_gaps, within))):
                connection.execute(sql.PUT_KNOWN_GAPS, (market_id, *map(list, zip(*rows, strict=True))))

    def register_feed(self, markets: Sequence[MarketKey], epoch: str) -> None:
        """See `Store.register_feed`."""
        with self._borrow_to_write() as connection:
            ids = lock_markets(connection, dict.fromkeys(markets)) if markets else {}
            connection.execute(sql.REGISTER_FEED, (epoch, sorted(ids.values())))

    def log_changes(self, market: MarketKey, epoch: str | None, changes: Sequence[tuple[int, Range]]) -> None:
        """See `Store.log_changes`."""
        with self._borrow_to_write() as connection:
            market_id = lock_markets(connection, [market])[market]
            if not _log_changes(connection, market_id, epoch, changes) and epoch is not None:
                raise StoreRejected(f"{market} does not have the feed {epoch}, or no longer has it")

    # ------------------------------------------------------------ reading

    def read_bars(self, market: MarketKey, interval: Interval, *, before_ms: int, limit: int) -> list[Candle]:
        """See `Store.read_bars`."""
        if limit <= 0:
            return []
        if interval == MINUTE:
            return self._last_minutes(market, before_ms, limit)
        column = in_minutes(self._check_interval(interval))
        return as_candles(
            reversed(self._fetch_of_market(sql.BARS_BEFORE, market, column, limited_time(before_ms), limit))
        )

    def _last_minutes(self, market: MarketKey, before_ms: int, limit: int) -> list[Candle]:
        """Return the last minutes. The search begins with the range that they fill if none is missing, and grows.

        A search without a lower limit would look into every chunk.
        """

        def find(connection: DatabaseConnection) -> list[Candle]:
            for market_id, first_ms, last_ms in connection.fetch_rows(sql.MARKET_SPAN, names_of(market)):
                end_ms = min(before_ms, last_ms + MINUTE_MS)
                reach_ms = limit * MINUTE_MS
                while True:
                    start_ms = max(first_ms, end_ms - reach_ms)
                    rows = connection.fetch_rows(sql.LAST_MINUTES, (market_id, start_ms, limited_time(end_ms), limit))
                    if len(rows) == limit or start_ms == first_ms:
                        return as_candles(reversed(rows))
                    reach_ms *= 4
            return []

        return self._run_read(find)

    def read_bars_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        """See `Store.read_bars_between`."""
        return as_candles(self._rows_between(sql.MINUTES_BETWEEN, sql.BARS_BETWEEN, market, interval, start_ms, end_ms))

    def read_texts_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> BarTexts:
        """See `Store.read_texts_between`."""
        found = self._rows_between(sql.JSON_OF_MINUTES, sql.JSON_OF_BARS, market, interval, start_ms, end_ms)
        rows = found[0][0] if found else "[]"
        return bar_texts(rows, partial(self.read_bars_between, market, interval, start_ms, end_ms))

    def _rows_between(
        self, of_minutes: str, of_bars: str, market: MarketKey, interval: Interval, start_ms: int, end_ms: int
    ) -> list[tuple[Any, ...]]:
        if interval != MINUTE:
            length = in_minutes(self._check_interval(interval))
            return self._fetch_of_market(of_bars, market, length, limited_time(start_ms), limited_time(end_ms))
        return self._run_read(
            lambda connection: [
                row
                for market_id, *span in spans_within(connection, market, start_ms, end_ms)
                for row in connection.fetch_rows(of_minutes, (market_id, *span))
            ]
        )

    def kept_from(self) -> int:
        """See `Store.kept_from`."""
        return self._run_read(read_kept_from)

    def bad_rows(self, market: MarketKey, within: Range = ALL_TIME) -> list[BadRow]:
        """See `Store.bad_rows`. The columns contain only numbers and times, so there are none."""
        return []

    def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Range]:
        """See `Store.stored_ranges`."""

        def find(connection: DatabaseConnection) -> RangeSet:
            return RangeSet(
                stretch
                for market_id, first_ms, last_ms in spans_within(connection, market, start_ms, end_ms)
                for chunk_ms in range(first_ms, last_ms, RANGES_CHUNK_MS)
                for stretch in connection.fetch_rows(
                    sql.STORED_RANGES, (market_id, chunk_ms, min(last_ms, chunk_ms + RANGES_CHUNK_MS))
                )
            )

        return list(self._run_read(find))

    def cancel_read(self, thread: int) -> None:
        """See `Store.cancel_read`."""
        if self._pools is not None:
            self._pools[2].cancel_query(thread)

    # ------------------------------------------------------------ maintenance

    def tidy_up(self, now_ms: int) -> None:
        """Compress and drop data that is old at `now_ms` (UTC epoch ms), including old feeds.

        Call this about once an hour, but not on the writing thread: compressing a chunk may take a minute. If another
        process is doing it, this returns immediately. Raises as every method of a store; the next call continues.
        """
        self._opened_pools()  # raises if the store is not open
        with self._own_connection() as connection:
            [(has_lock,)] = connection.fetch_rows(sql.TRY_MAINTAIN)
            connection.commit()
            if not has_lock:
                return
            drop_feeds(connection, now_ms)
            connection.execute(sql.DROP_OLD_FORMING, (FORMING_KEPT_MS,))
            connection.commit()
            if self._retention_days is not None:
                before_ms = now_ms - self._retention_days * DAY_MS
                drop_minutes(connection, before_ms, in_chunks=self._timescale.hypertable)
            if self._compress_after_days is not None and self._timescale.hypertable and self._timescale.licensed:
                compressed = timescale.compress(connection, now_ms - self._compress_after_days * DAY_MS)
                if compressed:
                    logger.info("compressed %s chunks of minutes", compressed)

    # ------------------------------------------------------------ preparing

    def _prepare_tables(self, connection: DatabaseConnection, wanted: Iterable[Interval]) -> None:
        if not connection.fetch_rows(sql.TRY_PREPARE)[0][0]:
            logger.info("waiting for another process that prepares the database")
            connection.fetch_rows(sql.PREPARE)
        timescale.check_loaded(connection)
        (migrate_schema if self._upgrade else check_schema)(connection)
        self._store_features(
            connection, (timescale.prepare_extension if self._upgrade else timescale.find_features)(connection)
        )
        if self._timescale.hypertable:
            logger.info("PostgreSQL %s with TimescaleDB %s", self._facts["server"], self._timescale.version)
        else:
            logger.info("PostgreSQL %s with plain tables: %s", self._facts["server"], self._timescale.remark)
        for _ in fold_history(connection, wanted):
            pass

    def _store_features(self, connection: DatabaseConnection, found: timescale.Timescale) -> None:
        self._timescale = found
        self._facts = {
            "kind": "timescaledb" if found.hypertable else "postgresql",
            "schema": SCHEMA,
            "server": _name(connection.server_version),
            "timescaledb": found.version,
            "compression": self._compress_after_days is not None and found.licensed,
        }

    # ------------------------------------------------------------ connections

    def _opened_pools(self) -> tuple[Watchdog, Pool, Pool]:
        if self._pools is None:
            raise StoreRejected("the store is not open")
        return self._pools

    def _borrow_to_write(self) -> AbstractContextManager[DatabaseConnection]:
        return self._opened_pools()[1].begin_transaction()

    def _run_read(self, work: Callable[[DatabaseConnection], T]) -> T:
        return self._opened_pools()[2].run_read(work)

    def _fetch_rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._run_read(lambda connection: connection.fetch_rows(statement, parameters))

    def _fetch_of_market(self, statement: str, market: MarketKey, *parameters: object) -> list[tuple[Any, ...]]:
        return self._fetch_rows(statement, *names_of(market), *parameters)

    def _as_candles(self, rows: Iterable[Any], *, final: bool = True) -> list[Candle]:
        return as_candles(rows, final=final)

    @contextmanager
    def _own_connection(self) -> Iterator[DatabaseConnection]:
        """Open a separate connection for statements that may take long. Its locks end with it."""
        connect = partial(DatabaseConnection, self._parameters, limit_s=MAINTENANCE_LIMIT_S, autocommit=False)
        with closing(Watchdog()) as watchdog, closing(connect(watchdog)) as connection:
            if connection.server_version < OLDEST_SERVER:
                found = _name(connection.server_version)
                raise StoreRejected(f"expected PostgreSQL {OLDEST_SERVER // 10_000} or newer, the server is {found}")
            yield connection


def _log_changes(
    connection: DatabaseConnection, market_id: int, epoch: str | None, changes: Sequence[tuple[int, Range]]
) -> bool:
    """Log changes as `Store.log_changes` does; return False if the market does not have this feed."""
    feeds = connection.fetch_rows(sql.FEED, (market_id, epoch, epoch))
    if feeds and changes:
        arrays = as_arrays((seq, *span) for seq, span in changes)
        unpublished = *arrays, market_id, *feeds[0], SEQ_UNPUBLISHED, SEQ_UNPUBLISHED
        connection.execute(sql.DROP_UNPUBLISHED, unpublished)
        connection.execute(sql.LOG_CHANGES, (market_id, *feeds[0], *arrays))
    return bool(feeds)


def _name(version: int) -> str:
    """Return the server's version in its usual form, such as `15.18`."""
    return f"{version // 10_000}.{version % 10_000}"


def _days(count: int | None) -> str:
    return "off" if count is None else f"{count} d"
