"""A stream of the closed bars of many markets, and the subscription shared by several streams of one pattern."""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

from .values import Bar, MarketBar, RequestRejected, Status

FIELDS = ["final", "rev", "src"]


class PatternSubscription:
    """The subscription to the closed bars of the markets that a pattern selects."""

    def __init__(self, pattern: str, interval: str, exchange: str | None, keep: int) -> None:
        self.named = {"symbol": pattern, "interval": interval} | ({"exchange": exchange} if exchange else {})
        # number of bars that may wait for a slow reader
        self.keep = keep
        # the selected markets, in the server's order
        self.markets: tuple[str, ...] = ()
        # id of the last `subscribe` message
        self.asked: int | None = None
        # set while the server refuses the subscription
        self.refusal: RequestRejected | None = None
        self.status = Status("connecting")
        self.followers: weakref.WeakSet[ClosedBarStream] = weakref.WeakSet()

    def subscribe_message(self, number: int) -> dict[str, Any]:
        """Return the message that subscribes."""
        self.asked, self.refusal = number, None
        request = {"type": "subscribe", "id": number, **self.named, "mode": "closed", "fields": FIELDS}
        return request | {"corrections": True, "markets": True}

    def on_bar_message(self, message: Any) -> None:
        """Apply `update` or `correction`."""
        bar = MarketBar(str(message["symbol"]), Bar.from_wire(message["bar"]))
        for follower in list(self.followers):
            follower.queue_bar(bar, is_correction=message["type"] == "correction")

    def on_markets_message(self, message: Any) -> None:
        """Apply `markets`: a complete list, or a change of it."""
        before = self.markets
        if "symbols" in message:
            self.markets = tuple(map(str, message["symbols"]))
        else:
            kept = [symbol for symbol in before if symbol not in message["removed"]]
            self.markets = (*kept, *map(str, message["added"]))
        added = [symbol for symbol in self.markets if symbol not in set(before)]
        removed = [symbol for symbol in before if symbol not in set(self.markets)]
        for follower in list(self.followers):
            follower.markets_changed(added, removed)

    def on_refused(self, error: RequestRejected) -> None:
        """Record that the subscription was permanently refused."""
        self.refusal = error
        self.set_status(Status("refused", message=str(error)))

    def set_status(self, status: Status) -> None:
        """Set the status, and notify the streams if it changed."""
        if status != self.status:
            self.status = status
            for follower in list(self.followers):
                follower.status_changed(status)


class ClosedBarStream:
    """The closed bars of all markets that a pattern selects: `async for symbol, bar in stream`.

    You get each bar once, when it is final, in the order of time of each market. With `corrections` you also get bars
    that were revised, or that became final after a newer one. Bars that close while the connection is lost are not
    delivered afterwards: read them with `Client.history` when `status` is `live` again.
    """

    def __init__(
        self,
        topic: PatternSubscription,
        *,
        corrections: bool,
        on_markets: Callable[[Sequence[str], Sequence[str]], None] | None,
        on_status: Callable[[Status], None] | None,
        ended: Callable[[PatternSubscription], None],
    ) -> None:
        # Also called when the stream is no longer referenced, as after `break`.
        self._ended = weakref.finalize(self, ended, topic)
        self._ended.atexit = False
        self._topic = topic
        self._corrections = corrections
        self._on_markets = on_markets
        self._on_status = on_status
        self._waiting: deque[MarketBar] = deque()
        self._overflow: RequestRejected | None = None
        self._changed = asyncio.Event()
        self._closed = False
        topic.followers.add(self)
        if topic.markets and on_markets is not None:
            on_markets(topic.markets, ())

    @property
    def markets(self) -> tuple[str, ...]:
        """The symbols of the selected markets, as last received from the server."""
        return self._topic.markets

    @property
    def status(self) -> Status:
        """The current status of the stream: `live` once the server has accepted the subscription."""
        return Status("closed") if self._closed else self._topic.status

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MarketBar:
        """Return the next closed bar.

        Raises:
            RequestRejected: the server refuses this subscription, or too many bars were not read.
            StopAsyncIteration: the stream was closed.
        """
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            if error := self._overflow or self._topic.refusal:
                raise error
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    def queue_bar(self, bar: MarketBar, *, is_correction: bool) -> None:
        """Queue a bar of the subscription."""
        if (is_correction and not self._corrections) or self._overflow is not None:
            return
        if len(self._waiting) >= self._topic.keep:
            self._overflow = RequestRejected(f"more than {self._topic.keep} closed bars wait to be read")
        else:
            self._waiting.append(bar)
        self._changed.set()

    def markets_changed(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Pass a change of the markets on."""
        if self._on_markets is not None and (added or removed):
            self._on_markets(added, removed)

    def status_changed(self, status: Status) -> None:
        """Pass a new status on."""
        self._changed.set()
        if self._on_status is not None:
            self._on_status(status)

    def close(self) -> None:
        """End the loop after the bars that are already queued."""
        self._closed = True
        self._topic.followers.discard(self)
        self._changed.set()
        self._ended()

    async def aclose(self) -> None:
        """Close the stream, as `close` does, for `contextlib.aclosing`."""
        self.close()
