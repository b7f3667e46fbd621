"""Shared by the tests of plugins: a feed that runs against a local server, and recorded frames."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from websockets.asyncio.server import ServerConnection, serve

from candled.clock import SystemClock
from candled.exchange import Candles, Event, Feed, Http
from candled.ingest.feeds import FeedRunner, LoopBudget
from candled.ingest.http import HttpClient
from candled.model import Candle
from candled.token_bucket import TokenBucket
from tests import deadlines

FRAMES = Path(__file__).parent / "frames"


def recorded(name: str) -> list[Any]:
    """The messages of a recording, as JSON values."""
    text = (FRAMES / name).read_text("utf-8")
    return list(map(json.loads, text.splitlines())) if name.endswith(".txt") else json.loads(text)["messages"]


class Sink:
    """The events of a feed, and the reasons for its interruptions."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.reasons: asyncio.Queue[str] = asyncio.Queue()

    def on_connected(self, feed: Feed) -> None: ...

    def on_event(self, event: Event) -> None:
        self.events.put_nowait(event)

    def on_interrupted(self, feed: Feed, reason: str) -> None:
        self.reasons.put_nowait(reason)

    async def reason(self) -> str:
        """Wait for the next interruption."""
        return await deadlines.wait_for(self.reasons.get(), 10)

    async def candles(self, count: int) -> list[Candle]:
        """Wait for the next candles."""
        found: list[Candle] = []
        async with deadlines.timeout(10):
            while len(found) < count:
                event = await self.events.get()
                assert isinstance(event, Candles), event
                found += event.candles
        return found


@asynccontextmanager
async def running(feed: Feed, http: Http | None = None) -> AsyncIterator[tuple[Sink, FeedRunner]]:
    """Run a feed as the daemon does."""
    sink, own = Sink(), HttpClient(SystemClock(), 100.0)
    runner = FeedRunner(
        "test", feed, sink, SystemClock(), TokenBucket(100, 100), LoopBudget(), http=own if http is None else http
    )
    task = asyncio.create_task(runner.run())
    try:
        yield sink, runner
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        own.close()


@asynccontextmanager
async def socket_server(handle: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """Serve a handler of WebSocket connections; yield the address."""
    async with serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=0.5) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@asynccontextmanager
async def web_server(*routes: tuple[str, type[RequestHandler]]) -> AsyncIterator[str]:
    """Serve handlers of HTTP; yield the address, without a slash at the end."""
    socket, port = bind_unused_port()
    server = HTTPServer(Application(list(routes), log_function=lambda _: None))
    server.add_socket(socket)
    yield f"http://127.0.0.1:{port}"
    server.stop()
