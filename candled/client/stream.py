"""A stream of bars, and the subscription shared by several streams of the same topic."""

import heapq
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any, get_args

from .series import Series
from .subscription import Stream, Subscription
from .values import Bar, Bars, State, Status, moment, wire_time

FIELDS = ["final", "seq", "rev", "src"]  # optional fields of a server with the extensions


class BarSubscription(Subscription["BarStream"]):
    """The subscription to one interval of one market."""

    def __init__(self, named: dict[str, str], wanted: int, keep: int) -> None:
        super().__init__(named)
        # number of bars to start with
        self.wanted = wanted
        self.series = Series(max(keep, wanted))
        # epoch and seq of the last message, for `resume`; None if the next subscription must get all bars
        self.position: dict[str, Any] | None = None
        # True once `initial` or `resumed` has arrived on this connection
        self.has_bars = False
        # the last `status` message on this connection
        self._feed: Status | None = None

    def subscribe_message(self, number: int) -> dict[str, Any]:
        """Return the message that subscribes, with all extensions."""
        self.asked, self.is_repeated_by_server, self.has_bars, self.refusal = number, False, False, None
        request = {"type": "subscribe", "id": number, **self.named, "initialBars": self.wanted}
        request |= {"fields": FIELDS, "status": True, "corrections": True}
        last = self.series.last_bar
        if self.position is not None and last is not None:
            request["resume"] = self.position | {"time": wire_time(last.time)}
        return request

    def on_acknowledged(self) -> None:
        """Apply `subscribed`: the server sends the bars as soon as it has them."""
        self.is_repeated_by_server = True

    def on_bars_message(self, message: Any) -> None:
        """Apply `initial`, `resumed`, `update` or `correction`."""
        kind = message["type"]
        if kind in ("initial", "resumed"):
            self.has_bars = True
        elif not self.has_bars:
            return  # from an earlier subscription
        changed = self._apply_message(kind, message)
        if "epoch" in message:
            self.position = {"epoch": message["epoch"], "seq": int(message["seq"])}
        elif kind == "initial":
            self.position = None
        self.set_status(self._feed or Status("live"))
        for follower in list(self.followers):
            follower.queue_bars(changed)

    def on_status_message(self, message: Any) -> None:
        """Apply `status`."""
        state = message["state"]
        if state in get_args(State):
            self._feed = Status(state, moment(message["since"]), reason=str(message.get("reason", "")))
            if self.has_bars or state != "live":  # a live feed is still `loading` until its bars arrive
                self.set_status(self._feed)

    def on_connection_lost(self, status: Status) -> None:
        """Record that the connection is lost."""
        self.has_bars, self._feed = False, None
        super().on_connection_lost(status)

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


class BarStream(Stream[Bar]):
    """The bars of one market and interval as they change: `async for bar in stream`.

    First you get the bars that the server has, then the newest bar whenever it changes. Time never runs backwards,
    except for revised older bars with `corrections`. If you read slowly, you get each bar in its newest state, not in
    every state. With `final_only` you get each bar once, when it is final.
    """

    _topic: BarSubscription

    def __init__(
        self,
        topic: BarSubscription,
        *,
        final_only: bool,
        corrections: bool,
        on_status: Callable[[Status], None] | None,
        ended: Callable[[BarSubscription], None],
    ) -> None:
        super().__init__(topic, on_status, ended)
        self._final_only = final_only
        self._corrections = corrections
        self._waiting: dict[datetime, Bar] = {}
        self._times: list[datetime] = []  # of the bars in `_waiting`; a heap
        self._through: datetime | None = None  # the newest bar yielded; with final_only, the newest one queued
        self.queue_bars(topic.series.bars)

    @property
    def bars(self) -> Bars:
        """All bars in memory: those of a new subscription, and all newer ones."""
        return Bars(self._topic.series.bars)

    @property
    def is_loaded(self) -> bool:
        """True while `bars` are those that the server shows, perhaps none."""
        return self._topic.has_bars

    async def changes(self) -> AsyncIterator[Bars]:
        """Yield the bars that changed, oldest first, now and whenever bars or the status change.

        The list may be empty. `status` and `is_loaded` are then up to date. Ends as `async for bar in stream` does.
        """
        while True:
            self._changed.clear()
            bars = Bars(list(iter(self._take_next, None)))
            is_closed, refusal = self._closed, self._topic.refusal
            yield bars
            if is_closed:
                return
            if refusal is not None:
                raise refusal
            await self._changed.wait()

    def _take_next(self) -> Bar | None:
        if not self._times:
            return None
        time = heapq.heappop(self._times)
        if not self._final_only:
            self._through = time if self._through is None else max(time, self._through)
        return self._waiting.pop(time)

    def queue_bars(self, changed: list[Bar]) -> None:
        """Queue changed bars of the series."""
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

    def _was_given(self, bar: Bar, through: datetime | None) -> bool:
        """Return True if a bar is older than the newest one yielded, or, with `final_only`, the same."""
        return through is not None and (bar.time <= through if self._final_only else bar.time < through)
