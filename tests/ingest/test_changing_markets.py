"""The markets of an ingest change while it runs: exactly those wanted are read, and nothing is left of the others."""

import asyncio
from collections import defaultdict, deque
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from candled.bus import MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.exchange import Candles, ConnectionLimits, Event, Exchange, SocketFeed, Subscribed, SubscriptionRejected
from candled.ingest.connection import FeedConnection
from candled.ingest.distribution import distribute
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.feeds import FeedRunner
from candled.ingest.http import HttpClient
from candled.ingest.market import MarketIngest
from candled.ingest.market_loader import IngestOptions
from candled.model import MINUTE, MINUTE_MS, Candle, Market, MarketKey, Symbol
from tests import tiers
from tests.clocks import ManualClock
from tests.fakes.tapes import Synthetic, grown
from tests.ingest.virtual import Memory
from tests.rows import MONDAY_MS

SYMBOLS = [Symbol(f"S{number}", "USDT") for number in range(5)]
START_MS = MONDAY_MS + 3_600_000
LIMITS = ConnectionLimits(symbols_per_connection=2, connections=2, frames_per_s=100.0)


class Peer:
    """One connection as the exchange sees it."""

    def __init__(self) -> None:
        self.subscribed: dict[Symbol, None] = {}
        self.is_cut = False


class VirtualFeed(SocketFeed):
    """Frames are words about one symbol."""

    def __init__(self, exchange: "ManyMarkets", symbols: Any) -> None:
        super().__init__("ws://localhost", symbols)
        self._exchange = exchange

    def subscribe(self, symbols: Any) -> list[str]:
        return [f"+{symbol}" for symbol in symbols]

    def unsubscribe(self, symbols: Any) -> list[str]:
        return [f"-{symbol}" for symbol in symbols]

    def read_frame(self, frame: Any) -> list[Event]:
        word, _, text = frame.partition(" ")
        symbol = Symbol.parse(text)
        if word == "candle":
            return [Candles(symbol, self._exchange.newest(symbol))]
        return [Subscribed(symbol) if word == "yes" else SubscriptionRejected(symbol, "no such market")]


class ManyMarkets(Exchange):
    """An exchange with some markets, each a function of time, which may refuse subscriptions."""

    name = "virtual"
    limits = LIMITS
    max_history_minutes = 1000
    publishes_empty_candles = True
    opens_at_previous_close = True

    def __init__(self, clock: ManualClock) -> None:
        super().__init__({}, clock)
        self.peers: list[Peer] = []
        self.refused: set[Symbol] = set()
        self._tapes = {symbol: Synthetic(number) for number, symbol in enumerate(SYMBOLS)}

    def now_ms(self) -> int:
        return self.clock.now_ms()  # nothing has to be found out about it

    def version(self, symbol: Symbol, open_ms: int) -> Candle:
        now_ms = self.now_ms()
        row = grown(self._tapes[symbol].row(open_ms), now_ms - open_ms)
        return row.candle(open_ms, as_of_ms=now_ms)

    def newest(self, symbol: Symbol) -> tuple[Candle, ...]:
        newest_ms = MINUTE.floor(self.now_ms())
        return tuple(self.version(symbol, open_ms) for open_ms in (newest_ms - MINUTE_MS, newest_ms))

    async def fetch_markets(self, http: Any) -> list[Market]:
        return [Market(symbol=symbol, listed_ms=MONDAY_MS) for symbol in SYMBOLS]

    def make_feed(self, symbols: Any) -> VirtualFeed:
        return VirtualFeed(self, symbols)

    async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle]:
        opens = range(max(MONDAY_MS, start_ms), min(end_ms, self.now_ms()), MINUTE_MS)
        return [self.version(symbol, open_ms) for open_ms in opens]

    def answer(self, peer: Peer, frame: str) -> str | None:
        symbol = Symbol.parse(frame[1:])
        if frame[0] == "-":
            peer.subscribed.pop(symbol, None)
            return None
        if symbol in self.refused:
            return f"no {symbol}"
        peer.subscribed[symbol] = None
        return f"yes {symbol}"


async def run_without_socket(runner: FeedRunner) -> str:
    """Run a connection as `FeedRunner._run_socket` does, against a peer in memory."""
    feed, exchange, clock = runner.feed, runner.feed._exchange, runner._clock
    connection = runner._connection = FeedConnection(
        feed, feed.symbols, clock.monotonic(), runner._rejected, runner._limits
    )
    runner.is_connected = True
    runner._sink.on_connected(feed)
    peer = Peer()
    exchange.peers.append(peer)
    try:
        while not peer.is_cut:
            frames = [exchange.answer(peer, frame) for frame in connection.frames_to_send(clock.monotonic())]
            frames += [f"candle {symbol}" for symbol in peer.subscribed]
            for frame in filter(None, frames):
                for event in connection.on_frame(frame, clock.monotonic()):
                    runner._on_event(event)
            await clock.sleep(2.0)
        return "cut"
    finally:
        exchange.peers.remove(peer)


class ManyMemories(defaultdict[Symbol, Memory]):
    """A store of several markets."""

    def __init__(self) -> None:
        super().__init__(Memory)
        self.forming: dict[Symbol, Candle] = {}

    def enqueue_row(self, market: MarketKey, candle: Candle, *, changes: Any = None) -> bool:
        if not candle.final:
            self.forming[market.symbol] = candle
        return self[market.symbol].enqueue_row(market, candle, changes=changes)

    async def newest_minutes(self, exchange: str) -> dict[Symbol, int]:
        return {symbol: max(memory.rows) for symbol, memory in self.items() if memory.rows}

    async def flush(self) -> None: ...
    async def register_feed(self, markets: Any, epoch: str) -> None: ...

    async def unpublished(self, exchange: str) -> dict[Symbol, Any]:
        return {}

    def __getattr__(self, name: str) -> Any:
        async def call(market: MarketKey, *rest: Any) -> Any:
            return await getattr(self[market.symbol], name)(market, *rest)

        return call


class Site:
    """An ingest whose markets change."""

    def __init__(self) -> None:
        self.clock = ManualClock(START_MS)
        self.exchange = ManyMarkets(self.clock)
        self.store = ManyMemories()
        self.shown: dict[Symbol, Candle] = {}
        self.wanted: dict[Symbol, None] = {}
        bus = MemoryBus("one")
        bus.add_listener(self._on_message)
        options = IngestOptions(
            backfill_ms=0, grace_period_ms=6000, quiet_after_ms=60_000, checkpoint_ms=5000, confirm=True
        )  # fmt: skip
        http = HttpClient(self.clock, 1000.0)
        self.ingest = ExchangeIngest(
            "virtual", self.exchange, [], clock=self.clock, bus=bus, store=self.store, http=http, options=options
        )

    def _on_message(self, message: Any, _: Any) -> None:
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
            self.exchange.refused = set(argument)
        elif action == "cut":
            for peer in self.exchange.peers[:argument]:
                peer.is_cut = True
        else:
            await self.clock.advance(argument)

    def left_over(self) -> list[tuple[str, str, Any]]:
        """Return the traces of unwanted markets in the ingest's objects."""
        ingest, found = self.ingest, []
        parts = [ingest, ingest._publisher, ingest._repair, ingest._past, ingest._feeds, *ingest._feeds.runners]
        parts += [one._rejected for one in ingest._feeds.runners]
        parts += [one._connection for one in ingest._feeds.runners if one._connection is not None]
        for part in parts:
            for name, value in vars(part).items():
                if value is self.store:  # keeps the history of all
                    continue
                known = list(value) if isinstance(value, dict | set | frozenset | tuple | list | deque) else [value]
                for one in known:
                    is_closed = isinstance(one, MarketIngest) and ingest._markets.get(one.key.symbol) is not one
                    if is_closed or (isinstance(one, Symbol) and one not in self.wanted):
                        found.append((type(part).__name__, name, one))
        return found


symbols = st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=4, unique=True)
actions = st.one_of(
    st.tuples(st.just("add"), symbols),
    st.tuples(st.just("remove"), symbols),
    st.tuples(st.just("refuse"), st.lists(st.sampled_from(SYMBOLS), max_size=2)),
    st.tuples(st.just("cut"), st.integers(1, 2)),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 1.0, 40.0, 100.0])),
)


async def check_sequence(steps: list[tuple[str, Any]]) -> None:
    site = Site()
    starting = asyncio.ensure_future(site.ingest.start())
    for action, argument in steps:
        await site.do(action, argument)
    site.exchange.refused = set()
    await site.clock.advance(400.0)  # longer than the pauses after two rejections
    assert starting.done()
    described, wanted = site.ingest.describe()["symbols"], site.wanted
    assert list(described) == [str(symbol) for symbol in wanted]
    surplus = site.ingest._feeds.surplus
    assert len(surplus) == max(0, len(wanted) - 4)
    subscribed = [symbol for peer in site.exchange.peers for symbol in peer.subscribed]
    assert sorted(subscribed) == sorted(wanted.keys() - set(surplus))
    assert all(peer.subscribed for peer in site.exchange.peers)
    now_ms = site.clock.now_ms()
    for symbol in wanted:
        assert described[str(symbol)]["connected"] == (symbol not in surplus), symbol
        assert described[str(symbol)]["state"] == ("polling" if symbol in surplus else "live")
        whole = range(MONDAY_MS, MINUTE.floor(now_ms) - 2 * MINUTE_MS, MINUTE_MS)
        rows = site.store[symbol].rows
        assert [open_ms for open_ms in whole if open_ms not in rows] == []
        for open_ms in whole[-20:]:
            assert rows[open_ms].close == site.exchange.version(symbol, open_ms).close
        assert site.shown[symbol].open_ms >= MINUTE.floor(now_ms - 10_000)
    assert site.left_over() == []
    names = [task.get_name() for task in site.ingest._tasks._tasks]
    assert [name for name in names if "open_market" in name] == []
    await site.ingest.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@settings(max_examples=500 if tiers.LONG else 5, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(actions, max_size=12))
@example([("pass", 1.0), ("add", SYMBOLS), ("pass", 40.0), ("remove", SYMBOLS[:2]), ("pass", 1.0), ("add", SYMBOLS)])
@example([("add", SYMBOLS[:1]), ("pass", 40.0), ("remove", SYMBOLS[:1]), ("add", SYMBOLS[:1])])
def test_after_any_sequence_exactly_the_wanted_markets_are_read(steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedRunner, "_run_socket", run_without_socket)
        asyncio.run(check_sequence(steps))


async def test_the_forming_minute_of_a_removed_market_is_stored_and_its_history_continues(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    site = Site()
    starting = asyncio.ensure_future(site.ingest.start())
    await site.do("add", SYMBOLS[:2])
    await site.do("pass", 50.0)
    site.store.forming.clear()
    await site.do("remove", SYMBOLS[:1])
    assert list(site.store.forming) == SYMBOLS[:1]
    assert site.store.forming[SYMBOLS[0]].open_ms == MINUTE.floor(site.clock.now_ms())
    opened = site.ingest._feeds._opened
    await site.do("add", SYMBOLS[:1])
    await site.do("pass", 300.0)
    assert site.ingest.describe()["symbols"][str(SYMBOLS[0])]["state"] == "live"
    assert site.ingest._feeds._opened == opened  # on the connection of the other one, which stayed open
    await site.ingest.stop()
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
