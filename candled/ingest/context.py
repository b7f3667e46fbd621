"""The parameters that all parts of one exchange's ingest share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from candled.exchange import Clock, Exchange

from .counts import IngestCounts
from .ingest_clock import IngestClock

if TYPE_CHECKING:
    from candled.store.ingest_store import IngestStore

    from .http import HttpClient


@dataclass(frozen=True, slots=True)
class IngestContext:
    """One exchange, its clock, and where its data goes."""

    #: The name of the exchange in the settings.
    name: str
    exchange: Exchange
    clock: Clock
    #: The exchange's time.
    time: IngestClock
    store: "IngestStore"
    http: "HttpClient"
    counts: IngestCounts
