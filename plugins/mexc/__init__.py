"""The MEXC plugin: spot pairs, and contracts in USDT."""

from candled import Exchange, hookimpl

from .exchange import Mexc, MexcUsdt


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return MEXC's exchanges."""
    return [Mexc, MexcUsdt]
