"""Requests that are refused, and pages that many clients request, cost others nothing."""

import asyncio
import socket
import struct
from unittest.mock import Mock

import pytest

from candled.config import LimitSettings, ServerSettings
from candled.transport.library_internals import stream_of
from candled.transport.socket_detach import SocketDetach
from tests import deadlines
from tests.api.raw import ask_all
from tests.serve.peers import HANDSHAKE, connect, echo_harness

pytestmark = [pytest.mark.gen_test]
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
FEW = ServerSettings(host="127.0.0.1", port=0, max_handshakes_per_second=2)


@pytest.mark.stage(server=FEW)
@pytest.mark.parametrize("path", ["/ws", "/events?symbol=NO/PE&interval=1m", "/events?interval=1m"])
async def test_what_is_no_handshake_takes_none_from_others(stage, path):
    port = stage.server.listen()
    answers = await ask_all(port, [(path, {})] * 6)
    assert [answer.status for answer in answers] == [400] * 6
    (answer,) = await ask_all(port, [("/ws", UPGRADE)])
    assert answer.status == 101


@pytest.mark.stage(
    server=ServerSettings(
        host="127.0.0.1",
        port=0,
        max_handshakes_per_second=2,
        max_connections_per_ip=1,
        allowed_origins=("https://a.example",),
    )
)
@pytest.mark.parametrize(
    ("changes", "is_full", "status"),
    [
        ({"Sec-WebSocket-Key": ""}, False, 400),
        ({"Connection": "close, x"}, False, 400),
        ({"Origin": "https://evil.example"}, False, 403),
        ({"Sec-WebSocket-Version": "12"}, False, 426),
        ({}, True, 429),  # the address has as many connections as it may have
    ],
    ids=lambda value: str(value),
)
async def test_a_handshake_that_fails_takes_none_from_others(stage, changes, is_full, status):
    port, limiter = stage.server.listen(), stage.server._limiter
    if is_full:
        limiter.add_connection("127.0.0.1")
    for _ in range(6):
        (answer,) = await ask_all(port, [("/ws", {**UPGRADE, **changes})])
        assert answer.status == status
    if is_full:
        limiter.remove_connection("127.0.0.1")
    (answer,) = await ask_all(port, [("/ws", UPGRADE)])
    assert answer.status == 101


@pytest.mark.slow
@pytest.mark.stage(limits=LimitSettings(api_requests=1))
async def test_repeated_refusals_end_the_connection_unread(stage):
    port = stage.server.listen()
    path = "/api/symbols"
    answers = await ask_all(port, [(path, {})] * 53)
    assert [answer.status for answer in answers] == [200] + [429] * 52
    assert answers[-2].headers["retry-after"] == "900"
    assert answers[-1].headers["retry-after"] == "5"
    assert answers[-1].headers["connection"] == "close"
    (live,) = await ask_all(port, [("/health/live", {})])
    assert live.status == 200
    (ready,) = await ask_all(port, [("/health/ready", {})])
    assert ready.status == 200
    await stage.clock.advance(6)
    (read,) = await ask_all(port, [(path, {})])
    assert read.headers["retry-after"] == "894"


@pytest.mark.stage(server=ServerSettings(host="127.0.0.1", port=0, max_connections_per_ip=1))
@pytest.mark.parametrize("path", ["/ws", "/"])
async def test_a_handshake_beyond_the_limits_is_refused_before_tornado_parses_it(stage, path, monkeypatch):
    port = stage.server.listen()
    client = await connect(port)
    found = Mock(wraps=stage.server.application.find_handler)
    monkeypatch.setattr(stage.server.application, "find_handler", found)
    (cheap,) = await ask_all(port, [(path, UPGRADE)])
    assert not found.called
    (slow,) = await ask_all(
        port, [(path, {"upgrade" if name == "Upgrade" else name: UPGRADE[name] for name in UPGRADE})]
    )
    assert found.called
    assert (cheap.status, cheap.body) == (slow.status, slow.body)
    assert (cheap.status, cheap.headers["retry-after"]) == (429, slow.headers["retry-after"])
    client.close()


async def test_a_handshake_that_the_client_resets_logs_nothing(caplog):
    async with echo_harness() as harness:
        for _ in range(5):
            peer = socket.create_connection(("127.0.0.1", harness.port))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.send(f"{HANDSHAKE}\r\n".encode())
            peer.close()
        async with deadlines.timeout(5):
            await harness.connect()  # accepted behind them
            while len(harness.server._connections):
                await asyncio.sleep(0.002)
    assert caplog.records == []


async def test_a_handshake_whose_connection_ended_before_its_turn_logs_nothing(caplog, monkeypatch):
    async def end_and_accept(self, handler, accept=SocketDetach.accept_connection):
        stream_of(handler.request).close()
        await accept(self, handler)

    async with echo_harness() as harness:
        with monkeypatch.context() as patch:
            patch.setattr(SocketDetach, "accept_connection", end_and_accept)
            reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
            writer.write(f"{HANDSHAKE}\r\n".encode())
            assert await deadlines.wait_for(reader.read(), 5) == b""
            writer.close()
        await harness.connect()
        assert harness.server.connection_count == 1
    assert caplog.records == []
