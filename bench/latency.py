"""How long a candle is on its way from the exchange's socket to a client's: through one daemon, or two and a Redis.

    python -m bench.latency [--markets 1 200] [--pushes 20] [--rounds 3]

Each push is a burst: one frame for every market, one right after the other, every 1.1 seconds, so that the pacing of
the rooms (one update a second) never holds one back. One connection hears all rooms. The clock of a market starts when
its frame is handed to the socket, and stops when the update with its volume was received and parsed. Three ways are
measured in turns, some pushes each: one daemon on the memory bus; one that ingests and one that serves, with a real
Redis between them; and a relay in the place of the daemon, which passes every frame on to the client and reads none.
All daemons store in a PostgreSQL of this run.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketHandler, websocket_connect

from bench.process import Daemon, Process, scratch, symbols
from candled.model import MINUTE_MS
from tests.redis_servers import own_redis
from tests.servers import Database, own_postgres
from tests.system.daemon import free_port

BETWEEN_S = 1.1
INTERVAL = "1m"
START_LIMIT_S = 120.0
WAYS = ("daemon", "through Redis", "relay")


class Exchange:
    """Speaks as much of Bitget's language as the way of a live candle needs; its history is empty.

    REST takes `delay_s` for each answer.
    """

    def __init__(self, port: int = 0, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self._connections: list[_Connection] = []
        routes = [(r"/v2/ws/public", _Connection, {"exchange": self}), (r".*", _Rest, {"exchange": self})]
        self._server = HTTPServer(Application(routes, log_function=lambda _: None))
        sockets = bind_sockets(port, "127.0.0.1")
        self.port: int = sockets[0].getsockname()[1]
        self._server.add_sockets(sockets)

    def joined(self, connection: "_Connection") -> None:
        """Send to this connection too."""
        self._connections.append(connection)

    def push(self, name: str, volume: int) -> None:
        """Send the running minute of a market to its subscribers."""
        self.send(name, frame("update", name, [volume]))

    def has_subscribers(self, name: str) -> bool:
        """Return whether any connection is subscribed to a market."""
        return any(name in connection.names for connection in self._connections)

    def send(self, name: str, text: str) -> None:
        """Send a frame of a market to its subscribers."""
        for connection in self._connections:
            if name in connection.names:
                with contextlib.suppress(WebSocketClosedError):
                    connection.write_message(text)

    def send_all(self, text: str) -> list[asyncio.Future[None]]:
        """Send a text to every connection; return what ends when it was taken."""
        taken = []
        for connection in self._connections:
            with contextlib.suppress(WebSocketClosedError):
                taken.append(connection.write_message(text))
        return taken

    def drop_all(self) -> None:
        """Cut every connection."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def snapshot(self, name: str) -> str:
        """What a new subscriber is sent."""
        return frame("snapshot", name, [1, 1, 1, 1])

    def answer(self, request: RequestHandler, data: Sequence[Any] = ()) -> None:
        """Answer a GET request."""
        request.set_header("Date", formatdate(self.now_ms() / 1000, usegmt=True))
        request.write({"code": "00000", "msg": "success", "requestTime": self.now_ms(), "data": list(data)})

    def now_ms(self) -> int:
        """UTC epoch milliseconds."""
        return now_ms()

    @property
    def subscribed(self) -> int:
        """How many markets are subscribed."""
        return sum(len(connection.names) for connection in self._connections)


class _Connection(WebSocketHandler):
    def initialize(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.names: set[str] = set()

    def open(self) -> None:
        self.set_nodelay(True)
        self._exchange.joined(self)

    def on_message(self, message: str | bytes) -> None:
        if message == "ping":
            self.write_message("pong")
            return
        request = json.loads(message)
        for arg in request["args"]:
            self.write_message({"event": request["op"], "arg": arg})
            if request["op"] == "unsubscribe":
                self.names.discard(arg["instId"])
                continue
            self.write_message(self._exchange.snapshot(arg["instId"]))
            self.names.add(arg["instId"])


class _Rest(RequestHandler):
    def initialize(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def get(self) -> None:
        if self._exchange.delay_s:
            await asyncio.sleep(self._exchange.delay_s)
        self._exchange.answer(self)


def frame(action: str, name: str, volumes: Sequence[int]) -> str:
    """A frame of the candle channel: a minute for each volume, the last one in progress."""
    sent_ms = now_ms()
    running_ms = sent_ms - sent_ms % MINUTE_MS
    rows = [
        [str(running_ms - back * MINUTE_MS), "100", "101", "99", "100.5", *[str(volume)] * 3]
        for back, volume in zip(reversed(range(len(volumes))), volumes, strict=True)
    ]
    arg = {"instType": "SPOT", "channel": "candle1m", "instId": name}
    return json.dumps({"action": action, "arg": arg, "data": rows, "ts": sent_ms}, separators=(",", ":"))


def now_ms() -> int:
    """UTC epoch milliseconds."""
    return time.time_ns() // 1_000_000


# ---------------------------------------------------------------- the relay


async def relay(port: int, exchange_url: str, names: Sequence[str]) -> None:
    """Listen on `port`; pass every push of the exchange on to every client."""
    clients: list[_Outlet] = []
    HTTPServer(Application([(r"/", _Outlet, {"clients": clients})], log_function=lambda _: None)).listen(
        port, "127.0.0.1"
    )
    source = await websocket_connect(exchange_url)
    args = [{"instType": "SPOT", "channel": "candle1m", "instId": name} for name in names]
    await source.write_message(json.dumps({"op": "subscribe", "args": args}))
    while (text := await source.read_message()) is not None:
        for client in clients:
            client.write_message(text)


class _Outlet(WebSocketHandler):
    def initialize(self, clients: list["_Outlet"]) -> None:
        self._clients = clients

    def open(self) -> None:
        self.set_nodelay(True)
        self._clients.append(self)

    def on_message(self, message: str | bytes) -> None:
        """Subscriptions: everybody gets everything."""


# ---------------------------------------------------------------- measuring


async def measure(options: argparse.Namespace, markets: int, directory: Path) -> list[str]:
    """Measure each way; return a line for each."""
    names, pushes = symbols(markets), options.pushes
    ids = [inst_id(name) for name in names]
    took: dict[str, list[float]] = {way: [] for way in options.ways}
    with contextlib.ExitStack() as stack:
        server = own_postgres()
        stack.callback(server.remove)
        first, second = (stack.enter_context(Database(server.dsn)).url() for _ in range(2))
        redis = stack.enter_context(own_redis())
        begin: dict[str, Callable[[], Awaitable[Way]]] = {
            "daemon": lambda: daemon(stack, directory / "one", first, names),
            "through Redis": lambda: daemon(stack, directory / "two", second, names, redis.url),
            "relay": lambda: relayed(stack, directory, names),
        }
        ways = {way: await begin[way]() for way in options.ways}
        await asyncio.sleep(options.settle)
        for number in range(options.rounds):
            for way, (exchange, socket) in ways.items():
                took[way] += await timed(socket, exchange, ids, pushes, 1000 + number * pushes * markets)
        for _, socket in ways.values():
            socket.close()
        await asyncio.sleep(0.1)
    return [f"{markets} markets together, {way}: {percentiles(values)}" for way, values in took.items()]


Way = tuple[Exchange, WebSocketClientConnection]
"""Where pushes begin, and where they are received."""


async def daemon(
    stack: contextlib.ExitStack, directory: Path, store: str, names: Sequence[str], redis: str | None = None
) -> Way:
    """One daemon with both roles; with a Redis two, with one role each."""
    exchange = Exchange()
    ws_url, rest_url = f"ws://127.0.0.1:{exchange.port}/v2/ws/public", f"http://127.0.0.1:{exchange.port}"
    exchanges = {"bitget": {"symbols": list(names), "ws_url": ws_url, "rest_url": rest_url}}
    daemons = []
    for roles in (["ingest"], ["serve"]) if redis else (["ingest", "serve"],):
        place = directory / "-".join(roles)
        place.mkdir(parents=True)
        more = {"roles": roles, "store": {"url": store, "journal": str(place / "journal")}}
        bus = {"bus": {"url": redis}} if redis else {}
        ingest = {"backfill": "1h", "confirm": False}
        daemons.append(stack.enter_context(Daemon(place, exchanges, now_ms(), ingest=ingest, **more, **bus)))
        await asyncio.to_thread(daemons[-1].wait_until_answering, START_LIMIT_S)
    await wait_for_candles(daemons[0], exchange, names)
    return exchange, await subscribed(daemons[-1].port, names)


async def relayed(stack: contextlib.ExitStack, directory: Path, names: Sequence[str]) -> Way:
    """The relay."""
    exchange, port = Exchange(), free_port()
    url, ids = f"ws://127.0.0.1:{exchange.port}/v2/ws/public", map(inst_id, names)
    process = stack.enter_context(Process("bench.latency", "relay", str(port), url, *ids, directory=directory))
    await wait_for_candles(process, exchange, names)
    return exchange, await subscribed(port, names)


async def wait_for_candles(process: Process, exchange: Exchange, names: Sequence[str]) -> None:
    """Wait until a process has subscribed to every market."""
    deadline = time.monotonic() + START_LIMIT_S
    while exchange.subscribed < len(names):
        process.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {exchange.subscribed} of {len(names)} markets were subscribed")
        await asyncio.sleep(0.05)


async def subscribed(port: int, names: Sequence[str]) -> WebSocketClientConnection:
    """A client that has had the first answer to each subscription."""
    socket = await websocket_connect(f"ws://127.0.0.1:{port}/")
    for name in names:
        request = {"type": "subscribe", "symbol": name, "interval": INTERVAL, "initialBars": 1}
        await socket.write_message(json.dumps(request))
    await asyncio.sleep(BETWEEN_S)
    return socket


async def timed(socket: Any, exchange: Exchange, names: Sequence[str], pushes: int, volume: int = 1000) -> list[float]:
    """Push and receive. The volumes, above `volume`, tell the pushes apart: they only grow, no two are the same."""
    sent: dict[int, float] = {}
    took: list[float] = []

    async def receive() -> None:
        while len(took) < pushes * len(names):
            text = await socket.read_message()
            if text is None:
                raise RuntimeError("the connection was closed")
            sent_at = sent.pop(volume_of(json.loads(text)), None)
            if sent_at is not None:
                took.append(time.perf_counter() - sent_at)

    receiver = asyncio.ensure_future(receive())
    for _ in range(pushes):
        for name in names:
            volume += 1
            sent[volume] = time.perf_counter()
            exchange.push(name, volume)
        await asyncio.sleep(BETWEEN_S)
    with contextlib.suppress(TimeoutError):  # where a minute ends, an update may be replaced by a newer one
        await asyncio.wait_for(receiver, BETWEEN_S)
    if len(took) < 0.9 * pushes * len(names):
        raise RuntimeError(f"only {len(took)} of {pushes * len(names)} updates came through")
    return took


def volume_of(message: dict[str, Any]) -> int:
    """The volume of an update or of a frame of the exchange; 0 in other messages."""
    if message.get("type") == "update":
        return int(message["bar"]["volume"])
    return int(message["data"][0][5]) if message.get("action") == "update" else 0


def inst_id(symbol: str) -> str:
    """The exchange's name of a market."""
    return symbol.replace("/", "")


def percentiles(values: Sequence[float]) -> str:
    """In milliseconds."""
    ordered = sorted(1000 * value for value in values)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99)]
    return f"p50 {at[0]:.2f}, p99 {at[1]:.2f}, most {ordered[-1]:.2f} ms of {len(ordered):,}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description=__doc__)
    parser.add_argument("--markets", type=int, nargs="+", default=[1, 200])
    parser.add_argument("--pushes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settle", type=float, default=10.0, help="seconds between the start and the first push")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args(arguments)
    for markets in options.markets:
        with scratch() as directory:
            for line in asyncio.run(measure(options, markets, directory)):
                print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["relay"]:
        asyncio.run(relay(int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
    else:
        main()
