"""The Python client's streams of closed bars of many markets, from a real server."""

import asyncio
from typing import Any

import pytest

from candled.client import Client, RequestRejected
from candled.clock import SystemClock
from candled.config.sections import ServerSettings
from candled.tasks import Backoff
from tests import deadlines
from tests.api.stage import BTC, ETH, MONDAY_MS, Stage, open_stage
from tests.proxy import Proxy
from tests.rows import minute


@pytest.fixture
async def stage(tmp_path):
    server = ServerSettings(host="127.0.0.1", port=0)
    stored = {BTC: [minute(0, final=True)], ETH: [minute(0, final=True)]}
    async with open_stage(tmp_path, stored, clock=SystemClock(), server=server) as one:
        one.port = one.server.listen()
        one.url = f"ws://127.0.0.1:{one.port}/ws"
        yield one


def connected(stage: Stage, **options: Any) -> Client:
    return Client(stage.url, backoff=Backoff(first_s=0.02, most_s=0.1), **options)


async def until(is_so) -> None:
    async with deadlines.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


async def take(stream, count: int) -> list[tuple[str, int]]:
    """The next bars: symbols and the numbers of their minutes."""
    async with deadlines.timeout(10):
        bars = [await anext(stream) for _ in range(count)]
    return [(symbol, round((bar.time.timestamp() * 1000 - MONDAY_MS) / 60_000)) for symbol, bar in bars]


async def test_a_stream_yields_the_closed_bars_of_all_markets_and_follows_the_list(stage):
    changes: list[tuple[list[str], list[str]]] = []
    async with connected(stage) as client:
        stream = client.closed_bars(on_markets=lambda added, removed: changes.append(([*added], [*removed])))
        same = client.closed_bars("*", "1m")
        await until(lambda: stream.markets)
        assert (stream.status.state, stream.markets) == ("live", ("BTC/USDT", "ETH/USDT"))
        stage.push(minute(1), BTC)
        stage.push(minute(1, final=True), BTC)
        stage.push(minute(1, final=True), ETH)
        for one in (stream, same):
            assert await take(one, 2) == [("BTC/USDT", 1), ("ETH/USDT", 1)]
        stage.universe.set_markets("replay", [ETH.symbol])
        await until(lambda: stream.markets == ("ETH/USDT",))
        assert changes == [(["BTC/USDT", "ETH/USDT"], []), ([], ["BTC/USDT"])]
        stream.close()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        stage.push(minute(2, final=True), ETH)
        assert await take(same, 1) == [("ETH/USDT", 2)]


@pytest.mark.slow
async def test_a_stream_of_one_market_and_one_of_a_pattern_do_not_mix(stage):
    async with connected(stage) as client:
        bars = client.bars("BTC/USDT", "1m", corrections=True)
        stream = client.closed_bars("*/USDT", "1m", exchange="replay")
        await until(lambda: bars.is_loaded and stream.status.state == "live")
        stage.push(minute(1, close="11"), BTC)
        await until(lambda: len(bars.bars) == 2)
        stage.push(minute(1, close="12", final=True), BTC)
        assert await take(stream, 1) == [("BTC/USDT", 1)]
        await until(lambda: bars.bars[-1].close == 12)


async def test_after_a_lost_connection_it_goes_on_and_learns_the_changed_list(stage):
    changes: list[tuple[list[str], list[str]]] = []
    with Proxy(("127.0.0.1", stage.port)) as proxy:
        stage.url = f"ws://127.0.0.1:{proxy.address[1]}/ws"
        async with connected(stage) as client:
            stream = client.closed_bars(on_markets=lambda added, removed: changes.append(([*added], [*removed])))
            await until(lambda: stream.markets)
            stage.universe.set_markets("replay", [ETH.symbol])
            await until(lambda: len(changes) == 2)
            proxy.reset_existing()
            await until(lambda: stream.status.state == "lost")
            stage.universe.set_markets("replay", [ETH.symbol, BTC.symbol])
            await until(lambda: len(changes) == 3 and stream.status.state == "live")
            assert changes[2] == (["BTC/USDT"], [])
            stage.push(minute(1, final=True), ETH)
            assert await take(stream, 1) == [("ETH/USDT", 1)]


async def test_a_refused_pattern_and_a_reader_that_is_too_slow_end_the_loop(stage):
    async with connected(stage, keep=1) as client:
        with pytest.raises(RequestRejected, match="Expected a symbol, or a pattern") as caught:
            await take(client.closed_bars("*USDT"), 1)
        assert caught.value.code == 107
        stream = client.closed_bars()
        await until(lambda: stream.status.state == "live")
        for number in (1, 2):
            stage.push(minute(number, final=True), BTC)
        assert await take(stream, 1) == [("BTC/USDT", 1)]
        with pytest.raises(RequestRejected, match="more than 1 closed bars wait"):
            await take(stream, 1)
