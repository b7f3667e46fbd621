"""Binance's kline streams: the updates of our rooms as Binance prints them, on sockets that speak Binance.

Source: Binance's spot "WebSocket Streams".
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from candled.exchange import Clock
from candled.model import parse_iso_ms
from candled.rooms.frames import Frame
from candled.rooms.links import Link, Links, Place
from candled.rooms.messages import Topic
from candled.token_bucket import TokenBucket

from .directory import BinanceMarkets, binance_interval

MOST_STREAMS = 1024  # of one connection, as at Binance
_BARS = 10  # so many may end while a room is told everything afresh, and none of them is left out
_TEXT_ID = re.compile(r"[A-Za-z0-9_-]{1,36}")
_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")


class Reader(Protocol):
    """A client of our own protocol: `candled.serve.client.Client`."""

    def received(self, message: str | bytes) -> None: ...
    def make_initial(self, topic: Topic) -> Frame | None: ...
    def fell_behind(self, topic: Topic) -> None: ...
    def closed(self) -> None: ...


class _Bar(NamedTuple):
    """A bar as our messages have it; numbers are texts, exact."""

    open_ms: int
    numbers: tuple[str, ...]  # open, high, low, close, volume, quote volume
    final: bool


class KlineRoom:
    """One topic: a member of the hub like any client, whose messages are printed anew for all who want the stream."""

    places: tuple[Place, ...] = ()

    def __init__(
        self, name: str, topic: Topic, symbol: str, publish: Callable[[Links, Frame], None], clock: Clock
    ) -> None:
        self.name = name
        self.topic = topic
        self._symbol = symbol
        self._publish = publish
        self._clock = clock
        self._groups = {False: Links(), True: Links()}  # raw, combined
        self._last: _Bar | None = None
        self._reader: Reader | None = None

    def open(self, make_reader: Callable[[Link], Reader]) -> None:
        """Become a member."""
        self._reader = make_reader(self)
        market, interval = self.topic
        wanted = {"exchange": market.exchange, "symbol": str(market.symbol), "interval": str(interval)}
        message = {"type": "subscribe", **wanted, "initialBars": _BARS, "fields": ["final"]}
        self._reader.received(json.dumps(message))

    def end(self) -> None:
        """Be no member any more."""
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.closed()

    # ------------------------------------------------------------ for those who want the stream

    @property
    def wanted(self) -> int:
        """How many want it."""
        return sum(links.present for links in self._groups.values())

    def add(self, place: Place, combined: bool) -> None:
        """Send updates there from now on, beginning with the bar as it is."""
        frame = self.frame(combined)
        if frame is not None:
            place.link.send(frame)
        self._groups[combined].add(place)

    def drop(self, place: Place, combined: bool) -> None:
        """Send no more."""
        self._groups[combined].drop(place)

    def frame(self, combined: bool) -> Frame | None:
        """The newest bar; None before there is one."""
        return None if self._last is None else self._frame(self._last, combined)

    # ------------------------------------------------------------ from the hub (Link)

    def write(self, frame: bytes) -> int:
        """Take a message."""
        message = _read(frame)
        if message["type"] == "initial":
            self._catch_up([_bar(one) for one in message["bars"]])
        elif message["type"] == "update":
            self._tell(_bar(message["bar"]))
        return len(frame)

    send = write

    def reply(self, frame: bytes) -> None:
        """Take an answer: that bars cannot be read now is all it could say, and the hub tries again."""

    def want(self, topic: Topic) -> None:
        """Take the `initial` at once."""
        frame = None if self._reader is None else self._reader.make_initial(topic)
        if frame is not None:
            self.write(frame)

    def forget(self, topic: Topic) -> None:
        """Nothing waits here."""

    def gather(self, many: bool) -> None:
        """There is one room only."""

    def close(self, code: int, reason: str) -> None:
        """There is no connection here that could be closed."""

    # ------------------------------------------------------------ inside

    def _catch_up(self, bars: Sequence[_Bar]) -> None:
        """Tell what is news of the newest bars, in order; what is older cannot be told in a stream."""
        last = self._last
        for bar in bars[-1:] if last is None else bars:
            if last is None or bar.open_ms > last.open_ms or (bar.open_ms == last.open_ms and bar != last):
                self._tell(bar)

    def _tell(self, bar: _Bar) -> None:
        self._last = bar
        for combined, links in self._groups.items():
            links.tidy()
            if links.present:
                self._publish(links, self._frame(bar, combined))

    def _frame(self, bar: _Bar, combined: bool) -> Frame:
        opened, high, low, close, volume, quote = bar.numbers
        kline = {
            "t": bar.open_ms, "T": bar.open_ms + self.topic.interval.ms - 1, "s": self._symbol,
            "i": binance_interval(self.topic.interval), "f": -1, "L": -1, "o": opened, "c": close, "h": high, "l": low,
            "v": volume, "n": 0, "x": bar.final, "q": quote, "V": "0", "Q": "0", "B": "0",
        }  # fmt: skip
        event: dict[str, Any] = {"e": "kline", "E": self._clock.now_ms(), "s": self._symbol, "k": kline}
        return Frame.of(msgspec.json.encode(_wrapped(self.name, event, combined)), self.topic, bar.open_ms)


class KlineStreams:
    """The rooms that somebody wants, by their streams' names, and the clients that want them."""

    def __init__(
        self,
        markets: BinanceMarkets,
        make_reader: Callable[[Link], Reader],
        publish: Callable[[Links, Frame], None],
        clock: Clock,
        messages_per_s: int,
    ) -> None:
        self._topics = {
            f"{symbol.lower()}@kline_{name}": (Topic(market, interval), symbol)
            for symbol, market in markets.markets.items()
            for name, interval in markets.intervals.items()
        }
        self._make_reader = make_reader
        self._publish = publish
        self._rooms: dict[str, KlineRoom] = {}
        self.clock = clock
        self.messages_per_s = messages_per_s

    def make_client(self, link: Link, uri: str) -> "KlineClient":
        """The client of a connection to `/ws/<stream>` or `/stream?streams=<stream>/<stream>`."""
        parts = urlsplit(uri)
        combined = not re.search(r"/ws(/|$)", parts.path)
        asked = (
            parse_qs(parts.query).get("streams", [""])[-1] if combined else unquote(parts.path.rpartition("/ws/")[2])
        )
        client = KlineClient(link, self, combined)
        client.begin([name for name in asked.split("/") if "@" in name])
        return client

    def knows(self, name: str) -> bool:
        """Whether there is such a stream."""
        return name in self._topics

    def enter(self, name: str, place: Place, combined: bool) -> KlineRoom:
        """Send a stream to a place, which begins with the bar as it is."""
        room = self._rooms.get(name)
        if room is None:
            topic, symbol = self._topics[name]
            room = self._rooms[name] = KlineRoom(name, topic, symbol, self._publish, self.clock)
            room.open(self._make_reader)
        room.add(place, combined)
        return room

    def leave(self, room: KlineRoom, place: Place, combined: bool) -> None:
        """Send it there no more; a room that nobody wants is closed."""
        room.drop(place, combined)
        if not room.wanted:
            del self._rooms[room.name]
            room.end()


class KlineClient:
    """One connection that speaks Binance."""

    __slots__ = ("_budget", "_combined", "_link", "_rooms", "_streams")

    def __init__(self, link: Link, streams: KlineStreams, combined: bool) -> None:
        self._link = link
        self._streams = streams
        self._combined = combined
        self._rooms: dict[str, tuple[KlineRoom, Place]] = {}
        rate = streams.messages_per_s
        self._budget = TokenBucket(rate, 2 * rate) if rate else None

    def begin(self, names: Sequence[str]) -> None:
        """Subscribe what the address names."""
        try:
            self._enter(self._new(names))
        except _Invalid as error:
            self._reply({"code": error.code, "msg": str(error)})

    # ------------------------------------------------------------ from the link

    def received(self, message: str | bytes) -> None:
        """Handle one message; every mistake is answered, a flood is ended."""
        if self._budget is not None and self._budget.take(self._streams.clock.monotonic()):
            self._link.close(1008, "Too many requests")
            return
        request_id: Any = None
        try:
            request = _request(message)
            request_id = request.get("id")
            if not _is_id(request_id):
                request_id = None
                raise _Invalid(2, "Invalid request: request ID must be an integer, text of 1 to 36 characters, or null")
            result, new = self._answer(request)
            self._reply({"result": result, "id": request_id})
            self._enter(new)
        except _Invalid as error:
            told = {} if error.code == 3 else {"id": request_id}
            self._reply({"code": error.code, "msg": str(error), **told})

    def make_initial(self, topic: Topic) -> Frame | None:
        """The newest bar of a topic, for a client that read too slowly to get each."""
        for room, _ in self._rooms.values():
            if room.topic == topic:
                return room.frame(self._combined)
        return None

    def fell_behind(self, topic: Topic) -> None:
        """Bars of a topic had to be dropped."""
        self._link.want(topic)

    def goodbye(self, reconnect_after_ms: int) -> None:
        """The server is about to close the connection."""
        event = {"e": "serverShutdown", "E": self._streams.clock.now_ms()}
        self._link.reply(Frame.of(msgspec.json.encode(_wrapped("!serverShutdown", event, self._combined))))

    def closed(self) -> None:
        """The socket is gone."""
        self._leave(list(self._rooms))

    # ------------------------------------------------------------ requests

    def _answer(self, request: dict[str, Any]) -> tuple[Any, Sequence[str]]:
        """The result, and the streams that begin after it was told."""
        method, params = request.get("method"), request.get("params", [])
        if method not in _METHODS:
            raise _Invalid(2, f"Invalid request: unknown method, expected one of {', '.join(_METHODS)}")
        if method == "LIST_SUBSCRIPTIONS":
            return list(self._rooms), ()
        if not isinstance(params, list) or not params:
            raise _Invalid(2, "Invalid request: params must be a list that is not empty")
        if method.endswith("PROPERTY"):
            return self._property(method, params)
        if not all(isinstance(name, str) for name in params):
            raise _Invalid(2, "Invalid request: params must be names of streams")
        if method == "SUBSCRIBE":
            return None, self._new(params)
        self._leave(params)
        return None, ()

    def _new(self, names: Sequence[str]) -> Sequence[str]:
        """Those of the streams that the client has not yet; all are there, or none is taken."""
        new = [name for name in dict.fromkeys(names) if name not in self._rooms]
        for name in new:
            if not self._streams.knows(name):
                raise _Invalid(2, f"Invalid request: unknown stream {name[:64]}")
        if len(self._rooms) + len(new) > MOST_STREAMS:
            raise _Invalid(2, f"Invalid request: at most {MOST_STREAMS} streams per connection")
        return new

    def _enter(self, names: Sequence[str]) -> None:
        for name in names:
            place = Place(self._link)
            self._rooms[name] = self._streams.enter(name, place, self._combined), place
        self._link.gather(len(self._rooms) > 1)

    def _leave(self, names: Sequence[str]) -> None:
        for name in names:
            room, place = self._rooms.pop(name, (None, None))
            if room is not None and place is not None:
                self._link.forget(room.topic)
                self._streams.leave(room, place, self._combined)
        self._link.gather(len(self._rooms) > 1)

    def _property(self, method: str, params: list[Any]) -> tuple[bool | None, Sequence[str]]:
        if params[0] != "combined":
            raise _Invalid(0, "Unknown property")
        if method == "GET_PROPERTY":
            return self._combined, ()
        if len(params) != 2 or not isinstance(params[1], bool):
            raise _Invalid(1, "Invalid value type: expected Boolean")
        names = list(self._rooms)
        self._leave(names)
        self._combined = params[1]
        return None, names

    def _reply(self, body: dict[str, Any]) -> None:
        self._link.reply(Frame.of(msgspec.json.encode(body)))


class _Invalid(Exception):
    """What is wrong with a request, with Binance's number for it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def _request(message: str | bytes) -> dict[str, Any]:
    try:
        request = json.loads(message)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _Invalid(3, f"Invalid JSON: expected value{where}") from None
    if not isinstance(request, dict):
        raise _Invalid(2, "Invalid request: expected an object")
    return request


def _is_id(given: Any) -> bool:
    if isinstance(given, str):
        return bool(_TEXT_ID.fullmatch(given))
    return given is None or (type(given) is int and -(2**63) <= given < 2**63)


def _wrapped(stream: str, event: dict[str, Any], combined: bool) -> dict[str, Any]:
    return {"stream": stream, "data": event} if combined else event


def _read(frame: bytes) -> Any:
    payload = frame.payload if isinstance(frame, Frame) else frame
    return json.loads(payload, parse_float=str, parse_int=str)


def _bar(told: dict[str, Any]) -> _Bar:
    numbers = [told[name] for name in ("open", "high", "low", "close", "volume")]
    return _Bar(parse_iso_ms(told["time"]), (*numbers, told.get("quoteVolume", "0")), bool(told["final"]))
