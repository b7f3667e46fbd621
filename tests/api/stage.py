"""The API over a real store in a file and bars that the tests push; the fixtures are for tests marked `gen_test`."""

import asyncio
from collections import ChainMap
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from tornado.web import Application

from candled.aggregate.live_bars import LiveBars
from candled.api.catalog import MarketCatalog
from candled.api.context import ApiContext
from candled.api.offered_markets import OfferedMarkets
from candled.api.pages import BarReader
from candled.api.routes import make_guard, make_routes, make_streams
from candled.bus import FeedMetadata, MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.config import Config
from candled.config.sections import LimitSettings, ServerSettings
from candled.exchange import Clock
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Candle, Decimals, Interval, Market, MarketKey, Symbol
from candled.on_demand import MarketsOnDemand, MemoryBook
from candled.protocol.requests import RequestCodec
from candled.rooms.encoded_bars import EncodedBarCache
from candled.rooms.hub import Hub
from candled.rooms.recipients import RecipientConnection
from candled.serve.client import ClientSession
from candled.serve.connection_limiter import ClientLimits
from candled.serve.pager import HistoryPages, SessionContext
from candled.serve.rate_limit import MemoryCounter, RateLimits
from candled.serve.server import Server
from candled.store.history import HistoryReader
from candled.store.sqlite.store import SqliteStore
from candled.store.threads import StoreThreads
from candled.transport.broadcaster import Broadcaster
from candled.universe import Universe
from candled.universe_choice import DemandRules
from tests import deadlines
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS, minute
from tests.serve.peers import answering, make_reports

BTC = MarketKey("replay", Symbol.parse("BTC/USDT"))
ETH = MarketKey("replay", Symbol.parse("ETH/USDT"))
FUTURE = MarketKey("bitget-futures", Symbol.parse("BTC/USDT"))
ANYWHERE = {"host": "127.0.0.1", "port": 0}
NO_LIMITS = LimitSettings(api_requests=0, udf_requests=0, klines_requests=0)


def following(path: str, page: Mapping[str, Any]) -> str | None:
    """The path of the page after this one."""
    return None if page["next"] is None else urljoin(path, page["next"])


class Stage:
    """Bars, a store and a server over them. pytest-tornado serves `server.application`, unless the server listens."""

    def __init__(self, bars: LiveBars, store: SqliteStore, pages: BarReader, clock: Clock) -> None:
        self.bars = bars
        self.store = store
        self.pages = pages
        self.clock = clock
        self.hub: Hub
        self.universe: Universe
        self.server: Server
        self.rate_limits: RateLimits
        self.demand: MarketsOnDemand
        self.bus = MemoryBus("one")
        self.bus.add_listener(bars)

    def push(self, candle: Candle, market: MarketKey = BTC, *, watermark_ms: int | None = None) -> None:
        """A minute from the market's feed, before which all are final, or before `settled_ms`."""
        if watermark_ms is None:
            watermark_ms = candle.open_ms + (MINUTE_MS if candle.final else 0)
        self.bus.publish(MinuteChanged(market, candle, FeedMetadata(watermark_ms)))


@asynccontextmanager
async def open_stage(
    directory: Path,
    minutes: int | Mapping[MarketKey, Iterable[Candle]] = 60,
    *,
    complete_from: int = MONDAY_MS,
    clock: Clock | None = None,
    now_ms: int = MONDAY_MS + 61 * MINUTE_MS,
    limits: LimitSettings = NO_LIMITS,
    server: ServerSettings | None = None,
    intervals: Sequence[Interval] = DEFAULT_INTERVALS,
    described: Mapping[MarketKey, Market] | None = None,
    on_demand: Mapping[str, DemandRules] | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """Open a store with `minutes` of each market, and a server over it.

    A number means so many final minutes of BTC. All are complete from `complete_from` on (UTC epoch ms). Without a
    clock, the time is `now_ms` until a test moves it.
    """
    known = described or {}
    if isinstance(minutes, int):
        minutes = {BTC: [minute(number, final=True) for number in range(minutes)]}
    store = SqliteStore(directory / "candled.db", intervals)
    store.open()
    for market, candles in minutes.items():
        store.write_minutes([(market, candle) for candle in candles])
        store.set_complete_from(market, complete_from)
    threads = StoreThreads(store)
    history = HistoryReader(store, threads)
    clock = clock or ManualClock(now_ms)
    bars = LiveBars(list(minutes), intervals, history, clock)
    await bars.start()
    symbols: dict[str, list[Symbol]] = {}
    for market in minutes:
        symbols.setdefault(market.exchange, []).append(market.symbol)
    universe = Universe(list(symbols))
    for exchange, served in symbols.items():
        universe.set_markets(exchange, served)
    codec = RequestCodec(symbols, intervals)
    loop = asyncio.get_running_loop()
    broadcaster = Broadcaster(loop.call_soon, loop.call_later, clock.monotonic)
    texts = EncodedBarCache()
    hub = Hub(codec, bars, clock, broadcaster, texts=texts)
    bars.add_listener(hub)
    pages = BarReader(bars, history, texts, clock)
    catalog = MarketCatalog(symbols, intervals)
    universe.add_listener(codec.on_markets_changed)

    def name_markets(change: object) -> None:
        codec.set_renamed(universe.renamed)
        catalog.set_markets({name: universe.symbols(name) for name in universe.exchanges}, universe.renamed)

    universe.add_listener(name_markets)
    universe.add_listener(hub.on_markets_changed)
    universe.add_listener(bars.on_markets_changed)
    demand = MarketsOnDemand(universe, clock, MemoryBook(clock), hub.has_members, on_demand or {})
    source = ApiContext(
        catalog=catalog,
        pages=pages,
        stored=history,
        clock=clock,
        decimals=lambda key: known[key].decimals if key in known else Decimals(),
        seen_decimals=bars.seen_decimals,
        facts=universe.facts,
        offered=OfferedMarkets(demand),
        is_simulated=lambda exchange: exchange == "replay",
    )
    server = server or ServerSettings()
    # any free port, unless the test names one
    anywhere = {name: value for name, value in ANYWHERE.items() if name not in server.model_fields_set}
    config = Config(limits=limits, server=server.model_copy(update=anywhere), **settings)

    client_limits = ClientLimits(config.server)
    rate_limits = RateLimits(config.limits, MemoryCounter(clock), clock)

    sessions = SessionContext(hub, bars, codec, clock, client_limits, HistoryPages(pages.read_history))

    def make_client(connection: RecipientConnection) -> ClientSession:
        return ClientSession(connection, sessions)

    async def count_clients() -> Mapping[str, Any]:
        broadcaster = {**hub.describe(), "rooms": list(hub.describe_rooms())}
        return {"broadcaster": broadcaster, "aggregator": bars.describe()}

    one = Stage(bars, store, pages, clock)
    one.hub = hub
    one.universe = universe
    one.demand = demand
    one.rate_limits = rate_limits
    one.server = Server(
        config.server,
        hub=hub,
        broadcaster=broadcaster,
        make_client=make_client,
        clock=clock,
        reports=make_reports(count_clients=count_clients),
        page=answering(b"<p>page</p>"),
        routes=make_routes(config, source, rate_limits),
        streams=make_streams(config, source, universe, bars, make_client, broadcaster.broadcast, client_limits),
        limits=config.limits,
        guard=make_guard(config, catalog, clock),
    )
    one.server.start()
    try:
        yield one
    finally:
        await deadlines.wait_for(one.server.stop(), 5)
        await bars.stop()
        await threads.close()


@pytest.fixture
def stage_options() -> dict[str, Any]:
    """Options of `open_stage` for every test of a module that defines this fixture."""
    return {}


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, enter: Callable[..., Stage], tmp_path: Path, stage_options: Mapping[str, Any]
) -> Stage:
    """Give a stage with the options of the test's markers, `@pytest.mark.stage(minutes=…, limits=…)`."""
    markers = [marker.kwargs for marker in request.node.iter_markers("stage")]  # the closest one is the first
    return enter(open_stage(tmp_path, **ChainMap(*markers, dict(stage_options))))


@pytest.fixture
def app(stage: Stage) -> Application:
    """Give pytest-tornado's `http_server` the handlers to serve."""
    return stage.server.application
