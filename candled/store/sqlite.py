"""The embedded store: one SQLite file in write-ahead-log mode."""

import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal, DecimalException
from pathlib import Path
from typing import Any

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Range, RangeSet, Symbol, sources

from .batch import by_market, fold_bars, minute_ranges, newer_running, news, touched
from .holes import replaced
from .interface import ALL_TIME, Hole

logger = logging.getLogger(__name__)

SCHEMA = 1
APPLICATION_ID = 0x63616E64  # "cand": tells our files from those of other programs
BUSY_TIMEOUT_S = 5.0
FOLD_CHUNK_MS = 28 * 86_400_000

# ---------------------------------------------------------------- statements

_VALUES = "time_ms, open, high, low, close, volume, quote_volume, as_of_ms"
_VALUE_COLUMNS = """
    time_ms INTEGER NOT NULL,
    open TEXT NOT NULL,
    high TEXT NOT NULL,
    low TEXT NOT NULL,
    close TEXT NOT NULL,
    volume TEXT NOT NULL,
    quote_volume TEXT,
    as_of_ms INTEGER NOT NULL
"""

# What a new file consists of.
_CREATE = (
    """CREATE TABLE markets (
        id INTEGER PRIMARY KEY,
        exchange TEXT NOT NULL,
        symbol TEXT NOT NULL,
        complete_from_ms INTEGER,
        UNIQUE (exchange, symbol)
    )""",
    f"CREATE TABLE candles (market INTEGER NOT NULL, {_VALUE_COLUMNS}, PRIMARY KEY (market, time_ms)) WITHOUT ROWID",
    f"""CREATE TABLE rollups (market INTEGER NOT NULL, interval_ms INTEGER NOT NULL, {_VALUE_COLUMNS},
        PRIMARY KEY (market, interval_ms, time_ms)) WITHOUT ROWID""",
    f"CREATE TABLE running (market INTEGER PRIMARY KEY, {_VALUE_COLUMNS})",
    """CREATE TABLE holes (
        market INTEGER NOT NULL,
        start_ms INTEGER NOT NULL,
        end_ms INTEGER NOT NULL,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        retry_ms INTEGER,
        PRIMARY KEY (market, start_ms)
    ) WITHOUT ROWID""",
    "CREATE TABLE intervals (interval_ms INTEGER PRIMARY KEY)",
)

# Which number does a market have, and which markets are there?
_MARKET_ID = "SELECT id FROM markets WHERE exchange = ? AND symbol = ?"
_MARKET_IDS = "SELECT id FROM markets ORDER BY id"
_ADD_MARKET = "INSERT INTO markets (exchange, symbol) VALUES (?, ?) ON CONFLICT DO NOTHING"

# Which minutes lie in a range? Which are the last ones before a time?
_MINUTES_BETWEEN = f"SELECT {_VALUES} FROM candles WHERE market = ? AND time_ms >= ? AND time_ms < ? ORDER BY time_ms"
_MINUTES_BEFORE = f"SELECT {_VALUES} FROM candles WHERE market = ? AND time_ms < ? ORDER BY time_ms DESC LIMIT ?"
_PUT_MINUTE = f"REPLACE INTO candles (market, {_VALUES}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

# The same of longer bars.
_BARS_BETWEEN = f"""SELECT {_VALUES} FROM rollups
    WHERE market = ? AND interval_ms = ? AND time_ms >= ? AND time_ms < ? ORDER BY time_ms"""
_BARS_BEFORE = f"""SELECT {_VALUES} FROM rollups
    WHERE market = ? AND interval_ms = ? AND time_ms < ? ORDER BY time_ms DESC LIMIT ?"""
_PUT_BAR = f"REPLACE INTO rollups (market, interval_ms, {_VALUES}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DROP_BARS = "DELETE FROM rollups WHERE market = ? AND interval_ms = ?"

# What was the running minute when it was last put aside, and is there no final minute as new as that?
_RUNNING = f"SELECT {_VALUES} FROM running WHERE market = ?"
_RUNNING_AHEAD = f"""SELECT {_VALUES} FROM running WHERE market = ?1
    AND time_ms > coalesce((SELECT max(time_ms) FROM candles WHERE market = ?1), -1)"""
_PUT_RUNNING = f"REPLACE INTO running (market, {_VALUES}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

# Where do a market's minutes begin and end? One lookup at either end of the key, not a scan.
_SPAN = """SELECT (SELECT min(time_ms) FROM candles WHERE market = ?1),
    (SELECT max(time_ms) FROM candles WHERE market = ?1)"""
_NEWEST = """SELECT symbol, newest FROM (
        SELECT symbol, (SELECT max(time_ms) FROM candles WHERE market = id) AS newest FROM markets WHERE exchange = ?
    ) WHERE newest IS NOT NULL"""

# Which stretches of minutes are there? Among neighbours, time minus position is the same number.
_PRESENT = f"""SELECT min(time_ms), max(time_ms) + {MINUTE_MS} FROM (
        SELECT time_ms, time_ms - {MINUTE_MS} * row_number() OVER (ORDER BY time_ms) AS stretch
        FROM candles WHERE market = ? AND time_ms >= ? AND time_ms < ?
    ) GROUP BY stretch ORDER BY 1"""

# Since when is a market complete, and what does the exchange itself not have?
_COMPLETE_FROM = "SELECT complete_from_ms FROM markets WHERE id = ?"
_SET_COMPLETE_FROM = "UPDATE markets SET complete_from_ms = min(coalesce(complete_from_ms, ?1), ?1) WHERE id = ?2"
# Holes do not overlap: of those that begin before a range only the last can reach into it.
_HOLES = """SELECT start_ms, end_ms, reason, attempts, retry_ms FROM holes WHERE market = ?1
        AND start_ms >= coalesce((SELECT max(start_ms) FROM holes WHERE market = ?1 AND start_ms < ?2), ?2)
        AND start_ms <= ?3 AND end_ms >= ?2
    ORDER BY start_ms"""
_DROP_HOLE = "DELETE FROM holes WHERE market = ? AND start_ms = ?"
_PUT_HOLE = "INSERT INTO holes (market, start_ms, end_ms, reason, attempts, retry_ms) VALUES (?, ?, ?, ?, ?, ?)"

# Of which intervals are all bars there?
_INTERVALS = "SELECT interval_ms FROM intervals"
_PUT_INTERVAL = "INSERT INTO intervals (interval_ms) VALUES (?)"
_DROP_INTERVAL = "DELETE FROM intervals WHERE interval_ms = ?"

# ---------------------------------------------------------------- errors

# Primary result codes, https://sqlite.org/rescode.html: a lock ends, a disk is emptied or comes back.
_MAY_HEAL = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
# The same codes when the file is opened: then the operator has to act.
_WRONG_FILE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})


def _primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without its extension; -1 where the Python module itself complained."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else int(code) & 0xFF


# ---------------------------------------------------------------- rows and candles


def _row(candle: Candle) -> tuple[int, str, str, str, str, str, str | None, int]:
    """The columns of `_VALUES`: decimals as text, every digit as given and never with an exponent."""
    quote = candle.quote_volume
    return (
        candle.open_ms,
        format(candle.open, "f"),
        format(candle.high, "f"),
        format(candle.low, "f"),
        format(candle.close, "f"),
        format(candle.volume, "f"),
        None if quote is None else format(quote, "f"),
        candle.as_of_ms,
    )


def _candles(rows: Iterable[Any], *, final: bool = True) -> list[Candle]:
    return [
        Candle(
            open_ms,
            Decimal(open),
            Decimal(high),
            Decimal(low),
            Decimal(close),
            Decimal(volume),
            None if quote is None else Decimal(quote),
            as_of_ms,
            final,
        )
        for open_ms, open, high, low, close, volume, quote, as_of_ms in rows
    ]


def _holes(rows: Iterable[Any]) -> list[Hole]:
    return [
        Hole(start_ms=start_ms, end_ms=end_ms, reason=reason, attempts=attempts, retry_ms=retry_ms)
        for start_ms, end_ms, reason, attempts, retry_ms in rows
    ]


def _between(
    connection: sqlite3.Connection, market_id: int, interval: Interval, start_ms: int, end_ms: int
) -> list[Candle]:
    if interval == MINUTE:
        return _candles(connection.execute(_MINUTES_BETWEEN, (market_id, start_ms, end_ms)))
    return _candles(connection.execute(_BARS_BETWEEN, (market_id, interval.ms, start_ms, end_ms)))


def _fold(
    connection: sqlite3.Connection, market_id: int, changed: RangeSet, levels: Mapping[Interval, Interval]
) -> None:
    """Fold again every bar of `levels` (each with the interval it is folded from) that `changed` touches."""
    for interval, source in levels.items():
        bars = [
            bar
            for start_ms, end_ms in touched(changed, interval)
            for bar in fold_bars(_between(connection, market_id, source, start_ms, end_ms), interval)
        ]
        connection.executemany(_PUT_BAR, [(market_id, interval.ms, *_row(bar)) for bar in bars])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ---------------------------------------------------------------- the store


class SqliteStore:
    """The candles of all markets in the file `path`, with bars of each of `intervals` kept beside the minutes.

    Decimals are kept as the text that the exchange printed. Methods may be called from several threads; each has a
    connection of its own. One daemon may use the file at a time, and commands on stored history beside it: those who
    write take turns.
    """

    def __init__(self, path: str | Path, intervals: Iterable[Interval]) -> None:
        self._path = Path(path)
        self._sources = sources(intervals)
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._is_open = False
        self._ids: dict[MarketKey, int] = {}

    def open(self) -> None:
        """Create or check the file, then fold new intervals and drop the bars of those no longer configured.

        Raises:
            StoreUnavailable: another program holds the file locked, or the disk is full or failing.
            StoreRejected: the directory is missing, the file cannot be written, is damaged, is not ours, or has a
                newer schema.
        """
        self._is_open = True
        try:
            with self._errors_translated():
                self._open_file()
                self._match_intervals()
        except BaseException as error:
            self._release()
            if isinstance(error.__cause__, sqlite3.Error) and _primary_code(error.__cause__) in _WRONG_FILE:
                raise StoreRejected(f"{self._path}: cannot be opened for writing ({error.__cause__})") from error
            raise

    def close(self) -> None:
        """Close every connection. SQLite then moves the write-ahead log into the file and removes it."""
        self._release()

    def write(self, rows: Sequence[tuple[MarketKey, Candle]]) -> None:
        """See `Store.write`. A batch that changes no row costs reads only."""
        batches = by_market(rows)
        if not batches:
            return
        with self._transaction() as connection:
            ids = {market: self._add_market(connection, market) for market in batches}
            for market, batch in batches.items():
                if batch.minutes:
                    self._write_minutes(connection, ids[market], batch.minutes)
                if batch.running is not None:
                    self._write_running(connection, ids[market], batch.running)
        self._ids.update(ids)

    def bars(self, market: MarketKey, interval: Interval, *, before_ms: int, limit: int) -> list[Candle]:
        """See `Store.bars`.

        Raises:
            StoreRejected: `interval` is not among the configured ones.
        """
        market_id = self._market_id(market)
        if market_id is None or limit <= 0:  # to SQLite a negative limit is none at all
            return []
        if interval == MINUTE:
            rows = self._rows(_MINUTES_BEFORE, market_id, before_ms, limit)
        else:
            rows = self._rows(_BARS_BEFORE, market_id, self._known(interval).ms, before_ms, limit)
        rows.reverse()
        return _candles(rows)

    def bars_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        """See `Store.bars_between`.

        Raises:
            StoreRejected: `interval` is not among the configured ones.
        """
        market_id = self._market_id(market)
        if market_id is None:
            return []
        with self._errors_translated():
            return _between(self._connection(), market_id, self._known(interval), start_ms, end_ms)

    def running(self, market: MarketKey) -> Candle | None:
        """See `Store.running`."""
        market_id = self._market_id(market)
        rows = [] if market_id is None else self._rows(_RUNNING_AHEAD, market_id)
        return _candles(rows, final=False)[0] if rows else None

    def newest(self, exchange: str) -> Mapping[Symbol, int]:
        """See `Store.newest`."""
        return {Symbol.parse(symbol): newest_ms for symbol, newest_ms in self._rows(_NEWEST, exchange)}

    def present(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Range]:
        """See `Store.present`."""
        market_id = self._market_id(market)
        rows = [] if market_id is None else self._rows(_PRESENT, market_id, start_ms, end_ms)
        return [Range(*row) for row in rows]

    def complete_from(self, market: MarketKey) -> int | None:
        """See `Store.complete_from`."""
        market_id = self._market_id(market)
        rows = [] if market_id is None else self._rows(_COMPLETE_FROM, market_id)
        return rows[0][0] if rows else None

    def set_complete_from(self, market: MarketKey, since_ms: int) -> None:
        """See `Store.set_complete_from`."""
        with self._transaction() as connection:
            connection.execute(_SET_COMPLETE_FROM, (since_ms, self._add_market(connection, market)))

    def holes(self, market: MarketKey, within: Range = ALL_TIME) -> list[Hole]:
        """See `Store.holes`."""
        market_id = self._market_id(market)
        found = [] if market_id is None else _holes(self._rows(_HOLES, market_id, *within))
        return [hole for hole in found if hole.start_ms < within.end_ms and within.start_ms < hole.end_ms]

    def save_holes(self, market: MarketKey, holes: Sequence[Hole], within: Range = ALL_TIME) -> None:
        """See `Store.save_holes`."""
        with self._transaction() as connection:
            market_id = self._add_market(connection, market)
            near = _holes(connection.execute(_HOLES, (market_id, *within)))
            connection.executemany(_DROP_HOLE, [(market_id, hole.start_ms) for hole in near])
            connection.executemany(
                _PUT_HOLE,
                [
                    (market_id, hole.start_ms, hole.end_ms, hole.reason, hole.attempts, hole.retry_ms)
                    for hole in replaced(near, holes, within)
                ],
            )

    def maintain(self, now_ms: int) -> None:
        """Let SQLite refresh its statistics where that pays; nothing is ever dropped."""
        self._rows("PRAGMA optimize")

    def describe(self) -> dict[str, Any]:
        """Facts for `/health`: kind, schema, the size of the file and of its write-ahead log in bytes."""
        log = self._path.with_name(self._path.name + "-wal")
        return {"kind": "sqlite", "schema": SCHEMA, "bytes": _size(self._path), "walBytes": _size(log)}

    # ------------------------------------------------------------ opening

    def _open_file(self) -> None:
        if not self._path.parent.is_dir():
            raise StoreRejected(f"{self._path}: the directory {self._path.parent} does not exist")
        connection = self._connection()
        is_new = self._check_owner(connection)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreRejected(
                f"{self._path}: SQLite cannot keep a write-ahead log here (mode {mode!r}); is it on a network drive?"
            )
        with self._transaction():  # of an old file this shows now, not at the first candle, that it may be written
            if is_new:
                self._create(connection)

    def _check_owner(self, connection: sqlite3.Connection) -> bool:
        """Return whether the file is new; refuse it where it is not ours. Nothing of it is changed before that."""
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not (version or owner or tables):
            return True
        if owner != APPLICATION_ID:
            raise StoreRejected(f"{self._path}: this SQLite file belongs to another program")
        if version > SCHEMA:
            raise StoreRejected(
                f"{self._path}: written by a newer candled (schema {version}; this one knows up to {SCHEMA})"
            )
        return False

    def _create(self, connection: sqlite3.Connection) -> None:
        for statement in _CREATE:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _match_intervals(self) -> None:
        """Make the longer bars those of the configured intervals. Whatever is cut short is done again next time."""
        stored = {interval_ms for (interval_ms,) in self._rows(_INTERVALS)}
        for interval_ms in stored - {interval.ms for interval in self._sources}:
            self._forget_interval(interval_ms)
        fresh = {interval: source for interval, source in self._sources.items() if interval.ms not in stored}
        if not fresh:
            return
        self._fold_history(fresh)
        with self._transaction() as connection:
            connection.executemany(_PUT_INTERVAL, [(interval.ms,) for interval in fresh])

    def _forget_interval(self, interval_ms: int) -> None:
        with self._transaction() as connection:
            dropped = 0
            for (market_id,) in connection.execute(_MARKET_IDS).fetchall():
                dropped += connection.execute(_DROP_BARS, (market_id, interval_ms)).rowcount
            connection.execute(_DROP_INTERVAL, (interval_ms,))
        logger.info("dropped %s bars of %s min, an interval no longer configured", dropped, interval_ms // MINUTE_MS)

    def _fold_history(self, fresh: Mapping[Interval, Interval]) -> None:
        market_ids = [market_id for (market_id,) in self._rows(_MARKET_IDS)]
        names = ", ".join(map(str, fresh))
        for done, market_id in enumerate(market_ids, start=1):
            self._fold_market(market_id, fresh)
            if done * 10 // len(market_ids) > (done - 1) * 10 // len(market_ids):  # at most ten lines
                logger.info("folded stored minutes into %s: %s of %s markets", names, done, len(market_ids))

    def _fold_market(self, market_id: int, fresh: Mapping[Interval, Interval]) -> None:
        oldest_ms, newest_ms = self._rows(_SPAN, market_id)[0]
        if oldest_ms is None:
            return
        # A bar cut by the edge of two chunks is folded by both, at last from all its parts.
        for start_ms in range(oldest_ms, newest_ms + 1, FOLD_CHUNK_MS):
            with self._transaction() as connection:
                _fold(connection, market_id, RangeSet([(start_ms, start_ms + FOLD_CHUNK_MS)]), fresh)

    # ------------------------------------------------------------ writing

    def _write_minutes(self, connection: sqlite3.Connection, market_id: int, minutes: Mapping[int, Candle]) -> None:
        stored = {
            candle.open_ms: candle
            for start_ms, end_ms in minute_ranges(minutes)
            for candle in _between(connection, market_id, MINUTE, start_ms, end_ms)
        }
        changed = news(minutes, stored)
        if not changed:
            return
        connection.executemany(_PUT_MINUTE, [(market_id, *_row(candle)) for candle in changed])
        _fold(connection, market_id, minute_ranges(candle.open_ms for candle in changed), self._sources)

    def _write_running(self, connection: sqlite3.Connection, market_id: int, candle: Candle) -> None:
        stored = _candles(connection.execute(_RUNNING, (market_id,)).fetchall(), final=False)
        if newer_running(candle, stored[0] if stored else None):
            connection.execute(_PUT_RUNNING, (market_id, *_row(candle)))

    def _add_market(self, connection: sqlite3.Connection, market: MarketKey) -> int:
        """The number of a market, given now if it had none. Not remembered here: the transaction may fail."""
        known = self._ids.get(market)
        if known is not None:
            return known
        names = (market.exchange, str(market.symbol))
        connection.execute(_ADD_MARKET, names)
        return int(connection.execute(_MARKET_ID, names).fetchone()[0])

    # ------------------------------------------------------------ reading

    def _market_id(self, market: MarketKey) -> int | None:
        known = self._ids.get(market)
        if known is not None:
            return known
        rows = self._rows(_MARKET_ID, market.exchange, str(market.symbol))
        if not rows:
            return None
        self._ids[market] = rows[0][0]
        return self._ids[market]

    def _known(self, interval: Interval) -> Interval:
        if interval != MINUTE and interval not in self._sources:
            raise StoreRejected(f"{self._path.name}: no bars of {interval} are kept; it is not among the intervals")
        return interval

    def _rows(self, statement: str, *parameters: object) -> list[Any]:
        with self._errors_translated():
            return self._connection().execute(statement, parameters).fetchall()

    # ------------------------------------------------------------ connections

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not self._is_open:
            raise StoreRejected(f"{self._path.name}: the store is not open")
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        return connection

    def _connect(self) -> sqlite3.Connection:
        # Each thread uses its own connection; `close` alone reaches for those of other threads.
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        with self._lock:
            self._connections.append(connection)
        connection.execute("PRAGMA synchronous = FULL")  # a commit returns when the log is on the disk
        connection.execute("PRAGMA fullfsync = 1")  # on macOS fsync alone leaves it in the disk's cache
        return connection

    def _release(self) -> None:
        self._is_open = False
        self._local = threading.local()
        self._ids.clear()
        with self._lock:
            while self._connections:
                self._connections.pop().close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed at the end, rolled back on any error. It takes the write lock at once."""
        with self._errors_translated():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the first error tells more; SQLite may have rolled back by itself
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        """Errors as `Store` promises them; `/health` shows them, so they name the file without its directory."""
        try:
            yield
        except sqlite3.Error as error:
            kind = StoreUnavailable if _primary_code(error) in _MAY_HEAL else StoreRejected
            raise kind(f"{self._path.name}: {error}") from error
        except (DecimalException, OverflowError) as error:
            raise StoreRejected(f"{self._path.name}: a number it cannot hold ({error!r})") from error
