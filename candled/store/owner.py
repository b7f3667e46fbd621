"""The lock that reserves a SQLite file for one daemon."""

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
    """A lock on the file `NAME-owner` next to a database. It ends with the process, even after a crash.

    It is a separate file, because closing a second handle of the database would release SQLite's locks on it.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._descriptor: int | None = None
        #: True after the lock file was deleted, until the database is locked again.
        self._is_lost = False

    def take(self) -> None:
        """Lock the database for this process.

        Raises:
            StoreUnavailable: another process has locked it.
            OSError: the lock file cannot be created.
        """
        path = _lock_path(self._database)
        while self._descriptor is None:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):  # otherwise the previous owner has just removed it
                    self._descriptor = descriptor
            except BlockingIOError:
                raise StoreUnavailable(f"{self._database.name}: another candled uses it{_named(descriptor)}") from None
            except OSError as error:
                if error.errno not in _NOT_OFFERED:
                    raise
                logger.warning(
                    "%s: its file system has no locks, so nothing prevents a second daemon from using it: %s",
                    self._database,
                    error.strerror,
                )
                return
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def verify(self) -> None:
        """Lock the database again if its lock file was deleted. Raises the errors of `take`."""
        if self._descriptor is not None and not _is_at(self._descriptor, _lock_path(self._database)):
            os.close(self._descriptor)
            self._descriptor = None
            self._is_lost = True
        if self._is_lost:
            self.take()
            self._is_lost = False

    def release(self) -> None:
        """Unlock the database, if this process has locked it."""
        descriptor, self._descriptor, self._is_lost = self._descriptor, None, False
        if descriptor is None:
            return
        path = _lock_path(self._database)
        if _is_at(descriptor, path):  # otherwise it is another process's
            with suppress(OSError):
                path.unlink()
        os.close(descriptor)


def _lock_path(database: Path) -> Path:
    """Return the path of the lock file. It is the same for all names of a database, such as symbolic links."""
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
