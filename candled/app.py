"""The composition root: creates all parts of the daemon. Receivers start before senders, and stop after them."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from candled import __version__, signals, workers
from candled.aggregate.live_bars import LiveBars
from candled.api.catalog import MarketCatalog
from candled.api.context import ApiContext
from candled.api.offered_markets import OfferedMarkets
from candled.api.pages import BarReader
from candled.api.routes import make_guard, make_routes, make_streams
from candled.budget import MakeBudget
from candled.budget_file import BudgetFile
from candled.bus import Bus
from candled.bus.memory_bus import MemoryBus
from candled.clock import SystemClock
from candled.config import Config, budget_path, config_warnings, make_store
from candled.control import ControlSocket, post_commands
from candled.daemon_threads import DaemonThreads, switch_often
from candled.errors import StoreRejected, StoreUnavailable, Unavailable
from candled.exchange import Clock, Exchange
from candled.health import Health, make_reports
from candled.ingest_side import ShardedIngest
from candled.logs import BoundedHandler, JsonFormatter
from candled.loop_watchdog import LoopWatchdog
from candled.metrics.loop_lag import EVERY_S, LoopLag
from candled.model import Interval, MarketKey, Symbol
from candled.on_demand import RENEW_S, DemandBook, MarketsOnDemand, MemoryBook
from candled.parts import Parts
from candled.plugin_hooks import PluginHooks
from candled.plugins import Plugins
from candled.protocol.requests import RequestCodec
from candled.reload import ExchangeChanges, ReloadPlan, compare_exchanges
from candled.reloader import Reloader
from candled.rooms.encoded_bars import EncodedBarCache
from candled.rooms.hub import Hub, RecipientConnection
from candled.serve.client import ClientSession
from candled.serve.connection_limiter import ClientLimits
from candled.serve.gc_tuner import GcTuner
from candled.serve.internal import InternalServer
from candled.serve.listening import in_browser
from candled.serve.page import render_page
from candled.serve.pager import HistoryPages, SessionContext
from candled.serve.rate_limit import MemoryCounter, RateLimits
from candled.serve.server import Server
from candled.service_manager import ServiceManager
from candled.status.last_hour import EVERY_S as SAMPLE_S
from candled.status.report import StatusReport
from candled.store.history import HistoryReader
from candled.store.ingest_store import IngestStore
from candled.store.journal import Journal
from candled.store.threads import StoreThreads
from candled.store.upkeep import StoreUpkeep
from candled.store.writer import Writer
from candled.tasks import TaskSet, at_most, first_of, in_parallel
from candled.transport.broadcaster import Broadcaster
from candled.transport.descriptors import raise_limit, shortage
from candled.transport.pass_clock import PassClock
from candled.universe import Universe

if TYPE_CHECKING:
    from candled.bus.factory import RedisParts

logger = logging.getLogger(__name__)

_STOP_S = 5.0  # for each step of the shutdown
_STOP_EARLY_S = 0.25  # the same during startup: the daemon may then wait for something that never comes
_HANGS_S = 120.0  # the writer's longest pause is 30 s, and statements that hang end within a minute
_ACCEPT_S = 10.0  # then a process accepts connections anyway: the store may be unavailable
_LOOKUPS = 4  # concurrent lookups of host names


ReadSettings = Callable[[], Config]
"""Reads the settings, at the start and at each reload, or raises ConfigError."""


def run(read: ReadSettings, plugins: Plugins, clock: Clock | None = None) -> int:
    """Run the daemon until SIGINT or SIGTERM; return the exit status.

    Raises:
        ConfigError: the settings have mistakes, or a resource in them is not usable: the port, the database file, a
            recording.
    """
    config = read()
    return asyncio.run(_run(config, read, plugins, clock or SystemClock(), _start_log(config)))


def run_workers(read: ReadSettings, plugins: Plugins, count: int, name: str | None) -> int:
    """Run one ingest process and `count` serve processes, or only the one called `name`; return the exit status.

    Raises:
        ConfigError: several processes cannot share the settings, or as for `run`.
    """
    config = read()
    workers.check(config, count)
    log = _start_log(config, name)
    if name is None:
        return workers.run(count, SystemClock(), config.control.socket, config.server.shutdown_seconds)
    worker = name

    def read_own() -> Config:
        wanted = read()
        workers.check(wanted, count)
        return workers.settings_of(worker, wanted)

    return asyncio.run(_run(workers.settings_of(worker, config), read_own, plugins, SystemClock(), log, worker))


def _start_log(config: Config, worker: str | None = None) -> BoundedHandler:
    process = f"{worker} " if worker else ""
    text = f"%(asctime)s %(levelname)s {process}%(name)s: %(message)s"
    handler = BoundedHandler(JsonFormatter(worker) if config.log.format == "json" else text)
    logging.basicConfig(level=config.log.level.upper(), handlers=[handler], force=True)
    return handler


async def _run(
    config: Config,
    read: ReadSettings,
    plugins: Plugins,
    clock: Clock,
    log: BoundedHandler,
    worker: str | None = None,
) -> int:
    for warning in filter(None, (*config_warnings(config), _descriptor_warning(config))):
        logger.warning("%s", warning)
    switch_often()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(DaemonThreads(_LOOKUPS, "lookup"))
    daemon = Daemon(config, plugins, clock, worker)  # until now a signal ends the process immediately
    stopping = asyncio.Event()
    manager = ServiceManager(os.environ)
    reloader = Reloader(config, read, daemon.apply, clock, manager)
    _listen_to_signals(loop, stopping, reloader.request, is_worker=worker is not None)
    if daemon.internal is not None:
        daemon.internal.add_commands(post_commands(reloader.reload, stopping.set))
    collector = GcTuner(keeps_handlers=not config.server.own_sockets)

    tasks = TaskSet()
    control = ControlSocket(config.control.socket, reloader.reload)

    async def start() -> None:
        await control.start()
        tasks.start_periodic(lambda: log.end_minute(clock.now_ms() / 1000), clock, 1.0)
        await daemon.start()
        collector.start()
        manager.report_ready()
        await stopping.wait()

    manager.start_beats(tasks, clock, lambda: daemon.is_moving(manager.watchdog_s))
    try:
        await first_of(start(), stopping.wait())
        logger.info("stopping")
    finally:
        manager.report_stop()
        collector.stop()
        await tasks.cancel()
        await control.stop()
        await reloader.stop()
        left = await daemon.stop()
    return 1 if left else 0


def _descriptor_warning(config: Config) -> str | None:
    """Raise the limit of file descriptors; return a warning if it is too low for the clients."""
    return shortage(raise_limit(), config.server.max_connections if "serve" in config.roles else 0)


def _listen_to_signals(
    loop: asyncio.AbstractEventLoop, stopping: asyncio.Event, reload: Callable[[], None], *, is_worker: bool
) -> None:
    # A terminal and systemd signal a worker and also its supervisor. So a worker ignores a second signal: the
    # supervisor kills it then.
    ask = stopping.set if is_worker else partial(_asked_to_stop, stopping)
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, ask)
    if is_worker:
        workers.on_parent_lost(loop, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    signals.unblock_hangup()


def _asked_to_stop(stopping: asyncio.Event) -> None:
    if stopping.is_set():  # the second signal: exit without waiting
        os._exit(1)
    stopping.set()


class Daemon:
    """All parts of one process."""

    def __init__(self, config: Config, plugins: Plugins, clock: Clock, worker: str | None = None) -> None:
        self._config = config
        self._hooks = PluginHooks(plugins, config)
        # the name of the process in its statistics, if other processes answer on the same port
        self._name = {"process": worker or str(os.getpid())} if worker or config.server.reuse_port else {}
        self._clock = clock
        self._store = make_store(config, owns=True)
        self._threads = StoreThreads(self._store)
        self._writer = self._make_writer()
        self._history = HistoryReader(self._store, self._threads)
        self._upkeep = StoreUpkeep(self._store, self._threads, self._history, clock)
        #: The markets of all exchanges. Every part that has markets follows its changes.
        self.universe = _make_universe(config)
        symbols = self.universe.symbols_by_exchange
        self._shared = _shared(config, self.universe, clock)
        self._bus: Bus = MemoryBus() if self._shared is None else self._shared.bus
        self._bars = LiveBars(self.universe.markets if self._keeps_bars else [], config.intervals, self._history, clock)
        self._codec = RequestCodec(symbols, config.intervals)
        loop, passes = asyncio.get_running_loop(), PassClock(clock.monotonic, time.thread_time)
        broadcaster = Broadcaster(loop.call_soon, loop.call_later, passes)
        texts = EncodedBarCache(config.server.cache)
        self._hub = Hub(self._codec, self._bars, clock, broadcaster, texts=texts)
        self._ingest = self._make_ingest() if "ingest" in config.roles else None
        self._watchdog = LoopWatchdog(plugins.packages())
        self.health = Health(
            config,
            plugins,
            clock,
            store=self._store,
            upkeep=self._upkeep,
            writer=self._writer,
            history=self._history,
            bus=self._bus,
            bars=self._bars,
            watchdog=self._watchdog,
            universe=self.universe,
            ingest=self._ingest,
            describe_hooks=self._hooks.describe,
        )
        self._demand = MarketsOnDemand(self.universe, clock, self._book, self._hub.has_members, config.demand_rules)
        self._catalog = self._make_catalog(symbols)
        self._client_limits = ClientLimits(config.server)
        self._rate_limits = self._make_rate_limits()
        self._started, self._is_stopping = asyncio.Event(), False
        self._server = self._make_server(self._catalog, broadcaster, texts)
        self._lag = LoopLag(clock)
        parts = self._make_parts(texts)
        registry = None if self._shared is None else self._shared.processes
        #: The data of the status page.
        self.status = StatusReport(parts, self._name.get("process"), registry)
        #: The internal port; None if the settings have none.
        self.internal = self._make_internal(parts)
        self._tasks = TaskSet()
        self._reading, self._adding_intervals = asyncio.Event(), asyncio.Lock()
        self.port = 0
        #: The internal port; 0 without one.
        self.internal_port = 0

    def _make_writer(self) -> Writer:
        settings = self._config.store
        journal = Journal(Path(settings.journal), limit_bytes=settings.journal_limit) if settings.journal else None
        flush_interval_s = settings.flush_interval.total_seconds()
        return Writer(self._store, self._threads, self._clock, flush_interval_s=flush_interval_s, journal=journal)

    @cached_property
    def _book(self) -> DemandBook:
        return MemoryBook(self._clock) if self._shared is None else self._shared.book

    def _make_rate_limits(self) -> RateLimits:
        counter = MemoryCounter(self._clock) if self._shared is None else self._shared.counter
        return RateLimits(self._config.limits, counter, self._clock)

    def _make_catalog(self, symbols: dict[str, tuple[Symbol, ...]]) -> MarketCatalog:
        """Return the catalog, and have all parts that have markets follow the universe.

        The codec and the catalog come first: only requests that they accept use rooms and bars.
        """
        catalog = MarketCatalog(symbols, self._config.intervals)
        universe = self.universe
        universe.add_listener(self._codec.on_markets_changed)
        universe.add_listener(lambda change: self._codec.set_renamed(universe.renamed))
        universe.add_listener(lambda change: catalog.set_markets(universe.symbols_by_exchange, universe.renamed))
        universe.add_listener(self._hub.on_markets_changed)
        if self._keeps_bars:
            universe.add_listener(self._bars.on_markets_changed)
            universe.add_listener(self._hooks.on_markets_changed)
        if self._ingest is not None:  # after those that use its messages
            universe.add_listener(self._ingest.on_markets_changed)
        return catalog

    def _make_server(self, catalog: MarketCatalog, broadcaster: Broadcaster, texts: EncodedBarCache) -> Server:
        config, clock, is_public = self._config, self._clock, self._config.server.status == "public"
        pages = BarReader(self._bars, self._history, texts, clock)
        source = ApiContext(
            catalog=catalog,
            pages=pages,
            stored=self._history,
            clock=clock,
            decimals=self._bars.decimals,
            facts=self.universe.facts,
            offered=OfferedMarkets(self._demand),
            wait_for_bars=self._wait_for_bars,
            seen_decimals=self._bars.seen_decimals,
            is_simulated=lambda exchange: exchange in self.universe.simulated,
        )
        older = HistoryPages(pages.read_history)
        sessions = SessionContext(self._hub, self._bars, self._codec, clock, self._client_limits, older, self._demand)

        def make_client(connection: RecipientConnection) -> ClientSession:
            return ClientSession(connection, sessions)

        return Server(
            config.server,
            hub=self._hub,
            broadcaster=broadcaster,
            make_client=make_client,
            clock=clock,
            reports=make_reports(
                self.health,
                self._hub,
                self._name,
                describe_processes=lambda: self.status.processes.describe(shows_details=True),
                is_stopping=lambda: self._is_stopping,
            ),
            page=partial(render_page, catalog.intervals, self.universe, self._bars.decimals, clock),
            routes=[
                *make_routes(config, source, self._rate_limits),
                *(self._hooks.make_routes(pages, catalog, clock) if self._is_serving else ()),
            ],
            streams=make_streams(
                config,
                source,
                self.universe,
                self._bars,
                make_client,
                broadcaster.broadcast,
                self._client_limits,
            ),
            limits=config.limits,
            serves=self._is_serving,
            guard=make_guard(config, catalog, clock) if self._is_serving or is_public else None,
            status=self._render_status if is_public else None,
        )

    def _make_parts(self, texts: EncodedBarCache) -> Parts:
        return Parts(
            config=self._config,
            clock=self._clock,
            health=self.health,
            ingest=self._ingest,
            store=self._store,
            upkeep=self._upkeep,
            writer=self._writer,
            history=self._history,
            bus=self._bus,
            bars=self._bars,
            hub=self._hub,
            server=self._server,
            cache=texts,
            watchdog=self._watchdog,
            lag=self._lag,
            hooks=self._hooks,
        )

    def _make_internal(self, parts: Parts) -> InternalServer | None:
        """Return the server of the internal port, if the settings have one."""
        settings = self._config.server
        if settings.internal_port is None:
            return None
        from candled.metrics.collector import Metrics  # others do not wait for prometheus-client

        render = None if settings.status == "off" else partial(self.status.render, shows_details=True)
        return InternalServer(settings, self._server.reports, Metrics(parts).render, self._clock, render)

    async def _render_status(self) -> bytes:
        """Return the data of the status page for the clients' port."""
        return await self.status.render(shows_details=self._config.server.health_details)

    async def start(self) -> None:
        """Start every part, the clients' side first, so that published messages have receivers.

        It may be cancelled at any moment; `stop` undoes its work.
        """
        if self._ingest is not None:
            self._watchdog.start()
        self._bars.add_listener(self._hub)
        if self._keeps_bars:
            self._bus.add_listener(self._bars)
        if self._ingest is not None:
            self._hooks.start(self._bars, self._catalog, self._clock, self._ingest.is_reading)
        if self.internal is not None:
            self.internal_port = self.internal.listen()
        if self.internal is not None or self._config.server.status == "public":
            self._tasks.start_periodic(self._lag.tick, self._clock, EVERY_S)
            self._tasks.start_periodic(self.status.take_sample, self._clock, SAMPLE_S)
        # before the store is opened, because another candled may be running
        self.port = self._server.listen(accepts=not self._config.server.reuse_port)
        if self._config.server.reuse_port:
            self._tasks.start(self._accept_later())
        with contextlib.suppress(StoreUnavailable):  # `open_later` tries again
            await self._upkeep.open_store()
        address = in_browser(self._config.server.hosts, self.port)
        if self._is_serving:
            s = "s" if self._server.tls else ""
            text = "candled %s: chart on http%s://%s/, WebSocket on ws%s://%s/"
            logger.info(text, __version__, s, address, s, address)
        else:
            logger.info("candled %s: serves no clients; health on http://%s/health", __version__, address)
        if not self._upkeep.problem:
            await self._start_reading()
        else:
            self._tasks.start(self._start_later())

    async def _accept_later(self) -> None:
        """Accept connections once the bars are loaded: until then, other processes on the port serve clients better."""
        await first_of(self._started.wait(), self._clock.sleep(_ACCEPT_S))
        self._server.accept_clients()

    async def apply(self, plan: ReloadPlan) -> None:
        """Change the settings that apply while running. No client is disconnected.

        Raises:
            ConfigError: an exchange cannot be created; nothing has changed.
        """
        running, config = self._config, plan.config
        await self._change_exchanges(compare_exchanges(running, config), config)
        self._config = config
        logging.getLogger().setLevel(config.log.level.upper())
        self._server.set_limits(config.server, config.limits)
        self._client_limits.set_limits(config.server)
        self._demand.set_rules(config.demand_rules)
        self._rate_limits.set_limits(config.limits)
        if "server.max_connections" in plan.live and (warning := _descriptor_warning(config)):
            logger.warning("%s", warning)
        if config.intervals != running.intervals:
            self._tasks.start(self._add_intervals(config.intervals))

    async def _change_exchanges(self, changes: ExchangeChanges, config: Config) -> None:
        """Read the exchanges and markets of new settings. The universe changes in one step, so that all parts agree."""
        read = [*changes.added, *changes.replaced]
        made: Mapping[str, list[Exchange]] = {}
        if self._ingest is not None:
            made = await self._ingest.make_exchanges(read) if read else {}
            await self._ingest.stop_reading(changes.removed)
        for name in changes.removed:
            self.universe.set_markets(name, ())
        names = [one.name for one in config.exchanges]
        self.universe.set_exchanges(names, _simulated(config))
        self._codec.set_exchanges(names)
        self._catalog.set_markets(self.universe.symbols_by_exchange, self.universe.renamed)
        for one in changes.added:
            self.universe.set_markets(one.name, one.symbols)
        if self._ingest is not None:  # a process that only serves follows the markets of the leader
            await self._ingest.change_exchanges(config, changes, made)

    async def _add_intervals(self, intervals: Sequence[Interval]) -> None:
        """Serve further intervals, once the stored minutes are folded into them."""
        async with self._adding_intervals:
            await self._reading.wait()
            await self._upkeep.add_intervals(intervals)
            await self._bars.add_intervals(intervals)
            self._codec.add_intervals(intervals)
            self._catalog.add_intervals(intervals)
        logger.info("bars of %s are served now", ", ".join(map(str, intervals)))

    def is_moving(self, within_s: float) -> bool:
        """Return True if an attempt to write to the store ended in the last two minutes, or in `within_s` if longer."""
        return self._writer.idle_s() <= max(within_s, _HANGS_S)

    async def stop(self) -> int:
        """Stop every part in order; return the number of candles that could be neither stored nor journaled."""
        within_s = _STOP_S if self._started.is_set() else _STOP_EARLY_S
        self._is_stopping = True
        if self._started.is_set() and self._is_serving:
            await self._server.drain(self._config.server.shutdown_seconds)
        self._server.stop_accepting()
        await self._tasks.cancel()
        if self._ingest is not None:
            await self._ingest.stop()
        has_journal = bool(self._config.store.journal)
        left = await self._writer.close(within_s=within_s if has_journal else _STOP_S) if self.health.is_reading else 0
        if self._shared is not None and self.health.is_reading:
            # another process that takes over now finds everything stored
            await at_most(within_s, self._shared.stop(), "Redis does not answer and is left as it is")
        await self._server.stop()
        await self._bars.stop()
        await self._hooks.stop(within_s)
        if self.internal is not None:  # until now it answers that the process is stopping
            await self.internal.stop()
        self._watchdog.stop()
        await self._threads.close(within_s=within_s)
        return left

    async def _start_later(self) -> None:
        await self._upkeep.open_later()
        await self._start_reading()

    async def _start_reading(self) -> None:
        """Store the rows of the journal, then load bars and read the exchanges. Called once the store is open."""
        self.health.is_reading = True
        self._reading.set()
        with contextlib.suppress(StoreUnavailable, StoreRejected):  # the writer logs it, and tries again
            await self._writer.flush()
        self._tasks.start(self._writer.run_flushes())
        self._upkeep.start(self._tasks)
        if self._shared is not None:
            await self._shared.lists.load()
            self._shared.start()  # messages received before the bars are loaded wait for them
            self._shared.processes.start(self.status.processes.describe_own)
        self._tasks.start_periodic(self._demand.renew, self._clock, RENEW_S)
        steps = [self._bars.start] if self._ingest is None else [self._bars.start, self._ingest.start]
        await in_parallel(len(steps), steps, lambda start: start())  # exchanges are read while bars are loaded
        self._started.set()

    async def _wait_for_bars(self, market: MarketKey, interval: Interval, count: int) -> None:
        with contextlib.suppress(Unavailable):  # answered with the bars there are
            await self._bars.load_bars(market, interval, count, self._config.server.warmup_wait.total_seconds())

    @property
    def _keeps_bars(self) -> bool:
        return self._is_serving or self._hooks.want_bars

    @property
    def _is_serving(self) -> bool:
        return "serve" in self._config.roles

    def _shared_budget(self) -> MakeBudget | None:
        """Return the request budgets that are shared with other processes: in Redis, otherwise in a file."""
        if self._shared is not None:
            return self._shared.budgets.budget_for
        path = budget_path(self._config)
        return None if path is None else BudgetFile(path, self._clock).budget

    def _make_ingest(self) -> ShardedIngest:
        ingest = ShardedIngest(
            self._config,
            self._clock,
            self._bus,
            IngestStore(self._store, self._threads, self._writer, self._history),
            self.universe,
            leases=None if self._shared is None else self._shared.leases,
            budget=self._shared_budget(),
            is_used=self._hub.has_members,
            book=self._book,
            on_list=lambda exchange, listed: self._demand.on_list(exchange, [market.symbol for market in listed]),
        )
        self._writer.is_urgent = ingest.is_urgent
        return ingest


def _make_universe(config: Config) -> Universe:
    universe = Universe([one.name for one in config.exchanges], _simulated(config))
    for one in config.exchanges:
        universe.set_markets(one.name, one.symbols)
    return universe


def _simulated(config: Config) -> set[str]:
    return {one.name for one in config.exchanges if one.plugin.is_simulated}


def _shared(config: Config, universe: Universe, clock: Clock) -> "RedisParts | None":
    """Return the objects shared with other processes through Redis, if the settings name one."""
    if config.bus.url.startswith("memory:"):
        return None
    from candled.bus.factory import RedisParts  # a quarter of the start-up time, for Redis alone

    return RedisParts(
        config.bus.url,
        clock,
        universe,
        prefix=config.bus.prefix,
        shards=config.ingest.shards,
        lease_s=config.bus.lease.total_seconds(),
        ingests="ingest" in config.roles,
        serves="serve" in config.roles,
        timeless={one.name for one in config.exchanges if one.plugin.now_ms is not Exchange.now_ms},
        chosen={one.name for one in config.exchanges if one.choice.wildcards},
    )
