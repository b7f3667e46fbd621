"""Connections that end abruptly, in any order and at any point: no descriptor, count, budget or task is left.

A real server and real sockets, in virtual time.
"""

import asyncio
import contextlib
import socket
import struct
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from candled.config import LimitSettings, ServerSettings
from candled.config.sections import KlinesSettings
from tests import deadlines
from tests.api.stage import Stage, open_stage
from tests.rows import minute
from tests.serve.peers import CLOSE, HANDSHAKE, PING, TEXT, frame

GET = "GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
SUBSCRIBE = b'{"type":"subscribe","symbol":"BTC/USDT","interval":"%b","initialBars":1000}'
HISTORY = b'{"type":"history","symbol":"BTC/USDT","interval":"1m","id":1,"limit":1000}'
STREAM = f"{HANDSHAKE}\r\n".encode()
BEGINNINGS = {
    "nothing": b"",
    "half a header": b"GET / HTTP/1.1\r\nHost",
    "a probe": (GET % "/health/live").encode(),
    "pages behind each other": "".join(GET % path for path in ("/", "/health", "/nowhere", "/api/nowhere")).encode(),
    "bars": (GET % "/udf/history?symbol=BTCUSDT&resolution=1&from=0&to=9999999999&countback=5000").encode(),
    "bars of the past": (GET % "/api/candles?symbol=BTC/USDT&interval=1m&limit=5000&from=0").encode(),
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx",
    "events": (GET % "/events?symbol=BTC/USDT&interval=1m").encode(),
    "klines": STREAM.replace(b"/ws", b"/ws/btcusdt@kline_1m"),
    "a handshake": STREAM,
    "rooms": STREAM + b"".join(frame(TEXT, SUBSCRIBE % name) for name in (b"1m", b"5m", b"1h", b"1D")),
    "garbage": b"\x16\x03\x01\x00\r\n\r\n",
}
WORDS = {
    "a line": b": x\r\n",
    "the end of a header": b"\r\n\r\n",
    "a subscription": frame(TEXT, SUBSCRIBE % b"15m"),
    "history": frame(TEXT, HISTORY) * 3,
    "half a frame": frame(TEXT, SUBSCRIBE % b"1W")[:20],
    "pings": frame(PING) * 100,
    "a close": frame(CLOSE, b"\x03\xe8"),
}
SMALL = {"work_burst": "1s", "work_wait": "1s"}


def open_sockets() -> int:
    """Count the sockets of this process."""
    count = 0
    for one in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            count += str(one.readlink()).startswith("socket:")
    return count


class AbruptEnds(RuleBasedStateMachine):
    """Clients of three addresses, and a server that counts them."""

    server: ClassVar = {"max_connections": 12, "max_connections_per_ip": 4}

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.closing = AsyncExitStack()
        self.peers: list[socket.socket] = []
        self.number = 60
        self.stage: Stage = self.runner.run(self.begin())

    async def begin(self) -> Stage:
        folder = self.closing.enter_context(tempfile.TemporaryDirectory())
        stage = await self.closing.enter_async_context(
            open_stage(
                Path(folder),
                server=ServerSettings(host="127.0.0.1", port=0, **self.server),
                limits=LimitSettings(**SMALL),
                klines=KlinesSettings(enabled=True),
            )
        )
        self.port = stage.server.listen()
        await stage.clock.settle()
        self.before = open_sockets(), self.tasks()
        return stage

    @staticmethod
    def tasks() -> Counter[str]:
        return Counter(task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task())

    async def settle(self) -> None:
        """Let the server read what was sent, and its threads read the store."""
        for _ in range(3):
            await asyncio.sleep(0.0005)
            await self.stage.clock.settle()

    # ---------------------------------------------------------------- clients

    @rule(address=st.sampled_from(["127.0.0.2", "127.0.0.3", "127.0.0.4"]), kind=st.sampled_from(sorted(BEGINNINGS)))
    def connect(self, address, kind):
        peer = socket.create_connection(("127.0.0.1", self.port), source_address=(address, 0))
        peer.setblocking(False)
        peer.send(BEGINNINGS[kind])
        self.peers.append(peer)
        self.runner.run(self.settle())

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), word=st.sampled_from(sorted(WORDS)))
    def send_json(self, data, word):
        with contextlib.suppress(OSError):  # the server may have closed it
            data.draw(st.sampled_from(self.peers)).send(WORDS[word])
        self.runner.run(self.settle())

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def read(self, data):
        peer = data.draw(st.sampled_from(self.peers))
        with contextlib.suppress(OSError):
            while peer.recv(2**20):
                self.runner.run(self.settle())

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), is_reset=st.booleans())
    def end(self, data, is_reset):
        peer = data.draw(st.sampled_from(self.peers))
        self.peers.remove(peer)
        self.hang_up(peer, is_reset=is_reset)
        self.runner.run(self.settle())

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def send_no_more(self, data):
        with contextlib.suppress(OSError):
            data.draw(st.sampled_from(self.peers)).shutdown(socket.SHUT_WR)
        self.runner.run(self.settle())

    @staticmethod
    def hang_up(peer: socket.socket, *, is_reset: bool) -> None:
        if is_reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    # ---------------------------------------------------------------- the server's world

    @rule(seconds=st.sampled_from([0.02, 0.5, 3.0]))
    def wait(self, seconds):
        self.runner.run(self.stage.clock.advance(seconds))

    @rule(seconds=st.sampled_from([11.0, 41.0, 76.0]))
    def wait_long(self, seconds):
        self.runner.run(self.stage.clock.leap(seconds))

    @rule()
    def update(self):
        self.number += 1
        self.runner.run(self.push())

    async def push(self) -> None:
        self.stage.push(minute(self.number, final=True))
        await self.settle()

    @invariant()
    def no_more_are_counted_than_there_are(self):
        async def counted() -> None:
            async with deadlines.timeout(5):
                while self.counts()[0] > len(self.peers):
                    await self.settle()

        self.runner.run(counted())
        server = self.stage.server
        connections, members, unsent = self.counts()
        assert connections == members
        assert unsent == sum(one.unsent for one in server._connections._is_counted) >= 0
        assert connections <= 12 + 100

    def counts(self) -> tuple[int, int, int]:
        """The connections that are counted, those that have a budget, and bytes of answers that are not sent."""
        server = self.stage.server
        members = sum(one.members for key, one in server._budgets._addresses.items() if "/56" not in key)
        return len(server._connections) + server.connection_count, members, server._connections.unsent

    def teardown(self):
        for number, peer in enumerate(self.peers):
            self.hang_up(peer, is_reset=bool(number % 2))
        try:
            self.runner.run(self.check_empty())
        finally:
            self.runner.run(self.closing.aclose())
            self.runner.close()

    async def check_empty(self) -> None:
        stage, server = self.stage, self.stage.server
        limiter, connections = server._limiter, server._connections
        for _ in range(60):
            if self.counts() == (0, 0, 0) and (open_sockets(), self.tasks()) == self.before:
                break
            self.number += 1
            await self.push()  # a stream of events whose client had sent more notices its end when it is written to
            await stage.clock.leap(5.0)  # answers that wait for their budget
        else:
            raise AssertionError(
                (
                    self.counts(),
                    open_sockets(),
                    self.tasks() - self.before[1],
                    self.before[1] - self.tasks(),
                    self.before,
                )
            )
        await stage.clock.leap(100.0)
        await stage.clock.leap(1.0)
        assert (len(server._budgets), limiter.count, limiter._networks, limiter._customers) == (0, 0, {}, {})
        assert (connections._customers, connections._refusals, connections._refused_until) == ({}, {}, {})
        assert not server._context.connections
        assert not server._context._tornado_connections
        assert stage.hub.describe()["totalClients"] == 0
        assert all(room["clientCount"] == 0 for room in stage.hub.describe_rooms())
        assert not server._context.broadcaster.is_busy


class AbruptEndsByTornado(AbruptEnds):
    """The same while Tornado keeps the sockets of clients."""

    server: ClassVar = {**AbruptEnds.server, "own_sockets": False}


# no shrinking: a sequence takes half a second
SHORT = settings(stateful_step_count=20, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
AbruptEnds.TestCase.settings = settings(SHORT, max_examples=6)
TestAbruptEnds = pytest.mark.slow(AbruptEnds.TestCase)  # many sequences
AbruptEndsByTornado.TestCase.settings = settings(SHORT, max_examples=3)
TestAbruptEndsByTornado = pytest.mark.slow(AbruptEndsByTornado.TestCase)
