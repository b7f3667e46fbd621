"""Tornado handlers: the WebSocket, the page, and what can be asked about the daemon."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado.web import HTTPError, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from .client import Client
from .limits import Door, Network, client_address

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"


class Site:
    """What the handlers share: made once by the server."""

    def __init__(
        self,
        *,
        make_client: Callable[["StreamHandler"], Client],
        door: Door,
        trusted: tuple[Network, ...],
        allowed_origins: tuple[str, ...],
        health: Callable[[], Mapping[str, Any]],
        statistics: Callable[[], Mapping[str, Any]],
        page: Callable[[], str],
    ) -> None:
        self.make_client = make_client
        self.door = door
        self.trusted = trusted
        self.allowed_origins = allowed_origins
        self.health = health
        self.statistics = statistics
        self.page = page
        self.draining = False
        self.handlers: set[StreamHandler] = set()
        self._empty = asyncio.Event()

    def entered(self, handler: "StreamHandler") -> None:
        """A client is connected."""
        self.handlers.add(handler)
        self._empty.clear()

    def left(self, handler: "StreamHandler") -> None:
        """A client is gone."""
        self.handlers.discard(handler)
        if not self.handlers:
            self._empty.set()

    async def emptied(self, within_s: float) -> bool:
        """Wait until no client is connected, at most so many seconds; return whether that came to be."""
        if self.handlers:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), within_s)
        return not self.handlers


class _Common(RequestHandler):
    """Headers and errors every answer shares."""

    def initialize(self, site: Site) -> None:
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


class StreamHandler(_Common, WebSocketHandler):
    """`/ws`: the protocol of docs/protocol.md."""

    client: Client | None = None
    _address = ""

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Upgrade, unless a limit or the origin policy refuses it."""
        if self.site.draining:
            self._refuse(503, "The server is stopping")
            return
        peer = self.request.connection.context.address  # type: ignore[union-attr]
        self._address = client_address(
            peer[0] if isinstance(peer, tuple) else str(peer),
            self.request.headers.get("X-Forwarded-For"),
            self.site.trusted,
        )
        refusal = self.site.door.refuse(self._address)
        if refusal is not None:
            self._refuse(*refusal)
            return
        await super().get(*args, **kwargs)

    def check_origin(self, origin: str) -> bool:
        """Candles are public data: by default any page may read them. `server.allowed_origins` narrows it."""
        allowed = self.site.allowed_origins
        host = urlsplit(origin).netloc.lower()
        return "*" in allowed or origin.lower() in allowed or host == self.request.headers.get("Host", "").lower()

    def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        self.site.door.enter(self._address)
        self.site.entered(self)
        self.client = self.site.make_client(self)

    def on_message(self, message: str | bytes) -> None:
        if self.client is not None:
            self.client.received(message)

    def on_close(self) -> None:
        if self.client is None:
            return
        self.site.left(self)
        self.site.door.leave(self._address)
        self.client.closed()
        self.client = None

    def send(self, text: str) -> "asyncio.Future[None]":
        """Write one text frame; the future ends when the kernel took it all."""
        try:
            future = asyncio.ensure_future(self.write_message(text))
        except WebSocketClosedError as error:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
        future.add_done_callback(_heard)
        return future

    def _refuse(self, status: int, message: str) -> None:
        self.set_status(status)
        self.set_header("Retry-After", "10")
        self.finish_json({"error": {"code": status, "message": message}})


class RootHandler(StreamHandler):
    """`/`: the chart page for a browser, the WebSocket for an upgrade."""

    async def get(self, *args: Any, **kwargs: Any) -> None:
        if self.request.headers.get("Upgrade", "").lower() == "websocket":
            await super().get(*args, **kwargs)
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.finish(self.site.page())


class HealthHandler(_Common):
    """`/health`."""

    def get(self) -> None:
        self.finish_json(self.site.health())


class StatisticsHandler(_Common):
    """`/health/ws-stats`."""

    def get(self) -> None:
        self.finish_json(self.site.statistics())


class NothingHandler(_Common):
    """Any other path."""

    def prepare(self) -> None:
        raise HTTPError(404)


class StaticHandler(StaticFileHandler):
    """The page's files; the browser asks each time whether they changed."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")


def _heard(future: "asyncio.Future[None]") -> None:
    """A client that went away in the middle of a write is no error; take note of it, so that nobody logs it."""
    if not future.cancelled():
        future.exception()
