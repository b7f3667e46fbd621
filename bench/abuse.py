"""Healthy clients while strangers, the exchange, publishers on Redis or somebody on the machine misbehave, a row each.

    python -m bench.abuse [--rows NAME ...] [--clients 1000] [--seconds 4] [--symbols 20]

The daemon, the exchange, the healthy clients and the stranger are processes of their own. After a common idle run each
row lasts some seconds. Its line is one of a table: what it did before limits, what healthy clients waited for, how
long the loop was blocked (wall and processor time), memory, descriptors, the log, and the limits it missed: p99
within 3 times of the idle run and under 20 ms, at most 32 MiB more memory, no minute lost, no healthy connection cut or
refused, no traceback. Rows that wait for REST begin after the end of a minute.
"""

import argparse
import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from bench.abuse_deployment import Deployment, Window
from bench.forgeries import FILES, FORGERIES, FileAct, Forgery, RedisDeployment
from bench.hostile_exchange import HOSTILITIES
from bench.process import ROOT, scratch, symbols
from bench.strangers import STRANGERS
from candled.model import MINUTE_MS

_LIMIT_MS, _TIMES, _MEMORY_MIB, _LOG_KB = 20.0, 3.0, 32.0, 100.0
_MARKET_S = 6.0  # after a row that concerns the exchange or the store
_COLUMNS = (
    "row", "item", "before", "ping p50 / p99, ms", "update p50 / p99, ms", "loop blocked, ms (CPU)",
    "memory, MiB: most (after)", "CPU, %", "descriptors", "log, KB", "result",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An abuse: the item that bounds it, what happened before, where it happens, and how; it ends with the block.

    One that `waits` begins after the end of a minute, when final minutes are compared over REST. After one that
    `spoils` its deployment, the next row has a new one.
    """

    name: str
    item: int
    before: str
    deployment: type[Deployment]
    act: Callable[[Deployment, float], AbstractContextManager[object]]
    settle_s: float = 1.0
    waits: bool = False
    spoils: bool = False


def all_rows() -> Iterator[Row]:
    """Every row, deployment by deployment."""
    for name, stranger in STRANGERS.items():
        yield Row(name, stranger.item, stranger.before, Deployment, partial(attack, name))
    for name, hostility in HOSTILITIES.items():
        is_rest = hostility.breaks_rest is not None
        act = partial(misbehave, name)
        yield Row(name, hostility.item, hostility.before, Deployment, act, _MARKET_S, is_rest, hostility.spoils)
    for name, act in FILES.items():
        yield Row(name, 7, act.before, Deployment, partial(begin, act), _MARKET_S, spoils=act.spoils)
    for name, forgery in FORGERIES.items():
        yield Row(name, 7, forgery.before, RedisDeployment, partial(begin, forgery), _MARKET_S)


@contextlib.contextmanager
def attack(name: str, deployment: Deployment, seconds: float) -> Iterator[None]:
    """A stranger in a process of its own."""
    command = [sys.executable, "-m", "bench.strangers", str(deployment.daemon.port), str(seconds), name]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield
        output, _ = process.communicate(timeout=seconds + 30)
        print(f"  {name}: {output.strip()}", file=sys.stderr)
    finally:
        process.kill()
        process.wait()


def misbehave(name: str, deployment: Deployment, _: float) -> AbstractContextManager[None]:
    """The exchange."""
    return deployment.hostile(name)


def begin(act: FileAct | Forgery, deployment: Deployment, _: float) -> AbstractContextManager[object]:
    """Somebody on the machine or on Redis."""
    return act.begin(deployment)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    rows = {row.name: row for row in all_rows()}
    parser = argparse.ArgumentParser(prog="python -m bench.abuse", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(rows), metavar="NAME")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each row")
    parser.add_argument("--symbols", type=int, default=20)
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(" | ".join(("", *_COLUMNS, "")).strip())
    print("|" + " --- |" * len(_COLUMNS), flush=True)
    for deployment, its_rows in groupby(
        (rows[name] for name in rows if name in options.rows), key=lambda row: row.deployment
    ):
        waiting = list(its_rows)
        while waiting:
            waiting = run(deployment, waiting, options)


def run(kind: type[Deployment], rows: Sequence[Row], options: argparse.Namespace) -> list[Row]:
    """Measure rows at one deployment until it is spoiled; return the rest."""
    done: list[tuple[Row, Window]] = []
    with scratch() as directory, kind(directory, symbols(options.symbols), options.clients) as deployment:
        time.sleep(min(5.0, options.seconds))  # all clients are in
        idle = deployment.measure(contextlib.nullcontext(), options.seconds, 0.0)
        print(line("idle", "", "", idle, result(idle, idle)), flush=True)
        for number, row in enumerate(rows, 1):
            if row.waits:
                time.sleep((MINUTE_MS - deployment.now_ms() % MINUTE_MS) / 1000 + 1.0)
            if row.spoils:
                report_minutes(deployment, done)
            try:
                settle_s = min(row.settle_s, 2 * options.seconds)
                window = deployment.measure(row.act(deployment, options.seconds), options.seconds, settle_s)
            except (OSError, RuntimeError, ValueError) as error:
                print(f"| {row.name} | {row.item} | {row.before} | MISSED: {str(error)[-2000:]!r} |", flush=True)
                return list(rows[number:])
            done.append((row, window))
            print(line(row.name, str(row.item), row.before, window, result(window, idle)), flush=True)
            if row.spoils:
                return list(rows[number:])
        report_minutes(deployment, done)
    return []


def report_minutes(deployment: Deployment, done: Sequence[tuple[Row, Window]]) -> None:
    """Print which minutes are wrong, and which rows ran meanwhile."""
    wrong = deployment.wrong_minutes()
    print(f"  minutes missing or other than the exchange's: {len(wrong)}", flush=True)
    for name, open_ms in wrong[:10]:
        during = [row.name for row, seen in done if seen.first_ms < open_ms + MINUTE_MS and open_ms < seen.last_ms]
        print(f"  {name} at {open_ms}, during: {', '.join(during) or 'idle'}", flush=True)


def result(window: Window, idle: Window) -> str:
    """`pass`, or what was missed."""
    missed = list(window.faults)
    for what, of in (("ping", "pings_ms"), ("update", "updates_ms")):
        p99, idle_p99 = percentile(getattr(window, of), 0.99), percentile(getattr(idle, of), 0.99)
        if p99 > min(_LIMIT_MS, _TIMES * idle_p99):
            missed.append(f"{what} p99 {p99:.1f} ms, {p99 / max(idle_p99, 0.01):.1f} of idle")
    if idle.updates_ms and len(window.updates_ms) < len(idle.updates_ms) / 2:
        missed.append(f"{len(window.updates_ms):,} updates instead of {len(idle.updates_ms):,}")
    grown_mib = window.most_mib - window.before_mib
    if grown_mib > _MEMORY_MIB:
        missed.append(f"+{grown_mib:.0f} MiB")
    if window.log_kb > _LOG_KB:
        missed.append(f"{window.log_kb:.0f} KB of log")
    return f"MISSED: {'; '.join(missed)}" if missed else "pass"


def line(name: str, item: str, before: str, window: Window, result: str) -> str:
    """A line of the table."""
    halves = [
        f"{percentile(values, 0.5):.1f} / {percentile(values, 0.99):.1f}" if values else "none"
        for values in (window.pings_ms, window.updates_ms)
    ]
    memory = [window.most_mib - window.before_mib, window.after_mib - window.before_mib]
    cells = [
        name, item, before, *halves, f"{window.blocked_ms:.0f} ({window.blocked_cpu_ms:.0f})",
        f"{memory[0]:+.1f} ({memory[1]:+.1f})",
        f"{100 * window.cpu_share:.0f}", str(window.descriptors), f"{window.log_kb:.1f}", result,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values; 0.0 if there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


if __name__ == "__main__":
    main()
