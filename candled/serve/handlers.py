"""Tornado handlers: the WebSocket handshake, the page, and the shared base of all handlers outside of the API."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from tornado.iostream import IOStream
from tornado.web import HTTPError, RequestHandler
from tornado.websocket import WebSocketProtocol

from candled.addresses import client_of
from candled.exchange import Clock
from candled.protocol.frames import header_of
from candled.transport.broadcaster import Broadcaster
from candled.transport.compression import agree
from candled.transport.connection import ClientConnection, ConnectionListener, MakeClient
from candled.transport.descriptors import Descriptors
from candled.transport.hot_stream import HotStream
from candled.transport.http_connections import REFUSED_S, HttpConnections
from candled.transport.library_internals import check_close_codes, error_reason, peer_address, stream_of
from candled.transport.ping_wheel import PingWheel
from candled.transport.socket_connection import SocketConnection, TransportContext, tune
from candled.transport.socket_detach import DetachedHandler, SocketDetach
from candled.transport.tls import TlsSocket
from candled.transport.tornado_connection import TornadoConnection
from candled.transport.work_budget import FRAME, UNLIMITED, WorkBucket, WorkBudgets

from .connection_limiter import ConnectionLimiter, client_address, networks
from .content_coding import PLAIN, choose_coding
from .counts import ServerCounts
from .grants import SUBPROTOCOL, grant_of, refusal_of
from .hot_path import HotReply, HotRequest, implements, set_headers
from .kept_pages import KeptPage, KeptPages
from .rate_limit import TOO_MANY
from .request_ids import HEADER, find_id, is_logged

if TYPE_CHECKING:
    from candled.config.sections import ServerSettings

    from .access import AccessGuard

STATIC = Path(__file__).parent / "static"
# The chart library adds a style element. Some browsers do not count ws: as 'self'.
_HTML_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    ("Referrer-Policy", "no-referrer"),
)
_BINARY = 2  # opcode
_MOST_CLOSED = 32  # connections that make room for one client

MakeNamedClient = Callable[[ClientConnection, str], ConnectionListener]
"""Makes the client of a connection, given the path and query of its handshake."""


class PortContext:
    """State shared by all handlers of a port."""

    def __init__(self, clock: Clock, compress_from: int, allowed_origins: Sequence[str] = ()) -> None:
        self.clock = clock
        # the smallest body to compress, in bytes; 0 for none
        self.compress_from = compress_from
        # headers of answers. If the settings allow any origin, all pages may read them.
        self.open_headers = [("Cache-Control", "no-store")]
        if "*" in allowed_origins:
            self.open_headers.append(("Access-Control-Allow-Origin", "*"))
        # costly answers, made at most once a second
        self.pages = KeptPages(clock)


class ServerContext(PortContext):
    """State shared by all handlers of the clients' port. It has the connections of all clients."""

    def __init__(
        self,
        *,
        make_client: MakeClient,
        limiter: ConnectionLimiter,
        budgets: WorkBudgets,
        clock: Clock,
        broadcaster: Broadcaster,
        largest: int,
        http: HttpConnections,
        settings: "ServerSettings",
        page: Callable[[], Awaitable[bytes]],
        guard: "AccessGuard | None" = None,
    ) -> None:
        self.allowed_origins = tuple(origin.lower() for origin in settings.allowed_origins)
        super().__init__(clock, settings.compress_from, self.allowed_origins)
        self.guard = guard
        self.make_client = make_client
        self.limiter = limiter
        self.budgets = budgets
        self.broadcaster = broadcaster
        self.descriptors = Descriptors()
        self._http = http
        self.settings = settings
        self.trusted = networks(settings.trusted_proxies)
        self.find_page = partial(self.pages.find, "page", page)
        # set by the server, which knows the routes
        self.counts = ServerCounts(())
        # True once the server accepts no more connections
        self.draining = False
        # all connected clients
        self.connections: set[SocketConnection | TornadoConnection] = set()
        # those whose sockets Tornado reads and writes
        self._tornado_connections: set[TornadoConnection] = set()
        self.transport = TransportContext(broadcaster, clock, largest=largest, on_closed=self._on_closed)
        self.wheel = PingWheel(settings.ping_interval.total_seconds(), settings.ping_timeout.total_seconds())
        self._empty = asyncio.Event()

    def has_descriptor(self, peer: str) -> bool:
        """Return True if there is a descriptor for a client from this address.

        Connections that await a request are closed to make room. Closing one with a descriptor of the reserve is not
        enough.
        """
        now, customer = self.clock.monotonic(), client_of(peer)
        for _ in range(_MOST_CLOSED):
            if self.descriptors.is_free or not self._http.close_stale(now, customer):
                break
        return self.descriptors.has_room(now)

    def payer_of(self, budget: WorkBucket, peer: str, forwarded_for: str | None) -> WorkBucket:
        """Return the budget of a request: that of its connection, or of the client behind a trusted proxy."""
        if budget is not UNLIMITED:
            return budget
        return self.budgets.address_bucket(client_address(peer, forwarded_for, self.trusted))

    def admit_probe(self, path: str, peer: str) -> bool:
        """Return True if a request for a path from a peer's address uses the reserve for probes, and not the budget."""
        return self._http.admit_probe(path, client_of(peer), self.clock.monotonic())

    def on_client_connected(
        self, connection: SocketConnection | TornadoConnection, make_client: MakeClient | None = None
    ) -> None:
        """Register a new client. It speaks candled's protocol unless `make_client` is given."""
        self.counts.connects += 1
        self.limiter.add_connection(connection.address)
        connection.budget = self.budgets.open_connection(connection.address)
        self.connections.add(connection)
        self._empty.clear()
        connection.client = (make_client or self.make_client)(connection)

    def on_tornado_client(
        self, connection: TornadoConnection, stream: IOStream, make_client: MakeClient | None = None
    ) -> None:
        """Register a new client whose socket Tornado reads and writes."""
        if isinstance(stream, HotStream):
            stream.leave_connections()
        self._tornado_connections.add(connection)
        self.on_client_connected(connection, make_client)

    def on_detached_client(
        self,
        peer: socket | TlsSocket,
        address: str,
        early: bytes,
        extensions: str,
        make_client: MakeClient | None = None,
    ) -> None:
        """Register a new client whose socket candled reads and writes."""
        connection = SocketConnection(self.transport, peer, address, agree(extensions)[1] if extensions else ())
        self.on_client_connected(connection, make_client)
        self.wheel.add_connection(connection)
        connection.start_reading(early)

    def on_client_disconnected(self, connection: SocketConnection | TornadoConnection) -> None:
        """Remove a client that has disconnected."""
        self.counts.count_close(connection.close_code)
        self.connections.discard(connection)
        if isinstance(connection, TornadoConnection):
            self._tornado_connections.discard(connection)
        if self.guard is not None:
            self.guard.leave(connection)
        self.limiter.remove_connection(connection.address)
        self.budgets.close_connection(connection.budget)
        if not self.connections:
            self._empty.set()

    async def wait_until_empty(self, within_s: float) -> None:
        """Wait until no client is connected, at most `within_s` seconds."""
        if self.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), within_s)

    def sweep_slow(self, now: float, slow_s: float) -> None:
        """Close connections that have been blocked for more than `slow_s` seconds. Call it every second."""
        self.transport.sweep_slow(now, slow_s, self._tornado_connections)

    def _on_closed(self, connection: SocketConnection) -> None:
        self.wheel.remove_connection(connection)
        self.on_client_disconnected(connection)


def encode_json(body: Any) -> bytes:
    """Return a body as a line of JSON."""
    try:
        return msgspec.json.encode(body, enc_hook=_to_plain) + b"\n"
    except UnicodeEncodeError:  # an exchange's text may contain half a character
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace") + b"\n"


def _to_plain(value: object) -> int:
    """Return a number of the settings, whose type is a subclass of `int`."""
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} has no form in JSON")
    return int(value)


def describe_error(code: int | str, message: str) -> dict[str, dict[str, int | str]]:
    """Return the JSON of an error."""
    return {"error": {"code": code, "message": message}}


JSON = "application/json; charset=utf-8"
_NO_METHOD = encode_json(describe_error(405, "Method Not Allowed"))


class OwnHandler(RequestHandler):
    """The base of handlers outside of the API: shared headers and errors."""

    open_headers: Sequence[tuple[str, str]] = (("Cache-Control", "no-store"),)

    def set_default_headers(self) -> None:
        """Set the headers that all answers share."""
        self.set_header("Server", "candled")
        self.set_header("X-Content-Type-Options", "nosniff")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write an error as JSON."""
        if status_code == 405:
            self.set_header("Allow", _allowed_methods(type(self)))
        if is_logged(status_code):
            self.set_header(HEADER, find_id(self.request))
        self.finish_json(describe_error(status_code, error_reason(self)))

    @classmethod
    def answer_now(cls, request: HotRequest, peer: str, **route: Any) -> HotReply | None:
        """Return 405 if no method of the handler answers the request, else None. `route` are the route's arguments."""
        if implements(cls, request.method):
            return None
        context: PortContext | None = route.get("context")
        shared = cls.open_headers if context is None else context.open_headers
        return request.reply_once(
            cls, lambda: HotReply(405, JSON, (("Allow", _allowed_methods(cls)), *shared), _NO_METHOD)
        )

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log errors of the server only: the client got the others, and must not be able to fill the log."""
        if not isinstance(value, HTTPError) or value.status_code >= 500:
            super().log_exception(typ, value, tb)

    def finish_json(self, body: Any) -> None:
        """Answer with JSON. If the settings allow any origin, all pages may read it."""
        self.set_json_headers()
        self.finish(encode_json(body))

    def finish_error(self, status: int, message: str) -> None:
        """Answer with an error."""
        self.set_status(status)
        self.finish_json(describe_error(status, message))

    def finish_data(self, page: KeptPage, compress_from: int) -> None:
        """Answer with a page of JSON in the coding that the client accepts."""
        self.set_json_headers()
        self._finish_page(page, compress_from)

    def finish_html(self, page: KeptPage, compress_from: int) -> None:
        """Answer with a page for browsers in the coding that the client accepts."""
        set_headers(self, _HTML_HEADERS)
        self._finish_page(page, compress_from)

    def _finish_page(self, page: KeptPage, compress_from: int) -> None:
        self.set_header("Vary", "Accept-Encoding")
        body, coding = page.encoded(choose_coding(self.request.headers.get("Accept-Encoding"), compress_from) or PLAIN)
        if coding.name:
            self.set_header("Content-Encoding", coding.name)
        self.finish(body)

    def set_json_headers(self) -> None:
        """Set the headers of an answer with JSON."""
        self.set_header("Content-Type", JSON)
        set_headers(self, self.open_headers)


def _allowed_methods(kind: type[RequestHandler]) -> str:
    return ", ".join(name for name in kind.SUPPORTED_METHODS if implements(kind, name))


class _ServerHandler(OwnHandler):
    """A handler with the state of the server."""

    def initialize(self, context: ServerContext) -> None:
        self.context = context
        self.open_headers = context.open_headers


class RefusingHandler(_ServerHandler):
    """Any request of an address that has used up its budget of work: 429."""

    def prepare(self) -> None:
        """Answer 429."""
        self.set_header("Retry-After", str(REFUSED_S))
        self.finish_error(429, TOO_MANY)


class DeniedHandler(_ServerHandler):
    """A request that its token does not allow, or that has none."""

    def prepare(self) -> None:
        """Answer with the reason."""
        refusal = refusal_of(self.request)
        assert refusal is not None, "set by the application"
        set_headers(self, refusal.headers.items())
        self.finish_error(refusal.status, str(refusal))


class ConnectingHandler(_ServerHandler):
    """A request for a lasting connection, subject to the limits."""

    address = ""

    def is_refused(self) -> bool:
        """Return True if a limit refuses the connection; the answer is then already written."""
        if self.context.draining:
            self.reject(503, "The server is stopping")
            return True
        if not self.context.has_descriptor(peer_address(self.request)):
            self.without_descriptor()
            return True
        forwarded = self.request.headers.get("X-Forwarded-For")
        self.address = client_address(peer_address(self.request), forwarded, self.context.trusted)
        refusal = self.context.limiter.refusal_for(self.address)
        if refusal is not None:  # before the next check, so that it takes no handshake from others
            self.reject(*refusal)
            return True
        guard, grant = self.context.guard, grant_of(self.request)
        if guard is not None and grant is not None and guard.is_full(grant):
            self.reject(429, f"Too many connections: at most {grant.connections} with this token")
            return True
        wait_s = self.context.limiter.admit_handshake(self.context.clock.monotonic(), self.address)
        if wait_s:
            self.reject(503, "Too many handshakes at a time", wait_s)
            return True
        return False

    def guarded(self, make_client: MakeClient | None) -> MakeClient | None:
        """Return a function that makes clients which need a token, if the settings demand one; else `make_client`."""
        guard = self.context.guard
        if guard is None:
            return make_client
        return guard.guard(make_client or self.context.make_client, grant_of(self.request))

    def check_origin(self, origin: str) -> bool:
        """Return True if a page of this origin may connect.

        Candles are public data, so any page may read them by default. `server.allowed_origins` restricts that.
        """
        allowed = self.context.allowed_origins
        host = urlsplit(origin).netloc.lower()
        return "*" in allowed or origin.lower() in allowed or host == self.request.headers.get("Host", "").lower()

    def reject(self, status: int, message: str, wait_s: float = 10.0) -> None:
        """Answer with an error, and the time after which to try again."""
        self.context.counts.refusals[str(status)] += 1
        self.set_header("Retry-After", str(max(1, round(wait_s))))
        self.finish_error(status, message)

    def without_descriptor(self) -> None:
        """Answer that no file descriptor is left, and close the one that this connection uses."""
        self.reject(503, "This server has no file descriptors left")
        stream_of(self.request).close()


class StreamHandler(ConnectingHandler, DetachedHandler):
    """`/ws`: the protocol of docs/reference/protocol.md.

    A handler lives as long as the handshake, unless Tornado keeps the connection.
    """

    _connection: TornadoConnection | None = None
    _extensions = ""
    _make_client: MakeClient | None = None

    def initialize(self, context: ServerContext, make_client: MakeNamedClient | None = None) -> None:
        """Store the server's context, and `make_client` for a path of another protocol."""
        super().initialize(context)
        if make_client is not None:
            uri = self.request.uri or ""
            self._make_client = lambda connection: make_client(connection, uri)

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Upgrade the connection, unless a limit or the origin policy refuses it."""
        if not self.is_upgrade():  # takes no handshake from others
            self.set_status(400)
            self.finish('Can "Upgrade" only to "WebSocket".')
        elif not self.is_refused():
            self._make_client = self.guarded(self._make_client)
            await super().get(*args, **kwargs)
            if self.get_status() != 101:  # another origin or version, or no key: no WebSocket began
                self.context.limiter.return_handshake()

    async def head(self, *args: Any, **kwargs: Any) -> None:
        """Answer with the headers of a GET without an upgrade."""
        await self.get(*args, **kwargs)

    def is_upgrade(self) -> bool:
        """Return True for the handshake of a WebSocket: a GET without a body, not by HTTP/1.0 (RFC 9110, 7.8)."""
        request = self.request
        is_plain = request.method != "GET" or request.version == "HTTP/1.0" or bool(request.body)
        return request.headers.get("Upgrade", "").lower() == "websocket" and not is_plain

    @classmethod
    def refuse_handshake(cls, request: HotRequest, peer: str, *, context: ServerContext, **_: Any) -> HotReply | None:
        """Return the answer to a handshake beyond the limits of connections, in less time than Tornado; else None."""
        if request.method != "GET" or request.headers["upgrade"].lower() != "websocket":
            return None
        address = client_address(peer, request.headers.get("x-forwarded-for"), context.trusted)
        refusal = context.limiter.refusal_for(address)
        if refusal is None:
            return None
        status, message = refusal
        headers = (("Retry-After", "10"), *context.open_headers)
        return HotReply(status, JSON, headers, encode_json(describe_error(status, message)))

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """Return the protocol that detaches the socket from Tornado, or its own if `server.own_sockets` is false."""
        if not self.context.settings.own_sockets:
            protocol = super().get_websocket_protocol()
            return None if protocol is None else check_close_codes(protocol)
        if self.request.headers.get("Sec-WebSocket-Version") != "13":
            return None
        if self.context.settings.compression:
            self._extensions = agree(self.request.headers.get("Sec-WebSocket-Extensions", ""))[0]
        return SocketDetach(self._extensions)  # type: ignore[return-value]  # as far as a handshake needs it

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Select `candled`, which browsers offer beside the subprotocol that carries their token."""
        return SUBPROTOCOL if self.context.guard is not None and SUBPROTOCOL in subprotocols else None

    def on_detached(self, peer: socket | TlsSocket, early: bytes) -> None:
        """Register the client of a detached socket."""
        self.context.on_detached_client(peer, self.address, early, self._extensions, self._make_client)

    # ------------------------------------------------------------ if Tornado keeps the connection

    def get_compression_options(self) -> dict[str, Any] | None:
        """Return the options of permessage-deflate; None if compression is off."""
        return {"compression_level": 1, "mem_level": 5} if self.context.settings.compression else None

    def open(self, *args: str, **kwargs: str) -> None:
        """Register the client after Tornado's handshake."""
        if self.ws_connection is not None and self.ws_connection.stream is not None:
            tune(self.ws_connection.stream.socket)
        self._connection = TornadoConnection(self, self.context.broadcaster, self.context.clock, self.address)
        self.context.on_tornado_client(self._connection, stream_of(self.request), self._make_client)

    def write_frame(self, frame: bytes) -> "asyncio.Future[None]":
        """Write one frame through Tornado."""
        payload = frame[len(header_of(frame)) :]
        return asyncio.ensure_future(self.write_message(payload, binary=frame[0] & 0x0F == _BINARY))

    def on_message(self, message: str | bytes) -> None:
        """Pass a message to the client."""
        if self._connection is not None and self._connection.charge_received(FRAME):
            self._connection.client.on_client_message(message)

    def on_ping(self, data: bytes) -> None:
        """Charge a ping."""
        if self._connection is not None:
            self._connection.charge_received(FRAME)

    on_pong = on_ping

    def on_close(self) -> None:
        """Remove the client."""
        if self._connection is not None:
            self._connection.close_code = self.close_code or self._connection.close_code
            self._connection.abort()
            self.context.on_client_disconnected(self._connection)
            self._connection = None


class RootHandler(StreamHandler):
    """`/`: the chart page for browsers, the WebSocket for upgrade requests."""

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Upgrade the connection, or answer with the page."""
        if self.is_upgrade():
            await super().get(*args, **kwargs)
            return
        if self.context.guard is not None and grant_of(self.request) is None:
            raise HTTPError(401)  # admitted without a token, as a handshake, but it is none
        path = (self.request.uri or "/").partition("?")[0]
        if not path.endswith("/"):  # the bare `server.prefix`: the page's relative references need the slash
            self.redirect(path.rpartition("/")[2] + "/")
            return
        self.finish_html(await self.context.find_page(), self.context.compress_from)


class UnknownPathHandler(OwnHandler):
    """Any other path: 404."""

    def prepare(self) -> None:
        """Answer 404."""
        raise HTTPError(404)


class NotFoundHandler(_ServerHandler):
    """Any other path of the clients' port."""

    status, body = 404, encode_json(describe_error(404, "Not Found"))

    def prepare(self) -> None:
        """Answer with the error."""
        self.set_status(self.status)
        self.set_json_headers()
        self.finish(self.body)

    @classmethod
    def answer_now(cls, request: HotRequest, peer: str, **route: Any) -> HotReply | None:
        """Return the error for any method that Tornado knows."""
        if request.method not in cls.SUPPORTED_METHODS:
            return super().answer_now(request, peer, **route)
        headers = route["context"].open_headers
        return request.reply_once(cls, lambda: HotReply(cls.status, JSON, headers, cls.body))


class NotServingHandler(NotFoundHandler):
    """Any other path of a process that does not serve. A balancer then tries the next process."""

    _message = "This process reads exchanges and serves no clients: its roles in the settings are [ingest]"
    status, body = 503, encode_json(describe_error(503, _message))
