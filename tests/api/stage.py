"""The API on a real socket, over a real store in a file and bars that the tests push."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse

from candled.aggregate.live_bars import LiveBars
from candled.api.catalog import MarketCatalog
from candled.api.pages import BarReader
from candled.api.rest import ApiContext
from candled.api.routes import make_routes, make_streams
from candled.bus import FeedMetadata, MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.config import Config, LimitSettings, ServerSettings
from candled.exchange import Clock
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Candle, Decimals, Interval, Market, MarketKey, Symbol
from candled.protocol.requests import RequestCodec
from candled.rooms.encoded_bars import EncodedBarCache
from candled.rooms.hub import Hub
from candled.rooms.recipients import RecipientConnection
from candled.serve.client import ClientSession
from candled.serve.rate_limit import MemoryCounter
from candled.serve.server import Server
from candled.store.history import HistoryReader
from candled.store.sqlite.store import SqliteStore
from candled.store.threads import StoreThreads
from candled.transport.broadcaster import Broadcaster
from tests import deadlines
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS, minute
from tests.serve.peers import all_well

BTC = MarketKey("replay", Symbol.parse("BTC/USDT"))
ETH = MarketKey("replay", Symbol.parse("ETH/USDT"))
FUTURE = MarketKey("bitget-futures", Symbol.parse("BTC/USDT"))
NO_LIMITS = LimitSettings(api_requests=0, udf_requests=0, klines_requests=0)


def following(path: str, page: Mapping[str, Any]) -> str | None:
    """The path of the page after this one."""
    return None if page["next"] is None else urljoin(path, page["next"])


class Stage:
    """A server over one store; `get` is a client without a memory of its own."""

    def __init__(self, port: int, bars: LiveBars, store: SqliteStore, pages: BarReader, clock: Clock) -> None:
        self.port = port
        self.bars = bars
        self.store = store
        self.pages = pages
        self.clock = clock
        self.hub: Hub
        self.server: Server
        self._bus = MemoryBus("one")
        self._bus.add_listener(bars.on_message)

    def push(self, candle: Candle, market: MarketKey = BTC, *, settled_ms: int | None = None) -> None:
        """A minute from the market's feed, before which all are final, or before `settled_ms`."""
        if settled_ms is None:
            settled_ms = candle.open_ms + (MINUTE_MS if candle.final else 0)
        self._bus.publish(MinuteChanged(market, candle, FeedMetadata(settled_ms)))

    async def ask(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, **more: Any
    ) -> HTTPResponse:
        client = AsyncHTTPClient(force_instance=True)
        try:
            return await client.fetch(
                HTTPRequest(
                    f"http://127.0.0.1:{self.port}{path}",
                    method,
                    dict(headers or {}),
                    allow_nonstandard_methods=True,
                    **more,
                ),
                raise_error=False,
            )
        finally:
            client.close()

    async def get(self, path: str) -> Any:
        """The parsed JSON of an answer, numbers exact."""
        return json.loads((await self.ask(path)).body, parse_float=Decimal, parse_int=Decimal)


@asynccontextmanager
async def stage(
    directory: Path,
    minutes: Mapping[MarketKey, Iterable[Candle]] | None = None,
    *,
    complete_from: int = MONDAY_MS,
    clock: Clock | None = None,
    limits: LimitSettings = NO_LIMITS,
    server: ServerSettings | None = None,
    intervals: Sequence[Interval] = DEFAULT_INTERVALS,
    described: Mapping[MarketKey, Market] | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """A server whose store holds `minutes` of each market, complete from `complete_from` on (UTC epoch ms)."""
    known = described or {}
    stored = {BTC: [minute(number, final=True) for number in range(60)]} if minutes is None else minutes
    store = SqliteStore(directory / "candled.db", intervals)
    store.open()
    for market, candles in stored.items():
        store.write_minutes([(market, candle) for candle in candles])
        store.set_complete_from(market, complete_from)
    threads = StoreThreads(store)
    history = HistoryReader(store, threads)
    clock = clock or ManualClock(MONDAY_MS + 61 * MINUTE_MS)
    bars = LiveBars(list(stored), intervals, history, clock)
    await bars.start()
    symbols: dict[str, list[Symbol]] = {}
    for market in stored:
        symbols.setdefault(market.exchange, []).append(market.symbol)
    codec = RequestCodec(symbols, intervals)
    publisher = Broadcaster(asyncio.get_running_loop().call_soon, clock)
    texts = EncodedBarCache()
    hub = Hub(codec, bars, clock, publisher.broadcast, texts=texts)
    bars.add_listener(hub)
    pages = BarReader(bars, history, texts, clock)
    source = ApiContext(
        directory=MarketCatalog(symbols, intervals),
        pages=pages,
        stored=history,
        clock=clock,
        decimals=lambda key: known[key].decimals if key in known else Decimals(),
        seen_decimals=bars.seen_decimals,
    )
    config = replace(Config(), limits=limits, server=server or ServerSettings(host="127.0.0.1", port=0), **settings)

    def make_client(link: RecipientConnection) -> ClientSession:
        return ClientSession(link, hub, bars, codec, clock, config.server, pages.read_history)

    running = Server(
        config.server,
        hub=hub,
        publisher=publisher,
        make_client=make_client,
        clock=clock,
        health=dict,
        ready=all_well,
        statistics=dict,
        page=str,
        routes=make_routes(config, source, MemoryCounter(clock), clock),
        streams=make_streams(config, source, bars, make_client, publisher.broadcast, clock),
    )
    try:
        one = Stage(running.listen(), bars, store, pages, clock)
        one.hub, one.server = hub, running
        yield one
    finally:
        await deadlines.wait_for(running.stop(), 5)
        await bars.stop()
        await threads.close()
