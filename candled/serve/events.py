"""Server-sent events: the messages of the WebSocket protocol for one topic, over plain HTTP."""

import asyncio
import contextlib
from typing import Any

from tornado.websocket import WebSocketClosedError

from candled.protocol.frames import BarUpdate, Frame
from candled.protocol.requests import NOT_ALLOWED, TOO_MANY, RequestError, UnknownMarket
from candled.transport.library_internals import stream_of
from candled.transport.tornado_connection import TornadoConnection, retrieve_error

from .client import ClientSession
from .handlers import ConnectingHandler, ServerContext

_RETRY_MS = 2000  # a browser reconnects after this time
_ALIVE_S = 15.0  # interval of comments, because proxies close idle connections
_FIELDS = ("final", "seq")
_STATUSES = {TOO_MANY: 429, NOT_ALLOWED: 403}
_FLAGS = {"true": True, "false": False}


class Progress:
    """A client's progress, as the id of each event: epoch and seq of the feed, and a bar's opening time in ms. Pure.

    The bar is the oldest one that was not sent as final, or else the newest one.
    """

    def __init__(self) -> None:
        self._open: set[int] = set()  # opening times of the bars that were not sent as final
        self._newest_ms: int | None = None  # opening time of the newest bar sent

    def id_after(self, update: BarUpdate | None) -> str | None:
        """Return the event id for a message; None if the message has no position in the feed."""
        if update is None:
            return None
        if update.kind == "initial":
            self._open.clear()
            self._newest_ms = None
        for bar, final in update.bars:
            self._newest_ms = max(bar.open_ms, self._newest_ms or 0)
            (self._open.discard if final else self._open.add)(bar.open_ms)
        if update.position is None or self._newest_ms is None:
            return None
        epoch, seq = update.position
        return f"{epoch}:{seq}:{min(self._open, default=self._newest_ms)}"


def resume_of(event_id: str) -> dict[str, Any] | None:
    """Return the `resume` field for a client whose last event had this id; None if the id is not candled's."""
    epoch, _, rest = event_id.rpartition(":")
    epoch, _, seq = epoch.rpartition(":")
    if not epoch or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in (seq, rest)):
        return None
    return {"epoch": epoch, "seq": int(seq), "time": int(rest)}


class EventsHandler(ConnectingHandler):
    """`/events?symbol=&interval=`: a client of candled's protocol whose messages are written as events."""

    _connection: TornadoConnection

    def initialize(self, context: ServerContext) -> None:
        """Store the server's context."""
        super().initialize(context)
        self._progress = Progress()
        self._has_begun = False
        self._over = asyncio.Event()

    async def get(self) -> None:
        """Subscribe, then write events until the client disconnects or the server stops. HEAD gets only headers."""
        origin = self.request.headers.get("Origin")
        if origin is not None and not self.check_origin(origin):
            self.reject(403, "Cross origin requests are not allowed")
            return
        if self.is_refused():
            return
        self._connection = TornadoConnection(self, self.context.broadcaster, self.context.clock, self.address)
        self.context.on_tornado_client(self._connection, stream_of(self.request), self.guarded(None))
        session = self._connection.client
        assert isinstance(session, ClientSession)
        try:
            await self._subscribe(session)
            if self.request.method == "HEAD":
                self._begin_answer()
            else:
                await self._wait_for_end()
        except RequestError as error:
            self.context.limiter.return_handshake()  # no stream began: another client may have its handshake
            self.finish_error(_STATUSES.get(error.code, 400), str(error))
        finally:
            self._connection.abort()
            self.context.on_client_disconnected(self._connection)

    head = get

    async def _subscribe(self, session: ClientSession) -> None:
        fields = self._subscription()
        try:
            session.subscribe_by_query(fields)
        except UnknownMarket as error:
            await session.start_market(error)
            session.subscribe_by_query(fields)

    async def _wait_for_end(self) -> None:
        self._begin_answer()
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _ALIVE_S)
            if not self._over.is_set() and self._connection.blocked_since is None:
                self._write_text(":\n")  # no blank line: to some clients it is the end of an empty event

    def on_connection_close(self) -> None:
        """End the stream: the client has disconnected."""
        self._over.set()

    # ------------------------------------------------------------ calls from the connection

    def write_frame(self, frame: bytes) -> "asyncio.Future[None]":
        """Write one message as an event.

        Raises:
            WebSocketClosedError: the stream has ended.
        """
        if self._over.is_set():
            raise WebSocketClosedError
        message = frame if isinstance(frame, Frame) else Frame(frame)
        self._begin_answer()
        event_id = self._progress.id_after(message.update)
        head = b"" if event_id is None else f"id: {event_id}\n".encode()
        self.write(head + b"data: " + message.payload + b"\n\n")
        return self.flush()

    def close(self, code: int, reason: str) -> None:
        """End the answer; close the socket too, unless the server is stopping (code 1001)."""
        self._over.set()
        if code != 1001:
            stream_of(self.request).close()

    # ------------------------------------------------------------ inside

    def _begin_answer(self) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")  # nginx would buffer events
        self._allow_origin()
        self._write_text(f"retry: {_RETRY_MS}\n")  # without a blank line, as above: it belongs to the first event

    def _write_text(self, text: str) -> None:
        self.write(text)
        self.flush().add_done_callback(retrieve_error)

    def _allow_origin(self) -> None:
        origin = self.request.headers.get("Origin")
        if "*" in self.context.allowed_origins:
            self.set_header("Access-Control-Allow-Origin", "*")
        elif origin is not None:
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Vary", "Origin")

    def _subscription(self) -> dict[str, Any]:
        """Return the fields of a `subscribe` message."""
        asked = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        message: dict[str, Any] = {
            name: asked[name] for name in ("symbol", "interval", "exchange", "numbers", "mode") if name in asked
        }
        if "initialBars" in asked:
            count = asked["initialBars"]
            message["initialBars"] = int(count) if count.isascii() and count.isdigit() and len(count) < 19 else count
        for name in ("status", "corrections", "markets"):
            if name in asked:
                message[name] = _FLAGS.get(asked[name], asked[name])
        wanted = [field for field in asked.get("fields", "").split(",") if field]
        message["fields"] = [*_FIELDS, *(field for field in wanted if field not in _FIELDS)]
        resume = resume_of(self.request.headers.get("Last-Event-ID") or asked.get("lastEventId", ""))
        return message if resume is None else {**message, "resume": resume}
