"""Shared by the tests of plugins: recorded frames, answers over REST, and a feed that runs against a local server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from hypothesis import strategies as st
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from websockets.asyncio.server import ServerConnection, serve

from candled.clock import SystemClock
from candled.exchange import Candles, Event, Feed, Http, HttpAnswer, InvalidRow, SocketFeed
from candled.ingest.feeds import FeedRunner, LoopBudget
from candled.ingest.http import HttpClient
from candled.model import MINUTE_MS, Candle
from candled.token_bucket import TokenBucket
from tests import deadlines
from tests.clocks import START_MS


def recorded(name: str) -> list[str]:
    """The messages that an exchange sent, from `<plugin>/frames/<file>`: one a line, or as ccxt keeps them."""
    text = _frames(name).read_text("utf-8")
    return text.splitlines() if name.endswith(".txt") else list(map(json.dumps, json.loads(text)["messages"]))


def recorded_answer(name: str) -> Any:
    """The body of a recorded answer over REST, read as the daemon reads it."""
    return json.loads(_frames(name).read_text("utf-8"), parse_float=Decimal)["httpResponse"]


def _frames(name: str) -> Path:
    plugin, _, file = name.partition("/")
    return Path(__file__).parent / plugin / "frames" / file


def read_all(feed: SocketFeed, frames: Iterable[str | bytes]) -> list[Event]:
    """The events of frames, in order."""
    return [event for frame in frames for event in feed.read_frame(frame)]


def candles_of(events: Iterable[Event]) -> list[Candle]:
    """The candles of events, of all symbols."""
    return [candle for event in events if isinstance(event, Candles) for candle in event.candles]


class FakeHttp:
    """An `Http` whose answers a function gives, and that notes requests and pauses.

    The function gets the path and the query, or the body of a POST, as text; it may raise the error of a request.
    """

    def __init__(self, answer: Callable[[str, dict[str, Any]], Any]) -> None:
        self._answer = answer
        #: Path, query, weight and budget of each request.
        self.requests: list[tuple[str, dict[str, Any], float, str]] = []
        self.paused: list[tuple[str, float]] = []

    async def get_json(
        self, url: str, params: Mapping[str, str] | None = None, *, weight: float = 1.0, budget: str = ""
    ) -> Any:
        return self._ask(url, dict(params or {}), weight, budget)

    async def post_json(self, url: str, body: Any = None, *, weight: float = 1.0, budget: str = "") -> Any:
        return self._ask(url, dict(body or {}), weight, budget)

    async def fetch_text(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        weight: float = 1.0,
        budget: str = "",
    ) -> HttpAnswer:
        answer = self._ask(url, dict(parse_qsl(urlsplit(url).query)) | json.loads(body or "{}"), weight, budget)
        return HttpAnswer(200, {"Content-Type": "application/json"}, answer)

    def find_proxy(self, url: str) -> str | None:
        return None

    def pause_requests(self, url: str, seconds: float) -> None:
        self.paused.append((urlsplit(url).path, seconds))

    def _ask(self, url: str, query: dict[str, Any], weight: float, budget: str) -> Any:
        path = urlsplit(url).path
        self.requests.append((path, query, weight, budget))
        return self._answer(path, query)


def opening_times(rows: Sequence[Candle | InvalidRow]) -> list[int | None]:
    """The opening times of rows, sorted; each row is a candle."""
    assert all(isinstance(row, Candle) for row in rows), rows
    return sorted(row.open_ms for row in rows)


WINDOWS = st.tuples(st.integers(0, 3000), st.sampled_from([1, 2, 61, 100, 101, 5000]))
"""How long ago, in minutes, a range of history ends, and how long it is."""


def window(ago: int, count: int, most: int) -> tuple[int, int]:
    """A range of at most `most` minutes up to the forming one of START_MS."""
    end_ms = START_MS + MINUTE_MS - ago * MINUTE_MS
    return end_ms - min(count, most) * MINUTE_MS, end_ms


NOT_FRAMES = ["", "{", "[]", "null", "1", "{}", "[" * 100_000, b"\xff", '{"a":' * 100_000, "pong!"]
"""Frames that no exchange documents."""


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
async def web_server(*routes: tuple[str, type[RequestHandler]], address: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve handlers of HTTP; yield the address, without a slash at the end."""
    socket, port = bind_unused_port(address=address)
    server = HTTPServer(Application(list(routes), log_function=lambda _: None))
    server.add_socket(socket)
    yield f"http://127.0.0.1:{port}"
    server.stop()
