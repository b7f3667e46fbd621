"""The sources that handlers make their answers from."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from candled.exchange import Clock
from candled.model import Decimals, Interval, Market, MarketKey
from candled.store.history import HistoryReader
from candled.tasks import Pace

from .catalog import MarketCatalog
from .errors import UnknownSymbol

if TYPE_CHECKING:
    from .offered_markets import OfferedMarkets
    from .pages import BarReader

T = TypeVar("T")

_MARKET_US = 50  # to describe a market, on a slow machine


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """The sources of answers."""

    #: The served markets and intervals.
    catalog: MarketCatalog
    #: The reader of bars, from memory and the store.
    pages: "BarReader"
    #: The reads of the store, for gaps and the beginnings of history.
    stored: HistoryReader
    #: The daemon's clock.
    clock: Clock
    #: The decimals that the exchange declares for a market.
    decimals: Callable[[MarketKey], Decimals]
    #: The newest facts about a market from the exchange's list; None if this process has not read it.
    facts: Callable[[MarketKey], Market | None] = lambda market: None
    #: Returns True if an exchange's candles are not the present ones of its markets, as in a replay.
    is_simulated: Callable[[str], bool] = lambda exchange: False
    #: The markets that clients may start.
    offered: "OfferedMarkets | None" = None
    #: Waits for the first bars of a market that has just been started, given the interval and the number of bars.
    wait_for_bars: Callable[[MarketKey, Interval, int], Awaitable[None]] | None = None
    #: The decimals seen in a market's candles.
    seen_decimals: Callable[[MarketKey], Decimals]

    def spread(self, markets: Iterable[T]) -> AsyncIterator[T]:
        """Yield markets to be described, in several passes of the loop. The catalog may change meanwhile."""
        return Pace(self.clock).spread(markets, _MARKET_US)

    def note_request(self, market: MarketKey) -> bool:
        """Record a request for a market, which stays started; return True if its first bars may not be loaded yet."""
        if self.offered is None:
            return False
        self.offered.demand.note_request(market)
        return self.offered.demand.is_starting(market)

    def may_be_offered(self, refusal: UnknownSymbol) -> bool:
        """Return whether the market of a refused request can be started, or may be in a list that is not known yet."""
        offered = self.offered
        return offered is not None and (offered.find(refusal) is not None or bool(offered.awaited_lists(refusal)))

    def likely_decimals(self, market: MarketKey) -> Decimals:
        """Return the decimals that the exchange declares for a market, or else those seen in its candles."""
        return self.decimals(market).or_else(self.seen_decimals(market))
