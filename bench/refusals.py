"""CPU time of the server for a refused request on a kept connection, next to `/health/live`.

    python -m bench.refusals [--requests 4000] [--rounds 3]

The daemon is a process of its own with one market. One client sends a request at a time on one connection. 127.0.0.1
is a trusted proxy, so that no address is refused unread: each request gets the answer of its row.
"""

import argparse
import socket
import statistics
from collections.abc import Sequence

from bench.process import MONDAY_MS, Daemon, print_table, scratch
from candled.model import MINUTE_MS

LIVE = "/health/live"
KLINES = "/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=2"
# (name, method, path, further header lines, status)
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
        costs: dict[str, list[float]] = {name: [] for name, *_ in ROWS}
        for _ in range(options.rounds):
            for name, method, path, lines, status in ROWS:
                costs[name].append(_measure(daemon, method, path, lines, status, options.requests))
    base = statistics.median(costs[ROWS[0][0]])
    print_table(
        ["answer", "CPU per request, min / median / max", "ratio"],
        [
            [name, " / ".join(f"{one:.0f}" for one in sorted(some)[:: max(1, len(some) // 2)]) + " µs",
             f"{statistics.median(some) / base:.1f}" if base else "too few requests"]
            for name, some in costs.items()
        ],
    )  # fmt: skip


def _measure(daemon: Daemon, method: str, path: str, lines: str, status: int, count: int) -> float:
    """Return the microseconds of CPU time of the daemon for one request."""
    with Client(daemon.port) as client:
        client.ask(method, path, lines)  # of klines, the one that is allowed
        before = daemon.cpu_s()
        for _ in range(count):
            answer = client.ask(method, path, lines)
            assert answer == status, (path, answer)
        return (daemon.cpu_s() - before) / count * 1e6


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
        """Return the status of an answer, after reading all of it."""
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        status, length = int(self._file.readline().split()[1]), 0
        for line in iter(self._file.readline, b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self._file.read(length)
        return status


if __name__ == "__main__":
    main()
