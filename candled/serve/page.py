"""The text of the chart page."""

import json
from collections.abc import Callable, Mapping

from candled import __version__
from candled.model import Decimals, Interval, MarketKey
from candled.universe import Universe

from .handlers import STATIC


class ChartPage:
    """The chart page. It contains the markets of the universe and the names of `intervals`; both may change."""

    def __init__(
        self, intervals: Mapping[str, Interval], universe: Universe, decimals: Callable[[MarketKey], Decimals]
    ) -> None:
        self._intervals = intervals
        self._universe = universe
        self._decimals = decimals
        self._template = (STATIC / "index.html").read_text("utf-8")

    def render(self) -> str:
        """Return the page with the decimals of prices known now."""
        facts = {
            "version": __version__,
            "defaultExchange": self._universe.default,
            "simulated": sorted(self._universe.simulated),
            "intervals": list(self._intervals),
            "markets": [
                {
                    "exchange": market.exchange,
                    "symbol": str(market.symbol),
                    "priceDecimals": self._decimals(market).price,
                }
                for market in self._universe.markets
            ],
        }
        return self._template.replace("__CANDLED__", json.dumps(facts).replace("<", "\\u003c"))
