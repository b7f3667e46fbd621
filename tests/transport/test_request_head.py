"""Heads of requests that arrive in pieces reach Tornado complete."""

import asyncio
import gc
import re
import socket
import struct
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.serve.connection_limiter import ConnectionLimiter
from candled.transport.broadcaster import Broadcaster
from candled.transport.hot_stream import HotStream
from candled.transport.http_connections import HttpConnections
from candled.transport.library_internals import has_buffered_bytes
from candled.transport.request_head import LARGEST, TAIL, RequestHead
from candled.transport.stream_poller import StreamPoller
from candled.transport.work_budget import HEAD_PART, WorkBudgets
from tests import deadlines
from tests.clocks import ManualClock
from tests.serve.peers import HANDSHAKE, echo_harness

TORNADOS = re.compile(rb"\r?\n\r?\n")
LINES = st.lists(st.sampled_from([b"\r", b"\n", b"a", b"bc"]), max_size=12)


@pytest.mark.slow
@given(parts=st.lists(LINES.map(b"".join), max_size=8), parsed=LINES.map(b"".join))
def test_tornado_gets_all_bytes_as_soon_as_it_finds_the_end_in_them(parts, parsed):
    if TORNADOS.search(parsed):
        parsed = b""
    head, sent = RequestHead(parsed[-TAIL:], len(parsed)), b""
    for part in filter(None, parts):
        sent += part
        passed = head.add_data(part)
        assert (passed is not None) == bool(TORNADOS.search(parsed + sent))
        if passed is not None:
            assert passed == sent
            return
        assert head.waiting == len(sent)


@pytest.mark.parametrize("before", [0, 1000])
def test_a_head_that_is_too_large_is_passed_on_to_be_refused(before):
    head = RequestHead(b"x" * min(before, TAIL), before)
    assert head.add_data(b"x" * (LARGEST - before)) is None
    assert head.add_data(b"x") == b"x" * (LARGEST - before + 1)


class Harness:
    """A stream of the server, the client's socket, and the budget of the client's address."""

    def __init__(self) -> None:
        self.clock = ManualClock(0)
        self.budgets = WorkBudgets(0.1, 0.25, burst_s=20.0, wait_s=5.0)
        limiter = ConnectionLimiter(0, 0)
        connections = HttpConnections(
            limiter, most=0, most_per_address=0, header_s=10, idle_s=60, stalled_s=30, budgets=self.budgets
        )
        self.client, peer = socket.socketpair()
        loop = asyncio.get_running_loop()
        self.poller = StreamPoller(loop, Broadcaster(loop.call_soon, loop.call_later, lambda: 0.0).has_time_to_answer)
        self.stream = HotStream(peer, ("192.0.2.1", 1), lambda *_: None, self.clock, connections, self.poller)

    def expect(self) -> "asyncio.Future[bytes]":
        """Read a request, as Tornado does."""
        self.stream.expect_request()
        return self.stream.read_until_regex(b"\r?\n\r?\n", max_bytes=LARGEST)

    async def send(self, data: bytes) -> None:
        self.client.sendall(data)
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture
async def harness():
    harness = Harness()
    yield harness
    harness.stream.close()
    harness.client.close()
    harness.poller.close()


async def test_tornado_searches_no_part_of_a_head(harness):
    head = harness.expect()
    for part in (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", *[b"y"] * 50, b"\r", b"\n", b"\r"):
        await harness.send(part)
        assert not has_buffered_bytes(harness.stream)
        assert not head.done()
    await harness.send(b"\nGET /2 HTTP/1.1\r")
    assert bytes(await head).endswith(b"y" * 50 + b"\r\n\r\n")
    second = harness.expect()  # Tornado has its begin
    for part in (b"\n", b"A: b", b"\r\n", b"\r"):
        await harness.send(part)
    assert not second.done()
    await harness.send(b"\n")
    assert bytes(await second) == b"GET /2 HTTP/1.1\r\nA: b\r\n\r\n"


async def test_the_first_request_waits_for_its_turn_too(harness):
    harness.client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    head = harness.expect()
    assert not head.done()
    assert bytes(await head) == b"GET / HTTP/1.1\r\n\r\n"


async def test_a_connection_that_is_reset_keeps_no_buffer(harness):
    harness.expect().add_done_callback(lambda head: head.exception())
    harness.stream.socket.send(b"x")
    harness.client.close()  # with unread bytes, which is a reset
    while not harness.stream.closed():
        await asyncio.sleep(0)
    assert isinstance(harness.stream.error, ConnectionResetError)
    assert harness.stream.error.__traceback__ is None, "its frames have the buffer"


async def test_connections_that_are_reset_are_freed_without_a_collection():
    """Thousands of them would wait for one, which then blocks the loop."""
    async with echo_harness() as harness:
        streams: weakref.WeakSet[HotStream] = weakref.WeakSet()
        add = harness.server._connections.add_connection
        harness.server._connections.add_connection = lambda one, now: (streams.add(one), add(one, now))
        gc.disable()
        try:
            for _ in range(10):
                client = socket.create_connection(("127.0.0.1", harness.port))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.send(f"{HANDSHAKE}\r\n".encode())
                client.close()
            async with deadlines.timeout(5):
                await (await harness.connect()).writer.drain()  # accepted behind them
                while len(harness.server._connections):
                    await asyncio.sleep(0.002)
                while streams:
                    await asyncio.sleep(0.002)
        finally:
            gc.enable()


async def test_parts_are_charged_and_end_the_connection(harness):
    head = harness.expect()
    await harness.send(b"GET / HTTP/1.1\r\nX: ")
    harness.stream.budget.charge(0.1 * 25, 0.0)  # all that was saved up, and the longest wait
    before = harness.stream.budget.paid_at
    await harness.send(b"y")
    assert harness.stream.budget.paid_at == pytest.approx(before + HEAD_PART / 0.1)
    assert harness.client.recv(100).startswith(b"HTTP/1.1 429 ")
    assert head.done() or harness.stream.closed()
    head.cancel()
