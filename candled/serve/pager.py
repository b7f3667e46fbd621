"""Pages of older bars for one client, over the socket that also carries its updates."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from candled.errors import Unavailable
from candled.exchange import Clock
from candled.model import Candle, Interval, MarketKey, Symbol, Topic
from candled.protocol import messages
from candled.protocol.messages import FINAL, bar_text
from candled.protocol.requests import NOT_AVAILABLE, GetHistory, RequestCodec, RequestError
from candled.rooms.recipients import RecipientConnection
from candled.tasks import TaskSet

if TYPE_CHECKING:
    from candled.aggregate.live_bars import LiveBars
    from candled.on_demand import MarketsOnDemand
    from candled.rooms.hub import Hub

    from .connection_limiter import ClientLimits

logger = logging.getLogger(__name__)

MOST_WAITING = 8
_PAGES_AT_ONCE = 2  # of all clients. More of them could wait for one read, and then all continue in one pass.
_BARS_AT_ONCE = 100  # encoded before other tasks run

_tasks = TaskSet()  # of all clients; each cancels its own

# Requested as a snapshot's topic, so that the connection calls back when it can take a page.
TURN = Topic(MarketKey("", Symbol("", "")), Interval(0, "history"))

ReadHistory = Callable[[MarketKey, Interval, int, int], Awaitable[tuple[Sequence[Candle], bool]]]
"""Returns the last `limit` bars that begin before a time, and True if no older ones exist; may raise `Unavailable`."""


class HistoryPages:
    """Reads pages for all clients, two at a time, in the order of the requests."""

    def __init__(self, read: ReadHistory) -> None:
        self._read = read
        self._turns = asyncio.Semaphore(_PAGES_AT_ONCE)

    @asynccontextmanager
    async def open_page(self, request: GetHistory, before_ms: int) -> AsyncIterator[tuple[Sequence[Candle], bool]]:
        """Yield the requested page for an `async with` block, which must encode it."""
        async with self._turns:
            yield await self._read(*request.topic, before_ms, request.limit)


@dataclass(frozen=True, slots=True)
class SessionContext:
    """The parts that all sessions share."""

    #: The rooms of the process.
    hub: "Hub"
    #: The newest bars of all served markets.
    bars: "LiveBars"
    #: Decodes the requests of clients.
    codec: RequestCodec
    #: The clock of the process.
    clock: Clock
    #: The limits of each client's session; a change of the settings changes them in place.
    limits: "ClientLimits"
    #: Reads the pages of older bars.
    pages: HistoryPages
    #: Starts markets that clients ask for; None if there are none.
    demand: "MarketsOnDemand | None" = None


class Pager:
    """Answers history requests one at a time, each only when the client has read the messages sent before."""

    __slots__ = ("_connection", "_context", "_requests", "_send", "_task")

    def __init__(self, connection: RecipientConnection, send: Callable[[str], None], context: SessionContext) -> None:
        self._connection = connection
        self._send = send
        self._context = context
        # requests, and the times from which they may be answered; the first one is being answered
        self._requests: deque[tuple[GetHistory, float]] = deque()
        self._task: asyncio.Task[None] | None = None

    def enqueue_request(self, request: GetHistory, delay_s: float) -> None:
        """Queue a request, to be answered after a delay.

        Raises:
            RequestError: too many requests are queued.
        """
        if len(self._requests) > MOST_WAITING:
            raise RequestError(
                f"Too many history requests: at most {MOST_WAITING} wait", code=NOT_AVAILABLE, temporary=True
            )
        self._requests.append((request, self._context.clock.monotonic() + delay_s))
        if len(self._requests) == 1:
            self._connection.request_snapshot(TURN)

    def start_next_page(self) -> None:
        """Start the next page: the socket can take it."""
        if self._requests and self._task is None:
            self._task = _tasks.start(self._answer_request(*self._requests[0]))

    def close(self) -> None:
        """Drop all requests: the client has disconnected."""
        self._requests.clear()
        if self._task is not None:
            self._task.cancel()

    async def _answer_request(self, request: GetHistory, not_before: float) -> None:
        text = messages.error(messages.HISTORY_UNAVAILABLE, request.id, code=NOT_AVAILABLE, temporary=True)
        try:
            if not_before > self._context.clock.monotonic():
                await self._context.clock.sleep(not_before - self._context.clock.monotonic())
            text = await self._render_page(request)
        except Unavailable as error:
            logger.warning("%s %s: history cannot be read: %s", *request.topic, error)
        except Exception:
            logger.exception("%s %s: history could not be read", *request.topic)
        self._task = None
        if self._requests:
            self._requests.popleft()
            self._send(text)
        if self._requests:
            self._connection.request_snapshot(TURN)

    async def _render_page(self, request: GetHistory) -> str:
        before_ms = self._context.clock.now_ms() if request.before_ms is None else request.before_ms
        texts: list[str] = []
        async with self._context.pages.open_page(request, before_ms) as (bars, end):
            for bar in bars:
                is_final = bool(request.fields & FINAL) and self._context.bars.is_final(*request.topic, bar)
                texts.append(bar_text(bar, request.fields, final=is_final))
                if len(texts) % _BARS_AT_ONCE == 0:
                    await self._context.clock.sleep(0)
            return messages.history(self._context.codec.topic_head(request.topic), texts, request.id, end=end)
