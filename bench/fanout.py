"""What one update to all clients of a room costs, beside a C loop over `send()` and beside other servers.

    python -m bench.fanout [--clients 100 1000 10000] [--rounds 25] [--servers candled picows ...]

For each server and number of clients: processor time per client of a broadcast, kernel included, as a ratio to a C loop
that sends the same frame on the same sockets from the same thread, round by round in turn (minimum / median / maximum
of the rounds' ratios); and the delay of the client that gets the frame last, as a ratio to the same of the C loop.
candled is the daemon's whole way from the bus to the sockets. Node's `ws` gives no access to its sockets: it is
compared with the median of the C loop in candled's process. All are measured at the same pace, an update in 1.3 s,
half of that after the C loop: at a quicker one everything that is not candled would run from warm caches. While time
is measured the load client looks at its sockets every few milliseconds only, so that it does not disturb; while delays
are, it is awake.
"""

import argparse
import json
import os
import resource
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.native import Load, compiler
from bench.process import ROOT, spread
from tests.system.daemon import free_port

HERE = Path(__file__).parent
SERVERS = ("candled", "write_message", "websockets", "picows", "socketify", "ws")
SUBSCRIBE = '{"type":"subscribe","symbol":"BTC/USDT","interval":"1m","initialBars":1}'
GAP_S = 0.65  # candled sends a room one update a second, and spreads rooms by up to 0.2 s
ANSWER_LIMIT_S = 120.0
_VARIANTS = {name: str(number) for number, name in enumerate(SERVERS, 1)}


class Server:
    """One of the servers in a process of its own, and the commands it takes."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self.port = free_port()
        command = [sys.executable, "-m", "bench.fanout_servers", name]
        if name == "ws":
            command = ["node", str(HERE / "fanout_ws.js")]
        self._process = subprocess.Popen(
            [*command, str(self.port), *([json.dumps(options)] if options else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.pid = self._process.pid
        assert json.loads(self._line()) == "ready"

    def ask(self, what: str) -> float:
        """Give a command; return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return float(json.loads(self._line()))

    def wait_for(self, clients: int) -> None:
        """Wait until so many are connected."""
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while self.ask("count") < clients:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: only {self.ask('count'):.0f} of {clients} clients came")
            time.sleep(0.2)
        time.sleep(1.0)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_LIMIT_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError(f"{self.name} ended or does not answer")
        return line


def why_not(name: str) -> str:
    """Why a server cannot be measured here; empty if it can."""
    if name == "ws":
        if not shutil.which("node"):
            return "there is no node"
        found = subprocess.run(["node", "-e", "require('ws')"], cwd=HERE, capture_output=True, check=False)
        return "" if found.returncode == 0 else "npm install ws"
    if name in ("picows", "socketify") and find_spec(name) is None:
        return 'pip install -e ".[bench]"'
    return ""


# ---------------------------------------------------------------- measuring


def costs(name: str, clients: int, rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds per client of each round: of the server, and of the C loop in its process."""
    server = Server(name)
    load = Load(server.port, clients, "--nap", "5", *_options(name))
    try:
        server.wait_for(clients)
        own, floor = [], []
        for _ in range(rounds + 1):
            if name != "ws":
                floor.append(server.ask("floor") / clients)
            time.sleep(GAP_S)
            own.append(server.ask("send") / clients)
            time.sleep(GAP_S)
        return own[1:], floor[1:]
    finally:
        server.end()
        load.kill()


def delays(name: str, clients: int, rounds: int) -> dict[str, Any]:
    """What the load client saw: by variant, the delays of the last client of a round; how long the loop was blocked."""
    server = Server(name)
    load = Load(server.port, clients, *_options(name))
    try:
        server.wait_for(clients)
        longest_ms, is_watched = [], name == "candled"
        if is_watched:
            server.ask("watch")
        for _ in range(rounds):
            if name != "ws":
                server.ask("floor")
                time.sleep(GAP_S)
            if is_watched:
                server.ask("longest")  # of the C loop
            server.ask("send")
            time.sleep(GAP_S)
            if is_watched:
                longest_ms.append(server.ask("longest"))
        results: dict[str, Any] = load.results()["v"]
        return results | {"longest_ms": longest_ms}
    finally:
        server.end()
        load.kill()


def _options(name: str) -> list[str]:
    return ["--sub", SUBSCRIBE] if name == "candled" else []


def measure(name: str, clients: int, rounds: int, floors: dict[int, float]) -> str:
    """A line about one server and number of clients."""
    own, floor = costs(name, clients, rounds)
    if floor:
        ratios = [a / b for a, b in zip(own, floor, strict=True)]
    else:
        ratios = [a / floors[clients] for a in own] if clients in floors else [float("nan")]
    if name == "candled":
        floors[clients] = statistics.median(floor)
    seen = delays(name, clients, rounds)
    last, base = seen.get(_VARIANTS[name], {}), seen.get("0", {})
    line = (
        f"{clients:>6} clients, {name:<13} {spread(ratios, '.2f')} of the C loop, {statistics.median(own):.2f} µs each"
    )
    if last:
        line += f"; last client p50 {last['last_p50_us'] / 1000:.1f}, p99 {last['last_p99_us'] / 1000:.1f} ms"
    if last and base:
        line += f", p50 {last['last_p50_us'] / base['last_p50_us']:.2f} of the C loop"
    if seen["longest_ms"]:
        line += f"; the loop was blocked {spread(seen['longest_ms'])} ms"
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.fanout", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=SERVERS)
    options = parser.parse_args(arguments)
    if compiler() is None:
        print("there is no C compiler, so that there is nothing to compare with", file=sys.stderr)
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    floors: dict[int, float] = {}
    for clients in options.clients:
        if clients > most - 200:
            print(f"{clients:>6} clients: only {most} files may be open (ulimit -Hn)")
            continue
        for name in options.servers:
            reason = why_not(name)
            line = f"{clients:>6} clients, {name:<13} skipped: {reason}" if reason else ""
            print(line or measure(name, clients, options.rounds, floors), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("NODE_PATH", str(ROOT / "node_modules"))
    main(sys.argv[1:])
