"""Accept connections a few at a time, so that 10,000 simultaneous ones do not delay connected clients."""

import asyncio
import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from candled.addresses import client_of
from candled.exchange import Clock
from candled.tasks import TaskSet

from .broadcaster import Broadcaster
from .descriptors import Descriptors
from .hot_stream import TOO_MANY, Answer, HotStream, SecureHotStream, unavailable_answer
from .http_connections import HttpConnections
from .stream_poller import StreamPoller
from .tls import ServerTls

# Connections accepted per pass of the loop if there is time. Tornado accepts 128.
_AT_A_TIME = 16
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S = 1.0
_RESERVED_S = 10.0  # a connection on one of the last descriptors is closed after this time
_PEEKED = 256  # bytes of a request that show if it is a probe
_FULL = unavailable_answer("This server has no file descriptors left")


class Acceptor:
    """Feeds an HTTP server from listening sockets. The kernel keeps the order of pending connections.

    `answer` answers the requests that need no handler. `turns` limits how many connections a pass accepts.
    """

    def __init__(
        self,
        http: HTTPServer,
        answer: Answer,
        clock: Clock,
        descriptors: Descriptors,
        connections: HttpConnections,
        tasks: TaskSet,
        turns: Broadcaster,
        tls: ServerTls | None = None,
    ) -> None:
        self._tls = tls
        self._turns = turns
        self._http = http
        self._answer = answer
        self._clock = clock
        self._descriptors = descriptors
        self._connections = connections
        self._tasks = tasks
        self._poller = StreamPoller(asyncio.get_running_loop(), turns.has_time_to_answer)
        self._sockets: Sequence[socket.socket] = ()

    def start_accepting(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections from these listening sockets."""
        self._sockets = sockets
        self._watch_sockets()

    def stop_accepting(self) -> None:
        """Close the listening sockets, which frees the port."""
        self._unwatch_sockets()
        for listening in self._sockets:
            listening.close()
        self._sockets = ()

    def close(self) -> None:
        """Stop watching connections, once all of them are closed."""
        self._poller.close()

    def _watch_sockets(self) -> None:
        for listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept_pending, listening)

    def _unwatch_sockets(self) -> None:
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening)

    def _accept_pending(self, listening: socket.socket) -> None:
        for number in range(_AT_A_TIME):
            if not self._turns.has_time_to_answer() and number:
                return
            try:
                peer, address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._descriptors.on_exhausted(self._clock.monotonic())
                if self._connections.close_stale(self._clock.monotonic()):
                    return
                self._unwatch_sockets()
                self._tasks.start(self._resume_later())
                return
            host = address[0] if isinstance(address, tuple) else str(address)
            is_room = self._has_descriptor(peer.fileno(), client_of(host))
            head = _received(peer) if self._tls is None else b""
            if self._connections.is_address_refused(host, head, self._clock.monotonic()):
                self._refuse_unread(peer, TOO_MANY)
            elif is_room and self._connections.make_room(client_of(host), host):
                self._hand_over(peer, address)
            else:
                self._refuse_unread(peer, _FULL)

    def _has_descriptor(self, descriptor: int, customer: str) -> bool:
        """Return True if a customer's new connection may keep its descriptor.

        Before it uses the reserve, the least valuable of the connections that await a request is closed.
        """
        now = self._clock.monotonic()
        if self._descriptors.is_reserved(descriptor) and self._connections.close_stale(now, customer):
            return True
        return self._descriptors.has_room_for_request(descriptor, now)

    def _hand_over(self, peer: socket.socket, address: Any) -> None:
        parts = address, self._answer, self._clock, self._connections, self._poller
        stream = HotStream(peer, *parts) if self._tls is None else SecureHotStream(self._tls.wrap(peer), *parts)
        if self._descriptors.is_reserved(peer.fileno()):
            self._tasks.start(self._cut_later(stream))
        self._http.handle_stream(stream, address)

    def _refuse_unread(self, peer: socket.socket, answer: bytes) -> None:
        """Answer without reading the request, or only close: a TLS handshake would cost more than an answer.

        Discard the received bytes first: if bytes are unread, the kernel resets the connection, and the answer may be
        lost.
        """
        with peer, suppress(OSError):
            if self._tls is None:
                peer.setblocking(False)
                with suppress(BlockingIOError):
                    peer.recv(64 * 1024)
                peer.send(answer)
                peer.shutdown(socket.SHUT_WR)

    async def _cut_later(self, stream: IOStream) -> None:
        """Close a connection on a reserved descriptor after a while."""
        await self._clock.sleep(_RESERVED_S)
        stream.close()

    async def _resume_later(self) -> None:
        await self._clock.sleep(_PAUSE_S)
        self._watch_sockets()


def _received(peer: socket.socket) -> bytes:
    """Return the beginning of a request without taking it from the socket; nothing if it has not arrived."""
    with suppress(OSError):
        return peer.recv(_PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return b""
