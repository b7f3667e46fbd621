"""The file of the embedded store: its connections, its lock and its errors."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import DecimalException
from pathlib import Path
from typing import Any

from candled.errors import StoreNotReady, StoreRejected, StoreUnavailable
from candled.store.owner import Owner

from .rows import UnreadableRow

BUSY_TIMEOUT_S = 5.0
# Primary result codes, https://sqlite.org/rescode.html. These errors may end: a lock is released, a disk gets space
# again.
_TRANSIENT = frozenset(
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
# If these occur when the file is opened, the operator must act.
WRONG_FILE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's result code without its extension; -1 for an error of the Python module itself."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else int(code) & 0xFF


class DatabaseFile:
    """One SQLite file, with a connection for each thread, and the lock that reserves it for a daemon."""

    def __init__(self, path: Path, *, may_create: bool) -> None:
        self._path = path
        self._may_create = may_create
        self._owner = Owner(path)
        self._connections: dict[int, sqlite3.Connection] = {}  # keys are thread identifiers
        self._lock = threading.Lock()
        #: False while no connection may be made.
        self.is_open = False
        #: The device and inode of the file and of its write-ahead log; empty if they are not checked.
        self._identity: list[tuple[int, int] | None] = []
        #: Why this process must not use the file any more, or "".
        self._lost = ""

    def take(self) -> None:
        """Reserve the file for this process.

        Raises:
            StoreUnavailable: another daemon has it.
            StoreRejected: the lock file cannot be written.
        """
        try:
            self._owner.take()
        except OSError as error:
            raise StoreRejected(f"{self._path}: cannot be opened for writing ({error.strerror})") from error

    def watch_identity(self) -> None:
        """Check from now on that the file is the one that was opened."""
        self._identity = self._read_identity()

    def verify(self) -> None:
        """Raise an error if the file, or the lock on it, is not this process's any more."""
        self._check_identity()
        try:
            self._owner.verify()
            self._lost = ""
        except StoreUnavailable as error:
            self._lost = str(error)
            raise
        except OSError as error:
            self._lost = f"{self._path.name}: its lock file cannot be created ({error.strerror})"
            raise StoreUnavailable(self._lost) from error

    def interrupt(self, thread: int) -> None:
        """End the statement that a thread runs."""
        with self._lock, suppress(sqlite3.Error):
            connection = self._connections.get(thread)
            if connection is not None:
                connection.interrupt()

    def thread_connection(self) -> sqlite3.Connection:
        """Return this thread's connection."""
        if not self.is_open:
            raise StoreRejected(f"{self._path.name}: the store is not open")
        if self._lost:
            raise StoreUnavailable(self._lost)
        self._check_identity()
        return self._connections.get(threading.get_ident()) or self._open_connection()

    def fetch_rows(self, statement: str, *parameters: object) -> list[Any]:
        """Execute a statement on this thread's connection, and return its rows."""
        with self.errors_translated():
            return self.thread_connection().execute(statement, parameters).fetchall()

    def _read_identity(self) -> list[tuple[int, int] | None]:
        return [_identity_of(path) for path in (self._path, self._path.with_name(self._path.name + "-wal"))]

    def _check_identity(self) -> None:
        """Refuse to work on a file that others do not see: it was deleted, moved or replaced.

        Raises:
            StoreUnavailable: it was. The file is used again if it is moved back.
        """
        if not self._identity:
            return
        found = self._read_identity()
        for name, known, now in zip(("", "-wal"), self._identity, found, strict=True):
            if known is not None and now != known:
                change = "was deleted or moved" if now is None else "was replaced by another file"
                advice = "while candled uses it: move it back, or restart candled"
                raise StoreUnavailable(f"{self._path.name}{name}: {change} {advice}")
        self._identity = found  # SQLite creates the log with the first transaction

    def _open_connection(self) -> sqlite3.Connection:
        # Each thread uses its own connection. Only `close` uses those of other threads.
        if not self._may_create and not self._path.exists():  # connecting would create it
            raise StoreNotReady(
                f"{self._path}: there is no such file yet: run `candled init-db`, or start the daemon (store.init)"
            )
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        with self._lock:
            self._connections[threading.get_ident()] = connection
        connection.execute("PRAGMA synchronous = FULL")  # a commit returns when the log is on the disk
        connection.execute("PRAGMA fullfsync = 1")  # on macOS, fsync alone leaves the data in the disk's cache
        return connection

    def close_connections(self) -> None:
        """Close every connection and end the lock."""
        self.is_open = False
        self._identity, self._lost = [], ""
        with self._lock:
            while self._connections:
                self._connections.popitem()[1].close()
        self._owner.release()

    @contextmanager
    def begin_transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction: committed at the end, rolled back on any error. It takes the write lock immediately."""
        with self.errors_translated():
            connection = self.thread_connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # keep the first error; SQLite may have rolled back itself
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def errors_translated(self) -> Iterator[None]:
        """Translate errors to those of `Store`. `/health` shows them, so they name the file without its directory."""
        try:
            yield
        except sqlite3.Error as error:
            kind = StoreUnavailable if primary_code(error) in _TRANSIENT else StoreRejected
            raise kind(f"{self._path.name}: {error}") from error
        except UnreadableRow as error:
            raise StoreRejected(
                f"{self._path.name}: a stored bar cannot be read: {error}; `candled verify --repair` repairs the store"
            ) from error
        except (DecimalException, OverflowError) as error:
            raise StoreRejected(f"{self._path.name}: unsupported number ({error!r})") from error


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
