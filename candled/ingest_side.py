"""The `ingest` role of a process: reads the markets that it leads from their exchanges."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from candled.budget import LocalBudgets, MakeBudget
from candled.bus import Bus
from candled.bus.shards import shard_of
from candled.config import Config, ExchangeConfig, make_exchanges
from candled.exchange import Clock
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.http import HttpClient
from candled.ingest.market_loader import IngestOptions
from candled.model import MarketKey, Symbol
from candled.store.ingest_store import IngestStore
from candled.tasks import TaskSet, in_parallel

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
        *,
        leases: "Leases | None" = None,
        budget: MakeBudget | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._bus = bus
        self._store = store
        self._leases = leases
        self._made = make_exchanges(config, clock)
        budget = budget or LocalBudgets(clock).budget
        self._http = {
            one.name: HttpClient(clock, exchange.requests_per_s, budget, one.proxies, exchange.request_budgets)
            for one, exchange in zip(config.exchanges, self._made, strict=True)
        }
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
        return result

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
        self._running[shard] = [
            ExchangeIngest(
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
            )
            for one, exchange in zip(self._config.exchanges, made, strict=True)
            if (symbols := _symbols_of(one, shard, shards))
        ]
        running = self._running[shard]
        await in_parallel(len(running), running, ExchangeIngest.start)

    async def _stop_shard(self, shard: int) -> None:
        await asyncio.gather(*(ingest.stop() for ingest in self._running.pop(shard, [])))


def _symbols_of(exchange: ExchangeConfig, shard: int, shards: int) -> list[Symbol]:
    return [symbol for symbol in exchange.symbols if shard_of(MarketKey(exchange.name, symbol), shards) == shard]


def _options(config: Config) -> IngestOptions:
    ingest = config.ingest
    return IngestOptions(
        backfill_ms=round(ingest.backfill.total_seconds() * 1000),
        grace_period_ms=round(ingest.grace_period.total_seconds() * 1000),
        quiet_after_ms=round(ingest.quiet_after.total_seconds() * 1000),
        checkpoint_ms=round(ingest.checkpoint.total_seconds() * 1000),
        confirm=ingest.confirm,
    )
