"""The seam to Tornado: after the handshake the socket leaves it. Only documented parts of Tornado are used.

Tornado keeps 14 KB for an open WebSocket, half a dozen reference cycles and a Future, a Task and a coroutine for each
message. It does HTTP, the Origin policy and the limits; the frames are ours.
"""

import asyncio
import socket

from tornado.iostream import IOStream, StreamClosedError
from tornado.util import ObjectDict
from tornado.websocket import WebSocketHandler, WebSocketProtocol13

_MOST_EARLY = 64 * 1024  # bytes that may have come together with the handshake


class SocketDetach:
    """Stands where a handler keeps its `WebSocketProtocol`: answers the handshake, and yields the socket."""

    def __init__(self, extensions: str) -> None:
        self._extensions = extensions  # the header that answers the client's offer

    async def accept_connection(self, handler: "DetachedHandler") -> None:
        """Answer 101, then hand the socket over to the handler's `taken`; 400 if the key is missing."""
        key = handler.request.headers.get("Sec-WebSocket-Key")
        if not key or not handler.request.headers.get("Host"):
            handler.set_status(400)
            handler.finish("Missing/Invalid WebSocket headers")
            return
        try:
            peer = handler.request.connection.stream.socket.dup()  # type: ignore[union-attr]
        except OSError:  # before the answer, so that it can still be another one
            handler.without_descriptor()
            return
        handler.clear_header("Content-Type")
        handler.set_status(101)
        handler.set_header("Upgrade", "websocket")
        handler.set_header("Connection", "Upgrade")
        handler.set_header("Sec-WebSocket-Accept", WebSocketProtocol13.compute_accept_value(key))
        if self._extensions:
            handler.set_header("Sec-WebSocket-Extensions", self._extensions)
        handler.finish()
        stream = handler.detach()
        handler.ui = ObjectDict()  # a cycle that Tornado breaks only where it closes the connection itself
        try:
            if stream.writing():
                await stream.write(b"")  # the answer is out when this is
        except StreamClosedError:
            peer.close()
            return
        handler.on_detached(peer, read_early(stream))

    def on_connection_close(self) -> None:
        """The client left during the handshake."""


class DetachedHandler(WebSocketHandler):
    """A WebSocket handler whose connection is taken from it when it is open."""

    def on_detached(self, peer: socket.socket, early: bytes) -> None:
        """Get the socket, and what the client sent right behind its handshake."""
        raise NotImplementedError

    def without_descriptor(self) -> None:
        """Refuse the handshake: there is no file descriptor for the connection."""
        raise NotImplementedError


def read_early(stream: IOStream) -> bytes:
    """Close a stream, whose connection goes on in another socket; return what it had read already."""
    reading = asyncio.ensure_future(stream.read_bytes(_MOST_EARLY, partial=True))
    stream.close()  # closes its own descriptor, not the connection
    is_early = reading.done() and not reading.cancelled() and reading.exception() is None
    return bytes(reading.result()) if is_early else b""
