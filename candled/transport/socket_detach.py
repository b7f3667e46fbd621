"""Detach a WebSocket's socket from Tornado after the handshake.

For an open WebSocket, Tornado uses 14 KB, half a dozen reference cycles, and a Future, a Task and a coroutine for each
message. So Tornado does HTTP, the origin policy and the limits, and candled does the frames.
"""

import asyncio
import socket
from abc import ABC, abstractmethod

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.websocket import WebSocketHandler

from .library_internals import accept_value, break_handler_cycle, stream_of, take_tls_socket
from .tls import TlsSocket

_MOST_EARLY = 64 * 1024  # bytes that may arrive together with the handshake


class SocketDetach:
    """Takes the place of a handler's `WebSocketProtocol`: answers the handshake and detaches the socket."""

    def __init__(self, extensions: str) -> None:
        self._extensions = extensions  # the header that answers the client's offer

    async def accept_connection(self, handler: "DetachedHandler") -> None:
        """Answer 101, then pass the socket to the handler's `on_detached`; answer 400 if the key is missing."""
        key = handler.request.headers.get("Sec-WebSocket-Key")
        if not key or not handler.request.headers.get("Host"):
            handler.set_status(400)
            handler.finish("Missing/Invalid WebSocket headers")
            return
        stream = stream_of(handler.request)
        if stream.closed():  # the client reset the connection
            return
        is_secure = isinstance(stream, SSLIOStream)
        try:
            peer = stream.socket.dup() if not is_secure else None
        except OSError:  # checked before answering 101, so that the answer can still be an error
            handler.without_descriptor()
            return
        handler.clear_header("Content-Type")
        handler.set_status(101)
        handler.set_header("Upgrade", "websocket")
        handler.set_header("Connection", "Upgrade")
        handler.set_header("Sec-WebSocket-Accept", accept_value(key))
        offered = handler.request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        chosen = handler.select_subprotocol([one.strip() for one in offered])
        if chosen:
            handler.set_header("Sec-WebSocket-Protocol", chosen)
        if self._extensions:
            handler.set_header("Sec-WebSocket-Extensions", self._extensions)
        handler.finish()
        stream = handler.detach()
        break_handler_cycle(handler)
        try:
            if stream.writing():
                await stream.write(b"")  # returns once the answer has been sent
            if isinstance(stream, SSLIOStream):
                taken, early = take_tls_socket(stream)
                handler.on_detached(TlsSocket(taken), early)
                return
            early = read_early(stream)
        except (StreamClosedError, OSError):  # the client reset the connection
            stream.close()
            if peer is not None:
                peer.close()
            return
        assert peer is not None
        handler.on_detached(peer, early)

    def on_connection_close(self) -> None:
        """Do nothing: the client disconnected during the handshake."""


class DetachedHandler(WebSocketHandler, ABC):
    """A WebSocket handler that gives up its connection after the handshake."""

    @abstractmethod
    def on_detached(self, peer: socket.socket | TlsSocket, early: bytes) -> None:
        """Take the socket, and the bytes that the client sent right after its handshake."""

    @abstractmethod
    def without_descriptor(self) -> None:
        """Refuse the handshake because no file descriptor is left."""


def read_early(stream: IOStream) -> bytes:
    """Close a stream whose connection continues in another socket; return the bytes it had already read."""
    reading = asyncio.ensure_future(stream.read_bytes(_MOST_EARLY, partial=True))
    stream.close()  # closes its own descriptor, not the connection
    is_early = reading.done() and not reading.cancelled() and reading.exception() is None
    return bytes(reading.result()) if is_early else b""
