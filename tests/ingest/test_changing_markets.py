"""The markets of an ingest change while it runs: exactly those wanted are read, and nothing is left of the others."""

import asyncio
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from candled.bus import MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.exchange import ConnectionLimits
from candled.ingest import repair_scheduler
from candled.ingest.distribution import distribute
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.feeds import FeedRunner
from candled.ingest.http import HttpClient
from candled.ingest.market_listing import ListOptions
from candled.ingest.market_loader import IngestOptions
from candled.model import MINUTE, MINUTE_MS, Candle, Symbol
from tests import tiers
from tests.clocks import ManualClock
from tests.ingest.many_markets import (
    START_MS,
    SYMBOLS,
    ManyMarkets,
    ManyMemories,
    World,
    left_over,
    run_without_socket,
)
from tests.rows import MONDAY_MS


class Harness:
    """An ingest whose markets change."""

    def __init__(self, lists: ListOptions | None = None) -> None:
        self.clock = ManualClock(START_MS)
        self.world = World()
        self.exchange = ManyMarkets(self.world, self.clock)
        self.store = ManyMemories()
        self.shown: dict[Symbol, Candle] = {}
        self.wanted: dict[Symbol, None] = {}
        bus = MemoryBus("one")
        bus.add_listener(self)
        options = IngestOptions(
            backfill_ms=0, grace_period_ms=6000, quiet_after_ms=60_000, checkpoint_ms=5000, confirm=True
        )  # fmt: skip
        http = HttpClient(self.clock, 1000.0)
        parts: dict[str, Any] = {"clock": self.clock, "bus": bus, "store": self.store, "http": http}
        self.ingest = ExchangeIngest("virtual", self.exchange, [], options=options, lists=lists, **parts)

    def on_feed_message(self, message: Any, _: Any) -> None:
        assert message.market.symbol in self.wanted
        if isinstance(message, MinuteChanged):
            known = self.shown.get(message.market.symbol, message.candle)
            self.shown[message.market.symbol] = max(known, message.candle, key=lambda candle: candle.open_ms)

    async def do(self, action: str, argument: Any) -> None:
        if action == "add":
            self.wanted |= dict.fromkeys(argument)
            self.ingest.add_markets(argument)
        elif action == "remove":
            for symbol in argument:
                self.wanted.pop(symbol, None)
            self.ingest.remove_markets(argument)
        elif action == "refuse":
            self.world.refused = set(argument)
        elif action == "cut":
            for peer in self.world.peers[:argument]:
                peer.is_cut = True
        else:
            await self.clock.advance(argument)


symbols = st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=4, unique=True)
actions = st.one_of(
    st.tuples(st.just("add"), symbols),
    st.tuples(st.just("remove"), symbols),
    st.tuples(st.just("refuse"), st.lists(st.sampled_from(SYMBOLS), max_size=2)),
    st.tuples(st.just("cut"), st.integers(1, 2)),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 1.0, 40.0, 100.0])),
)


async def check_sequence(steps: list[tuple[str, Any]]) -> None:
    harness = Harness()
    starting = asyncio.ensure_future(harness.ingest.start())
    for action, argument in steps:
        await harness.do(action, argument)
    harness.world.refused = set()
    await harness.clock.advance(400.0)  # longer than the pauses after two rejections
    assert starting.done()
    described, wanted = dict(harness.ingest.describe_symbols()), harness.wanted
    assert list(described) == list(wanted)
    surplus = harness.ingest._feeds.surplus
    assert len(surplus) == max(0, len(wanted) - 4)
    assert harness.world.subscribed() == sorted(wanted.keys() - set(surplus))
    assert all(peer.subscribed for peer in harness.world.peers)
    now_ms = harness.clock.now_ms()
    for symbol in wanted:
        assert described[symbol]["connected"] == (symbol not in surplus), symbol
        assert described[symbol]["state"] == ("polling" if symbol in surplus else "live")
        whole = range(MONDAY_MS, MINUTE.floor(now_ms) - 2 * MINUTE_MS, MINUTE_MS)
        rows = harness.store[symbol].rows
        assert [open_ms for open_ms in whole if open_ms not in rows] == []
        for open_ms in whole[-20:]:
            assert rows[open_ms].close == harness.exchange.version(symbol, open_ms).close
        assert harness.shown[symbol].open_ms >= MINUTE.floor(now_ms - 10_000)
    assert left_over(harness.ingest, harness.wanted) == []
    names = [task.get_name() for task in harness.ingest._tasks._tasks]
    assert [name for name in names if "open_market" in name] == []
    await harness.ingest.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@settings(max_examples=500 if tiers.LONG else 5, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(actions, max_size=12))
@example([("pass", 1.0), ("add", SYMBOLS), ("pass", 40.0), ("remove", SYMBOLS[:2]), ("pass", 1.0), ("add", SYMBOLS)])
@example([("add", SYMBOLS[:1]), ("pass", 40.0), ("remove", SYMBOLS[:1]), ("add", SYMBOLS[:1])])
@pytest.mark.slow
def test_after_any_sequence_exactly_the_wanted_markets_are_read(steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedRunner, "_run_socket", run_without_socket)
        asyncio.run(check_sequence(steps))


@pytest.mark.slow
async def test_the_forming_minute_of_a_removed_market_is_stored_and_its_history_continues(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    harness = Harness()
    starting = asyncio.ensure_future(harness.ingest.start())
    await harness.do("add", SYMBOLS[:2])
    await harness.do("pass", 50.0)
    harness.store.forming.clear()
    await harness.do("remove", SYMBOLS[:1])
    assert list(harness.store.forming) == SYMBOLS[:1]
    assert harness.store.forming[SYMBOLS[0]].open_ms == MINUTE.floor(harness.clock.now_ms())
    opened = harness.ingest._feeds._opened
    await harness.do("add", SYMBOLS[:1])
    await harness.do("pass", 300.0)
    assert dict(harness.ingest.describe_symbols())[SYMBOLS[0]]["state"] == "live"
    assert harness.ingest._feeds._opened == opened  # on the connection of the other one, which stayed open
    await harness.ingest.stop()
    await starting


@given(st.lists(st.integers(0, 6) | st.none(), max_size=4), st.integers(0, 20), st.integers(1, 6), st.integers(1, 6))
def test_open_connections_are_filled_before_another_one_is_opened(loads, count, per_connection, connections):
    limits = ConnectionLimits(symbols_per_connection=per_connection, connections=connections)
    waiting = [Symbol(f"S{number}", "USDT") for number in range(count)]
    groups, surplus = distribute(waiting, limits, 1, loads)
    assert [symbol for group in groups for symbol in group] + list(surplus) == waiting
    full = [
        load is None or load >= per_connection or load + len(group) == per_connection
        for load, group in zip(loads, groups, strict=False)
    ]
    new = groups[len(loads) :]
    assert all(1 <= len(group) <= per_connection for group in new)
    assert not [group for load, group in zip(loads, groups, strict=False) if group and load is None]
    if new or surplus:
        assert all(full)
    if surplus:
        assert len(groups) >= connections
    assert len(groups) <= max(connections, len(loads))


async def test_a_store_that_is_slow_does_not_delay_the_requests_for_other_markets(monkeypatch):
    harness, released = Harness(), asyncio.Event()
    monkeypatch.setattr(harness.store, "flush_market", lambda market: released.wait(), raising=False)
    starting = asyncio.ensure_future(harness.ingest.start())
    await harness.do("add", SYMBOLS)
    await harness.clock.advance(10.0)
    assert starting.done()
    assert set(harness.world.history_reads) == set(SYMBOLS)
    await harness.ingest.stop()


async def test_the_history_of_a_market_that_a_client_waits_for_is_requested_first(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    for awaited in (SYMBOLS[2], SYMBOLS[4]):
        harness = Harness(ListOptions(is_urgent=lambda market, awaited=awaited: market.symbol == awaited))
        starting = asyncio.ensure_future(harness.ingest.start())
        await harness.clock.advance(10.0)
        await harness.do("add", SYMBOLS)  # more than are read at the same time
        await harness.clock.advance(60.0)
        assert next(iter(harness.world.history_reads)) == awaited  # in the order of the first requests
        assert set(harness.world.history_reads) == set(SYMBOLS)
        await harness.ingest.stop()
        await starting


async def test_a_market_that_clients_begin_to_wait_for_overtakes_those_before_it(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    monkeypatch.setattr(repair_scheduler, "_REQUESTS_AT_ONCE", 1)
    awaited, answered = set[Symbol](), asyncio.Event()
    harness = Harness(ListOptions(is_urgent=lambda market: market.symbol in awaited))
    fetch, asked = harness.exchange.fetch_history, list[Symbol]()

    async def fetch_later(http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle]:
        asked.append(symbol)
        await answered.wait()
        return await fetch(http, symbol, start_ms, end_ms)

    monkeypatch.setattr(harness.exchange, "fetch_history", fetch_later)
    starting = asyncio.ensure_future(harness.ingest.start())
    await harness.do("add", SYMBOLS)
    await harness.clock.advance(10.0)
    awaited.add(SYMBOLS[4])
    await harness.clock.advance(2.0)
    answered.set()
    await harness.clock.advance(10.0)
    assert asked[:5] == [SYMBOLS[number] for number in (0, 4, 1, 2, 3)]
    await harness.ingest.stop()
    await starting


async def test_once_its_snapshot_has_come_a_market_is_not_behind_the_older_history_of_others(monkeypatch):
    """Each market needs three requests for its week; the recent hours of all go first."""
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    monkeypatch.setattr(repair_scheduler, "_REQUESTS_AT_ONCE", 1)
    harness, asked = Harness(), list[Symbol]()
    harness.clock = harness.exchange.clock
    monkeypatch.setattr(harness.exchange, "max_history_minutes", 20)
    begun_s, fetch = harness.clock.monotonic(), harness.exchange.fetch_history
    monkeypatch.setattr(FeedRunner, "awaits_snapshot", lambda *_: harness.clock.monotonic() < begun_s + 2.0)

    async def fetch_slowly(http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle]:
        asked.append(symbol)
        await harness.clock.sleep(3.0)
        return await fetch(http, symbol, start_ms, end_ms)

    monkeypatch.setattr(harness.exchange, "fetch_history", fetch_slowly)
    starting = asyncio.ensure_future(harness.ingest.start())
    await harness.do("add", SYMBOLS)
    await harness.clock.advance(30.0)
    assert set(asked[:5]) == set(SYMBOLS)
    await harness.ingest.stop()
    await starting


async def test_a_market_that_is_listed_again_when_no_connection_is_left_names_the_limit(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    harness = Harness()
    starting = asyncio.ensure_future(harness.ingest.start())
    await harness.do("add", SYMBOLS)
    await harness.clock.advance(10.0)
    markets, problem = harness.ingest._markets, harness.ingest._feeds.limit_problem
    assert [symbol for symbol in SYMBOLS if markets[symbol].status.rejection == problem] == SYMBOLS[4:]
    harness.ingest._on_ended(SYMBOLS[0])  # its place goes to the last one
    assert all(market.status.rejection is None for market in markets.values())
    harness.ingest._on_listed(SYMBOLS[0])
    assert [symbol for symbol in SYMBOLS if markets[symbol].status.rejection == problem] == SYMBOLS[:1]
    await harness.ingest.stop()
    await starting


async def test_clients_market_is_subscribed_to_first(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    harness = Harness(ListOptions(is_urgent=lambda market: market.symbol == SYMBOLS[3]))
    calls = list[tuple[list[Symbol], bool]]()
    add = harness.ingest._feeds.add_symbols

    def record(symbols: Any, *, is_urgent: bool = False) -> None:
        calls.append((list(symbols), is_urgent))
        add(symbols, is_urgent=is_urgent)

    monkeypatch.setattr(harness.ingest._feeds, "add_symbols", record)
    starting = asyncio.ensure_future(harness.ingest.start())
    await harness.clock.advance(1.0)
    await harness.do("add", SYMBOLS[:4])
    assert calls[-2:] == [([SYMBOLS[3]], True), (SYMBOLS[:3], False)]
    await harness.ingest.stop()
    await starting


async def test_a_market_whose_snapshot_is_about_to_come_is_requested_after_the_others(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    monkeypatch.setattr(FeedRunner, "awaits_snapshot", lambda runner, symbol: symbol in SYMBOLS[:2])
    harness = Harness()
    starting = asyncio.ensure_future(harness.ingest.start())
    await harness.do("add", SYMBOLS)
    await harness.clock.advance(10.0)
    assert list(harness.world.history_reads) == [SYMBOLS[number] for number in (2, 3, 4, 0, 1)]
    await harness.ingest.stop()
    await starting
