"""A stamped exchange that remembers what it pushed, as snapshots and over REST, and turns hostile on command.

    python -m bench.hostile_exchange PORT START_MS EVERY_S SYMBOL...

`GET /hostile?NAME` begins a hostility, `GET /hostile` ends it; its pushes go on meanwhile. `GET /truth` answers the
minutes of each market.
"""

import asyncio
import gzip
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote_plus

from tornado.web import RequestHandler

from bench.scale import bars
from bench.stamped_exchange import StampedExchange
from bench.stamped_exchange import main as serve
from candled.model import MINUTE, MINUTE_MS

_STEP_S = 0.05
_MB = 1024 * 1024
_FAR_MS = 253_402_300_740_000  # the last minute of the year 9999
_SNAPSHOT = 500
STORED = 1000  # minutes before the first push, the same ones that `bench.scale` puts into the daemon's store
CANDLES = ("/api/v2/spot/market/candles", "/api/v2/spot/market/history-candles")


@dataclass(frozen=True, kw_only=True)
class Hostility:
    """What an exchange does wrong.

    Attributes:
        before: what happened before there were limits.
        texts: frames for one market, given the exchange and the market's name.
        a_second: so many of those frames are sent.
        breaks_rest: answers each request for candles.
        item: the number of the limit's kind.
        spoils: REST is not used for an hour afterwards.
    """

    before: str
    texts: Callable[["HostileExchange", str], Sequence[str]] | None = None
    a_second: int = 20
    breaks_rest: Callable[[RequestHandler], None] | None = None
    item: int = 6
    spoils: bool = False


def pushes(**columns: str) -> Callable[["HostileExchange", str], list[str]]:
    """Frames with the running minute, but for some columns: open, high, low, close, volume."""

    def make(exchange: "HostileExchange", name: str) -> list[str]:
        (row,) = exchange.rows(name, "update")[-1:]
        named = dict(zip(("time", "open", "high", "low", "close", "volume"), row, strict=False)) | columns
        return [exchange.frame_of("update", name, [[*named.values(), *row[6:]]])]

    return make


def errors(exchange: "HostileExchange", name: str) -> list[str]:
    """Error events with control characters."""
    return [json.dumps({"event": "error", "code": 30001, "msg": "no\n2026-01-01 CRITICAL FORGED \x1b[31m"})]


def no_candles(exchange: "HostileExchange", name: str) -> list[str]:
    """A frame of ten rows that are no candles."""
    return [exchange.frame_of("update", name, [["x", "1"]] * 10)]


def large(exchange: "HostileExchange", name: str) -> list[str]:
    """A frame of 15 MB of such rows."""
    return [_large(name)]


@cache
def _large(name: str) -> str:
    arg = {"instType": "SPOT", "channel": "candle1m", "instId": name}
    return json.dumps({"action": "update", "arg": arg, "data": [["x", "1", "1"]] * 800_000, "ts": 0})


def nested(exchange: "HostileExchange", name: str) -> list[str]:
    """Lists within lists."""
    return [exchange.frame_of("update", name, []).replace("[]", "[" * 100_000 + "]" * 100_000)]


def unknown(exchange: "HostileExchange", name: str) -> list[str]:
    """A candle of a market that was not subscribed."""
    return [exchange.frame_of("update", "FOREIGNUSDT", exchange.rows(name, "update")[-1:])]


def revisions(exchange: "HostileExchange", name: str) -> list[str]:
    """Other values for the last two hours, which the store has."""
    exchange.revision += 1
    now_ms = exchange.now_ms()
    first_ms = now_ms - now_ms % MINUTE_MS - 120 * MINUTE_MS
    price = f"{100_000 + exchange.revision}"
    rows = [[str(first_ms + at * MINUTE_MS), *[price] * 4, "1", price, price] for at in range(100)]
    return [exchange.frame_of("update", name, rows)]


def large_body(request: RequestHandler) -> None:
    """90 MB, 97 KB gzipped."""
    request.set_header("Content-Encoding", "gzip")
    request.write(_body())


@cache
def _stored(name: str) -> dict[str, list[str]]:
    rows = ([str(column) for column in bar[:7]] for bar in bars(random.Random(name), MINUTE, STORED))
    return {row[0]: [*row, row[6]] for row in rows}


@cache
def _body() -> bytes:
    return gzip.compress(b'{"code":"00000","data":[' + b" " * 90 * _MB + b"]}", 6)


def wait_long(request: RequestHandler) -> None:
    """Ask for a pause of 1e308 seconds."""
    request.set_status(429)
    request.set_header("Retry-After", "1e308")


def nested_body(request: RequestHandler) -> None:
    """Lists within lists."""
    request.write(b'{"code":"00000","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


HOSTILITIES = {
    "a price of 1e999999999": Hostility(
        before="answers no request, 2.4 GB and growing, SIGTERM in vain", texts=pushes(close="1e999999999")
    ),
    "a long price": Hostility(before="served", texts=pushes(close="1" * 10_000)),
    "a volume of 300 digits": Hostility(before="longer bars stop, traceback", texts=pushes(volume="9" * 300)),
    "a minute of the year 9999": Hostility(before="", texts=pushes(time=str(_FAR_MS))),
    "frames of 15 MB": Hostility(before="3.6 GB, loop blocked 2.6 s", texts=large, a_second=1),
    "20,000 bad rows a second": Hostility(before="75 to 230 MB of log in 12 s", texts=no_candles, a_second=2000),
    "20,000 error events a second": Hostility(before="75 to 230 MB of log in 12 s", texts=errors, a_second=20_000),
    "nested JSON": Hostility(before="RecursionError, traceback", texts=nested),
    "foreign markets": Hostility(before="", texts=unknown, a_second=20_000),
    "revisions of the past": Hostility(before="", texts=revisions, a_second=10),
    "REST: 90 MB in 97 KB": Hostility(before="4.5 GB, loop blocked 7.7 s", breaks_rest=large_body),
    "REST: nested JSON": Hostility(before="RecursionError, traceback", breaks_rest=nested_body),
    "REST: Retry-After 1e308": Hostility(
        before="REST ends until a restart, /health is no JSON", breaks_rest=wait_long, spoils=True
    ),
}


class HostileExchange(StampedExchange):
    """Keeps the newest version of each minute that it pushed."""

    def __init__(self, port: int, start_ms: int, names: Sequence[str]) -> None:
        super().__init__(port, start_ms, names)
        self._all = names
        self._minutes: dict[str, dict[str, list[str]]] = {name: {} for name in names}
        self._hostility: Hostility | None = None
        self._task: asyncio.Task[None] | None = None
        self.revision = 0

    def rows(self, name: str, action: str) -> list[list[str]]:
        (row,) = super().rows(name, action)
        minutes = self._minutes[name]
        minutes[row[0]] = row
        return list(minutes.values())[-_SNAPSHOT:] if action == "snapshot" else [row]

    def answer(self, request: RequestHandler, data: Sequence[Any] = ()) -> None:
        path = request.request.path
        if path == "/hostile":
            self._turn(unquote_plus(request.request.query))
        elif path == "/truth":
            request.write(self._minutes)
            return
        elif path in CANDLES:
            if self._hostility is not None and self._hostility.breaks_rest is not None:
                self._hostility.breaks_rest(request)
                return
            data = list(self._page(request, path))
        super().answer(request, data)

    def _page(self, request: RequestHandler, path: str) -> Iterable[list[str]]:
        if request.get_query_argument("granularity") != "1min":
            return []
        end_ms, limit = int(request.get_query_argument("endTime")), int(request.get_query_argument("limit"))
        end_ms += path == CANDLES[0]  # it takes in the minute at the end
        name = request.get_query_argument("symbol")
        rows = _stored(name) | self._minutes[name]
        newest_ms = (end_ms - 1) // MINUTE_MS * MINUTE_MS
        times = (str(open_ms) for open_ms in range(newest_ms - (limit - 1) * MINUTE_MS, newest_ms + 1, MINUTE_MS))
        return [rows[time] for time in times if time in rows]

    def _turn(self, name: str) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task, self._hostility = None, HOSTILITIES[name] if name else None
        if self._hostility is not None and self._hostility.texts is not None:
            self._task = asyncio.ensure_future(self._attack(self._hostility))

    async def _attack(self, hostility: Hostility) -> None:
        assert hostility.texts is not None
        loop, owed = asyncio.get_running_loop(), 1.0
        market = 0
        while True:
            began = loop.time()
            taken: list[asyncio.Future[None]] = []
            while owed >= 1.0:
                market = (market + 1) % len(self._all)
                texts = hostility.texts(self, self._all[market])
                copies = min(int(owed), 500)
                for text in texts * copies:
                    taken = self.send_all(text)
                owed -= copies
            await asyncio.sleep(_STEP_S)
            await asyncio.gather(*taken, return_exceptions=True)  # no more than the daemon takes
            owed = min(owed + hostility.a_second * (loop.time() - began), hostility.a_second)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:], HostileExchange))
