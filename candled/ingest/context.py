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
    #: The exchange, made by its plugin.
    exchange: Exchange
    #: The daemon's clock.
    clock: Clock
    #: The exchange's time.
    time: IngestClock
    #: The store, for candles and coverage.
    store: "IngestStore"
    #: The client for the REST API of the exchange, within its budgets.
    http: "HttpClient"
    #: The counts for metrics, shared by all shards of the exchange.
    counts: IngestCounts
