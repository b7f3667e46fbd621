"""What one stranger may do to a daemon, a row each, and the process that does it.

    python -m bench.strangers PORT SECONDS NAME

The process prints a line when it begins, and one at its end: how often it connected, was refused or cut, and how much
it sent and received, in MB.
"""

import asyncio
import contextlib
import json
import os
import resource
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from bench.crowd import handshake, masked

PROXY = "127.0.0.9"  # trusted by the daemon
NAME = "SYM000/USDT"
_TEXT, _PING, _PONG = 0x81, 0x89, 0x8A  # first bytes of frames
_TEXT_BEGINS, _TEXT_GOES_ON = 0x01, 0x00
_RETURNS_S = 0.2  # a stranger that was cut waits so long


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """Connections that send `first`, and then `again` every `every_s` as long as it is taken.

    Attributes:
        item: the number of the kind of limit that bounds it.
        before: what happened before there were limits, with its own clients and machine.
        web_socket: `first` follows a handshake, `again` too.
        reads: whether answers are read.
        resets: a connection is reset right after `first`, and the next one begins.
        source: the address it comes from; with `{}` in it each 50 connections have another. Without one the row has an
            address of its own, so that no former row has used its budget.
        forwarded: what each connection in turn says of its client's address.
    """

    item: int
    before: str
    connections: int = 1
    web_socket: bool = False
    first: bytes = b""
    again: bytes = b""
    every_s: float = 0.1
    reads: bool = True
    resets: bool = False
    source: str = ""
    forwarded: tuple[str, ...] = ()


def get(path: str, *headers: str) -> bytes:
    """A request on a connection that is kept."""
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


def message(**fields: object) -> bytes:
    """A text of a client."""
    return masked(_TEXT, json.dumps(fields).encode())


_EMPTY = masked(_TEXT_GOES_ON, b"")
_HALF = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 15_000
_SUBSCRIBE = {"type": "subscribe", "symbol": NAME, "interval": "1m"}
_COSTLY = message(**_SUBSCRIBE, fields=["volume"] * 675, subscriptions=[{}] * 2700, initialBars=0)
_UDF = "/udf/history?symbol=BITGET:SYM000USDT&resolution=1&from=0&to=9999999999&countback=5000"
_PINGED = "139 of 149 pings unanswered, healthy clients closed with 3012"
_SLASH_64 = tuple(f"2001:db8:1:2::{number}" for number in range(1, 9))

STRANGERS = {
    "empty pongs": Stranger(
        item=1, before=_PINGED, connections=3, web_socket=True, again=masked(_PONG, b"") * 1000, every_s=0.005
    ),
    "pings": Stranger(item=1, before="", connections=3, web_socket=True, again=masked(_PING, b"") * 500, every_s=0.005),
    "empty fragments": Stranger(
        item=1, before=f"{_PINGED}; +28 MB per 25 MB sent", connections=3, web_socket=True,
        first=masked(_TEXT_BEGINS, b"x"), again=_EMPTY * 1000, every_s=0.005,
    ),
    "no request": Stranger(item=2, before="no client gets in, none closed in 55 s", connections=400),
    "half a header": Stranger(
        item=2, before="+107 MB, loop blocked 1.4 s (5,000 connections)", connections=1000, first=_HALF,
        source="127.0.2.{}",
    ),
    "a header byte by byte": Stranger(
        item=2, before="", connections=100, first=_HALF[:-2000], again=b"x", every_s=0.005
    ),
    "history unread": Stranger(
        item=1, before="ping p95 2.6 s, an update 5 s late, +256 MB", connections=150, first=get(_UDF) * 4,
        reads=False,
    ),
    "fields and subscriptions": Stranger(
        item=1, before="a core, p50 106 ms", web_socket=True, again=_COSTLY, every_s=0.1
    ),
    "/ws without an upgrade": Stranger(
        item=1, before="52 of 60 honest handshakes refused", connections=20, again=get("/ws"), every_s=0.02
    ),
    "/events with a bad symbol": Stranger(
        item=1, before="52 of 60 honest handshakes refused", connections=20,
        again=get("/events?symbol=NONE/USDT&interval=1m"), every_s=0.02,
    ),
    "resubscribing": Stranger(
        item=1, before="2.1 GB sent in 11 s, +105 MB, most 211 ms", connections=100, web_socket=True,
        again=message(**_SUBSCRIBE, initialBars=1000), every_s=1 / 19,
    ),
    "paging history": Stranger(
        item=1, before="a core, p95 146 ms", connections=100, web_socket=True,
        again=message(type="history", symbol=NAME, interval="1m", limit=1000, before="2025-10-05T12:00:00Z"),
        every_s=1 / 19,
    ),
    "400 that come together": Stranger(
        item=4, before="", connections=400, web_socket=True, first=message(**_SUBSCRIBE, initialBars=1000),
        source="127.0.3.{}",
    ),
    "/health": Stranger(item=5, before="p50 119 ms", connections=4, again=get("/health"), every_s=0.005),
    "the page": Stranger(item=5, before="p50 46 ms", connections=4, again=get("/"), every_s=0.005),
    "search": Stranger(
        item=5, before="", connections=4, again=get("/udf/search?query=S&limit=30&type=&exchange="), every_s=0.005
    ),
    "requests over the limit": Stranger(
        item=3, before="2,300 a second fill a core", connections=16, again=get("/api/gaps?symbol=NONE"),
        every_s=0.005,
    ),
    "one IPv6 /64": Stranger(
        item=1, before="each address a new client", connections=400, web_socket=True,
        source=PROXY, forwarded=_SLASH_64,
    ),
    "forwarded with ports": Stranger(
        item=1, before="each port a new client", connections=400, web_socket=True,
        source=PROXY, forwarded=tuple(f"198.51.100.7:{port}" for port in range(2000, 2400)),
    ),
    "handshakes reset": Stranger(
        item=8, before="8,615 tracebacks, 11 MB of log in 12 s", connections=8, web_socket=True, resets=True
    ),
    "paths with control characters": Stranger(
        item=8, before="forged lines in the log, 500 with a traceback", connections=4,
        again=get("/static/..%2f%0aFORGED%1b") + get("/static/%00"), every_s=0.02,
    ),
}  # fmt: skip


class Attack:
    """A stranger at work."""

    def __init__(self, name: str, port: int) -> None:
        self._stranger = stranger = STRANGERS[name]
        self._source = stranger.source or f"127.0.4.{1 + list(STRANGERS).index(name)}"
        self._port = port
        self._numbers = count()
        self.counts = dict.fromkeys(("connects", "refused", "cut"), 0)
        self.sent = self.received = 0

    async def run(self, seconds: float) -> None:
        """Attack for some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(self._return() for _ in range(self._stranger.connections)))

    async def _return(self) -> None:
        while True:
            number = next(self._numbers)
            with socket.socket() as connection:
                connection.setblocking(False)
                try:
                    await self._attack(connection, number)
                except OSError:
                    self.counts["cut"] += 1
            await asyncio.sleep(0 if self._stranger.resets else _RETURNS_S)

    async def _attack(self, connection: socket.socket, number: int) -> None:
        loop, stranger = asyncio.get_running_loop(), self._stranger
        connection.bind((self._source.format(1 + number // 50 % 250), 0))
        await loop.sock_connect(connection, ("127.0.0.1", self._port))
        self.counts["connects"] += 1
        if stranger.web_socket:
            await self._send(connection, self._forwarded(handshake(self._port), number))
            if stranger.resets:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if not (await self._receive(connection)).startswith(b"HTTP/1.1 101"):
                self.counts["refused"] += 1
                return
        reading = asyncio.ensure_future(self._read(connection))
        try:
            for data in self._texts():
                if reading.done():
                    break
                if data:
                    await self._send(connection, data)
                await asyncio.sleep(stranger.every_s)
        finally:
            reading.cancel()
        self.counts["cut"] += 1

    def _texts(self) -> Iterator[bytes]:
        yield self._stranger.first
        while True:
            yield self._stranger.again

    def _forwarded(self, request: bytes, number: int) -> bytes:
        clients = self._stranger.forwarded
        if not clients:
            return request
        return request.removesuffix(b"\r\n") + f"X-Forwarded-For: {clients[number % len(clients)]}\r\n\r\n".encode()

    async def _send(self, connection: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(connection, data)
        self.sent += len(data)

    async def _receive(self, connection: socket.socket) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(connection, 262_144)
        self.received += len(data)
        return data

    async def _read(self, connection: socket.socket) -> None:
        """Until the connection ends. A stranger that does not read notices that only when it sends."""
        if not self._stranger.reads:
            await asyncio.Event().wait()
        with contextlib.suppress(OSError):
            while chunk := await self._receive(connection):
                self.counts["refused"] += chunk.startswith((b"HTTP/1.1 429", b"HTTP/1.1 503"))

    def __str__(self) -> str:
        counted = ", ".join(f"{number:,} {name}" for name, number in self.counts.items())
        return f"{counted}, {self.sent / 1e6:.1f} MB sent, {self.received / 1e6:.1f} MB received"


def main(port: int, seconds: float, name: str) -> None:
    """Attack and print."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.nice(10)  # a stranger's own machine does not slow the daemon's
    attack = Attack(name, port)
    print("begins", flush=True)
    asyncio.run(attack.run(seconds))
    print(attack)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
