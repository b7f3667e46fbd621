"""What connections cost that wait, come, ask, are pinged, or do not read; and how long many of them hold the loop.

    python -m bench.connections [memory handshakes reading heartbeat collection storm loop slow never]
                                [--clients 10000] [--seconds 60]

candled is its serving half: bus, bars, hub, broadcaster, sockets. The alternative in the same run is Tornado's plain
`WebSocketHandler`; for handshakes `websockets` and picows beside it. Three numbers are minimum / median / maximum.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.fanout import Server, why_not
from bench.native import Load, compiler
from bench.process import rss_mib, spread
from candled.model import DEFAULT_INTERVALS

SUBSCRIBE = '{"type":"subscribe","symbol":"BTC/USDT","interval":"1m","initialBars":1}'
UNSUBSCRIBE = '{"type":"unsubscribe","symbol":"BTC/USDT","interval":"5m"}'
PLAIN = "write_message"
_CONNECTION_KIB = 1024


def cpu_us(pid: int) -> float:
    """Microseconds of processor time of a process so far."""
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1000


class Crowd:
    """A server and its clients, for the time of a block."""

    def __init__(self, name: str, clients: int, *load: str, **options: object) -> None:
        self.server = Server(name, **options)
        self.empty_mib = rss_mib(self.server.pid)
        self.began_us = cpu_us(self.server.pid)
        self.began = time.monotonic()
        self.load = Load(self.server.port, clients, *load)
        self._clients = clients

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.end()
        self.load.kill()

    def complete(self) -> float:
        """Wait until all are there; return how many seconds that took, at most."""
        while self.server.ask("count") < self._clients:
            time.sleep(0.05)
        return time.monotonic() - self.began

    def update(self, seconds: float) -> None:
        """Have an update sent every 1.3 s for so long: the room has one a second, and a little spread."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.server.ask("send")
            time.sleep(1.3)

    def share(self, seconds: float) -> float:
        """Percent of a core that the server takes for some seconds from now."""
        before = cpu_us(self.server.pid)
        time.sleep(seconds)
        return (cpu_us(self.server.pid) - before) / seconds / 1e4


# ---------------------------------------------------------------- the measures


def memory(options: argparse.Namespace) -> list[str]:
    """Resident memory of an idle connection, subscribed."""
    kib = {}
    for name in ("candled", PLAIN):
        with Crowd(name, options.clients, "--sub", SUBSCRIBE) as crowd:
            crowd.complete()
            time.sleep(3)
            kib[name] = (rss_mib(crowd.server.pid) - crowd.empty_mib) * _CONNECTION_KIB / options.clients
    return [
        f"an idle, subscribed connection of {options.clients}: {kib['candled']:.1f} KiB; "
        f"WebSocketHandler, not subscribed: {kib[PLAIN]:.1f} KiB, {kib[PLAIN] / kib['candled']:.1f} times as much"
    ]


def handshakes(options: argparse.Namespace) -> list[str]:
    """Handshakes per second, and the processor time of one."""
    lines, base = [], 0.0
    for name in ("candled", PLAIN, "websockets", "picows"):
        if why_not(name):
            lines.append(f"{name}: skipped: {why_not(name)}")
            continue
        costs, rates = [], []
        for _ in range(3):
            with Crowd(name, 3000) as crowd:
                crowd.complete()
                costs.append((cpu_us(crowd.server.pid) - crowd.began_us) / 3000)
                rates.append(3000 / crowd.load.results()["open_s"])
        base = base or statistics.median(costs)
        lines.append(
            f"handshakes, {name}: {spread(rates, '.0f')} per second, {spread(costs, '.0f')} µs of the server each, "
            f"{statistics.median(costs) / base:.2f} of candled"
        )
    return lines


def reading(options: argparse.Namespace) -> list[str]:
    """Processor time of one message of a client, the wake-up and the system call included."""
    lines = []
    asked = {"a message read, validated, nothing to answer": UNSUBSCRIBE, "a subscription with its initial": SUBSCRIBE}
    for what, text in asked.items():
        for name in ("candled", PLAIN):
            costs = []
            for _ in range(3):
                with Crowd(name, 1000, "--sub", text, "--burst", "15") as crowd:
                    crowd.complete()
                    time.sleep(0.3)
                    before = cpu_us(crowd.server.pid)
                    time.sleep(4.0)
                    idle = crowd.share(1.0) * 4e4
                    costs.append((cpu_us(crowd.server.pid) - before - 1.25 * idle) / 15_000)
            lines.append(f"{what}, {name}: {spread(costs)} µs")
    return lines


def heartbeat(options: argparse.Namespace) -> list[str]:
    """Share of a core that goes into pinging everybody every 30 s, and into reading the answers."""
    lines = []
    tornado = {"websocket_ping_interval": 30, "websocket_ping_timeout": 10}
    for name, on, off in (("candled", {"ping_interval": 30}, {"ping_interval": 86_400}), (PLAIN, tornado, {})):
        shares = []
        for settings in (on, off):
            with Crowd(name, options.clients, **settings) as crowd:
                crowd.complete()
                time.sleep(2)
                shares.append([crowd.share(30.0) for _ in range(2)])
        cost = [one - statistics.median(shares[1]) for one in shares[0]]
        lines.append(f"heartbeat of {options.clients} clients every 30 s, {name}: {spread(cost, '.2f')} % of a core")
    return lines


def collection(options: argparse.Namespace) -> list[str]:
    """How long a full collection of reference cycles stops the loop while all are there."""
    took = {}
    for name in ("candled", PLAIN):
        with Crowd(name, options.clients) as crowd:
            crowd.complete()
            took[name] = [crowd.server.ask("collect") for _ in range(5)]
    return [
        f"a full collection with {options.clients} clients: {spread(took['candled'])} ms; "
        f"of Tornado's handlers {spread(took[PLAIN])} ms"
    ]


def storm(options: argparse.Namespace) -> list[str]:
    """All clients connect at the same moment, subscribe, and get 100 bars."""
    subscribe = SUBSCRIBE.replace('"initialBars":1', '"initialBars":100')
    with Crowd("candled", options.clients, "--inflight", str(options.clients), "--sub", subscribe) as crowd:
        crowd.server.ask("live")
        crowd.complete()
        time.sleep(1)
        longest_ms, results = crowd.server.ask("longest"), crowd.load.results()
    return [
        f"{options.clients} together: {results['open_s']:.2f} s until all were in, initial p50 "
        f"{results['answer_p50_us'] / 1000:.0f}, p99 {results['answer_p99_us'] / 1000:.0f} ms after it was asked for; "
        f"the loop was blocked {longest_ms:.0f} ms at most"
    ]


def loop(options: argparse.Namespace) -> list[str]:
    """How long the loop is blocked with 1,000 rooms that all change every second."""
    names = ["BTC/USDT", *(f"SYM{number:03}/USDT" for number in range(1, options.markets))]
    asks = [SUBSCRIBE.replace("BTC/USDT", name).replace("1m", str(one)) for name in names for one in DEFAULT_INTERVALS]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(asks) + "\n")
        file.flush()
        with Crowd("candled", options.clients, "--subs", file.name, markets=options.markets) as crowd:
            crowd.complete()
            time.sleep(2)
            crowd.server.ask("live")
            time.sleep(2)
            crowd.server.ask("longest")
            longest, shares, window_s = [], [], min(10.0, options.seconds)
            for _ in range(max(3, int(options.seconds) // 10)):
                shares.append(crowd.share(window_s))
                longest.append(crowd.server.ask("longest"))
    measured_s = window_s * len(longest)
    return [
        f"{options.clients} clients, {len(asks)} rooms, a change a second each, {measured_s:.0f} s: the loop "
        f"was blocked {spread(longest)} ms at most in {window_s:.0f} s; {spread(shares)} % of a core, {rss_text(crowd)}"
    ]


def rss_text(crowd: Crowd) -> str:
    """What was resident before anybody came."""
    return f"{crowd.empty_mib:.0f} MiB before the first client"


def slow(options: argparse.Namespace) -> list[str]:
    """One in a hundred of 5,000 clients does not read: what the others notice, and what it costs."""
    lines, medians = [], []
    many = SUBSCRIBE.replace('"initialBars":1', '"initialBars":1000')  # enough to fill the kernel's buffers in one go
    for silent in (0, 50):
        with Crowd("candled", 5000, "--slow", str(silent), "--sub", many, slow_client_timeout=3600,
                   ping_interval=86_400) as crowd:  # fmt: skip
            crowd.complete()
            time.sleep(2)
            crowd.update(5)
            before_mib, kernel_before = rss_mib(crowd.server.pid), unread(crowd)
            crowd.update(max(5, options.seconds))
            grown = (rss_mib(crowd.server.pid) - before_mib) * 1024
            kernel = unread(crowd)
            seen = crowd.load.results()["v"]["1"]
            medians.append(seen["all_p50_us"])
            lines.append(
                f"{silent} of 5000 do not read: the others' p50 {seen['all_p50_us'] / 1000:.1f} ms, last client p50 "
                f"{seen['last_p50_us'] / 1000:.1f} ms; the process grew by {grown:.0f} KiB in all, "
                f"unread in the kernel {kernel_before / 1024:.0f} → {kernel / 1024:.0f} KiB in all"
            )
    return [*lines, f"p50 with them is {medians[1] / medians[0]:.2f} of p50 without"]


def never(options: argparse.Namespace) -> list[str]:
    """Fifty never read while 500 do, with the settings at their defaults: who is closed, and what the others notice."""
    lines, slowest = [], []
    many = SUBSCRIBE.replace('"initialBars":1', '"initialBars":1000')
    for silent in (0, 50):
        with Crowd("candled", 500 + silent, "--slow", str(silent), "--sub", many) as crowd:
            crowd.complete()
            before_mib = rss_mib(crowd.server.pid)
            crowd.update(options.seconds)
            grown_mib = rss_mib(crowd.server.pid) - before_mib
            gone = 500 + silent - crowd.server.ask("count")
            seen = crowd.load.results()["v"]["1"]
            slowest.append(seen["all_p99_us"])
            lines.append(
                f"{silent} of {500 + silent} never read, {options.seconds:g} s: {gone:.0f} were closed, the process "
                f"grew by {grown_mib:.1f} MiB; the others' p50 {seen['all_p50_us'] / 1000:.2f} ms, "
                f"p99 {seen['all_p99_us'] / 1000:.2f} ms"
            )
    return [*lines, f"p99 with them is {slowest[1] / slowest[0]:.2f} of p99 without"]


def unread(crowd: Crowd) -> int:
    """Bytes that wait in the kernel for clients of a server."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{crowd.server.port:04X}"):
            total += int(fields[4].split(":")[0], 16)
    return total


MEASURES: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "memory": memory,
    "handshakes": handshakes,
    "reading": reading,
    "heartbeat": heartbeat,
    "collection": collection,
    "storm": storm,
    "loop": loop,
    "slow": slow,
    "never": never,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.connections", description=__doc__)
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=", ".join(MEASURES))
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60, help="of the loop's and the slow clients' runs")
    parser.add_argument("--markets", type=int, default=143, help="of the loop's run, with seven rooms each")
    options = parser.parse_args(arguments)
    if compiler() is None:
        print("the load client is C, and there is no compiler", file=sys.stderr)
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    options.clients = min(options.clients, most - 200)
    for name in options.measures or MEASURES:
        for line in MEASURES[name](options):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
