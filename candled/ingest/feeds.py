"""Keeps the feeds of an exchange running: connects, reads, and restarts them with backoff."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidURI, SecurityError, WebSocketException
from websockets.protocol import State
from websockets.uri import parse_uri

from candled.errors import CandledError, ExchangeError, Unavailable
from candled.exchange import (
    Candles,
    Clock,
    ClosingSoon,
    ConnectionLimits,
    Event,
    Feed,
    Http,
    SocketFeed,
    StreamFeed,
    SubscriptionRejected,
)
from candled.model import Symbol
from candled.proxies import Proxies
from candled.tasks import Backoff, first_of, retry
from candled.token_bucket import TokenBucket

from .connection import FeedConnection
from .counts import IngestCounts
from .decompression import TooLarge, decompress
from .error_counter import ErrorCounter
from .prepared_address import find_address
from .rejected_symbols import RejectedSymbols
from .snapshot_places import SnapshotPlaces
from .tunnel import open_tunnel

logger = logging.getLogger(__name__)
_protocol_log = logging.getLogger("candled.ingest.websocket")
_protocol_log.setLevel(logging.WARNING)  # FeedRunner logs the end of a connection better

_TICK_S = 1.0
_SEND_TICK_S = 0.1  # while frames wait to be sent
_CONNECT_TIMEOUT_S = 10.0
_PREPARE_TIMEOUT_S = 30.0  # for the requests of a plugin before a connection
_CLOSE_TIMEOUT_S = 0.2  # for the reply to our close frame, from a peer that may be dead
_SEND_TIMEOUT_S = 5.0
_HANG_UP_S = 1.0
_TURN_S, _MOST_TURN_S = 0.005, 0.04  # waiting frames are read for this long in one pass of the loop
_STEADY_S = 30.0  # a connection that lived this long is not a failure
_MAX_FRAME_BYTES = 1024 * 1024
# The frames, or events of a `StreamFeed`, that a feed may deliver each second, and in a row after a pause.
_FRAMES_PER_S, _FRAMES_PER_S_AND_SYMBOL, _FRAMES_BURST_S = 1000, 50, 5.0
_BYTES = 2048  # every 2048 bytes of a frame count as one more frame
_ROW = 0.1  # the weight of a row or event in a frame, in frames: a snapshot of 500 minutes counts as 51 frames
_NOT_READ = "the exchange does not read the frames sent to it"
FLOODED = "the exchange sends too many messages"
"""The reason for the interruption of a feed with too many frames a second."""
INTERRUPTIONS = {
    "connection closed": "closed",
    "the stream ended": "closed",
    "replaced on schedule": "scheduled",
    "no pong": "no_pong",
    _NOT_READ: "not_read",
    "the exchange is not ready": "not_ready",
    FLOODED: "flooded",
    "a frame has more than": "flooded",
    "the exchange asks for more replies": "flooded",
}
"""The kind of an interruption, for metrics, by the beginning of its reason."""
INTERRUPTION_KINDS = (*dict.fromkeys(INTERRUPTIONS.values()), "not_connected", "failed")
"""All kinds: the last two are for failed attempts to connect, and for any other reason."""


def interruption_kind(reason: str, *, was_connected: bool) -> str:
    """Return the kind of an interruption: one of `INTERRUPTION_KINDS`."""
    if not was_connected:
        return "not_connected"
    return next((kind for beginning, kind in INTERRUPTIONS.items() if reason.startswith(beginning)), "failed")


class FeedSink(Protocol):
    """A receiver of the feeds' events."""

    def on_connected(self, feed: Feed) -> None:
        """Handle the start of a feed."""

    def on_event(self, event: Event) -> None:
        """Handle an event of a feed."""

    def on_interrupted(self, feed: Feed, reason: str) -> None:
        """Handle the interruption of a feed, which will be restarted."""


class LoopBudget:
    """The time that all feeds together may use in one pass of the event loop. A single snapshot may use all of it.

    While more frames arrive than can be read, reading gets half of the time: as long as all other work of the last pass
    took, but at least 5 and at most 40 ms.
    """

    def __init__(self) -> None:
        self._spent_s, self._most_s = 0.0, _TURN_S
        self._ended_at = 0.0
        self._is_begun = False

    @property
    def is_over(self) -> bool:
        """True if the next frame should wait for the next pass."""
        return self._spent_s > self._most_s

    def add_frame(self, began_at: float, ended_at: float) -> None:
        """Add a frame that was read between two times, monotonic seconds."""
        if not self._is_begun:
            self._is_begun = True
            self._most_s = max(_TURN_S, min(_MOST_TURN_S, began_at - self._ended_at))
            asyncio.get_running_loop().call_soon(self._end_pass)
        self._spent_s += ended_at - began_at
        self._ended_at = ended_at

    def _end_pass(self) -> None:
        self._spent_s, self._is_begun = 0.0, False


class FeedRunner:
    """The task of one feed, which runs until cancelled.

    `attempts` is the budget of connection attempts, shared by all feeds of one host. `turns` is shared by all feeds.
    `proxies` are those from the settings, `limits` those of the exchange. Without `http`, connections are not
    prepared. `on_closing` is called when the exchange announces that it will close the connection. `create_connection`
    is the class of the connections. `places` is shared by all feeds of the exchange.
    """

    def __init__(
        self,
        name: str,
        feed: Feed,
        sink: FeedSink,
        clock: Clock,
        attempts: TokenBucket,
        turns: LoopBudget,
        proxies: Proxies | None = None,
        limits: ConnectionLimits | None = None,
        http: Http | None = None,
        counts: IngestCounts | None = None,
        on_closing: "Callable[[FeedRunner], None] | None" = None,
        create_connection: type[ClientConnection] = ClientConnection,
        places: SnapshotPlaces | None = None,
    ) -> None:
        self.feed = feed
        self._places = places
        self._counts = counts or IngestCounts()
        self._on_closing = on_closing
        self._create_connection = create_connection
        #: When the connection was opened, monotonic seconds.
        self._connected_at = 0.0
        self._limits = limits
        self._http = http
        self._name = name
        self._sink = sink
        self._clock = clock
        self._attempts = attempts
        self._turns = turns
        self._proxies = proxies or Proxies()
        self._rejected = RejectedSymbols()
        self._connection: FeedConnection | None = None
        #: Counts frames that could not be read.
        self.malformed = ErrorCounter()
        #: The number of events about symbols that the feed did not subscribe to.
        self.unsubscribed_events = 0
        #: True while the feed is connected.
        self.is_connected = False
        self._set_symbols(feed.symbols)

    async def run(self) -> None:
        """Connect, read until the feed is interrupted, wait, and repeat."""
        backoff = Backoff()

        def report(error: Exception, wait_s: float) -> None:
            if backoff.failure_count <= 3 or backoff.failure_count % 10 == 0:
                logger.warning("%s: feed interrupted: %s; next attempt in %.1f s", self._name, error, wait_s)
            self._sink.on_interrupted(self.feed, str(error))

        await retry(lambda: self._run_once(backoff), self._clock, backoff, on=Unavailable, report=report)

    def add_symbols(self, symbols: Sequence[Symbol], *, is_urgent: bool = False) -> None:
        """Carry more symbols on the open connection, urgent ones first. A `StreamFeed` cannot do this."""
        feed = self.feed
        assert isinstance(feed, SocketFeed)
        feed.set_symbols((*feed.symbols, *symbols))
        self._set_symbols(feed.symbols)
        if self._connection is not None:
            self._connection.add_symbols(symbols, self._clock.monotonic(), is_urgent=is_urgent)

    def remove_symbols(self, symbols: Collection[Symbol]) -> None:
        """Stop carrying some symbols; the connection stays open."""
        left = tuple(symbol for symbol in self.feed.symbols if symbol not in symbols)
        for symbol in symbols:
            self._rejected.remove_symbol(symbol)
        if isinstance(self.feed, SocketFeed):
            self.feed.set_symbols(left)
        else:
            self.feed.symbols = left
        self._set_symbols(left)
        if self._connection is not None:
            self._connection.remove_symbols(symbols)

    def _set_symbols(self, symbols: Sequence[Symbol]) -> None:
        #: The symbols that the feed carries now.
        self.symbols = frozenset(symbols)
        rate = _FRAMES_PER_S + _FRAMES_PER_S_AND_SYMBOL * len(self.symbols)
        self._frames = TokenBucket(rate, rate * _FRAMES_BURST_S)

    def renew_subscription(self, symbol: Symbol) -> None:
        """Renew the subscription to `symbol`, because REST has trades that this feed did not deliver."""
        if self._connection is not None:
            self._connection.renew_subscription(symbol, self._clock.monotonic())

    def retry_now(self, symbol: Symbol) -> None:
        """Subscribe to a rejected symbol now, because the exchange seems to have it."""
        self._rejected.retry_now(symbol, self._clock.monotonic())

    def awaits_snapshot(self, symbol: Symbol) -> bool:
        """Return whether the exchange is about to send the newest minutes of a symbol."""
        return self._connection is not None and self._connection.awaits_snapshot(symbol, self._clock.monotonic())

    @property
    def silent_symbols(self) -> list[Symbol]:
        """The symbols that are subscribed and deliver nothing."""
        return self._connection.silent_symbols if self._connection is not None else []

    async def _run_once(self, backoff: Backoff) -> None:
        """Connect, and read until the feed is interrupted.

        Raises:
            Unavailable: always, with the reason.
        """
        while wait_s := self._attempts.try_take(self._clock.monotonic()):
            await self._clock.sleep(wait_s)
        started = self._clock.monotonic()
        try:
            reason = await (self._run_stream() if isinstance(self.feed, StreamFeed) else self._run_socket())
        except InvalidURI as error:  # its text contains the complete address
            reason = f"the address cannot be used: {error.msg}"
        except CandledError as error:
            reason = str(error)
        except (OSError, WebSocketException) as error:
            reason = f"{type(error).__name__}: {error}"
        except Exception as error:  # an error in a plugin must not end the feed
            logger.exception("%s: the feed failed", self._name)
            reason = repr(error)
        self._counts.interruptions[interruption_kind(reason, was_connected=self.is_connected)] += 1
        self._connection, self.is_connected = None, False
        if self._clock.monotonic() - started > _STEADY_S:
            backoff.on_success()
        raise Unavailable(reason)

    # ------------------------------------------------------------ streams

    async def _run_stream(self) -> str:
        assert isinstance(self.feed, StreamFeed)
        self._on_connected()
        if self._http is None:
            raise TypeError("a StreamFeed needs an Http")
        async for event in self.feed.stream_events(self._http):
            if self._frames.try_take(self._clock.monotonic(), 1.0 + _weight_of([event])):
                return FLOODED
            self._on_event(event)
        return "the stream ended"

    def _on_connected(self) -> None:
        self.is_connected = True
        self._counts.connects += 1
        self._sink.on_connected(self.feed)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Candles | SubscriptionRejected) and event.symbol not in self.symbols:
            self.unsubscribed_events += 1
        elif isinstance(event, ClosingSoon):
            self._on_announcement(event)
        else:
            self._sink.on_event(event)

    def _on_announcement(self, event: ClosingSoon) -> None:
        """Ask for another connection, unless this one is new: another one may get the same announcement."""
        if self._on_closing is not None and self._clock.monotonic() - self._connected_at > _STEADY_S:
            logger.info("%s: opening another connection: %s", self._name, event.reason)
            self._on_closing(self)

    # ------------------------------------------------------------ sockets

    async def _run_socket(self) -> str:
        feed = self.feed
        assert isinstance(feed, SocketFeed)
        url = await self._prepare_connection(feed)
        pings_itself = feed.make_ping() is not None
        socket = await _Connect(
            url,
            compression=None,
            proxy=None,
            open_timeout=_CONNECT_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            ping_interval=None if pings_itself else feed.ping_every_s,
            ping_timeout=None if pings_itself else feed.pong_within_s,
            max_size=_MAX_FRAME_BYTES,
            logger=_protocol_log,
            create_connection=self._create_connection,
            **await self._connect_options(url, feed.url),
        )
        try:
            return await self._exchange_frames(socket, feed, url)
        finally:
            await _close_socket(socket)

    async def _prepare_connection(self, feed: SocketFeed) -> str:
        """Return the address to connect to. The plugin may request it from the exchange."""
        if self._http is None:
            return feed.url
        try:
            async with asyncio.timeout(_PREPARE_TIMEOUT_S):
                return await feed.prepare_connection(self._http)
        except TimeoutError as error:
            raise Unavailable(f"the connection was not prepared within {_PREPARE_TIMEOUT_S:g} s") from error

    async def _connect_options(self, url: str, configured: str) -> dict[str, Any]:
        """Return the options of `create_connection`: a tunnel through a proxy, or how to connect to the host."""
        parts = parse_uri(url)
        proxy = self._proxies.choose(parts.host, parts.port, is_secure=parts.secure)
        address = await find_address(url, configured, resolves=proxy is None)
        if proxy is not None:
            return {"sock": await open_tunnel(proxy, parts.host, parts.port, _CONNECT_TIMEOUT_S)}
        if address is not None:  # not resolved again: the name may lead elsewhere then
            return {"host": address, "port": parts.port}
        is_plain = isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
        # if an address does not answer, the next one is tried in parallel; uvloop does not support this
        return {"happy_eyeballs_delay": 0.25} if is_plain else {}

    async def _exchange_frames(self, socket: ClientConnection, feed: SocketFeed, url: str) -> str:
        connection = self._connection = FeedConnection(
            feed, feed.symbols, self._clock.monotonic(), self._rejected, self._limits, self._places
        )
        # the host only: an operator's address may contain a password
        parts = parse_uri(url)
        proxy = self._proxies.choose(parts.host, parts.port, is_secure=parts.secure)
        through = "" if proxy is None else f" through {proxy}"
        logger.info("%s: connected to %s%s for %d symbols", self._name, parts.host, through, len(feed.symbols))
        self._connected_at = self._clock.monotonic()
        self._on_connected()
        return await first_of(self._read_frames(socket, connection), self._send_frames(socket, connection))

    async def _send_frames(self, socket: ClientConnection, connection: FeedConnection) -> str:
        """Send frames until the connection must be replaced; return why. `_read_frames` notices the socket's end."""
        while True:
            now = self._clock.monotonic()
            if socket.state is not State.OPEN:  # one side is closing; the other may not hang up
                await _close_socket(socket)
            try:
                await self._send_due(socket, connection)
            except ConnectionClosed:
                await socket.wait_closed()
            except TimeoutError:
                return _NOT_READ
            skipped = self.malformed.end_series(self._steady_ms())
            if skipped > 1:
                logger.info("%s: no more unreadable frames; skipped %d", self._name, skipped)
            reason = connection.close_reason(now)
            if reason is not None:
                return reason
            await self._clock.sleep(_SEND_TICK_S if connection.has_more else _TICK_S)

    async def _send_due(self, socket: ClientConnection, connection: FeedConnection) -> None:
        """Send the frames that are due.

        Raises:
            TimeoutError: the exchange does not read them.
            ConnectionClosed: the connection has ended.
        """
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            for frame in connection.frames_to_send(self._clock.monotonic()):
                await socket.send(frame)

    async def _read_frames(self, socket: ClientConnection, connection: FeedConnection) -> str:
        turns = self._turns
        while True:
            try:
                frame = await socket.recv()
            except ConnectionClosed as error:
                return f"connection closed: {error}"
            while turns.is_over:  # `recv` does not wait while frames are buffered
                await self._clock.sleep(0)
            began = self._clock.monotonic()
            if self._frames.try_take(began):
                return FLOODED
            try:
                content = self._decompress(frame)
                if self._frames.try_take(began, len(content) // _BYTES):
                    return FLOODED
                events = connection.on_frame(content, began)
            except TooLarge:
                return f"a frame has more than {_MAX_FRAME_BYTES} bytes after decompression"
            except ExchangeError as error:
                events = []
                self._skip_frame(str(error))
            except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
                events = []
                logger.debug("%s: the plugin failed to read a frame", self._name, exc_info=error)
                self._skip_frame(f"the plugin failed: {repr(error)[:200]}")
            if events and self._frames.try_take(began, _weight_of(events)):
                return FLOODED
            for event in events:
                self._on_event(event)
            turns.add_frame(began, self._clock.monotonic())
            if connection.has_urgent:  # a reply does not wait for the next tick
                try:
                    await self._send_due(socket, connection)
                except ConnectionClosed as error:
                    return f"connection closed: {error}"
                except TimeoutError:
                    return _NOT_READ

    def _decompress(self, frame: str | bytes) -> str | bytes:
        feed = self.feed
        if isinstance(frame, str) or not isinstance(feed, SocketFeed) or feed.compression is None:
            return frame
        return decompress(frame, feed.compression, _MAX_FRAME_BYTES)

    def _skip_frame(self, reason: str) -> None:
        self._counts.malformed_frames += 1
        if self.malformed.add_error(self._steady_ms()):
            logger.warning("%s: skipped an unreadable frame, counting further ones: %s", self._name, reason)

    def _steady_ms(self) -> int:
        return round(self._clock.monotonic() * 1000)


def _weight_of(events: Sequence[Event]) -> float:
    """Return the weight of the events of a frame, in frames."""
    rows = sum(len(one.candles) + len(one.invalid) for one in events if isinstance(one, Candles))
    return _ROW * (rows + len(events))


class _Connect(connect):
    """Follows redirects only to the same host, port and scheme.

    A redirect therefore never leads to a private address, unless the settings or the plugin contain that address.
    """

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Return the address of a redirect, or the error that ends the attempt."""
        target = super().process_redirect(exc)
        if isinstance(target, str):
            old, new = self.ws_uri, parse_uri(target)
            if (old.secure, old.host, old.port) == (new.secure, new.host, new.port):
                return target
            return SecurityError(f"redirects to another host or scheme: {target[:200]}")
        return SecurityError(str(target)[:200]) if isinstance(target, ValueError) else target


async def _close_socket(socket: ClientConnection) -> None:
    """Send a close frame, and wait only briefly for the reply of a peer that may be dead."""
    try:
        async with asyncio.timeout(_HANG_UP_S):
            await socket.close()
    except TimeoutError:
        logger.debug("aborted a connection that could not be closed")
    finally:
        socket.transport.abort()
