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
from candled.symbol_pattern import SymbolPattern
from candled.universe import Universe
from candled.universe_choice import ChoiceRules
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


class Site:
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
        )
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
        return self.ingest.describe()["virtual"]


@asynccontextmanager
async def running(rules: ChoiceRules, *listed: Symbol, shards: int = 0) -> AsyncIterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedRunner, "_run_socket", run_without_socket)
        patch.setattr(universe_choice, "LEAVES_AFTER_MS", LEAVES_AFTER_S * 1000)
        site = Site(rules, shards=shards)
        site.world.list_markets(listed)
        try:
            await site.clock.advance(20.0)
            yield site
        finally:
            await site.ingest.stop()
            site.starting.cancel()


async def test_new_listings_are_read_and_the_connection_of_the_others_stays():
    async with running(rules_of("*/USDT"), S0) as site:
        assert site.world.subscribed() == [S0]
        (peer,) = site.world.peers
        site.world.list_markets([S0, S1])
        await site.clock.advance(REFRESH_S / 2)
        assert site.symbols == (S0,)
        await site.refresh()
        assert site.symbols == (S0, S1)
        assert site.world.peers == [peer]
        assert site.world.subscribed() == [S0, S1]
        assert site.described()["symbols"]["S1/USDT"]["state"] == "live"
        assert min(site.store[S1].rows) == MONDAY_MS  # its history, from its first minute


async def test_a_market_that_is_not_listed_any_more_is_read_for_another_day():
    async with running(rules_of("*/USDT"), S0, S1) as site:
        site.world.list_markets([S0])
        await site.refresh()
        assert site.symbols == (S0, S1)
        assert site.described()["choice"]["leaving"] == 1
        await site.refresh(LEAVES_AFTER_S // int(REFRESH_S))
        assert site.symbols == (S0,)
        assert site.world.subscribed() == [S0]
        assert list(site.described()["symbols"]) == ["S0/USDT"]


async def test_a_delisted_named_market_loses_its_feed_after_a_day_and_gets_it_back_when_listed_again():
    async with running(rules_of("S0/USDT", "S1/USDT"), S0, S1) as site:
        (peer,) = site.world.peers
        site.world.stopped = {S0}
        site.used = {S0}
        site.world.list_markets([S1])
        await site.refresh()
        asked = site.world.history_reads[S0]
        for is_used in (True, False):
            site.used = {S0} if is_used else set()
            await site.refresh(LEAVES_AFTER_S // int(REFRESH_S))
            assert site.world.subscribed() == ([S0, S1] if is_used else [S1])
            described = site.described()["symbols"]
            assert (described["S0/USDT"]["state"], described["S0/USDT"]["reason"]) == ("quiet", "delisted")
            assert described["S1/USDT"]["state"] == "live"
            assert is_healthy(site.described())
        assert site.world.history_reads[S0] - asked < 5
        site.world.stopped = set()
        site.world.list_markets([S0, S1])
        await site.refresh()
        await site.clock.advance(60.0)
        assert site.world.subscribed() == [S0, S1]
        assert site.world.peers == [peer]
        assert site.described()["symbols"]["S0/USDT"]["state"] == "live"
        newest_ms = site.clock.now_ms() - 120_000
        assert site.store[S0].rows.keys() >= set(range(newest_ms - newest_ms % 60_000 - 3_600_000, newest_ms, 60_000))


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [("upcoming", "quiet", "not_open"), ("suspended", "quiet", "suspended"), ("delisted", "quiet", "delisted")],
)
async def test_a_market_that_is_not_traded_is_no_problem(status, state, reason):
    async with running(rules_of("S0/USDT"), S1) as site:
        site.world.stopped = site.world.refused = {S0}
        site.world.listed[S0] = Market(symbol=S0, status=status)
        await site.refresh()
        described = site.described()
        market = described["symbols"]["S0/USDT"]
        assert (market["state"], market["reason"], market["listing"]) == (state, reason, status)
        assert is_healthy(described)


async def test_a_market_is_chosen_within_a_minute_of_its_opening():
    async with running(rules_of("*/USDT"), S0) as site:
        opens_ms = site.clock.now_ms() + 3_000_000
        site.world.listed[S1] = Market(symbol=S1, status="upcoming", listed_ms=opens_ms)
        await site.refresh()
        assert site.symbols == (S0,)
        await site.clock.leap((opens_ms - site.clock.now_ms()) / 1000)
        site.world.list_markets([S0, S1])
        await site.clock.advance(60.0)
        assert site.symbols == (S0, S1)


async def test_a_list_that_cannot_be_read_is_reported_and_changes_nothing():
    async with running(rules_of("*/USDT"), S0) as site:
        site.world.problem = Unavailable("down for an hour?token=secret")
        await site.refresh()
        trouble = site.described()["choice"]["trouble"]
        assert trouble.startswith("the list of markets cannot be read: ")
        assert "secret" not in trouble
        assert site.symbols == (S0,)
        site.world.problem = None
        await site.clock.advance(300.0)
        assert site.described()["choice"]["trouble"] is None


async def test_without_the_first_list_a_pattern_waits_and_named_markets_are_read():
    async with running(rules_of("S3/USDT", "*/USDT"), S0, S3) as site:
        assert site.symbols == (S3, S0)
    async with running(rules_of("S3/USDT", "*/USDT")) as site:  # an empty list is no evidence
        assert site.world.subscribed() == [S3]


async def test_other_rules_add_and_remove_markets_immediately():
    async with running(rules_of("*/USDT", "!S0/*"), *SYMBOLS[:3]) as site:
        (peer,) = site.world.peers
        site.ingest.chooser_of("virtual").set_rules(rules_of("S2/USDT", "S4/USDT"))
        assert site.symbols == (S2, S4)
        await site.clock.advance(20.0)
        assert site.world.subscribed() == [S2, S4]
        assert site.world.peers == [peer]
        assert site.described()["choice"]["unlisted"] == ["S4/USDT"]


async def test_an_extra_market_is_read_until_it_is_removed():
    async with running(rules_of("S0/USDT"), *SYMBOLS[:3]) as site:
        chooser = site.ingest.chooser_of("virtual")
        assert chooser.find_listed(S4) is None
        assert chooser.find_listed(S1) == site.world.listed[S1]
        for symbol in (S1, S0):
            chooser.add_extra(symbol)
        await site.refresh()
        assert site.world.subscribed() == [S0, S1]
        for symbol in (S1, S0):
            chooser.remove_extra(symbol)
        await site.refresh()
        assert site.world.subscribed() == [S0]


async def test_each_shard_has_its_part_of_the_markets():
    async with running(rules_of("*/USDT"), *SYMBOLS[:3], shards=2) as site:
        assert site.world.subscribed() == []
        parts = [[one for one in SYMBOLS if shard_of(MarketKey("virtual", one), 2) == shard] for shard in range(2)]
        assert all(parts)
        for shard, lease in enumerate(site.leases.all):
            lease.acquire(1, 1e9)
            await site.refresh()
            assert site.world.subscribed() == sorted(
                one for part in parts[: shard + 1] for one in part if one in site.symbols
            )
        site.world.list_markets(SYMBOLS)
        await site.refresh()
        assert site.symbols == tuple(SYMBOLS)
        assert site.world.subscribed() == sorted(SYMBOLS[:4])  # one is left over
