"""Serve candled's paths below a prefix that a reverse proxy leaves in place, each request in its turn."""

import asyncio
import re
from collections.abc import Awaitable
from functools import partial
from typing import Any

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application, RequestHandler

from candled.transport.broadcaster import Broadcaster
from candled.transport.hot_stream import HotStream
from candled.transport.library_internals import peer_address
from candled.transport.work_budget import REFUSED

from .handlers import DeniedHandler, RefusingHandler, ServerContext, StreamHandler

_ABSOLUTE = re.compile(r"https?://[^/]+(/.*)?", re.IGNORECASE)


class PrefixedApplication(Application):
    """Answers all paths with and without the prefix: proxies use it, probes of the process itself don't.

    Answers contain only relative references, so they work with any prefix, including one that a proxy strips.
    """

    def __init__(self, handlers: Any, prefix: str, context: ServerContext, **settings: Any) -> None:
        super().__init__(handlers, **settings)
        self._context = context
        self._prefix = prefix

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Begin to read a request, unless the stream can answer it."""
        stream = getattr(request_conn, "stream", None)
        if isinstance(stream, HotStream):
            stream.expect_request()
        return _TurnDelegate(super().start_request(server_conn, request_conn), self._context.broadcaster, stream)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return the handler of the path behind the prefix."""
        stream = getattr(request.connection, "stream", None)
        absolute = _ABSOLUTE.fullmatch(request.path)
        if absolute is not None:  # a proxy's form, which servers accept too (RFC 9112, 3.2.2)
            request.path = absolute[1] or "/"
        if request.path == self._prefix or request.path.startswith(f"{self._prefix}/"):
            request.path = request.path[len(self._prefix) :] or "/"
        if isinstance(stream, HotStream):
            forwarded = request.headers.get("X-Forwarded-For")
            payer = self._context.payer_of(stream.budget, peer_address(request), forwarded)
            stream.on_request(payer, request.path)
        found = super().find_handler(request, **kwargs)
        if isinstance(stream, HotStream) and stream.work_wait_s == REFUSED:
            refuses = hasattr(getattr(found, "handler_class", None), "refuse_too_many")  # in the format of its API
            return found if refuses else self.get_handler_delegate(request, RefusingHandler, {"context": self._context})
        guard = self._context.guard
        if guard is None:
            return found
        kind = getattr(found, "handler_class", RequestHandler)
        is_handshake = issubclass(kind, StreamHandler) and request.headers.get("Upgrade", "").lower() == "websocket"
        refusal = guard.admit(request, may_wait=is_handshake)
        if refusal is None or hasattr(kind, "refuse_too_many"):  # it answers in the format of its API
            return found
        return self.get_handler_delegate(request, DeniedHandler, {"context": self._context})


class _TurnDelegate(HTTPMessageDelegate):
    """Delays a request if its budget of work is used up, or if this pass of the loop has no time left.

    Without this, Tornado would handle all requests of one client in one pass.
    """

    def __init__(self, request: HTTPMessageDelegate, turns: Broadcaster, stream: object) -> None:
        self._request = request
        self._turns = turns
        self._stream = stream
        self.data_received = request.data_received  # type: ignore[method-assign]
        self.finish = request.finish  # type: ignore[method-assign]
        self.on_connection_close = request.on_connection_close  # type: ignore[method-assign]

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Pass the headers on. Tornado waits for the result before it reads the body and runs the handler."""
        received = self._request.headers_received(start_line, headers)
        stream = self._stream
        if received is None and isinstance(stream, HotStream) and 0 < stream.work_wait_s < REFUSED:
            return stream.wait_for_budget()
        if received is not None or self._turns.has_time_to_start():
            return received
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.start_later(partial(_grant, turn))
        return turn


def _grant(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)
