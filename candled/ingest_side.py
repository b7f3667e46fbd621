"""The `ingest` role of a process: reads the markets that it leads from their exchanges."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from candled.budget import LocalBudgets, MakeBudget
from candled.bus import Bus
from candled.bus.shards import shard_of
from candled.config import Config, ExchangeConfig, make_exchanges
from candled.errors import CandledError
from candled.exchange import Clock, Exchange
from candled.ingest.counts import IngestCounts
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.http import HttpClient
from candled.ingest.market_chooser import MarketChooser
from candled.ingest.market_loader import IngestOptions
from candled.ingest.measures import IngestMeasures, SymbolMeasures
from candled.model import MarketKey, Symbol
from candled.plugins import one_line
from candled.settings import redacted
from candled.store.ingest_store import IngestStore
from candled.tasks import Backoff, TaskSet, in_parallel, retry
from candled.universe import Universe

if TYPE_CHECKING:
    from candled.bus.redis.leases import Lease, Leases

logger = logging.getLogger(__name__)


class ShardedIngest:
    """An `ExchangeIngest` per configured exchange and shard. Without `leases`, this process reads all shards.

    `budget` returns the request budgets of hosts that are shared with other processes. Exchanges on one host share its
    budget in any case.

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
    ) -> None:
        self._config = config
        self._clock = clock
        self._bus = bus
        self._store = store
        self._leases = leases
        self._universe = universe
        self._choosers = {one.name: MarketChooser(one.name, one.choice, universe, clock) for one in config.exchanges}
        self._made = make_exchanges(config, clock)
        budget = budget or LocalBudgets(clock).budget
        self._http = {
            one.name: HttpClient(clock, exchange.requests_per_s, budget, one.proxies, exchange.request_budgets)
            for one, exchange in zip(config.exchanges, self._made, strict=True)
        }
        #: By exchange, since the start of the process.
        self.counts = {one.name: IngestCounts() for one in config.exchanges}
        self._running: dict[int, list[ExchangeIngest]] = {}
        self._tasks = TaskSet()

    async def start(self) -> None:
        """Begin to read, or to wait for leases."""
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
        """Return the exchanges' part of `/health`, combining all shards that are read here."""
        result: dict[str, dict[str, Any]] = {}
        for ingest in (one for shard in self._running.values() for one in shard):
            facts = ingest.describe()
            known = result.setdefault(ingest.name, facts)
            known["symbols"] |= facts["symbols"]
        for one in self._config.exchanges:
            if one.choice.wildcards:
                result.setdefault(one.name, {"symbols": {}})["choice"] = self._choosers[one.name].describe()
        return result

    def measure(self) -> dict[str, IngestMeasures]:
        """Return the present state of each exchange in numbers, combining all shards that are read here."""
        result: dict[str, IngestMeasures] = {}
        for ingest in (one for shard in self._running.values() for one in shard):
            measures = ingest.measure()
            known = result.setdefault(ingest.name, measures)
            if known is not measures:
                known.add_shard(measures)
        return result

    def measure_symbols(self) -> Iterator[tuple[str, SymbolMeasures]]:
        """Yield the present state of each symbol that is read here, with the name of its exchange."""
        for shard in self._running.values():
            for ingest in shard:
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
        shards = 1 if self._leases is None else len(self._leases.all)
        made, self._made = self._made or make_exchanges(self._config, self._clock), []
        self._running[shard] = []
        for one, exchange in zip(self._config.exchanges, made, strict=True):
            if one.choice.wildcards:
                self._tasks.start(self._start_chosen(shard, one, exchange))
            elif symbols := [
                symbol for symbol in one.symbols if shard_of(MarketKey(one.name, symbol), shards) == shard
            ]:
                self._running[shard].append(self._make_ingest(one, exchange, symbols, shards))
        running = list(self._running[shard])
        await in_parallel(len(running), running, ExchangeIngest.start)

    async def _start_chosen(self, shard: int, one: ExchangeConfig, exchange: Exchange) -> None:
        """Read the list of markets until that succeeds, choose from it, and start the exchange."""
        chooser, backoff = self._choosers[one.name], Backoff(first_s=2.0)

        def report(error: Exception, wait_s: float) -> None:
            is_bug = not isinstance(error, CandledError)  # in a plugin, it must not end this task
            if is_bug or backoff.failure_count == 1:
                logger.warning("%s: the list of markets cannot be read: %s", one.name, error, exc_info=is_bug)
            chooser.problem = f"the list of markets cannot be read: {redacted(one_line(error))}"

        listed = await retry(lambda: exchange.fetch_markets(self._http[one.name]), self._clock, backoff, report=report)
        chooser.on_list(listed)
        ingest = self._make_ingest(one, exchange, self._universe.symbols(one.name), 1)
        self._running[shard].append(ingest)
        await ingest.start()

    def _make_ingest(
        self, one: ExchangeConfig, exchange: Exchange, symbols: Sequence[Symbol], shards: int
    ) -> ExchangeIngest:
        return ExchangeIngest(
            one.name,
            exchange,
            symbols,
            clock=self._clock,
            bus=self._bus,
            store=self._store,
            http=self._http[one.name],
            options=_options(self._config),
            proxies=one.proxies,
            shards=shards,
            on_list=self._choosers[one.name].update_facts,
            counts=self.counts[one.name],
        )

    async def _stop_shard(self, shard: int) -> None:
        await asyncio.gather(*(ingest.stop() for ingest in self._running.pop(shard, [])))


def _options(config: Config) -> IngestOptions:
    ingest = config.ingest
    return IngestOptions(
        backfill_ms=round(ingest.backfill.total_seconds() * 1000),
        grace_period_ms=round(ingest.grace_period.total_seconds() * 1000),
        quiet_after_ms=round(ingest.quiet_after.total_seconds() * 1000),
        checkpoint_ms=round(ingest.checkpoint.total_seconds() * 1000),
        confirm=ingest.confirm,
    )
