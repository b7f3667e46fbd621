"""An exchange with several markets in virtual time, and a store of them."""

from collections import Counter, defaultdict, deque
from collections.abc import Collection
from typing import Any

from candled.exchange import Candles, ConnectionLimits, Event, Exchange, SocketFeed, Subscribed, SubscriptionRejected
from candled.ingest.connection import FeedConnection
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.feeds import FeedRunner
from candled.ingest.market import MarketIngest
from candled.model import MINUTE, MINUTE_MS, Candle, Market, MarketKey, Symbol
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
        self.snapshot = exchange.world.snapshot_minutes > 0

    def subscribe(self, symbols: Any) -> list[str]:
        return [f"+{symbol}" for symbol in symbols]

    def unsubscribe(self, symbols: Any) -> list[str]:
        return [f"-{symbol}" for symbol in symbols]

    def read_frame(self, frame: Any) -> list[Event]:
        word, _, text = frame.partition(" ")
        symbol = Symbol.parse(text)
        if word == "candle":
            return [Candles(symbol, self._exchange.newest(symbol))]
        if word == "snapshot":
            count = self._exchange.world.snapshot_minutes
            return [Candles(symbol, self._exchange.newest(symbol, count), snapshot=True)]
        return [Subscribed(symbol) if word == "yes" else SubscriptionRejected(symbol, "no such market")]


class World:
    """The exchange's side: the markets that it lists, and its connections."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.refused: set[Symbol] = set()
        #: Markets that are not traded: neither the stream nor REST has candles of them.
        self.stopped: set[Symbol] = set()
        #: True if a market that is not listed is not traded, and subscriptions to it are refused.
        self.is_strict = False
        #: Where the history of some markets begins, UTC epoch milliseconds; by default at `MONDAY_MS`.
        self.begins_ms: dict[Symbol, int] = {}
        #: The minutes that are sent after a subscription.
        self.snapshot_minutes = 0
        #: How often each market was subscribed to.
        self.subscriptions: Counter[Symbol] = Counter()
        #: How often the history of each market was requested.
        self.history_reads: Counter[Symbol] = Counter()
        self.listed = {symbol: Market(symbol=symbol, listed_ms=MONDAY_MS) for symbol in SYMBOLS}
        #: Set while the list cannot be read.
        self.problem: Exception | None = None
        #: How often the list was read.
        self.list_reads = 0
        self.tapes = {symbol: Synthetic(number) for number, symbol in enumerate(SYMBOLS)}

    def list_markets(self, symbols: Collection[Symbol]) -> None:
        self.listed = {symbol: Market(symbol=symbol, listed_ms=MONDAY_MS) for symbol in symbols}
        if self.is_strict:
            self.stopped = set(SYMBOLS).difference(symbols)

    def subscribed(self) -> list[Symbol]:
        return sorted(symbol for peer in self.peers for symbol in peer.subscribed)


class ManyMarkets(Exchange):
    """An exchange with some markets, each a function of time, which may refuse subscriptions."""

    name = "virtual"
    limits = LIMITS
    max_history_minutes = 1000
    publishes_empty_candles = True
    opens_at_previous_close = True

    requests_per_s = 1000.0

    def __init__(self, world: World, clock: ManualClock) -> None:
        super().__init__(world, clock)
        self.world = world

    def now_ms(self) -> int:
        return self.clock.now_ms()  # nothing has to be found out about it

    def version(self, symbol: Symbol, open_ms: int) -> Candle:
        now_ms = self.now_ms()
        row = grown(self.world.tapes[symbol].row(open_ms), now_ms - open_ms)
        return row.candle(open_ms, as_of_ms=now_ms)

    def newest(self, symbol: Symbol, count: int = 2) -> tuple[Candle, ...]:
        newest_ms = MINUTE.floor(self.now_ms())
        opens = range(newest_ms - (count - 1) * MINUTE_MS, newest_ms + 1, MINUTE_MS)
        return tuple(self.version(symbol, open_ms) for open_ms in opens)

    async def fetch_markets(self, http: Any) -> list[Market]:
        self.world.list_reads += 1
        if self.world.problem is not None:
            raise self.world.problem
        return list(self.world.listed.values())

    def make_feed(self, symbols: Any) -> VirtualFeed:
        return VirtualFeed(self, symbols)

    async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle]:
        self.world.history_reads[symbol] += 1
        if symbol in self.world.stopped:
            return []
        begins_ms = self.world.begins_ms.get(symbol, MONDAY_MS)
        opens = range(max(begins_ms, start_ms), min(end_ms, self.now_ms()), MINUTE_MS)
        return [self.version(symbol, open_ms) for open_ms in opens]

    def answer(self, peer: Peer, frame: str) -> str | None:
        symbol = Symbol.parse(frame[1:])
        if frame[0] == "-":
            peer.subscribed.pop(symbol, None)
            return None
        if symbol in self.world.refused or (self.world.is_strict and symbol not in self.world.listed):
            return f"no {symbol}"
        peer.subscribed[symbol] = None
        self.world.subscriptions[symbol] += 1
        return f"{'snapshot' if self.world.snapshot_minutes else 'yes'} {symbol}"


async def run_without_socket(runner: FeedRunner) -> str:
    """Run a connection as `FeedRunner._run_socket` does, against a peer in memory."""
    feed, exchange, clock = runner.feed, runner.feed._exchange, runner._clock
    connection = runner._connection = FeedConnection(
        feed, feed.symbols, clock.monotonic(), runner._rejected, runner._limits
    )
    runner.is_connected = True
    runner._sink.on_connected(feed)
    peer = Peer()
    exchange.world.peers.append(peer)
    try:
        while not peer.is_cut:
            frames = [exchange.answer(peer, frame) for frame in connection.frames_to_send(clock.monotonic())]
            frames += [f"candle {symbol}" for symbol in peer.subscribed if symbol not in exchange.world.stopped]
            for frame in filter(None, frames):
                for event in connection.on_frame(frame, clock.monotonic()):
                    runner._on_event(event)
            await clock.sleep(2.0)
        return "cut"
    finally:
        exchange.world.peers.remove(peer)


class ManyMemories(defaultdict[Symbol, Memory]):
    """A store of several markets."""

    is_behind = False

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
    async def flush_market(self, market: Any) -> None: ...
    async def register_feed(self, markets: Any, epoch: str) -> None: ...

    async def kept_from(self) -> int:
        return 0

    async def unpublished(self, exchange: str) -> dict[Symbol, Any]:
        return {}

    def __getattr__(self, name: str) -> Any:
        async def call(market: MarketKey, *rest: Any) -> Any:
            return await getattr(self[market.symbol], name)(market, *rest)

        return call


def left_over(ingest: ExchangeIngest, wanted: Collection[Symbol]) -> list[tuple[str, str, Any]]:
    """Return the traces of unwanted markets in an ingest's objects."""
    found = []
    parts: list[Any] = [ingest, ingest._publisher, ingest._repair, ingest._past, ingest._feeds, *ingest._feeds.runners]
    parts += [ingest._short]
    parts += [one._rejected for one in ingest._feeds.runners]
    parts += [one._connection for one in ingest._feeds.runners if one._connection is not None]
    for part in parts:
        for name, value in vars(part).items():
            if value is ingest._store:  # keeps the history of all
                continue
            known = list(value) if isinstance(value, dict | set | frozenset | tuple | list | deque) else [value]
            for one in known:
                is_closed = isinstance(one, MarketIngest) and ingest._markets.get(one.key.symbol) is not one
                if is_closed or (isinstance(one, Symbol) and one not in wanted):
                    found.append((type(part).__name__, name, one))
    return found
