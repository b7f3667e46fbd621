"""Tornado handlers: the WebSocket's handshake, the page, and what can be asked about the daemon."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlsplit

from tornado.web import HTTPError, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketProtocol

from candled.exchange import Clock
from candled.protocol.frames import header_of
from candled.transport.broadcaster import Broadcaster
from candled.transport.compression import agree
from candled.transport.connection import ClientConnection, ConnectionListener
from candled.transport.descriptors import Descriptors
from candled.transport.ping_wheel import PingWheel
from candled.transport.socket_connection import SocketConnection, TransportContext, tune
from candled.transport.socket_detach import DetachedHandler, SocketDetach
from candled.transport.tornado_connection import TornadoConnection, answer_ends_rightly

from .connection_limiter import ConnectionLimiter, Network, client_address

logger = logging.getLogger(__name__)

NO_DESCRIPTORS = "This server has no file descriptors left"
STATIC = Path(__file__).parent / "static"
_BINARY = 2  # opcode

Ready = Callable[[], Awaitable[Mapping[str, str | None]]]
"""What serving needs, each with what is wrong with it, or None."""
MakeClient = Callable[[ClientConnection], ConnectionListener]
MakeNamedClient = Callable[[ClientConnection, str], ConnectionListener]
"""Makes the client of a link that asked for this path and query."""


class ServerContext:
    """What the handlers share: made once by the server. Keeps the links of all clients that are connected."""

    def __init__(
        self,
        *,
        make_client: MakeClient,
        door: ConnectionLimiter,
        clock: Clock,
        publisher: Broadcaster,
        wheel: PingWheel,
        largest: int,
        descriptors: Descriptors,
        takes_over: bool,
        compresses: bool,
        trusted: tuple[Network, ...],
        allowed_origins: tuple[str, ...],
        health: Callable[[], Mapping[str, Any]],
        ready: Ready,
        statistics: Callable[[], Mapping[str, Any]],
        page: Callable[[], str],
    ) -> None:
        self.make_client = make_client
        self.door = door
        self.clock = clock
        self.publisher = publisher
        self.descriptors = descriptors
        self.takes_over = takes_over
        self.compresses = compresses
        self.trusted = trusted
        self.allowed_origins = allowed_origins
        self.health = health
        self.ready = ready
        self.statistics = statistics
        self.page = page
        self.draining = False
        self.links: set[SocketConnection | TornadoConnection] = set()
        self._kept: set[TornadoConnection] = set()  # connections that Tornado keeps
        self.wires = TransportContext(publisher, clock, largest=largest, gone=self._on_gone)
        self._wheel = wheel
        self._empty = asyncio.Event()

    def on_client_connected(
        self, link: SocketConnection | TornadoConnection, make_client: MakeClient | None = None
    ) -> None:
        """A client is connected; it speaks our protocol unless `make_client` makes another one."""
        self.door.add_connection(link.address)
        self.links.add(link)
        self._empty.clear()
        link.client = (make_client or self.make_client)(link)

    def on_tornado_client(self, link: TornadoConnection, make_client: MakeClient | None = None) -> None:
        """A client is connected, and Tornado keeps the connection."""
        self._kept.add(link)
        self.on_client_connected(link, make_client)

    def on_detached_client(
        self, peer: socket, address: str, early: bytes, extensions: str, make_client: MakeClient | None = None
    ) -> None:
        """A client is connected, and its socket is ours."""
        link = SocketConnection(self.wires, peer, address, agree(extensions)[1] if extensions else ())
        self.on_client_connected(link, make_client)
        self._wheel.add_link(link)
        link.start_reading(early)

    def on_client_gone(self, link: SocketConnection | TornadoConnection) -> None:
        """A client is gone."""
        self.links.discard(link)
        if isinstance(link, TornadoConnection):
            self._kept.discard(link)
        self.door.remove_connection(link.address)
        if not self.links:
            self._empty.set()

    async def wait_until_empty(self, within_s: float) -> bool:
        """Wait until no client is connected, at most so many seconds; return whether that came to be."""
        if self.links:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), within_s)
        return not self.links

    def sweep_slow(self, now: float, slow_s: float) -> None:
        """Close who has not read for so long. Call it every second."""
        self.wires.sweep_slow(now, slow_s)
        for link in [one for one in self._kept if one.blocked_for(now) > slow_s]:
            logger.info("%s has not read for %.0f s: closed", link.address, slow_s)
            link.disconnect(3008, "slow")

    def abort_all(self) -> None:
        """Close the sockets of all who are still there."""
        for link in list(self.links):
            link.abort()

    def _on_gone(self, link: SocketConnection) -> None:
        self._wheel.remove_link(link)
        self.on_client_gone(link)


class _Common(RequestHandler):
    """Headers and errors every answer shares."""

    def initialize(self, site: ServerContext) -> None:
        self.site = site

    def set_default_headers(self) -> None:
        self.set_header("Server", "candled")
        self.set_header("X-Content-Type-Options", "nosniff")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.finish_json({"error": {"code": status_code, "message": self._reason}})

    def finish_json(self, body: Any) -> None:
        """Answer with JSON that any page may read, if the settings allow any."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        if "*" in self.site.allowed_origins:
            self.set_header("Access-Control-Allow-Origin", "*")
        self.finish(json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n")


class ConnectingHandler(_Common):
    """Somebody who wants to stay."""

    address = ""

    def is_refused(self) -> bool:
        """Whether a limit refuses another connection; the client is told then."""
        if self.site.draining:
            self.reject(503, "The server is stopping")
            return True
        if not self.site.descriptors.has_room(self.site.clock.monotonic()):
            self.without_descriptor()
            return True
        wait_s = self.site.door.admit_handshake(self.site.clock.monotonic())
        if wait_s:
            self.reject(503, "Too many handshakes at a time", wait_s)
            return True
        peer = self.request.connection.context.address  # type: ignore[union-attr]
        self.address = client_address(
            peer[0] if isinstance(peer, tuple) else str(peer),
            self.request.headers.get("X-Forwarded-For"),
            self.site.trusted,
        )
        refusal = self.site.door.refusal_for(self.address)
        if refusal is not None:
            self.reject(*refusal)
            return True
        return False

    def check_origin(self, origin: str) -> bool:
        """Candles are public data: by default any page may read them. `server.allowed_origins` narrows it."""
        allowed = self.site.allowed_origins
        host = urlsplit(origin).netloc.lower()
        return "*" in allowed or origin.lower() in allowed or host == self.request.headers.get("Host", "").lower()

    def reject(self, status: int, message: str, wait_s: float = 10.0) -> None:
        """Tell the client that it may not stay."""
        self.set_status(status)
        self.set_header("Retry-After", str(max(1, round(wait_s))))
        self.finish_json({"error": {"code": status, "message": message}})

    def without_descriptor(self) -> None:
        """Tell the client that no file descriptor is left, and give back the one it has."""
        self.reject(503, NO_DESCRIPTORS)
        self.request.connection.stream.close()  # type: ignore[union-attr]


class StreamHandler(ConnectingHandler, DetachedHandler):
    """`/ws`: the protocol of docs/reference/protocol.md. Lives as long as the handshake, unless Tornado keeps the connection."""

    _link: TornadoConnection | None = None
    _extensions = ""
    _make_client: MakeClient | None = None

    def initialize(self, site: ServerContext, make_client: MakeNamedClient | None = None) -> None:
        super().initialize(site)
        if make_client is not None:
            self._make_client = partial(_named, make_client, self.request.uri or "")

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Upgrade, unless a limit or the origin policy refuses it."""
        while not self.site.publisher.may_read():  # hundreds that ask in one moment take turns with everybody else
            await self.site.clock.sleep(0)
        if not self.is_refused():
            await super().get(*args, **kwargs)

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """Take the connection over, where it is a plain socket; else let Tornado keep it."""
        if not self.site.takes_over or self.request.protocol == "https":
            protocol = super().get_websocket_protocol()
            return None if protocol is None else answer_ends_rightly(protocol)
        if self.request.headers.get("Sec-WebSocket-Version") != "13":
            return None
        if self.site.compresses:
            self._extensions = agree(self.request.headers.get("Sec-WebSocket-Extensions", ""))[0]
        return SocketDetach(self._extensions)  # type: ignore[return-value]  # as far as a handshake needs it

    def on_detached(self, peer: socket, early: bytes) -> None:
        self.site.on_detached_client(peer, self.address, early, self._extensions, self._make_client)

    # ------------------------------------------------------------ where Tornado keeps the connection

    def get_compression_options(self) -> dict[str, Any] | None:
        return {"compression_level": 1, "mem_level": 5} if self.site.compresses else None

    def open(self, *args: str, **kwargs: str) -> None:
        if self.ws_connection is not None and self.ws_connection.stream is not None:
            tune(self.ws_connection.stream.socket)
        self._link = TornadoConnection(self, self.site.publisher, self.site.clock, self.address)
        self.site.on_tornado_client(self._link, self._make_client)

    def write_frame(self, frame: bytes) -> "asyncio.Future[None]":
        payload = frame[len(header_of(frame)) :]
        return asyncio.ensure_future(self.write_message(payload, binary=frame[0] & 0x0F == _BINARY))

    def on_message(self, message: str | bytes) -> None:
        if self._link is not None:
            self._link.client.on_message(message)

    def on_close(self) -> None:
        if self._link is not None:
            self._link.abort()
            self.site.on_client_gone(self._link)
            self._link = None


class RootHandler(StreamHandler):
    """`/`: the chart page for a browser, the WebSocket for an upgrade."""

    async def get(self, *args: Any, **kwargs: Any) -> None:
        if self.request.headers.get("Upgrade", "").lower() == "websocket":
            await super().get(*args, **kwargs)
            return
        path = (self.request.uri or "/").partition("?")[0]
        if not path.endswith("/"):  # the bare `server.prefix`, below which the page's references would be wrong
            self.redirect(path.rpartition("/")[2] + "/")
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.finish(self.site.page())


class HealthHandler(_Common):
    """`/health`."""

    def get(self) -> None:
        self.finish_json(self.site.health())


class LiveHandler(_Common):
    """`/health/live`: the loop turns. Nothing else is looked at: a restart would not bring back a database."""

    def get(self) -> None:
        self.finish_json({"status": "pass"})


class ReadyHandler(_Common):
    """`/health/ready`: 200 while clients are well served here, 503 while they are better sent elsewhere."""

    async def get(self) -> None:
        checks = dict(await self.site.ready())
        if self.site.draining:
            checks["server"] = "is stopping"
        failed = any(trouble is not None for trouble in checks.values())
        self.set_status(503 if failed else 200)
        told = {name: trouble or "ok" for name, trouble in checks.items()}
        self.finish_json({"status": "fail" if failed else "pass", "checks": told})


class StatisticsHandler(_Common):
    """`/health/ws-stats`."""

    def get(self) -> None:
        self.finish_json(self.site.statistics())


class NothingHandler(_Common):
    """Any other path."""

    def prepare(self) -> None:
        raise HTTPError(404)


class NotServingHandler(_Common):
    """Every path of a process that does not serve but those about itself: a balancer asks the next one on 503."""

    def prepare(self) -> None:
        message = "This process reads exchanges and serves no clients: its roles in the settings are [ingest]"
        self.set_status(503)
        self.finish_json({"error": {"code": 503, "message": message}})


class StaticHandler(StaticFileHandler):
    """The page's files; the browser asks each time whether they changed."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")


def _named(make_client: MakeNamedClient, uri: str, link: ClientConnection) -> ConnectionListener:
    return make_client(link, uri)
