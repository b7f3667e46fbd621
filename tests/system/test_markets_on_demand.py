"""Markets on demand of a whole daemon: a client's request starts them, and they end when no client uses them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from candled.access.token_file import Entry, digest_of, make_token, write_entries
from candled.model import Symbol
from tests import deadlines
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.passes import run_through
from tests.system.rig import MONDAY_MORNING_MS, Rig

pytestmark = pytest.mark.usefixtures("daemon")

BTC, ETH, SOL, XRP = (Symbol(base, "USDT") for base in ("BTC", "ETH", "SOL", "XRP"))
UP = Symbol("BTCUP", "USDT")


@asynccontextmanager
async def deployment(
    directory: Path,
    speed: float = 1.0,
    more: dict[str, Any] | None = None,
    symbols: Sequence[str] = ("BTC/USDT", "!*UP/USDT"),
    **rules: Any,
) -> AsyncIterator[Rig]:
    clock = FairScaledClock(speed, MONDAY_MORNING_MS)
    listed = [BTC, ETH, SOL, XRP, UP]
    markets = [FakeMarket(symbol=symbol, tape=Synthetic(number)) for number, symbol in enumerate(listed)]
    async with FakeBitget(clock, markets) as fake:
        fake.enforce_limits = False
        bitget = {"symbols": list(symbols), "markets": ["spot"], "on_demand": {"most": 3, **rules}}
        sections = {"klines": {"enabled": True}, "limits": {"api_requests": 0}, **(more or {})}
        rig = Rig(directory, fake, clock, [BTC], bitget=bitget, sections=sections)
        try:
            await rig.start()
            await rig.until(lambda: rig.all_are("state", "live"), within_minutes=speed)
            yield rig
        finally:
            await rig.stop()


def is_live(rig: Rig, symbol: Symbol) -> bool:
    """Return whether a market is live, which ingest may not know yet."""
    facts = run_through(rig.daemon.health.report())["exchanges"]["bitget"]["symbols"].get(str(symbol))
    return facts is not None and facts["state"] == "live"


def running(rig: Rig) -> set[Symbol]:
    return set(rig.daemon.universe.symbols("bitget"))


async def answers(rig: Rig, *requests: dict[str, Any], count: int = 1) -> list[dict[str, Any]]:
    """The first `count` answers to requests that are sent together."""
    async with websockets.connect(f"ws://127.0.0.1:{rig.daemon.port}/ws", max_size=None) as ws:
        for request in requests:
            await ws.send(json.dumps(request))
        return [json.loads(await deadlines.wait_for(ws.recv(), 20)) for _ in range(count)]


async def fetch(rig: Rig, path: str) -> Any:
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{rig.daemon.port}{path}")
    return json.loads(answer.body)


async def refused(rig: Rig, path: str) -> tuple[int, Any]:
    with pytest.raises(HTTPClientError) as error:
        await fetch(rig, path)
    assert error.value.response is not None
    return error.value.code, json.loads(error.value.response.body)


def subscribe(symbol: Symbol, **more: Any) -> dict[str, Any]:
    return {"type": "subscribe", "symbol": str(symbol), "interval": "1m", **more}


async def test_a_subscription_starts_a_listed_market_and_gets_its_first_screen(tmp_path):
    async with deployment(tmp_path) as rig:
        (first,) = await answers(rig, subscribe(ETH, initialBars=100))
        assert (first["type"], first["symbol"], len(first["bars"])) == ("initial", "ETH/USDT", 100)
        assert running(rig) == {BTC, ETH}
        started = rig.open_chart(ETH)
        await rig.until(lambda: started.bars and rig.health(ETH)["state"] == "live", within_minutes=1)
        for symbol, message in (("NO/USDT", "NO/USDT"), ("BTCUP/USDT", "BTCUP/USDT"), ("x", "x")):
            (error,) = await answers(rig, {"type": "subscribe", "symbol": symbol, "interval": "1m"})
            assert error == {"type": "error", "message": f"Invalid symbol: {message}. Valid: BTC/USDT, ETH/USDT"}
        events = await AsyncHTTPClient().fetch(
            f"http://127.0.0.1:{rig.daemon.port}/events?symbol=SOL/USDT&interval=1m", method="HEAD"
        )
        assert events.code == 200
        assert running(rig) == {BTC, ETH, SOL}


async def test_the_first_screen_comes_in_time_from_a_slow_exchange_whose_history_is_being_read(tmp_path):
    more = {"ingest": {"backfill": "4d"}}
    async with deployment(tmp_path, more=more, symbols=["BTC/USDT", "/^(SOL|XRP)/"]) as rig:
        rig.fake.rest_delay_s = 0.1
        begun = deadlines.now()
        (first,) = await answers(rig, subscribe(ETH, initialBars=100))
        took_s = deadlines.now() - begun
        assert (first["symbol"], len(first["bars"])) == ("ETH/USDT", 100)
        assert took_s < 1.5
        waiting = [rig.health(symbol)["missingMinutes"] for symbol in (BTC, SOL, XRP)]
        assert min(waiting) > 1440  # most of their history comes later, because clients wait for no more of it


async def test_http_requests_start_markets_in_every_dialect(tmp_path):
    async with deployment(tmp_path) as rig:
        assert await refused(rig, "/api/candles?symbol=NO/USDT&interval=1m&limit=100") == (
            404,
            {"error": {"code": "unknown_symbol", "message": "Invalid symbol: NO/USDT. Only BTC/USDT is supported."}},
        )
        rows = await fetch(rig, "/api/v3/klines?symbol=SOLUSDT&interval=1m&limit=100")
        assert len(rows) == 100
        bars = await fetch(rig, "/udf/history?symbol=BITGET:XRPUSDT&resolution=1&from=0&to=1759730400&countback=50")
        assert (bars["s"], len(bars["t"])) == ("ok", 50)
        candles = await fetch(rig, "/api/candles?symbol=ETH/USDT&interval=1m&limit=100")
        assert len(candles["bars"]) == 100
        assert running(rig) == {BTC, ETH, SOL, XRP}


async def test_charts_find_listed_markets_and_start_them_by_quotes_and_by_their_description(tmp_path):
    async with deployment(tmp_path) as rig:
        found = await fetch(rig, "/udf/search?query=eth&limit=5")
        assert [one["ticker"] for one in found] == ["BITGET:ETHUSDT"]
        assert {one["ticker"] for one in await fetch(rig, "/udf/search?query=usdt")} == {
            f"BITGET:{name}USDT" for name in ("BTC", "ETH", "SOL", "XRP")
        }
        assert running(rig) == {BTC}
        assert (await fetch(rig, "/udf/symbols?symbol=BITGET:ETHUSDT"))["ticker"] == "BITGET:ETHUSDT"
        rig.fake.rest_delay_s = 0.3  # the newest minutes are there before those of the day
        quotes = (await fetch(rig, "/udf/quotes?symbols=BITGET:SOLUSDT,BITGET:NOUSDT"))["d"]
        assert [(one["s"], one.get("errmsg")) for one in quotes] == [("ok", None), ("error", "unknown_symbol")]
        assert running(rig) == {BTC, ETH, SOL}
        day = await fetch(rig, "/udf/history?symbol=BITGET:SOLUSDT&resolution=1D&from=0&to=4102444800&countback=1")
        assert quotes[0]["v"]["open_price"] == day["o"][0]  # of the whole day, not of the minutes that came first


async def test_binance_streams_start_markets_by_request_and_by_address(tmp_path):
    async with deployment(tmp_path, most=2) as rig:
        url = f"ws://127.0.0.1:{rig.daemon.port}/ws"
        async with websockets.connect(url) as ws:
            for number, names in enumerate((["ethusdt@kline_1m", "btcusdt@kline_1m"], ["nousdt@kline_1m"])):
                await ws.send(json.dumps({"method": "SUBSCRIBE", "params": names, "id": number}))
            found: list[dict[str, Any]] = []
            while len(found) < 4 or found[-1].get("s") != "ETHUSDT":
                found.append(json.loads(await deadlines.wait_for(ws.recv(), 20)))
        replies = {one["id"]: one.get("error", {}).get("msg") for one in found if "id" in one}
        assert replies == {0: None, 1: "Invalid request: unknown stream nousdt@kline_1m"}
        assert "BTCUSDT" in {one.get("s") for one in found}
        async with websockets.connect(f"{url}/solusdt@kline_1m") as ws:
            assert json.loads(await deadlines.wait_for(ws.recv(), 20))["s"] == "SOLUSDT"
        async with websockets.connect(f"{url}/xrpusdt@kline_1m") as ws:
            error = json.loads(await deadlines.wait_for(ws.recv(), 20))
        text = "Too many markets on demand: at most 2 of bitget at a time"
        assert error == {"error": {"code": 2, "msg": text}, "id": None}
        assert running(rig) == {BTC, ETH, SOL}


async def test_limits_of_one_address_and_of_all(tmp_path):
    async with deployment(tmp_path, most=2, most_per_address=1) as rig:
        requests = [subscribe(ETH, id=1), subscribe(SOL, id=2)]
        found = {one["id"]: one for one in await answers(rig, *requests, count=2) if one["type"] != "initial"}
        assert found[2] == {
            "type": "error",
            "id": 2,
            "code": 106,
            "temporary": True,
            "message": "Too many markets on demand: at most 1 of bitget from one address",
        }
        status, error = await refused(rig, "/api/candles?symbol=SOL/USDT&interval=1m&limit=10")
        assert (status, error["error"]["code"]) == (503, "too_many_markets")
        assert running(rig) == {BTC, ETH}


async def test_an_unsubscribe_ends_the_wait(tmp_path):
    async with deployment(tmp_path) as rig:
        unsubscribe = {"type": "unsubscribe", "symbol": "ETH/USDT", "interval": "1m", "id": 7}
        found = await answers(rig, subscribe(ETH), unsubscribe, {"type": "ping"}, count=2)
        assert [one["type"] for one in found] == ["unsubscribed", "pong"]
        assert rig.daemon._hub.room_count == 0


async def test_a_market_ends_when_no_client_has_used_it_for_long_enough(tmp_path):
    async with deployment(tmp_path, speed=20.0, keep="1m") as rig:  # so a market ends if the loop stands for 3 s
        chart = rig.open_chart(ETH)
        await rig.until(lambda: chart.bars, within_minutes=30)
        await fetch(rig, "/api/candles?symbol=SOL/USDT&interval=1m&limit=10")
        assert SOL in running(rig)
        await rig.until(lambda: running(rig) == {BTC, ETH}, within_minutes=30)
        await rig.minutes(3)
        assert ETH in running(rig)
        for reader in rig._readers:
            reader.cancel()
        await asyncio.gather(*rig._readers, return_exceptions=True)
        await rig.until(lambda: running(rig) == {BTC}, within_minutes=30)


async def test_a_token_starts_only_the_markets_that_it_allows(tmp_path):
    tokens = {name: make_token(name) for name in ("all", "btc")}
    claims: dict[str, Any] = {"all": {}, "btc": {"symbols": ["BTC/USDT"]}}
    path = tmp_path / "tokens.yaml"
    write_entries(path, {name: Entry(sha256=digest_of(one), **claims[name]) for name, one in tokens.items()})
    async with deployment(tmp_path, more={"access": {"tokens_file": str(path)}}) as rig:
        candles = "/api/candles?symbol=ETH/USDT&interval=1m&token="
        for token, status in ((tokens["btc"], (403, 404)), ("wrong", (401,))):
            assert (await refused(rig, candles + token))[0] in status
        url = f"ws://127.0.0.1:{rig.daemon.port}/ws?token={tokens['btc']}"
        async with websockets.connect(url) as ws:
            await ws.send(json.dumps(subscribe(ETH)))
            answer = json.loads(await deadlines.wait_for(ws.recv(), 20))
        assert (answer["type"], running(rig)) == ("error", {BTC})
        assert (await fetch(rig, candles + tokens["all"]))["bars"]
        assert running(rig) == {BTC, ETH}


async def test_after_a_restart_stored_markets_have_all_their_names_before_the_exchange_answers(tmp_path):
    async with deployment(tmp_path, symbols=["BTC/USDT", "/^ETH/"]) as rig:
        await rig.until(lambda: is_live(rig, ETH), within_minutes=1)
        (first,) = await answers(rig, subscribe(SOL, initialBars=100))
        assert first["type"] == "initial"
        await rig.until(lambda: not rig.health(SOL)["missingMinutes"], within_minutes=1)
        await rig.stop()
        rig.fake.html_instead_of_json(status=503)
        rig.fake.drop_all()
        await rig.start()
        assert running(rig) == {BTC, ETH}
        assert len(await fetch(rig, "/api/v3/klines?symbol=ETHUSDT&interval=1m&limit=50")) == 50
        assert (await fetch(rig, "/udf/symbols?symbol=BITGET:ETHUSDT"))["description"] == "ETH/USDT"
        past = await fetch(rig, "/udf/history?symbol=BITGET:SOLUSDT&resolution=1&from=0&to=4102444800&countback=50")
        assert len(past["t"]) == 50
        assert len(await fetch(rig, "/api/v3/klines?symbol=SOLUSDT&interval=1m&limit=50")) == 50
        assert running(rig) == {BTC, ETH, SOL}
        (again,) = await answers(rig, subscribe(SOL, initialBars=100))
        assert len(again["bars"]) >= 50
        assert (await refused(rig, "/api/v3/klines?symbol=XRPUSDT&interval=1m"))[0] == 400  # it was never read
