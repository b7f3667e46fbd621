"""The journal: rows on disk while the store is unavailable, in segments that are deleted once their rows are stored.

A segment is a text file. It begins with the line `candled journal 2`. Every further line is one row: the CRC-32 of the
rest in 8 hexadecimal digits, a space, and a JSON array of exchange, symbol, opening time, open, high, low, close,
volume, quote volume or null, `as_of_ms`, `final`, `rev` and `src`, with numbers as text. In a `candled journal 1`,
which is still read, rows end with `final`. Damage affects only the damaged lines.
"""

import errno
import fcntl
import logging
import os
import re
import sys
import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import msgspec

from candled.errors import Unavailable
from candled.model import Candle, MarketKey, Symbol

from .pending_rows import Row

logger = logging.getLogger(__name__)

LIMIT_BYTES = 256 * 2**20
ALARM_AT = 0.8
HEADER = b"candled journal 2\n"

_HEADERS = {HEADER, b"candled journal 1\n"}
_SEGMENT_AT_MOST = 8 * 2**20
_LINE_AT_MOST = 4096  # limits memory for a file without line ends; a row takes 100 to 200 bytes
_OUR_OWN_LACK = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # unrelated to the file
_NUMBERED = re.compile(r"\d{8}\.")
_SEGMENT_NAME = re.compile(r"\d{8}\.rows")


class _Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A line of the file: a market and the fields of a candle. Version 1 does not have the last two."""

    exchange: str
    symbol: str
    open_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal | None
    as_of_ms: int
    final: bool
    rev: int = 0
    src: str = ""


_record_decoder = msgspec.json.Decoder(_Record)
_record_encoder = msgspec.json.Encoder()

# ---------------------------------------------------------------- the format


def encode(row: Row) -> bytes:
    """Encode a row as one line, including its end."""
    market, candle = row
    text = _record_encoder.encode((market.exchange, str(market.symbol), *candle))
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> Row | None:
    """Decode a line from `encode`; return None for anything else, even if only one bit differs."""
    text = line[9:-1]
    if line != b"%08x %s\n" % (zlib.crc32(text), text):
        return None
    try:
        exchange, symbol, *fields = msgspec.structs.astuple(_record_decoder.decode(text))
        return MarketKey(exchange, Symbol.parse(symbol)), Candle(*fields)
    except (ValueError, msgspec.DecodeError):
        return None


class JournalSegment:
    """The readable rows of a segment, page by page.

    `saved` counts the rows and `unreadable` the bytes that are not rows. `error` is the error that ended the reading,
    if any.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self.saved = 0
        self.unreadable = 0
        self.error: OSError | None = None
        self.is_over = False

    @property
    def is_damaged(self) -> bool:
        """True if a part that was read is not a row, or if reading failed."""
        return self.unreadable > 0 or self.error is not None

    def next_rows(self, limit: int) -> list[Row]:
        """Return the next `limit` rows. Fewer are the last ones."""
        rows: list[Row] = []
        while len(rows) < limit and not self.is_over:
            line = self._next_line()
            row = decode(line)
            if row is not None:
                rows.append(row)
            elif line not in _HEADERS:
                self.unreadable += len(line)
        self.saved += len(rows)
        return rows

    def _next_line(self) -> bytes:
        try:
            line = next(self._lines, b"")
        except OSError as error:
            self.error = error
            line = b""
        self.is_over = not line
        return line


# ---------------------------------------------------------------- the files


@dataclass(slots=True)
class _File:
    """A segment on disk: its durable size and the number of rows not done yet (for an old one, its number of lines)."""

    path: Path
    size: int
    rows: int


class Journal:
    """Rows in the files of `directory`, up to `limit_bytes`, read in the order of the segments.

    Its methods block and must be called by one thread at a time. Properties and `describe` may be used by any thread.
    Once the rows of a file are done, a file with unreadable parts is renamed to `*.damaged`, and a file with rows that
    the store refused to `*.rejected`. Other files in the directory are not touched.
    """

    def __init__(self, directory: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._segment_at_most = min(_SEGMENT_AT_MOST, limit_bytes // 8)
        self._lock: int | None = None
        self._files: list[_File] = []
        self._next_number = 1
        self._active: int | None = None  # descriptor of the last file while rows are appended
        self._lines: Generator[bytes, None, None] | None = None  # of the first file, while it is read
        self._reading: JournalSegment | None = None
        self._page: list[Row] = []
        self._has_rejected = False
        self._filling: Literal["", "alarm", "full"] = ""
        self.last_error: str | None = None

    @property
    def is_open(self) -> bool:
        """True after `open` succeeded, until `close`."""
        return self._lock is not None

    @property
    def is_empty(self) -> bool:
        """True if no row is left to read: all are done, or the journal is not open."""
        return not (self.is_open and self._files)

    @property
    def row_count(self) -> int:
        """The number of rows not done yet; an estimate for damaged files."""
        return sum(file.rows for file in tuple(self._files))

    def open(self) -> None:
        """Take the directory for this process, creating it if needed, and find rows of earlier runs.

        Raises:
            Unavailable: another process uses the directory, or it cannot be created, read or written.
        """
        if self.is_open:
            return
        try:
            self._lock = self._take_directory()
            self._find_files()
        except OSError as error:
            self.close()
            reason = "another candled uses it" if isinstance(error, BlockingIOError) else error.strerror
            raise self._unavailable(f"the journal {self._directory} cannot be used: {reason}") from error
        if self._files:
            logger.info("the journal %s contains %s rows of an earlier run", self._directory, self.row_count)
        self._watch_limit()

    def append_rows(self, rows: Sequence[Row]) -> int:
        """Write rows; return how many had room, counted from the first. These are durable.

        Raises:
            Unavailable: the disk is full or fails, or the journal is not open. No row counts as written.
        """
        if not self.is_open:
            raise Unavailable("the journal is not open")
        if self._files and self._files[-1].size >= self._segment_at_most:
            self._seal_file()
        lines = self._lines_with_room([encode(row) for row in rows])
        if lines:
            try:
                self._write_lines(b"".join(lines))
            except OSError as error:
                self._abandon_file()
                raise self._unavailable(f"the journal {self._directory} cannot be written: {error.strerror}") from error
            self._files[-1].rows += len(lines)
        self._watch_limit(is_full=len(lines) < len(rows))
        return len(lines)

    def next_rows(self, limit: int) -> list[Row]:
        """Return the oldest rows not done, at most `limit`, or none if all are done.

        The result is the same until `mark_done`.

        Raises:
            Unavailable: this process has no file descriptors or memory left.
        """
        while self.is_open and self._files and not self._page:
            if self._reading is None:
                if len(self._files) == 1:
                    self._seal_file()
                self._lines = _lines(self._files[0].path)
                self._reading = JournalSegment(self._lines)
            self._page = self._reading.next_rows(limit)
            error = self._reading.error
            if error and error.errno in _OUR_OWN_LACK:
                self._stop_reading()
                raise self._unavailable(f"{self._files[0].path} cannot be read now: {error.strerror}") from error
            if not self._page:
                self._finish_segment(self._reading)
        return self._page

    def mark_done(self, *, rejected: bool = False) -> None:
        """Continue after the page: its rows are durable elsewhere, or were `rejected` by the store."""
        if self._reading is None:
            return
        self._files[0].rows = max(0, self._files[0].rows - len(self._page))
        self._page = []
        self._has_rejected |= rejected
        if self._reading.is_over:
            self._finish_segment(self._reading)

    def close(self) -> None:
        """Release the directory. Rows not done stay for the next run."""
        self._seal_file()
        self._stop_reading()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def describe(self) -> dict[str, Any]:
        """Return facts for `/health`.

        `rows` is the number of rows not stored yet (an estimate for damaged files), `bytes` their size on disk, and
        `limit` the maximum. `lastError` is the last error, also after it has ended.
        """
        return {"rows": self.row_count, "bytes": self._size_bytes(), "limit": self._limit, "lastError": self.last_error}

    # ------------------------------------------------------------ the directory

    def _take_directory(self) -> int:
        """Lock the directory and return its descriptor. The lock ends with the process, even after a crash."""
        if not self._directory.exists():
            self._directory.mkdir()
            _sync_directory(self._directory.parent)
        lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.access(self._directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError:
            os.close(lock)
            raise
        return lock

    def _find_files(self) -> None:
        paths = sorted(self._directory.iterdir())
        numbers = [int(path.name[:8]) for path in paths if _NUMBERED.match(path.name)]
        self._next_number = max(numbers, default=0) + 1  # names of renamed files are not reused
        segments = [path for path in paths if _SEGMENT_NAME.fullmatch(path.name) and path.is_file()]
        self._files = [_File(path, path.stat().st_size, _count_rows(path)) for path in segments]

    # ------------------------------------------------------------ writing

    def _lines_with_room(self, lines: list[bytes]) -> list[bytes]:
        """Return as many of the first `lines` as have room."""
        room = self._limit - self._size_bytes() - (len(HEADER) if self._active is None else 0)
        ends = accumulate(map(len, lines))
        return [line for line, end in zip(lines, ends, strict=True) if end <= room]

    def _write_lines(self, text: bytes) -> None:
        """Append complete lines. They are durable when this returns."""
        if self._active is None:
            self._begin_segment()
            text = HEADER + text
        assert self._active is not None
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(self._active, rest) :]
        _sync(self._active)
        file = self._files[-1]
        if not file.size:
            _sync_directory(self._directory)
        file.size += len(text)

    def _begin_segment(self) -> None:
        path = self._directory / f"{self._next_number:08d}.rows"
        self._active = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        self._next_number += 1
        self._files.append(_File(path, 0, 0))

    def _abandon_file(self) -> None:
        """Truncate the file to its durable part and continue in a new one.

        After a failed sync the kernel may forget which data it failed to write.
        """
        if self._active is None:
            return
        file = self._files[-1]
        with suppress(OSError):
            os.ftruncate(self._active, file.size)
        self._seal_file()
        if file.size:
            return
        self._files.pop()
        with suppress(OSError):
            file.path.unlink()

    def _seal_file(self) -> None:
        """Close the last file for appending."""
        if self._active is None:
            return
        with suppress(OSError):  # everything that counts is synced
            os.close(self._active)
        self._active = None

    # ------------------------------------------------------------ reading

    def _finish_segment(self, segment: JournalSegment) -> None:
        """Delete the first file, or rename it, because all of its rows are done."""
        file = self._files[0]
        try:
            if segment.is_damaged or self._has_rejected:
                self._put_aside(file.path, segment)
            else:
                file.path.unlink()
        # if it stays, its rows are only stored once more
        except OSError as error:
            self._unavailable(f"{file.path} cannot be removed: {error.strerror}")
            logger.error("%s", self.last_error)
        self._stop_reading()
        self._files.pop(0)
        self._watch_limit()

    def _put_aside(self, path: Path, segment: JournalSegment) -> None:
        aside = path.with_name(f"{path.name}.{'damaged' if segment.is_damaged else 'rejected'}")
        if segment.is_damaged:
            reason = f": {segment.error.strerror}" if segment.error else ""
            self._unavailable(
                f"{path} of the journal is damaged{reason}: {segment.saved} rows could be read,"
                f" {segment.unreadable} bytes could not; it is kept as {aside.name}"
            )
        else:
            self._unavailable(f"{path} of the journal has rows that the store refused; it is kept as {aside.name}")
        logger.error("%s", self.last_error)
        path.rename(aside)

    def _stop_reading(self) -> None:
        if self._lines is not None:
            self._lines.close()
        self._lines = self._reading = None
        self._page = []
        self._has_rejected = False

    # ------------------------------------------------------------ facts

    def _size_bytes(self) -> int:
        return sum(file.size for file in tuple(self._files))

    def _watch_limit(self, *, is_full: bool = False) -> None:
        """Log once when the journal is almost full, and once when it is full."""
        size = self._size_bytes()
        filling: Literal["", "alarm", "full"] = "full" if is_full else "alarm" if size >= self._limit * ALARM_AT else ""
        if filling == self._filling or (filling == "alarm" and self._filling == "full"):
            return
        self._filling = filling
        if filling == "full":
            self._unavailable(f"the journal {self._directory} is full with {size} of {self._limit} bytes")
            logger.error(
                "%s; the minutes in it are kept, further ones stay in memory while there is room", self.last_error
            )
        elif filling == "alarm":
            logger.warning("the journal %s is almost full: %s of %s bytes", self._directory, size, self._limit)

    def _unavailable(self, text: str) -> Unavailable:
        self.last_error = text
        return Unavailable(text)


def _lines(path: Path) -> Generator[bytes, None, None]:
    with path.open("rb") as file:
        while line := file.readline(_LINE_AT_MOST):
            yield line


def _count_rows(path: Path) -> int:
    """Count the lines after the header; 0 if the file cannot be read, which is reported when it is read."""
    try:
        return sum(line not in _HEADERS for line in _lines(path))
    except OSError:
        return 0


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":  # fsync alone leaves the data in the disk's cache there
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
