"""The text of the chart page."""

import json
from collections.abc import Callable

from candled import __version__
from candled.config import Config
from candled.model import Decimals, MarketKey

from .handlers import STATIC


class ChartPage:
    """The chart page, with the markets of the settings in it."""

    def __init__(self, config: Config, decimals: Callable[[MarketKey], Decimals]) -> None:
        self._config = config
        self._decimals = decimals
        self._template = (STATIC / "index.html").read_text("utf-8")

    def render(self) -> str:
        """Return the page with the decimals of prices known now."""
        facts = {
            "version": __version__,
            "defaultExchange": self._config.exchanges[0].name,
            "intervals": [str(interval) for interval in self._config.intervals],
            "markets": [
                {
                    "exchange": one.name,
                    "symbol": str(symbol),
                    "priceDecimals": self._decimals(MarketKey(one.name, symbol)).price,
                }
                for one in self._config.exchanges
                for symbol in one.symbols
            ],
        }
        return self._template.replace("__CANDLED__", json.dumps(facts).replace("<", "\\u003c"))
