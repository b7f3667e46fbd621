"""The control socket: a Unix socket at which a running daemon takes commands from its own user.

A request is a line with the name of a command, and the answer one JSON object. Only the user of the daemon and root can
connect, because a file's mode protects a Unix socket.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from candled.errors import CandledError
from candled.reload import ReloadResult

logger = logging.getLogger(__name__)

Reload = Callable[[], Awaitable[ReloadResult]]

_RELOAD = b"reload\n"
_MODE = 0o600
_REQUEST_S = 5.0


class NoDaemon(CandledError):
    """No daemon answers at a control socket."""


def post_commands(reload: Reload, drain: Callable[[], None]) -> dict[str, Callable[[], Awaitable[tuple[int, Any]]]]:
    """Return the commands of the internal port by their paths. Each returns a status and an answer.

    `drain` begins the end of the process, as SIGTERM does.
    """

    async def answer_reload() -> tuple[int, Any]:
        result = await reload()
        return 400 if result.problems else 200, result

    async def answer_drain() -> tuple[int, Any]:
        drain()
        return 202, {"status": "stopping"}

    return {"/reload": answer_reload, "/drain": answer_drain}


class ControlSocket:
    """Answers requests at the Unix socket `path`; an empty path means none.

    The daemon does not depend on it: if the socket cannot be opened, a line in the log has the reason.
    """

    def __init__(self, path: str, reload: Reload) -> None:
        self._path = Path(path) if path else None
        self._reload = reload
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Open the socket. One that an earlier process left behind is replaced."""
        if self._path is None:
            return
        try:
            listening = _open(self._path)
        except OSError as error:
            is_used = error.errno == errno.EADDRINUSE
            reason = "another process uses it, or it is no socket" if is_used else error.strerror or error
            logger.warning("control.socket: cannot listen on %s, so use SIGHUP to reload: %s", self._path, reason)
            return
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._answer, sock=listening)

    async def stop(self) -> None:
        """Close the socket and remove its file, unless another process has replaced it."""
        if self._server is None or self._path is None:
            return
        self._server.close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_S):
                request = await reader.readline()
            if request == _RELOAD:
                writer.write(msgspec.json.encode(await self._reload()))
                await writer.drain()
        except (OSError, TimeoutError, ValueError):  # the command has ended, or sends something else
            logger.debug("a request at the control socket failed", exc_info=True)
        finally:
            writer.close()


def _open(path: Path) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: it cannot be opened; EADDRINUSE if another process listens there, or the file is no socket.
    """
    opened = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket() and not _is_used(path):
            path.unlink(missing_ok=True)
        opened.bind(str(path))
        path.chmod(_MODE)  # nothing can connect before `listen`
        opened.listen()
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


def _is_used(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


async def request_reload(path: str) -> ReloadResult:
    """Have the daemon at a control socket reload its settings; return its answer.

    Raises:
        NoDaemon: no daemon answers.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(_RELOAD)
            answer = await reader.read()
        finally:
            writer.close()
    except OSError as error:
        raise NoDaemon(f"{path}: {error.strerror or error}") from error
    try:
        return msgspec.json.decode(answer, type=ReloadResult)
    except msgspec.DecodeError as error:
        raise NoDaemon(f"{path}: the daemon ended before it answered") from error
