"""Chooses the markets of an exchange whenever its list was read, and sets them in the universe."""

import logging
from collections.abc import Sequence
from typing import Any

from candled.exchange import Clock
from candled.model import Market
from candled.universe import Universe
from candled.universe_choice import ChoiceRules, MarketChoice, choose_markets

logger = logging.getLogger(__name__)

_SHOWN = 10  # markets that a line of the log names


class MarketChooser:
    """Chooses the markets of one exchange. Without patterns, the markets stay as they are, and get their facts."""

    def __init__(self, name: str, rules: ChoiceRules, universe: Universe, clock: Clock) -> None:
        self._name = name
        self._rules = rules
        self._universe = universe
        self._clock = clock
        #: None before the first list.
        self._choice: MarketChoice | None = None
        self._logged: set[str] = set()
        #: The reason why the list cannot be read, in words; None if it can.
        self.problem: str | None = None

    def on_list(self, listed: Sequence[Market]) -> None:
        """Choose from the exchange's newest list."""
        self.problem = None
        symbols = self._universe.symbols(self._name)
        if self._rules.wildcards:
            former = self._choice or MarketChoice(symbols=symbols)
            self._choice = choose_markets(self._rules, listed, self._clock.now_ms(), former)
            self._log_remarks(self._choice)
            symbols = self._choice.symbols
        change = self._universe.set_markets(self._name, symbols, {market.symbol: market for market in listed})
        for what, changed in (("added", change.added), ("removed", change.removed)):
            if changed:
                more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
                shown = ", ".join(map(str, changed[:_SHOWN]))
                logger.info("%s: markets %s: %s%s", self._name, what, shown, more)

    def update_facts(self, listed: Sequence[Market]) -> None:
        """Take the facts of the exchange's newest list, and change no markets."""
        facts = {market.symbol: market for market in listed}
        self._universe.set_markets(self._name, self._universe.symbols(self._name), facts)

    def describe(self) -> dict[str, Any]:
        """Return the choice for `/health`."""
        choice = self._choice or MarketChoice(symbols=())
        return {
            "trouble": self.problem,
            "unmatched": list(choice.unmatched),
            "unlisted": [str(symbol) for symbol in choice.unlisted],
            "overLimit": len(choice.over_limit),
            "leaving": len(choice.leaving),
            "lacksVolumes": choice.lacks_volumes,
        }

    def _log_remarks(self, choice: MarketChoice) -> None:
        """Log each remark when it appears."""
        remarks = {f"{pattern} matches no listed market" for pattern in choice.unmatched}
        remarks |= {f"{symbol} is named, but not listed" for symbol in choice.unlisted}
        if choice.lacks_volumes:
            remarks.add("top has no effect, because the exchange lists no volumes")
        if choice.over_limit:
            remarks.add(f"some matching markets are left out, because most is {self._rules.most}")
        for remark in sorted(remarks - self._logged):
            logger.warning("exchanges.%s.symbols: %s", self._name, remark)
        self._logged = remarks
