"""A connection kept by Tornado: for server-sent events, and for `server.own_sockets: false`."""

import asyncio
from typing import Protocol

from tornado.websocket import WebSocketClosedError

from candled.exchange import Clock

from .broadcaster import Broadcaster
from .connection import ClientConnection, drop


class TornadoSocket(Protocol):
    """A handler that writes frames to its client through Tornado."""

    def write_frame(self, frame: bytes) -> "asyncio.Future[None]":
        """Write a frame; the future is done when the kernel has taken all of it.

        Raises:
            WebSocketClosedError: the connection has ended.
        """

    def close(self, code: int, reason: str) -> None:
        """Close the connection with a close code."""


class TornadoConnection(ClientConnection):
    """A connection with one write at a time; later frames are queued in the outbox, as for a slow client."""

    __slots__ = ("_clock", "_handler")

    def __init__(self, handler: TornadoSocket, broadcaster: Broadcaster, clock: Clock, address: str) -> None:
        super().__init__(broadcaster, address)
        self._handler: TornadoSocket | None = handler
        self._clock = clock
        self.redirect_frames(self._write_frame)

    def _write_frame(self, frame: bytes) -> int:
        if self._handler is None:
            return len(frame)
        try:
            future = self._handler.write_frame(frame)
        except WebSocketClosedError:
            self.connection_lost()
            return len(frame)
        self.blocked_since = self._clock.monotonic()
        self.redirect_frames(self.queue_frame)
        future.add_done_callback(self._on_written)
        return len(frame)

    def _on_written(self, future: "asyncio.Future[None]") -> None:
        failed = future.cancelled() or future.exception() is not None  # retrieved, so that asyncio doesn't log it
        self.blocked_since = None
        if not self.is_open:
            return
        self.redirect_frames(self._write_frame)
        frame = None if failed else self.next_frame()
        if frame is not None:
            self._write_frame(frame)

    def now(self) -> float:
        """Return monotonic seconds."""
        return self._clock.monotonic()

    def disconnect(self, code: int, reason: str) -> None:
        """Send the queued replies, then a close frame."""
        if not self.is_open or self._handler is None:
            return
        self.close_code = code
        for answer in self.outbox.take_replies():
            self._handler.write_frame(answer).add_done_callback(retrieve_error)
        self._handler.close(code, reason)
        self.connection_lost()

    def connection_lost(self) -> None:
        """Accept no more frames, and have the client's `on_close` called."""
        if self.is_open:
            self.is_open = False
            self.redirect_frames(drop)
            self._outbox = None
            self._broadcaster.end_later(self.finalize)

    def abort(self) -> None:
        """Release the handler: the connection is closed."""
        self.connection_lost()
        self._handler = None


def retrieve_error(future: "asyncio.Future[None]") -> None:
    """Retrieve the exception of a write, so that asyncio doesn't log it: a disconnected client is not an error."""
    if not future.cancelled():
        future.exception()
