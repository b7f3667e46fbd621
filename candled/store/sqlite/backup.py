"""Copies of a SQLite store: a backup beside a running daemon, and a restore in place of the file."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from candled.errors import StoreRejected, StoreUnavailable

from .file import DatabaseFile
from .store import APPLICATION_ID, SCHEMA, schema_version

_BUSY_S = 30.0


def copy_database(source: Path, target: Path) -> int:
    """Copy a store to a new file, as it is at one moment; return the number of markets.

    A daemon may write to the source meanwhile: the copy does not see those writes. The target appears once the copy is
    complete, checked and on the disk.

    Raises:
        StoreRejected: the source is no store of this version or an earlier one, the copy has damage, or the target
            cannot be written.
        StoreUnavailable: the source is locked for too long.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.unlink(missing_ok=True)
        # `rw` creates no file; reading alone could not use the write-ahead log
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_S)) as reading:
            _check_kind(source, reading)
            with closing(sqlite3.connect(part)) as writing:
                reading.backup(writing)
                writing.execute("PRAGMA journal_mode = DELETE")  # one file without a log beside it
                count = _check_copy(source, writing)
        _sync(part)
        part.rename(target)
        _sync(target.parent)
    except sqlite3.Error as error:
        kind = StoreUnavailable if getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY" else StoreRejected
        raise kind(f"{source}: cannot be copied to {target}: {error}") from error
    except OSError as error:
        raise StoreRejected(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def restore_database(source: Path, target: Path) -> Path | None:
    """Put a copy in place of a store; return the new name of the former file, or None if there was none.

    Raises:
        StoreRejected: as for `copy_database`.
        StoreUnavailable: a daemon uses the target.
    """
    file = DatabaseFile(target, may_create=False)
    file.take()
    try:
        fresh = target.with_name(f"{target.name}.restored")
        copy_database(source, fresh)
        former = _move_away(target) if target.exists() else None
        fresh.rename(target)
        _sync(target.parent)
    finally:
        file.close_connections()
    return former


def _move_away(path: Path) -> Path:
    """Rename a store, with its write-ahead log; return its new name."""
    number = 1
    while (former := path.with_name(f"{path.name}.former-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(former.with_name(former.name + suffix))
    return former


def _check_kind(path: Path, connection: sqlite3.Connection) -> None:
    version = schema_version(connection)
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreRejected(f"{path}: is not a store of candled")
    if version > SCHEMA:
        raise StoreRejected(f"{path}: was written by a newer candled (schema {version}, and this one has {SCHEMA})")


def _check_copy(path: Path, connection: sqlite3.Connection) -> int:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreRejected(f"{path}: is damaged: {found.splitlines()[-1]}")
    return int(connection.execute("SELECT count(*) FROM markets").fetchone()[0])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
