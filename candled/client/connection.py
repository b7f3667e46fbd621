"""A WebSocket connection that reconnects automatically."""

import asyncio
import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from tornado.httpclient import HTTPError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError, websocket_connect

from candled.errors import Unavailable
from candled.exchange import Clock
from candled.tasks import Backoff, TaskSet, retry
from candled.token_bucket import TokenBucket

_OPEN_WITHIN_S = 15.0
_MESSAGES_PER_S = 15.0  # by default the server refuses more than 20
_LARGEST_MESSAGE = 64 * 1024 * 1024
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)

Message = Mapping[str, Any]


class ServerConnection:
    """Connects until it is cancelled or `attempts` in a row have failed, and calls its owner back.

    Args:
        url: the server's WebSocket address.
        opened: called on each connection, to send the subscriptions and open requests.
        received: called with each message. Its errors about a malformed message end the connection.
        lost: called with the error and the seconds until the next attempt.
        clock: the source of time.
        backoff: the waiting times between attempts.
        ping_s: seconds between pings. A connection is lost if a ping is not answered within half of that.
        attempts: the number of attempts; None for no limit.
    """

    def __init__(
        self,
        url: str,
        *,
        opened: Callable[[], None],
        received: Callable[[Message], None],
        lost: Callable[[Exception, float], None],
        clock: Clock,
        backoff: Backoff,
        ping_s: float,
        attempts: int | None,
    ) -> None:
        self._url = url
        self._opened, self._received, self._lost = opened, received, lost
        self._clock = clock
        self._backoff = backoff
        self._ping_s = ping_s
        self._attempts = attempts
        self._tasks = TaskSet()  # sends while connected
        self._outgoing: asyncio.Queue[str] | None = None  # set while connected
        self._bye_s: float | None = None  # the wait that the server requested in `bye`, until the connection ends

    @property
    def is_open(self) -> bool:
        """True while connected."""
        return self._outgoing is not None

    def send(self, message: Message) -> None:
        """Send a message if the connection is open. Otherwise drop it: `opened` sends it on the next connection."""
        if self._outgoing is not None:
            self._outgoing.put_nowait(json.dumps(message))

    def expect_end(self, reconnect_after_s: float) -> None:
        """Reconnect after this time, as the server requested before closing the connection."""
        self._bye_s = reconnect_after_s

    async def run(self) -> str:
        """Stay connected; return the reason if the server asks not to reconnect, or if no attempt is left."""
        attempts, report = self._attempts, self._lost
        try:
            return await retry(
                self._run_connection, self._clock, self._backoff, on=Unavailable, attempts=attempts, report=report
            )
        except Unavailable as error:
            return str(error)

    async def _run_connection(self) -> str:
        """Connect and read until the connection ends; return the reason if the server asks not to reconnect.

        Raises:
            Unavailable: the connection failed or was lost.
        """
        self._bye_s = None
        try:
            code, reason = await self._exchange_messages()
            if 3500 <= code < 4000:
                return reason
        except (OSError, HTTPError, WebSocketError) as error:
            reason = str(error)
        except _MALFORMED:
            reason = "the server does not speak candled's protocol"
        raise Unavailable(reason, retry_after_s=self._bye_s)

    async def _exchange_messages(self) -> tuple[int, str]:
        """Connect and read until the connection ends; return the close code and the reason in words."""
        request = HTTPRequest(self._url, connect_timeout=_OPEN_WITHIN_S, request_timeout=_OPEN_WITHIN_S)
        socket = await websocket_connect(
            request, max_message_size=_LARGEST_MESSAGE, ping_interval=self._ping_s, ping_timeout=self._ping_s / 2
        )
        self._outgoing = asyncio.Queue()
        self._tasks.start(self._send_outgoing(socket, self._outgoing))
        try:
            self._opened()
            while isinstance(text := await socket.read_message(), str):
                self._received(json.loads(text, parse_float=Decimal, parse_int=Decimal))
                self._backoff.on_success()
            return socket.close_code or 0, socket.close_reason or "the connection was closed"
        finally:
            self._outgoing = None
            socket.close()
            await self._tasks.cancel()

    async def _send_outgoing(self, socket: WebSocketClientConnection, outgoing: "asyncio.Queue[str]") -> None:
        allowed = TokenBucket(_MESSAGES_PER_S, _MESSAGES_PER_S)
        while True:
            text = await outgoing.get()
            while wait_s := allowed.try_take(self._clock.monotonic()):
                await self._clock.sleep(wait_s)
            try:
                await socket.write_message(text)
            except WebSocketClosedError:
                return  # the reader sees the end too
