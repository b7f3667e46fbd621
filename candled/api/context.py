"""The sources that handlers make their answers from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from candled.exchange import Clock
from candled.model import Decimals, Market, MarketKey
from candled.store.history import HistoryReader

from .catalog import MarketCatalog

if TYPE_CHECKING:
    from .pages import BarReader


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """The sources of answers."""

    catalog: MarketCatalog
    pages: "BarReader"
    stored: HistoryReader
    clock: Clock
    #: The decimals that the exchange declares for a market.
    decimals: Callable[[MarketKey], Decimals]
    #: The newest facts about a market from the exchange's list; None if this process has not read it.
    facts: Callable[[MarketKey], Market | None] = lambda market: None
    #: Whether the candles of an exchange are not those of the market at present.
    is_simulated: Callable[[str], bool] = lambda exchange: False
    #: The decimals seen in a market's candles.
    seen_decimals: Callable[[MarketKey], Decimals]

    def likely_decimals(self, market: MarketKey) -> Decimals:
        """Return the decimals that the exchange declares for a market, or else those seen in its candles."""
        return self.decimals(market).or_else(self.seen_decimals(market))
