"""Plays a recording to a plugin: each frame to its feed, and each answer to the call that asked for it."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from candled.errors import CandledError, ExchangeError, Unavailable
from candled.exchange import Candles, Event, Exchange, HttpAnswer, InvalidRow, Ready, Reply, SocketFeed
from candled.ingest.decompression import TooLarge
from candled.ingest.http import TOO_MANY, read_answer
from candled.model import Candle, Interval, Market, Symbol

from .recording import Call, Closed, Opened, Phase, Received, Recording, Request, Sent

# Times in a query that a plugin reads from its clock differ a little from those of the recording.
_CLOSE_MS, _LONG_DIGITS = 60_000, 13
_EXCERPT = 160


class RecordedClock:
    """The clock of a recording: the time of the line that is being played. It does not wait."""

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = self._started_ms = now_ms

    def move_to(self, at_ms: int | None) -> None:
        """Set the time, UTC epoch milliseconds; None leaves it."""
        if at_ms is not None:
            self._started_ms = self._started_ms or at_ms
            self._now_ms = at_ms

    def now_ms(self) -> int:
        """Return the wall-clock time, UTC epoch milliseconds."""
        return self._now_ms

    def monotonic(self) -> float:
        """Return the seconds since the first line."""
        return (self._now_ms - self._started_ms) / 1000

    async def sleep(self, seconds: float) -> None:
        """Return immediately."""


class RecordedHttp:
    """The `candled.exchange.Http` that answers from recorded requests, each of them once.

    The answer to a request is that to the same path, query and body. Numbers that are times may differ by a minute,
    because a plugin may take them from its clock. A recorded answer without an address is the answer to any request.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._left = list(requests)

    async def get_json(
        self, url: str, params: Mapping[str, str] | None = None, *, weight: float = 1.0, budget: str = ""
    ) -> Any:
        """Return the recorded answer; see `candled.exchange.Http.get_json`."""
        return self._answer("GET", f"{url}?{urlencode(params)}" if params else url, "")

    async def post_json(self, url: str, body: Any = None, *, weight: float = 1.0, budget: str = "") -> Any:
        """Return the recorded answer; see `candled.exchange.Http.post_json`."""
        return self._answer("POST", url, "" if body is None else msgspec.json.encode(body).decode())

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
        """Return the recorded answer; see `candled.exchange.Http.fetch_text`."""
        request = self._find(method, url, body or "")
        if request.status >= 500:
            _read_recorded(request)
        return HttpAnswer(request.status, request.headers, request.answer)

    def find_proxy(self, url: str) -> str | None:
        """Return None: there are no connections."""
        return None

    def pause_requests(self, url: str, seconds: float) -> None:
        """Do nothing."""

    def _answer(self, method: str, url: str, body: str) -> Any:
        return _read_recorded(self._find(method, url, body))

    def _find(self, method: str, url: str, body: str) -> Request:
        asked = (method, *_parts_of(url), body)
        for request in self._left:
            if _is_same(asked, (request.method, *_parts_of(request.url), request.body)):
                self._left.remove(request)
                if request.status == 0 or request.status in TOO_MANY:
                    _read_recorded(request)
                return request
        parts = urlsplit(url)
        query = f"?{parts.query}" if parts.query else ""
        raise ExchangeError(f"the recording has no answer to {method} {parts.path}{query}{body}")


def _parts_of(url: str) -> tuple[str, str]:
    """Return the path, and the query sorted by names. The host may be another one than in the recording."""
    parts = urlsplit(url)
    return parts.path, urlencode(sorted(parse_qsl(parts.query, keep_blank_values=True)))


def _is_same(asked: tuple[str, ...], recorded: tuple[str, ...]) -> bool:
    if asked[:2] != recorded[:2]:
        return recorded[1] == ""  # a converted file that has no addresses
    one, other = _words_of(asked[2:]), _words_of(recorded[2:])
    return len(one) == len(other) and all(map(_is_close, one, other))


def _words_of(parts: Iterable[str]) -> list[str]:
    """Split texts at each sign between numbers and names."""
    return "\n".join(parts).translate(_SIGNS).split("\0")


_SIGNS = str.maketrans(dict.fromkeys('=&{}[]":,\n', "\0"))


def _is_close(one: str, other: str) -> bool:
    if one == other:
        return True
    if not (one.isdecimal() and other.isdecimal() and len(one) == len(other) >= _LONG_DIGITS - 3):
        return False
    return abs(int(one) - int(other)) < _CLOSE_MS // (1 if len(one) >= _LONG_DIGITS else 1000)


def _read_recorded(request: Request) -> Any:
    host = urlsplit(request.url).netloc
    if request.status == 0:
        raise Unavailable(f"cannot reach {host}: {request.answer}")
    if request.status in TOO_MANY:
        raise Unavailable(f"{host} answered {request.status}, too many requests")
    return read_answer(host, request.status, request.headers.get("content-type"), request.answer.encode())


@dataclass(frozen=True, slots=True)
class PlayedFrame:
    """A frame that the plugin has read."""

    #: The line of the frame in the recording.
    received: Received
    #: The events that the plugin read in the frame, in order.
    events: tuple[Event, ...]


@dataclass(slots=True)
class Replay:
    """The results of a plugin on a recording."""

    #: The lines that the plugin could not read, and frames it would not have sent, in words.
    problems: list[str] = field(default_factory=list)
    #: The frames that the plugin could read, in the order of their arrival.
    frames: list[PlayedFrame] = field(default_factory=list)
    #: The list of markets, None if the recording has none that can be read.
    markets: list[Market] | None = None
    #: The minutes of `fetch_history` in each phase, by their opening times.
    minutes: dict[Phase, dict[int, Candle]] = field(default_factory=dict)
    #: The ranges of the calls of `fetch_history` that were answered, in each phase.
    ranges: dict[Phase, list[tuple[int, int]]] = field(default_factory=dict)
    #: The candles of each call of `fetch_history`.
    pages: list[tuple[Call, list[Candle]]] = field(default_factory=list)
    #: The bars of `fetch_bars` by interval.
    bars: dict[str, list[Candle]] = field(default_factory=dict)
    #: Rows of frames and pages that are no candles.
    invalid: list[InvalidRow] = field(default_factory=list)

    def versions(self, symbol: Symbol) -> dict[int, list[Candle]]:
        """Return the versions of each minute that the stream delivered, in the order of their arrival."""
        found: dict[int, list[Candle]] = {}
        for frame in self.frames:
            for event in frame.events:
                if isinstance(event, Candles) and event.symbol == symbol:
                    for candle in event.candles:
                        found.setdefault(candle.open_ms, []).append(candle)
        return found

    def newest_candles(self, symbol: Symbol) -> Iterator[tuple[int, Candle]]:
        """Yield the newest candle of each frame that has candles and a time, with the time of its arrival."""
        for frame in self.frames:
            for event in frame.events:
                is_about = isinstance(event, Candles) and event.symbol == symbol and event.candles
                if is_about and frame.received.at_ms is not None:
                    yield frame.received.at_ms, max(event.candles)  # type: ignore[union-attr]


async def replay_recording(recording: Recording, exchange: Exchange, clock: RecordedClock) -> Replay:
    """Play a recording to a plugin. `clock` is the one that `exchange` was made with.

    Errors of the plugin are in the result.
    """
    player = _Player(recording, exchange, clock)
    await player.prepare()
    for event in recording.events:
        clock.move_to(event.at_ms)
        if isinstance(event, Call):
            await player.on_call(event)
        elif not isinstance(event, Request):
            player.on_line(event)
    return player.replay


class _Player:
    def __init__(self, recording: Recording, exchange: Exchange, clock: RecordedClock) -> None:
        self._recording = recording
        self._exchange = exchange
        self._clock = clock
        self.replay = Replay()
        exchange.resume_after(None)
        feed = exchange.make_feed([recording.symbol])
        self._feed = feed if isinstance(feed, SocketFeed) else None
        #: Frames that the plugin sends, and that the recording has not shown yet.
        self._to_send: list[str] = []

    async def prepare(self) -> None:
        """Let the feed read the answers that it asked for before the connection."""
        if self._feed is not None:
            await prepare_feed(self._feed, self._recording)

    # ------------------------------------------------------------ REST

    async def on_call(self, call: Call) -> None:
        """Make a call with the recorded answers."""
        replay, symbol = self.replay, self._recording.symbol
        try:
            found = await make_call(self._exchange, RecordedHttp(self._recording.requests_of(call)), symbol, call)
        except CandledError as error:
            replay.problems.append(f"call {call.number}, {call.method}: {error}")
            return
        except Exception as error:  # a plugin may raise anything
            replay.problems.append(f"call {call.number}, {call.method}: {error!r}"[:_EXCERPT])
            return
        if call.method == "fetch_markets":
            replay.markets = list(found)
        elif call.method == "fetch_bars":
            replay.bars[str(call.interval)] = list(found or ())
        else:
            replay.invalid += [row for row in found if isinstance(row, InvalidRow)]
            rows = [row for row in found if isinstance(row, Candle)]
            replay.pages.append((call, rows))
            replay.minutes.setdefault(call.phase, {}).update({row.open_ms: row for row in rows})
            replay.ranges.setdefault(call.phase, []).append(call.span)

    # ------------------------------------------------------------ frames

    def on_line(self, event: Opened | Sent | Received | Closed) -> None:
        """Play a line of a connection."""
        if self._feed is None:
            return
        if isinstance(event, Opened):
            self._to_send = [] if self._feed.awaits_ready else self._subscribe(self._feed)
        elif isinstance(event, Sent):
            self._on_sent(self._feed, event)
        elif isinstance(event, Received):
            self._on_received(self._feed, event)

    def _subscribe(self, feed: SocketFeed) -> list[str]:
        return feed.subscribe([self._recording.symbol])

    def _on_sent(self, feed: SocketFeed, event: Sent) -> None:
        if not self._recording.header.module:  # converted: another program sent it
            return
        symbols = [self._recording.symbol]
        if event.text not in self._to_send and event.text in feed.unsubscribe(symbols):
            self._to_send = self._subscribe(feed)  # the subscription is renewed
        elif event.text in self._to_send:
            self._to_send.remove(event.text)
        elif not _is_ping(feed, event.text):
            self.replay.problems.append(f"the plugin does not send {event.text[:_EXCERPT]}")

    def _on_received(self, feed: SocketFeed, event: Received) -> None:
        try:
            events = tuple(feed.read_frame(event.read_content(feed.compression)))
        except (ExchangeError, TooLarge) as error:
            self.replay.problems.append(f"a frame cannot be read: {error}"[: 2 * _EXCERPT])
            return
        except Exception as error:  # a plugin may raise anything
            self.replay.problems.append(f"the plugin failed with {error!r} on {event.content!r}"[: 2 * _EXCERPT])
            return
        self.replay.frames.append(PlayedFrame(event, events))
        for one in events:
            if isinstance(one, Ready):
                self._to_send += self._subscribe(feed)
            elif isinstance(one, Reply):
                self._to_send.append(one.text)
            elif isinstance(one, Candles):
                self.replay.invalid += one.invalid


def _is_ping(feed: SocketFeed, text: str) -> bool:
    """Return True if a frame is a ping. Its numbers may differ from those of the next ping."""
    ping = feed.make_ping()
    return ping is not None and _without_digits(ping) == _without_digits(text)


def _without_digits(text: str) -> str:
    return "".join(sign for sign in text if not sign.isdecimal())


async def prepare_feed(feed: SocketFeed, recording: Recording) -> None:
    """Let a feed read the recorded answers that it needs before a connection, such as the sizes of contracts."""
    requests = [one for one in recording.select(Request) if one.call == 0]
    if requests:
        with contextlib.suppress(CandledError):
            await feed.prepare_connection(RecordedHttp(requests))


async def make_call(exchange: Exchange, http: Any, symbol: Symbol, call: Call) -> Any:
    """Call a method of a plugin as a line of a recording describes it; return its result.

    Raises:
        Unavailable, ExchangeError: as the method.
    """
    if call.method == "fetch_markets":
        return await exchange.fetch_markets(http)
    if call.method == "fetch_history":
        return await exchange.fetch_history(http, symbol, *call.span)
    assert call.interval is not None
    return await exchange.fetch_bars(http, symbol, Interval.parse(call.interval), *call.span)
