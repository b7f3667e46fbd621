"""Rolling restarts: serve processes on one port are restarted in turn while clients stay subscribed and resume.

    python -m bench.restarts [--serving 4] [--clients 2000] [--drain 20] [--speed 20]

One process ingests the replay exchange, with a PostgreSQL and a Redis of this run. The clients are in two processes.
Each serve process gets SIGTERM, is started again once it has ended, and must be ready before the next one's turn. In
the end the final bars of every client are compared with those of a fresh subscription.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.process import NO_LIMITS, ROOT, UNLIMITED, Process, print_table, scratch, symbols
from tests.redis_servers import own_redis
from tests.servers import own_postgres
from tests.system.daemon import free_port

CLIENT_PROCESSES = 2
BARS = 100
START_S = 120.0
SAMPLE_S = 0.5


class Node:
    """One process of the site, which can be restarted. Its pauses are those of its event loop."""

    def __init__(self, name: str, directory: Path, settings: dict[str, Any]) -> None:
        self.name = name
        self.process: Process
        #: False while it starts and stops.
        self.is_steady = False
        #: The processor time of each sample while it is steady, as a share of a core.
        self.shares: list[float] = []
        self._internal = settings["server"]["internal_port"]
        self._directory = directory
        self._blocks: list[tuple[Path, int]] = []  # the file of each start, and its lines before it was ready
        directory.mkdir()
        self._path = directory / "candled.yaml"
        self._path.write_text(yaml.safe_dump(settings), "utf-8")

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        blocks = self._directory / f"blocks{len(self._blocks)}"
        start_ms = str(time.time_ns() // 1_000_000)
        self.process = Process(
            "bench.shifted_daemon", str(self._path), start_ms, str(blocks), directory=self._directory
        )
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            self.process.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} is not ready: {self.process.log.read_text()[-2000:]}")
            time.sleep(0.1)
        self._blocks.append((blocks, len(blocks.read_text().splitlines())))
        self.is_steady = True

    def stop(self) -> float:
        """Stop it in order; return the seconds that took."""
        self.is_steady = False
        began = time.monotonic()
        self.process.__exit__()
        return time.monotonic() - began

    def pauses_ms(self) -> list[tuple[float, float]]:
        """Return the longest pause of the loop in each second while it was ready: by the clock, and processor time."""
        lines = [line for path, skipped in self._blocks for line in path.read_text().splitlines()[skipped + 1 :]]
        return [(float(wall), float(cpu)) for wall, cpu in map(str.split, lines)]

    def _is_ready(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self._internal}/readyz", timeout=5).close()
        except OSError:  # it does not listen yet, or answers 503
            return False
        return True


class Sampler(threading.Thread):
    """Records the processor time of the nodes."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__(daemon=True)
        self._nodes = nodes
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample until `end`."""
        before: dict[str, tuple[Process, float, float]] = {}
        while not self._ended.wait(SAMPLE_S):
            for node in self._nodes:
                process, now = node.process, time.monotonic()
                try:
                    used_s = process.cpu_s()
                except OSError:  # it has ended
                    continue
                last = before.get(node.name)
                if node.is_steady and last is not None and last[0] is process:
                    node.shares.append((used_s - last[1]) / (now - last[2]))
                before[node.name] = process, used_s, now

    def end(self) -> None:
        """End it."""
        self._ended.set()
        self.join()


class Clients:
    """A process of resuming clients."""

    def __init__(self, port: int, count: int, names: Sequence[str]) -> None:
        url = f"ws://127.0.0.1:{port}/"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.resuming_clients", url, str(count), str(BARS), *names],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> None:
        """Wait until all clients have bars."""
        if self._read_line() != "ready\n":
            raise RuntimeError("the clients ended")

    def ask(self) -> None:
        """Have it compare the bars of its clients."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def read_result(self) -> Any:
        """Return the reconnects and the differences."""
        return json.loads(self._read_line())

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def make_nodes(options: argparse.Namespace, directory: Path, postgres_port: int, redis_url: str) -> list[Node]:
    """Return the process that ingests, and those that serve on one port."""
    names = symbols(options.markets)
    replay = {"symbols": names, "speed": options.speed, "files": {"*": "bundled:binance-spot-btcusdt"}}
    port = free_port()
    nodes = []
    for number in range(options.serving + 1):
        is_ingest = number == 0
        own = {"port": free_port()} if is_ingest else {"port": port, "reuse_port": True}
        server = {
            **NO_LIMITS,
            **own,
            "host": "127.0.0.1",
            "internal_port": free_port(),
            "shutdown_seconds": options.drain,
        }
        settings = {
            "roles": ["ingest" if is_ingest else "serve"],
            "server": server,
            "limits": UNLIMITED,
            "exchanges": {"replay": replay},
            "ingest": {"backfill": "2h"},
            "store": {"url": f"postgresql://candled@127.0.0.1:{postgres_port}/postgres", "journal": ""},
            "bus": {"url": redis_url},
            "log": {"level": "warning"},
        }
        name = "ingest" if is_ingest else f"serve-{number}"
        nodes.append(Node(name, directory / name, settings))
    options.port = port
    return nodes


def measure(options: argparse.Namespace, nodes: Sequence[Node], stack: contextlib.ExitStack) -> None:
    """Restart all serve processes, and print."""
    for node in nodes:
        node.start()
        stack.callback(node.stop)
    share = options.clients // CLIENT_PROCESSES
    clients = [Clients(options.port, share, symbols(options.markets)) for _ in range(CLIENT_PROCESSES)]
    for one in clients:
        stack.callback(one.end)
    for one in clients:
        one.wait_until_ready()
    time.sleep(options.settle)
    sampler = Sampler(nodes)
    sampler.start()
    time.sleep(options.settle)
    quiet = [max(node.shares, default=0.0) for node in nodes]
    began, stops = time.monotonic(), []
    for node in nodes[1:]:
        stops.append(node.stop())
        node.start()
        time.sleep(options.settle)
    took_s = time.monotonic() - began
    sampler.end()
    for one in clients:
        one.ask()
    results = [one.read_result() for one in clients]
    print_results(options, nodes, quiet, results, stops, took_s)


def print_results(
    options: argparse.Namespace,
    nodes: Sequence[Node],
    quiet: Sequence[float],
    results: Sequence[Any],
    stops: Sequence[float],
    took_s: float,
) -> None:
    """Print the figures, and fail if a client lost a bar."""
    reconnects = [one for result in results for one in result["reconnects"]]
    answered = [one for one in reconnects if one["answered"]]
    waits = sorted(one["answered"] - one["lost"] for one in answered if one["bye_ms"] is not None)
    silent = Counter(one["reason"] for one in reconnects if one["bye_ms"] is None)
    per_s = Counter(int(one["opened"]) for one in answered)
    pauses = [pause for node in nodes[1:] for pause in node.pauses_ms()]
    differences = [text for result in results for text in result["differences"]]
    rows = [
        ["clients; reconnects", f"{options.clients}; {len(reconnects)}, {len(reconnects) - len(answered)} unanswered"],
        ["of them with a `bye`; failed attempts", f"{len(waits)}; {sum(result['failures'] for result in results)}"],
        ["ends without a `bye`", ", ".join(f"{count} × {reason}" for reason, count in silent.most_common(3)) or "0"],
        ["temporary errors", f"{sum(sum(result['errors'].values()) for result in results)}"],
        ["of them resumed with only the changes", f"{sum(one['is_resumed'] for one in answered)}"],
        ["from `bye` to the bars, p50 / p99 / maximum", f"{percentiles(waits)} s"],
        ["reconnects in a second, most", f"{max(per_s.values(), default=0)}"],
        ["CPU of a serve process in half a second, most", f"{max(max(node.shares) for node in nodes[1:]):.0%}"],
        ["the same before the restarts", f"{max(quiet[1:]):.0%}"],
        ["CPU of the process that ingests, most; before", f"{max(nodes[0].shares):.0%}; {quiet[0]:.0%}"],
        ["longest pause of a serve process's loop", f"{max(one for one, _ in pauses):.0f} ms"],
        ["the same in processor time", f"{max(one for _, one in pauses):.0f} ms"],
        ["end of a process, longest; all restarts", f"{max(stops):.1f} s; {took_s:.0f} s"],
        ["bars shown; final bars that differ from a fresh `initial`",
         f"{sum(result['bars'] for result in results)}; {len(differences)}"],
    ]  # fmt: skip
    print_table([f"{options.serving} processes, {options.clients} clients", ""], rows)
    if differences:
        raise SystemExit("\n".join(differences[:10]))


def percentiles(values: Sequence[float]) -> str:
    """`p50 / p99 / maximum` of ascending values."""
    if not values:
        return "none"
    return f"{statistics.median(values):.2f} / {values[int(len(values) * 0.99)]:.2f} / {values[-1]:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with servers of this run."""
    parser = argparse.ArgumentParser(prog="python -m bench.restarts", description=__doc__)
    parser.add_argument("--serving", type=int, default=4)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--markets", type=int, default=10)
    parser.add_argument("--drain", type=float, default=20.0, help="server.shutdown_seconds")
    parser.add_argument("--speed", type=int, default=20)
    parser.add_argument("--settle", type=float, default=5.0, help="seconds")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch())
        postgres = own_postgres()
        stack.callback(postgres.remove)
        redis = stack.enter_context(own_redis())
        measure(options, make_nodes(options, directory, postgres.port, redis.url), stack)


if __name__ == "__main__":
    main()
