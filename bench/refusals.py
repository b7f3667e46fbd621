"""CPU time of the server for a refused request on a kept connection, next to `/health/live`.

    python -m bench.refusals [--requests 4000] [--rounds 3]

The daemon is a process of its own with one market. First, one client sends a request at a time on one connection: most
of the cost is a pass of the event loop. Then, 16 connections send one each before the answers are read, as in a flood:
they share the passes. 127.0.0.1 is a trusted proxy, so that no address is refused unread: each request gets the answer
of its row.
"""

import argparse
import socket
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from bench.process import MONDAY_MS, Daemon, print_table, scratch
from candled.model import MINUTE_MS

LIVE = "/health/live"
KLINES = "/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=2"
# (name, method, path, further header lines, status)
CONNECTIONS = (1, 16)
ROWS = [
    ("`/health/live`", "GET", LIVE, "", 200),
    ("429", "GET", KLINES, "", 429),
    ("404, an unknown path", "GET", "/nowhere", "", 404),
    ("404, an unknown path of the API", "GET", "/api/nowhere", "", 404),
    ("400, an invalid parameter", "GET", "/udf/history?symbol=BTCUSDT&resolution=7", "", 200),
    ("405", "POST", LIVE, "", 405),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="of each row and round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    exchanges = {"replay": {"symbols": ["BTC/USDT"], "files": {"*": "bundled:binance-spot-btcusdt"}, "speed": 1}}
    server = {"trusted_proxies": ["127.0.0.1"]}
    limits = {"klines_requests": 1, "api_requests": 0, "udf_requests": 0, "connection_work": "0s", "address_work": "0s"}
    with (
        scratch() as directory,
        Daemon(
            directory, exchanges, MONDAY_MS + 1500 * MINUTE_MS, server=server, limits=limits, klines={"enabled": True}
        ) as daemon,
    ):
        daemon.wait_until_complete(60.0)
        costs: dict[tuple[str, int], list[float]] = {(name, many): [] for name, *_ in ROWS for many in CONNECTIONS}
        for _ in range(options.rounds):
            for name, method, path, lines, status in ROWS:
                for many in CONNECTIONS:
                    cost = _measure(daemon, many, method, path, lines, status, options.requests)
                    costs[name, many].append(cost)
    headings = [f"{many} at a time, min / median / max" for many in CONNECTIONS]
    print_table(
        ["answer", headings[0], "ratio", headings[1], "ratio"],
        [[name, *(text for many in CONNECTIONS for text in _columns(costs, name, many))] for name, *_ in ROWS],
    )


def _columns(costs: Mapping[tuple[str, int], Sequence[float]], name: str, many: int) -> list[str]:
    """Return the microseconds of a row, and their ratio to those of the first row."""
    some, base = sorted(costs[name, many]), statistics.median(costs[ROWS[0][0], many])
    ratio = f"{statistics.median(some) / base:.1f}" if base else "too few requests"
    return [f"{some[0]:.0f} / {statistics.median(some):.0f} / {some[-1]:.0f} µs", ratio]


def _measure(daemon: Daemon, many: int, method: str, path: str, lines: str, status: int, count: int) -> float:
    """Return the daemon's CPU time for one request, in microseconds, when `many` are sent together."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(daemon.port)) for _ in range(many)]
        for client in clients:
            client.ask(method, path, lines)  # of klines, the first one is allowed
        before = daemon.cpu_s()
        for _ in range(count // many):
            for client in clients:
                client.send(method, path, lines)
            for client in clients:
                answer = client.read()
                assert answer == status, (path, answer)
        return (daemon.cpu_s() - before) / (count // many * many) * 1e6


class Client:
    """A kept connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, method: str, path: str, lines: str = "") -> int:
        """Send a request, and return the status of its answer."""
        self.send(method, path, lines)
        return self.read()

    def send(self, method: str, path: str, lines: str) -> None:
        """Send a request."""
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())

    def read(self) -> int:
        """Return the status of an answer, after reading all of it."""
        status, length = int(self._file.readline().split()[1]), 0
        for line in iter(self._file.readline, b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self._file.read(length)
        return status


if __name__ == "__main__":
    main()
