"""The `ingest` role of a process: reads the markets of its shards from their exchanges."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from candled.budget import LocalBudgets, MakeBudget
from candled.bus import Bus
from candled.bus.shards import shard_of, shard_of_exchange
from candled.config import Config, ExchangeConfig, make_exchange, make_exchanges
from candled.errors import StoreRejected, StoreUnavailable, Unavailable
from candled.exchange import Clock, Exchange
from candled.ingest.counts import IngestCounts
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.http import HttpClient
from candled.ingest.market_chooser import MarketChooser
from candled.ingest.market_listing import ListOptions
from candled.ingest.market_loader import IngestOptions
from candled.ingest.measures import IngestMeasures, SymbolMeasures
from candled.model import Market, MarketKey, Symbol
from candled.on_demand import RENEW_S, DemandBook, MemoryBook
from candled.plugins import one_line
from candled.reload import ExchangeChanges
from candled.settings import redacted
from candled.store.ingest_store import IngestStore
from candled.tasks import Pace, TaskSet
from candled.universe import MarketsChanged, Universe
from candled.universe_choice import REPORTED_S, recall_markets

if TYPE_CHECKING:
    from candled.bus.redis.leases import Lease, Leases

logger = logging.getLogger(__name__)

_MEASURED_US = 40  # to measure a market, on a slow machine
_DEMAND_S = 0.1  # between two reads of the markets that clients request


class ShardedIngest:
    """An `ExchangeIngest` per configured exchange and shard. Without `leases`, this process reads all shards.

    `budget` returns the request budgets of hosts that are shared with other processes. Exchanges on one host share its
    budget in any case. A delisted market is read as long as it `is_used` by clients of this process, or another process
    reports in `book` that its clients use it. The markets on demand of `book` are read in addition to those of the
    settings. `on_list` is called with every list of an exchange.

    Raises:
        ConfigError: an exchange cannot be created from its settings.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        bus: Bus,
        store: IngestStore,
        universe: Universe,
        *,
        leases: "Leases | None" = None,
        budget: MakeBudget | None = None,
        is_used: Callable[[MarketKey], bool] = lambda market: False,
        book: DemandBook | None = None,
        on_list: Callable[[str, Sequence[Market]], None] = lambda exchange, listed: None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._bus = bus
        self._store = store
        self._leases = leases
        self._universe = universe
        self._is_used = is_used
        self._book = book or MemoryBook(clock)
        #: The delisted markets that clients of all processes use, by exchange. Absent while they are not known.
        self._used_delisted: dict[str, frozenset[Symbol]] = {}
        #: When reading these markets first succeeded, by exchange, monotonic seconds. Absent for an exchange that has
        #: no delisted markets.
        self._delisted_read_at: dict[str, float] = {}
        self._on_list = on_list
        #: The newest lists of exchanges with markets on demand that were not shared yet.
        self._unshared: dict[str, list[Symbol]] = {}
        self._choosers = {one.name: self._make_chooser(one) for one in config.exchanges}
        self._made = make_exchanges(config, clock)
        self._budget = budget or LocalBudgets(clock).budget
        self._http = {
            one.name: self._make_http(one, exchange) for one, exchange in zip(config.exchanges, self._made, strict=True)
        }
        #: The counts of each exchange since the start of the process.
        self.counts = {one.name: IngestCounts() for one in config.exchanges}
        self._running: dict[int, list[ExchangeIngest]] = {}
        #: The tasks that start exchanges. One that has ended stays until its exchange stops.
        self._starting: dict[ExchangeIngest, asyncio.Task[None]] = {}
        self._tasks = TaskSet()

    async def _recall_markets(self) -> None:
        """Begin with the stored markets of the time before a restart, until the exchanges have listed them all."""
        for one in self._config.exchanges:
            if one.choice.wildcards or one.on_demand.most:
                with contextlib.suppress(StoreUnavailable, StoreRejected):  # the history logs it
                    newest = await self._store.newest_minutes(one.name)
                    self._universe.set_markets(one.name, recall_markets(one.choice, newest))
                    self._on_list(one.name, [Market(symbol=symbol) for symbol in newest])

    async def start(self) -> None:
        """Begin to read, or to wait for leases."""
        if self._leases is None:  # otherwise the markets are those that a process has published
            await self._recall_markets()
        await self._read_demand()  # a new leader goes on with the markets of the former one
        self._tasks.start_periodic(self._read_demand, self._clock, _DEMAND_S)
        self._tasks.start_periodic(self._read_delisted, self._clock, RENEW_S)
        if self._leases is None:
            await self._start_shard(0)
            return
        for lease in self._leases.all:
            self._tasks.start(self._follow_lease(lease))

    async def stop(self) -> None:
        """Stop reading. Forming minutes are queued for the store."""
        await self._tasks.cancel()
        for shard in list(self._running):
            await self._stop_shard(shard)
        for http in self._http.values():
            http.close()

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the exchanges' part of `/health` without the symbols, by exchange."""
        result: dict[str, dict[str, Any]] = {}
        for ingest in self.running:
            result.setdefault(ingest.name, ingest.describe())
        for name, chooser in self._choosers.items():
            if chooser.is_choosing:
                result.setdefault(name, {})["choice"] = chooser.describe()
        return result

    def describe_symbols(self) -> Iterator[tuple[MarketKey, dict[str, Any]]]:
        """Yield the part of each market that is read here. The markets may change meanwhile."""
        for ingest in self.running:
            for symbol, facts in ingest.describe_symbols():
                yield MarketKey(ingest.name, symbol), facts

    def on_markets_changed(self, change: MarketsChanged) -> None:
        """Read the added markets of the shards that are read here, and stop reading the removed ones."""
        for shard, running in self._running.items():
            for ingest in running:
                if ingest.name == change.exchange:
                    ingest.remove_markets(change.removed)
                    ingest.add_markets(self._part_of(shard, change.exchange, change.added))

    async def measure(self, pace: Pace) -> dict[str, IngestMeasures]:
        """Return the present state of each exchange in numbers, combining all shards that are read here."""
        result: dict[str, IngestMeasures] = {}
        for ingest in self.running:
            measures, silent = result.setdefault(ingest.name, IngestMeasures()), ingest.silent_symbols
            ingest.measure_feeds(measures)
            for symbol in list(ingest.symbols):
                await pace.spend(_MEASURED_US)
                if symbol in ingest.symbols:  # it may have been removed meanwhile
                    ingest.measure_market(symbol, measures, silent)
        return result

    @property
    def running(self) -> list[ExchangeIngest]:
        """The exchanges that are read here, one for each shard."""
        return [ingest for shard in self._running.values() for ingest in shard]

    @property
    def markets(self) -> set[MarketKey]:
        """The markets that are read here."""
        return {MarketKey(ingest.name, symbol) for ingest in self.running for symbol in ingest.symbols}

    def is_reading(self, market: MarketKey) -> bool:
        """Return whether a market is read here."""
        return any(one.name == market.exchange and market.symbol in one.symbols for one in self.running)

    def measure_symbols(self) -> Iterator[tuple[str, SymbolMeasures]]:
        """Yield the present state of each symbol that is read here, with the name of its exchange."""
        for ingest in self.running:
            for symbol in ingest.measure_symbols():
                yield ingest.name, symbol

    @property
    def clients(self) -> Mapping[str, HttpClient]:
        """The clients of the exchanges' REST APIs, by exchange."""
        return self._http

    @property
    def problems(self) -> dict[str, str]:
        """The exchanges whose markets cannot be chosen, each with the reason."""
        return {name: one.problem for name, one in self._choosers.items() if one.problem is not None}

    # ------------------------------------------------------------ markets on demand

    async def _read_demand(self) -> None:
        """Have the choosers add the markets that clients request, and remove those that no client uses any more."""
        for one in self._config.exchanges:
            chooser = self._choosers.get(one.name)
            if chooser is None:  # the settings were reloaded meanwhile
                continue
            if not one.on_demand.most:
                chooser.set_extras(())
                continue
            try:
                if (listed := self._unshared.get(one.name)) is not None:
                    await self._book.write_listed(one.name, listed)
                    self._unshared.pop(one.name, None)
                wanted = await self._book.read_markets(one.name, one.on_demand)
            except Unavailable:  # the book logs it
                continue
            running = [symbol for symbol in chooser.extras if symbol in wanted]
            chooser.set_extras(list(dict.fromkeys([*running, *wanted]))[: one.on_demand.most])

    async def _read_delisted(self) -> None:
        """Read the delisted markets that clients of any process use.

        They count only after `REPORTED_S` seconds: by then, every process has reported its own.
        """
        for name in self._universe.exchanges:
            used = None
            if self._universe.delisted(name):
                with contextlib.suppress(Unavailable):  # the book logs it; until it answers, no feed ends
                    used = frozenset(await self._book.read_delisted(name))
            if used is None:
                self._delisted_read_at.pop(name, None)
                self._used_delisted.pop(name, None)
                continue
            now = self._clock.monotonic()
            if now - self._delisted_read_at.setdefault(name, now) > REPORTED_S:
                self._used_delisted[name] = used

    def _is_used_anywhere(self, market: MarketKey) -> bool:
        """Return whether clients of any process use a delisted market, or may use it."""
        used = self._used_delisted.get(market.exchange)
        return used is None or market.symbol in used or self._is_used(market)

    def is_urgent(self, market: MarketKey) -> bool:
        """Return whether clients wait for a market, here or in another process."""
        chooser = self._choosers.get(market.exchange)
        return self._is_used(market) or (chooser is not None and market.symbol in chooser.extras)

    # ------------------------------------------------------------ changes of the settings

    async def make_exchanges(self, wanted: Sequence[ExchangeConfig]) -> dict[str, list[Exchange]]:
        """Return new instances of exchanges, one for each shard that is read here, and at least one.

        Raises:
            ConfigError: some cannot be created: a line or more for each of them.
        """
        config = self._config.model_copy(update={"exchanges": tuple(wanted)})
        made: dict[str, list[Exchange]] = {one.name: [] for one in wanted}
        for _ in range(max(1, len(self._running))):
            # in a thread, because a constructor may take seconds
            instances = await asyncio.get_running_loop().run_in_executor(None, make_exchanges, config, self._clock)
            for one, exchange in zip(wanted, instances, strict=True):
                made[one.name].append(exchange)
        return made

    async def stop_reading(self, names: Collection[str]) -> None:
        """Stop reading exchanges. Their forming minutes are queued for the store."""
        stopped = [ingest for ingest in self.running if ingest.name in names]
        for running in self._running.values():
            running[:] = [ingest for ingest in running if ingest.name not in names]
        await asyncio.gather(*map(self._stop_ingest, stopped))

    async def change_exchanges(
        self, config: Config, changes: ExchangeChanges, made: Mapping[str, list[Exchange]]
    ) -> None:
        """Read other exchanges, and choose markets by other rules.

        `made` is the result of `make_exchanges`. Before this call, stop reading the removed exchanges, and add the new
        ones to the universe.
        """
        read = [*changes.added, *changes.replaced]
        names = {*changes.removed, *(one.name for one in changes.replaced)}
        # without a pause, because a shard may start meanwhile
        self._config, self._made = config, []
        closed = [self._http.pop(name) for name in names]
        for name in changes.removed:
            del self._choosers[name], self.counts[name]
        for one in read:
            self._http[one.name] = self._make_http(one, made[one.name][0])
        for one in changes.added:
            self.counts.setdefault(one.name, IngestCounts())
            chooser = self._choosers[one.name] = self._make_chooser(one)
            if shard_of_exchange(one.name, self._shards) in self._running:
                chooser.start_choosing()
        for one in changes.chosen:
            self._set_rules(one)
        await self.stop_reading(names)
        for http in closed:
            http.close()
        self._read_missing(read, made)

    def _set_rules(self, one: ExchangeConfig) -> None:
        """Choose the markets of an exchange by other rules, here or in the process that leads."""
        chooser = self._choosers[one.name]
        chooser.set_rules(one.choice)
        if not chooser.is_choosing and not one.choice.wildcards:  # each process knows named markets from its settings
            self._universe.set_markets(one.name, (*one.symbols, *chooser.extras))

    def _read_missing(self, wanted: Sequence[ExchangeConfig], made: Mapping[str, list[Exchange]]) -> None:
        """Read exchanges in all shards in which they are not read yet."""
        for one in wanted:
            for shard, running in self._running.items():
                if all(ingest.name != one.name for ingest in running):
                    exchange = made[one.name].pop() if made[one.name] else make_exchange(one, self._clock)
                    ingest = self._make_ingest(one, exchange, shard)
                    running.append(ingest)
                    self._start_ingest(ingest)

    def _make_chooser(self, one: ExchangeConfig) -> MarketChooser:
        return MarketChooser(one.name, one.choice, self._universe, self._clock, self._is_used_anywhere)

    def _make_http(self, one: ExchangeConfig, exchange: Exchange) -> HttpClient:
        budgets = exchange.request_budgets
        return HttpClient(self._clock, exchange.requests_per_s, self._budget, one.proxies, budgets)

    async def _stop_ingest(self, ingest: ExchangeIngest) -> None:
        starting = self._starting.pop(ingest, None)
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
        await ingest.stop()

    # ------------------------------------------------------------ shards

    async def _follow_lease(self, lease: "Lease") -> None:
        """Read a shard while this process has its lease, or while the holder is unknown."""
        starting: asyncio.Task[None] | None = None
        async for _ in lease.watch_states():
            if lease.must_ingest and starting is None:
                logger.info("reading shard %d", lease.shard)
                starting = self._tasks.start(self._start_shard(lease.shard))
            elif not lease.must_ingest and starting is not None:
                logger.info("stopped reading shard %d: another process reads it", lease.shard)
                starting.cancel()
                await asyncio.wait([starting])
                starting = None
                await self._stop_shard(lease.shard)

    async def _start_shard(self, shard: int) -> None:
        """Start the exchanges of a shard; return when the store was read. Each exchange then runs by itself."""
        made, self._made = self._made or make_exchanges(self._config, self._clock), []
        for name, chooser in self._choosers.items():
            if shard_of_exchange(name, self._shards) == shard:
                chooser.start_choosing()
        running = [
            self._make_ingest(one, exchange, shard) for one, exchange in zip(self._config.exchanges, made, strict=True)
        ]
        self._running[shard] = running
        starting = [self._start_ingest(ingest) for ingest in running]
        await asyncio.wait(starting)
        for task in starting:
            if not task.cancelled():  # by a reload
                task.result()

    def _start_ingest(self, ingest: ExchangeIngest) -> asyncio.Task[None]:
        task = self._starting[ingest] = self._tasks.start(ingest.start())
        return task

    @property
    def _shards(self) -> int:
        return 1 if self._leases is None else len(self._leases.all)

    def _part_of(self, shard: int, exchange: str, symbols: Iterable[Symbol]) -> list[Symbol]:
        """Return the symbols of an exchange that belong to a shard."""
        return [symbol for symbol in symbols if shard_of(MarketKey(exchange, symbol), self._shards) == shard]

    def _make_ingest(self, one: ExchangeConfig, exchange: Exchange, shard: int) -> ExchangeIngest:
        chooser = self._choosers[one.name]

        def on_list(listed: Sequence[Market]) -> None:
            chooser.on_list(listed)
            self._on_list(one.name, listed)
            if listed and chooser.is_choosing:
                self._unshared[one.name] = [market.symbol for market in listed]

        return ExchangeIngest(
            one.name,
            exchange,
            self._part_of(shard, one.name, self._universe.symbols(one.name)),
            clock=self._clock,
            bus=self._bus,
            store=self._store,
            http=self._http[one.name],
            options=_options(self._config),
            proxies=one.proxies,
            shards=self._shards,
            lists=ListOptions(
                refresh_s=one.refresh.total_seconds(),
                on_list=on_list,
                on_list_failed=lambda error: chooser.on_list_failed(redacted(one_line(error))),
                is_used=self._is_used_anywhere,
                is_urgent=self.is_urgent,
            ),
            counts=self.counts[one.name],
        )

    async def _stop_shard(self, shard: int) -> None:
        for name, chooser in self._choosers.items():
            if shard_of_exchange(name, self._shards) == shard:
                chooser.stop_choosing()
        await asyncio.gather(*map(self._stop_ingest, self._running.pop(shard, [])))


def _options(config: Config) -> IngestOptions:
    ingest = config.ingest
    return IngestOptions(
        backfill_ms=round(ingest.backfill.total_seconds() * 1000),
        grace_period_ms=round(ingest.grace_period.total_seconds() * 1000),
        quiet_after_ms=round(ingest.quiet_after.total_seconds() * 1000),
        checkpoint_ms=round(ingest.checkpoint.total_seconds() * 1000),
        confirm=ingest.confirm,
    )
