"""One market in memory: its bars and the state of its feed."""

from collections.abc import Sequence

from candled.bus import Message, Position
from candled.model import MINUTE, Decimals, FeedState, Interval, Range

from .aggregator import Aggregator
from .feed_log import FeedLog

AT_FIRST = 120  # bars of each interval loaded at startup and kept until more are requested; enough for most charts
_MINUTES_KEPT = 1000  # while the store is unavailable, they exist only in memory


def new_ladder(intervals: Sequence[Interval]) -> Aggregator:
    """Return an empty aggregator with the minimum capacity, for a market with few requests."""
    ladder = Aggregator(intervals, AT_FIRST)
    ladder.series_of(MINUTE).grow_capacity(_MINUTES_KEPT)
    return ladder


class MarketBars:
    """One market: its bars, the received part of its feed, and the reads in progress for it."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self.ladder = new_ladder(intervals)
        self.track = FeedLog()
        #: While the market `is_behind`: the last message before the range being read.
        self.shown: Position | None = None
        self.feed = FeedState("warming", 0, "starting")
        #: From the exchange, once a message contained them.
        self.decimals = Decimals()
        #: How often bars may have become final.
        self.settlements = 0
        #: True once the newest bars are loaded from the store.
        self.seeded = False
        #: True while changed ranges are read from the store.
        self.reading = False
        #: True while lost messages are being recovered.
        self.catching_up = False
        #: The start of the range that lost messages may have changed.
        self.lost_from_ms = 0
        #: The time since which history is complete; None if unknown.
        self.complete_from_ms: int | None = None
        #: The same from a message; used once its minutes are read.
        self.found_complete_from_ms: int | None = None
        #: The time from which bars are shown. None is final before `complete_from_ms`, because minutes may be missing
        #: there.
        self.served_from_ms: int | None = None
        #: A start received in a message; used once its minutes are read.
        self.found_served_from_ms: int | None = None
        #: Messages received before the bars were loaded.
        self.early: list[tuple[Message, Position]] = []
        #: The range to be read again; None if there is none.
        self.stale: Range | None = None
        #: The range being read again.
        self.under_way: Range | None = None
        #: Counts changes of the past, so that a read that overlapped one is discarded.
        self.generation = 0

    @property
    def is_behind(self) -> bool:
        """True if the store is being read because of messages received or lost."""
        return self.stale is not None or self.reading or self.track.is_broken

    @property
    def position(self) -> Position | None:
        """The newest position in the feed up to which all changes are contained in the bars."""
        return self.shown if self.is_behind else self.track.position

    def is_settled(self, start_ms: int, end_ms: int) -> bool:
        """Return whether every minute of the range is final or known not to exist.

        The final ones must also be in memory in their last version.
        """
        if self.complete_from_ms is None or start_ms < self.complete_from_ms:
            return False
        if not self.track.metadata.is_settled(start_ms, end_ms):
            return False
        if self.track.is_broken and end_ms > self.lost_from_ms:
            return False
        unread = (span for span in (self.stale, self.under_way) if span is not None)
        return not any(start_ms < span.end_ms and span.start_ms < end_ms for span in unread)
