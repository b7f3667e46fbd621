"""The TradingView datafeed, used as the Charting Library is known to use one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from candled.model import iso_ms
from tests import deadlines
from tests.clients.market import BTC, ETH, serving
from tests.clients.node import JsClient
from tests.clients.scripted import START_MS, Scripted

pytestmark = pytest.mark.usefixtures("daemon")


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async for server in serving(True):
        yield server


def charting(server: Scripted) -> JsClient:
    return JsClient(server.http_url, {"endAfterMs": 200, "resetAfterMs": 30}, driver="charting.mjs")


def shown(bars: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**bar, "time": iso_ms(bar["time"])} for bar in bars]


async def synced(library: JsClient, server: Scripted, topic: tuple[str, str], name: str = "a") -> int:
    """Wait until the chart shows the bars of a fresh one, and received none that runs backwards; return its bars."""
    async with deadlines.timeout(10):
        while True:
            bars = shown((await library.report(name))["bars"])
            assert library.events("violation", name) == []
            if bars == server.fresh(topic, len(bars)):
                return len(bars)
            await asyncio.sleep(0.02)


async def test_symbols_are_found_and_described(server: Scripted) -> None:
    async with charting(server) as library:
        configuration = await library.ask("ready", "ready", "")
        assert configuration["supported_resolutions"] == ["1", "5", "1D"]
        found = await library.ask("search", "found", "", input="eth")
        assert [one["ticker"] for one in found] == ["DEMO:ETHUSDT"]
        assert await library.ask("search", "found", "", input="", exchange="OTHER") == []
        info = (await library.ask("show", "shown", symbol="BTC/USDT", resolution="5"))["info"]
        assert (info["ticker"], info["pricescale"], info["has_daily"]) == ("DEMO:BTCUSDT", 100, True)
        assert info["intraday_multipliers"] == ["1", "5"]
        assert await library.ask("show", "failed", symbol="DOGEUSDT", resolution="5") == "unknown_symbol"
        assert await library.ask("time", "time", "") == START_MS // 1000


async def test_a_contract_is_found_beside_its_pair(server: Scripted) -> None:
    contract = ("BTC/USDT:USDT", "5m")
    server.make(*contract, 60)
    async with charting(server) as library:
        found = await library.ask("search", "found", "", input="btcusdt")
        assert [one["ticker"] for one in found] == ["DEMO:BTCUSDT", "DEMO:BTCUSDT.P"]
        for name in ("BTCUSDT.P", "demo:btcusdt.p", "BTC/USDT:USDT"):
            info = (await library.ask("show", "shown", symbol=name, resolution="5"))["info"]
            assert (info["ticker"], info["description"]) == ("DEMO:BTCUSDT.P", "BTC/USDT:USDT")
        server.trade(contract)
        await synced(library, server, contract)


async def test_where_the_exchange_says_no_decimals_the_bars_do(server: Scripted) -> None:
    server.trade(ETH)  # two decimals
    async with charting(server) as library:
        shown = await library.ask("show", "shown", symbol="ETHUSDT", resolution="1")
        assert shown["info"]["pricescale"] == 100


async def test_bars_come_from_now_back_to_the_first_and_then_there_is_no_data(server: Scripted) -> None:
    async with charting(server) as library:
        shown = await library.ask("show", "shown", symbol="BTCUSDT", resolution="5")
        assert (len(shown["bars"]), shown["noData"]) == (50, False)
        added = []
        while True:
            page = await library.ask("scroll", "scrolled", countBack=110)
            added.append(page["added"])
            if page["noData"]:
                break
        assert added == [110, 110, 30, 0]
        assert await synced(library, server, BTC) == 300


async def test_what_opened_between_history_and_live_is_not_missed(server: Scripted) -> None:
    async with charting(server) as library:
        server.delay_s = 0.1
        library.send_command("show", "a", symbol="BTCUSDT", resolution="5")
        for _ in range(20):
            server.trade(BTC)
            server.open_next(BTC)
            await asyncio.sleep(0.02)
        server.delay_s = 0
        await library.until("shown")
        await asyncio.sleep(0.2)
        server.trade(BTC)
        await synced(library, server, BTC)
        assert library.events("reset") == []


def subscribed(server: Scripted) -> list[tuple[str, str]]:
    return [(one["type"], one["symbol"]) for one in server.requests if "subscribe" in one["type"]]


async def test_a_late_unsubscribe_ends_the_old_market_and_not_the_new(server: Scripted) -> None:
    async with charting(server) as library:
        await library.ask("show", "shown", symbol="BTCUSDT", resolution="5")
        await library.ask("show", "shown", symbol="ETHUSDT", resolution="1")
        await library.ask("show", "shown", symbol="BTCUSDT", resolution="5")
        deadline = deadlines.now() + 10.0
        while (rooms := subscribed(server))[-1] != ("unsubscribe", "ETH/USDT"):  # both late calls have come
            assert deadlines.now() < deadline, rooms
            await asyncio.sleep(0.05)
        server.trade(BTC)
        await library.until("tick")
        await synced(library, server, BTC)
        assert server.connections == 1
        assert subscribed(server) == rooms


async def test_a_drop_that_was_recovered_needs_no_reset(server: Scripted) -> None:
    async with charting(server) as library:
        await library.ask("show", "shown", symbol="BTCUSDT", resolution="5")
        server.trade(BTC)
        await library.until("tick")
        server.drop()
        server.open_next(BTC)
        server.open_next(BTC)
        assert await synced(library, server, BTC) == 52
        assert library.events("reset") == []


async def test_a_lost_position_and_a_revised_past_need_one(server: Scripted) -> None:
    async with charting(server) as library:
        await library.ask("show", "shown", symbol="BTCUSDT", resolution="5")
        server.trade(BTC)
        await library.until("tick")
        server.correct(BTC, -7)
        server.correct(BTC, -8)  # one reset for both
        await library.until("shown", 2)
        await synced(library, server, BTC)
        assert len(library.events("reset")) == 1
        await server.stop()
        server.begin_epoch(forget=True)
        server.correct(BTC, -9)
        await server.start()
        await library.until("shown", 3)
        await synced(library, server, BTC)
        assert len(library.events("reset")) == 2
