"""Keeps the feeds of an exchange running: connects, reads, and starts again with backoff."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from tornado.httpclient import HTTPError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError, websocket_connect

from candled.errors import CandledError, ExchangeError
from candled.exchange import Clock, Event, Feed, Refused, SocketFeed, StreamFeed
from candled.model import Symbol
from candled.token_bucket import TokenBucket

from .backoff import Backoff
from .connection import Connection

logger = logging.getLogger(__name__)

_TICK_S = 0.25
_CONNECT_TIMEOUT_S = 10.0
_STEADY_S = 30.0  # a connection that lived this long was no failure
_LARGEST_FRAME = 16 * 1024 * 1024


class FeedSink(Protocol):
    """Who hears what the feeds bring."""

    def connected(self, feed: Feed) -> None:
        """The feed runs."""

    def event(self, event: Event) -> None:
        """The feed brought something."""

    def interrupted(self, feed: Feed, reason: str) -> None:
        """The feed broke; it will be started again."""


class FeedRunner:
    """Runs one feed for ever.

    `attempts` is the budget of connection attempts, shared by all feeds of one host.
    """

    def __init__(self, name: str, feed: Feed, sink: FeedSink, clock: Clock, attempts: TokenBucket) -> None:
        self.feed = feed
        self._name = name
        self._sink = sink
        self._clock = clock
        self._attempts = attempts
        self._refused: set[Symbol] = set()
        self._connection: Connection | None = None

    async def run(self) -> None:
        """Connect, read until it breaks, wait, again."""
        run_once = self._stream if isinstance(self.feed, StreamFeed) else self._socket
        backoff = Backoff()
        while True:
            while wait_s := self._attempts.take(self._clock.monotonic()):
                await self._clock.sleep(wait_s)
            started = self._clock.monotonic()
            reason = await self._attempt(run_once)
            self._connection = None
            if self._clock.monotonic() - started > _STEADY_S:
                backoff.succeeded()
            wait_s = backoff.failed()
            if backoff.failures <= 3 or backoff.failures % 10 == 0:
                logger.warning("%s: feed interrupted: %s; next attempt in %.1f s", self._name, reason, wait_s)
            self._sink.interrupted(self.feed, reason)
            await self._clock.sleep(wait_s)

    def doubt(self, symbol: Symbol) -> None:
        """REST has trades of `symbol` that this feed did not bring."""
        if self._connection is not None:
            self._connection.doubt(symbol, self._clock.monotonic())

    @property
    def mute(self) -> list[Symbol]:
        """Symbols that are subscribed and bring nothing."""
        return self._connection.mute if self._connection is not None else []

    async def _attempt(self, run_once: Callable[[], Awaitable[str]]) -> str:
        try:
            return await run_once()
        except (OSError, HTTPError, WebSocketError, CandledError) as error:
            return f"{type(error).__name__}: {error}" if not isinstance(error, CandledError) else str(error)
        except Exception as error:  # a plugin's mistake must not end the feed for good
            logger.exception("%s: the feed failed", self._name)
            return repr(error)

    # ------------------------------------------------------------ streams

    async def _stream(self) -> str:
        assert isinstance(self.feed, StreamFeed)
        self._sink.connected(self.feed)
        async for event in self.feed.events():
            self._sink.event(event)
        return "the stream ended"

    # ------------------------------------------------------------ sockets

    async def _socket(self) -> str:
        feed = self.feed
        assert isinstance(feed, SocketFeed)
        request = HTTPRequest(feed.url, connect_timeout=_CONNECT_TIMEOUT_S, request_timeout=_CONNECT_TIMEOUT_S)
        socket = await websocket_connect(
            request,
            ping_interval=None if feed.ping is not None else feed.ping_every_s,
            ping_timeout=None if feed.ping is not None else feed.pong_within_s,
            max_message_size=_LARGEST_FRAME,
        )
        symbols = [symbol for symbol in feed.symbols if symbol not in self._refused]
        connection = self._connection = Connection(feed, symbols, self._clock.monotonic())
        # the host alone: an operator's address may hold a password
        logger.info("%s: connected to %s for %d symbols", self._name, urlsplit(feed.url).hostname, len(symbols))
        self._sink.connected(feed)
        reader = asyncio.ensure_future(self._read(socket, connection))
        try:
            return await self._pump(socket, connection, reader)
        finally:
            reader.cancel()
            _hang_up(socket)

    async def _pump(
        self, socket: WebSocketClientConnection, connection: Connection, reader: "asyncio.Future[str]"
    ) -> str:
        while True:
            now = self._clock.monotonic()
            try:
                for frame in connection.outgoing(now):
                    await socket.write_message(frame)
            except WebSocketClosedError:
                return "closed by the exchange"
            reason = connection.verdict(now)
            if reason is not None:
                return reason
            tick = asyncio.ensure_future(self._clock.sleep(_TICK_S))
            waiting: set[asyncio.Future[Any]] = {reader, tick}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            tick.cancel()
            if reader.done():
                return reader.result()

    async def _read(self, socket: WebSocketClientConnection, connection: Connection) -> str:
        complaints = 0
        while True:
            frame = await socket.read_message()
            if frame is None:
                how = (
                    "no close frame"
                    if socket.close_code is None
                    else f"{socket.close_code} {socket.close_reason or ''}"
                )
                return f"closed by the exchange ({how.strip()})"
            try:
                text = frame if isinstance(frame, str) else frame.decode("utf-8", "replace")
                events = connection.received(text, self._clock.monotonic())
            except ExchangeError as error:
                complaints += 1
                if complaints == 1:
                    logger.warning("%s: skipped a frame (later ones only at debug level): %s", self._name, error)
                else:
                    logger.debug("%s: skipped a frame: %s", self._name, error)
                continue
            for event in events:
                self._report(event)

    def _report(self, event: Event) -> None:
        if isinstance(event, Refused):
            self._refused.add(event.symbol)
        self._sink.event(event)


def _hang_up(socket: WebSocketClientConnection) -> None:
    """Close at once: a close frame is sent, but nobody waits seconds for the answer of a peer that may be dead."""
    protocol = socket.protocol
    socket.close()
    if protocol is not None and protocol.stream is not None:
        protocol.stream.close()
