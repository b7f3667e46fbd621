"""What one loop over bars gets, and what several of them on the same topic share."""

import asyncio
import heapq
import weakref
from collections.abc import Callable
from datetime import datetime
from typing import Any, Self, get_args

from .series import Series
from .values import Bar, Bars, RequestRejected, State, Status, moment, wire_time

FIELDS = ["final", "seq", "rev", "src"]  # what an extended server adds to bars and messages


class BarSubscription:
    """What the server sends of one interval of one market, whoever of this client follows it."""

    def __init__(self, symbol: str, interval: str, exchange: str | None, wanted: int, keep: int) -> None:
        self.named = {"symbol": symbol, "interval": interval} | ({"exchange": exchange} if exchange else {})
        self.wanted = wanted
        self.series = Series(max(keep, wanted))
        self.position: dict[str, Any] | None = None
        self.asked: int | None = None
        self.is_acknowledged = False
        self.is_settled = False  # this connection's `initial` or `resumed` has come
        self.refusal: RequestRejected | None = None
        self.status = Status("connecting")
        self.followers: weakref.WeakSet[BarStream] = weakref.WeakSet()
        self._feed: Status | None = None

    def subscribe_message(self, number: int) -> dict[str, Any]:
        """The message that subscribes, to everything that an extended server offers."""
        self.asked, self.is_acknowledged, self.is_settled, self.refusal = number, False, False, None
        request = {"type": "subscribe", "id": number, **self.named, "initialBars": self.wanted}
        request |= {"fields": FIELDS, "status": True, "corrections": True}
        last = self.series.last_bar
        if self.position is not None and last is not None:
            request["resume"] = self.position | {"time": wire_time(last.time)}
        return request

    def on_bars_message(self, message: Any) -> None:
        """Take `initial`, `resumed`, `update` or `correction`."""
        kind = message["type"]
        if kind in ("initial", "resumed"):
            self.is_settled = True
        elif not self.is_settled:
            return  # of a subscription before this one
        changed = self._apply_message(kind, message)
        if "epoch" in message:
            self.position = {"epoch": message["epoch"], "seq": int(message["seq"])}
        elif kind == "initial":
            self.position = None
        self.set_status(self._feed or Status("live"))
        for follower in list(self.followers):
            follower.on_bars_changed(changed)

    def on_status_message(self, message: Any) -> None:
        """Take `status`."""
        state = message["state"]
        if state in get_args(State):
            self._feed = Status(state, moment(message["since"]), reason=str(message.get("reason", "")))
            if self.is_settled or state != "live":  # until bars are there, a live feed is but loading
                self.set_status(self._feed)

    def on_refused(self, error: RequestRejected) -> None:
        """The subscription was refused for good, or all of them were."""
        self.refusal = error
        self.set_status(Status("refused", message=str(error)))

    def on_connection_lost(self, status: Status) -> None:
        """The connection is not there."""
        self.is_settled, self._feed = False, None
        self.set_status(status)

    def set_status(self, status: Status) -> None:
        """The status is another one, perhaps."""
        if status != self.status:
            self.status = status
            for follower in list(self.followers):
                follower.status_changed(status)

    def _apply_message(self, kind: str, message: Any) -> list[Bar]:
        match kind:
            case "initial":
                return self.series.replace_all([Bar.from_wire(bar) for bar in message["bars"]])
            case "resumed":
                return self.series.merge_bars(Bar.from_wire(bar) for bar in message["bars"])
            case "correction":
                return self.series.merge_bars([Bar.from_wire(message["bar"])])
            case _:
                return self.series.apply_update(Bar.from_wire(message["bar"]))


class BarStream:
    """The bars of one market and interval as they come: `async for bar in stream`.

    At first the bars that the server has, then the newest bar whenever it moves. Time never runs backwards, but for
    revised older bars where `corrections` are wanted. Who reads slowly gets each bar in its newest state, not every
    state between. With `final_only` each bar comes once, when it is final.
    """

    def __init__(
        self,
        topic: BarSubscription,
        *,
        final_only: bool,
        corrections: bool,
        on_status: Callable[[Status], None] | None,
        ended: Callable[[BarSubscription], None],
    ) -> None:
        # Also when nobody holds the stream any more, as after `break`.
        self._ended = weakref.finalize(self, ended, topic)
        self._ended.atexit = False
        self._topic = topic
        self._final_only = final_only
        self._corrections = corrections
        self._on_status = on_status
        self._waiting: dict[datetime, Bar] = {}
        self._times: list[datetime] = []  # of what waits; a heap
        self._through: datetime | None = None  # the newest bar that was given, or with final_only that waits
        self._changed = asyncio.Event()
        self._closed = False
        topic.followers.add(self)
        self.on_bars_changed(topic.series.bars)

    @property
    def bars(self) -> Bars:
        """All bars that are held: those that a fresh subscription would get, and what came since."""
        return Bars(self._topic.series.bars)

    @property
    def status(self) -> Status:
        return Status("closed") if self._closed else self._topic.status

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Bar:
        """The next bar.

        Raises:
            RequestRefused: the server refuses this subscription.
        """
        while not self._times:
            if self._closed:
                raise StopAsyncIteration
            if self._topic.refusal is not None:
                raise self._topic.refusal
            self._changed.clear()
            await self._changed.wait()
        time = heapq.heappop(self._times)
        if not self._final_only:
            self._through = time if self._through is None else max(time, self._through)
        return self._waiting.pop(time)

    def on_bars_changed(self, changed: list[Bar]) -> None:
        """Bars of the series changed."""
        through = self._through
        if self._final_only:
            over = self._topic.series.over_after(through)
            revised = [bar for bar in changed if through is not None and bar.time <= through]
            changed = [*revised, *over]
            self._through = over[-1].time if over else through
        for bar in changed:
            if bar.time not in self._waiting:
                if not self._corrections and self._was_given(bar, through):
                    continue
                heapq.heappush(self._times, bar.time)
            self._waiting[bar.time] = bar
        self._changed.set()

    def status_changed(self, status: Status) -> None:
        self._changed.set()
        if self._on_status is not None:
            self._on_status(status)

    def close(self) -> None:
        """End the loop; bars that wait are still given."""
        self._closed = True
        self._topic.followers.discard(self)
        self._changed.set()
        self._ended()

    async def aclose(self) -> None:
        """As `close`, for `contextlib.aclosing`."""
        self.close()

    def _was_given(self, bar: Bar, through: datetime | None) -> bool:
        """Whether a bar is older than the newest that was given (a final one: is given once)."""
        return through is not None and (bar.time <= through if self._final_only else bar.time < through)
