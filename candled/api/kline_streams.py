"""Binance's kline streams: the updates of rooms as Binance prints them, on sockets with Binance's protocol.

Source: Binance's spot "WebSocket Streams".
"""

import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from candled.exchange import Clock
from candled.model import END_OF_TIME_MS, Candle, MarketKey, Topic, decimal_text
from candled.protocol.frames import BarUpdate, Frame
from candled.protocol.messages import FINAL, VALUES, Options
from candled.protocol.requests import Subscribe
from candled.rooms.encoded_bars import BarSource
from candled.rooms.recipients import NullConnection, RecipientConnection, Recipients, RecipientSlot, filled
from candled.serve.connection_limiter import ClientLimits
from candled.serve.market_starts import start_later
from candled.serve.request_checks import message_budget
from candled.token_bucket import TokenBucket
from candled.transport.connection import ConnectionListener
from candled.transport.work_budget import REFUSED, SUBSCRIBE
from candled.universe import MarketsChanged

from .catalog import TIME_UNITS, BinanceMarkets, binance_interval
from .kline_order import KlineOrder
from .offered_markets import OfferedMarkets

MOST_STREAMS = 1024  # per connection, as at Binance
FINAL_WAIT_S = 2.0  # the longest time that a new bar waits for the one before it to become final
_BARS = 10  # bars of an `initial`. If no more bars end before the next `initial`, the stream has no gap.
_OPTIONS = Options(FINAL | VALUES, corrections=True, final_wait_s=FINAL_WAIT_S)
_TEXT_ID = re.compile(r"[A-Za-z0-9_-]{1,36}")
_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_ENDED_MS = END_OF_TIME_MS  # the last frame of a stream counts as its newest bar, so slow clients receive it too
_SHOWN = 64  # characters of a client's own text that an error repeats


class Reader(Protocol):
    """A client of candled's own protocol. `candled.serve.client.ClientSession` implements it."""

    def handle_request(self, request: Subscribe) -> None:
        """Handle a subscription."""

    def make_initial(self, topic: Topic) -> Frame | None:
        """Return the requested `initial`."""

    def on_close(self) -> None:
        """Leave all rooms."""


class Style(NamedTuple):
    """The format of a connection's events."""

    #: True if each event names its stream.
    combined: bool = False
    #: Units of event times per millisecond: 1 or 1,000.
    units_per_ms: int = 1


class KlineRoom(NullConnection):
    """One stream. It is a member of the hub like any client, and encodes its bars once for all subscribers."""

    def __init__(self, name: str, topic: Topic, symbol: str, streams: "KlineStreams") -> None:
        self.name = name
        self.topic = topic
        self._symbol = symbol
        self._bars, self._publish, self._clock = streams.bars, streams.publish, streams.clock
        self._order = KlineOrder()
        self._groups: dict[Style, Recipients] = {}  # the subscribers
        self._reader: Reader | None = None  # set while a member of the hub
        #: True once the market is not served any more.
        self.is_ended = False

    def join_hub(self, make_reader: Callable[[RecipientConnection], Reader]) -> None:
        """Subscribe to the stream's topic."""
        self._reader = make_reader(self)
        self._reader.handle_request(Subscribe(self.topic, _BARS, _OPTIONS))

    def leave_hub(self) -> None:
        """End the subscription."""
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.on_close()

    def end_stream(self) -> None:
        """End the subscription, and send an error to every subscriber: the market is not served any more."""
        self.leave_hub()
        self.is_ended = True
        message = {"error": {"code": 2, "msg": f"Stream ended: {self._symbol} is not served any more"}, "id": None}
        frame = Frame.from_text(msgspec.json.encode(message), self.topic, _ENDED_MS)
        for _, recipients in filled(self._groups):
            self._publish(recipients, frame)

    # ------------------------------------------------------------ for subscribers

    @property
    def subscribers(self) -> int:
        """The number of subscribers."""
        return sum(recipients.member_count for recipients in self._groups.values())

    def add_slot(self, slot: RecipientSlot, style: Style) -> None:
        """Add a subscriber, and send it the current bars."""
        for frame in self._beginning(style):
            slot.connection.send_frame(frame)
        self.join(slot, style)

    def join(self, slot: RecipientSlot, style: Style) -> None:
        """Add a subscriber."""
        self._groups.setdefault(style, Recipients()).add_slot(slot)

    def remove_slot(self, slot: RecipientSlot, style: Style) -> None:
        """Remove a subscriber."""
        self._groups[style].remove_slot(slot)

    def newest(self, style: Style) -> Frame | None:
        """Return the newest bar as last sent; None before the first one."""
        newest = self._order.newest
        return None if newest is None else self._make_frame(newest, self._order.is_closed, style)

    # ------------------------------------------------------------ calls from the hub (RecipientConnection)

    def take_frame(self, frame: bytes) -> int:
        """Take the bars of a message."""
        if isinstance(frame, Frame) and frame.update is not None:
            self._take_bars(frame.update)
        return len(frame)

    def request_snapshot(self, topic: Topic) -> None:
        """Take the bars of an `initial` immediately."""
        frame = None if self._reader is None else self._reader.make_initial(topic)
        if frame is not None:
            self.take_frame(frame)

    # ------------------------------------------------------------ inside

    def _take_bars(self, update: BarUpdate) -> None:
        is_beginning = self._order.newest is None
        self._close_late()
        for bar, final in update.bars:
            if self._order.take(bar, final=final) and not is_beginning:
                self._send(bar, final)
        if is_beginning:
            for style, recipients in filled(self._groups):
                for frame in self._beginning(style):
                    self._publish(recipients, frame)

    def _close_late(self) -> None:
        """Send the close of bars that were not final when the next bar began and are final now."""
        for open_ms in self._order.unclosed:
            bar = self._bars.get_bar(*self.topic, open_ms)
            if bar is not None and self._bars.is_final(*self.topic, bar) and self._order.close(open_ms):
                self._send(bar, closes=True)

    def _beginning(self, style: Style) -> list[Frame]:
        """Return the first frames of a stream: the bars that are still to be closed, then the newest one."""
        if self._order.newest is None:
            return []
        earlier = [self._bars.get_bar(*self.topic, open_ms) for open_ms in self._order.unclosed]
        frames = [self._make_frame(bar, False, style) for bar in earlier if bar is not None]
        return [*frames, self._make_frame(self._order.newest, self._order.is_closed, style)]

    def _send(self, bar: Candle, closes: bool) -> None:
        for style, recipients in filled(self._groups):
            self._publish(recipients, self._make_frame(bar, closes, style))

    def _make_frame(self, bar: Candle, closes: bool, style: Style) -> Frame:
        units, interval = style.units_per_ms, self.topic.interval
        kline = {
            "t": bar.open_ms * units, "T": (bar.open_ms + interval.ms) * units - 1, "s": self._symbol,
            "i": binance_interval(interval), "f": -1, "L": -1, "o": decimal_text(bar.open),
            "c": decimal_text(bar.close), "h": decimal_text(bar.high), "l": decimal_text(bar.low),
            "v": decimal_text(bar.volume), "n": 0, "x": closes,
            "q": "0" if bar.quote_volume is None else decimal_text(bar.quote_volume), "V": "0", "Q": "0", "B": "0",
        }  # fmt: skip
        event: dict[str, Any] = {"e": "kline", "E": self._clock.now_ms() * units, "s": self._symbol, "k": kline}
        return Frame.from_text(msgspec.json.encode(_wrapped(self.name, event, style)), self.topic, bar.open_ms)


class KlineStreams:
    """The streams with subscribers, by name, and the factory of their clients."""

    def __init__(
        self,
        markets: BinanceMarkets,
        bars: BarSource,
        make_reader: Callable[[RecipientConnection], Reader],
        publish: Callable[[Recipients, Frame], None],
        clock: Clock,
        limits: ClientLimits,
        offered: OfferedMarkets | None = None,
    ) -> None:
        self._markets = markets
        self._offered = offered
        self.bars = bars
        self._make_reader = make_reader
        self.publish = publish
        self._rooms: dict[str, KlineRoom] = {}
        self.clock = clock
        self.limits = limits

    def make_raw(self, connection: RecipientConnection, uri: str) -> "KlineClient":
        """Return the client of a connection to `/ws/<stream>/<stream>`, which gets bare events."""
        names = urlsplit(uri).path.rpartition("/ws/")[2]
        return self._make_client(connection, uri, unquote(names), combined=False)

    def make_combined(self, connection: RecipientConnection, uri: str) -> "KlineClient":
        """Return the client of a connection to `/stream?streams=<stream>/<stream>`, whose events name their stream."""
        names = parse_qs(urlsplit(uri).query).get("streams", [""])[-1]
        return self._make_client(connection, uri, names, combined=True)

    def _make_client(self, connection: RecipientConnection, uri: str, names: str, *, combined: bool) -> "KlineClient":
        unit = parse_qs(urlsplit(uri).query).get("timeUnit", ["MILLISECOND"])[-1].upper()
        client = KlineClient(connection, self, Style(combined, TIME_UNITS.get(unit, 1)))
        if unit not in TIME_UNITS:
            client.refuse(_Invalid(2, f"Invalid request: timeUnit must be one of {', '.join(TIME_UNITS)}"))
        else:
            client.subscribe_from_path([name for name in names.split("/") if "@" in name])
        return client

    def find_offered(self, name: str) -> MarketKey | None:
        """Return the market of a stream that exists once its market is started on demand; None if it cannot be."""
        stream, _, interval_name = name.rpartition("@kline_")
        if self._offered is None or interval_name not in self._markets.intervals:
            return None
        return self._offered.find_binance(self._markets.exchange, stream)

    def awaits_list(self, name: str) -> bool:
        """Return whether a stream may exist once the list of the exchange is known."""
        if self._offered is None or name.rpartition("@kline_")[2] not in self._markets.intervals:
            return False
        return not self._offered.demand.is_list_known(self._markets.exchange)

    def start_later(self, market: MarketKey | None, address: str, on_end: Callable[[str], None]) -> None:
        """Start a market on demand for a client, then call `on_end`: with "", or with the reason for a failure.

        Without a market, wait for the list of the exchange.
        """
        assert self._offered is not None, "it was found there"
        start_later(self._offered.demand, self._markets.exchange, market, address, on_end)

    def find_topic(self, name: str) -> tuple[Topic, str] | None:
        """Return the topic of a stream, and the symbol in its events; None if the stream does not exist."""
        stream, _, interval_name = name.rpartition("@kline_")
        found, interval = self._markets.find_stream(stream), self._markets.intervals.get(interval_name)
        return None if found is None or interval is None else (Topic(found[0], interval), found[1])

    def on_markets_changed(self, change: MarketsChanged) -> None:
        """End the streams of removed markets, and notify their subscribers."""
        removed = {MarketKey(change.exchange, symbol) for symbol in change.removed}
        for name, room in list(self._rooms.items()):
            if room.topic.market in removed:
                del self._rooms[name]
                room.end_stream()

    def add_subscriber(self, name: str, slot: RecipientSlot, style: Style) -> KlineRoom:
        """Subscribe a slot to a stream, and send it the current bars."""
        room = self._rooms.get(name)
        if room is None:
            found = self.find_topic(name)
            assert found is not None, "checked by the client"
            room = self._rooms[name] = KlineRoom(name, *found, self)
            room.join_hub(self._make_reader)
        room.add_slot(slot, style)
        return room

    def remove_subscriber(self, room: KlineRoom, slot: RecipientSlot, style: Style) -> None:
        """Remove a subscriber, then the stream if it has no more."""
        room.remove_slot(slot, style)
        if not room.subscribers and self._rooms.get(room.name) is room:
            del self._rooms[room.name]
            room.leave_hub()


class KlineClient(ConnectionListener):
    """A connection with Binance's protocol."""

    __slots__ = ("_budget", "_connection", "_is_closed", "_rooms", "_streams", "_style")

    def __init__(self, connection: RecipientConnection, streams: KlineStreams, style: Style) -> None:
        self._connection = connection
        self._streams = streams
        self._style = style
        self._rooms: dict[str, tuple[KlineRoom, RecipientSlot]] = {}
        self._budget: TokenBucket | None = None
        self._is_closed = False

    def subscribe_from_path(self, names: Sequence[str]) -> None:
        """Subscribe to the streams named in the address."""
        self._answer(lambda: (None, self._new_streams(names)), None, has_reply=False)

    def refuse(self, error: "_Invalid", request_id: Any = None) -> None:
        """Send an error in the format that Binance's clients expect."""
        self._send_reply({"error": {"code": error.code, "msg": str(error)}, "id": request_id})

    def _is_over_limit(self) -> bool:
        """Count a message; return True if the client sends too many."""
        self._budget = budget = message_budget(self._budget, self._streams.limits, self._connection)
        return budget is not None and budget.try_take(self._streams.clock.monotonic()) > 0

    # ------------------------------------------------------------ calls from the connection

    def on_client_message(self, message: str | bytes) -> None:
        """Handle one message. An invalid one gets an error; too many close the connection."""
        if self._is_over_limit():
            self._connection.disconnect(1008, "Too many requests")
            return
        request_id: Any = None
        try:
            request = _request(message)
            request_id = request.get("id")
            if not _is_id(request_id):
                request_id = None
                raise _Invalid(2, "Invalid request: request ID must be an integer, text of 1 to 36 characters, or null")
            self._answer(partial(self._handle_request, request), request_id)
        except _Invalid as error:
            self.refuse(error, request_id)

    def make_initial(self, topic: Topic) -> Frame | None:
        """Return the newest bar of a topic, for a client that read too slowly to get every bar."""
        for room, _ in self._rooms.values():
            if room.topic == topic:
                return room.newest(self._style)
        return None

    def on_fell_behind(self, topic: Topic) -> None:
        """Request the newest bar of a topic, because queued bars were dropped."""
        self._connection.request_snapshot(topic)

    def notify_shutdown(self, reconnect_after_ms: int) -> None:
        """Send Binance's event for a server that is about to close the connection."""
        event = {"e": "serverShutdown", "E": self._streams.clock.now_ms() * self._style.units_per_ms}
        self._send_reply(_wrapped("!serverShutdown", event, self._style))

    def on_close(self) -> None:
        """Unsubscribe from all streams: the socket is closed."""
        self._is_closed = True
        self._unsubscribe(list(self._rooms))

    # ------------------------------------------------------------ requests

    def _answer(
        self,
        handle: Callable[[], tuple[Any, Sequence[str]]],
        request_id: Any,
        *,
        has_reply: bool = True,
        started: Collection[MarketKey | None] = (),
    ) -> None:
        """Answer a request by `handle`, after starting those of its markets that run on demand, one by one.

        `started` are the markets that were started for it. It contains None if the request has waited for the
        exchange's list.
        """
        if self._is_closed:
            return
        try:
            result, new = handle()
        except _NotStarted as error:
            if error.market in started:  # it has ended again, or the list is still not known
                self.refuse(_Invalid(2, str(error)), request_id)
                return
            started = (*started, error.market)
            again = partial(self._answer, handle, request_id, has_reply=has_reply, started=started)
            self._start(error.market, request_id, again)
        except _Invalid as error:
            self.refuse(error, request_id)
        else:
            if has_reply:
                self._send_reply({"result": result, "id": request_id})
            self._subscribe(new)

    def _start(self, market: MarketKey | None, request_id: Any, again: Callable[[], None]) -> None:
        def on_end(problem: str) -> None:
            if not problem:
                again()
            elif not self._is_closed:
                self.refuse(_Invalid(2, problem), request_id)

        self._streams.start_later(market, self._connection.address, on_end)

    def _handle_request(self, request: dict[str, Any]) -> tuple[Any, Sequence[str]]:
        """Return the result, and the streams to start after the result is sent."""
        method, params = request.get("method"), request.get("params", [])
        if method not in _METHODS:
            raise _Invalid(2, f"Invalid request: unknown method, expected one of {', '.join(_METHODS)}")
        if method == "LIST_SUBSCRIPTIONS":
            return [name for name, (room, _) in self._rooms.items() if not room.is_ended], ()
        if not isinstance(params, list) or not params:
            raise _Invalid(2, "Invalid request: params must be a list that is not empty")
        if method.endswith("PROPERTY"):
            return self._handle_property(method, params), ()
        if not all(isinstance(name, str) for name in params):
            raise _Invalid(2, "Invalid request: params must be names of streams")
        if method == "SUBSCRIBE":
            return None, self._new_streams(params)
        self._unsubscribe(params)
        return None, ()

    def _new_streams(self, names: Sequence[str]) -> Sequence[str]:
        """Return the streams that the client is not subscribed to yet.

        Raises:
            _Invalid: a stream does not exist, or there would be too many. Then none is added.
            _NotStarted: the market of a stream must be started first, or may be in a list that is not known yet.
        """
        self._unsubscribe([name for name, (room, _) in self._rooms.items() if room.is_ended])
        new = [name for name in dict.fromkeys(names) if name not in self._rooms]
        grant = self._connection.grant
        for name in new:
            found = self._streams.find_topic(name)
            if found is None:
                text = f"Invalid request: unknown stream {_shown(name)}"
                market = self._streams.find_offered(name)
                if market is None and self._streams.awaits_list(name):
                    raise _NotStarted(None, text)
                if market is None or (grant is not None and not grant.allows_symbol(market.symbol)):
                    raise _Invalid(2, text)
                raise _NotStarted(market, text)
            topic, _ = found
            is_allowed = grant is None or (
                grant.allows_symbol(topic.market.symbol) and grant.allows_interval(str(topic.interval))
            )
            if not is_allowed:
                raise _Invalid(2, f"Invalid request: not allowed with this token: {_shown(name)}")
        most = MOST_STREAMS if grant is None or not grant.rooms else min(MOST_STREAMS, grant.rooms)
        if len(self._rooms) + len(new) > most:
            raise _Invalid(2, f"Invalid request: at most {most} streams per connection")
        return new

    def _subscribe(self, names: Sequence[str]) -> None:
        if self._connection.charge_work(len(names) * SUBSCRIBE) == REFUSED:
            self._connection.disconnect(1008, "Too many requests")
            return
        for name in names:
            slot = RecipientSlot(self._connection)
            self._rooms[name] = self._streams.add_subscriber(name, slot, self._style), slot
        self._connection.cork(len(self._rooms) > 1)

    def _unsubscribe(self, names: Sequence[str]) -> None:
        for name in names:
            room, slot = self._rooms.pop(name, (None, None))
            if room is not None and slot is not None:
                self._connection.cancel_topic(room.topic)
                self._streams.remove_subscriber(room, slot, self._style)
        self._connection.cork(len(self._rooms) > 1)

    def _handle_property(self, method: str, params: list[Any]) -> bool | None:
        if params[0] != "combined":
            raise _Invalid(0, "Unknown property")
        if method == "GET_PROPERTY":
            return self._style.combined
        if len(params) != 2 or not isinstance(params[1], bool):
            raise _Invalid(1, "Invalid value type: expected Boolean")
        style = self._style._replace(combined=params[1])
        for room, slot in self._rooms.values():
            room.remove_slot(slot, self._style)
            room.join(slot, style)
        self._style = style
        return None

    def _send_reply(self, body: dict[str, Any]) -> None:
        self._connection.send_reply(Frame.from_text(msgspec.json.encode(body)))


class _Invalid(Exception):
    """An invalid request, with Binance's error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _NotStarted(Exception):
    """A request for a stream whose market can be started on demand. The text is the error if it cannot be started.

    `market` is None while the exchange's list, which may have it, is not known.
    """

    def __init__(self, market: MarketKey | None, message: str) -> None:
        super().__init__(message)
        self.market = market


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


def _wrapped(stream: str, event: dict[str, Any], style: Style) -> dict[str, Any]:
    return {"stream": stream, "data": event} if style.combined else event


def _shown(text: str) -> str:
    """Return the start of a client's own text for an error message.

    Lone surrogates, which UTF-8 cannot encode, are replaced.
    """
    return text[:_SHOWN].encode("utf-8", "replace").decode()
