"""`Client`: any number of streams and requests over one WebSocket."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

from candled.clock import SystemClock
from candled.exchange import Clock
from candled.tasks import Backoff, TaskSet

from .closed_bars import ClosedBarStream, PatternSubscription
from .connection import Message, ServerConnection
from .stream import FIELDS, BarStream, BarSubscription
from .values import Bar, Bars, ConnectionEnded, RequestRejected, Status, moment, wire_time

S = TypeVar("S", BarSubscription, PatternSubscription)

_PAGE = 1000
_AGAIN_S = 1.0


class Client:
    """A client of the candled server at a `ws://` or `wss://` address. Connected inside `async with`.

    It reconnects after a lost connection and requests the changes it missed. Without `reconnect`, everything ends with
    `ConnectionEnded` when the first connection fails or is lost.

    Args:
        url: the server's WebSocket address.
        default_exchange: the exchange that the server's messages do not name. Without it, the client learns it from
            answers when it needs it.
        keep: the number of bars kept in memory per stream.
        ping_s: seconds between pings.
        reconnect: False to connect only once.
        clock: a clock for tests.
        backoff: the waiting times between attempts to reconnect, by default 1 to 30 s.
    """

    def __init__(
        self,
        url: str,
        *,
        default_exchange: str | None = None,
        keep: int = 20_000,
        ping_s: float = 20.0,
        reconnect: bool = True,
        clock: Clock | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._default_exchange = default_exchange
        self._keep = keep
        # replaced as a whole, because callbacks may end subscriptions within a loop over them
        self._subscriptions: list[BarSubscription | PatternSubscription] = []
        # open history requests by id: the message, and the future of its answer
        self._questions: dict[int, tuple[dict[str, Any], asyncio.Future[Message]]] = {}
        self._asked = 0  # the last id of a request
        self._is_open = False  # True inside `async with`
        self._end: ConnectionEnded | None = None  # set when the client will not connect again
        self._tasks = TaskSet()
        self._connection = ServerConnection(
            url,
            opened=self._on_open,
            received=self._on_message,
            lost=self._on_connection_lost,
            clock=self._clock,
            backoff=backoff or Backoff(first_s=1.0, most_s=30.0),
            ping_s=ping_s,
            attempts=None if reconnect else 1,
        )

    async def __aenter__(self) -> Self:
        self._is_open = True
        self._tasks.start(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all streams and requests, and close the socket."""
        if not self._is_open:
            return
        self._is_open = False
        await self._tasks.cancel()
        self._end_streams(RequestRejected("the client was closed"))

    def bars(
        self,
        symbol: str,
        interval: str,
        *,
        exchange: str | None = None,
        initial_bars: int = 100,
        final_only: bool = False,
        corrections: bool = False,
        on_status: Callable[[Status], None] | None = None,
    ) -> BarStream:
        """Follow one interval of one market; see `BarStream`.

        The subscription ends with `close()`, or when the stream is no longer referenced, as after a `break`.

        Args:
            symbol: a symbol such as `BTC/USDT`.
            interval: an interval such as `5m`.
            exchange: the exchange; by default the server's default.
            initial_bars: the number of bars to start with, 1 to 1000.
            final_only: yield each bar once, when it is final.
            corrections: also yield revised older bars.
            on_status: called when the status changes.

        Raises:
            ConnectionEnded: the client will not connect again.
            RuntimeError: the client is not used inside `async with`.
        """
        self._require_open()
        topic = self._share(BarSubscription(self._name(symbol, interval, exchange), initial_bars, self._keep))
        if initial_bars > topic.wanted:
            topic.wanted, topic.position = initial_bars, None
            self._subscribe(topic)
        return BarStream(
            topic, final_only=final_only, corrections=corrections, on_status=on_status, ended=self._unsubscribe
        )

    def closed_bars(
        self,
        pattern: str = "*",
        interval: str = "1m",
        *,
        exchange: str | None = None,
        corrections: bool = False,
        on_markets: Callable[[Sequence[str], Sequence[str]], None] | None = None,
        on_status: Callable[[Status], None] | None = None,
    ) -> ClosedBarStream:
        """Follow the closed bars of all markets that a pattern selects; see `ClosedBarStream`.

        The subscription ends with `close()`, or when the stream is no longer referenced, as after a `break`.

        Args:
            pattern: a pattern such as `*`, `*/USDT`, `!*UP/USDT` or `/^(BTC|ETH)/`.
            interval: an interval such as `5m`.
            exchange: the exchange; by default the server's default.
            corrections: also yield revised bars, and bars that became final after a newer one.
            on_markets: called with the symbols that were added and removed, at first with all of them.
            on_status: called when the status changes.

        Raises:
            ConnectionEnded: the client will not connect again.
            RuntimeError: the client is not used inside `async with`.
        """
        self._require_open()
        topic = self._share(PatternSubscription(self._name(pattern, interval, exchange), self._keep))
        return ClosedBarStream(
            topic, corrections=corrections, on_markets=on_markets, on_status=on_status, ended=self._unsubscribe
        )

    async def history(
        self,
        symbol: str,
        interval: str,
        start: datetime | int | str | None = None,
        end: datetime | int | str | None = None,
        *,
        exchange: str | None = None,
    ) -> Bars:
        """Return the bars that open at or after `start` and before `end`, oldest first.

        Times are aware datetimes, epoch milliseconds or ISO 8601 text. Without `start` you get all bars from the first
        one on, without `end` all up to the forming bar. Waits through lost connections, for any time.

        Raises:
            RequestRejected: the server refuses the request, or does not support it.
            RuntimeError: the client is not used inside `async with`.
        """
        request = {"type": "history", **self._name(symbol, interval, exchange), "limit": _PAGE, "fields": FIELDS}
        first = None if start is None else moment(wire_time(start))
        if end is not None:
            request["before"] = wire_time(end)
        pages: list[list[Bar]] = []
        while True:
            answer = await self._send_question(request)
            page = [Bar.from_wire(bar) for bar in answer["bars"]]
            pages.append([bar for bar in page if first is None or bar.time >= first])
            if answer["end"] or not page or (first is not None and page[0].time <= first):
                return Bars([bar for page in reversed(pages) for bar in page])
            request["before"] = answer["bars"][0]["time"]

    def _name(self, symbol: str, interval: str, exchange: str | None) -> dict[str, str]:
        """Return the fields that name a market and interval in messages, without an exchange that is the default."""
        named = {"symbol": symbol, "interval": interval}
        return {**named, "exchange": exchange} if exchange and exchange != self._default_exchange else named

    # ------------------------------------------------------------ the connection

    async def _run(self) -> None:
        self._end = ConnectionEnded(await self._connection.run())
        self._end_streams(self._end)

    def _require_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the client is not connected: use it inside `async with`")
        if self._end is not None:
            raise self._end

    def _end_streams(self, error: RequestRejected) -> None:
        for topic in self._subscriptions:
            topic.on_refused(error)
        if not self._is_open:
            for stream in [stream for topic in self._subscriptions for stream in topic.followers]:
                stream.close()
        for number in list(self._questions):
            self._on_answer(number, error)

    def _select(self, kind: type[S]) -> list[S]:
        return [topic for topic in self._subscriptions if isinstance(topic, kind)]

    def _on_open(self) -> None:
        for topic in self._subscriptions:
            self._subscribe(topic)
        for number, (request, _) in self._questions.items():
            self._connection.send({**request, "id": number})

    def _on_connection_lost(self, error: Exception, wait_s: float) -> None:
        for topic in self._subscriptions:
            topic.on_connection_lost(Status("lost", retry_s=wait_s, message=str(error)))

    def _share(self, topic: S) -> S:
        """Return the subscription of this kind and name if there is one, else add this one."""
        for one in self._select(type(topic)):
            if one.named == topic.named:
                return one
        self._subscriptions = [*self._subscriptions, topic]
        self._subscribe(topic)
        return topic

    def _subscribe(self, topic: BarSubscription | PatternSubscription) -> None:
        if self._connection.is_open:
            self._connection.send(topic.subscribe_message(self._next_number()))
            topic.set_status(Status("loading"))

    def _unsubscribe(self, topic: BarSubscription | PatternSubscription) -> None:
        is_followed = bool(list(topic.followers))  # a list leaves out streams that are being collected
        if topic in self._subscriptions and not is_followed:
            self._subscriptions = [one for one in self._subscriptions if one is not topic]
            self._connection.send({"type": "unsubscribe", **topic.named})

    def _next_number(self) -> int:
        self._asked += 1
        return self._asked

    async def _send_question(self, request: dict[str, Any]) -> Message:
        self._require_open()
        number = self._next_number()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._questions[number] = request, answer
        self._connection.send({**request, "id": number})
        try:
            return await answer
        finally:
            del self._questions[number]

    # ------------------------------------------------------------ messages

    def _on_message(self, message: Message) -> None:
        match message["type"]:
            case "markets" | "update" | "correction" if "pattern" in message:
                for pattern in self._select(PatternSubscription):
                    if self._is_about(pattern, message["pattern"], message):
                        pattern.on_message(message)
            case "initial" | "resumed" | "update" | "correction":
                topic = self._topic_of(message)
                if topic is not None:
                    topic.on_bars_message(message)
            case "subscribed":
                self._on_acknowledgement(message)
            case "status":
                for topic in self._select(BarSubscription):
                    if self._is_about(topic, message["symbol"], message):
                        topic.on_status_message(message)
            case "history":
                self._on_answer(message["id"], message)
            case "error":
                self._on_error(message)
            case "bye":
                self._connection.expect_end(float(message["reconnectAfterMs"]) / 1000)

    def _on_answer(self, number: int, answer: Message | RequestRejected) -> None:
        _, waiting = self._questions.get(number, (None, None))
        if waiting is None or waiting.done():
            return
        if isinstance(answer, RequestRejected):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)

    def _on_error(self, message: Message) -> None:
        text, number, code = str(message["message"]), message.get("id"), message.get("code")
        error = RequestRejected(text, None if code is None else int(code))
        if number is None:
            self._refused_without_number(error)
            return
        again = next((topic for topic in self._subscriptions if topic.asked == number), None)
        if message.get("temporary"):
            if again is not None:
                again.set_status(Status("loading", message=text))
            self._tasks.start(self._repeat_later(int(number)))
        elif again is not None:
            again.on_refused(error)
        else:
            self._on_answer(number, error)

    def _refused_without_number(self, error: RequestRejected) -> None:
        """Find the request of an error without an id by its text. Servers without the extensions send such errors."""
        text = str(error)
        if text.startswith("Unknown message type: history"):
            for number in list(self._questions):
                self._on_answer(number, error)
        for topic in self._select(BarSubscription):
            if not topic.has_bars and topic.refusal is None and _is_meant(topic, text):
                topic.on_refused(error)
                return

    async def _repeat_later(self, number: int) -> None:
        """Repeat a request that the server could not answer now."""
        await self._clock.sleep(_AGAIN_S)
        if number in self._questions:
            self._connection.send({**self._questions[number][0], "id": number})
        for topic in self._subscriptions:
            if topic.asked == number and not topic.is_repeated_by_server:
                self._subscribe(topic)

    # ------------------------------------------------------------ exchanges

    def _on_acknowledgement(self, message: Message) -> None:
        for topic in self._subscriptions:
            if topic.asked == message["id"]:
                topic.on_acknowledged()
                if "exchange" in topic.named and "exchange" not in message:
                    self._default_exchange = topic.named["exchange"]

    def _is_about(self, topic: BarSubscription | PatternSubscription, symbol: str, message: Message) -> bool:
        default = self._default_exchange
        return bool(
            topic.named["symbol"] == symbol
            and topic.named["interval"] == message.get("interval", topic.named["interval"])
            and topic.named.get("exchange", default) == message.get("exchange", default)
        )

    def _topic_of(self, message: Message) -> BarSubscription | None:
        """Return the subscription of a message.

        Messages name the exchange only if it is not the default, which the client may have to learn here.
        """
        topics = self._select(BarSubscription)
        for topic in topics:
            if self._is_about(topic, message["symbol"], message):
                return topic
        market = {"symbol": message["symbol"], "interval": message["interval"]}
        about = [topic for topic in topics if market.items() <= topic.named.items()]
        if len(about) != 1 or "exchange" in message or self._default_exchange is not None:
            return None
        self._default_exchange = about[0].named["exchange"]
        return about[0]


def _is_meant(topic: BarSubscription, text: str) -> bool:
    """Return True if an error can only mean this subscription."""
    names = (f"Invalid {key}: {value}." for key, value in topic.named.items())
    return text.startswith(("Too many subscriptions", *names))
