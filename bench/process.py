"""What the benchmarks share: processes that are measured from outside, and figures with their spread."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.system.daemon import free_port

ROOT = Path(__file__).parents[1]
MONDAY_MS = 1_759_708_800_000  # 2025-10-06T00:00Z
NO_LIMITS = {
    "max_connections": 0,
    "max_connections_per_ip": 0,
    "max_handshakes_per_second": 0,
    "max_rooms_per_connection": 10_000,
    "max_messages_per_second": 0,
}
# of requests and of work: all clients have one address
UNLIMITED = {
    **dict.fromkeys(("api_requests", "udf_requests", "klines_requests"), 0),
    **dict.fromkeys(("connection_work", "address_work"), "0s"),
}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process:
    """A process of candled, seen through /proc. As a context manager it is ended with the block."""

    def __init__(self, *arguments: str, directory: Path) -> None:
        self.log = directory / f"{arguments[0]}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it immediately."""
        self._process.kill()
        self._process.wait()

    def cpu_s(self) -> float:
        """Seconds of processor time so far, all threads, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def descriptors(self) -> int:
        """Open file descriptors."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def rss_mib(self) -> float:
        """Resident memory, MiB."""
        return rss_mib(self.pid)

    def check(self) -> None:
        """Raises: RuntimeError with the end of its output if it ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"ended with status {self._process.returncode}:\n{self.log.read_text()[-2000:]}")


class Daemon(Process):
    """The whole daemon on SQLite in `directory`, its clock set to `start_ms` (UTC epoch milliseconds).

    `blocks`: a file for the blocks of its loop; see `bench.shifted_daemon`.
    """

    def __init__(
        self,
        directory: Path,
        exchanges: Mapping[str, Any],
        start_ms: int,
        blocks: Path | None = None,
        server: Mapping[str, Any] = NO_LIMITS,
        **more: Any,
    ) -> None:
        self.port = free_port()
        document = {
            "server": {"host": "127.0.0.1", "port": self.port, "health_details": True, **server},
            "exchanges": exchanges,
            "store": {"url": f"sqlite:///{directory / 'candled.db'}", "journal": str(directory / "journal")},
            "log": {"level": "warning"},
            **({"limits": UNLIMITED} if server is NO_LIMITS else {}),
            **more,
        }
        path = directory / "candled.yaml"
        path.write_text(yaml.safe_dump(document), "utf-8")
        watch = [] if blocks is None else [str(blocks)]
        super().__init__("bench.shifted_daemon", str(path), str(start_ms), *watch, directory=directory)

    def get(self, path: str) -> Any:
        """GET a path of the server, parsed as JSON.

        Raises:
            OSError: it does not answer.
        """
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def wait_until_complete(self, within_s: float) -> float:
        """Wait until no market misses a minute; return the seconds that took.

        Raises:
            RuntimeError: the daemon ended, or `within_s` seconds were not enough.
        """
        return self._wait(_is_complete, within_s)

    def wait_until_calm(self, share: float = 0.2, within_s: float = 120.0) -> None:
        """Wait until the work of the start is over: the daemon takes less than this share of a core for 3 seconds."""
        deadline = time.monotonic() + within_s
        while max(every(1.0, 3, self.cpu_s)) > share:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the daemon still takes more than {share:.0%} of a core after {within_s:.0f} s")

    def wait_until_answering(self, within_s: float) -> float:
        """Wait until `/health` answers; return the seconds that took.

        Raises:
            RuntimeError: as `wait_until_complete`.
        """
        return self._wait(bool, within_s)

    def _wait(self, is_reached: Callable[[Any], bool], within_s: float) -> float:
        started = time.monotonic()
        while time.monotonic() - started < within_s:
            self.check()
            with contextlib.suppress(OSError):
                if is_reached(self.get("/health?verbose")):
                    return time.monotonic() - started
            time.sleep(0.5)
        raise RuntimeError(f"not within {within_s:g} s:\n{self.log.read_text()[-2000:]}")


def _is_complete(health: Any) -> bool:
    markets = [market for exchange in health["exchanges"].values() for market in exchange["symbols"].values()]
    return bool(markets) and all(one["state"] == "live" and one.get("missingMinutes", 0) <= 1 for one in markets)


def rss_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def symbols(count: int) -> list[str]:
    """`count` symbols, named as the fake Bitget names its markets."""
    return [f"SYM{number:03}/USDT" for number in range(count)]


def every(seconds: float, times: int, read: Callable[[], float]) -> list[float]:
    """Read a counter `times` + 1 times, `seconds` apart; return how much it grew per second each time."""
    growth = []
    before, then = read(), time.monotonic()
    for _ in range(times):
        time.sleep(seconds)
        value, now = read(), time.monotonic()
        growth.append((value - before) / (now - then))
        before, then = value, now
    return growth


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """`minimum / median / maximum`."""
    three = (min(values), statistics.median(values), max(values))
    return " / ".join(format(value, form) for value in three)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as `bench/README.md` has it."""
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    print(flush=True)


@contextlib.contextmanager
def on_core(number: int) -> Iterator[None]:
    """Start processes on one core, if there are two: what one of them takes, another on the other core keeps."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder for one run."""
    with tempfile.TemporaryDirectory(prefix="candled-bench-") as name:
        yield Path(name)
