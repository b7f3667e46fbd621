"""Creates the bus for the address of a Redis, and the other objects that use the same Redis."""

import secrets
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from candled.budget import MakeBudget
from candled.exchange import Clock
from candled.universe import Universe

from .codec import Names
from .failures import FailureLog
from .redis.address import RedisAddress
from .redis.bus import RedisBus
from .redis.connections import Caller, Servers, check_files
from .redis.context import RedisContext
from .redis.leases import Leases
from .redis.market_lists import MarketLists
from .redis.processes import ProcessRegistry
from .redis.shared_limits import RedisBook, RedisBudgets, RedisCounter


class RedisParts:
    """The bus at `url` and the other objects that use the same Redis, none of them started.

    If a process both ingests and serves, and cannot reach Redis for `alone_after_s` seconds, it reads all exchanges
    itself. `timeless` are the exchanges whose clock may run ahead of any other. `chosen` are those whose markets are
    chosen by patterns.

    Raises:
        ValueError: `url` is not the address of a Redis.
        ConfigError: the TLS files cannot be used.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        universe: Universe,
        *,
        prefix: str = "",
        shards: int = 1,
        lease_s: float = 6.0,
        ingests: bool,
        serves: bool,
        alone_after_s: float = 10.0,
        timeless: Collection[str] = (),
        chosen: Collection[str] = (),
    ) -> None:
        address = RedisAddress.parse(url)
        check_files(address)
        servers, names, failures = Servers(address), Names(prefix, universe.default, shards), FailureLog(clock)
        context = RedisContext(servers, names, clock, failures, shards, secrets.token_hex(6))
        self._caller = caller = Caller(servers)
        alone_s = alone_after_s if serves else None
        #: None in a process that does not ingest.
        self.leases = leases = Leases(context, ttl_s=lease_s, alone_after_s=alone_s) if ingests else None
        self.lists = MarketLists(context, universe, leases, chosen)
        self.bus = RedisBus(context, universe.markets, leases, self.lists, timeless)
        universe.add_listener(self.bus.on_markets_changed)
        self.budgets = RedisBudgets(caller, names, clock, failures, lambda: 0 if leases is None else leases.processes)
        self.counter = RedisCounter(caller, names, clock, failures)
        self.book = RedisBook(caller, names, clock, failures)
        self.processes = ProcessRegistry(context, caller)

    def start(self) -> None:
        """Begin to receive, to publish and to request leases."""
        self.lists.start()
        self.bus.start()
        if self.leases is not None:
            self.leases.start()

    async def stop(self) -> None:
        """Publish queued messages, release the leases and close all connections. Stop ingest before calling this."""
        await self.bus.stop()
        await self.processes.stop()
        await self.lists.stop()
        if self.leases is not None:
            await self.leases.stop()
        await self.budgets.stop()
        await self._caller.close()


@asynccontextmanager
async def redis_budgets(
    url: str, clock: Clock, *, default_exchange: str, prefix: str = ""
) -> AsyncIterator[MakeBudget]:
    """Yield the request budgets that a command shares with all processes at the Redis of `url`."""
    address = RedisAddress.parse(url)
    check_files(address)
    caller, names = Caller(Servers(address)), Names(prefix, default_exchange, 1)
    budgets = RedisBudgets(caller, names, clock, FailureLog(clock), None)
    try:
        yield budgets.budget_for
    finally:
        await budgets.stop()
        await caller.close()
