"""One market in memory: its bars and the state of its feed."""

from collections.abc import Sequence
from typing import Protocol

from candled.bus import Message
from candled.model import MINUTE, BarChange, Candle, Decimals, FeedState, Interval, MarketKey, Position, Range

from .aggregator import Aggregator
from .feed_log import FeedLog

AT_FIRST = 120  # bars of each interval loaded at startup and kept until more are requested; enough for most charts
_MINUTES_KEPT = 1000  # while the store is unavailable, they exist only in memory


def new_aggregator(intervals: Sequence[Interval]) -> Aggregator:
    """Return an empty aggregator with the minimum capacity, for a market with few requests."""
    aggregator = Aggregator(intervals, AT_FIRST)
    aggregator.series_of(MINUTE).grow_capacity(_MINUTES_KEPT)
    return aggregator


class BarsListener(Protocol):
    """A receiver of changes of bars."""

    def on_bars_changed(self, market: MarketKey, changes: Sequence[BarChange]) -> None:
        """Handle bars that changed with one minute, shortest interval first. They may be older bars."""

    def on_history_changed(self, market: MarketKey, interval: Interval, bars: Sequence[Candle]) -> None:
        """Handle changed bars of the past, or a longer history. `bars` are the changed ones that are in memory."""

    def on_finality(self, market: MarketKey) -> None:
        """Handle bars that may have become final."""

    def on_state_changed(self, market: MarketKey, feed: FeedState) -> None:
        """Handle a change of the feed's state, or of the reason for it."""


class MarketBars:
    """One market: its bars, the received part of its feed, and the reads in progress for it."""

    def __init__(
        self,
        key: MarketKey,
        intervals: Sequence[Interval],
        listeners: Sequence[BarsListener],
        *,
        first_version: int = 0,
    ) -> None:
        """Create a market without bars. Its counters begin at `first_version`, so that they differ from former ones."""
        self.key = key
        self._listeners = listeners
        self.aggregator = new_aggregator(intervals)
        self.feed_log = FeedLog()
        #: While the market `is_behind`: the last message before the range being read.
        self.position_before_read: Position | None = None
        self.feed = FeedState("warming", 0, "starting")
        #: From the exchange, once a message contained them.
        self.decimals = Decimals()
        #: Counts the moments at which bars may have become final.
        self.finality_count = first_version
        #: True if each minute of the week was stored, or requested in vain, at the last check; and the time of that
        #: check, monotonic seconds.
        self.is_requested = False
        self.requests_checked_at = float("-inf")
        #: True once a client has read bars, which may have to be updated from then on.
        self.has_readers = False
        #: The number of clients that wait for bars.
        self.waiting = 0
        #: True once the newest bars are loaded from the store.
        self.is_seeded = False
        #: True while changed ranges are read from the store.
        self.is_rereading = False
        #: True while lost messages are being recovered.
        self.is_recovering = False
        #: The start of the range that lost messages may have changed.
        self.lost_from_ms = 0
        #: The part of the feed's gap that the last recovery of lost messages left out; None if there is none.
        self.unread: Range | None = None
        #: The time since which history is complete; None if unknown.
        self.complete_from_ms: int | None = None
        #: The same from a message; used once its minutes are read.
        self.found_complete_from_ms: int | None = None
        #: The time from which bars are served; None if unknown. Bars before `complete_from_ms` are not final, because
        #: minutes may be missing there.
        self.served_from_ms: int | None = None
        #: A start received in a message; used once its minutes are read.
        self.found_served_from_ms: int | None = None
        #: Messages received before the bars were loaded.
        self.queued: list[tuple[Message, Position]] = []
        #: The range to be read again; None if there is none.
        self.stale: Range | None = None
        #: The range being read again.
        self.being_reread: Range | None = None
        #: Counts changes of the past, so that a read that overlapped one is discarded.
        self.past_version = first_version
        for interval in self.aggregator.levels:
            self.aggregator.series_of(interval).revision = first_version

    @property
    def is_behind(self) -> bool:
        """True if the store is being read because of messages received or lost."""
        return self.stale is not None or self.is_rereading or self.feed_log.is_broken

    @property
    def position(self) -> Position | None:
        """The newest position in the feed up to which all changes are contained in the bars."""
        return self.position_before_read if self.is_behind else self.feed_log.position

    def is_range_final(self, start_ms: int, end_ms: int) -> bool:
        """Return whether every minute of the range is final or known not to exist.

        The final ones must also be in memory in their last version.
        """
        if self.complete_from_ms is None or start_ms < self.complete_from_ms:
            return False
        if not self.feed_log.metadata.is_range_final(start_ms, end_ms):
            return False
        if self.feed_log.is_broken and end_ms > self.lost_from_ms:
            return False
        unread = (span for span in (self.stale, self.being_reread) if span is not None)
        return not any(start_ms < span.end_ms and span.start_ms < end_ms for span in unread)

    def has_bars(self, interval: Interval, count: int) -> bool:
        """Return whether the newest `count` bars are in memory, or all that exist."""
        if not self.is_seeded:
            return False
        series = self.aggregator.series_of(interval)
        if series.capacity < count:  # a bar that is in memory now could be dropped before it is read
            return False
        shown_from_ms = self.served_from_ms or 0
        return series.since_ms <= shown_from_ms or len(series.newest_times(count, shown_from_ms)) >= count

    def most_to_reread(self, interval: Interval) -> int:
        """Return the number of newest bars to read again after a long repair.

        As long as no client has read any, the bars of the start are enough: the others need not be in memory.
        """
        is_first = interval == MINUTE and not self.has_readers
        series = self.aggregator.series_of(interval)
        return self.aggregator.parts_needed(interval, AT_FIRST) if is_first else series.capacity

    def update_minute(self, minute: Candle) -> bool:
        """Apply a version of a minute and notify the listeners; return False if it is older than memory."""
        changes = self.aggregator.apply_minute(minute, self.feed_log.change_id)
        if changes is None:
            return False
        if self.served_from_ms is not None:
            shown = [change for change in changes if change.bar.open_ms >= self.served_from_ms]
            for listener in self._listeners:
                listener.on_bars_changed(self.key, shown)
        return True

    def set_state(self, feed: FeedState) -> None:
        """Set the state of the feed, and notify the listeners of a change."""
        known, self.feed = self.feed, feed
        if feed[:3] != known[:3]:  # the wording of a problem may differ each time
            for listener in self._listeners:
                listener.on_state_changed(self.key, feed)

    def notify_finality(self) -> None:
        """Notify the listeners that bars may have become final."""
        self.finality_count += 1
        for listener in self._listeners:
            listener.on_finality(self.key)

    def notify_history_changed(self, interval: Interval, bars: Sequence[Candle]) -> None:
        """Notify the listeners that a range was read again; `bars` are the changed ones in memory."""
        for listener in self._listeners:
            listener.on_history_changed(self.key, interval, bars)
