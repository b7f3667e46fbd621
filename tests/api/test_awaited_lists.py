"""Requests for a market on demand before its exchange has listed its markets: they wait for the list."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from candled.config.sections import KlinesSettings
from candled.on_demand import START_S
from candled.symbol_pattern import SymbolPattern
from candled.universe_choice import DemandRules
from tests import deadlines
from tests.api.stage import BTC, ETH, Stage

RULES = DemandRules(most=2, most_per_address=2, exclusions=(SymbolPattern.parse("!*UP/USDT"),))
pytestmark = [
    pytest.mark.gen_test,
    pytest.mark.stage(on_demand={"replay": RULES}, klines=KlinesSettings(enabled=True)),
]
PATHS = [
    "/api/candles?symbol=ETH/USDT&interval=1m",
    "/api/candles?symbol=ETH/USDT&interval=1m&format=csv",
    "/api/coverage?symbol=ETH/USDT",
    "/api/v3/klines?symbol=ETHUSDT&interval=1m",
    "/api/v3/exchangeInfo?symbol=ETHUSDT",
    "/udf/history?symbol=REPLAY:ETHUSDT&resolution=1&from=0&to=1747612800",
    "/udf/history?symbol=ETHUSDT&resolution=1&from=0&to=1747612800",
    "/udf/symbols?symbol=ETHUSDT",
    "/udf/quotes?symbols=REPLAY:BTCUSDT,REPLAY:ETHUSDT",
]


async def pass_time(stage: Stage, seconds: float) -> None:
    """Let time pass while sockets are read."""
    for _ in range(round(seconds / 0.05)):
        await stage.clock.advance(0.05)
        await asyncio.sleep(0.001)


async def until_asked(stage: Stage, seconds: float = 0.3) -> None:
    """Wait until a request waits on the clock, then let time pass."""
    async with deadlines.timeout(5):
        while not stage.clock.sleepers:
            await asyncio.sleep(0.001)
    await pass_time(stage, seconds)


async def list_markets(stage: Stage) -> None:
    """Read the exchange's list; its leader adds the market that the book has then."""
    stage.demand.on_list("replay", [BTC.symbol, ETH.symbol])
    await pass_time(stage, 0.2)
    assert await stage.demand._book.read_markets("replay", RULES) == [ETH.symbol]
    stage.universe.set_markets("replay", [BTC.symbol, ETH.symbol])
    await pass_time(stage, 0.2)


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_waits_for_the_list_and_starts_the_market(stage: Stage, fetch: Any, path: str) -> None:
    asking = asyncio.ensure_future(fetch(path))
    await until_asked(stage)
    assert not asking.done()
    await list_markets(stage)
    answer = await asking
    assert answer.code == 200
    assert "unknown" not in answer.body.decode()


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_list_a_request_gets_the_error_of_an_unknown_symbol_in_time(
    stage: Stage, fetch: Any, path: str
) -> None:
    if "quotes" in path:
        path += ",REPLAY:NOUSDT,OTHER"  # several symbols wait together
    asking = asyncio.ensure_future(fetch(path))
    await until_asked(stage, START_S - 0.2)
    assert not asking.done()
    async with deadlines.timeout(10):  # another task may have waited on the clock before the request
        while not asking.done():
            await pass_time(stage, 0.2)
    answer = await asking
    text = answer.body.decode()
    assert "unknown_symbol" in text or "Invalid symbol" in text
    assert answer.code == (200 if "/udf/" in path else 400 if "/v3/" in path else 404)


@pytest.mark.parametrize(
    "path", ["/api/candles?symbol=XUP/USDT&interval=1m", "/api/candles?symbol=ethusdt&interval=1m"]
)
async def test_a_symbol_that_no_list_can_have_does_not_wait(fetch: Any, path: str) -> None:
    assert (await fetch(path)).code == 404


@pytest.mark.parametrize("how", ["request", "address"])
async def test_a_kline_stream_waits_for_the_list_and_starts_the_market(
    stage: Stage, connect: Callable[..., Any], how: str
) -> None:
    async with connect("/ws/ethusdt@kline_1m" if how == "address" else "/ws/btcusdt@kline_1m") as ws:
        if how == "request":
            await ws.send(json.dumps({"method": "SUBSCRIBE", "params": ["ethusdt@kline_1m"], "id": 1}))
        await until_asked(stage)
        await list_markets(stage)
        async with deadlines.timeout(5):
            while stage.hub.room_count < (2 if how == "request" else 1):
                await asyncio.sleep(0.001)
        assert stage.hub.has_members(ETH)


async def test_a_kline_stream_of_a_list_that_does_not_come_is_unknown(
    stage: Stage, connect: Callable[..., Any]
) -> None:
    async with connect("/ws/btcusdt@kline_1m") as ws:
        await ws.recv()
        for request_id, name in enumerate(("ethusdt@kline_1m", "ethusdt@kline_7m")):
            await ws.send(json.dumps({"method": "SUBSCRIBE", "params": [name], "id": request_id}))
            if name.endswith("1m"):  # no list has streams of the other interval
                await until_asked(stage, START_S + 0.2)
            answer = json.loads(await deadlines.wait_for(ws.recv(), 5))
            assert (answer["id"], "unknown stream" in answer["error"]["msg"]) == (request_id, True)
