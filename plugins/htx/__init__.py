"""The HTX plugin: spot pairs, and contracts in USDT."""

from candled import Exchange, hookimpl

from .exchange import Htx, HtxUsdt


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return HTX's exchanges."""
    return [Htx, HtxUsdt]
