"""Healthy clients beside an attack: a crowd of many addresses, some with pings; prints all their delays.

    python -m bench.healthy PORT CLIENTS BARS PER_SECOND SYMBOL...

Four lines a second are JSON objects: how many are connected, how many were cut, and the delays of updates and of
answers to pings in milliseconds. A ping that waits counts with its age in each line.
"""

import json
import socket
import sys
import time
from collections.abc import Sequence

from bench.crowd import Crowd, masked

PING = masked(0x81, b'{"type":"ping"}')
PING_EVERY_S = 0.5
_PINGING = 25  # clients
_EACH_ADDRESS = 50  # connections
_LOOK_S = 0.02
_LATE_MS = 1000.0


class HealthyClients(Crowd):
    """A crowd that goes on without the connections that it loses."""

    report_every_s = 0.25

    def __init__(self, port: int, bars: int, symbols: Sequence[str]) -> None:
        super().__init__(port, bars, symbols)
        self._cut = 0
        self._pings_ms: list[float] = []
        self._asked: dict[socket.socket, float] = {}  # when the ping was sent that waits
        self._due: dict[socket.socket, float] = {}

    def source(self) -> tuple[str, int] | None:
        return f"127.0.1.{1 + self.connected // _EACH_ADDRESS}", 0

    def on_cut(self, client: socket.socket, chunk: bytes) -> None:
        self.selector.unregister(client)
        client.close()
        self._cut += 1
        self._asked.pop(client, None)
        self._due.pop(client, None)

    def read(self, timeout_s: float) -> None:
        now = time.monotonic()
        for client in [client for client, at in self._due.items() if at <= now]:
            del self._due[client]
            self._asked[client] = now
            client.send(PING)
        super().read(min(timeout_s, _LOOK_S))

    def look_at(self, client: socket.socket, chunk: bytes) -> None:
        super().look_at(client, chunk)
        now = time.monotonic()
        if client in self._asked:
            if b'"pong"' in chunk:
                asked = self._asked.pop(client)
                self._pings_ms.append(1000 * (now - asked))
                self._due[client] = asked + PING_EVERY_S if now < asked + PING_EVERY_S else now
        elif client not in self._due and len(self._due) + len(self._asked) < _PINGING:
            self._due[client] = now + PING_EVERY_S * len(self._due) / _PINGING

    def report(self) -> str:
        now = time.monotonic()
        waiting = [1000 * (now - asked) for asked in self._asked.values()]
        line = {
            "connected": self.connected,
            "cut": self._cut,
            "updates": [round(delay, 2) for delay in self.delays_ms],
            "pings": [round(delay, 2) for delay in self._pings_ms + [age for age in waiting if age > _LATE_MS]],
        }
        self.delays_ms, self._pings_ms = [], []
        return json.dumps(line)


if __name__ == "__main__":
    HealthyClients(int(sys.argv[1]), int(sys.argv[3]), sys.argv[5:]).run(int(sys.argv[2]), float(sys.argv[4]))
