"""Requests a second over HTTP, next to plain Tornado, aiohttp and FastAPI in the same run.

    python -m bench.http [--seconds 2] [--rounds 3] [--connections 16 256] [--limits 2 100 500 1000] [--servers …]

The daemon is a process of its own, with its embedded parts and 50 markets; its limits of requests are off. The others
encode a list in memory with orjson. In each round every server gets the same load from `wrk`, one after another. Before
that, one client asks for one answer at a time. After it, 500 clients ask for 50 markets each, one request after another
on connections that they keep. Then a daemon with one market and months of history, on SQLite and on PostgreSQL, is
asked for pages that it has not read before, each twice: cold and warm.
"""

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from functools import partial
from http.client import HTTPConnection

from bench.process import MONDAY_MS, Daemon, Process, scratch, spread, symbols
from candled.model import MINUTE_MS
from tests.servers import Database, own_postgres
from tests.system.daemon import free_port

STORES = ("sqlite", "postgresql")
OTHERS = ("tornado", "aiohttp", "fastapi")
RECORDING = "bundled:binance-spot-btcusdt"
STARTED_MS = MONDAY_MS + 1500 * MINUTE_MS
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch())
        names = symbols(options.markets)
        exchanges = {"replay": {"symbols": names, "files": {"*": RECORDING}, "speed": 1}}
        limits = dict.fromkeys(("api_requests", "udf_requests", "klines_requests"), 0)
        daemon = stack.enter_context(
            Daemon(directory, exchanges, STARTED_MS, ingest={"backfill": "1d"}, limits=limits, klines={"enabled": True})
        )
        ports = {"candled": daemon.port}
        for name in options.servers:
            ports[name] = free_port()
            arguments = [name, str(ports[name])]
            stack.enter_context(Process("bench.http_servers", *arguments, directory=directory))
            _wait_for(f"http://127.0.0.1:{ports[name]}/api/v3/klines?limit=2")
        daemon.wait_until_complete(60.0 + options.markets)
        for limit in options.limits:
            path = f"/api/v3/klines?symbol={names[0].replace('/', '')}&interval=1m&limit={limit}"
            took = one_by_one(daemon.port, [path] * options.singles)
            print(f"one request at a time, klines, limit {limit}: {quantiles(took)}", flush=True)
        if shutil.which("wrk"):
            compare(options, ports, names[0])
        else:
            print("wrk is not installed: only the clients that ask for all markets")
        asyncio.run(burst(daemon.port, names, options.clients))
    for store in options.stores:
        cold_pages(store, options.pages)


def cold_pages(store: str, count: int) -> None:
    """Print how long a page of 1,000 bars takes that must be read from the store, and the same page again."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch())
        (name,) = symbols(1)
        more = {}
        if store == "postgresql":
            server = own_postgres()
            stack.callback(server.remove)
            more["store"] = {
                "url": stack.enter_context(Database(server.dsn)).url(),
                "journal": str(directory / "journal"),
            }
        days = 3 + count * 1000 // 1440  # the newest are in memory
        exchanges = {"replay": {"symbols": [name], "files": {"*": RECORDING}, "speed": 1}}
        limits = dict.fromkeys(("api_requests", "udf_requests", "klines_requests"), 0)
        settings = {"ingest": {"backfill": f"{days}d"}, "limits": limits, "klines": {"enabled": True}, **more}
        daemon = stack.enter_context(Daemon(directory, exchanges, STARTED_MS, **settings))
        daemon.wait_until_complete(600.0)
        first_ms = STARTED_MS - (days - 1) * 1440 * MINUTE_MS
        klines = f"/api/v3/klines?symbol={name.replace('/', '')}&interval=1m&limit=1000"
        paths = [f"{klines}&startTime={first_ms + number * 1000 * MINUTE_MS}" for number in range(count)]
        one_by_one(daemon.port, paths[-1:] * 20)
        took = one_by_one(daemon.port, [path for path in paths[:-1] for _ in range(2)])
        print(f"{store}, a page of 1,000 bars, cold: {quantiles(took[::2])}; warm: {quantiles(took[1::2])}", flush=True)


def one_by_one(port: int, paths: Sequence[str]) -> list[float]:
    """The milliseconds that each request takes, one after another on one connection."""
    connection, took = HTTPConnection("127.0.0.1", port), []
    for path in paths:
        started = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - started) * 1000)
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}")
    connection.close()
    return took


def quantiles(took: Sequence[float]) -> str:
    """The median and the 99th percentile, as text."""
    ordered = sorted(took)
    return f"p50 {statistics.median(ordered):.2f} ms, p99 {ordered[len(ordered) * 99 // 100]:.2f} ms"


def compare(options: argparse.Namespace, ports: dict[str, int], symbol: str) -> None:
    """Print the requests a second of each request and server."""
    name = symbol.replace("/", "")
    klines = f"/api/v3/klines?symbol={name}&interval=1m"
    candled = {}
    for limit in options.limits:
        candled[f"klines, limit {limit}"] = f"{klines}&limit={limit}"
        candled[f"/api/candles, limit {limit}"] = f"/api/candles?symbol={symbol}&interval=1m&limit={limit}"
        candled[f"/udf/history, limit {limit}"] = (
            f"/udf/history?symbol=REPLAY:{name}&resolution=1&from=0&to=9999999999&countback={limit}"
        )
    closed_ms = STARTED_MS - 60 * MINUTE_MS  # a range whose tag does not change within the run
    closed = f"{klines}&limit=100&endTime={closed_ms}"
    candled["/health/live"] = "/health/live"
    candled["304"] = closed
    for connections in options.connections:
        load = partial(wrk, connections, options.seconds)
        results: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            for limit in options.limits:
                for server in options.servers:
                    path = f"/api/v3/klines?limit={limit}"
                    results.setdefault(f"{server}, limit {limit}", []).append(load(ports[server], path))
            for label, path in candled.items():
                url = f"http://127.0.0.1:{ports['candled']}{closed}"
                headers = (f"If-None-Match: {_tag(url)}",) if label == "304" else ()
                results.setdefault(f"candled {label}", []).append(load(ports["candled"], path, *headers))
        for label, found in results.items():
            rates, p99s = zip(*found, strict=True)
            print(f"{connections} connections, {label}: {spread(rates, '.0f')} requests/s, p99 {max(p99s):.1f} ms")
        share = _median(results["candled 304"]) / _median(results["candled /health/live"])
        print(f"{connections} connections: 304 at {share:.2f} of /health/live", flush=True)


def wrk(connections: int, seconds: float, port: int, path: str, *headers: str) -> tuple[float, float]:
    """The requests a second of one run, and the 99th percentile of the latency in milliseconds."""
    more = [part for header in headers for part in ("-H", header)]
    command = [*wrk_for(seconds), "-t1", f"-c{connections}", "--latency", *more, f"http://127.0.0.1:{port}{path}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output and "If-None-Match" not in "".join(headers):
        raise RuntimeError(output)
    rate, p99 = re.search(r"Requests/sec:\s+([\d.]+)", output), re.search(r"99%\s+([\d.]+)(us|ms|s)", output)
    assert rate is not None, output
    assert p99 is not None, output
    return float(rate[1]), float(p99[1]) * _UNITS[p99[2]]


def wrk_for(seconds: float) -> list[str]:
    """The first words of a command that runs `wrk` for that long, which itself knows whole seconds only."""
    return ["timeout", "--preserve-status", "--signal=INT", f"{seconds:g}", "wrk", f"-d{seconds + 60:.0f}s"]


async def burst(port: int, names: Sequence[str], clients: int) -> None:
    """Let many clients ask for the last two bars of every market right after the end of a minute."""
    paths = [f"/api/v3/klines?symbol={name.replace('/', '')}&interval=1m&limit=2" for name in names]
    now_ms = _server_time(port)
    if len(names) > 10:
        await asyncio.sleep((MINUTE_MS - now_ms % MINUTE_MS) / 1000 + 2)  # the next bar has opened in every market
    closed = str(_server_time(port) // MINUTE_MS * MINUTE_MS - MINUTE_MS).encode()
    loop = asyncio.get_running_loop()
    bots = [Bot(paths) for _ in range(clients)]
    for bot in bots:
        await loop.create_connection(lambda bot=bot: bot, "127.0.0.1", port)
    began = time.monotonic()
    for bot in bots:
        bot.ask()
    await asyncio.gather(*(bot.done for bot in bots))
    took_s = time.monotonic() - began
    right = sum(bar == closed for bot in bots for bar in bot.bars.values())
    requests = len(paths) * clients
    print(f"{clients} clients, {len(paths)} markets each: {requests} requests in {took_s:.2f} s "
          f"({requests / took_s:.0f} a second), {right} with the last closed bar", flush=True)  # fmt: skip


class Bot(asyncio.Protocol):
    """Asks for one path after another; keeps the opening time of the last closed bar of each."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._waiting = list(paths)
        self._bytes = b""
        self._transport: asyncio.Transport
        self.bars: dict[str, bytes] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self) -> None:
        self._transport.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % self._waiting[-1].encode())

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        head, found, body = self._bytes.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length is None or len(body) < int(length[1]):
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        self.bars[self._waiting.pop()] = body[2:15]
        self._bytes = b""
        if self._waiting:
            self.ask()
        else:
            self._transport.close()
            self.done.set_result(None)


def _server_time(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v3/time") as answer:
        return int(json.load(answer)["serverTime"])


def _tag(url: str) -> str:
    for _ in range(2):  # the first request may load the bars
        with urllib.request.urlopen(url) as answer:
            tag = answer.headers["Etag"]
    return str(tag)


def _wait_for(url: str) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"no answer from {url}")


def _median(found: Sequence[tuple[float, float]]) -> float:
    return statistics.median(rate for rate, _ in found)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--limits", type=int, nargs="+", default=[2, 100, 500, 1000])
    parser.add_argument("--servers", nargs="*", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--markets", type=int, default=50)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--singles", type=int, default=1000, help="requests of the client that asks for one at a time")
    parser.add_argument("--stores", nargs="*", choices=STORES, default=list(STORES))
    parser.add_argument("--pages", type=int, default=60, help="cold pages of each store")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
