"""The JavaScript client in Chromium: the adapter for lightweight-charts and the React hook, through faults."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from candled.model import iso_ms
from tests import deadlines
from tests.clients.market import BTC, ETH, calm, fault, plain, serving
from tests.clients.scripted import Scripted

pytestmark = pytest.mark.asyncio(loop_scope="module")

XRP = ("XRP/USDT", "1m")


@pytest_asyncio.fixture(params=[True, False], ids=["extended", "plain"], loop_scope="module")
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Scripted]:
    async for server in serving(request.param):
        server.make(*XRP, 40)
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def extended() -> AsyncIterator[Scripted]:
    async for server in serving(True):
        server.make(*XRP, 40)
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def page(chromium: Any) -> AsyncIterator[Any]:
    page = await chromium.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    await page.close()
    assert problems == []


async def until_equal(shown: Callable[[], Awaitable[Any]], fresh: Callable[[int], Any]) -> int:
    """Wait until a page shows what a fresh load would; how many bars that are."""
    deadline = asyncio.get_running_loop().time() + 10
    while True:
        bars = await shown()
        if bars and bars == fresh(len(bars)):
            return len(bars)
        if asyncio.get_running_loop().time() > deadline:
            assert bars == fresh(len(bars))
        await asyncio.sleep(0.03)


# ---------------------------------------------------------------- lightweight-charts


async def drawn(page: Any) -> list[dict[str, Any]]:
    """The bars on the chart, as the scripted server has them."""
    data = await page.evaluate("[candles.data(), volumes.data().map(({ value }) => value)]")
    return [
        {**{key: value for key, value in candle.items() if key != "time"}, "time": iso_ms(candle["time"] * 1000)}
        | {"volume": volume}
        for candle, volume in zip(*data, strict=True)
    ]


async def test_the_chart_shows_what_a_fresh_one_would_after_any_faults(page: Any, server: Scripted) -> None:
    await page.goto(server.http_url + "/pages/chart.html")
    await page.wait_for_function("candles.data().length >= 100")
    draw = random.Random(7)
    for _ in range(40):
        await fault(server, draw)
    await calm(server)
    await until_equal(lambda: drawn(page), lambda count: server.fresh(BTC, count))
    finals = await page.evaluate("finals")
    assert finals == sorted(set(finals))
    assert set(finals) <= set(server.finals(BTC))


async def test_scrolling_back_loads_the_rest_and_leaves_the_view_where_it_is(page: Any, extended: Scripted) -> None:
    await page.goto(extended.http_url + "/pages/chart.html")
    await page.wait_for_function("candles.data().length >= 160")  # the view began near the first bar
    scroll = "chart.timeScale().setVisibleLogicalRange({ from: 10, to: 80 })"
    count, leftmost = await page.evaluate(f"{scroll}; [candles.data().length, candles.data()[10].time]")
    await page.wait_for_function(f"candles.data().length > {count}")
    await page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    assert (await page.evaluate("chart.timeScale().getVisibleRange()"))["from"] == leftmost
    while not await page.evaluate("stream.end"):
        await page.evaluate(scroll)
        await asyncio.sleep(0.02)
    assert await until_equal(lambda: drawn(page), lambda count: extended.fresh(BTC, count)) == 300
    assert extended.connections == 1


# ---------------------------------------------------------------- React


async def listed(page: Any, name: str) -> list[dict[str, Any]]:
    """The bars that a component lists."""
    texts = await page.eval_on_selector_all(f"#{name} li", "all => all.map((item) => item.textContent)")
    return plain([json.loads(text) for text in texts])


async def test_a_component_shows_what_a_fresh_one_would_after_any_faults(page: Any, server: Scripted) -> None:
    await page.goto(server.http_url + "/pages/hook.html")
    await page.wait_for_selector("#BTC li")
    await page.wait_for_selector("#XRP li")
    assert server.connections == 1  # for both components
    await page.evaluate("setSymbol('ETH/USDT')")
    await page.wait_for_selector("#ETH li")
    assert server.connections == 1
    for action in (server.trade, server.open_next, server.trade):
        action(ETH)
        action(XRP)
    server.drop()
    server.correct(ETH, -4)
    for name, topic in (("ETH", ETH), ("XRP", XRP)):
        await until_equal(lambda name=name: listed(page, name), lambda count, topic=topic: server.fresh(topic, count))
    await page.wait_for_function("document.querySelector('#ETH p').textContent === 'live'")
    # no component was ever given bars of another market
    seen = [(one["symbol"], one["first"]) for one in await page.evaluate("seen") if one["count"]]
    of_btc, of_eth = ({first for symbol, first in seen if symbol == topic[0]} for topic in (BTC, ETH))
    assert of_btc & of_eth == set()


async def test_when_the_last_component_is_gone_so_is_the_socket(page: Any, extended: Scripted) -> None:
    await page.goto(extended.http_url + "/pages/hook.html")
    await page.wait_for_selector("#XRP li")
    await page.evaluate("setShown(false)")
    async with deadlines.timeout(10):
        while extended.connected:
            await asyncio.sleep(0.05)
