"""A server whose clients echo, and a peer that speaks raw frames to it."""

import asyncio
import os
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

from candled.clock import SystemClock
from candled.config.sections import ServerSettings
from candled.model import Topic
from candled.protocol.frames import Frame
from candled.rooms.recipients import Recipients, RecipientSlot
from candled.serve.health_handlers import HealthReports
from candled.serve.server import LARGEST_MESSAGE, Server
from candled.transport.broadcaster import Broadcaster
from candled.transport.connection import ClientConnection
from tests import deadlines

HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
T = TypeVar("T")
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def answering(facts: T) -> Callable[[], Awaitable[T]]:
    """Return a source that always has these facts."""

    async def answer() -> T:
        return facts

    return answer


def make_reports(**more: Any) -> HealthReports:
    """The reports of a process that is well."""
    reports: dict[str, Any] = {
        "summarize": answering({"status": "pass", "exchanges": {}}),
        "report": answering({"status": "pass", "exchanges": {}, "store": {"lastError": None}}),
        "check_readiness": answering({"store": None}),
        "count_clients": answering({}),
        "is_stopping": lambda: False,
    }
    return HealthReports(**(reports | more))


class EchoClient:
    """Answers every message with itself; notes what else it is told."""

    def __init__(self, connection: ClientConnection, all_recipients: Recipients) -> None:
        self.connection = connection
        self.all_recipients = all_recipients
        self.slot = RecipientSlot(connection)
        all_recipients.add_slot(self.slot)
        self.messages: list[str | bytes] = []
        self.initials: dict[Topic, Callable[[], Frame | None]] = {}
        self.behind: list[Topic] = []
        self.ends = 0

    def on_client_message(self, message: str | bytes) -> None:
        self.messages.append(message)
        self.connection.send_reply(echo(message))

    def make_initial(self, topic: Topic) -> Frame | None:
        return self.initials[topic]()

    def on_fell_behind(self, topic: Topic) -> None:
        self.behind.append(topic)
        if topic in self.initials:
            self.connection.request_snapshot(topic)

    def notify_shutdown(self, reconnect_after_ms: int) -> None:
        self.connection.send_reply(Frame.from_text("bye"))

    def on_close(self) -> None:
        self.all_recipients.remove_slot(self.slot)
        self.ends += 1


def echo(message: str | bytes) -> Frame:
    """A frame with the same payload; binary ones stay binary."""
    frame = Frame.from_text(message)
    return frame if isinstance(message, str) else Frame(bytes((0x82,)) + frame[1:])


class NoRooms:
    """A hub with nothing due."""

    def run_due(self) -> bool:
        return False


# The first ping of a connection comes anywhere in the interval, and would be read in place of a message.
QUIET = {"host": "127.0.0.1", "port": 0, "max_connections_per_ip": 0, "ping_interval": timedelta(hours=1)}


class EchoHarness:
    """A running server, its clients in the order in which they came, and a list of all their links.

    `passes_by` is the clock by which the passes of the loop are as long as they may be.
    """

    def __init__(
        self,
        *,
        largest_message: int = LARGEST_MESSAGE,
        passes_by: Callable[[], float] | None = None,
        reports: HealthReports | None = None,
        render_status: Callable[[], Awaitable[bytes]] | None = None,
        **settings: Any,
    ) -> None:
        self.clients: list[EchoClient] = []
        self.recipients = Recipients()
        self.opened: list[Any] = []  # what is closed at the end
        loop = asyncio.get_running_loop()
        self.broadcaster = Broadcaster(loop.call_soon, loop.call_later, passes_by or time.thread_time)
        self.server = Server(
            ServerSettings(**{**QUIET, **settings}),
            hub=NoRooms(),
            broadcaster=self.broadcaster,
            make_client=self._make,
            clock=SystemClock(),
            reports=reports or make_reports(),
            page=answering(b"page"),
            largest_message=largest_message,
            status=render_status,
        )
        self.port = self.server.listen()

    def _make(self, connection: ClientConnection) -> EchoClient:
        client = EchoClient(connection, self.recipients)
        self.clients.append(client)
        return client

    async def connect(self, *, extra: str = "", behind: bytes = b"") -> "Peer":
        peer = await connect(self.port, extra=extra, behind=behind)
        self.opened.append(peer)
        return peer

    async def wait_until_empty(self) -> None:
        """Wait until no connection is counted."""
        async with deadlines.timeout(5):
            while self.server.connection_count:
                await asyncio.sleep(0.002)

    async def client(self, number: int = -1) -> EchoClient:
        """A client, once it is there."""
        while len(self.clients) < (number + 1 if number >= 0 else 1):
            await asyncio.sleep(0.005)
        return self.clients[number]


@asynccontextmanager
async def echo_harness(**settings: Any) -> AsyncIterator[EchoHarness]:
    harness = EchoHarness(**settings)
    try:
        yield harness
    finally:
        for one in harness.opened:
            one.close()
        await harness.server.stop()
        await asyncio.sleep(0)


class Peer:
    """A client that sends any bytes, and reads frames as they come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self.reader = reader
        self.writer = writer
        self.head = head  # the server's answer to the handshake

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self, within_s: float = 3.0) -> tuple[int, bytes]:
        """The next frame: its first byte and its payload."""
        async with deadlines.timeout(within_s):
            first, length = await self.reader.readexactly(2)
            assert not length & 0x80, "a server must not mask its frames"
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            elif length == 127:
                length = int.from_bytes(await self.reader.readexactly(8), "big")
            return first, await self.reader.readexactly(length)

    async def closed_with(self, within_s: float = 5.0) -> int | None:
        """The close code, every other frame being skipped, after which the connection must end; None without one."""
        code: int | None = None
        try:
            while code is None:
                first, payload = await self.receive(within_s)
                if first == 0x88:
                    code = int.from_bytes(payload[:2], "big") if payload else 1005
            if code is not None:
                self.writer.write(frame(CLOSE, payload))
            async with deadlines.timeout(within_s):
                assert await self.reader.read(1) == b""
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.close()
        return code

    def close(self) -> None:
        self.writer.close()


async def connect(port: int, *, extra: str = "", behind: bytes = b"") -> Peer:
    """Shake hands; `extra` are more header lines, `behind` is sent in the same packet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write((HANDSHAKE + extra + "\r\n").encode() + behind)
    return Peer(reader, writer, await reader.readuntil(b"\r\n\r\n"))


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True, size: int | None = None
) -> bytes:
    """A frame of a client; `size` lies about its length."""
    length = len(payload) if size is None else size
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    bit = 0x80 if masked else 0
    if length < 126:
        head = struct.pack("!BB", first, bit | length)
    elif length < 65536:
        head = struct.pack("!BBH", first, bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, bit | 127, length)
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
