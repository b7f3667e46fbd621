"""The exchange's list of markets, compared with the configured symbols."""

import difflib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from candled.errors import CandledError
from candled.exchange import Clock, Exchange
from candled.model import Market, Symbol
from candled.tasks import Backoff, retry

if TYPE_CHECKING:
    from .http import HttpClient
    from .market import MarketIngest


logger = logging.getLogger(__name__)

# The list is read again every six hours; while a symbol is missing, after pauses of one minute to one hour.
_FIRST_S, _MOST_S, _COMPLETE_S = 60.0, 3600.0, 21_600.0


class MarketListing:
    """The newest list of markets. `on_listed` is called with a symbol that was missing and is listed now.

    `on_list` is called with every list.
    """

    def __init__(
        self,
        name: str,
        exchange: Exchange,
        http: "HttpClient",
        clock: Clock,
        on_listed: Callable[[Symbol], None],
        on_list: Callable[[Sequence[Market]], None] | None = None,
    ) -> None:
        self._name = name
        self._exchange = exchange
        self._http = http
        self._clock = clock
        self._on_listed = on_listed
        self._on_list = on_list or (lambda listed: None)
        #: Empty before the list was read.
        self._listed: dict[Symbol, Market] = {}

    async def run(self, symbols: Collection[Symbol], markets: "Mapping[Symbol, MarketIngest]") -> None:
        """Read the list in an endless loop, more often while one of `symbols` is missing, and compare `markets`."""
        failures, pauses = Backoff(first_s=2.0), Backoff(first_s=_FIRST_S, most_s=_MOST_S)

        def report(error: Exception, wait_s: float) -> None:
            is_bug = not isinstance(error, CandledError)  # in a plugin, it must not end this task
            if is_bug or failures.failure_count == 1:
                logger.warning("%s: the list of markets cannot be read: %s", self._name, error, exc_info=is_bug)

        while True:
            listed = await retry(lambda: self._exchange.fetch_markets(self._http), self._clock, failures, report=report)
            failures.on_success()
            self._listed = {market.symbol: market for market in listed}
            self._on_list(listed)
            for market in markets.values():
                self.compare_market(market)
            if all(symbol in self._listed for symbol in symbols):
                pauses.on_success()
                await self._clock.sleep(_COMPLETE_S)
            else:
                await self._clock.sleep(pauses.on_failure())

    def compare_market(self, market: "MarketIngest") -> None:
        """Apply the newest list to a market. An empty list, or none so far, is no evidence."""
        symbol = market.key.symbol
        if symbol in self._listed:
            market.decimals = self._listed[symbol].decimals
        was_unlisted, market.status.unlisted = market.status.unlisted is not None, None
        if self._listed and symbol not in self._listed:
            near = difflib.get_close_matches(str(symbol), map(str, self._listed), n=1, cutoff=0.8)
            market.status.unlisted = f"{self._name} does not list {symbol}" + (
                f", did you mean {near[0]}?" if near else ""
            )
            if not was_unlisted:
                logger.error("%s; reading its list again after pauses", market.status.unlisted)
        elif was_unlisted:
            logger.info("%s: lists %s now", self._name, symbol)
            self._on_listed(symbol)

    def listed_ms(self, symbol: Symbol) -> int | None:
        """Return the start of trading of a symbol; None if the list does not contain it."""
        return self._listed[symbol].listed_ms if symbol in self._listed else None
