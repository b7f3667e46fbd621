"""Updates to WebSocket clients while other clients take all they can: HTTP connections without a pause, and floods.

    python -m bench.fairness [--symbols 20] [--clients 1000] [--connections 64] [--flooders 3] [--seconds 20]

The daemon, the exchange and the clients are processes of their own, as in `bench.scale`. The daemon has one core, all
others share the next one, and the load has a lower priority than the clients that measure. There is a window with
connections that send empty pongs as fast as the daemon reads them, one with `wrk`, whose connections request the newest
500 klines, and an idle one before each, to compare it with. Measured are the updates that reached the clients, how long
after the exchange sent them, and how long a healthy client waited for a pong.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import websockets

from bench.http import wrk_for
from bench.process import MONDAY_MS, Daemon, Process, on_core, print_table, scratch, spread, symbols
from bench.scale import fill, lines_of, wait_for
from tests.serve.peers import PONG, connect, frame
from tests.system.daemon import free_port

_BARS = 500


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__)
    parser.add_argument("--symbols", type=int, default=20)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=64, help="of wrk")
    parser.add_argument("--flooders", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each window")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        asyncio.run(measure(options, stack))


async def measure(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    """One daemon, and a window for each load."""
    directory = stack.enter_context(scratch())
    names = symbols(options.symbols)
    fill(directory / "candled.db", names, _BARS)
    port, started_ms = free_port(), MONDAY_MS + 1000
    pushes = [str(port), str(started_ms), "1.05", *names]
    exchange = {
        "symbols": names,
        "ws_url": f"ws://127.0.0.1:{port}/v2/ws/public",
        "rest_url": f"http://127.0.0.1:{port}",
    }
    more = {"ingest": {"backfill": "0m", "confirm": False}, "klines": {"enabled": True}}
    with on_core(1):
        stack.enter_context(Process("bench.stamped_exchange", *pushes, directory=directory))
    with on_core(0):
        daemon = stack.enter_context(Daemon(directory, {"bitget": exchange}, started_ms, **more))
    stack.enter_context(on_core(1))
    await asyncio.to_thread(daemon.wait_until_complete, 60.0 + options.symbols / 2)
    arguments = [str(daemon.port), str(options.clients), "10", "200", *names]
    crowd = stack.enter_context(Process("bench.crowd", *arguments, directory=directory))
    await asyncio.to_thread(wait_for, crowd, options.clients, 120.0 + options.clients / 10)
    path = f"/api/v3/klines?symbol={names[0].replace('/', '')}&interval=1m&limit={_BARS}"
    loads: dict[str, Callable[[], Awaitable[None]]] = {
        f"{options.flooders} connections of empty pongs": partial(_flood, daemon.port, options)
    }
    if shutil.which("wrk"):
        loads[f"{options.connections} connections of klines"] = partial(_hammer, daemon.port, path, options)
    rows = []
    for label, load in loads.items():
        idle, idle_ms = await _window("idle", partial(asyncio.sleep, 0), crowd, daemon, options)
        loaded, p99_ms = await _window(label, load, crowd, daemon, options)
        rows += [[*idle, ""], [*loaded, f"{p99_ms / idle_ms:.1f}"]]
    print_table(
        [
            f"{options.clients:,} clients",
            "updates a second",
            "p50, ms",
            "p99, ms",
            "a ping: p50; p95, ms",
            "p99, of idle",
        ],
        rows,
    )


async def _window(
    label: str, load: Callable[[], Awaitable[None]], crowd: Process, daemon: Daemon, options: argparse.Namespace
) -> tuple[list[str], float]:
    """Return the cells of one window, and the median of the p99 of its seconds."""
    await asyncio.sleep(min(3.0, options.seconds))  # the last load is over
    first_line = len(lines_of(crowd.log))
    loading = asyncio.ensure_future(load())
    pings_ms = await _ping(daemon.port, options.seconds)
    await loading
    while len(lines_of(crowd.log)) == first_line:  # it writes one a second
        crowd.check()
        await asyncio.sleep(0.1)
    _, updates, half, p99, _ = zip(*lines_of(crowd.log)[first_line:], strict=True)
    ping = f"{pings_ms[len(pings_ms) // 2]:.1f}; {pings_ms[int(0.95 * len(pings_ms))]:.1f}"
    return [label, f"{statistics.fmean(updates):,.0f}", spread(half), spread(p99), ping], statistics.median(p99)


async def _hammer(port: int, path: str, options: argparse.Namespace) -> None:
    """Request a path on many connections without a pause."""
    process = await asyncio.create_subprocess_exec(
        "nice", *wrk_for(options.seconds), "-t1", f"-c{options.connections}", f"http://127.0.0.1:{port}{path}",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    print("  " + " ".join(line for line in output.decode().splitlines() if "Requests/sec" in line))


async def _flood(port: int, options: argparse.Namespace) -> None:
    """Send empty pongs from another process, as fast as they are read."""
    arguments = [str(port), str(options.flooders), str(options.seconds)]
    program = "from bench.fairness import flood; flood()"
    process = await asyncio.create_subprocess_exec(
        "nice", sys.executable, "-c", program, *arguments, env={**os.environ}
    )
    await process.wait()


def flood() -> None:
    """The process of `_flood`."""
    port, flooders, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

    async def send() -> None:
        peer = await connect(port)
        pongs = frame(PONG) * 1000
        with contextlib.suppress(OSError):
            while True:
                peer.send(pongs)
                await peer.writer.drain()

    async def run() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(send() for _ in range(flooders)))

    asyncio.run(run())


async def _ping(port: int, seconds: float) -> list[float]:
    """Send pings of one client for some seconds; return the times until the answers, sorted, in milliseconds."""
    found = []
    until = time.monotonic() + seconds
    async with websockets.connect(f"ws://127.0.0.1:{port}/ws", ping_interval=None) as client:
        while not found or time.monotonic() < until:
            began = time.monotonic()
            await client.send('{"type":"ping"}')
            while json.loads(await client.recv())["type"] != "pong":
                pass
            found.append(1000 * (time.monotonic() - began))
            await asyncio.sleep(0.1)
    return sorted(found)


if __name__ == "__main__":
    main()
