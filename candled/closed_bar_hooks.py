"""Calls the hooks of plugins once for each closed bar, in threads of their own."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from candled.exchange import Clock
from candled.model import END_OF_TIME_MS, MINUTE, BarChange, Candle, FeedState, Interval, MarketKey
from candled.plugins import one_line

if TYPE_CHECKING:
    from candled.aggregate.live_bars import LiveBars

logger = logging.getLogger(__name__)

_MOST_QUEUED = 10_000
_SLOW_S = 1.0
_OLDEST_BARS = 1000  # a bar that is still not final after this many newer ones is not reported any more

CallHook = Callable[[MarketKey, Interval, Candle], object]


@dataclass(slots=True)
class HookCounts:
    """The calls of one plugin's hook since the start."""

    #: Calls that have ended, including those that failed.
    called: int = 0
    #: Calls that raised an exception.
    failed: int = 0
    #: Bars that were dropped because too many waited.
    dropped: int = 0
    #: The longest call, in seconds.
    longest_s: float = 0.0


class HookThread:
    """The thread that calls the hook of one plugin, a bar at a time."""

    def __init__(self, plugin: str, call: CallHook, *, most: int = _MOST_QUEUED, slow_s: float = _SLOW_S) -> None:
        self.plugin = plugin
        self.counts = HookCounts()
        self._call = call
        self._slow_s = slow_s
        self._waiting: queue.Queue[Callable[[], object] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name=f"closed bars of {plugin}", daemon=True)
        self._thread.start()

    def put(self, market: MarketKey, interval: Interval, bar: Candle) -> None:
        """Queue a call; drop it if too many wait."""
        try:
            self._waiting.put_nowait(partial(self._call, market, interval, bar))
        except queue.Full:
            self.counts.dropped += 1
            logger.warning("plugin %s: too many closed bars wait for its hook, dropping further ones", self.plugin)

    @property
    def queued(self) -> int:
        """The number of calls that wait."""
        return self._waiting.qsize()

    def stop(self, within_s: float) -> None:
        """End the thread after the queued calls, but wait for `within_s` seconds at most."""
        try:
            self._waiting.put(None, timeout=within_s)
        except queue.Full:
            return
        self._thread.join(within_s)

    def describe(self) -> dict[str, Any]:
        """Return the plugin's part of `/health?verbose`."""
        counts = self.counts
        return {
            "called": counts.called,
            "failed": counts.failed,
            "dropped": counts.dropped,
            "queued": self.queued,
            "longestSeconds": round(counts.longest_s, 1),
        }

    def _run(self) -> None:
        while (call := self._waiting.get()) is not None:
            started = time.monotonic()
            try:
                call()
            except BaseException as error:  # a plugin may raise anything, even SystemExit
                self.counts.failed += 1
                logger.error("plugin %s: candled_closed_bar failed: %s", self.plugin, one_line(error))
                logger.debug("plugin %s:", self.plugin, exc_info=error)
            self.counts.called += 1
            took_s = time.monotonic() - started
            self.counts.longest_s = max(self.counts.longest_s, took_s)
            if took_s > self._slow_s:
                logger.warning("plugin %s: candled_closed_bar took %.1f s; later bars wait", self.plugin, took_s)


class _Followed:
    """The bars of one market and interval that have been reported."""

    __slots__ = ("reported", "since_ms")

    def __init__(self, since_ms: int) -> None:
        #: All bars before this time have been reported, or need no report.
        self.since_ms = since_ms
        #: The opening times of later bars that have been reported.
        self.reported: set[int] = set()


@dataclass(eq=False)
class ClosedBarReporter:
    """Reports each bar once, when it has become final, as a listener of `bars`.

    Bars that closed before the market was first seen are not reported.
    """

    #: The newest bars of all served markets.
    bars: "LiveBars"
    #: Returns the served intervals.
    intervals: Callable[[], Sequence[Interval]]
    #: The daemon's clock: bars that closed before its time at the first look at a market are not reported.
    clock: Clock
    #: Called with each bar that has become final.
    report: Callable[[MarketKey, Interval, Candle], None]
    #: Returns True if this process reports the bars of a market.
    is_read: Callable[[MarketKey], bool]
    #: The reported bars of each market and interval that was seen.
    _followed: dict[tuple[MarketKey, Interval], _Followed] = field(default_factory=dict, init=False)

    def on_bars_changed(self, market: MarketKey, changes: Sequence[BarChange]) -> None:
        """Ignore new versions of bars: `on_finality` is called when bars become final."""

    def on_history_changed(self, market: MarketKey, interval: Interval, bars: Sequence[Candle]) -> None:
        """Report the bars that are final now."""
        self._report_closed(market, interval)

    def on_state_changed(self, market: MarketKey, feed: FeedState) -> None:
        """Ignore the state of the feed."""

    def on_finality(self, market: MarketKey) -> None:
        """Report the bars that have become final."""
        for interval in self.intervals():
            self._report_closed(market, interval)

    def forget_market(self, market: MarketKey) -> None:
        """Forget the bars of a market, which may be added again later."""
        for key in [key for key in self._followed if key[0] == market]:
            del self._followed[key]

    def _report_closed(self, market: MarketKey, interval: Interval) -> None:
        followed = self._followed.get((market, interval))
        if followed is None:
            newest = self.bars.newest_times(market, MINUTE, 1)
            since_ms = interval.floor(max([self.clock.now_ms(), *newest]))
            followed = self._followed[market, interval] = _Followed(since_ms)
        bars = self.bars.bars_between(market, interval, followed.since_ms, END_OF_TIME_MS)
        for bar in bars:
            if bar.open_ms not in followed.reported and self.bars.is_final(market, interval, bar):
                followed.reported.add(bar.open_ms)
                if self.is_read(market):
                    self.report(market, interval, bar)
        self._forget_oldest(market, interval, followed, bars)

    def _forget_oldest(
        self, market: MarketKey, interval: Interval, followed: _Followed, bars: Sequence[Candle]
    ) -> None:
        """Move the start past the bars that need no further attention."""
        end_ms = bars[-1].open_ms if bars else followed.since_ms
        while followed.since_ms < end_ms and (
            self.bars.is_range_final(market, followed.since_ms, followed.since_ms + interval.ms)
            or end_ms - followed.since_ms > _OLDEST_BARS * interval.ms
        ):
            followed.reported.discard(followed.since_ms)
            followed.since_ms += interval.ms
