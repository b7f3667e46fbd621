"""Takes connections a few at a time, so that ten thousand that come at once do not hold up those who are there."""

import asyncio
import errno
import logging
import socket
from collections.abc import Sequence

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from candled.exchange import Clock

logger = logging.getLogger(__name__)

# At about 0.3 ms for a handshake: what one pass of the loop may spend on newcomers. Tornado takes 128 at a time.
_AT_A_TIME = 16
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S = 1.0


class Acceptor:
    """Feeds an HTTP server from listening sockets. The kernel keeps the order of those who wait."""

    def __init__(self, http: HTTPServer, clock: Clock) -> None:
        self._http = http
        self._clock = clock
        self._sockets: Sequence[socket.socket] = ()
        self._resuming: asyncio.Task[None] | None = None

    def start(self, sockets: Sequence[socket.socket]) -> None:
        """Take connections from these sockets, which are listening."""
        self._sockets = sockets
        self._watch()

    def stop(self) -> None:
        """Take no more; the port is free."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._unwatch()
        for listening in self._sockets:
            listening.close()
        self._sockets = ()

    def _watch(self) -> None:
        for listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _unwatch(self) -> None:
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_A_TIME):
            try:
                peer, address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                logger.warning("no new connection can be taken: %s", error.strerror)
                self._unwatch()
                self._resuming = asyncio.ensure_future(self._resume())
                return
            self._http.handle_stream(IOStream(peer), address)

    async def _resume(self) -> None:
        await self._clock.sleep(_PAUSE_S)
        self._watch()
