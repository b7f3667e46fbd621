"""The text of the chart page."""

import json
from collections.abc import Callable

from candled import __version__
from candled.config import Config
from candled.model import Decimals, MarketKey
from candled.universe import Universe

from .handlers import STATIC


class ChartPage:
    """The chart page, with the markets of the universe in it."""

    def __init__(self, config: Config, universe: Universe, decimals: Callable[[MarketKey], Decimals]) -> None:
        self._config = config
        self._universe = universe
        self._decimals = decimals
        self._template = (STATIC / "index.html").read_text("utf-8")

    def render(self) -> str:
        """Return the page with the decimals of prices known now."""
        facts = {
            "version": __version__,
            "defaultExchange": self._universe.default,
            "intervals": [str(interval) for interval in self._config.intervals],
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
