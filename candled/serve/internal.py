"""The internal port: metrics, health with all details, reload and drain, for operators and their programs only."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from tornado.httpserver import HTTPServer
from tornado.web import Application

from candled.config.sections import ServerSettings
from candled.exchange import Clock

from .handlers import JSON, OwnHandler, PortContext, UnknownPathHandler, describe_error
from .health_handlers import HealthContext, HealthReports, make_health_routes
from .hot_path import Route
from .listening import in_browser, listen
from .static_files import make_static_route
from .status_handlers import make_status_routes

logger = logging.getLogger(__name__)

_BACKLOG = 128
_CLOSE_S = 1.0
_MOST_BODY = 64 * 1024  # bytes
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Command = Callable[[], Awaitable[tuple[int, Any]]]
"""Carries out a command, and returns the status and the answer, to be encoded as JSON."""


class MetricsHandler(OwnHandler):
    """`/metrics`: all metrics in Prometheus's text format."""

    def initialize(self, render: Callable[[], Awaitable[bytes]]) -> None:
        """Store the function that returns the text."""
        self.render_metrics = render

    async def get(self) -> None:
        """Answer with the metrics of this moment."""
        text = await self.render_metrics()
        self.set_header("Content-Type", METRICS_TYPE)
        self.set_header("Cache-Control", "no-store")
        self.finish(text)

    head = get

    def compute_etag(self) -> None:
        """Return no ETag: no two answers are equal."""


class CommandHandler(OwnHandler):
    """A command to the daemon by POST. Requests of browsers are refused: any page that you open could send them."""

    def initialize(self, command: Command) -> None:
        """Store the command."""
        self.command = command

    async def post(self) -> None:
        """Carry out the command, and answer with its result."""
        if "Origin" in self.request.headers or "Sec-Fetch-Site" in self.request.headers:
            status, answer = 403, describe_error("forbidden", "Web pages may not send commands to candled")
        else:
            status, answer = await self.command()
        self.set_status(status)
        self.set_header("Content-Type", JSON)
        self.set_header("Cache-Control", "no-store")
        self.finish(msgspec.json.encode(answer))


class InternalServer:
    """Serves `reports`, `metrics`, and the status page if `render_status` returns its data, on the internal port.

    It has no limits: strangers must not reach it. Web pages cannot read its answers, because they have no CORS headers.
    """

    def __init__(
        self,
        settings: ServerSettings,
        reports: HealthReports,
        metrics: Callable[[], Awaitable[bytes]],
        clock: Clock,
        render_status: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._settings = settings
        port = PortContext(clock, settings.compress_from)
        health = HealthContext(reports, port, shows_details=True)
        routes: list[Route] = [*make_health_routes(health), (r"/metrics", MetricsHandler, {"render": metrics})]
        if render_status is not None:
            routes += [*make_status_routes(port, render_status), make_static_route(settings.compress_from)]
        #: Returns the text of `/metrics`.
        self.render_metrics = metrics
        #: The handlers, for a server.
        self.application = Application(routes, default_handler_class=UnknownPathHandler, log_function=_log_nothing)
        self._http = HTTPServer(self.application, max_body_size=_MOST_BODY)

    def add_commands(self, commands: Mapping[str, Command]) -> None:
        """Take commands by POST, by their paths."""
        routes: list[Route] = [(path, CommandHandler, {"command": command}) for path, command in commands.items()]
        self.application.add_handlers(r".*", routes)

    def listen(self) -> int:
        """Start listening; return the port, which the system chose if the settings have 0.

        Raises:
            ConfigError: an address or the port cannot be listened on.
        """
        hosts, port = self._settings.internal_hosts, self._settings.internal_port
        sockets = listen(hosts, port or 0, _BACKLOG, name="server.internal_port")
        self._http.add_sockets(sockets)
        bound: int = sockets[0].getsockname()[1]
        logger.info("metrics and details on http://%s/metrics and /health?verbose", in_browser(hosts, bound))
        return bound

    async def stop(self) -> None:
        """Close the port and all connections."""
        self._http.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._http.close_all_connections(), _CLOSE_S)


def _log_nothing(handler: object) -> None:
    """Log no requests: a monitor asks every few seconds."""
