"""Requests a second over HTTP, next to plain Tornado, aiohttp and FastAPI in the same run.

    python -m bench.http [--seconds 1.5] [--rounds 3] [--connections 16 256] [--limits 2 500 1000] [--servers …]

The daemon is a process of its own, with its embedded parts and 50 markets; its limits of requests are off. The others
encode a list in memory with orjson. In each round every server gets the same load from `wrk`, one after another. Before
that, one client asks for one answer at a time. After it, 500 clients ask for 50 markets each, one request after another
on connections that they keep. Then a daemon with one market and months of history, on SQLite and on PostgreSQL, is
asked for pages that it has not read before, each twice: cold and warm. At last a cache of encoded bars, at its default
size, is asked for 1,000 markets.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import partial
from http.client import HTTPConnection

from bench.process import MONDAY_MS, Daemon, Process, print_table, rss_mib, scratch, spread, symbols
from candled.api.printers import json_printer, klines_printer, udf_printer
from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Symbol, Topic
from candled.rooms.encoded_bars import MOST_BYTES, EncodedBarCache
from tests.servers import Database, own_postgres
from tests.system.daemon import free_port

STORES = ("sqlite", "postgresql")
OTHERS = ("tornado", "aiohttp", "fastapi")
RECORDING = "bundled:binance-spot-btcusdt"
STARTED_MS = MONDAY_MS + 1500 * MINUTE_MS
NAMES = {"tornado": "Tornado, a plain handler", "aiohttp": "aiohttp", "fastapi": "FastAPI"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    facts = []
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch())
        names = symbols(options.markets)
        exchanges = {"replay": {"symbols": names, "files": {"*": RECORDING}, "speed": 1}}
        daemon = stack.enter_context(
            Daemon(directory, exchanges, STARTED_MS, ingest={"backfill": "1d"}, klines={"enabled": True})
        )
        ports = {"candled": daemon.port}
        for name in options.servers:
            ports[name] = free_port()
            arguments = [name, str(ports[name])]
            stack.enter_context(Process("bench.http_servers", *arguments, directory=directory))
            _wait_for(f"http://127.0.0.1:{ports[name]}/api/v3/klines?limit=2")
        daemon.wait_until_complete(60.0 + options.markets)
        daemon.wait_until_calm()
        for limit in options.limits:
            path = f"/api/v3/klines?symbol={names[0].replace('/', '')}&interval=1m&limit={limit}"
            took = one_by_one(daemon.port, [path] * options.singles)[1:]  # the first one loads the bars
            facts.append((f"one request at a time, {limit:,} klines", quantiles(took)))
        if shutil.which("wrk"):
            compare(options, ports, names[0])
        else:
            print("wrk is not installed: only the clients that ask for all markets")
        facts.append(asyncio.run(burst(daemon.port, names, options.clients)))
    facts += [cold_pages(store, options.pages) for store in options.stores]
    program = f"from bench.http import cache_memory; cache_memory({options.cached})"
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    facts.append((f"memory of encoded bars, {options.cached:,} markets in three formats", grown.strip()))
    print_table(["question", "result"], facts)


def cold_pages(store: str, count: int) -> tuple[str, str]:
    """Return how long a page of 1,000 bars takes that must be read from the store, and the same page again."""
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
        settings = {"ingest": {"backfill": f"{days}d"}, "klines": {"enabled": True}, **more}
        daemon = stack.enter_context(Daemon(directory, exchanges, STARTED_MS, **settings))
        daemon.wait_until_complete(600.0)
        daemon.wait_until_calm()
        first_ms = MINUTE_MS * 1000 * ((STARTED_MS - (days - 1) * 1440 * MINUTE_MS) // (MINUTE_MS * 1000) + 1)
        klines = f"/api/v3/klines?symbol={name.replace('/', '')}&interval=1m&limit=1000"
        starts = [first_ms + number * 1000 * MINUTE_MS for number in range(count)]
        paths = [f"{klines}&startTime={at_ms}&endTime={at_ms + 1000 * MINUTE_MS - 1}" for at_ms in starts]
        one_by_one(daemon.port, paths[-1:] * 20)
        took = one_by_one(daemon.port, [path for path in paths[:-1] for _ in range(2)])
        return f"{store}, a page of 1,000 bars", f"cold {quantiles(took[::2])}; warm {quantiles(took[1::2])}"


class SameBars:
    """The same bars in memory for every market."""

    def __init__(self, bars: Sequence[Candle]) -> None:
        self._bars = bars
        self.times = [bar.open_ms for bar in bars]

    def newest_times(self, key: MarketKey, interval: Interval, count: int) -> Sequence[int]:
        return self.times[-count:]

    def bars_between(self, key: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        return [bar for bar in self._bars if start_ms <= bar.open_ms < end_ms]

    def get_bar(self, key: MarketKey, interval: Interval, open_ms: int) -> Candle | None:
        return self._bars[self.times.index(open_ms)]

    def revision_of(self, key: MarketKey, interval: Interval) -> int:
        return 0

    def revised_from(self, key: MarketKey, interval: Interval, revision: int) -> int:
        return 0

    def is_final(self, key: MarketKey, interval: Interval, bar: Candle) -> bool:
        return True


def cache_memory(markets: int) -> None:
    """Print the memory of a cache that is asked for 300 bars and an answer of each market in three formats."""
    times = range(STARTED_MS, STARTED_MS + 300 * MINUTE_MS, MINUTE_MS)
    bars = [Candle.parse(at, "67234.5", "67340", "67200", f"{67200 + at % 97}.25", "145.23", "9772.67") for at in times]
    source, cache = SameBars(bars), EncodedBarCache()
    printers = (klines_printer(MINUTE), json_printer(), udf_printer())
    before, most = rss_mib(os.getpid()), 0
    for number in range(markets):
        topic = Topic(MarketKey("replay", Symbol.parse(f"SYM{number}/USDT")), MINUTE)
        for printer in printers:
            form = cache.get_form(topic, printer)
            form.encode_bars(source, source.times, len(bars), 1)
            cache.keep_body(topic, printer, "all", "tag", b"".join(form.columns(0, END_OF_TIME_MS)))
            most = max(most, cache.bytes)
    grown = rss_mib(os.getpid()) - before
    print(f"{most / 2**20:.1f} of {MOST_BYTES / 2**20:.0f} MiB; the process grew by {grown:.1f} MiB")


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
    udf = f"/udf/history?symbol=REPLAY:{name}&resolution=1&from=0&to=9999999999"
    asked = {
        "candled `/api/v3/klines`": ("candled", klines + "&limit={}"),
        "candled `/api/candles`": ("candled", f"/api/candles?symbol={symbol}&interval=1m&limit={{}}"),
        "candled `/udf/history`": ("candled", udf + "&countback={}"),
        **{NAMES[server]: (server, "/api/v3/klines?limit={}") for server in options.servers},
    }
    # a range whose tag does not change within the run
    closed = f"{klines}&limit=100&endTime={STARTED_MS - 60 * MINUTE_MS}"
    lives: dict[str, list[list[float]]] = {"`/health/live`": [], "304": []}
    for connections in options.connections:
        load = partial(wrk, connections, options.seconds)
        results: dict[tuple[str, int], list[float]] = {}
        for found in lives.values():
            found.append([])
        for _ in range(options.rounds):
            for limit in options.limits:
                for label, (server, path) in asked.items():
                    results.setdefault((label, limit), []).append(load(ports[server], path.format(limit)))
            lives["`/health/live`"][-1].append(load(ports["candled"], "/health/live"))
            tag = _tag(f"http://127.0.0.1:{ports['candled']}{closed}")
            lives["304"][-1].append(load(ports["candled"], closed, f"If-None-Match: {tag}"))
            _check_known(f"http://127.0.0.1:{ports['candled']}{closed}", tag)
        header = [f"{connections} connections", *(f"{limit:,} bars" for limit in options.limits)]
        print_table(header, [[label, *(_rates(results[label, limit]) for limit in options.limits)] for label in asked])
    rows = [[label, *map(_rates, columns)] for label, columns in lives.items()]
    shares = [
        f"{statistics.median(known) / max(statistics.median(live), 1):.2f}"
        for live, known in zip(*lives.values(), strict=True)
    ]
    header = ["", *(f"{connections} connections" for connections in options.connections)]
    print_table(header, [*rows, ["304, compared with `/health/live`", *shares]])


def _rates(found: Sequence[float]) -> str:
    return spread(found, ",.0f")


def wrk(connections: int, seconds: float, port: int, path: str, *headers: str) -> float:
    """The requests a second of one run."""
    more = [part for header in headers for part in ("-H", header)]
    command = [*wrk_for(seconds), "-t1", f"-c{connections}", *more, f"http://127.0.0.1:{port}{path}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output and "If-None-Match" not in "".join(headers):
        raise RuntimeError(output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate is not None, output
    return float(rate[1])


def wrk_for(seconds: float) -> list[str]:
    """The first words of a command that runs `wrk` for that long, which itself knows whole seconds only."""
    return ["timeout", "--preserve-status", "--signal=INT", f"{seconds:g}", "wrk", f"-d{seconds + 60:.0f}s"]


async def burst(port: int, names: Sequence[str], clients: int) -> tuple[str, str]:
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
    return (
        f"{clients} clients ask for {len(paths)} markets each after the end of a minute",
        f"{requests:,} requests in {took_s:.1f} s ({requests / took_s:,.0f} a second), "
        f"{right:,} with the last closed bar",
    )


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


def _check_known(url: str, tag: str) -> None:
    """Raises: RuntimeError if the answer is not 304. `wrk` does not distinguish it from 200."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"If-None-Match": tag})) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    if status != 304:
        raise RuntimeError(f"{url}: {status} for a tag that should be known")


def _wait_for(url: str) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"no answer from {url}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--limits", type=int, nargs="+", default=[2, 500, 1000])
    parser.add_argument("--servers", nargs="*", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--markets", type=int, default=50)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--singles", type=int, default=1000, help="requests of the client that asks for one at a time")
    parser.add_argument("--stores", nargs="*", choices=STORES, default=list(STORES))
    parser.add_argument("--pages", type=int, default=40, help="cold pages of each store")
    parser.add_argument("--cached", type=int, default=1000, help="markets in the cache of encoded bars")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
