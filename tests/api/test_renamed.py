"""Requests with the former symbol of a market that the exchange has renamed, in every dialect."""

import json
from urllib.parse import quote

import pytest

from candled.api.catalog import BinanceMarkets, MarketCatalog
from candled.api.scopes import Scopes
from candled.clock import SystemClock
from candled.config.sections import KlinesSettings
from candled.model import DEFAULT_INTERVALS, MINUTE, Market, MarketKey, Symbol
from tests import deadlines
from tests.api.stage import BTC, ETH
from tests.clocks import ScaledClock
from tests.rows import minute

SOL = MarketKey("replay", Symbol("SOL", "USDT"))
MINUTES = {BTC: [minute(0, final=True)], ETH: [minute(0, final=True)]}

pytestmark = pytest.mark.stage(clock=SystemClock(), klines=KlinesSettings(enabled=True), minutes=MINUTES)


async def rename(stage):
    """Serve SOL, which was ETH, with one bar that closes at 12."""
    stage.store.write_minutes([(SOL, minute(0, close="12", final=True))])
    stage.universe.set_markets("replay", [BTC.symbol, SOL.symbol], {SOL.symbol: renamed(SOL, ETH)})
    while not stage.bars.is_loaded(SOL, MINUTE, 1):
        await stage.clock.sleep(0.01)


def renamed(market: MarketKey, former: MarketKey) -> Market:
    return Market(symbol=market.symbol, former=former.symbol)


async def receive_json(ws):
    return json.loads(await deadlines.wait_for(ws.recv(), 5))


@pytest.mark.gen_test
async def test_http_requests_are_answered_with_the_bars_of_the_new_symbol(stage, http_client, base_url):
    async def read(path: str):
        return json.loads((await http_client.fetch(base_url + path)).body)

    await rename(stage)
    page = await read(f"/api/candles?symbol={quote(str(ETH.symbol))}&interval=1m")
    assert (page["symbol"], [bar["close"] for bar in page["bars"]]) == ("SOL/USDT", [12])
    assert (await read("/api/coverage?symbol=ETH/USDT"))["symbol"] == "SOL/USDT"
    for name in ("REPLAY:ETHUSDT", "ethusdt", "ETH/USDT"):
        assert (await read(f"/udf/symbols?symbol={name}"))["ticker"] == "REPLAY:SOLUSDT"
    past = "/udf/history?symbol=REPLAY:ETHUSDT&resolution=1&from=0&to=9999999999"
    assert (await read(past))["c"] == [12]
    assert [bar[4] for bar in await read("/api/v3/klines?symbol=ETHUSDT&interval=1m")] == ["12"]
    assert [one["symbol"] for one in (await read("/api/v3/exchangeInfo?symbol=ETHUSDT"))["symbols"]] == ["ETHUSDT"]
    assert [(one["symbol"], one["former"]) for one in (await read("/api/symbols"))["symbols"]] == [
        ("BTC/USDT", None),
        ("SOL/USDT", "ETH/USDT"),
    ]
    assert [one["symbol"] for one in (await read("/api/v3/exchangeInfo"))["symbols"]] == ["BTCUSDT", "SOLUSDT"]


@pytest.mark.gen_test
async def test_subscriptions_end_and_new_ones_are_refused_with_the_new_symbol(stage, connect, http_client, base_url):
    subscribe = json.dumps({"type": "subscribe", "symbol": "ETH/USDT", "interval": "1m"})
    async with connect("/ws") as ws:
        await ws.send(subscribe)
        assert (await receive_json(ws))["type"] == "initial"
        await rename(stage)
        ended = "Market removed: ETH/USDT is not served any more; the exchange has renamed it to SOL/USDT"
        assert (await receive_json(ws))["message"] == ended
        await ws.send(subscribe)
        refused = "Invalid symbol: ETH/USDT. The exchange has renamed it to SOL/USDT."
        assert (await receive_json(ws))["message"] == refused
    events = await http_client.fetch(f"{base_url}/events?symbol=ETH/USDT&interval=1m", raise_error=False)
    assert refused in events.body.decode()


@pytest.mark.stage(clock=ScaledClock(100.0))  # a stream of a running minute has a frame every two seconds
@pytest.mark.gen_test
async def test_a_kline_stream_goes_on_under_its_former_name(stage, connect):
    await rename(stage)
    async with connect("/ws/ethusdt@kline_1m") as ws, connect("/ws/solusdt@kline_1m") as new:
        event = await receive_json(ws)
        assert (event["s"], event["k"]["s"], event["k"]["c"]) == ("ETHUSDT", "ETHUSDT", "12")
        assert (await receive_json(new))["s"] == "SOLUSDT"
        stage.push(minute(1, close="13"), SOL)
        assert [(await receive_json(one))["k"]["c"] for one in (ws, new)] == ["13", "13"]


def test_a_market_that_takes_the_former_symbol_gets_it_and_another_exchange_is_not_concerned():
    catalog = MarketCatalog({"replay": [BTC.symbol]}, DEFAULT_INTERVALS)
    binance = BinanceMarkets(catalog, "replay")
    other = MarketKey("okx", ETH.symbol)
    markets = {"replay": [BTC.symbol, SOL.symbol], "okx": [ETH.symbol]}
    catalog.set_markets(markets, {ETH: SOL})
    assert catalog.find_market("replay", "ETH/USDT") == SOL
    assert catalog.find_market("okx", "ETH/USDT") == other
    assert (binance.find_market("ETHUSDT"), binance.find_stream("ethusdt")) == (SOL, (SOL, "ETHUSDT"))
    assert [binance.find_stream(name) for name in ("ETHUSDT", "nousdt")] == [None, None]
    catalog.set_markets({"replay": [BTC.symbol, SOL.symbol, ETH.symbol], "okx": [ETH.symbol]})
    assert catalog.find_market("replay", "ETH/USDT") == catalog.by_ticker("REPLAY:ETHUSDT") == ETH
    assert binance.find_market("ETHUSDT") == ETH


def test_a_token_must_allow_the_new_symbol():
    catalog = MarketCatalog({"replay": [BTC.symbol]}, DEFAULT_INTERVALS)
    catalog.set_markets({"replay": [SOL.symbol], "okx": [ETH.symbol]}, {ETH: SOL})
    scopes = Scopes(catalog, (catalog.binance_markets("replay"), ""))

    def asked(path: str, name: str) -> set[Symbol]:
        found = scopes.find_asked(path, {"symbol": [name.encode()]})
        assert found is not None
        return set(found.symbols)

    assert asked("/api/candles", "ETH/USDT") == {SOL.symbol, ETH.symbol}  # the other exchange still has that symbol
    assert asked("/udf/history", "REPLAY:ETHUSDT") == {SOL.symbol}
    assert asked("/api/v3/klines", "ETHUSDT") == {SOL.symbol}
