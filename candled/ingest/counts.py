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
    #: Events with candles.
    candle_events: int = 0
    #: Frames that could not be read.
    malformed_frames: int = 0
    #: Errors that the exchange sent about whole connections.
    complaints: int = 0
    #: Seconds from the send time in a frame to its receipt, on the estimated clock of the exchange. Only some frames
    #: are measured.
    lag_s: Histogram = field(default_factory=lambda: Histogram(LAG_S))
    #: Final minutes that were compared with REST for the first time.
    checked: int = 0
    #: Those of the compared minutes that differed from REST.
    mismatched: int = 0
    #: Minutes that were missing and are stored now.
    repaired: int = 0
    #: Comparisons of a market with the store.
    store_audits: int = 0
    #: Minutes that the store had lost, as these comparisons showed.
    lost_minutes: int = 0
    #: Final minutes that were corrected, of markets that are closed.
    closed_revisions: int = 0
    #: Rows that are not valid candles, of markets that are closed.
    closed_invalid_rows: int = 0
