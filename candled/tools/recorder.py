"""Records an exchange through its plugin, for `candled plugin record`: frames, and the same minutes over REST."""

import asyncio
from collections.abc import Mapping
from typing import Any

from tornado.httpclient import HTTPResponse
from websockets.asyncio.client import ClientConnection
from websockets.typing import Data

from candled.budget import LocalBudgets, part_of
from candled.errors import ExchangeError
from candled.exchange import Candles, Clock, Event, Exchange, Feed, SocketFeed, SubscriptionRejected
from candled.ingest.feeds import FeedRunner, LoopBudget
from candled.ingest.http import HttpClient
from candled.ingest.retention import kept_since
from candled.model import DAY, MINUTE, MINUTE_MS, Interval, Range, Symbol
from candled.plugins import reason_of
from candled.proxies import Proxies
from candled.tasks import first_of
from candled.testing.recording import (
    COMPLETE,
    Call,
    Closed,
    Method,
    Opened,
    Phase,
    Received,
    RecordingWriter,
    Request,
    Sent,
)
from candled.testing.replayed import make_call
from candled.token_bucket import TokenBucket

from .budgets import SHARE

# The time after the last minute in which late versions of it arrive.
_TAIL_MS = 15_000
_SHORT_MS = 3 * MINUTE_MS
_HEADERS = {"date", "age", "retry-after", "content-type"}
_MOST_FAILURES = 20  # in the report
_BARS = ((Interval.parse("1h"), 24), (DAY, 7))


class Recorder:
    """Calls a plugin as the daemon does, and writes each frame and each request to a recording.

    It uses half of the exchange's request budgets. `calls` is the number of calls that the file has already.
    """

    def __init__(
        self,
        exchange: Exchange,
        symbol: Symbol,
        writer: RecordingWriter,
        clock: Clock,
        proxies: Proxies | None = None,
        calls: int = 0,
    ) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self._writer = writer
        self._clock = clock
        self._proxies = proxies
        self._calls = calls
        #: The number of the call that runs now; 0 if none does.
        self._call = 0
        self._connections = 0
        #: The number of events with candles that arrived, and the reasons for which the feed was interrupted.
        self.candle_events = 0
        self.interruptions: list[str] = []
        #: The reasons for which the exchange refused the subscription.
        self.rejections: list[str] = []
        #: The calls that failed, and the errors of `read_frame`, in words.
        self.failures: list[str] = []
        #: True once Ctrl-C has ended the stream.
        self.is_stopped = False
        budgets = exchange.request_budgets
        own = part_of(clock, SHARE, LocalBudgets(clock).budget)
        self._http = HttpClient(clock, exchange.requests_per_s, own, proxies, budgets)
        self._http.on_response = self._on_response
        named = (name for one in budgets.values() for name in (one.used_header, one.remaining_header) if name)
        self._headers = _HEADERS | {name.lower() for name in named}

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    # ------------------------------------------------------------ REST

    async def call_before(self) -> None:
        """Make the calls before the stream: the list of markets, a full page of minutes, and longer bars."""
        await self._call_plugin("fetch_markets", "before")
        end_ms = MINUTE.floor(self._exchange.now_ms()) + MINUTE_MS
        oldest_ms = kept_since(self._exchange.history_minutes, end_ms)
        start_ms = max(oldest_ms, end_ms - self._exchange.max_history_minutes * MINUTE_MS)
        middle_ms = MINUTE.floor((start_ms + end_ms) // 2)
        ends = [(start_ms, end_ms)]
        # the same minutes in short pages show the mistakes at the ends of a long one
        ends += [(at_ms, at_ms + _SHORT_MS) for at_ms in (start_ms, middle_ms, end_ms - _SHORT_MS - MINUTE_MS)]
        for first_ms, until_ms in ends:
            await self._call_plugin("fetch_history", "before", Range(max(start_ms, first_ms), until_ms))
        for interval, count in _BARS:
            until_ms = interval.floor(end_ms)
            await self._call_plugin("fetch_bars", "before", Range(until_ms - count * interval.ms, until_ms), interval)

    async def read_minutes(self, span: Range, phase: Phase) -> None:
        """Fetch minutes, in as many calls as they need."""
        for page in span.split(self._exchange.max_history_minutes * MINUTE_MS):
            await self._call_plugin("fetch_history", phase, page)

    async def _call_plugin(
        self, method: Method, phase: Phase, span: Range | None = None, interval: Interval | None = None
    ) -> None:
        self._calls += 1
        call = Call(
            at_ms=self._clock.now_ms(),
            number=self._calls,
            method=method,
            phase=phase,
            start_ms=None if span is None else span.start_ms,
            end_ms=None if span is None else span.end_ms,
            interval=None if interval is None else str(interval),
        )
        self._writer.write(call)
        self._call = call.number
        try:
            await make_call(self._exchange, self._http, self._symbol, call)
        except Exception as error:  # a plugin may raise anything
            self._add_failure(f"{method}: {reason_of(error)}")
        finally:
            self._call = 0

    def _on_response(self, response: HTTPResponse) -> None:
        request = response.request
        now_ms = self._clock.now_ms()
        has_answer = response.code != 599  # Tornado's own status
        self._writer.write(
            Request(
                at_ms=now_ms - round((response.request_time or 0.0) * 1000),
                answered_ms=now_ms,
                call=self._call,
                method="POST" if request.method == "POST" else "GET",
                url=request.url,
                body=(request.body or b"").decode("utf-8", "replace"),
                status=response.code if has_answer else 0,
                headers=self._kept_headers(response.headers) if has_answer else {},
                answer=response.body.decode("utf-8", "replace") if has_answer else str(response.error),
            )
        )

    def _kept_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {name.lower(): value for name, value in headers.items() if name.lower() in self._headers}

    # ------------------------------------------------------------ the stream

    async def record_stream(self, feed: Feed, minutes: int) -> Range:
        """Read the feed until `minutes` whole minutes are over, with their late versions; return their range.

        Ctrl-C ends the stream before that. The range then has only the complete minutes.
        """
        if isinstance(feed, SocketFeed):
            self._tolerate_errors(feed)
        start_ms = MINUTE.floor(self._clock.now_ms()) + MINUTE_MS
        span = Range(start_ms, start_ms + minutes * MINUTE_MS)
        limits = self._exchange.limits
        runner = FeedRunner(
            self._exchange.name,
            feed,
            self,
            self._clock,
            TokenBucket(limits.attempts_per_minute / 60, limits.attempts_per_minute),
            LoopBudget(),
            self._proxies,
            limits,
            self._http,
            create_connection=_recorded_connections(self),
        )
        rest_s = max(0, span.end_ms + _TAIL_MS - self._clock.now_ms()) / 1000
        try:
            await first_of(runner.run(), self._clock.sleep(rest_s))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None  # this one
            task.uncancel()
            self.is_stopped = True
            span = Range(start_ms, min(span.end_ms, max(start_ms, MINUTE.floor(self._clock.now_ms()))))
        if self._connections:
            self.on_interrupted(feed, COMPLETE)
        return span

    def _tolerate_errors(self, feed: SocketFeed) -> None:
        """Skip the frames that an unfinished plugin fails to read, and keep the connection."""
        read = feed.read_frame

        def read_or_skip(frame: str | bytes) -> list[Event]:
            try:
                return read(frame)
            except Exception as error:  # a plugin may raise anything
                reason = reason_of(error)
            self._add_failure(f"read_frame: {reason}")
            raise ExchangeError(reason)

        setattr(feed, "read_frame", read_or_skip)  # noqa: B010 - a method of this one object

    def _add_failure(self, failure: str) -> None:
        if len(self.failures) < _MOST_FAILURES and failure not in self.failures:
            self.failures.append(failure)

    def on_connected(self, feed: Feed) -> None:
        """Do nothing: the first use of a connection opens it in the recording."""

    def on_event(self, event: Event) -> None:
        """Count an event of the feed, and note a refusal."""
        self.candle_events += isinstance(event, Candles)
        if isinstance(event, SubscriptionRejected) and event.reason not in self.rejections:
            self.rejections.append(event.reason)

    def on_interrupted(self, feed: Feed, reason: str) -> None:
        """Write the end of a connection."""
        self.interruptions.append(reason)
        self._writer.write(Closed(at_ms=self._clock.now_ms(), connection=self._connections, reason=reason))

    def number_connection(self, connection: ClientConnection) -> int:
        """Write the beginning of a connection; return its number."""
        self._connections += 1
        request = connection.request
        assert request is not None  # the handshake is over
        scheme = "wss" if connection.transport.get_extra_info("ssl_object") else "ws"
        url = f"{scheme}://{request.headers['Host']}{request.path}"
        self._writer.write(Opened(at_ms=self._clock.now_ms(), connection=self._connections, url=url))
        return self._connections

    def add_sent(self, number: int, text: str) -> None:
        """Write a frame that was sent."""
        self._writer.write(Sent(at_ms=self._clock.now_ms(), connection=number, text=text))

    def add_received(self, number: int, frame: Data) -> None:
        """Write a frame that arrived."""
        is_text = isinstance(frame, str)
        self._writer.write(
            Received(
                at_ms=self._clock.now_ms(),
                connection=number,
                text=str(frame) if is_text else None,
                data=None if is_text else bytes(frame),  # type: ignore[arg-type]
            )
        )


def _recorded_connections(recorder: Recorder) -> type[ClientConnection]:
    """Return a class of connections that passes each frame to a recorder."""

    class RecordedConnection(ClientConnection):
        number = 0

        async def recv(self, decode: bool | None = None) -> Data:  # type: ignore[override]  # of its overloads
            self._open()
            frame = await super().recv(decode)
            recorder.add_received(self.number, frame)
            return frame

        async def send(self, message: Any, *, text: bool | None = None) -> None:
            self._open()
            recorder.add_sent(self.number, message)
            await super().send(message, text=text)

        def _open(self) -> None:
            self.number = self.number or recorder.number_connection(self)

    return RecordedConnection
