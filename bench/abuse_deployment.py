"""A daemon with healthy clients, and what is measured of both while something happens."""

import contextlib
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from bench.crowd import handshake
from bench.hostile_exchange import STORED
from bench.process import MONDAY_MS, Daemon, Process
from bench.scale import fill, lines_of
from bench.strangers import PROXY
from candled.model import MINUTE_MS, parse_iso_ms
from tests.clocks import ScaledClock
from tests.system.daemon import free_port

BARS = STORED  # of each market and interval in the store, and of the first answer of a subscription
STARTED_MS = MONDAY_MS + 1000
PUSH_EVERY_S = (
    "1.5"  # a busy machine delays pushes, and one that came within a second of the last would wait for its room
)
HEALTHY, HOSTILE = "bitget", "hostile"  # the exchanges
_HOSTILE_MARKETS = 2
_SAMPLE_S = 0.1
_QUICK_S = 0.05
_PROBE_S, _PROBE_LIMIT_S = 0.5, 2.0
_READER, _PROBER = ("127.0.0.5", 0), ("127.0.0.3", 0)
_SETTLED_MS = 20_000  # after its end a minute is read, compared and stored
_NEVER_LOGGED = ("Traceback", "\x1b", "\nFORGED", "\n2026-01-01 CRITICAL")


@dataclass
class Window:
    """What was measured while something happened."""

    pings_ms: list[float] = field(default_factory=list)
    updates_ms: list[float] = field(default_factory=list)
    blocked_ms: float = 0.0
    blocked_cpu_ms: float = 0.0
    before_mib: float = 0.0
    most_mib: float = 0.0
    after_mib: float = 0.0
    cpu_share: float = 0.0
    descriptors: int = 0
    log_kb: float = 0.0
    first_ms: int = 0  # the market's time
    last_ms: int = 0
    #: What must not be.
    faults: list[str] = field(default_factory=list)


class Deployment:
    """One daemon on SQLite, its exchange and its healthy clients, as a context manager."""

    started_ms = STARTED_MS

    def __init__(self, directory: Path, names: Sequence[str], clients: int) -> None:
        self.directory = directory
        self.names = names
        self._clients = clients
        self.blocks = directory / "blocked"
        self._stack = contextlib.ExitStack()
        self.daemon: Daemon
        self.markets = {HEALTHY: names, HOSTILE: names[:_HOSTILE_MARKETS]}
        self.exchange_ports = {name: free_port() for name in self.markets}
        self._healthy: Process

    def __enter__(self) -> "Deployment":
        with contextlib.ExitStack() as stack:
            for exchange, names in self.markets.items():
                pushes = [str(self.exchange_ports[exchange]), str(self.started_ms), PUSH_EVERY_S, *names]
                stack.enter_context(Process("bench.hostile_exchange", *pushes, directory=self.directory))
            self._clock = ScaledClock(start_ms=self.started_ms)
            self.daemon = self.start_daemons(stack)
            self.daemon.wait_until_complete(60.0 + len(self.names))
            arguments = [str(self.daemon.port), str(self._clients), str(BARS), "200", *self.names]
            self._healthy = stack.enter_context(Process("bench.healthy", *arguments, directory=self.directory))
            self._wait_for_clients(60.0 + self._clients / 10)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_daemons(self, stack: contextlib.ExitStack) -> Daemon:
        """Start what serves; return the process that is measured."""
        for exchange, names in self.markets.items():
            fill(self.directory / "candled.db", names, BARS, exchange)
        return stack.enter_context(self.make_daemon(self.directory, self.blocks))

    def make_daemon(self, directory: Path, blocks: Path | None, **more: Any) -> Daemon:
        """A daemon of this deployment with the limits of the defaults, but for a proxy that it trusts."""
        exchanges = {
            name: {
                "plugin": "bitget",
                "symbols": list(names),
                "ws_url": f"ws://127.0.0.1:{self.exchange_ports[name]}/v2/ws/public",
                "rest_url": f"http://127.0.0.1:{self.exchange_ports[name]}",
            }
            for name, names in self.markets.items()
        }
        sections = {"server": {"trusted_proxies": [PROXY]}, "ingest": {"backfill": "0m"}, "log": {"level": "info"}}
        return Daemon(directory, exchanges, self.now_ms(), blocks, **sections | more)

    def _wait_for_clients(self, within_s: float) -> None:
        until = time.monotonic() + within_s
        while not ((lines := self._lines()) and lines[-1]["connected"] == self._clients):
            self._healthy.check()
            if time.monotonic() > until:
                raise RuntimeError(f"not all clients were in:\n{self._healthy.log.read_text()[-500:]}")
            time.sleep(0.1)

    def _lines(self) -> list[dict[str, Any]]:
        text = self._healthy.log.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("{")]

    # ---------------------------------------------------------------- measuring

    @contextlib.contextmanager
    def hostile(self, name: str) -> Iterator[None]:
        """Let the hostile exchange misbehave."""
        port = self.exchange_ports[HOSTILE]
        get(port, f"/hostile?{quote_plus(name)}")
        try:
            yield
        finally:
            get(port, "/hostile")

    def now_ms(self) -> int:
        """The market's time."""
        return self._clock.now_ms()

    def measure(self, act: contextlib.AbstractContextManager[object], seconds: float, settle_s: float) -> Window:
        """Watch daemon and clients for some seconds of an act, and see to it that they are well after it."""
        daemon, window = self.daemon, Window(first_ms=self.now_ms())
        clients, blocked, log = len(self._lines()), len(lines_of(self.blocks)), daemon.log.stat().st_size
        cut = self._lines()[-1]["cut"]
        window.before_mib = window.most_mib = daemon.rss_mib()
        with act:
            probes, cpu_s, began = Probes(daemon.port), daemon.cpu_s(), time.monotonic()
            while time.monotonic() < began + seconds:
                daemon.check()
                window.most_mib = max(window.most_mib, daemon.rss_mib())
                window.descriptors = max(window.descriptors, daemon.descriptors())
                time.sleep(_SAMPLE_S)
            window.cpu_share = (daemon.cpu_s() - cpu_s) / (time.monotonic() - began)
            window.faults += probes.stop()
        time.sleep(0.3 + min(1.0, settle_s))  # the last lines
        lines = self._lines()
        window.pings_ms = sorted(delay for line in lines[clients:] for delay in line["pings"])
        window.updates_ms = sorted(delay for line in lines[clients:] for delay in line["updates"])
        wall, cpu = zip(*lines_of(self.blocks)[blocked:] or [[0.0, 0.0]], strict=True)
        window.blocked_ms, window.blocked_cpu_ms = max(wall), max(cpu)
        if lines[-1]["cut"] > cut:
            window.faults.append(f"{lines[-1]['cut'] - cut} healthy connections cut")
        time.sleep(max(0.0, settle_s - 1.0))
        window.faults += self._recover()
        window.after_mib, window.last_ms = daemon.rss_mib(), self.now_ms()
        with daemon.log.open("rb") as file:
            file.seek(log)
            text = file.read().decode(errors="replace")
        window.log_kb = len(text) / 1000
        for word in _NEVER_LOGGED:
            if word in text:
                window.faults.append(f"{text.count(word)} of {word!r} in the log")
                print(text[max(0, text.index(word) - 200) :][:2500], file=sys.stderr)
        return window

    def _recover(self) -> list[str]:
        try:
            took_s = self.daemon.wait_until_complete(30.0) + self._wait_until_quick(30.0)
        except RuntimeError as error:
            self.daemon.check()
            return [f"not well again {str(error).partition(':')[0]}"]
        return [f"well again after {took_s:.0f} s"] if took_s > 10.0 else []

    def _wait_until_quick(self, within_s: float) -> float:
        """Wait until three answers in a row came quickly; return the seconds that took."""
        started, quick = time.monotonic(), 0
        while quick < 3:
            began = time.monotonic()
            get(self.daemon.port, "/health/live")
            quick = quick + 1 if time.monotonic() - began < _QUICK_S else 0
            if time.monotonic() - started > within_s:
                raise RuntimeError(f"not within {within_s:g} s: it answers slowly")
            time.sleep(_SAMPLE_S)
        return time.monotonic() - started

    def wrong_minutes(self) -> list[tuple[str, int]]:
        """Minutes that are over and that the daemon serves not at all, or not as the exchange ended them."""
        until_ms = self.now_ms() - _SETTLED_MS - MINUTE_MS
        return [
            (f"{exchange}:{name}", open_ms)
            for exchange, names in self.markets.items()
            for name in names
            for open_ms in self._wrong_minutes(exchange, name, until_ms)
        ]

    def _wrong_minutes(self, exchange: str, name: str, until_ms: int) -> Iterator[int]:
        path = f"/api/candles?exchange={exchange}&symbol={name}&interval=1m&limit={BARS}"
        served = {parse_iso_ms(bar["time"]): bar for bar in get(self.daemon.port, path)["bars"]}
        for row in get(self.exchange_ports[exchange], "/truth")[name.replace("/", "")].values():
            open_ms = int(row[0])
            if open_ms <= until_ms and not _is_row(served.get(open_ms), row):
                yield open_ms


def _is_row(bar: Mapping[str, Any] | None, row: Sequence[str]) -> bool:
    return bar is not None and [float(bar[key]) for key in ("close", "volume")] == [float(row[4]), float(row[5])]


def get(port: int, path: str, source: tuple[str, int] = _READER) -> Any:
    """GET a path of this machine as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=source)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return json.load(connection.getresponse())


class Probes:
    """A thread that, twice a second, shakes hands as a new client and asks whether the daemon is alive."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._failed: dict[str, int] = {}
        self._asked = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> list[str]:
        """End; return what went wrong."""
        self._ended.set()
        self._thread.join()
        return [f"{number} of {self._asked} {what} failed" for what, number in self._failed.items()]

    def _run(self) -> None:
        while not self._ended.wait(_PROBE_S):
            self._asked += 1
            for what, request, expected in (
                ("new handshakes", handshake(self._port), b"HTTP/1.1 101"),
                ("/health/live", b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"HTTP/1.1 200"),
            ):
                if not self._answers(request, expected):
                    self._failed[what] = self._failed.get(what, 0) + 1

    def _answers(self, request: bytes, expected: bytes) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), _PROBE_LIMIT_S, _PROBER) as connection:
                connection.sendall(request)
                return connection.recv(1000).startswith(expected)
        except OSError:
            return False
