"""How long do 1,000 markets of a pattern take to warm up, a reload that changes 800, and a market on demand?

    python -m bench.markets [--markets 1000] [--minutes 1000] [--starts 20]

The exchange is a process of its own whose REST answers take 100 ms. A reload removes 3 of 10 markets and adds half as
many as there were. Meanwhile a client has rooms of the markets that stay, and measures how long each update was on its
way from the exchange: a pause of the updates is seen there. Updates during the polls of this program are left out. The
longest block of the event loop is the daemon's own measure, by the clock and of processor time, polls included.
Half of the markets on demand are started one after the other while the reload goes on, half after it.
A part that does not end within twice its share of the request budget, and a minute, is given up.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import websockets
import yaml

from bench.process import MONDAY_MS, Daemon, Process, scratch, spread
from candled.model import MINUTE_MS
from tests.system.daemon import free_port

DELAY_S = 0.1
RATE = 10.0  # requests a second, the budget of Bitget's plugin
WATCHED = 50  # rooms of the client
BARS = 100
PAGE = 999  # minutes of a request
POLL_S = 1.0
BETWEEN_S = 2.0  # from the `initial` of a market on demand to the next one, during the reload
AFTER_POLL_S = 0.3  # updates that waited for the answer to a poll arrive until then


@dataclass
class Polls:
    """The polls of this program, which take a part of the daemon's time."""

    #: Updates that arrive before this are left out, monotonic seconds.
    until: float = 0.0


class Waited(NamedTuple):
    """The end of waiting."""

    seconds: float
    #: The markets that miss no minute, and all markets that are read.
    warm: int
    markets: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    with contextlib.ExitStack() as stack:
        asyncio.run(measure(options, stack))


async def measure(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    """Measure one daemon."""
    directory = stack.enter_context(scratch())
    leaving, staying, joining = (round(share * options.markets) for share in (0.3, 0.7, 0.5))
    start_ms, port = MONDAY_MS + options.minutes * MINUTE_MS, free_port()
    groups = f"A={leaving},B={staying},C={joining},D={options.starts}"
    fake = [str(port), groups, str(start_ms), str(DELAY_S)]
    stack.enter_context(Process("bench.listed_exchange", *fake, directory=directory))
    bitget = {
        "symbols": ["A*/USDT", "B*/USDT"],
        "most": 2 * options.markets,
        "on_demand": {"most": options.starts, "most_per_address": options.starts},
        "ws_url": f"ws://127.0.0.1:{port}/v2/ws/public",
        "rest_url": f"http://127.0.0.1:{port}",
    }
    blocks, ingest = directory / "blocks", {"backfill": "0s"}
    daemon = stack.enter_context(Daemon(directory, {"bitget": bitget}, start_ms, blocks, ingest=ingest))
    store = directory / "candled.db"
    polls, within_s = Polls(), _limit_s(leaving + staying, options)
    waited = await asyncio.to_thread(_wait_for, daemon, store, "AB", leaving + staying, within_s, polls)
    _print("warm", waited, daemon, 0)
    watcher = Watcher(daemon.port, [f"B{number:03}/USDT" for number in range(min(WATCHED, staying))], polls)
    watching = asyncio.ensure_future(watcher.run())
    await asyncio.sleep(options.settle)
    calm = f"{spread(watcher.take_late_ms())} ms, {_longest(blocks, options.settle)}"
    started, before = time.monotonic(), _requests(daemon)
    _rewrite(directory / "candled.yaml", {**bitget, "symbols": ["B*/USDT", "C*/USDT"]})
    daemon.signal(signal.SIGHUP)
    symbols = [f"D{number:03}/USDT" for number in range(options.starts)]
    early, late = symbols[: options.starts // 2], symbols[options.starts // 2 :]
    starting = asyncio.ensure_future(_start_all(daemon.port, early, BETWEEN_S))
    within_s = _limit_s(joining, options)
    waited = await asyncio.to_thread(_wait_for, daemon, store, "BC", staying + joining, within_s, polls)
    _print("reloaded", waited, daemon, before)
    print(
        f"  updates of markets that stay were on their way for {spread(watcher.take_late_ms())} ms, longest block "
        f"{_longest(blocks, time.monotonic() - started)}; before the reload {calm}",
        flush=True,
    )
    watching.cancel()
    print(f"on demand during the reload, from the subscription to `initial`: {await starting}", flush=True)
    print(f"on demand after it: {await _start_all(daemon.port, late, 0.0)}", flush=True)


def _limit_s(markets: int, options: argparse.Namespace) -> float:
    """Return how long to wait for markets whose history is requested."""
    return 60.0 + 2 * markets * -(-options.minutes // PAGE) / RATE


def _print(what: str, waited: Waited, daemon: Daemon, before: int) -> None:
    """Print the result of waiting. `before` is the number of requests that were made before."""
    requests = _requests(daemon) - before
    print(
        f"{waited.warm} of {waited.markets} markets are {what} after {waited.seconds:.1f} s; {requests} requests of "
        f"the budget take {requests / RATE:.1f} s; {daemon.rss_mib():.0f} MiB, "
        f"{daemon.cpu_s():.0f} s of processor time",
        flush=True,
    )


class Watcher:
    """A client that measures how long each update was on its way: its close is the time at which it was sent."""

    def __init__(self, port: int, symbols: Sequence[str], polls: Polls) -> None:
        self._url = f"ws://127.0.0.1:{port}/"
        self._symbols = symbols
        self._polls = polls
        self._late_ms: list[float] = []

    async def run(self) -> None:
        """Follow until cancelled."""
        async with websockets.connect(self._url, max_size=None, compression=None) as socket:
            for symbol in self._symbols:
                await socket.send(json.dumps({"type": "subscribe", "symbol": symbol, "interval": "1m"}))
            async for text in socket:
                message, now = json.loads(text), time.monotonic()
                if message["type"] == "update" and now > self._polls.until:
                    self._late_ms.append(1000 * (now - message["bar"]["close"]))

    def take_late_ms(self) -> list[float]:
        """Return the milliseconds of each update since the last call."""
        late_ms, self._late_ms = self._late_ms, []
        return late_ms or [0.0]


async def _start_all(port: int, symbols: Sequence[str], between_s: float) -> str:
    """Start markets one after the other, and return the seconds that they took in words."""
    times: list[float] = []
    for symbol in symbols:
        await asyncio.sleep(between_s)
        seconds = await _start(port, symbol)
        times += [] if seconds is None else [seconds]
    lacking = len(symbols) - len(times)
    without = f", and {lacking} without its {BARS} bars" if lacking else ""
    return f"{len(times)} markets in {spread(times, '.2f')} s{without}" if times else f"none of {len(symbols)} markets"


async def _start(port: int, symbol: str) -> float | None:
    """Subscribe to a market that does not run; return the seconds until `initial` has come, None if it has no bars."""
    async with websockets.connect(f"ws://127.0.0.1:{port}/", max_size=None) as socket:
        started = time.monotonic()
        await socket.send(json.dumps({"type": "subscribe", "symbol": symbol, "interval": "1m", "initialBars": BARS}))
        answer = json.loads(await socket.recv())
        is_whole = answer["type"] == "initial" and len(answer["bars"]) == BARS
        return time.monotonic() - started if is_whole else None


def _wait_for(daemon: Daemon, store: Path, letters: str, count: int, within_s: float, polls: Polls) -> Waited:
    """Wait until `count` markets of some groups are read and none misses a minute, or until the time is over.

    The daemon is only asked, which blocks its event loop, once its store has the week of so many markets.
    """
    started = time.monotonic()
    while True:
        daemon.check()
        is_over = time.monotonic() - started > within_s
        if is_over or _count_complete(store, letters) >= count:
            polls.until = float("inf")
            symbols = daemon.get("/health?verbose")["exchanges"]["bitget"]["symbols"]
            found = [one for symbol, one in symbols.items() if symbol[0] in letters]
            polls.until = time.monotonic() + AFTER_POLL_S
            warm = sum(one.get("missingMinutes", 9) <= 1 for one in found)
            if is_over or len(found) == warm == count:
                return Waited(time.monotonic() - started, warm, len(found))
        time.sleep(POLL_S)


def _count_complete(store: Path, letters: str) -> int:
    """Count the markets of some groups whose history is complete from the start of the week on."""
    places = ",".join("?" * len(letters))
    query = f"SELECT count(*) FROM markets WHERE complete_from_ms <= ? AND substr(symbol, 1, 1) IN ({places})"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
            return int(connection.execute(query, (MONDAY_MS, *letters)).fetchone()[0])
    except sqlite3.OperationalError:  # the daemon has not created it yet
        return 0


def _requests(daemon: Daemon) -> int:
    """Return the requests to the exchange so far."""
    hosts = daemon.get("/health?verbose")["exchanges"]["bitget"]["hosts"]
    return sum(host["requests"] for host in hosts.values())


def _longest(blocks: Path, seconds: float) -> str:
    """Return the longest blocks of the last seconds, by the clock and of processor time."""
    lines = blocks.read_text().splitlines()[-max(1, round(seconds)) :]
    walls, cpus = zip(*(map(float, line.split()) for line in lines), strict=True)
    return f"{max(walls):.0f} ms ({max(cpus):.0f} ms of processor time)"


def _rewrite(path: Path, bitget: dict[str, Any]) -> None:
    document = yaml.safe_load(path.read_text("utf-8"))
    path.write_text(yaml.safe_dump({**document, "exchanges": {"bitget": bitget}}), "utf-8")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.markets", description=__doc__)
    parser.add_argument("--markets", type=int, default=1000)
    parser.add_argument("--minutes", type=int, default=990, help="minutes of the running week before the start")
    parser.add_argument("--starts", type=int, default=20, help="markets that are started on demand")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds of measuring before the reload")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
