"""The JavaScript client's closed bars of many markets, in Node, from a real server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from candled.clock import SystemClock
from candled.config.sections import ServerSettings
from candled.model import MINUTE_MS, parse_iso_ms
from tests import deadlines
from tests.api.stage import BTC, ETH, Stage, open_stage
from tests.clients.market import serving
from tests.clients.node import JsClient
from tests.proxy import Proxy
from tests.rows import MONDAY_MS, minute

pytestmark = pytest.mark.usefixtures("daemon")


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stored = {BTC: [minute(0, final=True)], ETH: [minute(0, final=True)]}
    server = ServerSettings(host="127.0.0.1", port=0)
    async with open_stage(tmp_path, stored, clock=SystemClock(), server=server) as one:
        one.port = one.server.listen()
        one.url = f"ws://127.0.0.1:{one.port}/ws"
        yield one


def bars(client: JsClient, event: str = "onBar", name: str = "a") -> list[tuple[str, int]]:
    """The bars so far: symbols and the numbers of their minutes."""
    return [
        (symbol, (parse_iso_ms(bar["time"]) - MONDAY_MS) // MINUTE_MS) for symbol, bar in client.events(event, name)
    ]


async def until(is_so: Callable[[], Any]) -> None:
    async with deadlines.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


async def subscribe(client: JsClient, name: str = "a", **request: Any) -> None:
    client.send_command("closedBars", name, request=request)
    await client.until("onMarkets", name=name)


async def test_closed_bars_of_all_markets_arrive_once_and_the_list_is_followed(stage: Stage) -> None:
    async with JsClient(stage.url) as client:
        await subscribe(client, "a")
        await subscribe(client, "b", pattern="*", interval="1m")
        await subscribe(client, "c", pattern="!ETH/*")
        stage.push(minute(1), BTC)
        stage.push(minute(1, final=True), BTC)
        stage.push(minute(1, final=True), ETH)
        for name, wanted in (("a", ["BTC/USDT", "ETH/USDT"]), ("b", ["BTC/USDT", "ETH/USDT"]), ("c", ["BTC/USDT"])):
            await client.until("onBar", len(wanted), name)
            assert bars(client, name=name) == [(symbol, 1) for symbol in wanted]
        stage.push(minute(1, close="99", final=True), ETH)
        symbol, bar = await client.until("onCorrection")
        assert (symbol, bar["close"], bar["final"]) == ("ETH/USDT", 99, True)
        stage.universe.set_markets("replay", [ETH.symbol])
        await client.until("onMarkets", 2)
        assert client.events("onMarkets") == [[["BTC/USDT", "ETH/USDT"], []], [[], ["BTC/USDT"]]]
        report = await client.report()
        assert (report["markets"], report["status"]) == (["ETH/USDT"], {"state": "live"})
        states = [status["state"] for (status,) in client.events("onStatus")]
        assert states == ["connecting", "loading", "live"]
        client.send_command("unsubscribe", "a")  # b follows the same pattern
        client.send_command("unsubscribe", "c")
        await until(lambda: stage.hub.room_count == 1)
        stage.push(minute(2, final=True), ETH)
        await client.until("onBar", 3, "b")
        assert bars(client)[2:] == bars(client, name="c")[1:] == []


async def test_a_market_and_a_pattern_do_not_mix(stage: Stage) -> None:
    async with JsClient(stage.url) as client:
        await subscribe(client, "a", pattern="*/USDT", exchange="replay")
        client.send_command("subscribe", "b", request={"symbol": "BTC/USDT", "interval": "1m", "bars": 5})
        await client.until("onBars", name="b")
        stage.push(minute(1, close="11"), BTC)
        await client.until("onBar", name="b")
        stage.push(minute(1, close="12", final=True), BTC)
        await client.until("onFinal", name="b")
        await client.until("onBar")
        assert bars(client) == [("BTC/USDT", 1)]


async def test_after_a_lost_connection_it_goes_on_and_learns_the_changed_list(stage: Stage) -> None:
    with Proxy(("127.0.0.1", stage.port)) as proxy:
        async with JsClient(f"ws://127.0.0.1:{proxy.address[1]}/ws") as client:
            await subscribe(client)
            proxy.reset_existing()
            await until(lambda: "lost" in [status["state"] for (status,) in client.events("onStatus")])
            stage.universe.set_markets("replay", [ETH.symbol])
            assert await client.until("onMarkets", 2) == [[], ["BTC/USDT"]]
            await until(lambda: client.events("onStatus")[-1] == [{"state": "live"}])
            stage.push(minute(1, final=True), ETH)
            await client.until("onBar")
            assert bars(client) == [("ETH/USDT", 1)]


async def test_refusals_are_reported_by_any_server(stage: Stage) -> None:
    async with JsClient(stage.url) as client:
        client.send_command("closedBars", "a", request={"pattern": "*USDT"})
        (error,) = await client.until("onError")
        assert (error["code"], error["message"][:15]) == (107, "Invalid symbol:")
        assert (await client.report())["status"]["state"] == "refused"
    async for plain in serving(False):
        plain.refuses["*", "1m"] = "Invalid symbol: *. Valid: BTC/USDT, ETH/USDT", 102
        async with JsClient(plain.url) as client:
            client.send_command("closedBars", "a", request={})
            await client.until("onError")
            assert (await client.report())["status"]["state"] == "refused"


async def test_a_temporary_refusal_is_no_end() -> None:
    async for server in serving(True):
        server.refuses["*", "1m"] = "Internal error", 100
        async with JsClient(server.url) as client:
            client.send_command("closedBars", "a", request={})
            await client.until("onError")
            assert (await client.report())["status"]["state"] == "loading"
