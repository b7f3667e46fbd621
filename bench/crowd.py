"""Thousands of WebSocket clients in one process that read and throw away; prints what came in each second.

    python -m bench.crowd PORT CLIENTS BARS PER_SECOND SYMBOL...

The clients go through the symbols in turn and then to the next interval, so that they spread over all rooms. They are
bare sockets: nothing of a frame is read but pings, and in updates the close, which `bench.stamped_exchange` fills with
the time of the push. A line is `connected updates p50 p99 most`, the last three in milliseconds.

From SIGUSR1 on they look at their sockets every few milliseconds only. A client elsewhere is woken by its own machine;
here the sender to one that sleeps pays for waking it.
"""

import base64
import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence

from candled.model import DEFAULT_INTERVALS

_UPDATE = b'"update"'
_CLOSE = b'"close":'
_TIMED_OUT_S = 60.0
_NAP_S = 0.005


class Crowd:
    """The sockets, and what came of them since the last report."""

    report_every_s = 1.0

    def __init__(self, port: int, bars: int, symbols: Sequence[str]) -> None:
        self.port = port
        self._bars = bars
        self._symbols = symbols
        self.selector = selectors.DefaultSelector()
        self.connected = 0
        self.naps = False
        self.updates = 0
        self.delays_ms: list[float] = []

    def run(self, clients: int, per_second: float) -> None:
        """Connect the clients, not faster than that; print a line a second, until killed."""
        waiting = self._requests(clients)
        connect_at = reported = time.monotonic()
        while True:
            now = time.monotonic()
            if self.connected < clients and now >= connect_at:
                self.connect(next(waiting))
                connect_at = now + 1 / per_second
            self.read(0.2 if self.connected == clients else max(0.0, connect_at - time.monotonic()))
            if now - reported >= self.report_every_s:
                reported = now
                print(self.report(), flush=True)

    def _requests(self, clients: int) -> Iterator[bytes]:
        for turn in range(clients):
            symbol = self._symbols[turn % len(self._symbols)]
            interval = DEFAULT_INTERVALS[turn // len(self._symbols) % len(DEFAULT_INTERVALS)]
            fields = {"type": "subscribe", "symbol": symbol, "interval": str(interval), "initialBars": self._bars}
            yield json.dumps(fields).encode()

    def connect(self, request: bytes) -> None:
        """Open one connection and subscribe; updates of the others wait meanwhile, which is a millisecond."""
        while True:
            client = socket.create_connection(("127.0.0.1", self.port), _TIMED_OUT_S, self.source())
            client.sendall(handshake(self.port))
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += client.recv(4096)
            if answer.startswith(b"HTTP/1.1 101"):
                break
            client.close()
            time.sleep(0.1)  # too many handshakes in this second
        client.sendall(masked(0x81, request))
        client.setblocking(False)
        self.selector.register(client, selectors.EVENT_READ)
        self.connected += 1
        self.look_at(client, answer.partition(b"\r\n\r\n")[2])  # perhaps a first ping

    def read(self, timeout_s: float) -> None:
        """Read once from every socket that has something, after so long at most."""
        if self.naps:
            time.sleep(_NAP_S)
            timeout_s = 0.0
        for key, _ in self.selector.select(timeout_s):
            client = key.fileobj
            assert isinstance(client, socket.socket)
            with contextlib.suppress(BlockingIOError):
                try:
                    chunk = client.recv(262_144)
                except ConnectionError:
                    chunk = b""
                if not chunk or chunk[:1] == b"\x88":
                    self.on_cut(client, chunk)
                else:
                    self.look_at(client, chunk)

    def source(self) -> tuple[str, int] | None:
        """The address of the next connection."""
        return None

    def on_cut(self, client: socket.socket, chunk: bytes) -> None:
        """Stop: no connection may end."""
        raise RuntimeError(f"the daemon closed a connection: {chunk!r}")

    def look_at(self, client: socket.socket, chunk: bytes) -> None:
        """Take note of a chunk."""
        if b"\x89" in chunk[:1] or b"\x89\x00" in chunk:  # never part of JSON
            client.send(masked(0x8A, b""))
        found = chunk.find(_UPDATE, 0, 40)
        if found < 0:
            return
        self.updates += 1
        start = chunk.find(_CLOSE, found) + len(_CLOSE)
        self.delays_ms.append(1000 * (time.monotonic() - float(chunk[start : chunk.find(b",", start)])))

    def report(self) -> str:
        """The line of this second."""
        delays, updates = sorted(self.delays_ms), self.updates
        self.delays_ms, self.updates = [], 0
        at = [delays[min(len(delays) - 1, int(share * len(delays)))] if delays else 0.0 for share in (0.5, 0.99, 1.0)]
        return f"{self.connected} {updates} {at[0]:.2f} {at[1]:.2f} {at[2]:.2f}"


def handshake(port: int) -> bytes:
    """A client's upgrade."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        "GET / HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: Upgrade", "Upgrade: websocket",
        "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


def masked(first: int, payload: bytes) -> bytes:
    """A client's frame; its mask is all zeros."""
    length = len(payload)
    header = bytes((first, 0x80 | length)) if length < 126 else bytes((first, 0xFE)) + length.to_bytes(2, "big")
    return header + bytes(4) + payload


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd = Crowd(int(sys.argv[1]), int(sys.argv[3]), sys.argv[5:])
    signal.signal(signal.SIGUSR1, lambda *_: setattr(crowd, "naps", True))
    crowd.run(int(sys.argv[2]), float(sys.argv[4]))
