"""`/metrics` of a real daemon: every family is filled by the program, and the values are those of what happened."""

import ast
import asyncio
import contextlib
import json

import pytest
import websockets
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from candled.histogram import Histogram
from candled.metrics.families import ALL, PREFIX
from candled.metrics.loop_lag import EVERY_S, LoopLag
from tests.clocks import ManualClock
from tests.metrics.scrape import read_series, running
from tests.redis_servers import shared_redis
from tests.sources import ROOT, nodes

pytestmark = pytest.mark.usefixtures("daemon")
BTC = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 5}


def collected() -> set[str]:
    """The names that the collectors add."""
    calls = [
        node
        for path in sorted((ROOT / "candled" / "metrics").glob("*.py"))
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"samples.add", "samples.add_all", "samples.add_histogram"}
    ]
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


def test_every_family_is_collected():
    assert collected() == {family.name for family in ALL}


async def test_a_scrape_has_only_documented_families_of_the_documented_types(tmp_path):
    async with running(tmp_path, metrics_per_symbol=True) as deployment:
        await deployment.until("feed_events_total", 1, exchange="replay")
        text = await deployment.scrape()
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    own = {name.removeprefix(PREFIX): kind for name, kind in types.items() if name.startswith(PREFIX)}
    documented = {family.name: family.kind for family in ALL}
    assert {name: documented.get(name) for name in own} == own
    assert len(own) > 60
    libraries = {name for name in types if not name.startswith(PREFIX)}
    assert {"process_resident_memory_bytes", "python_gc_collections_total"} <= libraries
    assert all(name.startswith(("process_", "python_gc_")) for name in libraries)
    labels = {family.name: set(family.labels) for family in ALL}
    for name, values in read_series(text):
        base = next((one for one in (name, name.rpartition("_")[0]) if one.removeprefix(PREFIX) in labels), None)
        if base is not None:
            assert {label for label, _ in values} - {"le"} == labels[base.removeprefix(PREFIX)], name


async def test_without_the_setting_no_series_names_a_symbol(tmp_path):
    async with running(tmp_path) as deployment:
        await deployment.until("feed_events_total", 1, exchange="replay")
        text = await deployment.scrape()
        assert "BTC" not in text
        assert json.loads(await deployment.get("/health?verbose"))["exchanges"]["replay"]["symbols"]["BTC/USDT"]
        public = json.loads(await deployment.get("/health?verbose", public=True))
        assert public["exchanges"]["replay"]["symbols"] == 1
        assert '"BTC' not in json.dumps(public)


async def test_the_numbers_of_a_client_are_counted(tmp_path):
    async with running(tmp_path, max_messages_per_second=0) as deployment:
        url = f"ws://127.0.0.1:{deployment.daemon.port}/ws"
        async with websockets.connect(url) as ws:
            await ws.send(json.dumps(BTC))
            assert json.loads(await ws.recv())["type"] == "initial"
            for message in ('{"type":"ping"}', '{"type":"ping"}', "{", '{"type":"list"}'):
                await ws.send(message)
            await ws.send(json.dumps({**BTC, "interval": "5m", "resume": {"epoch": "x", "seq": 1, "time": 0}}))
            await deployment.until("ws_resume_total", 1, result="full")
            series = {name: await deployment.value(name) for name in ("ws_connections", "ws_rooms", "ws_subscriptions")}
            assert series == {"ws_connections": 1, "ws_rooms": 2, "ws_subscriptions": 2}
        await deployment.until("ws_closed_total", 1, code="1000")
        series = read_series(await deployment.scrape())

        def of(name, **labels):
            return series.get((f"candled_{name}", frozenset(labels.items())))

        received = {
            kind: of("ws_messages_received_total", type=kind) for kind in ("subscribe", "ping", "list", "invalid")
        }
        assert received == {"subscribe": 2, "ping": 2, "list": 1, "invalid": 1}
        sent = {kind: of("ws_messages_sent_total", type=kind) for kind in ("initial", "pong", "list", "error")}
        assert sent == {"initial": 2, "pong": 2, "list": 1, "error": 1}
        assert of("ws_sent_bytes_total") > 1000
        assert of("ws_connects_total") == 1
        assert of("ws_connections") == 0


async def test_a_code_that_a_client_invents_makes_no_series(tmp_path):
    async with running(tmp_path) as deployment:
        for code in (3000, 4999, 4998):
            async with websockets.connect(f"ws://127.0.0.1:{deployment.daemon.port}/ws") as ws:
                await ws.close(code)
        await deployment.until("ws_closed_total", 3, code="other")
        reader, writer = await asyncio.open_connection("127.0.0.1", deployment.daemon.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await deployment.until("ws_closed_total", 1, code="1006")


async def test_requests_are_counted_by_route_whoever_answers_them(tmp_path):
    async with running(tmp_path, sections={"klines": {"enabled": True}}) as deployment:
        paths = [
            ("/livez", "/livez", 200), ("/health", "/health", 200), ("/nowhere/1", "other", 404),
            ("/nowhere/2", "other", 404), ("/static/page.css", "/static/*", 200), ("/api/v3/ping", "/api/v3/ping", 200),
            ("/api/nowhere/x", "/api/*", 404), ("/ws", "/ws", 400),
            ("/api/candles?symbol=BTC/USDT&interval=1m", "/api/candles", 200),
        ]  # fmt: skip
        for path, _, status in paths:
            answer = await AsyncHTTPClient().fetch(
                f"http://127.0.0.1:{deployment.daemon.port}{path}", raise_error=False
            )
            assert answer.code == status, path
        for _, route, status in paths:
            await deployment.until("http_requests_total", 2 if route == "other" else 1, route=route, status=str(status))
        series = read_series(await deployment.scrape())
        timed = {
            dict(labels)["route"]: value
            for (name, labels), value in series.items()
            if name == "candled_http_request_seconds_count"
        }
        assert {"/health", "/static/*"} <= timed.keys()
        assert not any("nowhere" in str(labels) for _, labels in series)


async def test_the_summary_has_the_status_of_the_details_and_the_metrics(tmp_path):
    async with running(tmp_path) as harness:
        health, seen = harness.daemon.health, set()
        while seen != {"pass", "warn"}:
            summary, details = await health.summarize(), await health.report()
            assert summary["status"] == details["status"]
            assert await harness.value("healthy") in (0, 1)
            states = {one["state"] for one in details["exchanges"]["replay"]["symbols"].values()}
            assert summary["exchanges"]["replay"]["symbols"] == len(states) == 1
            seen.add(summary["status"])
            if summary["status"] == "pass":
                seen.add("warn")  # it was live at the first look
                harness.daemon._history._failing["x"] = "gone"
                summary = await health.summarize()
                assert summary["status"] == (await health.report())["status"] == "warn"
                assert "gone" not in json.dumps(summary)
                assert await harness.value("db_read_up") == 0
            await asyncio.sleep(0.05)


async def test_several_processes_report_the_bus_and_their_leases(tmp_path, redis):
    sections = {"bus": {"url": shared_redis(), "prefix": f"{tmp_path.name}:"}}
    async with running(tmp_path, sections=sections) as deployment:
        await deployment.until("leases", 1, state="leader")
        await deployment.until("bus_published_total", 1)
        await deployment.until("bus_lag_seconds", 0)
        assert await deployment.value("bus_connected") == 1
        assert await deployment.value("ingest_processes") == 1
        assert await deployment.value("process_info", roles="ingest,serve", store="sqlite", bus="redis") == 1


async def test_the_internal_port_answers_until_the_process_has_ended(tmp_path):
    async with running(tmp_path) as deployment:
        await deployment.until("healthy", 0)
        stopping = asyncio.ensure_future(deployment.stop())
        seen = set()
        while not stopping.done():
            with contextlib.suppress(OSError, HTTPClientError):  # its port is closed
                seen.add((await deployment.get("/readyz")).partition("\n")[0])
        await stopping
    assert "[-]server failed: is stopping" in seen


async def test_the_lag_of_the_loop_is_how_late_a_timer_is():
    clock = ManualClock()
    lag = LoopLag(clock)
    lag.tick()
    assert lag.histogram.count == 0
    for late_s in (0.0, 0.003, 0.3):
        await clock.advance(EVERY_S + late_s)
        lag.tick()
    assert lag.histogram.count == 3
    assert lag.histogram.sum == pytest.approx(0.303)


def test_a_histogram_counts_up_to_and_with_its_bounds():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.5, 7.0):
        histogram.observe(value)
    assert (histogram.cumulative(), histogram.count, histogram.sum) == ([2, 3, 5], 5, 12.5)
