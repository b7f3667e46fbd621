"""Markets on demand of several processes: one that only serves asks, the leader reads, and the next leader goes on."""

import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from candled import ingest_side, universe_choice
from candled.bus.redis import shared_limits
from candled.config import Config, ExchangeConfig
from candled.ingest.feeds import FeedRunner
from candled.ingest_side import ShardedIngest
from candled.model import MarketKey
from candled.on_demand import DemandRefused, MarketsOnDemand
from candled.symbol_pattern import SymbolPattern
from candled.tasks import TaskSet
from candled.universe_choice import ChoiceRules, DemandRules
from tests.bus.rig import CLOCK, new_prefix, process, until
from tests.ingest.many_markets import SYMBOLS, ManyMarkets, ManyMemories, World, run_without_socket
from tests.redis_servers import shared_redis

S0, S1, S2, _, S4 = SYMBOLS
ONE = ChoiceRules(patterns=(SymbolPattern.parse("S0/USDT"),))
RULES = DemandRules(most=2, keep_s=8.0, most_per_address=2)


@asynccontextmanager
async def reading(url: str, prefix: str, world: World, choice: ChoiceRules = ONE) -> Any:
    options: dict[str, Any] = {"ingests": True, "serves": False}
    markets = tuple(MarketKey("bitget", symbol) for symbol in choice.named)
    async with process(url, prefix, markets=markets, follows=False, lease_s=3.0, **options) as one:
        exchange = ExchangeConfig(
            name="bitget",
            plugin=ManyMarkets,
            symbols=choice.named,
            settings=world,
            choice=choice,
            on_demand=RULES,
            refresh=timedelta(seconds=1),
        )
        config = Config().model_copy(update={"exchanges": (exchange,)})
        store: Any = ManyMemories()
        ingest = ShardedIngest(config, CLOCK, one.bus, store, one.universe, leases=one.leases, book=one.parts.book)
        one.universe.add_listener(ingest.on_markets_changed)
        await ingest.start()
        try:
            yield one
        finally:
            await ingest.stop()


@pytest.mark.usefixtures("redis")
async def test_a_process_that_only_serves_starts_markets_and_they_outlive_the_leader(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    world, url, prefix = World(), shared_redis(), new_prefix()
    world.begins_ms = dict.fromkeys(SYMBOLS, time.time_ns() // 1_000_000 - 600_000)
    world.list_markets(SYMBOLS[:4])
    async with AsyncExitStack() as stack, AsyncExitStack() as first:
        serving = await stack.enter_async_context(process(url, prefix, markets=(MarketKey("bitget", S0),)))
        used: set[MarketKey] = set()
        demand = MarketsOnDemand(serving.universe, CLOCK, serving.parts.book, used.__contains__, {"bitget": RULES})
        readers = [await first.enter_async_context(reading(url, prefix, world))]
        readers.append(await stack.enter_async_context(reading(url, prefix, world)))

        def is_right(*symbols: Any, those: list[Any]) -> bool:
            known = [set(one.universe.symbols("bitget")) for one in (*those, serving)]
            return all(one == set(symbols) for one in known) and world.subscribed() == sorted(symbols)

        await until(lambda: is_right(S0, those=readers))
        tasks = TaskSet()
        tasks.start_periodic(demand.renew, CLOCK, 0.5)
        await until(lambda: demand.find_market("bitget", "S1/USDT") is not None)
        assert demand.find_market("bitget", str(S4)) is None
        used |= {MarketKey("bitget", symbol) for symbol in (S1, S2)}
        await demand.start_market(MarketKey("bitget", S1), "192.0.2.1")
        await until(lambda: is_right(S0, S1, those=readers))
        await demand.start_market(MarketKey("bitget", S2), "192.0.2.2")
        with pytest.raises(DemandRefused):
            await demand.start_market(MarketKey("bitget", SYMBOLS[3]), "192.0.2.3")
        removed = []
        for one in (readers[1], serving):
            one.universe.add_listener(lambda change: removed.extend(change.removed))
        await first.aclose()
        used.remove(MarketKey("bitget", S2))
        await until(lambda: is_right(S0, S1, those=readers[1:]), within_s=40)
        await tasks.cancel()
        assert set(removed) == {S2}  # S1 is used, and never left


@pytest.mark.usefixtures("redis")
async def test_delisted_markets_are_read_while_clients_of_another_process_use_them(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    monkeypatch.setattr(universe_choice, "LEAVES_AFTER_MS", 1_000)
    monkeypatch.setattr(shared_limits, "REPORTED_S", 3.0)
    monkeypatch.setattr(ingest_side, "REPORTED_S", 3.0)
    monkeypatch.setattr(ingest_side, "RENEW_S", 0.5)
    world, url, prefix = World(), shared_redis(), new_prefix()
    world.begins_ms = dict.fromkeys(SYMBOLS, time.time_ns() // 1_000_000)
    world.list_markets([S0, S1, S2])
    rules = ChoiceRules(patterns=(SymbolPattern.parse("S1/USDT"), SymbolPattern.parse("/S[02]/")))
    markets = [MarketKey("bitget", symbol) for symbol in (S0, S1, S2)]
    async with process(url, prefix, markets=tuple(markets)) as serving:
        used = set(markets)
        demand = MarketsOnDemand(serving.universe, CLOCK, serving.parts.book, used.__contains__, {})
        async with reading(url, prefix, world, rules):
            await until(lambda: world.subscribed() == [S0, S1, S2])
            tasks = TaskSet()
            tasks.start_periodic(demand.renew, CLOCK, 0.5)
            world.stopped = {S1, S2}
            world.list_markets([S0])
            await until(lambda: serving.universe.delisted("bitget") == [S1, S2], within_s=20)
            reads = world.list_reads
            await until(lambda: world.list_reads >= reads + 4, within_s=20)  # by now, the unused ones have ended
            assert world.subscribed() == [S0, S1, S2]
            used.clear()
            await until(lambda: world.subscribed() == [S0], within_s=20)
            # a named market keeps its history
            await until(lambda: set(serving.universe.symbols("bitget")) == {S0, S1}, within_s=20)
            await tasks.cancel()
