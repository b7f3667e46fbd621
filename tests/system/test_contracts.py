"""A spot pair and its perpetual contract of one exchange, side by side: no dialect takes one for the other."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import websockets
from tornado.httpclient import AsyncHTTPClient

from candled.client import Client
from candled.model import MINUTE, MINUTE_MS, Symbol, parse_iso_ms
from tests import deadlines
from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.lazy import LazyModule
from tests.redis_servers import shared_redis
from tests.servers import Database, shared_postgres
from tests.system.rig import MONDAY_MORNING_MS, Rig

pytestmark = pytest.mark.usefixtures("daemon")

ccxt = LazyModule("ccxt.async_support")

PAIR, CONTRACT = Symbol.parse("BTC/USDT"), Symbol.parse("BTC/USDT:USDT")
SYMBOLS = [PAIR, CONTRACT]
NAMES = {PAIR: ("BITGET:BTCUSDT", "BTCUSDT"), CONTRACT: ("BITGET:BTCUSDT.P", "BTCUSDT_PERP")}
COUNT = 30


@asynccontextmanager
async def deployment(directory: Path, *, bus: dict[str, str] | None = None, **more: Any) -> AsyncIterator[Rig]:
    """A daemon that reads both from the fake Bitget, where both are `BTCUSDT`."""
    sections = {"klines": {"enabled": True}, "limits": {"api_requests": 0}, "bus": bus or {}}
    clock = ScaledClock(1.0, MONDAY_MORNING_MS)
    markets = [FakeMarket(symbol=symbol, tape=Synthetic(number)) for number, symbol in enumerate(SYMBOLS)]
    async with FakeBitget(clock, markets) as fake:
        rig = Rig(directory, fake, clock, SYMBOLS, sections=sections, **more)
        try:
            await rig.start()
            await rig.until(lambda: rig.all_are("state", "live") and rig.all_are("missingMinutes", 0), within_minutes=1)
            yield rig
        finally:
            await rig.stop()


def closes(rig: Rig, symbol: Symbol) -> dict[int, Decimal]:
    """The closes of the last minutes that are over, by their opening times."""
    end_ms = MINUTE.floor(rig.clock.now_ms()) - MINUTE_MS
    return {candle.open_ms: candle.close for candle in rig.fake.truth(symbol, end_ms - COUNT * MINUTE_MS, end_ms)}


async def fetch(rig: Rig, path: str) -> Any:
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{rig.daemon.port}{path}")
    return json.loads(answer.body, parse_float=Decimal)


def bars_by_time(bars: list[dict[str, Any]]) -> dict[int, Decimal]:
    return {parse_iso_ms(bar["time"]): Decimal(str(bar["close"])) for bar in bars}


async def over_rest(rig: Rig, symbol: Symbol, start_ms: int, end_ms: int) -> dict[int, Decimal]:
    asked = f"interval=1m&from={start_ms}&to={end_ms}&numbers=string"
    plain = await fetch(rig, f"/api/candles?symbol={symbol}&{asked}")
    encoded = await fetch(rig, f"/api/candles?symbol={quote(str(symbol), safe='')}&{asked}")
    assert (plain["symbol"], plain["bars"]) == (str(symbol), encoded["bars"])
    page = await fetch(rig, f"/api/candles?symbol={symbol}&interval=1m&limit=2&to={end_ms}")
    assert (await fetch(rig, f"/api/candles{page['next']}"))["symbol"] == str(symbol)
    return bars_by_time(plain["bars"])


async def over_udf(rig: Rig, symbol: Symbol, start_ms: int, end_ms: int) -> dict[int, Decimal]:
    ticker = NAMES[symbol][0]
    described = await fetch(rig, f"/udf/symbols?symbol={quote(ticker)}")
    assert (described["ticker"], described["description"]) == (ticker, str(symbol))
    assert (await fetch(rig, f"/udf/symbols?symbol={quote(str(symbol))}"))["ticker"] == ticker
    asked = f"resolution=1&from={start_ms // 1000}&to={end_ms // 1000}"
    columns = await fetch(rig, f"/udf/history?symbol={quote(ticker)}&{asked}")
    return dict(zip((at * 1000 for at in columns["t"]), map(Decimal, map(str, columns["c"])), strict=True))


async def over_klines(rig: Rig, symbol: Symbol, start_ms: int, end_ms: int) -> dict[int, Decimal]:
    name = NAMES[symbol][1]
    rows = await fetch(rig, f"/api/v3/klines?symbol={name}&interval=1m&startTime={start_ms}&endTime={end_ms - 1}")
    return {row[0]: Decimal(row[4]) for row in rows}


async def over_ccxt(rig: Rig, symbol: Symbol, start_ms: int, end_ms: int) -> dict[int, Decimal]:
    """Read with ccxt's Binance, by the symbol that candled has."""
    client = ccxt.binance({"options": {"fetchMarkets": {"types": ["spot"]}}, "enableRateLimit": False})
    for api in ("public", "fapiPublic"):
        client.urls["api"][api] = f"http://127.0.0.1:{rig.daemon.port}/api/v3"
    try:
        rows = await client.fetch_ohlcv(str(symbol), "1m", start_ms, COUNT)
        assert client.market(str(symbol))["id"] == NAMES[symbol][1]
    finally:
        await client.close()
    return {row[0]: Decimal(str(row[4])) for row in rows}


async def over_client(rig: Rig, symbol: Symbol, start_ms: int, end_ms: int) -> dict[int, Decimal]:
    async with Client(f"ws://127.0.0.1:{rig.daemon.port}/ws") as client:
        found = await client.history(str(symbol), "1m", start_ms, end_ms)
    return {int(bar.time.timestamp()) * 1000: bar.close for bar in found}


READERS = [over_rest, over_udf, over_klines, over_ccxt, over_client]


async def streamed(rig: Rig, symbol: Symbol) -> dict[str, Any]:
    """The first event of a kline stream."""
    stream = f"{NAMES[symbol][1].lower()}@kline_1m"
    async with websockets.connect(f"ws://127.0.0.1:{rig.daemon.port}/stream?streams={stream}") as ws:
        message = json.loads(await deadlines.wait_for(ws.recv(), 10))
    assert message["stream"] == stream
    return message["data"]


async def test_a_pair_and_its_contract_are_served_side_by_side(tmp_path):
    async with deployment(tmp_path) as rig:
        await check_dialects(rig)


@pytest.mark.usefixtures("postgres", "redis")
async def test_so_are_they_from_postgresql_over_redis(tmp_path):
    with Database(await asyncio.to_thread(shared_postgres)) as database:
        bus = {"url": await asyncio.to_thread(shared_redis), "prefix": f"{database.name}:"}
        async with deployment(tmp_path, store_url=database.url(), bus=bus) as rig:
            await check_dialects(rig)


async def check_dialects(rig: Rig) -> None:
    for symbol in SYMBOLS:
        rig.open_chart(symbol)
        rig.open_chart(symbol, "5m")
    assert await rig.check(within_minutes=1) > 700
    for symbol in SYMBOLS:
        expected = closes(rig, symbol)
        start_ms, end_ms = min(expected), max(expected) + MINUTE_MS
        assert len(expected) == COUNT
        for read in READERS:
            assert await read(rig, symbol, start_ms, end_ms) == expected, (read.__name__, str(symbol))
        event = await streamed(rig, symbol)
        assert (event["s"], event["k"]["s"]) == (NAMES[symbol][1], NAMES[symbol][1])
        forming = event["k"]["t"]
        assert Decimal(event["k"]["o"]) == rig.fake.truth(symbol, forming - MINUTE_MS, forming)[-1].close
    stats = await fetch(rig, "/health/ws-stats")
    rooms = {room["key"] for room in stats["broadcaster"]["rooms"]}
    assert {f"{symbol}:{interval}" for symbol in SYMBOLS for interval in ("1m", "5m")} <= rooms
    listed = (await fetch(rig, "/api/symbols"))["symbols"]
    assert [(one["symbol"], one["ticker"]) for one in listed] == [(str(one), NAMES[one][0]) for one in SYMBOLS]
