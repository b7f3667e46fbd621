"""The JavaScript client, in Node, against a server that drops, delays, restarts and misorders."""

import asyncio
import json
import random
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import deadlines
from tests.clients.market import BTC, ETH, calm, fault, plain, serving, times
from tests.clients.node import IMPATIENT, JsClient, arguments
from tests.clients.scripted import Scripted

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("daemon")


@pytest.fixture(params=[True, False], ids=["extended", "plain"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Scripted]:
    async for server in serving(request.param):
        yield server


@pytest.fixture
async def extended() -> AsyncIterator[Scripted]:
    async for server in serving(True):
        yield server


def request(topic: tuple[str, str] = BTC, bars: int = 20) -> dict[str, Any]:
    return {"symbol": topic[0], "interval": topic[1], "bars": bars}


async def synced(client: JsClient, server: Scripted, topic: tuple[str, str], name: str = "a") -> list[dict[str, Any]]:
    """Wait until the client holds what a fresh subscription would get; every bar it holds."""
    async with deadlines.timeout(10):
        while True:
            bars = plain((await client.report(name))["bars"])
            if bars and bars == server.fresh(topic, len(bars)):
                return bars
            await asyncio.sleep(0.02)


async def test_it_gives_the_bars_then_what_moves_then_what_opens(server: Scripted) -> None:
    async with JsClient(server.url) as client:
        client.send_command("subscribe", "a", request=request())
        bars, change = await client.until("onBars")
        assert plain(bars) == server.fresh(BTC, 20)
        assert (change["reason"], change["isFirst"]) == ("initial", True)
        moved = server.trade(BTC)
        bar, is_new = await client.until("onBar")
        assert (plain([bar]), is_new) == (plain([moved]), False)
        opened = server.open_next(BTC)
        bar, is_new = await client.until("onBar", 3 if server.extended else 2)
        assert (plain([bar]), is_new) == (plain([opened]), True)
        assert len(await synced(client, server, BTC)) == 21


async def test_each_bar_is_reported_final_once_and_in_order(server: Scripted) -> None:
    server.misorders = True
    async with JsClient(server.url) as client:
        client.send_command("subscribe", "a", request=request())
        await client.until("onBars")
        before = server.finals(BTC)
        for _ in range(3):
            server.trade(BTC)
            server.open_next(BTC)
            await synced(client, server, BTC)
            server.drop()
            server.trade(BTC)
            await synced(client, server, BTC)
        assert [bar["time"] for (bar,) in client.events("onFinal")] == server.finals(BTC)[len(before) :]


async def test_time_does_not_run_backwards_whatever_the_server_sends(server: Scripted) -> None:
    server.misorders = True
    async with JsClient(server.url) as client:
        client.send_command("subscribe", "a", request=request())
        for _ in range(5):
            server.trade(BTC)
            server.open_next(BTC)
            await asyncio.sleep(0.02)
        await synced(client, server, BTC)
        moved = [bar["time"] for bar, _ in client.events("onBar")]
        assert moved == sorted(moved)


async def test_a_correction_changes_the_bar_where_it_stands(extended: Scripted) -> None:
    async with JsClient(extended.url) as client:
        client.send_command("subscribe", "a", request=request())
        await client.until("onBars")
        revised = extended.correct(BTC, -5)
        (bar,) = await client.until("onCorrection")
        assert (plain([bar]), bar["rev"], bar["src"]) == (plain([revised]), 1, "rest")
        assert len(client.events("onBars")) == 1
        await synced(client, extended, BTC)


async def test_a_hole_that_is_filled_is_a_change_of_the_whole(server: Scripted) -> None:
    async with JsClient(server.url) as client:
        client.send_command("subscribe", "a", request=request())
        await client.until("onBars")
        gap = server.open_next(BTC, skip=1)["time"].replace(":05:", ":00:")
        server.fill(BTC, gap)
        _, change = await client.until("onBars", 2)
        assert change["reason"] == ("inserted" if server.extended else "initial")
        bars = await synced(client, server, BTC)
        assert gap in times(bars)


async def test_after_a_drop_it_gets_what_changed_and_nothing_else(extended: Scripted) -> None:
    async with JsClient(extended.url) as client:
        client.send_command("subscribe", "a", request=request(bars=200))
        await client.until("onBars")
        extended.drop()
        revised = extended.correct(BTC, -7)
        extended.open_next(BTC)
        _, change = await client.until("onBars", 2)
        assert (change["reason"], change["recovered"]) == ("resumed", True)
        assert times(change["changed"])[0] == revised["time"]
        assert len(change["changed"]) == 3
        await synced(client, extended, BTC)


async def test_a_position_that_is_no_longer_known_loads_everything_again(extended: Scripted) -> None:
    async with JsClient(extended.url) as client:
        client.send_command("subscribe", "a", request=request())
        await client.until("onBars")
        await extended.stop()
        extended.begin_epoch(forget=True)
        extended.open_next(BTC)
        await extended.start()
        _, change = await client.until("onBars", 2)
        assert (change["reason"], change["recovered"], change["isFirst"]) == ("initial", False, False)
        assert len(await synced(client, extended, BTC)) == 20


async def test_a_link_that_is_open_but_dead_is_replaced(server: Scripted) -> None:
    async with JsClient(server.url, IMPATIENT) as client:
        client.send_command("subscribe", "a", request=request())
        await client.until("onBars")
        server.silent = True
        await client.until("state", 3, "")  # connecting, open, lost
        assert client.events("state", "")[2][0]["state"] == "lost"
        server.silent = False
        server.drop()
        server.open_next(BTC)
        await synced(client, server, BTC)


async def test_several_streams_share_one_socket_and_end_alone(server: Scripted) -> None:
    async with JsClient(server.url) as client:
        client.send_command("subscribe", "a", request=request(BTC))
        client.send_command("subscribe", "b", request=request(ETH))
        client.send_command("subscribe", "c", request=request(BTC))
        for name in "abc":
            await client.until("onBars", name=name)
        assert server.connections == 1
        assert sum(one["type"] == "subscribe" for one in server.requests) == 2
        client.send_command("unsubscribe", "a")  # late, as TradingView does: c follows the same market
        client.send_command("unsubscribe", "a")
        client.send_command("unsubscribe", "b")
        await asyncio.sleep(0.05)
        server.trade(BTC)
        server.trade(ETH)
        await client.until("onBar", name="c")
        assert not client.events("onBar", "a")
        assert not client.events("onBar", "b")
        ended = [one["symbol"] for one in server.requests if one["type"] == "unsubscribe"]
        assert ended == ["ETH/USDT"]


async def test_who_wants_more_bars_of_a_stream_gets_them(server: Scripted) -> None:
    async with JsClient(server.url) as client:
        client.send_command("subscribe", "a", request=request(bars=10))
        await client.until("onBars")
        client.send_command("subscribe", "b", request=request(bars=50))
        await client.until("onBars", 2, "a")
        assert len(await synced(client, server, BTC, "b")) == 50


async def test_history_is_paged_over_the_same_socket_until_it_ends(extended: Scripted) -> None:
    async with JsClient(extended.url) as client:
        client.send_command("subscribe", "a", request=request(bars=20))
        await client.until("onBars")
        added = []
        while True:
            page = await client.ask("older", "older", limit=90)
            added.append(page["added"])
            if page["end"]:
                break
        assert added == [90, 90, 90, 10]
        assert await client.ask("older", "older", limit=90) == {"added": 0, "end": True}
        assert len(await synced(client, extended, BTC)) == 300
        assert extended.connections == 1
        page = await client.ask("history", "history", "", request={"symbol": ETH[0], "interval": ETH[1], "limit": 7})
        assert plain(page["bars"]) == extended.fresh(ETH, 7)
        assert page["end"] is False


async def test_a_page_that_was_asked_for_before_a_drop_comes_after_it(extended: Scripted) -> None:
    async with JsClient(extended.url) as client:
        client.send_command("subscribe", "a", request=request())
        await client.until("onBars")
        extended.silent = True
        client.send_command("older", "a", limit=10)
        await asyncio.sleep(0.05)
        extended.silent = False
        extended.drop()
        assert (await client.until("older"))[0] == {"added": 10, "end": False}
        assert len(await synced(client, extended, BTC)) == 30


async def test_a_server_without_history_says_so() -> None:
    async for server in serving(False):
        async with JsClient(server.url) as client:
            client.send_command("subscribe", "a", request=request())
            await client.until("onBars")
            failed = await client.ask("older", "failed", limit=10)
            assert failed == {"message": "Unknown message type: history", "code": "unsupported"}


@pytest.mark.parametrize("is_extended", [True, False])
async def test_a_refusal_is_reported_and_ends_with_the_next_connection(is_extended: bool) -> None:
    async for server in serving(is_extended):
        server.refuses[BTC] = "Invalid symbol: BTC/USDT. Only ETH/USDT is supported.", 102
        async with JsClient(server.url) as client:
            client.send_command("subscribe", "a", request=request())
            client.send_command("subscribe", "b", request=request(ETH))
            (error,) = await client.until("onError")
            assert error["message"].startswith("Invalid symbol: BTC/USDT")
            assert (await client.report())["status"]["state"] == "refused"
            await client.until("onBars", name="b")
            assert (await client.report("b"))["status"]["state"] == "live"
            server.refuses.clear()
            server.drop()
            await synced(client, server, BTC)


async def test_the_state_of_the_feed_is_one_word(extended: Scripted) -> None:
    async with JsClient(extended.url) as client:
        client.send_command("subscribe", "a", request=request())
        await client.until("onBars")
        await synced(client, extended, BTC)
        extended.turn("stale")
        extended.turn("live")
        await client.until("onStatus", 6)
        await extended.stop()
        await client.until("onStatus", 7)
        statuses = [status for (status,) in client.events("onStatus")][:7]
        states = [status["state"] for status in statuses]
        assert states == ["connecting", "loading", "live", "live", "stale", "live", "lost"]
        assert statuses[4]["since"] == "2026-10-05T00:01:00.000Z"


async def test_it_comes_back_when_the_server_asked_for_it(extended: Scripted) -> None:
    async with JsClient(extended.url, {"firstRetryMs": 60_000, "longestRetryMs": 60_000}) as client:
        client.send_command("subscribe", "a", request=request())
        await client.until("onBars")
        await extended.stop(bye_ms=300)
        lost = await client.until("state", 3, "")
        await extended.start()
        await client.until("onBars", 2)
        assert lost[0]["state"] == "lost"


async def test_more_subscriptions_than_messages_a_second_are_all_made(server: Scripted) -> None:
    for number in range(30):
        server.make(f"C{number}/USDT", "1m", 3)
    async with JsClient(server.url) as client:
        begun_s = time.monotonic()
        for number in range(30):
            client.send_command("subscribe", str(number), request=request((f"C{number}/USDT", "1m")))
        await client.until("onBars", name="14")
        # by the client's clock, no second has more than 15; on a busy machine the answers take longer than one
        sent = sum(one["type"] == "subscribe" for one in server.requests)
        assert sent <= 15 * (1 + int(time.monotonic() - begun_s))
        await client.until("onBars", name="29")


@pytest.mark.parametrize("seed", range(2))
async def test_after_any_faults_it_holds_what_a_fresh_load_gets(server: Scripted, seed: int) -> None:
    draw = random.Random(seed)
    async with JsClient(server.url, IMPATIENT) as client:
        client.send_command("subscribe", "a", request=request(bars=40))
        client.send_command("subscribe", "b", request=request(ETH, bars=40))
        await client.until("onBars")
        for _ in range(60):
            await fault(server, draw)
        await calm(server)
        for name, topic in (("a", BTC), ("b", ETH)):
            bars = await synced(client, server, topic, name)
            assert times(bars) == sorted(set(times(bars)))
            finals = [bar["time"] for (bar,) in client.events("onFinal", name)]
            assert finals == sorted(set(finals))
            moved = [bar["time"] for bar, _ in client.events("onBar", name)]
            assert moved == sorted(moved)


async def test_a_client_that_asks_for_strings_gets_the_digits_as_they_were_printed(extended: Scripted) -> None:
    async with JsClient(extended.url, {"numbers": "string"}) as client:
        client.send_command("subscribe", "a", request=request())
        bars, _ = await client.until("onBars")
        extended.trade(BTC)
        moved, _ = await client.until("onBar")
        await client.ask("older", "older", limit=5)
        older = (await client.report())["bars"]
        page = await client.ask("history", "history", "", request={"symbol": "BTC/USDT", "interval": "5m", "limit": 3})
        found = [*bars, moved, *older, *page["bars"]]
        assert len(older) == 25
        assert {type(bar[name]) for bar in found for name in ("open", "high", "low", "close", "volume")} == {str}


def test_charts_draw_strings_as_the_numbers_they_are() -> None:
    bar = {"time": "2026-10-05T00:00:00.000Z", "open": "9", "high": "10.5", "low": "9", "close": "10", "volume": "1.25"}
    code = f"""
        import {{ candleItem, volumeItem }} from "{ROOT}/clients/js/lightweight-charts.js";
        const bar = {json.dumps(bar)};
        console.log(JSON.stringify([candleItem(bar), volumeItem(bar, {{ up: "u", down: "d" }})]));
    """
    drawn = subprocess.run([*arguments(), "--input-type=module", "-e", code], capture_output=True, check=True).stdout
    at = 1_791_158_400
    assert json.loads(drawn) == [
        {"time": at, "open": 9, "high": 10.5, "low": 9, "close": 10}, {"time": at, "value": 1.25, "color": "u"},
    ]  # fmt: skip
