"""The lock by which a SQLite file belongs to one daemon at a time."""

import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

from candled.errors import StoreUnavailable

logger = logging.getLogger(__name__)

_NOT_OFFERED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class Owner:
    """Holds the file `NAME-owner` beside a database locked; the lock ends with the process, however that ends.

    A file of its own, since closing a second handle of the database would end SQLite's locks on it.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._descriptor: int | None = None

    def take(self) -> None:
        """Lock the database for this process.

        Raises:
            StoreUnavailable: another process has it.
            OSError: the file of the lock cannot be made.
        """
        path = _lock_path(self._database)
        while self._descriptor is None:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):  # else the owner before removed it just now
                    self._descriptor = descriptor
            except BlockingIOError:
                raise StoreUnavailable(f"{self._database.name}: another candled uses it{_named(descriptor)}") from None
            except OSError as error:
                if error.errno not in _NOT_OFFERED:
                    raise
                logger.warning(
                    "%s: its file system has no locks, so that nothing keeps a second daemon from using it: %s",
                    self._database,
                    error.strerror,
                )
                return
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it. Nothing happens where this process does not have it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):
            _lock_path(self._database).unlink()
        os.close(descriptor)


def _lock_path(database: Path) -> Path:
    """Return the same path for every name of a database."""
    real = Path(os.path.realpath(database))
    return real.with_name(f"{real.name}-owner")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _named(descriptor: int) -> str:
    text = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
    return f" (process {text})" if text.isdigit() else ""
