"""The exchange's list of markets, compared with the configured symbols."""

import difflib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from candled.errors import CandledError
from candled.model import END_OF_TIME_MS, Market, MarketKey, Symbol
from candled.tasks import Backoff, retry
from candled.universe_choice import follow_life, has_been_delisted

from .context import IngestContext

if TYPE_CHECKING:
    from .market import MarketIngest


logger = logging.getLogger(__name__)

_FIRST_S = 60.0  # the first pause while a symbol is missing
_MOST_LATE_MS = 600_000  # how long after its announced opening a market is awaited
_NOT_LISTED = ("unlisted", "upcoming", "delisted")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """The pace of reading an exchange's list, and its receivers."""

    #: The pause between two reads.
    refresh_s: float = 1800.0
    #: Is called with every list.
    on_list: Callable[[Sequence[Market]], None] = lambda listed: None
    #: Is called with each error of reading it.
    on_list_failed: Callable[[Exception], None] = lambda error: None
    #: Returns whether clients use a market, so that it keeps its feed.
    is_used: Callable[[MarketKey], bool] = lambda market: False
    #: Returns whether clients wait for a market, so that its history is requested before that of others.
    is_urgent: Callable[[MarketKey], bool] = lambda market: False


class MarketListing:
    """Reads an exchange's list of markets regularly, and compares it with the markets that candled reads."""

    def __init__(self, context: IngestContext, options: ListOptions) -> None:
        self._name = context.name
        self._exchange = context.exchange
        self._http = context.http
        self._clock = context.clock
        self._options = options
        #: Returns whether clients wait for a market.
        self.is_urgent = options.is_urgent
        #: Is called with a symbol that was not traded and is traded now.
        self.on_listed: Callable[[Symbol], None] = lambda symbol: None
        #: Is called after each list with a symbol that has been delisted for a day and is not used.
        self.on_ended: Callable[[Symbol], None] = lambda symbol: None
        #: Is called after each list with the symbol of a renamed market and its former one.
        self.on_renamed: Callable[[Symbol, Symbol], None] = lambda symbol, former: None
        #: The newest list that was not empty, because an empty one is no evidence; empty before the first.
        self._listed: dict[Symbol, Market] = {}
        #: The facts of the markets that are read and were ever listed.
        self._facts: dict[Symbol, Market] = {}

    async def run(self, symbols: Collection[Symbol], markets: "Mapping[Symbol, MarketIngest]") -> None:
        """Read the list in an endless loop, more often while one of `symbols` is missing, and compare `markets`."""
        failures, pauses = Backoff(first_s=2.0), Backoff(first_s=_FIRST_S, most_s=self._options.refresh_s)

        def report(error: Exception, wait_s: float) -> None:
            is_bug = not isinstance(error, CandledError)  # in a plugin, it must not end this task
            if is_bug or failures.failure_count == 1:
                logger.warning("%s: the list of markets cannot be read: %s", self._name, error, exc_info=is_bug)
            self._options.on_list_failed(error)

        while True:
            listed = await retry(lambda: self._exchange.fetch_markets(self._http), self._clock, failures, report=report)
            failures.on_success()
            self._listed = {market.symbol: market for market in listed} or self._listed
            self._options.on_list(listed)
            self._facts = {symbol: facts for symbol, facts in self._facts.items() if symbol in symbols}
            for market in markets.values():
                self.compare_market(market)
            if all(symbol in self._listed for symbol in symbols):
                pauses.on_success()
                pause_s = self._options.refresh_s
            else:
                pause_s = pauses.on_failure()
            await self._clock.sleep(min(pause_s, self._until_opening()))

    def compare_market(self, market: "MarketIngest") -> None:
        """Apply the newest list to a market."""
        if not self._listed:
            return
        symbol, before, now_ms = market.key.symbol, market.status.listing, self._clock.now_ms()
        facts = follow_life(self._facts.get(symbol), self._listed.get(symbol), now_ms)
        if facts is None:
            market.follow_listing(None, self._describe_unlisted(symbol))
            if before != "unlisted":
                logger.warning("%s; reading its list again after pauses", market.status.unlisted)
            return
        self._facts[symbol] = facts
        market.follow_listing(facts, None)
        if before is not None and before != facts.status:
            logger.info("%s: %s is %s now, and was %s", self._name, symbol, facts.status, before)
        if before in _NOT_LISTED and facts.status not in _NOT_LISTED:
            self.on_listed(symbol)
        elif has_been_delisted(facts, now_ms) and not self._options.is_used(market.key):
            self.on_ended(symbol)
        if facts.former is not None:
            self.on_renamed(symbol, facts.former)

    def _describe_unlisted(self, symbol: Symbol) -> str:
        near = difflib.get_close_matches(str(symbol), map(str, self._listed), n=1, cutoff=0.8)
        return f"{self._name} does not list {symbol}" + (f", did you mean {near[0]}?" if near else "")

    def _until_opening(self) -> float:
        """Return the seconds until the next market opens, at least a minute."""
        now_ms = self._clock.now_ms()
        upcoming = (one.listed_ms for one in self._listed.values() if one.status == "upcoming")
        opens_ms = min((at for at in upcoming if at and at > now_ms - _MOST_LATE_MS), default=END_OF_TIME_MS)
        return max(_FIRST_S, (opens_ms - now_ms) / 1000)

    def listed_ms(self, symbol: Symbol) -> int | None:
        """Return the start of trading of a symbol; None if the list does not contain it."""
        return self._listed[symbol].listed_ms if symbol in self._listed else None
