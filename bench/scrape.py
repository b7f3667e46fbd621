"""The price of operators' questions: a scrape of `/metrics`, and `/health`, with 1,000 symbols.

    python -m bench.scrape [--symbols 1000] [--clients 200] [--scrapes 30] [--every 15]

The daemon runs in this process, with a filled store and an exchange that it cannot reach, so that only the question is
measured and not the minutes that it reads meanwhile. Each question is asked `--scrapes` times. The answers are made in
slices: other work waits for the longest of them only. The share of a core is that of one question every `--every`
seconds.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import websockets
import yaml

from bench.process import MONDAY_MS, UNLIMITED, scratch, spread, symbols
from bench.scale import fill
from candled import config
from candled.app import Daemon
from candled.model import DEFAULT_INTERVALS
from candled.plugins import discover
from candled.serve.gc_tuner import GcTuner
from candled.serve.handlers import encode_json
from tests.clocks import ScaledClock

STORED = 120  # bars of each interval of each symbol


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.scrape", description=__doc__)
    parser.add_argument("--symbols", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--scrapes", type=int, default=30)
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two questions")
    options = parser.parse_args(arguments)
    for per_symbol in (False, True):
        with scratch() as directory:
            asyncio.run(measure(options, directory, per_symbol=per_symbol))


async def measure(options: argparse.Namespace, directory: Path, *, per_symbol: bool) -> None:
    """Run a daemon and its clients, and ask."""
    names = symbols(options.symbols)
    fill(directory / "candled.db", names, STORED)
    daemon = make_daemon(directory, names, per_symbol=per_symbol)
    collector = GcTuner()
    collector.start()  # as the program does
    await daemon.start()
    clients: list[Any] = []
    try:
        while not daemon.health.is_reading or any(one.get("completeFrom") is None for one in await states(daemon)):
            await asyncio.sleep(1.0)
        clients = [await connect(daemon.port, names, number) for number in range(options.clients)]
        assert daemon.internal is not None
        questions: dict[str, Callable[[], Awaitable[bytes]]] = {
            "`/metrics`": daemon.internal.render_metrics,
            "`/health`": encoded(daemon.health.summarize),
            "`/health?verbose`": encoded(daemon.health.report),
        }
        if per_symbol:
            questions = {"`/metrics` with series of every symbol": daemon.internal.render_metrics}
        for name, ask in questions.items():
            await report(name, ask, options)
    finally:
        for client in clients:
            await client.close()
        await daemon.stop()
        collector.stop()


def encoded(ask: Callable[[], Awaitable[Mapping[str, Any]]]) -> Callable[[], Awaitable[bytes]]:
    """A question whose answer is encoded as the handlers do it."""

    async def encode() -> bytes:
        return encode_json(await ask())

    return encode


async def states(daemon: Daemon) -> Iterable[dict[str, Any]]:
    """The part of each symbol in the details of `/health`."""
    symbols: dict[str, dict[str, Any]] = (await daemon.health.report())["exchanges"]["bitget"]["symbols"]
    return symbols.values()


def make_daemon(directory: Path, names: Sequence[str], *, per_symbol: bool) -> Daemon:
    """A daemon of this process, with an internal port."""
    document = {
        "server": {
            "host": "127.0.0.1", "port": 0, "internal_port": 0, "metrics_per_symbol": per_symbol,
            "max_connections_per_ip": 0,
        },
        "exchanges": {
            "bitget": {"symbols": list(names), "ws_url": "ws://127.0.0.1:9/", "rest_url": "http://127.0.0.1:9"},
        },
        "ingest": {"backfill": "0m"},
        "log": {"level": "error"},
        "limits": UNLIMITED,
        "store": {"url": f"sqlite:///{directory / 'candled.db'}", "journal": str(directory / "journal")},
    }  # fmt: skip
    path = directory / "candled.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    plugins = discover()
    return Daemon(config.load(path, {}, plugins), plugins, ScaledClock(start_ms=MONDAY_MS + 3_600_000))


async def connect(port: int, names: Sequence[str], number: int) -> Any:
    """A client in one room."""
    client = await websockets.connect(f"ws://127.0.0.1:{port}/ws", max_size=None)
    interval = str(DEFAULT_INTERVALS[number % len(DEFAULT_INTERVALS)])
    request = {"type": "subscribe", "symbol": names[number % len(names)], "interval": interval, "initialBars": 10}
    await client.send(json.dumps(request))
    await client.recv()
    return client


async def report(name: str, ask: Callable[[], Awaitable[bytes]], options: argparse.Namespace) -> None:
    """Ask a question many times, and print what it takes."""
    took_s, longest_s, body = [], [], b""
    for _ in range(options.scrapes):
        await asyncio.sleep(0.3)
        slices_s: list[float] = []
        watching = asyncio.create_task(watch(slices_s))
        await asyncio.sleep(0)
        body = await ask()
        await asyncio.sleep(0)
        watching.cancel()
        took_s.append(sum(slices_s))
        longest_s.append(max(slices_s))
    series = sum(not line.startswith(b"#") for line in body.splitlines()) if "metrics" in name else 0
    share = 100 * statistics.median(took_s) / options.every
    print(
        f"| {name} | {spread([1000 * one for one in took_s])} ms | {spread([1000 * one for one in longest_s])} ms"
        f" | {share:.2f} % | {len(body) / 1000:.0f} KB"
        f"{f' | {series:,} series' if series else ''} |",
        flush=True,
    )


async def watch(slices_s: list[float]) -> None:
    """Note the processor time between any two passes of the loop."""
    before = time.thread_time()
    while True:
        await asyncio.sleep(0)
        now = time.thread_time()
        slices_s.append(now - before)
        before = now


if __name__ == "__main__":
    main()
