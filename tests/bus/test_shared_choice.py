"""Processes that share the shards of an exchange: one of them chooses its markets, and each reads its part of them."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from candled.bus.shards import shard_of_exchange
from candled.config import Config, ExchangeConfig
from candled.ingest.feeds import FeedRunner
from candled.ingest_side import ShardedIngest
from candled.symbol_pattern import SymbolPattern
from candled.universe import Universe
from candled.universe_choice import ChoiceRules
from tests.bus.rig import CLOCK, new_prefix, process, until
from tests.ingest.many_markets import SYMBOLS, ManyMarkets, ManyMemories, World, run_without_socket
from tests.redis_servers import shared_redis

SHARDS = 2
ALL = ChoiceRules(patterns=(SymbolPattern.parse("*/USDT"),))


class Reader:
    """What one process has of the universe."""

    def __init__(self, world: World, bus: Any, leases: Any, universe: Universe) -> None:
        exchange = ExchangeConfig(
            name="bitget", plugin=ManyMarkets, symbols=(), settings=world, choice=ALL, refresh=timedelta(seconds=1)
        )
        store: Any = ManyMemories()
        config = Config().model_copy(update={"exchanges": (exchange,)})
        self.leases = leases
        self.universe = universe
        self.ingest = ShardedIngest(config, CLOCK, bus, store, universe, leases=leases)
        universe.add_listener(self.ingest.on_markets_changed)

    @property
    def is_choosing(self) -> bool:
        return self.ingest._choosers["bitget"].is_choosing

    @property
    def shards(self) -> set[int]:
        return {lease.shard for lease in self.leases.all if lease.must_ingest}


@asynccontextmanager
async def reading(url: str, prefix: str, world: World) -> AsyncIterator[Reader]:
    options: dict[str, Any] = {"ingests": True, "serves": False, "shards": SHARDS, "chosen": {"bitget"}}
    async with process(url, prefix, markets=(), follows=False, lease_s=3.0, **options) as one:
        reader = Reader(world, one.bus, one.leases, one.universe)
        await reader.ingest.start()
        try:
            yield reader
        finally:
            await reader.ingest.stop()


@pytest.mark.usefixtures("redis")
async def test_the_leaders_choice_holds_in_all_processes_and_after_a_change_of_leader(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    world, url, prefix = World(), shared_redis(), new_prefix()
    world.begins_ms = dict.fromkeys(SYMBOLS, time.time_ns() // 1_000_000 - 600_000)
    world.list_markets(SYMBOLS[:3])
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        readers = [await stack.enter_async_context(reading(url, prefix, world)) for stack in (first, second)]
        await until(lambda: sorted(len(one.shards) for one in readers) == [1, 1])

        def is_right(count: int, *those: Reader) -> bool:
            markets = set(SYMBOLS[:count])
            known = all(set(one.universe.symbols("bitget")) == markets for one in those)
            return known and world.subscribed() == sorted(markets)

        await until(lambda: is_right(3, *readers))
        world.list_markets(SYMBOLS[:4])
        await until(lambda: is_right(4, *readers))
        chooses = [one.is_choosing for one in readers]
        assert sorted(chooses) == [False, True]
        leader, other = sorted(readers, key=lambda one: not one.is_choosing)
        assert shard_of_exchange("bitget", SHARDS) in leader.shards
        order = other.universe.symbols("bitget")
        await (first if leader is readers[0] else second).aclose()
        await until(lambda: other.is_choosing and is_right(4, other))
        assert other.universe.symbols("bitget") == order
