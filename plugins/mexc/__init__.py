"""The MEXC plugin: spot pairs, and contracts in USDT."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Mexc, MexcUsdt


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return MEXC's exchanges."""
    return [Mexc, MexcUsdt]
