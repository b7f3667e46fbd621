"""The markets of an exchange that wait for a request, the most urgent first. Pure."""

import heapq
import itertools
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from .coverage import Urgency

if TYPE_CHECKING:
    from .market import MarketIngest


class Place(IntEnum):
    """The order of requests with the same purpose. Lower values go first."""

    AWAITED = 0  # clients wait for the market
    USUAL = 1
    LATE = 2  # the stream is about to send the newest minutes; if REST is asked after that, one request is enough


class _Entry(NamedTuple):
    #: The urgency by which it is queued; a `LATE` one may be less urgent than its `urgency`.
    rank: Urgency
    place: Place
    #: The order of arrival, different for each entry.
    order: int
    market: "MarketIngest"
    #: The urgency of the market's own request.
    urgency: Urgency


class RequestQueue:
    """Markets by the purpose of their requests, then by their place, then by order of arrival."""

    def __init__(self) -> None:
        #: A heap that may contain entries of markets that were removed or moved ahead.
        self._heap: list[_Entry] = []
        self._entries: dict[MarketIngest, _Entry] = {}
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def add_market(self, market: "MarketIngest", urgency: Urgency, place: Place) -> None:
        """Add a market. A `LATE` one goes behind the requests of all others up to `Urgency.WEEK`."""
        rank = max(urgency, Urgency.WEEK) if place is Place.LATE else urgency
        entry = self._entries[market] = _Entry(rank, place, next(self._order), market, urgency)
        heapq.heappush(self._heap, entry)

    def move_ahead(self, market: "MarketIngest", place: Place) -> None:
        """Move a market of the queue to a place before its own: clients wait for it now, or its snapshot has come."""
        entry = self._entries.get(market)
        if entry is not None and place < entry.place:
            self.add_market(market, entry.urgency, place)

    def remove_market(self, market: "MarketIngest") -> None:
        """Remove a market, if it waits."""
        self._entries.pop(market, None)

    @property
    def first(self) -> tuple[Urgency, Place] | None:
        """The urgency and place of the first market; None if there is none."""
        while self._heap and self._entries.get(self._heap[0].market) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][:2] if self._heap else None

    def take_first(self) -> "MarketIngest | None":
        """Remove the first market, and return it; None if there is none."""
        if self.first is None:
            return None
        market = heapq.heappop(self._heap).market
        del self._entries[market]
        return market
