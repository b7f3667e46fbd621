"""How long do 1,000 markets of a pattern take to warm up, a reload that changes 800, and a market on demand?

    python -m bench.markets [--markets 1000] [--minutes 1000] [--starts 20]

The exchange is a process of its own whose REST answers take 100 ms. A reload removes 3 of 10 markets and adds half as
many as there were. Meanwhile a client has rooms of the markets that stay. The longest block of the event loop is the
daemon's own measure, by the clock and of processor time.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import websockets
import yaml

from bench.process import MONDAY_MS, Daemon, Process, scratch, spread
from candled.model import MINUTE_MS
from tests.system.daemon import free_port

DELAY_S = 0.1
RATE = 10.0  # requests a second, the budget of Bitget's plugin
WATCHED = 50  # rooms of the client
BARS = 100


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
    within_s = 60.0 + options.markets * options.minutes / 200
    warm_s = await asyncio.to_thread(_wait_for, daemon, leaving + staying, within_s)
    warmed = _requests(daemon)
    print(
        f"{leaving + staying} markets are warm after {warm_s:.1f} s; {warmed} requests of the budget take "
        f"{warmed / RATE:.1f} s; {daemon.rss_mib():.0f} MiB",
        flush=True,
    )
    watcher = Watcher(daemon.port, [f"B{number:03}/USDT" for number in range(min(WATCHED, staying))])
    watching = asyncio.ensure_future(watcher.run())
    await asyncio.sleep(options.settle)
    calm = watcher.take_longest_s(), _longest(blocks, options.settle)
    started, before = time.monotonic(), _requests(daemon)
    _rewrite(directory / "candled.yaml", {**bitget, "symbols": ["B*/USDT", "C*/USDT"]})
    daemon.signal(signal.SIGHUP)
    reload_s = await asyncio.to_thread(_wait_for, daemon, staying + joining, within_s)
    reloaded = _requests(daemon) - before
    print(
        f"the reload takes {reload_s:.1f} s; {reloaded} requests of the budget take {reloaded / RATE:.1f} s; "
        f"{daemon.rss_mib():.0f} MiB; longest time between two updates of a market {watcher.take_longest_s():.3f} s, "
        f"before it {calm[0]:.3f} s; longest block {_longest(blocks, time.monotonic() - started)}, before it {calm[1]}",
        flush=True,
    )
    watching.cancel()
    times = [await _start(daemon.port, f"D{number:03}/USDT") for number in range(options.starts)]
    print(f"on demand, from the subscription to `initial` with {BARS} bars: {spread(times, '.2f')} s", flush=True)


class Watcher:
    """A client that measures the time between two updates of each market."""

    def __init__(self, port: int, symbols: Sequence[str]) -> None:
        self._url = f"ws://127.0.0.1:{port}/"
        self._symbols = symbols
        self._last: dict[str, float] = {}
        self._longest_s = 0.0

    async def run(self) -> None:
        """Follow until cancelled."""
        async with websockets.connect(self._url, max_size=None, compression=None) as socket:
            for symbol in self._symbols:
                await socket.send(json.dumps({"type": "subscribe", "symbol": symbol, "interval": "1m"}))
            async for text in socket:
                message, now = json.loads(text), time.monotonic()
                if message["type"] == "update":
                    before = self._last.get(message["symbol"], now)
                    self._longest_s = max(self._longest_s, now - before)
                    self._last[message["symbol"]] = now

    def take_longest_s(self) -> float:
        """Return the longest time between two updates since the last call."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s


async def _start(port: int, symbol: str) -> float:
    """Subscribe to a market that does not run; return the seconds until its `initial` has come.

    Raises:
        RuntimeError: the answer is another one.
    """
    async with websockets.connect(f"ws://127.0.0.1:{port}/", max_size=None) as socket:
        started = time.monotonic()
        await socket.send(json.dumps({"type": "subscribe", "symbol": symbol, "interval": "1m", "initialBars": BARS}))
        answer = json.loads(await socket.recv())
        if answer["type"] != "initial" or len(answer["bars"]) != BARS:
            raise RuntimeError(f"expected {BARS} bars, got {str(answer)[:200]}")
        return time.monotonic() - started


def _wait_for(daemon: Daemon, count: int, within_s: float) -> float:
    """Wait until so many markets are read and none misses a minute; return the seconds that took.

    Raises:
        RuntimeError: `within_s` seconds were not enough.
    """
    started = time.monotonic()
    while time.monotonic() - started < within_s:
        daemon.check()
        with contextlib.suppress(OSError):
            exchanges: dict[str, Any] = daemon.get("/health?verbose")["exchanges"]
            markets = exchanges.get("bitget", {"symbols": {}})["symbols"].values()
            if len(markets) == count and all(one.get("missingMinutes", 9) <= 1 for one in markets):
                return time.monotonic() - started
        time.sleep(2.0)
    raise RuntimeError(f"not within {within_s:g} s:\n{daemon.log.read_text()[-2000:]}")


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
    parser.add_argument("--minutes", type=int, default=1000, help="minutes of the running week before the start")
    parser.add_argument("--starts", type=int, default=20, help="markets that are started on demand")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds of measuring before the reload")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
