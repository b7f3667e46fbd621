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
_TEMPLATE = (STATIC / "index.html").read_text("utf-8")


async def render_page(
    intervals: Mapping[str, Interval], universe: Universe, decimals: Callable[[MarketKey], Decimals], clock: Clock
) -> bytes:
    """Return the chart page, with the markets and the decimals of prices known now. No slice holds the loop."""
    markets = Pace(clock).spread(universe.markets, _MARKET_US)
    facts = {
        "version": __version__,
        "defaultExchange": universe.default,
        "simulated": sorted(universe.simulated),
        "intervals": list(intervals),
        "markets": [
            {"exchange": market.exchange, "symbol": str(market.symbol), "priceDecimals": decimals(market).price}
            async for market in markets
        ],
    }
    return _TEMPLATE.replace("__CANDLED__", json.dumps(facts).replace("<", "\\u003c")).encode()
