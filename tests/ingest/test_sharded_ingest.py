"""The ingest of a process follows the universe: markets are chosen from the exchange's list while it runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from candled import universe_choice
from candled.bus.memory_bus import MemoryBus
from candled.bus.redis.leases import Lease
from candled.bus.shards import shard_of
from candled.config import Config, ExchangeConfig
from candled.errors import Unavailable
from candled.health import is_healthy
from candled.ingest.feeds import FeedRunner
from candled.ingest_side import ShardedIngest
from candled.model import Market, MarketKey, Symbol
from candled.on_demand import MemoryBook
from candled.symbol_pattern import SymbolPattern
from candled.universe import Universe
from candled.universe_choice import ChoiceRules, DemandRules
from tests.clocks import ManualClock
from tests.ingest.many_markets import START_MS, SYMBOLS, ManyMarkets, ManyMemories, World, run_without_socket
from tests.rows import MONDAY_MS

REFRESH_S, LEAVES_AFTER_S = 1800.0, 7200  # a shorter day, with less history to fetch
S0, S1, S2, S3, S4 = SYMBOLS


@dataclass
class SomeLeases:
    """The leases of a process, which a test gives and takes."""

    all: list[Lease] = field(default_factory=list)


def rules_of(*patterns: str, **limits: Any) -> ChoiceRules:
    return ChoiceRules(patterns=tuple(map(SymbolPattern.parse, patterns)), **limits)


class Harness:
    """The ingest of one process."""

    def __init__(self, rules: ChoiceRules, *, shards: int = 0) -> None:
        self.clock, self.world, self.store = ManualClock(START_MS), World(), ManyMemories()
        choice = ExchangeConfig(
            name="virtual",
            plugin=ManyMarkets,
            symbols=rules.named,
            settings=self.world,
            choice=rules,
            refresh=timedelta(seconds=REFRESH_S),
            on_demand=DemandRules(most=3, keep_s=3600.0),
        )
        self.rules, self.book = choice.on_demand, MemoryBook(self.clock)
        self.universe = Universe(["virtual"])
        self.universe.set_markets("virtual", rules.named)
        self.leases = SomeLeases([Lease(shard, f"epoch {shard}", self.clock) for shard in range(shards)])
        leases: Any = self.leases if shards else None
        store: Any = self.store
        config = Config().model_copy(update={"exchanges": (choice,)})
        self.used: set[Symbol] = set()
        self.ingest = ShardedIngest(
            config,
            self.clock,
            MemoryBus("one"),
            store,
            self.universe,
            leases=leases,
            is_used=lambda key: key.symbol in self.used,
            book=self.book,
        )
        self.universe.add_listener(self.ingest.on_markets_changed)
        self.starting = asyncio.ensure_future(self.ingest.start())

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        return self.universe.symbols("virtual")

    async def refresh(self, times: int = 1) -> None:
        """Let the list be read again."""
        for _ in range(times):
            await self.clock.leap(REFRESH_S)
        await self.clock.advance(20.0)

    def described(self) -> dict[str, Any]:
        symbols = {str(market.symbol): facts for market, facts in self.ingest.describe_symbols()}
        return {**self.ingest.describe()["virtual"], "symbols": symbols}


@asynccontextmanager
async def running(rules: ChoiceRules, *listed: Symbol, shards: int = 0) -> AsyncIterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedRunner, "_run_socket", run_without_socket)
        patch.setattr(universe_choice, "LEAVES_AFTER_MS", LEAVES_AFTER_S * 1000)
        harness = Harness(rules, shards=shards)
        harness.world.list_markets(listed)
        try:
            await harness.clock.advance(20.0)
            yield harness
        finally:
            await harness.ingest.stop()
            harness.starting.cancel()


@pytest.mark.slow
async def test_new_listings_are_read_and_the_connection_of_the_others_stays():
    async with running(rules_of("*/USDT"), S0) as harness:
        assert harness.world.subscribed() == [S0]
        (peer,) = harness.world.peers
        harness.world.list_markets([S0, S1])
        await harness.clock.advance(REFRESH_S / 2)
        assert harness.symbols == (S0,)
        await harness.refresh()
        assert harness.symbols == (S0, S1)
        assert harness.world.peers == [peer]
        assert harness.world.subscribed() == [S0, S1]
        assert harness.described()["symbols"]["S1/USDT"]["state"] == "live"
        assert min(harness.store[S1].rows) == MONDAY_MS  # its history, from its first minute


@pytest.mark.slow
async def test_a_market_that_is_not_listed_any_more_is_read_for_another_day():
    async with running(rules_of("*/USDT"), S0, S1) as harness:
        harness.world.list_markets([S0])
        await harness.refresh()
        assert harness.symbols == (S0, S1)
        assert harness.described()["choice"]["leaving"] == 1
        await harness.refresh(LEAVES_AFTER_S // int(REFRESH_S))
        assert harness.symbols == (S0,)
        assert harness.world.subscribed() == [S0]
        assert list(harness.described()["symbols"]) == ["S0/USDT"]


@pytest.mark.slow
async def test_a_delisted_named_market_loses_its_feed_after_a_day_and_gets_it_back_when_listed_again():
    async with running(rules_of("S0/USDT", "S1/USDT"), S0, S1) as harness:
        (peer,) = harness.world.peers
        harness.world.stopped = {S0}
        harness.used = {S0}
        harness.world.list_markets([S1])
        await harness.refresh()
        asked = harness.world.history_reads[S0]
        for is_used in (True, False):
            harness.used = {S0} if is_used else set()
            await harness.refresh(LEAVES_AFTER_S // int(REFRESH_S))
            assert harness.world.subscribed() == ([S0, S1] if is_used else [S1])
            described = harness.described()["symbols"]
            assert (described["S0/USDT"]["state"], described["S0/USDT"]["reason"]) == ("quiet", "delisted")
            assert described["S1/USDT"]["state"] == "live"
            assert is_healthy(harness.described())
        assert harness.world.history_reads[S0] - asked < 5
        harness.world.stopped = set()
        harness.world.list_markets([S0, S1])
        await harness.refresh()
        await harness.clock.advance(60.0)
        assert harness.world.subscribed() == [S0, S1]
        assert harness.world.peers == [peer]
        assert harness.described()["symbols"]["S0/USDT"]["state"] == "live"
        newest_ms = harness.clock.now_ms() - 120_000
        assert harness.store[S0].rows.keys() >= set(
            range(newest_ms - newest_ms % 60_000 - 3_600_000, newest_ms, 60_000)
        )


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [("upcoming", "quiet", "not_open"), ("suspended", "quiet", "suspended"), ("delisted", "quiet", "delisted")],
)
async def test_a_market_that_is_not_traded_is_no_problem(status, state, reason):
    async with running(rules_of("S0/USDT"), S1) as harness:
        harness.world.stopped = harness.world.refused = {S0}
        harness.world.listed[S0] = Market(symbol=S0, status=status)
        await harness.refresh()
        described = harness.described()
        market = described["symbols"]["S0/USDT"]
        assert (market["state"], market["reason"], market["listing"]) == (state, reason, status)
        assert is_healthy(described)


@pytest.mark.slow
async def test_a_market_is_chosen_within_a_minute_of_its_opening():
    async with running(rules_of("*/USDT"), S0) as harness:
        opens_ms = harness.clock.now_ms() + 3_000_000
        harness.world.listed[S1] = Market(symbol=S1, status="upcoming", listed_ms=opens_ms)
        await harness.refresh()
        assert harness.symbols == (S0,)
        await harness.clock.leap((opens_ms - harness.clock.now_ms()) / 1000)
        harness.world.list_markets([S0, S1])
        await harness.clock.advance(60.0)
        assert harness.symbols == (S0, S1)


@pytest.mark.slow
async def test_a_list_that_cannot_be_read_is_reported_and_changes_nothing():
    async with running(rules_of("*/USDT"), S0) as harness:
        harness.world.problem = Unavailable("down for an hour?token=secret")
        await harness.refresh()
        problem = harness.described()["choice"]["trouble"]
        assert problem.startswith("the list of markets cannot be read: ")
        assert "secret" not in problem
        assert harness.symbols == (S0,)
        harness.world.problem = None
        await harness.clock.advance(300.0)
        assert harness.described()["choice"]["trouble"] is None


@pytest.mark.slow
async def test_without_the_first_list_a_pattern_waits_and_named_markets_are_read():
    async with running(rules_of("S3/USDT", "*/USDT"), S0, S3) as harness:
        assert harness.symbols == (S3, S0)
    async with running(rules_of("S3/USDT", "*/USDT")) as harness:  # an empty list is no evidence
        assert harness.world.subscribed() == [S3]


@pytest.mark.slow
async def test_other_rules_add_and_remove_markets_immediately():
    async with running(rules_of("*/USDT", "!S0/*"), *SYMBOLS[:3]) as harness:
        (peer,) = harness.world.peers
        harness.ingest._choosers["virtual"].set_rules(rules_of("S2/USDT", "S4/USDT"))
        assert harness.symbols == (S2, S4)
        await harness.clock.advance(20.0)
        assert harness.world.subscribed() == [S2, S4]
        assert harness.world.peers == [peer]
        assert harness.described()["choice"]["unlisted"] == ["S4/USDT"]


@pytest.mark.slow
async def test_an_extra_market_is_read_until_it_is_removed():
    async with running(rules_of("S0/USDT"), *SYMBOLS[:3]) as harness:
        for symbol in (S1, S0, S4):  # the last one is not listed
            await harness.book.request_market(MarketKey("virtual", symbol), harness.rules)
        await harness.refresh()
        assert harness.world.subscribed() == [S0, S1]
        assert set(harness.ingest._choosers["virtual"].extras) == {S0, S1}
        await harness.clock.advance(harness.rules.keep_s)
        await harness.refresh()
        assert harness.world.subscribed() == [S0]


@pytest.mark.slow
async def test_each_shard_has_its_part_of_the_markets():
    async with running(rules_of("*/USDT"), *SYMBOLS[:3], shards=2) as harness:
        assert harness.world.subscribed() == []
        parts = [[one for one in SYMBOLS if shard_of(MarketKey("virtual", one), 2) == shard] for shard in range(2)]
        assert all(parts)
        for shard, lease in enumerate(harness.leases.all):
            lease.acquire(1, 1e9)
            await harness.refresh()
            assert harness.world.subscribed() == sorted(
                one for part in parts[: shard + 1] for one in part if one in harness.symbols
            )
        harness.world.list_markets(SYMBOLS)
        await harness.refresh()
        assert harness.symbols == tuple(SYMBOLS)
        assert harness.world.subscribed() == sorted(SYMBOLS[:4])  # one is left over
