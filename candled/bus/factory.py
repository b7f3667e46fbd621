"""Creates the bus for the address of a Redis, and the other objects that use the same Redis."""

import secrets
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from candled.budget import MakeBudget
from candled.exchange import Clock
from candled.universe import Universe

from .codec import Names
from .failures import FailureLog
from .redis.address import RedisAddress
from .redis.bus import RedisBus
from .redis.connections import Caller, Servers, check_files
from .redis.leases import Leases
from .redis.market_lists import MarketLists
from .redis.processes import ProcessRegistry
from .redis.shared_limits import RedisBook, RedisBudgets, RedisCounter


@dataclass(frozen=True, slots=True)
class RedisParts:
    """The objects that processes share through one Redis. `leases` is None in a process that does not ingest."""

    bus: RedisBus
    lists: MarketLists
    leases: Leases | None
    budgets: RedisBudgets
    counter: RedisCounter
    book: RedisBook
    processes: ProcessRegistry
    callers: tuple[Caller, ...]

    async def load_markets(self) -> None:
        """Read the markets that the other processes have. Call it before `start`."""
        await self.lists.load()

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
        for caller in self.callers:
            await caller.close()


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


def make_redis_parts(
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
) -> RedisParts:
    """Return the bus at `url` and the other objects that use the same Redis, none of them started.

    If a process both ingests and serves, and cannot reach Redis for `alone_after_s` seconds, it reads all exchanges
    itself. `timeless` are the exchanges whose clock may run ahead of any other. `chosen` are those whose markets are
    chosen by patterns.

    Raises:
        ValueError: `url` is not the address of a Redis.
        ConfigError: the TLS files cannot be used.
    """
    address = RedisAddress.parse(url)
    check_files(address)
    servers = Servers(address)
    names = Names(prefix, universe.default, shards)
    process = secrets.token_hex(6)
    lease_caller, caller = Caller(servers), Caller(servers)
    failures, leases = FailureLog(clock), None
    if ingests:
        leases = Leases(
            lease_caller,
            names,
            clock,
            failures,
            shards=shards,
            process=process,
            ttl_s=lease_s,
            alone_after_s=alone_after_s if serves else None,
        )
    lists = MarketLists(servers, names, clock, universe, failures, shards=shards, leases=leases, chosen=chosen)
    bus = RedisBus(
        *(servers, names, clock, universe.markets),
        shards=shards,
        process=process,
        leases=leases,
        failures=failures,
        timeless=timeless,
        lists=lists,
    )
    universe.add_listener(bus.on_markets_changed)
    budgets = RedisBudgets(caller, names, clock, failures, lambda: 0 if leases is None else leases.processes)
    counter, book = RedisCounter(caller, names, clock, failures), RedisBook(caller, names, clock, failures)
    processes = ProcessRegistry(caller, names, clock, failures, process)
    return RedisParts(bus, lists, leases, budgets, counter, book, processes, (lease_caller, caller))
