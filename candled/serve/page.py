"""The text of the chart page."""

import json
from collections.abc import Callable, Mapping

from candled import __version__
from candled.exchange import Clock
from candled.model import Decimals, Interval, MarketKey
from candled.tasks import Pace
from candled.universe import Universe

from .handlers import STATIC

_MARKET_US = 10  # to describe a market, on a slow machine


class ChartPage:
    """The chart page. It contains the markets of the universe and the names of `intervals`; both may change."""

    def __init__(
        self,
        intervals: Mapping[str, Interval],
        universe: Universe,
        decimals: Callable[[MarketKey], Decimals],
        clock: Clock,
    ) -> None:
        self._intervals = intervals
        self._universe = universe
        self._decimals = decimals
        self._clock = clock
        self._template = (STATIC / "index.html").read_text("utf-8")

    async def render(self) -> str:
        """Return the page with the decimals of prices known now. No slice holds the loop."""
        markets = Pace(self._clock).spread(self._universe.markets, _MARKET_US)
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
                async for market in markets
            ],
        }
        return self._template.replace("__CANDLED__", json.dumps(facts).replace("<", "\\u003c"))
