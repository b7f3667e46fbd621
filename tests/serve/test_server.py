"""The server's messages to real clients, over bars that the tests push; pytest-tornado serves them."""

import asyncio
import json
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ByteSize

from candled.clock import SystemClock
from candled.config.sections import ServerSettings
from candled.errors import ConfigError, StoreUnavailable
from candled.model import Decimals, Symbol
from candled.serve.handlers import encode_json
from candled.serve.page import render_page
from candled.universe import Universe
from tests import deadlines, tiers
from tests.api.stage import Stage, open_stage
from tests.clocks import ManualClock
from tests.rows import minute

pytestmark = [pytest.mark.gen_test, pytest.mark.stage(clock=SystemClock())]
STATISTICS = "/health/ws-stats"
SUBSCRIBE = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 5}


async def send_json(ws, message) -> None:
    await ws.send(message if isinstance(message, str | bytes) else json.dumps(message))


async def receive_json(ws, within_s: float = 3.0) -> dict:
    return json.loads(await deadlines.wait_for(ws.recv(), within_s))


@pytest.mark.slow
async def test_the_documented_exchange_of_messages(stage, connect):
    await exchange_messages(stage, connect)


async def exchange_messages(stage: Stage, connect: Callable[..., websockets.connect]) -> None:
    async with connect() as ws:
        await send_json(ws, {"type": "ping"})
        assert await receive_json(ws) == {"type": "pong"}
        await send_json(ws, SUBSCRIBE)
        initial = await receive_json(ws)
        assert (initial["type"], initial["symbol"], initial["interval"], len(initial["bars"])) == (
            "initial",
            "BTC/USDT",
            "1m",
            5,
        )
        stage.push(minute(60, volume="2"))
        update = await receive_json(ws)
        assert (update["type"], update["bar"]["time"]) == ("update", "2025-05-19T01:00:00.000Z")
        await send_json(ws, {"type": "unsubscribe", "symbol": "BTC/USDT", "interval": "1m"})
        await send_json(ws, {"type": "ping"})
        assert await receive_json(ws) == {"type": "pong"}
        stage.push(minute(60, volume="3"))
        with pytest.raises(TimeoutError):
            await receive_json(ws, 1.3)


async def test_one_connection_can_be_in_several_rooms(stage, connect):
    async with connect() as ws:
        for interval in ("1m", "5m", "1W"):
            await send_json(ws, {**SUBSCRIBE, "interval": interval})
        assert [(await receive_json(ws))["interval"] for _ in range(3)] == ["1m", "5m", "1W"]
        stage.push(minute(60, volume="2"))
        assert {(await receive_json(ws))["interval"] for _ in range(3)} == {"1m", "5m", "1W"}


@pytest.mark.parametrize("path", ["/", "/ws"])
async def test_both_paths_upgrade(connect, path):
    async with connect(path) as ws:
        await send_json(ws, {"type": "ping"})
        assert await receive_json(ws) == {"type": "pong"}


async def test_the_root_without_upgrade_is_the_chart_page_and_other_paths_are_not_found(fetch):
    page = await fetch("/")
    assert page.code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert (page.headers["X-Frame-Options"], page.headers["Referrer-Policy"]) == ("DENY", "no-referrer")
    assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    missing = await fetch("/nowhere")
    assert missing.code == 404
    assert json.loads(missing.body) == {"error": {"code": 404, "message": "Not Found"}}


async def test_no_name_ends_the_script_of_the_page_and_every_body_can_be_encoded():
    name = "</script><script>alert(1)</script><!--\u2028&"
    universe = Universe([name])
    universe.set_markets(name, [Symbol("</script>", "USDT")])
    page = await render_page({}, universe, lambda key: Decimals(), ManualClock())
    text = page.decode().partition('id="candled">')[2].partition("</script>")[0]
    assert "<" not in text
    assert json.loads(text)["defaultExchange"] == name
    assert json.loads(encode_json({"trouble": "x\ud800"})) == {"trouble": "x?"}
    assert (
        encode_json({"limit": ByteSize(7), "é": [1.5, None, ("a",)]}) == '{"limit":7,"é":[1.5,null,["a"]]}\n'.encode()
    )
    with pytest.raises(TypeError, match="object"):
        encode_json(object())


@pytest.mark.parametrize("message", ["{", "[1]", b"\x00\x01", '{"type":"subscribe"}', "null", '{"type":5}'])
async def test_a_mistake_is_answered_and_the_connection_stays(connect, message):
    async with connect() as ws:
        await send_json(ws, message)
        assert await receive_json(ws) == {"type": "error", "message": "Invalid message format"}
        await send_json(ws, {"type": "ping"})
        assert await receive_json(ws) == {"type": "pong"}


async def test_a_frame_above_the_limit_closes_with_1009_and_one_below_does_not(connect):
    async with connect() as ws:
        await send_json(ws, json.dumps({"type": "x" * 16_000}))
        assert (await receive_json(ws))["type"] == "error"
        await send_json(ws, "x" * (16 * 1024 + 1))
        with pytest.raises(websockets.ConnectionClosed):
            await receive_json(ws)
        assert ws.close_code == 1009


@pytest.mark.stage(server=ServerSettings(max_rooms_per_connection=2))
async def test_too_many_rooms_is_a_clear_error(connect):
    async with connect() as ws:
        for interval in ("1m", "5m", "15m"):
            await send_json(ws, {**SUBSCRIBE, "interval": interval})
        answers = [await receive_json(ws) for _ in range(3)]
        await send_json(ws, {**SUBSCRIBE, "interval": "1m"})  # sent earlier, it could share the first one's `initial`
        answers = sorted([*answers, await receive_json(ws)], key=lambda answer: answer["type"])
        assert answers[0] == {"type": "error", "message": "Too many subscriptions: at most 2 per connection"}
        assert [answer["type"] for answer in answers[1:]] == ["initial"] * 3


@pytest.mark.slow
@pytest.mark.stage(server=ServerSettings(max_messages_per_second=5))
async def test_too_many_messages_is_a_clear_error_and_the_connection_stays(connect):
    async with connect() as ws:
        for _ in range(30):
            await send_json(ws, {"type": "ping"})
        answers = [await receive_json(ws) for _ in range(30)]
        assert answers.count({"type": "pong"}) in range(10, 13)
        assert {"type": "error", "message": "Too many messages: at most 5 per second"} in answers
        await asyncio.sleep(0.5)
        await send_json(ws, {"type": "ping"})
        assert await receive_json(ws) == {"type": "pong"}


@pytest.mark.stage(server=ServerSettings(max_connections=2))
async def test_connections_beyond_the_limit_are_refused_with_a_reason(connect):
    async with connect(), connect():
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect()
        assert refused.value.response.status_code == 503
        assert b"Too many connections: this server takes 2" in refused.value.response.body


@pytest.mark.stage(server=ServerSettings(max_connections_per_ip=1))
async def test_connections_beyond_the_limit_of_an_address_are_refused(connect):
    async with connect():
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect()
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["Retry-After"]


def pages(*origins: str) -> dict[str, Any]:
    return {"server": ServerSettings(allowed_origins=origins)}


@pytest.mark.parametrize(
    ("stage_options", "origin", "host", "status"),
    [
        (pages("*"), "https://anything.example", None, 101),
        (pages("*"), None, None, 101),
        (pages("https://mine.example"), "https://mine.example", None, 101),
        (pages("https://mine.example"), "https://MINE.example", None, 101),
        (pages("https://mine.example"), "https://other.example", None, 403),
        (pages("https://mine.example"), "http://mine.example", None, 403),
        (pages("https://mine.example"), "https://mine.example:444", None, 403),
        (pages("https://mine.example"), "null", None, 403),
        (pages("https://mine.example"), "https://mine.example.evil.example", None, 403),
        (pages("https://mine.example"), None, None, 101),
        (pages(), "http://candles.example", "candles.example", 101),
        (pages(), "https://other.example", None, 403),
    ],
)
@pytest.mark.usefixtures("http_server")
async def test_the_origin_policy(http_port, origin, host, status):
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: {host or '127.0.0.1'}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *([f"Origin: {origin}"] if origin else []),
    ]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = await reader.readline()
    writer.close()
    assert int(answer.split()[1]) == status


async def test_statistics_have_exactly_the_specified_keys(connect, get):
    async with connect() as ws:
        await send_json(ws, SUBSCRIBE)
        await receive_json(ws)
        facts = await get(STATISTICS)
        assert list(facts) == ["connections", "broadcaster", "aggregator"]
        assert facts["connections"] == 1
        assert list(facts["broadcaster"]) == ["totalRooms", "totalClients", "rooms"]
        assert list(facts["broadcaster"]["rooms"][0]) == ["key", "clientCount", "hasCandle", "lastBroadcast"]
        assert facts["aggregator"] == {"oneMinuteCandlesCount": 60}


async def test_a_client_that_left_is_in_no_room(connect, get):
    async with connect() as ws:
        await send_json(ws, SUBSCRIBE)
        await receive_json(ws)
    for _ in range(100):
        facts = await get(STATISTICS)
        if facts["connections"] == 0:
            break
        await asyncio.sleep(0.02)
    assert facts["broadcaster"]["totalRooms"] == 0


@pytest.mark.slow
async def test_the_end_is_sent_with_1001(stage, connect):
    clients = [await connect() for _ in range(20)]
    for ws in clients:
        await send_json(ws, SUBSCRIBE)
        await receive_json(ws)
    await stage.server.stop()
    for ws in clients:
        with pytest.raises(websockets.ConnectionClosed):
            await receive_json(ws)
        assert ws.close_code == 1001


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Tornado leaves the socket to the collector
async def test_a_port_in_use_is_one_clear_message(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: the port is in use"):
            async with open_stage(tmp_path, server=ServerSettings(host="127.0.0.1", port=port)) as one:
                one.server.listen()


@pytest.mark.slow
@pytest.mark.stage(minutes=900, server=ServerSettings(warmup_wait=timedelta(seconds=0.2)))
async def test_a_store_that_cannot_be_read_is_reported_to_the_subscriber_and_the_connection_stays(
    stage, connect, monkeypatch
):
    async with connect() as ws:

        def fail(*_, **__):
            raise StoreUnavailable("gone")

        monkeypatch.setattr(stage.store, "read_bars", fail)
        await send_json(ws, {**SUBSCRIBE, "initialBars": 900})
        assert await receive_json(ws) == {"type": "error", "message": "Failed to subscribe to candles"}
        await send_json(ws, {"type": "ping"})
        assert await receive_json(ws) == {"type": "pong"}
        monkeypatch.undo()
        assert len((await receive_json(ws))["bars"]) == 900


@pytest.mark.slow
@pytest.mark.stage(server=ServerSettings(ping_interval=timedelta(seconds=1), ping_timeout=timedelta(seconds=1)))
async def test_mute_clients_leave_within_interval_timeout_and_six_seconds(connect, http_port, get):
    """Promise 23: native pings find dead peers."""
    mute = []
    for _ in range(50):
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        mute.append(writer)
    assert (await get(STATISTICS))["connections"] == 50
    async with connect() as alive:
        await asyncio.sleep(8.0)
        assert (await get(STATISTICS))["connections"] == 1
        await send_json(alive, {"type": "ping"})
        assert await receive_json(alive) == {"type": "pong"}
    for writer in mute:
        writer.close()


FRAMES = (
    st.text(max_size=200)
    | st.binary(max_size=200)
    | st.sampled_from(
        [
            '{"type":"ping"}',
            '{"type":"subscribe","symbol":"BTC/USDT","interval":"1m"}',
            '{"type":"unsubscribe","symbol":"BTC/USDT","interval":"1m"}',
        ]
    )
)


@pytest.mark.slow
@pytest.mark.stage(server=ServerSettings(max_messages_per_second=0))
async def test_thousands_of_frames_of_anything_get_only_documented_answers(connect, caplog):
    """Promise 19: no uncaught exception, every reply is a documented message."""
    drawn: list = []

    @given(st.lists(FRAMES, min_size=100, max_size=100))
    @settings(
        max_examples=100 if tiers.LONG else 30, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    def draw(frames):
        drawn.append(frames)

    draw()
    async with connect() as ws:
        for frames in drawn:
            for frame in frames:
                await send_json(ws, frame)
            await send_json(ws, '{"type":"unheard"}')
            while True:
                answer = await receive_json(ws)
                assert answer["type"] in ("initial", "update", "error", "pong")
                if answer == {"type": "error", "message": "Unknown message type: unheard"}:
                    break
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@pytest.mark.slow
async def test_nothing_is_logged_per_room_or_candle(stage, connect, caplog):
    """Fault 10: a log line per room per second."""
    caplog.set_level("INFO")
    async with connect() as ws:
        for interval in ("1m", "5m", "1h"):
            await send_json(ws, {**SUBSCRIBE, "interval": interval})
            await receive_json(ws)
        before = len(caplog.records)
        for second in range(3):
            stage.push(minute(60, volume=str(second + 2)))
            await asyncio.sleep(1.0)
        assert [record for record in caplog.records[before:] if record.name.startswith("candled")] == []


def test_the_page_is_shipped_with_its_chart_library_and_its_licence():
    from candled.serve.handlers import STATIC

    vendor = STATIC / "vendor" / "lightweight-charts"
    names = {path.name for path in vendor.iterdir()}
    assert {"LICENSE", "NOTICE"} <= names
    assert "__CANDLED__" in (STATIC / "index.html").read_text("utf-8")
