"""A stream of the closed bars of many markets, and the subscription shared by several streams of one pattern."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .subscription import Stream, Subscription
from .values import Bar, MarketBar, RequestRejected, Status

FIELDS = ["final", "rev", "src"]


class PatternSubscription(Subscription["ClosedBarStream"]):
    """The subscription to the closed bars of the markets that a pattern selects."""

    def __init__(self, named: dict[str, str], keep: int) -> None:
        super().__init__(named)
        # number of bars that may wait for a slow reader
        self.keep = keep
        # the selected markets, in the server's order
        self.markets: tuple[str, ...] = ()

    def subscribe_message(self, number: int) -> dict[str, Any]:
        """Return the message that subscribes."""
        self.asked, self.refusal = number, None
        request = {"type": "subscribe", "id": number, **self.named, "mode": "closed", "fields": FIELDS}
        return request | {"corrections": True, "markets": True}

    def on_acknowledged(self) -> None:
        """Apply `subscribed`."""
        self.set_status(Status("live"))

    def on_message(self, message: Any) -> None:
        """Apply `markets`, `update` or `correction`."""
        if message["type"] == "markets":
            self._apply_markets(message)
            return
        bar = MarketBar(str(message["symbol"]), Bar.from_wire(message["bar"]))
        for follower in list(self.followers):
            follower.queue_bar(bar, is_correction=message["type"] == "correction")

    def _apply_markets(self, message: Any) -> None:
        """Apply a complete list of the markets, or a change of it."""
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


class ClosedBarStream(Stream[MarketBar]):
    """The closed bars of all markets that a pattern selects: `async for symbol, bar in stream`.

    You get each bar once, when it is final, in the order of time of each market. With `corrections` you also get bars
    that were revised, or that became final after a newer one. Bars that close while the connection is lost are not
    delivered afterwards: read them with `Client.history` when `status` is `live` again, as it is once the server has
    accepted the subscription.
    """

    _topic: PatternSubscription

    def __init__(
        self,
        topic: PatternSubscription,
        *,
        corrections: bool,
        on_markets: Callable[[Sequence[str], Sequence[str]], None] | None,
        on_status: Callable[[Status], None] | None,
        ended: Callable[[PatternSubscription], None],
    ) -> None:
        super().__init__(topic, on_status, ended)
        self._corrections = corrections
        self._on_markets = on_markets
        self._waiting: deque[MarketBar] = deque()
        if topic.markets and on_markets is not None:
            on_markets(topic.markets, ())

    @property
    def markets(self) -> tuple[str, ...]:
        """The symbols of the selected markets, as last received from the server."""
        return self._topic.markets

    def _take_next(self) -> MarketBar | None:
        return self._waiting.popleft() if self._waiting else None

    def queue_bar(self, bar: MarketBar, *, is_correction: bool) -> None:
        """Queue a bar of the subscription."""
        if (is_correction and not self._corrections) or self._error is not None:
            return
        if len(self._waiting) >= self._topic.keep:
            self._error = RequestRejected(f"more than {self._topic.keep} closed bars wait to be read")
        else:
            self._waiting.append(bar)
        self._changed.set()

    def markets_changed(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Pass a change of the markets on."""
        if self._on_markets is not None and (added or removed):
            self._on_markets(added, removed)
