"""The HTTP server: routes, listening, the ticks that drive the rooms, and graceful shutdown."""

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.web import RequestHandler

from candled.addresses import with_port
from candled.config.sections import LimitSettings, ServerSettings
from candled.exchange import Clock
from candled.model import iso_ms
from candled.rooms.hub import Hub
from candled.tasks import TaskSet
from candled.transport.acceptor import Acceptor
from candled.transport.broadcaster import Broadcaster
from candled.transport.connection import MakeClient
from candled.transport.http_connections import HttpConnections
from candled.transport.request_head import LARGEST
from candled.transport.socket_connection import SocketConnection
from candled.transport.tls import ServerTls
from candled.transport.tornado_connection import TornadoConnection
from candled.transport.work_budget import WorkBudgets

from .access import AccessGuard
from .connection_limiter import ConnectionLimiter, is_trusted, networks
from .counts import ServerCounts
from .dialects import Undecided
from .events import EventsHandler
from .handlers import MakeNamedClient, NotFoundHandler, NotServingHandler, RootHandler, ServerContext, StreamHandler
from .health_handlers import HealthContext, HealthReports, make_health_routes
from .hot_path import HotPath, Route
from .listening import listen
from .prefix import PrefixedApplication
from .request_ids import find_id, is_logged
from .static_files import make_clients_route, make_static_route
from .status_handlers import make_status_routes

logger = logging.getLogger(__name__)

LARGEST_MESSAGE = 16 * 1024
_BACKLOG = 4096  # pending handshakes; Linux allows at most net.core.somaxconn
_TICK_S = 0.02
_SWEEP_S = 1.0
_SHUTDOWN_S = 4.0
_CLOSES_PER_PASS = 200  # connections closed before other tasks run
_RECONNECT_MS = (1_000, 10_000)  # clients are asked to reconnect at a random time in this range
_RECONNECT_DRAINED_MS = (100, 2_000)  # the same if they are disconnected one after the other
_NOTICE_S = 5.0
_SLICE_S = 0.1


class Server:
    """Serves one hub on one port. A process without the serving role only answers requests about itself.

    `streams` are WebSockets of Binance's protocol, by path. On a path that is also one of candled's own, the first
    message of a connection selects the protocol. Without `limits`, connections have no budgets of work.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        hub: Hub,
        broadcaster: Broadcaster,
        make_client: MakeClient,
        clock: Clock,
        reports: HealthReports,
        page: Callable[[], Awaitable[bytes]],
        routes: Sequence[Route] = (),
        streams: Sequence[tuple[str, MakeNamedClient]] = (),
        limits: LimitSettings | None = None,
        largest_message: int = LARGEST_MESSAGE,
        serves: bool = True,
        guard: AccessGuard | None = None,
        status: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._serves, self._is_draining = serves, False
        self._routes, self._streams, self._render_status = routes, dict(streams), status
        self._largest = largest_message
        self._settings, self._hub, self._clock = settings, hub, clock
        #: The certificate; None without TLS.
        self.tls = ServerTls(settings.tls_certificate, settings.tls_key) if settings.tls_certificate else None
        self._slow_s = settings.slow_client_timeout.total_seconds()
        self._tasks, self._bound = TaskSet(), list[socket.socket]()  # `_bound` have the port, and accept nothing yet
        self._limiter, self._connections, self._budgets = _make_limits(settings, limits)
        self._context = ServerContext(
            make_client=make_client,
            limiter=self._limiter,
            budgets=self._budgets,
            clock=clock,
            broadcaster=broadcaster,
            largest=largest_message,
            http=self._connections,
            settings=settings,
            page=page,
            guard=guard,
        )
        #: The sockets of clients.
        self.transport = self._context.transport
        #: `reports`, together with the facts about this server.
        self.reports = self._add_facts(reports)
        self._health = HealthContext(self.reports, self._context, shows_details=settings.health_details)
        self._default = NotFoundHandler if serves else NotServingHandler
        own_routes = self._make_routes()
        #: The connections and requests since the start.
        self.counts = self._context.counts = ServerCounts(pattern for pattern, _, _ in own_routes)
        self.application = self._make_application(own_routes)
        self._http = self._make_http()
        self._hot_path = self._make_hot_path(own_routes)
        self._acceptor = self._make_acceptor(broadcaster)

    def _add_facts(self, reports: HealthReports) -> HealthReports:
        async def summarize() -> Mapping[str, Any]:
            return self._add_certificate(await reports.summarize())

        async def report() -> Mapping[str, Any]:
            return self._add_certificate({**await reports.report(), **self.describe()})

        async def count_clients() -> Mapping[str, Any]:
            return {"connections": self._limiter.count, **await reports.count_clients()}

        return replace(
            reports,
            summarize=summarize,
            report=report,
            count_clients=count_clients,
            is_stopping=lambda: self._is_draining or self._context.draining or reports.is_stopping(),
        )

    def _add_certificate(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add when the certificate expires. An expired one is a warning."""
        if self.tls is None:
            return report
        is_expired = self.tls.expires_ms <= self._clock.now_ms()
        facts = {"status": "warn" if is_expired else "pass", "expires": iso_ms(self.tls.expires_ms)}
        return {**report, "status": "warn" if is_expired else report["status"], "tls": facts}

    def _make_http(self) -> HTTPServer:
        return HTTPServer(
            self.application,
            max_header_size=LARGEST,
            max_body_size=64 * 1024,
            body_timeout=self._settings.header_timeout.total_seconds(),
        )

    def _make_hot_path(self, routes: Sequence[Route]) -> HotPath:
        context, guard = self._context, self.guard
        return HotPath(
            [*routes, (".*", self._default, {"context": context})],
            self._settings.prefix,
            self._clock,
            context.payer_of,
            context.admit_probe,
            self.counts.count_answer,
            None if guard is None else (guard.is_admitted, guard.on_answer),
        )

    def _make_acceptor(self, broadcaster: Broadcaster) -> Acceptor:
        return Acceptor(
            self._http,
            self._hot_path.answer_request,
            self._clock,
            self._context.descriptors,
            self._connections,
            self._tasks,
            broadcaster,
            self.tls,
        )

    def listen(self, *, accepts: bool = True) -> int:
        """Start listening; return the port, which the system chose if the settings have 0.

        Without `accepts`, call `accept_clients` later. On a shared port, other processes get connections until then.

        Raises:
            ConfigError: an address or the port cannot be listened on.
        """
        settings = self._settings
        backlog = _BACKLOG if accepts else None
        sockets = listen(settings.hosts, settings.port, backlog, shared=settings.reuse_port)
        bound: int = sockets[0].getsockname()[1]
        if len(sockets) > 1:
            addresses = ", ".join(with_port(*one.getsockname()[:2]) for one in sockets)
            logger.info("listening on %s", addresses)
        if accepts:
            self._acceptor.start_accepting(sockets)
        else:
            self._bound = sockets
        self.start()
        return bound

    def accept_clients(self) -> None:
        """Accept connections after `listen` without `accepts`, unless the server is stopping."""
        sockets, self._bound = self._bound, []
        for one in sockets:
            one.listen(_BACKLOG)
        self._acceptor.start_accepting(sockets)

    def set_limits(self, settings: ServerSettings, limits: LimitSettings) -> None:
        """Take the limits of new settings. No connection is closed."""
        self._slow_s = settings.slow_client_timeout.total_seconds()
        self._limiter.set_limits(
            settings.max_connections, settings.max_connections_per_ip, settings.max_handshakes_per_second
        )
        self._connections.set_limits(**_http_limits(settings))
        self._http.conn_params.body_timeout = settings.header_timeout.total_seconds()
        self._budgets.set_limits(*_work_limits(limits))

    def start(self) -> None:
        """Start the rooms, the sweeps and the pings, as `listen` does. Call it if another server runs `application`."""
        if not self._tasks:
            self._tasks.start_periodic(self._run_hub, self._clock, _TICK_S)
            self._tasks.start_periodic(self._sweep_slow, self._clock, _SWEEP_S)
            wheel = self._context.wheel
            self._tasks.start_periodic(wheel.turn_once, self._clock, wheel.step_s)

    @property
    def connection_count(self) -> int:
        """The number of connected clients."""
        return self._limiter.count

    @property
    def most_connections(self) -> int:
        """The limit of `connection_count`; 0 for none."""
        return self._settings.max_connections

    @property
    def guard(self) -> AccessGuard | None:
        """The checks of access tokens; None if clients need none."""
        return self._context.guard

    @property
    def sent_bytes(self) -> int:
        """The bytes of all frames given to WebSockets and event streams since the start."""
        return self._context.broadcaster.given_bytes

    def describe(self) -> dict[str, dict[str, int]]:
        """Return the facts about connections with requests, and about the budgets of work."""
        return {"http": self._connections.describe(), "work": self._budgets.describe()}

    def stop_accepting(self) -> None:
        """Accept no new connections; existing ones continue."""
        self._context.draining = True
        self._acceptor.stop_accepting()
        for one in self._bound:
            one.close()
        self._bound = []

    async def drain(self, seconds: float) -> None:
        """Close all clients in slices within some seconds, while everything else still works.

        Before that, `/readyz` reports for a quarter of the time, 5 s at most, that the process is stopping, so that
        balancers choose other processes.
        """
        if not seconds:
            return
        self._is_draining = True
        notice_s = min(seconds / 4, _NOTICE_S)
        await self._clock.sleep(notice_s)
        self.stop_accepting()
        waiting = list(self._context.connections)
        random.shuffle(waiting)
        count = min(len(waiting), max(1, int((seconds - notice_s) / _SLICE_S)))
        for number in range(count):
            for connection in waiting[number::count]:
                if connection in self._context.connections:
                    _dismiss(connection, _RECONNECT_DRAINED_MS)
            await self._clock.sleep((seconds - notice_s) / count if number < count - 1 else 0)
        logger.info("disconnected %d clients within %g s", len(waiting), seconds)

    async def stop(self) -> None:
        """Accept no new connections, close all others with code 1001, then stop."""
        self.stop_accepting()
        for number, connection in enumerate(list(self._context.connections)):
            _dismiss(connection, _RECONNECT_MS)
            if number % _CLOSES_PER_PASS == 0:
                await self._clock.sleep(0)
        await self._context.wait_until_empty(_SHUTDOWN_S)
        await self._tasks.cancel()
        left = len(self._context.connections)
        for connection in list(self._context.connections):
            connection.abort()
        try:
            await asyncio.wait_for(self._http.close_all_connections(), timeout=1.0)
        except TimeoutError:
            left += 1
        self._acceptor.close()
        if left:
            logger.info("%d clients did not complete the closing handshake", left)

    def _make_routes(self) -> list[Route]:
        context = {"context": self._context}
        probes: list[Route] = make_health_routes(self._health)
        compress_from = self._settings.compress_from
        if self._render_status is not None:
            probes += make_status_routes(self._context, self._render_status, has_chart=self._serves)
            probes.append(make_static_route(compress_from))
        if not self._serves:
            return probes
        own = {"/": RootHandler, "/ws": StreamHandler}
        return [
            *probes,
            *((path, handler, {**context, "make_client": self._first_decides(path)}) for path, handler in own.items()),
            (r"/events", EventsHandler, context),
            *(
                (path, StreamHandler, {**context, "make_client": make})
                for path, make in self._streams.items()
                if path not in own
            ),
            make_static_route(compress_from),
            make_clients_route(compress_from),
            *self._routes,
        ]

    def _make_application(self, routes: Sequence[Route]) -> PrefixedApplication:
        return PrefixedApplication(
            routes,
            self._settings.prefix,
            self._context,
            default_handler_class=self._default,
            default_handler_args={"context": self._context},
            # these apply to connections that Tornado keeps
            websocket_ping_interval=self._settings.ping_interval.total_seconds(),
            websocket_ping_timeout=self._settings.ping_timeout.total_seconds(),
            websocket_max_message_size=self._largest,
            log_function=self._on_request_end,
        )

    def _on_request_end(self, handler: RequestHandler) -> None:
        """Count a request that a handler has answered, and log errors of the server."""
        request, status = handler.request, handler.get_status()
        self.counts.count_request(request.path, status, request.request_time())
        if is_logged(status):
            logger.error("%s %s: %d (request %s)", request.method, request.path, status, find_id(request))

    def _first_decides(self, path: str) -> MakeNamedClient | None:
        """Return the client factory of a path that two protocols share; None if the path has only candled's."""
        make_other = self._streams.get(path)
        if make_other is None:
            return None
        return lambda connection, uri: Undecided(
            connection, self._context.make_client, lambda other: make_other(other, uri)
        )

    async def _run_hub(self) -> None:
        """Send the messages of all rooms that are due."""
        try:
            while self._hub.run_due():
                await self._clock.sleep(0)
        except Exception:  # a failure in one room must not stop the others
            logger.exception("a room failed")

    def _sweep_slow(self) -> None:
        """Close connections that have been blocked for too long, and requests that are late."""
        now = self._clock.monotonic()
        self._context.sweep_slow(now, self._slow_s)
        for late in self._connections.sweep(now):
            self._context.broadcaster.end_later(late.close)
        self._budgets.sweep(now)
        if self.tls is not None:
            self.tls.refresh()
        if self._context.guard is not None:
            self._context.guard.sweep(now, self._context.broadcaster.end_later)


def _dismiss(connection: SocketConnection | TornadoConnection, reconnect_ms: tuple[int, int]) -> None:
    """Close a connection, and ask the client to reconnect at a random time of a range."""
    connection.client.notify_shutdown(random.randint(*reconnect_ms))
    connection.disconnect(1001, "the server is stopping")


def _work_limits(limits: LimitSettings) -> tuple[float, float, float, float]:
    """Return the arguments of `WorkBudgets.set_limits`."""
    return (
        limits.connection_work.total_seconds(),
        limits.address_work.total_seconds(),
        limits.work_burst.total_seconds(),
        limits.work_wait.total_seconds(),
    )


def _http_limits(settings: ServerSettings) -> dict[str, Any]:
    """Return the arguments of `HttpConnections.set_limits`."""
    return {
        "most": settings.max_connections,
        "most_per_address": settings.max_connections_per_ip,
        "header_s": settings.header_timeout.total_seconds(),
        "idle_s": settings.idle_timeout.total_seconds(),
        "stalled_s": settings.slow_client_timeout.total_seconds(),
    }


def _make_limits(
    settings: ServerSettings, limits: LimitSettings | None
) -> tuple[ConnectionLimiter, HttpConnections, WorkBudgets]:
    budgets = WorkBudgets() if limits is None else WorkBudgets(*_work_limits(limits))
    trusted = networks(settings.trusted_proxies)
    limiter = ConnectionLimiter(
        settings.max_connections, settings.max_connections_per_ip, settings.max_handshakes_per_second
    )
    connections = HttpConnections(
        limiter,
        **_http_limits(settings),
        is_proxy=lru_cache(maxsize=4096)(lambda address: is_trusted(address, trusted)),
        budgets=budgets,
        prefix=settings.prefix,
    )
    return limiter, connections, budgets
