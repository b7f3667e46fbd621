"""The HTTP server: routes, listening, the ticks that drive the rooms, and an orderly end."""

import asyncio
import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from candled.config import ServerSettings
from candled.errors import ConfigError
from candled.exchange import Clock
from candled.rooms.hub import Hub
from candled.rooms.protocol import Protocol

from . import clients
from .client import Bars, Client
from .handlers import (
    STATIC,
    HealthHandler,
    NothingHandler,
    RootHandler,
    Site,
    StaticHandler,
    StatisticsHandler,
    StreamHandler,
)
from .limits import Door, networks

logger = logging.getLogger(__name__)

LARGEST_MESSAGE = 16 * 1024
_TICK_S = 0.02
_SWEEP_S = 1.0
_GOODBYE_S = 4.0


class Server:
    """Serves one hub on one port."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        hub: Hub,
        bars: Bars,
        codec: Protocol,
        clock: Clock,
        health: Callable[[], Mapping[str, Any]],
        statistics: Callable[[], Mapping[str, Any]],
        page: Callable[[], str],
        routes: Sequence[tuple[str, type[Any], dict[str, Any]]] = (),
    ) -> None:
        self._routes = routes
        self._settings = settings
        self._hub = hub
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._door = Door(settings.max_connections, settings.max_connections_per_ip)
        self._site = Site(
            make_client=lambda handler: Client(handler, hub, bars, codec, clock, settings),
            door=self._door,
            trusted=networks(settings.trusted_proxies),
            allowed_origins=tuple(origin.lower() for origin in settings.allowed_origins),
            health=health,
            statistics=lambda: {"connections": self._door.count, **statistics()},
            page=page,
        )
        self._http = HTTPServer(self._application(), max_header_size=16 * 1024, max_body_size=64 * 1024)

    def listen(self) -> int:
        """Listen; return the port, which the system chose where the settings say 0.

        Raises:
            ConfigError: the address or port cannot be had.
        """
        host, port = self._settings.host, self._settings.port
        try:
            sockets = bind_sockets(port, host)
        except OSError as error:
            why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ConfigError(f"server: cannot listen on {host}:{port}: {why}") from error
        self._http.add_sockets(sockets)
        self._tasks = [asyncio.ensure_future(self._drive()), asyncio.ensure_future(self._sweep())]
        bound: int = sockets[0].getsockname()[1]
        return bound

    def drain(self) -> None:
        """Take no new connections; those that are there go on."""
        self._site.draining = True
        self._http.stop()

    async def stop(self) -> None:
        """Take no new connections, tell everybody goodbye with 1001, then close."""
        self.drain()
        for handler in list(self._site.handlers):
            handler.close(1001, "the server is going away")
        await self._site.emptied(_GOODBYE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(self._http.close_all_connections(), timeout=1.0)
        except TimeoutError:
            logger.info("%d clients did not answer the goodbye", len(self._site.handlers))

    def _application(self) -> Application:
        site = {"site": self._site}
        return Application(
            [
                (r"/", RootHandler, site),
                (r"/ws", StreamHandler, site),
                (r"/health", HealthHandler, site),
                (r"/health/ws-stats", StatisticsHandler, site),
                (r"/static/(.*)", StaticHandler, {"path": str(STATIC)}),
                clients.make_route(),
                *self._routes,
            ],
            default_handler_class=NothingHandler,
            default_handler_args=site,
            websocket_ping_interval=self._settings.ping_interval.total_seconds(),
            websocket_ping_timeout=self._settings.ping_timeout.total_seconds(),
            websocket_max_message_size=LARGEST_MESSAGE,
            log_function=_log_request,
        )

    async def _drive(self) -> None:
        while True:
            try:
                self._hub.run_due()
            except Exception:  # one room's trouble must not stop the others
                logger.exception("a room failed")
            await self._clock.sleep(_TICK_S)

    async def _sweep(self) -> None:
        """Close clients that have not read for too long."""
        while True:
            await self._clock.sleep(_SWEEP_S)
            now = self._clock.monotonic()
            limit_s = self._settings.slow_client_timeout.total_seconds()
            for handler in list(self._site.handlers):
                if handler.client is not None and handler.client.stuck_for(now) > limit_s:
                    logger.info("%s has not read for %.0f s: closed", handler.request.remote_ip, limit_s)
                    handler.close(3008, "slow")


def _log_request(handler: Any) -> None:
    if handler.get_status() >= 500:
        logger.error("%s %s: %d", handler.request.method, handler.request.path, handler.get_status())
