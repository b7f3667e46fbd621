"""After any sequence of changes exactly the markets wanted are read and served, rightly, and nothing else is left."""

import asyncio
import contextlib
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from candled import universe_choice
from candled.aggregate.live_bars import LiveBars
from candled.bus.memory_bus import MemoryBus
from candled.bus.redis.leases import Lease
from candled.config import Config, ExchangeConfig
from candled.errors import Unavailable
from candled.ingest.feeds import FeedRunner
from candled.ingest_side import ShardedIngest
from candled.model import MINUTE, MINUTE_MS, Interval, Market, MarketKey, Symbol, iso_ms
from candled.on_demand import RENEW_S, DemandRefused, MarketsOnDemand, MemoryBook
from candled.protocol.requests import RequestCodec
from candled.rooms.hub import Hub
from candled.serve.client import ClientSession
from candled.serve.pager import SessionContext
from candled.store.history import HistoryReader
from candled.store.ingest_store import IngestStore
from candled.store.sqlite.store import SqliteStore
from candled.store.writer import Writer
from candled.symbol_pattern import SymbolPattern
from candled.tasks import TaskSet
from candled.universe import Universe
from candled.universe_choice import ChoiceRules, DemandRules
from tests import tiers
from tests.clocks import ManualClock
from tests.ingest.many_markets import START_MS, SYMBOLS, ManyMarkets, World, left_over, run_without_socket
from tests.ingest.test_sharded_ingest import SomeLeases
from tests.rooms.stage import Socket
from tests.rows import MONDAY_MS
from tests.simulation.deployment import Limits, Sender, Threads
from tests.simulation.faults import Weather

REFRESH_S, LEAVES_AFTER_S = 1800.0, 3600
SHARDS = 2
ON_DEMAND = DemandRules(most=2, keep_s=1200.0, most_per_address=2)
INTERVALS = (MINUTE, Interval.parse("1h"))
RULES = [
    ChoiceRules(patterns=tuple(map(SymbolPattern.parse, patterns)))
    for patterns in (["*/USDT"], ["S0/USDT", "*/USDT", "!S1/*"], ["S1/USDT", "S3/USDT"], ["/S[0-2]/", "S4/USDT"])
]


class Deployment:
    """One process, its clients and its exchange."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.world, self.rules = ManualClock(START_MS), World(), RULES[0]
        self.world.is_strict = True
        self.store = SqliteStore(folder / "candled.db", INTERVALS)
        self.store.open()
        threads: Any = Threads(self.store, Weather())
        self.writer = Writer(self.store, threads, self.clock, flush_interval_s=5.0)
        history = HistoryReader(self.store, threads)
        self.universe = Universe(["virtual"])
        self.codec = RequestCodec({"virtual": []}, INTERVALS)
        self.bars = LiveBars([], INTERVALS, history, self.clock)
        self.hub = Hub(self.codec, self.bars, self.clock, Sender())
        self.bars.add_listener(self.hub)
        bus = MemoryBus("one")
        bus.add_listener(self.bars)
        self.book = MemoryBook(self.clock)
        self.demand = MarketsOnDemand(
            self.universe, self.clock, self.book, self.hub.has_members, {"virtual": ON_DEMAND}
        )
        #: The markets that HTTP requests have started and may still be waiting for.
        self.requests = TaskSet()
        self.leases = SomeLeases([Lease(shard, f"epoch {shard}", self.clock) for shard in range(SHARDS)])
        self.ingest = ShardedIngest(
            Config().model_copy(update={"exchanges": (self._exchange(),)}),
            self.clock,
            bus,
            IngestStore(self.store, threads, self.writer, history),
            self.universe,
            leases=self.leases,  # type: ignore[arg-type]
            is_used=self.hub.has_members,
            book=self.book,
            on_list=lambda exchange, listed: self.demand.on_list(exchange, [market.symbol for market in listed]),
        )
        for one in (self.codec, self.hub, self.bars, self.ingest):
            self.universe.add_listener(one.on_markets_changed)
        self.clients = [self._connect() for _ in range(2)]
        self.tasks = TaskSet()
        for work in (self.writer.run_flushes, self.bars.start, self.ingest.start):
            self.tasks.start(work())
        self.tasks.start_periodic(self._run_hub, self.clock, 1.0)
        self.tasks.start_periodic(self.demand.renew, self.clock, RENEW_S)

    def _run_hub(self) -> None:
        self.hub.run_due()

    def _exchange(self) -> ExchangeConfig:
        return ExchangeConfig(
            name="virtual",
            plugin=ManyMarkets,
            symbols=self.rules.named,
            settings=self.world,
            choice=self.rules,
            refresh=timedelta(seconds=REFRESH_S),
            on_demand=ON_DEMAND,
        )

    def _connect(self) -> Socket:
        socket = Socket(self.clock)
        limits: Any = Limits()
        pages: Any = None
        context = SessionContext(self.hub, self.bars, self.codec, self.clock, limits, pages, self.demand)
        socket.client = ClientSession(socket, context)
        return socket

    async def do(self, action: str, argument: Any) -> None:
        if action == "list":
            self.world.list_markets(argument)
        elif action == "refuse":
            self.world.refused = set(argument)
        elif action == "reload":
            self.rules = RULES[argument]
            self.ingest._choosers["virtual"].set_rules(self.rules)
        elif action == "lease":
            shard, is_given = argument
            lease = self.leases.all[shard]
            _ = lease.acquire(lease.token + 1, 1e12) if is_given else lease.release()
        elif action in ("subscribe", "unsubscribe"):
            number, symbol = argument
            bars = {"initialBars": 10} if action == "subscribe" else {}
            self.clients[number].send_json({"type": action, "symbol": str(symbol), "interval": "1m"} | bars)
        elif action == "request":
            self.requests.start(self._request(argument))
        elif action == "refresh":
            await self.clock.leap(REFRESH_S)
        else:
            await self.clock.advance(argument)

    async def _request(self, symbol: Symbol) -> None:
        """Start a market as an HTTP request does."""
        market = self.demand.find_market("virtual", str(symbol))
        if market is not None:
            with contextlib.suppress(DemandRefused, Unavailable):
                await self.demand.start_market(market, "192.0.2.9")

    def used(self) -> set[Symbol]:
        return {market.symbol for market in self.hub._rooms}

    async def stop(self) -> None:
        await self.tasks.cancel()
        await self.requests.cancel()
        await self.ingest.stop()
        await self.writer.close(within_s=5.0)
        for socket in self.clients:
            socket.client.on_close()
        await asyncio.sleep(0)  # tasks of clients that waited
        await self.bars.stop()
        self.store.close()


symbols = st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=5, unique=True)
of_client = st.tuples(st.integers(0, 1), st.sampled_from(SYMBOLS))
actions = st.one_of(
    st.tuples(st.just("list"), symbols),
    st.tuples(st.just("refuse"), st.lists(st.sampled_from(SYMBOLS), max_size=2)),
    st.tuples(st.just("reload"), st.integers(0, len(RULES) - 1)),
    st.tuples(st.just("lease"), st.tuples(st.integers(0, SHARDS - 1), st.booleans())),
    st.tuples(st.just("subscribe"), of_client),
    st.tuples(st.just("unsubscribe"), of_client),
    st.tuples(st.just("request"), st.sampled_from(SYMBOLS)),
    st.tuples(st.just("refresh"), st.none()),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 1.0, 40.0])),
)


async def check_sequence(folder: Path, steps: list[tuple[str, Any]]) -> None:
    deployment = Deployment(folder)
    for shard in range(SHARDS):
        await deployment.do("lease", (shard, True))
    await deployment.do("pass", 20.0)
    for action, argument in steps:
        await deployment.do(action, argument)
    deployment.world.refused = set()
    for shard in range(SHARDS):
        await deployment.do("lease", (shard, True))
    await deployment.do("pass", 10.0)
    before = set(deployment.universe.symbols("virtual"))
    for _ in range(LEAVES_AFTER_S // int(REFRESH_S) + 2):
        await deployment.do("refresh", None)
    await deployment.do("pass", 70.0)
    check_markets(deployment, before)
    ingests = [one for running in deployment.ingest._running.values() for one in running]
    await deployment.stop()
    assert all(not ingest._tasks for ingest in ingests)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def check_markets(deployment: Deployment, before: set[Symbol]) -> None:
    rules, listed = deployment.rules, set(deployment.world.listed)
    kept = {one for one in before & deployment.used() if rules.matches(one)}
    # what no client uses has ended, and nothing else that the rules do not choose is left
    on_demand = set(deployment.ingest._choosers["virtual"].extras)
    assert on_demand <= deployment.used()
    assert len(on_demand) <= ON_DEMAND.most
    assert on_demand == set(deployment.book._used_at["virtual"])
    assert {one.symbol for one in deployment.demand._started_by} <= on_demand
    assert not deployment.requests
    assert not any(one.client._starting for one in deployment.clients)
    wanted = set(rules.named) | {one for one in listed if rules.matches(one)} | kept | on_demand
    assert set(deployment.universe.symbols("virtual")) == wanted
    assert deployment.bars._markets.keys() == {MarketKey("virtual", symbol) for symbol in wanted}
    assert set(deployment.codec._markets["virtual"].values()) == wanted
    assert (
        deployment.used()
        == {topic.market.symbol for one in deployment.clients for topic in one.client._memberships}
        <= wanted
    )
    surplus: set[Symbol] = set()
    for shard, running in deployment.ingest._running.items():
        for ingest in running:
            part = set(deployment.ingest._part_of(shard, "virtual", wanted))
            assert dict(ingest.describe_symbols()).keys() == part
            assert left_over(ingest, part) == []
            surplus.update(ingest._feeds.surplus)
    subscribed = deployment.world.subscribed()
    delisted = (wanted & deployment.used()) - listed  # may stay subscribed
    assert sorted(set(subscribed) - delisted) == sorted((wanted & listed) - surplus)
    assert len(subscribed) == len(set(subscribed))
    described, now_ms = dict(deployment.ingest.describe_symbols()), deployment.clock.now_ms()
    for symbol in wanted & listed:
        key = MarketKey("virtual", symbol)
        assert described[key]["state"] == ("polling" if symbol in surplus else "live"), symbol
        whole = range(MINUTE.floor(now_ms) - 62 * MINUTE_MS, MINUTE.floor(now_ms) - 2 * MINUTE_MS, MINUTE_MS)
        shown = {bar.open_ms: bar for bar in deployment.bars.newest_bars(key, MINUTE, 100)}
        stored = {bar.open_ms: bar for bar in deployment.store.read_bars_between(key, MINUTE, whole.start, whole.stop)}
        for open_ms in whole:
            close = ManyMarkets(deployment.world, deployment.clock).version(symbol, open_ms).close
            assert (shown[open_ms].close, stored[open_ms].close) == (close, close)
        assert deployment.store.span(key, MINUTE).start_ms == MONDAY_MS
        for client in deployment.clients:
            if any(topic.market == key for topic in client.client._memberships):
                assert client.chart("1m", str(symbol)).bars[-1]["time"] >= iso_ms(now_ms - 70_000)


@settings(max_examples=300 if tiers.LONG else 1, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(actions, max_size=12))
@example([("subscribe", (0, SYMBOLS[0])), ("pass", 1.0), ("list", SYMBOLS[1:])])
@example([("reload", 2), ("subscribe", (0, SYMBOLS[0])), ("request", SYMBOLS[2]), ("list", SYMBOLS[1:])])
@example(
    [
        ("reload", 2),
        ("lease", (0, False)),
        ("request", SYMBOLS[4]),
        ("subscribe", (0, SYMBOLS[4])),
        ("list", SYMBOLS[:3]),
    ]
)
@example([("lease", (1, False)), ("reload", 2), ("list", SYMBOLS[3:]), *[("refresh", None)] * 4, ("list", SYMBOLS)])
@pytest.mark.slow
def test_after_any_sequence_exactly_the_wanted_markets_are_served(steps):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(FeedRunner, "_run_socket", run_without_socket)
        patch.setattr(universe_choice, "LEAVES_AFTER_MS", LEAVES_AFTER_S * 1000)  # less history to fetch
        asyncio.run(check_sequence(Path(folder), steps))


async def check_renamed(folder: Path) -> None:
    deployment = Deployment(folder)
    old, new = SYMBOLS[1:3]  # both in the first shard
    await deployment.do("list", [old])
    deployment.rules = ChoiceRules(patterns=(SymbolPattern.parse(str(old)),))
    deployment.ingest._choosers["virtual"].set_rules(deployment.rules)
    for shard in range(SHARDS):
        await deployment.do("lease", (shard, True))
    await deployment.do("pass", 100.0)
    await deployment.do("subscribe", (0, old))
    renamed_ms = MINUTE.floor(deployment.clock.now_ms())
    deployment.world.begins_ms[new] = renamed_ms
    await deployment.do("list", [new])
    deployment.world.listed[new] = Market(symbol=new, former=old, listed_ms=renamed_ms)
    await deployment.do("refresh", None)
    await deployment.do("pass", 60.0)
    assert deployment.universe.symbols("virtual") == (old, new)
    before, after = (
        deployment.store.read_bars_between(MarketKey("virtual", symbol), MINUTE, 0, renamed_ms) for symbol in (old, new)
    )
    assert after[: len(before)] == before
    assert before[0].open_ms == MONDAY_MS
    shown = deployment.bars.newest_bars(MarketKey("virtual", new), MINUTE, 200)
    assert [bar.open_ms for bar in shown] == list(range(MONDAY_MS, deployment.clock.now_ms(), MINUTE_MS))
    assert dict(deployment.ingest.describe_symbols())[MarketKey("virtual", old)]["reason"] == "delisted"
    await deployment.stop()


@pytest.mark.slow
def test_a_renamed_market_has_the_history_of_its_former_symbol():
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(FeedRunner, "_run_socket", run_without_socket)
        asyncio.run(check_renamed(Path(folder)))
