"""The servers of `bench.fanout` and `bench.connections`: each holds its clients, and sends one frame to all on demand.

    python -m bench.fanout_servers NAME PORT [OPTIONS in JSON]

On standard input `send` has the server send one frame its own way, `floor` has a C loop send the same frame on the same
sockets, `idle` has nothing sent. Each is answered with a line of JSON: microseconds of processor time of the thread.
`count` is answered with the number of connections, `collect` with the milliseconds of a full collection of cycles.
candled alone: `live` lets all its markets change once a second; with that or `watch`, `longest` is answered with the
milliseconds that the loop was blocked at most since it was asked before.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from bench.native import Floor, connections

if TYPE_CHECKING:
    from bench.serving import Serving

# Sends one frame to all; returns how long it took, in microseconds, where that is not the time until it returned.
Send = Callable[[], Awaitable[float | None]]

EPOCH = 10**15
FLOOR = 0


def stamp(variant: int) -> int:
    """Now, as the load client reads it: nanoseconds whose last two digits are the variant."""
    return time.monotonic_ns() % EPOCH // 100 * 100 + variant + EPOCH


def text(variant: int) -> str:
    """An update as candled sends it."""
    return (
        '{"type":"update","symbol":"BTC/USDT","interval":"1m","bar":{"time":"2025-10-06T00:00:00.000Z","open":67234.5,'
        f'"high":67340,"low":67200,"close":67310.25,"volume":{stamp(variant)},"quoteVolume":9772345.67}}}}'
    )


def framed(message: str) -> bytes:
    """The complete frame of a message of 126 bytes to 64 KB."""
    payload = message.encode()
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


_serving: list["Serving"] = []


async def candled(port: int, **options: Any) -> Send:
    """The daemon's way from the bus to the sockets."""
    from bench.serving import Serving  # the others start without it

    serving = Serving(port, **options)
    await serving.start()
    _serving.append(serving)
    prices = [Decimal(price) for price in ("67234.5", "67340", "67200", "67310.25")]

    async def send() -> float:
        return await serving.send((*prices, Decimal(stamp(CANDLED)), Decimal("9772345.67")))

    return send


# ---------------------------------------------------------------- the others


async def write_message(port: int, **settings: Any) -> Send:
    """Tornado's `WebSocketHandler.write_message`, for each client."""
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets
    from tornado.web import Application
    from tornado.websocket import WebSocketHandler

    handlers: list[WebSocketHandler] = []

    class Handler(WebSocketHandler):
        def open(self) -> None:
            self.set_nodelay(True)
            handlers.append(self)

        def on_message(self, message: str | bytes) -> None:
            json.loads(message)

        def on_close(self) -> None:
            handlers.remove(self)

    http = HTTPServer(Application([("/ws", Handler)], **settings))
    http.add_sockets(bind_sockets(port, "127.0.0.1", backlog=4096))

    async def send() -> None:
        message = text(WRITE_MESSAGE)
        await asyncio.gather(*[handler.write_message(message) for handler in handlers])

    return send


async def websockets(port: int) -> Send:
    """`websockets.broadcast`."""
    from websockets.asyncio.server import ServerConnection, broadcast, serve

    clients: set[ServerConnection] = set()

    async def hold(client: ServerConnection) -> None:
        clients.add(client)
        await client.wait_closed()

    await serve(hold, "127.0.0.1", port, compression=None, ping_interval=None, backlog=4096)

    async def send() -> None:
        broadcast(clients, text(WEBSOCKETS))

    return send


async def picows(port: int) -> Send:
    """picows, which is written in Cython: `WSTransport.send` for each client."""
    from picows import WSListener, WSMsgType, WSTransport, ws_create_server

    clients: list[WSTransport] = []

    class Listener(WSListener):
        def on_ws_connected(self, transport: WSTransport) -> None:
            clients.append(transport)

    await ws_create_server(lambda _: Listener(), "127.0.0.1", port, backlog=4096)

    async def send() -> None:
        payload = text(PICOWS).encode()
        for client in clients:
            client.send(WSMsgType.TEXT, payload)

    return send


Server = Callable[..., Awaitable[Send]]
CANDLED, WRITE_MESSAGE, WEBSOCKETS, PICOWS, SOCKETIFY, WS = range(1, 7)
SERVERS: dict[str, Server] = {
    "candled": candled,
    "write_message": write_message,
    "websockets": websockets,
    "picows": picows,
}


class Control:
    """Does what standard input asks for."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._floor: Floor | None = None

    async def run(self) -> None:
        """Answer until standard input ends."""
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            took_us = await self._timed(line.decode().strip())
            print(json.dumps(took_us), flush=True)

    async def _timed(self, what: str) -> float:
        if what == "count":
            return len(connections())
        if what == "collect":
            began_at = time.perf_counter()
            gc.collect()
            return (time.perf_counter() - began_at) * 1000
        if what == "live":
            _serving[0].live()
        if what == "watch":
            _serving[0].watch()
        if what == "longest":
            longest_s, _serving[0].longest_s = _serving[0].longest_s, 0.0
            return longest_s * 1000
        if what == "floor" and self._floor is None:
            self._floor = Floor(connections())
        began = time.thread_time_ns()
        if what == "floor" and self._floor is not None:
            self._floor.send(framed(text(FLOOR)))
        elif what == "send":
            own_us = await self._send()
            if own_us is not None:
                return own_us
            await asyncio.sleep(0)
        return (time.thread_time_ns() - began) / 1000


async def main(name: str, port: int, options: str = "{}") -> None:
    """Serve."""
    send = await SERVERS[name](port, **json.loads(options))
    print(json.dumps("ready"), flush=True)
    await Control(send).run()


def socketify(port: int) -> Any:
    """uWebSockets through socketify: `publish`. It owns its loop, which polls."""
    from socketify import App, CompressOptions, OpCode

    app = App()
    app.ws("/ws", {"compression": CompressOptions.DISABLED, "open": lambda ws: ws.subscribe("all")})
    app.listen({"port": port, "host": "127.0.0.1"}, lambda _: None)

    async def send() -> None:
        app.publish("all", text(SOCKETIFY), OpCode.TEXT)
        app.loop.uv_loop.run_nowait()  # where the frames leave

    async def control() -> None:
        print(json.dumps("ready"), flush=True)
        await Control(send).run()

    task = app.loop.loop.create_task(control())
    app.run()
    task.cancel()


if __name__ == "__main__":
    if sys.argv[1] == "socketify":
        socketify(int(sys.argv[2]))
    else:
        asyncio.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
