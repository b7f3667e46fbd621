"""The HTX plugin: spot pairs, and contracts in USDT."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Htx, HtxUsdt


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return HTX's exchanges."""
    return [Htx, HtxUsdt]
