"""The escalation over sockets, in virtual time: an answer waits, then an error, then the connection ends."""

import asyncio
import contextlib
import json
import socket
import struct
from datetime import timedelta

import pytest
import websockets

from candled.config import LimitSettings, ServerSettings
from candled.serve.rate_limit import TOO_MANY
from tests import deadlines
from tests.api.raw import ask_all
from tests.api.stage import open_stage
from tests.serve.peers import CLOSE, HANDSHAKE, PING, PONG, TEXT, connect, frame

pytestmark = pytest.mark.gen_test
SUBSCRIBE = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 1000}
HOME = "127.0.0.1"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
BURST_S = 20.0
SHORT = {"work_burst": timedelta(seconds=1), "work_wait": timedelta(seconds=1)}


def server(**settings):
    return ServerSettings(**{"host": HOME, "port": 0, "max_messages_per_second": 0, **settings})


def owe(stage, seconds: float, address: str = HOME) -> None:
    """Let an address have used up its budget, so that it is paid in so many seconds."""
    stage.server._budgets.address_bucket(address).paid_at = stage.clock.monotonic() + seconds


async def _read_close(peer) -> bytes:
    while True:
        first, payload = await peer.receive()
        if first == 0x80 | CLOSE:
            return payload


async def receive_json(ws) -> dict:
    return json.loads(await deadlines.wait_for(ws.recv(), 5))


@pytest.mark.slow
@pytest.mark.stage(server=server(), limits=LimitSettings(**SHORT))
async def test_an_initial_waits_then_there_are_errors_then_the_end(stage):
    async with websockets.connect(f"ws://{HOME}:{stage.server.listen()}/ws") as ws:
        for _ in range(100):  # of 0.98 ms each: 0.1 s are saved up
            await ws.send(json.dumps(SUBSCRIBE))
            assert (await receive_json(ws))["type"] == "initial"
        for number in range(10):
            await ws.send(json.dumps({**SUBSCRIBE, "id": number}))
        await ws.send('{"type":"ping"}')
        received = []
        while "pong" not in received:
            received.append((await receive_json(ws))["type"])
        assert [one for one in received if one != "initial"] == ["subscribed"] * 10 + ["pong"]
        assert received.count("initial") < 4
        await stage.clock.advance(0.5)
        assert (await receive_json(ws))["type"] == "initial"
        for _ in range(200):
            await ws.send(json.dumps({**SUBSCRIBE, "id": "x"}))
        while (one := await receive_json(ws))["type"] != "error":
            assert one["type"] in ("subscribed", "initial")
        text = "Too much work: ask again later"
        assert one == {"type": "error", "message": text, "id": "x", "code": 111, "temporary": True}
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await ws.send(json.dumps(SUBSCRIBE))
                await receive_json(ws)
        assert ws.close_code == 3013


@pytest.mark.stage(server=server(max_messages_per_second=5), limits=LimitSettings(**SHORT))
async def test_messages_above_the_limit_use_the_budget_until_the_connection_ends(stage):
    errors = 0
    async with websockets.connect(f"ws://{HOME}:{stage.server.listen()}/ws") as ws:
        with contextlib.suppress(websockets.ConnectionClosed):
            while errors < 1000:
                await ws.send('{"type":"ping"}')
                errors += (await receive_json(ws))["type"] == "error"
    assert ws.close_code == 3013
    assert 5 < errors < 100


@pytest.mark.stage(server=server(), limits=LimitSettings())
async def test_history_waits_and_is_refused(stage):
    async with websockets.connect(f"ws://{HOME}:{stage.server.listen()}/ws") as ws:
        history = json.dumps({"type": "history", "symbol": "BTC/USDT", "interval": "1m", "id": 1})
        await ws.send('{"type":"ping"}')
        await receive_json(ws)
        owe(stage, 4.0)
        await ws.send(history)
        await ws.send('{"type":"ping"}')
        assert (await receive_json(ws))["type"] == "pong"
        await stage.clock.advance(4.5)
        async with deadlines.timeout(5):
            assert (await receive_json(ws))["type"] == "history"
        owe(stage, 10.0)
        await ws.send(history)
        assert (await receive_json(ws))["code"] == 111


@pytest.mark.stage(server=server(), limits=LimitSettings(**SHORT))
async def test_a_new_pattern_costs_more_than_one_in_use_and_is_refused_when_the_budget_is_used_up(stage):
    async with websockets.connect(f"ws://{HOME}:{stage.server.listen()}/ws") as ws:
        bucket = stage.server._budgets.address_bucket(HOME)

        async def cost_of(symbol: str) -> float:
            now = stage.clock.monotonic()
            before = max(bucket.paid_at, now - 1.0)  # a second of work adds up at most
            await ws.send(json.dumps({**SUBSCRIBE, "symbol": symbol, "mode": "closed", "id": 1}))
            assert (await receive_json(ws))["type"] == "subscribed"
            return bucket.paid_at - before

        assert await cost_of("*") > 5 * await cost_of("*")
        owe(stage, 10.0)
        await ws.send(json.dumps({**SUBSCRIBE, "symbol": "/^B/", "mode": "closed", "id": 2}))
        assert (await receive_json(ws))["code"] == 111
        assert stage.hub.room_count == 1


@pytest.mark.parametrize(
    ("own_sockets", "opcode", "fin"),
    [
        (True, PONG, True),
        (True, PING, True),
        (True, TEXT, False),  # then empty continuation frames
        (True, TEXT, True),
        (False, PING, True),
        (False, PONG, True),
    ],
)
async def test_a_flood_of_frames_ends(tmp_path, own_sockets, opcode, fin):
    limits = LimitSettings(connection_work=timedelta(milliseconds=1), **SHORT)
    async with open_stage(tmp_path, 1, limits=limits, server=server(own_sockets=own_sockets)) as stage:
        peer = await connect(stage.server.listen())
        reading = asyncio.create_task(_read_close(peer))
        peer.send(frame(opcode, fin=fin))
        for _ in range(10):
            peer.send(frame(opcode if fin else 0, fin=fin) * 80)
            await asyncio.sleep(0)
        payload = await reading
        peer.close()
        assert int.from_bytes(payload[:2], "big") == 3013


CLIENT = {"X-Forwarded-For": "192.0.2.7"}
PATHS = {
    "/health": b'{"error":{"code":429,"message":"%b"}}\n',
    "/nowhere": b'{"error":{"code":429,"message":"%b"}}\n',
    "/api/symbols": b"%b",
    "/udf/time": b'{"s":"error","errmsg":"%b"}',
}


@pytest.mark.stage(server=server(trusted_proxies=(HOME,)), limits=LimitSettings())
@pytest.mark.parametrize("path", PATHS)
async def test_a_client_behind_a_proxy_is_refused_alone(stage, path):
    port = stage.server.listen()
    owe(stage, 7.0, "192.0.2.7")
    refused, other = await ask_all(port, [(path, CLIENT), ("/health/live", {"X-Forwarded-For": "192.0.2.8"})])
    assert (refused.status, refused.headers["retry-after"], other.status) == (429, "5", 200)
    assert refused.body == PATHS[path] % TOO_MANY.encode()


@pytest.mark.slow
@pytest.mark.stage(server=server(), limits=LimitSettings())
async def test_a_request_waits_then_is_refused_unread_then_its_connection_too(stage):
    port = stage.server.listen()
    kept = await asyncio.open_connection(HOME, port)
    kept[1].write(LIVE)
    async with deadlines.timeout(5):
        await kept[0].readuntil(b"}\n")
    for target in ("/health", "/"):
        owe(stage, 3.0)
        waiting = stage.clock.sleepers
        asking = asyncio.create_task(ask_all(port, [(target, {})]))
        async with deadlines.timeout(5):
            while stage.clock.sleepers == waiting:
                await asyncio.sleep(0.001)
        assert not asking.done()
        await stage.clock.advance(3.5)
        assert (await deadlines.wait_for(asking, 5))[0].status == 200
    owe(stage, 7.0)
    kept[1].write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
    async with deadlines.timeout(5):
        answer = await kept[0].read()  # to the end
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"\r\nRetry-After: 5\r\n" in answer
        writers = [kept[1]]
        for _ in range(21):  # the reserve for probes reads the first ones
            reader, writer = await asyncio.open_connection(HOME, port)
            writers.append(writer)
        assert (await reader.read()).startswith(b"HTTP/1.1 429 ")  # before a request is sent
    for one in writers:
        one.close()
    await stage.clock.advance(8.0)
    assert (await ask_all(port, [("/health/live", {})]))[0].status == 200


@pytest.mark.slow
@pytest.mark.stage(server=server(prefix="/here"), limits=LimitSettings())
@pytest.mark.parametrize("is_kept", [True, False])
async def test_probes_are_answered_from_a_reserve_when_the_budget_is_used_up(stage, is_kept):
    port = stage.server.listen()
    probes = [("/health/live", {}), ("/health/ready", {}), ("/here/health/live?x", {}), ("/here/health/ready", {})]
    more = [("/health/live", {}), ("/nowhere", {})]

    async def ask(requests):
        if is_kept:
            return [answer.status for answer in await ask_all(port, requests)]
        return [answer.status for request in requests for answer in await ask_all(port, [request])]

    owe(stage, 4.0)  # other requests have to wait
    assert await ask(probes) == [200] * 4
    await stage.clock.advance(2.0)
    owe(stage, 8.0)
    assert await ask(probes) == [200] * 4
    assert (await ask_all(port, [("/nowhere", {})]))[0].status == 429
    used = [answer.status for _ in range(21) for answer in await ask_all(port, [("/health/live", {})])]
    assert used[0] == 200
    assert used[-1] == 429
    await stage.clock.advance(1.0)
    owe(stage, 8.0)
    assert await ask(more) == [200, 429]


@pytest.mark.slow
@pytest.mark.stage(server=server(), limits=LimitSettings())
async def test_nothing_is_left_of_connections_that_end_abruptly(stage):
    port = stage.server.listen()
    peers = []
    for request in (
        b"",
        b"GET / HT",
        LIVE,
        f"{HANDSHAKE}\r\n".encode(),
        b"GET /events?symbol=BTC/USDT HTTP/1.1\r\n\r\n",
    ):
        peer = socket.create_connection((HOME, port))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.send(request)
        peers.append(peer)
    budgets = stage.server._budgets
    async with deadlines.timeout(5):
        while not (stage.server.connection_count == 1 and len(stage.server._connections) == 3):
            await asyncio.sleep(0.001)
        assert budgets.address_bucket(HOME).members == 4
        for peer in peers:
            peer.close()
        while budgets.address_bucket(HOME).members:
            await asyncio.sleep(0.001)
    await stage.clock.advance(BURST_S)
    assert (len(budgets), stage.server.connection_count, len(stage.server._connections)) == (0, 0, 0)
