"""The bars of one market in memory, with what is known of its feed."""

from collections.abc import Sequence

from candled.bus import Message, Position
from candled.model import MINUTE, Decimals, FeedState, Interval, Range

from .aggregator import Aggregator
from .feed_log import FeedLog

AT_FIRST = 120  # bars of each interval loaded at start, and kept until more are asked for: what most charts ask for
_MINUTES_KEPT = 1000  # while the store is away they are nowhere else


def new_ladder(intervals: Sequence[Interval]) -> Aggregator:
    """An empty ladder that keeps what is kept of a market nobody asks much of."""
    ladder = Aggregator(intervals, AT_FIRST)
    ladder.series_of(MINUTE).grow_capacity(_MINUTES_KEPT)
    return ladder


class MarketBars:
    """What is known of one market: its bars, how far its feed was followed, and what is being read for it."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self.ladder = new_ladder(intervals)
        self.track = FeedLog()
        self.shown: Position | None = None  # while it `is_behind`: the last message before what is being read
        self.feed = FeedState("warming", 0, "starting")
        self.decimals = Decimals()  # what the exchange says, once a message told
        self.settlements = 0  # how often bars may have become final
        self.seeded = False
        self.reading = False
        self.catching_up = False
        self.lost_from_ms = 0
        self.complete_from_ms: int | None = None
        self.found_complete_from_ms: int | None = None  # not believed before it is read
        #: since when bars are shown; none is final before `complete_from_ms`, as minutes may be missing there
        self.served_from_ms: int | None = None
        #: a beginning received in a message; shown once its minutes are read
        self.found_served_from_ms: int | None = None
        self.early: list[tuple[Message, Position]] = []
        self.stale: Range | None = None
        self.under_way: Range | None = None  # what is being read again
        self.generation = 0  # counts changes of the past, so that a read that overlapped one is not believed

    @property
    def is_behind(self) -> bool:
        """Whether the store is being read for something that messages told of."""
        return self.stale is not None or self.reading or self.track.is_broken

    @property
    def position(self) -> Position | None:
        """The newest message of the feed of which, and of all before it, everything is in the bars."""
        return self.shown if self.is_behind else self.track.position

    def is_settled(self, start_ms: int, end_ms: int) -> bool:
        """Whether every minute of `[start_ms, end_ms)` is final or known not to exist, and is here as it ended."""
        if self.complete_from_ms is None or start_ms < self.complete_from_ms:
            return False
        if not self.track.facts.is_settled(start_ms, end_ms):
            return False
        if self.track.is_broken and end_ms > self.lost_from_ms:
            return False
        unread = (span for span in (self.stale, self.under_way) if span is not None)
        return not any(start_ms < span.end_ms and span.start_ms < end_ms for span in unread)
