"""The sources that handlers make their answers from."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from candled.exchange import Clock
from candled.model import REASONS, Decimals, Gap, MarketKey, Range

from .catalog import MarketCatalog

if TYPE_CHECKING:
    from .pages import BarReader


class CoverageStore(Protocol):
    """The store reads besides pages of bars. `candled.store.history.HistoryReader` implements it."""

    async def find_gaps(
        self, market: MarketKey, span: Range, *, limit: int | None = None, reasons: Container[str] = REASONS
    ) -> Sequence[Gap]:
        """Return the gaps of a range, oldest first. With a `limit`, at least that many of the newest ones."""

    async def complete_from(self, market: MarketKey) -> int | None:
        """Return the time from which history is complete except for known gaps; None if it is not known."""

    async def served_from(self, market: MarketKey) -> int | None:
        """Return the time from which bars are served; None if no bars are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """The sources of answers."""

    catalog: MarketCatalog
    pages: "BarReader"
    stored: CoverageStore
    clock: Clock
    #: The decimals that the exchange declares for a market.
    decimals: Callable[[MarketKey], Decimals]
    #: The decimals seen in a market's candles.
    seen_decimals: Callable[[MarketKey], Decimals]

    def likely_decimals(self, market: MarketKey) -> Decimals:
        """Return the decimals that the exchange declares for a market, or else those seen in its candles."""
        return self.decimals(market).or_else(self.seen_decimals(market))
