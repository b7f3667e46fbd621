"""Counts of one exchange since the start of the process, for metrics. They never decrease, even if feeds end."""

from collections import Counter
from dataclasses import dataclass, field

from candled.histogram import Histogram

LAG_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class IngestCounts:
    """The counts of one exchange, over all shards that this process has read."""

    #: Connections of feeds that were made.
    connects: int = 0
    #: Ends of feeds, by one of `candled.ingest.feeds.INTERRUPTION_KINDS`.
    interruptions: Counter[str] = field(default_factory=Counter)
    #: Events with candles, frames that could not be read, and errors that the exchange sent about whole connections.
    candle_events: int = 0
    malformed_frames: int = 0
    complaints: int = 0
    #: Seconds from the send time in a frame to its receipt, on the estimated clock of the exchange. Only some frames
    #: are measured.
    lag_s: Histogram = field(default_factory=lambda: Histogram(LAG_S))
    #: Final minutes that were compared with REST for the first time, and those that differed.
    checked: int = 0
    mismatched: int = 0
    #: Minutes that were missing and are stored now.
    repaired: int = 0
    #: Comparisons of a market with the store, and the minutes that the store had lost.
    store_audits: int = 0
    lost_minutes: int = 0
    #: Final minutes that were corrected, and rows that are not valid candles, of markets that are closed.
    closed_revisions: int = 0
    closed_invalid_rows: int = 0
