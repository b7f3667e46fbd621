"""Markets that come and go while clients are connected: every dialect lists exactly the universe."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.api.catalog import BinanceMarkets, MarketCatalog
from candled.clock import SystemClock
from candled.config.sections import KlinesSettings
from candled.errors import ClientError
from candled.model import DEFAULT_INTERVALS, MINUTE, Market, MarketKey, Symbol
from candled.protocol.requests import RequestCodec
from candled.universe import Universe
from tests import deadlines
from tests.api.stage import BTC, ETH
from tests.rows import minute

SOL = MarketKey("replay", Symbol("SOL", "USDT"))

some = st.lists(
    st.sampled_from(
        [
            *(Symbol(base, "USDT") for base in "ABC"),
            Symbol("AB", "USDT"),
            Symbol("A", "BUSDT"),
            Symbol("A", "USDT", "USDT"),
            Symbol("a", "USDT"),
        ]
    ),
    unique=True,
)


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(["bitget", "okx"]), some), min_size=1, max_size=6))
def test_every_dialect_lists_exactly_the_universe_after_any_changes(steps):
    universe = Universe(["bitget", "okx"])
    codec = RequestCodec({"bitget": (), "okx": ()}, DEFAULT_INTERVALS)
    catalog = MarketCatalog({"bitget": (), "okx": ()}, DEFAULT_INTERVALS)
    binance = BinanceMarkets(catalog, "okx")
    universe.add_listener(codec.on_markets_changed)
    universe.add_listener(
        lambda change: catalog.set_markets({name: universe.symbols(name) for name in universe.exchanges})
    )
    known = {MarketKey(exchange, symbol) for exchange, chosen in steps for symbol in chosen}
    owners: dict[str, MarketKey] = {}
    for exchange, chosen in steps:
        if not universe.set_markets(exchange, chosen):
            continue  # another order of the same markets is no change
        assert set(catalog.markets) == set(universe.markets)
        assert len({catalog.ticker_of(key) for key in universe.markets}) == len(universe.markets)
        assert {catalog.by_ticker(catalog.ticker_of(key)) for key in universe.markets} == set(universe.markets)
        assert {key for key, _ in catalog.spellings} == set(universe.markets)
        assert set(binance.markets.values()) == {key for key in universe.markets if key.exchange == "okx"}
        assert set(binance.stream_names.values()) == set(binance.markets)
        # a name that a client may use never comes to mean another market
        names = [*((catalog.ticker_of(key), key) for key in universe.markets), *binance.markets.items()]
        assert [name for name, key in names if owners.setdefault(name, key) != key] == []
        for key in known:
            fields = {"symbol": str(key.symbol), "interval": "1m", "exchange": key.exchange}
            if key in universe:
                assert codec.read_subscription(fields).topic.market == key
                assert catalog.find_market(key.exchange, str(key.symbol)) == key
            else:
                with pytest.raises(ClientError, match="Invalid symbol"):
                    codec.read_subscription(fields)


def test_no_market_takes_over_the_short_name_of_one_that_is_removed():
    first, second = (MarketKey("okx", symbol) for symbol in (Symbol("AB", "USDT"), Symbol("A", "BUSDT")))
    catalog = MarketCatalog({"okx": [first.symbol, second.symbol]}, DEFAULT_INTERVALS)
    binance = BinanceMarkets(catalog, "okx")
    assert (catalog.by_ticker("OKX:ABUSDT"), catalog.by_ticker("abusdt")) == (first, first)
    assert binance.markets == {"ABUSDT": first, "A-BUSDT": second}
    catalog.set_markets({"okx": [second.symbol]})
    assert (catalog.by_ticker("OKX:ABUSDT"), catalog.by_ticker("abusdt")) == (None, None)
    assert catalog.by_ticker(catalog.ticker_of(second)) == second
    assert binance.markets == {"A-BUSDT": second}
    catalog.set_markets({"okx": [second.symbol, first.symbol]})
    assert catalog.by_ticker("abusdt") == first
    assert binance.markets == {"A-BUSDT": second, "ABUSDT": first}


# ---------------------------------------------------------------- connected clients

ON = KlinesSettings(enabled=True)
pytestmark = pytest.mark.stage(
    clock=SystemClock(), klines=ON, minutes={BTC: [minute(0, final=True)], ETH: [minute(0, final=True)]}
)


async def receive_json(ws, *, within_s: float = 3.0):
    return json.loads(await deadlines.wait_for(ws.recv(), within_s))


async def send_json(ws, **message):
    await ws.send(json.dumps(message))


@pytest.mark.gen_test
async def test_a_removed_market_ends_its_subscriptions_and_no_connection(stage, connect):
    async with connect("/ws") as ws, connect("/ws/ethusdt@kline_1m") as binance:
        await send_json(ws, type="subscribe", symbol="ETH/USDT", interval="1m", id=5)
        assert [(await receive_json(ws))["type"] for _ in range(2)] == ["subscribed", "initial"]
        await send_json(ws, type="subscribe", symbol="BTC/USDT", interval="1m")
        assert (await receive_json(ws))["type"] == "initial"
        assert (await receive_json(binance))["s"] == "ETHUSDT"
        stage.universe.set_markets("replay", [BTC.symbol])
        assert await receive_json(ws) == {
            "type": "error",
            "message": "Market removed: ETH/USDT is not served any more",
            "id": 5,
            "code": 102,
            "temporary": False,
        }
        assert (await receive_json(binance))["error"]["msg"] == "Stream ended: ETHUSDT is not served any more"
        await send_json(ws, type="list")
        assert (await receive_json(ws))["subscriptions"] == [{"symbol": "BTC/USDT", "interval": "1m"}]
        await send_json(ws, type="subscribe", symbol="ETH/USDT", interval="1m")
        assert (await receive_json(ws))["message"] == "Invalid symbol: ETH/USDT. Only BTC/USDT is supported."
        await send_json(binance, method="SUBSCRIBE", params=["ethusdt@kline_1m"], id=1)
        assert (await receive_json(binance))["error"]["msg"] == "Invalid request: unknown stream ethusdt@kline_1m"
        stage.push(minute(1))
        assert (await receive_json(ws))["type"] == "update"
        await send_json(binance, method="SUBSCRIBE", params=["btcusdt@kline_1m"], id=2)
        assert await receive_json(binance) == {"result": None, "id": 2}
        assert (await receive_json(binance))["s"] == "BTCUSDT"


@pytest.mark.gen_test
async def test_a_market_that_returns_is_loaded_again_without_old_bars(stage, connect):
    async with connect("/ws") as ws, connect("/ws/ethusdt@kline_1m") as binance:
        assert (await receive_json(binance))["k"]["c"] == "10"
        stage.universe.set_markets("replay", [BTC.symbol])
        assert "error" in await receive_json(binance)
        stage.store.write_minutes([(ETH, minute(0, close="12", final=True)._replace(rev=1))])
        stage.universe.set_markets("replay", [BTC.symbol, ETH.symbol, SOL.symbol])
        while not stage.bars.is_loaded(ETH, MINUTE, 1):
            await stage.clock.sleep(0.01)
        await send_json(ws, type="subscribe", symbol="ETH/USDT", interval="1m")
        assert (await receive_json(ws))["bars"][-1]["close"] == 12
        assert stage.bars.newest_bars(SOL, MINUTE, 1) == []
        await send_json(binance, method="SUBSCRIBE", params=["ethusdt@kline_1m"], id=1)
        assert await receive_json(binance) == {"result": None, "id": 1}
        assert (await receive_json(binance))["k"]["c"] == "12"


@pytest.mark.slow
@pytest.mark.gen_test
async def test_lists_over_http_follow_immediately_and_show_facts(stage, http_client, base_url):
    async def read(path: str):
        return json.loads((await http_client.fetch(base_url + path)).body)

    async def lists():
        rest = [f"{one['exchange']}:{one['symbol']}" for one in (await read("/api/symbols"))["symbols"]]
        udf = [one["symbol"] for one in await read("/udf/search?query=&type=&exchange=&limit=30")]
        binance = [one["symbol"] for one in (await read("/api/v3/exchangeInfo"))["symbols"]]
        schema = json.dumps(await read("/api/openapi.json"))
        assert ("SOL/USDT" in schema) == ("replay:SOL/USDT" in rest)
        return rest, udf, binance

    both = ["replay:BTC/USDT", "replay:ETH/USDT"]
    assert await lists() == (both, ["BTCUSDT", "ETHUSDT"], ["BTCUSDT", "ETHUSDT"])
    listed = Market(symbol=SOL.symbol, status="suspended", listed_ms=0, tick_size=minute(0).open)
    stage.universe.set_markets("replay", [SOL.symbol], {SOL.symbol: listed})
    assert await lists() == (["replay:SOL/USDT"], ["SOLUSDT"], ["SOLUSDT"])
    answer = await http_client.fetch(f"{base_url}/api/symbols")
    shown = json.loads(answer.body)["symbols"][0]
    assert (shown["status"], shown["tickSize"]) == ("suspended", "10")
    assert (shown["listed"], shown["quoteVolume24h"]) == ("1970-01-01T00:00:00.000Z", None)
    headers = {"If-None-Match": answer.headers["ETag"]}
    again = await http_client.fetch(f"{base_url}/api/symbols", headers=headers, raise_error=False)
    assert again.code == 304
    missing = await http_client.fetch(f"{base_url}/api/candles?symbol=BTC/USDT&interval=1m", raise_error=False)
    assert missing.code == 404


def test_a_market_that_left_keeps_its_names_even_without_a_request_for_them():
    first, second = Symbol("AB", "USDT"), Symbol("A", "BUSDT")
    catalog = MarketCatalog({"okx": ()}, DEFAULT_INTERVALS)
    for markets in ([first], [], [second]):
        catalog.set_markets({"okx": markets})
    assert catalog.by_ticker("OKX:ABUSDT") is None
    assert catalog.ticker_of(MarketKey("okx", second)) == "OKX:A/BUSDT"
