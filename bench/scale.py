"""The whole daemon at size: 1,000 symbols of 7 intervals an update a second each, 10,000 clients in 7,000 rooms.

    python -m bench.scale [--symbols 1000] [--clients 10000] [--stored 1000] [--seconds 60]

The daemon, the exchange and the clients are processes of their own. The store has `--stored` bars of every interval of
every market from the start, and every client asks for so many, so that all of them come to be in memory. Measured in
windows of five seconds, after everybody is in: the daemon's share of a core, all threads, kernel included, first with
clients that wait for every frame, which the daemon's `send` wakes, then with clients that look every 5 ms; and beside
it what that many bare `socket.send` take; its resident memory; how long its loop was blocked; how many updates
reached the clients, and how long after the exchange handed the frame to its socket. A symbol is updated every 1.05
seconds: at every second exactly, whatever comes a moment too early waits for its room's next second, and what is
measured is that wait.
"""

import argparse
import contextlib
import random
import resource
import signal
import socket
import sqlite3
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.process import MONDAY_MS, Daemon, Process, every, scratch, spread, symbols
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, WEEK, Interval
from candled.store.batch import SOURCES
from candled.store.sqlite import statements as sql
from candled.store.sqlite.store import SqliteStore
from tests.system.daemon import free_port

WINDOW_S = 5.0
LIVE = "live"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--symbols", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--stored", type=int, default=1000, help="bars of each interval")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.05, help="seconds between two updates of a symbol")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds to wait when all are in")
    parser.add_argument("--connects", type=float, default=100.0, help="new clients a second")
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        measure(options, stack)


def measure(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    """One daemon."""
    directory = stack.enter_context(scratch())
    names = symbols(options.symbols)
    fill(directory / "candled.db", names, options.stored)
    port, started_ms = free_port(), MONDAY_MS + 1000
    pushes = [str(port), str(started_ms), str(options.every), *names]
    stack.enter_context(Process("bench.stamped_exchange", *pushes, directory=directory))
    exchange = {
        "symbols": names,
        "ws_url": f"ws://127.0.0.1:{port}/v2/ws/public",
        "rest_url": f"http://127.0.0.1:{port}",
    }
    blocks = directory / "blocked"
    daemon = stack.enter_context(
        Daemon(directory, {"bitget": exchange}, started_ms, blocks, ingest={"backfill": "0m", "confirm": False})
    )
    warm_s = daemon.wait_until_complete(30.0 + options.symbols / 2)
    time.sleep(options.settle)
    window_s = min(WINDOW_S, options.seconds)
    idle = every(window_s, 3, daemon.cpu_s)
    before_mib = daemon.rss_mib()
    arguments = [str(daemon.port), str(options.clients), str(options.stored), str(options.connects), *names]
    crowd = stack.enter_context(Process("bench.crowd", *arguments, directory=directory))
    joined_s = wait_for(crowd, options.clients, 120.0 + 5 * options.clients / options.connects)
    time.sleep(options.settle)
    first_line, first_block = len(lines_of(crowd.log)), len(lines_of(blocks))
    windows = max(1, round(options.seconds / window_s))
    shares = every(window_s, windows, daemon.cpu_s)
    report = Report(lines_of(crowd.log)[first_line:], lines_of(blocks)[first_block:])
    crowd.signal(signal.SIGUSR1)
    time.sleep(min(2.0, options.seconds))
    napping = every(window_s, windows, daemon.cpu_s)
    crowd.check()
    rooms = len({turn % (options.symbols * len(DEFAULT_INTERVALS)) for turn in range(options.clients)})
    print(
        f"{options.symbols:,} symbols of {len(DEFAULT_INTERVALS)} intervals with {options.stored:,} bars each, "
        f"{options.clients:,} clients in {rooms:,} rooms\n"
        f"  complete {warm_s:.0f} s after the start, all clients in {joined_s:.0f} s after the first\n"
        f"  of a core: {percent(shares)}; with clients that are not woken {percent(napping)}; "
        f"without clients {percent(idle)}; "
        f"bare sends of as many frames {100 * report.updates_a_second * bare_send_s():.1f} %\n"
        f"  resident: {before_mib:.0f} MiB without clients, {daemon.rss_mib():.0f} MiB with them\n{report}",
        flush=True,
    )


def percent(shares: Sequence[float]) -> str:
    """Shares of one."""
    return f"{spread([100 * share for share in shares])} %"


class Report:
    """What the clients and the loop's watch wrote, a line a second."""

    def __init__(self, crowd: Sequence[Sequence[float]], blocks: Sequence[Sequence[float]]) -> None:
        self._crowd = crowd
        self._blocks = blocks

    @property
    def updates_a_second(self) -> float:
        """To all clients together."""
        return statistics.fmean(line[1] for line in self._crowd)

    def __str__(self) -> str:
        _, _, half, most_of_all, most = zip(*self._crowd, strict=True)
        wall, cpu = zip(*self._blocks, strict=True)
        return (
            f"  {self.updates_a_second:,.0f} updates a second to the clients, since the exchange sent the frame: "
            f"p50 {spread(half)}, p99 {spread(most_of_all)}, most {spread(most)} ms\n"
            f"  longest stop of the loop in each second: {spread(wall)} ms, {spread(cpu)} ms of its own processor time"
        )


def bare_send_s() -> float:
    """Processor seconds to send a frame of 230 bytes over loopback, one after the other to 200 sockets."""
    took = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pairs = []
        for _ in range(200):
            sender = stack.enter_context(socket.create_connection(listener.getsockname()))
            pairs.append((sender, stack.enter_context(listener.accept()[0])))
        for _ in range(50):
            started = time.thread_time()
            for sender, _ in pairs:
                sender.send(bytes(230))
            took.append((time.thread_time() - started) / len(pairs))
            for _, receiver in pairs:
                receiver.recv(4096)
    return statistics.median(took)


def lines_of(path: Path) -> list[list[float]]:
    """The numbers of each whole line, up to where something else was written."""
    text = path.read_text().partition("Traceback")[0]
    return [[float(number) for number in line.split()] for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_for(crowd: Process, clients: int, within_s: float) -> float:
    """Wait until all clients are connected; return the seconds that took."""
    started = time.monotonic()
    while time.monotonic() - started < within_s:
        crowd.check()
        lines = lines_of(crowd.log)
        if lines and lines[-1][0] >= clients:
            return time.monotonic() - started
        time.sleep(1.0)
    raise RuntimeError(f"not all clients were in within {within_s:g} s:\n{crowd.log.read_text()[-500:]}")


# ---------------------------------------------------------------- the store


def fill(path: Path, names: Sequence[str], stored: int, exchange: str = "bitget") -> None:
    """A store with `stored` bars of every interval that end where the week begins, in which nothing is missing."""
    store = SqliteStore(path, DEFAULT_INTERVALS)
    store.open()
    store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    oldest_ms = MONDAY_MS - stored * DEFAULT_INTERVALS[-1].ms
    known_gap = (oldest_ms, MONDAY_MS - stored * MINUTE_MS, "exchange_outage", 5, MONDAY_MS + WEEK.ms)
    (known,) = connection.execute("SELECT count(*) FROM markets").fetchone()
    for market, name in enumerate(names, known + 1):
        dice = random.Random(name.replace("/", ""))
        connection.execute(sql.ADD_MARKET, (exchange, name))
        connection.execute(sql.SET_COMPLETE_FROM, (oldest_ms, oldest_ms, market))
        connection.execute(sql.PUT_KNOWN_GAP, (market, *known_gap))
        for interval in DEFAULT_INTERVALS:
            rows = list(bars(dice, interval, stored))
            if interval == MINUTE:
                connection.executemany(sql.PUT_MINUTE, [(market, *row, SOURCES.index(LIVE)) for row in rows])
            else:
                connection.executemany(sql.PUT_BAR, [(market, interval.ms, *row) for row in rows])
    connection.execute("COMMIT")
    connection.close()


def bars(dice: random.Random, interval: Interval, stored: int) -> Iterator[tuple[int | str, ...]]:
    """Columns of bars with as many digits as the exchange pushes: more of them would repack the bars in memory."""
    minutes = interval.ms // MINUTE_MS
    for at in range(-stored, 0):
        low = dice.randrange(90_000_000_000, 110_000_000_000)
        volume = dice.randrange(10**9) * minutes
        quote = low * volume
        open_ms = MONDAY_MS + at * interval.ms
        prices = (low + 20, low + 99, low, low + 50)
        yield (
            open_ms,
            *(f"{price // 10**6}.{price % 10**6:06}" for price in prices),
            f"{volume // 10**6}.{volume % 10**6:06}",
            f"{quote // 10**12}.{quote % 10**12 // 10**4:08}",
            open_ms + interval.ms + 900,
            0,
        )


if __name__ == "__main__":
    main()
