"""The journal: rows on disk while the store is unavailable, in a SQLite file of its own."""

import errno
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from candled.errors import StoreUnavailable, Unavailable

from .journal_lines import HEADERS, decode, encode, find_lines
from .owner import Owner
from .pending_rows import Row

logger = logging.getLogger(__name__)

T = TypeVar("T")

LIMIT_BYTES = 256 * 2**20
ALARM_AT = 0.8

_ROW_BYTES = 16  # SQLite's part of each row
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}
_RESOURCE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # unrelated to the file
_INSERT = "INSERT INTO rows (line) VALUES (?)"
_READ = "SELECT id, CAST(line AS BLOB) FROM rows WHERE id > ? ORDER BY id LIMIT ?"


class _DamagedFile(sqlite3.DatabaseError):
    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class Journal:
    """Rows in the file `journal.db` of `directory`, up to `limit_bytes`, oldest first.

    Its methods block and must be called by one thread at a time. Properties and `describe` may be used by any thread.
    A damaged file is kept as `NUMBER.rows.damaged`, and its readable rows move to a new one. Rows that the store
    refuses are kept in the text file `rejected`. Other files in the directory are not touched.
    """

    def __init__(self, directory: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory = directory
        self._path = directory / "journal.db"
        self._limit = limit_bytes
        self._owner = Owner(self._path)
        self._connection: sqlite3.Connection | None = None
        self._size_bytes = 0
        self._page: list[Row] = []
        #: The identifier of the last row of `_page`, and the size of `_page` in bytes.
        self._page_end = self._page_bytes = 0
        #: The identifier of the last row that is done but could not be deleted; 0 if there is none.
        self._done_id = 0
        #: 1 since the journal is almost full, 2 since it is full.
        self._alarm = 0
        #: The number of rows not done yet.
        self.row_count = 0
        self.last_error: str | None = None

    @property
    def is_open(self) -> bool:
        """True after `open` succeeded, until `close`."""
        return self._connection is not None

    @property
    def is_empty(self) -> bool:
        """True if no row is left to read: all are done, or the journal is not open."""
        return not (self.is_open and self.row_count)

    def open(self) -> None:
        """Take the directory for this process, creating it if needed, and find rows of earlier runs.

        Raises:
            Unavailable: another process uses the directory, or it cannot be created, read or written.
        """
        if self.is_open:
            return
        try:
            if not self._directory.exists():
                self._directory.mkdir()
            self._owner.take()
            self._call_or_repair(self._connect)
            self._import_text_files()
        except (OSError, sqlite3.Error, StoreUnavailable) as error:
            self.close()
            raise self._make_error("cannot be used", error) from error
        if self.row_count:
            logger.info("the journal %s contains %s rows of an earlier run", self._directory, self.row_count)
        self._watch_limit()

    def append_rows(self, rows: Sequence[Row]) -> int:
        """Write rows up to the limit; return the number of them, from the first, that are durable now.

        Raises:
            Unavailable: the disk is full or fails, or the journal is not open. No row counts as written.
        """
        lines = [encode(row) for row in rows]
        ends = accumulate((len(line) + _ROW_BYTES for line in lines), initial=self._size_bytes)
        next(ends)
        lines = [line for line, end in zip(lines, ends, strict=True) if end <= self._limit]
        try:
            self._call_or_repair(self._write_lines, lines)
        except (OSError, sqlite3.Error) as error:
            raise self._make_error("cannot be written", error) from error
        self._watch_limit(is_full=len(lines) < len(rows))
        return len(lines)

    def next_rows(self, limit: int) -> list[Row]:
        """Return the oldest rows that are not done, at most `limit`; none if all are done.

        The result is the same until `mark_done`.

        Raises:
            Unavailable: the file cannot be read now.
        """
        if not self._page and not self.is_empty:
            try:
                self._page = self._call_or_repair(self._read_batch, limit)
            except (OSError, sqlite3.Error) as error:
                raise self._make_error("cannot be read now", error) from error
        return self._page

    def mark_done(self, rejected: Sequence[Row] = ()) -> None:
        """Remove the rows of `next_rows`, which are stored now. Those that the store `rejected` move to a file."""
        if not self._page:
            return
        self.row_count -= len(self._page)
        self._size_bytes -= self._page_bytes
        self._done_id = self._page_end
        self._page = []
        try:
            if rejected:
                self._keep_rejected(rejected)
            connection = self._opened_connection()
            with connection:
                connection.execute("DELETE FROM rows WHERE id <= ?", (self._done_id,))
            self._done_id = 0
            if not self.row_count:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # rows that stay are stored again, which changes nothing
        except (OSError, sqlite3.Error) as error:
            logger.error("%s", self._make_error("cannot be emptied", error))
        self._watch_limit()

    def close(self) -> None:
        """Release the directory. Rows not done stay for the next run."""
        self._disconnect()
        self._owner.release()

    def describe(self) -> dict[str, Any]:
        """Return facts for `/health`.

        `rows` is the number of rows not stored yet, `bytes` their size on disk, and `limit` the maximum. `lastError` is
        the last error, also after it has ended.
        """
        return {"rows": self.row_count, "bytes": self._size_bytes, "limit": self._limit, "lastError": self.last_error}

    # ------------------------------------------------------------ the file

    def _connect(self) -> None:
        self._disconnect()
        self._connection = connection = sqlite3.connect(self._path, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit returns when the log is on the disk
        connection.execute("PRAGMA fullfsync = ON")  # on macOS, fsync alone leaves the data in the disk's cache
        connection.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, line BLOB NOT NULL)")
        [problem] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if problem != "ok":
            raise _DamagedFile(problem)
        self._count_rows()

    def _count_rows(self) -> None:
        count, size = self._opened_connection().execute("SELECT count(*), total(length(line)) FROM rows").fetchone()
        self.row_count, self._size_bytes = count, int(size) + count * _ROW_BYTES

    def _disconnect(self) -> None:
        self._page, self._done_id = [], 0
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise Unavailable("the journal is not open")
        return self._connection

    def _write_lines(self, lines: Sequence[bytes]) -> None:
        connection = self._opened_connection()
        with connection:
            connection.executemany(_INSERT, ((line,) for line in lines))
        self.row_count += len(lines)
        self._size_bytes += sum(map(len, lines)) + len(lines) * _ROW_BYTES

    def _read_batch(self, limit: int) -> list[Row]:
        found = self._opened_connection().execute(_READ, (self._done_id, limit)).fetchall()
        rows = [row for _, line in found if line is not None and (row := decode(line))]
        if len(rows) < min(limit, len(found) or self.row_count):
            raise _DamagedFile("a row has a wrong checksum or is missing")
        self._page_end = found[-1][0] if found else 0
        self._page_bytes = sum(len(line) + _ROW_BYTES for _, line in found)
        return rows

    def _keep_rejected(self, rows: Sequence[Row]) -> None:
        path = self._directory / "rejected"
        with path.open("ab") as file:
            file.writelines(map(encode, rows))
            file.flush()
            os.fsync(file.fileno())
        logger.error("%s", self._make_error(f"had rows that the store refused; they are kept in {path.name}"))

    # ------------------------------------------------------------ damage, and journals of the old form

    def _call_or_repair(self, call: Callable[..., T], *args: Any) -> T:
        """Call; if the file turns out to be damaged, replace it and call again."""
        try:
            return call(*args)
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", -1)
            is_format = "unsupported file format" in str(error)  # its code stands for other errors too
            if not is_format and not {code, code & 0xFF} & _DAMAGE:
                raise
            self._replace_file(error)
        return call(*args)

    def _replace_file(self, error: sqlite3.Error) -> None:
        """Rename the file and its write-ahead log so that they are imported, and begin a new one."""
        self._disconnect()
        number = max((int(path.name[:8]) for path in self._directory.glob("[0-9]" * 8 + ".*")), default=0)
        for suffix in ("", "-wal"):
            path = self._path.with_name(self._path.name + suffix)
            if path.exists():
                number += 1
                logger.error("%s is damaged: %s", path, error)
                path.rename(path.with_name(f"{number:08d}.rows"))
        self._path.with_name(f"{self._path.name}-shm").unlink(missing_ok=True)
        self._connect()
        self._import_text_files()

    def _import_text_files(self) -> None:
        for path in sorted(self._directory.glob("[0-9]" * 8 + ".rows")):
            if path.is_file():
                self._import_file(path)

    def _import_file(self, path: Path) -> None:
        """Move the readable rows of a file into the journal, in one transaction."""
        read_bytes, reason = 0, ""
        connection = self._opened_connection()
        with connection:
            try:
                for line in find_lines(path):
                    read_bytes += len(line)
                    if line not in HEADERS:
                        connection.execute(_INSERT, (line,))
            except OSError as error:
                if error.errno in _RESOURCE_ERRORS:
                    raise
                reason = f": {error.strerror}"
        before = self.row_count
        self._count_rows()
        if not reason and read_bytes == path.stat().st_size:
            path.unlink()
            return
        aside = path.with_name(f"{path.name}.damaged")
        path.rename(aside)
        saved = self.row_count - before
        self.last_error = (
            f"{path} of the journal is damaged{reason}: {saved} rows are saved; it is kept as {aside.name}"
        )
        logger.error("%s", self.last_error)

    # ------------------------------------------------------------ facts

    def _watch_limit(self, *, is_full: bool = False) -> None:
        """Log once when the journal is almost full, and once when it is full."""
        size, before = self._size_bytes, self._alarm
        alarm = 2 if is_full else int(size >= self._limit * ALARM_AT)
        self._alarm = max(alarm, before) if alarm else 0
        if alarm > before and is_full:
            error = self._make_error(f"is full with {size} of {self._limit} bytes")
            logger.error("%s; the minutes in it are kept, further ones stay in memory while there is room", error)
        elif alarm > before:
            logger.warning("the journal %s is almost full: %s of %s bytes", self._directory, size, self._limit)

    def _make_error(self, problem: str, error: Exception | None = None) -> Unavailable:
        reason = getattr(error, "strerror", None) or error
        self.last_error = f"the journal {self._directory} {problem}" + (f": {reason}" if reason else "")
        return Unavailable(self.last_error)
