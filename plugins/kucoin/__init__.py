"""The KuCoin plugin: spot pairs, and contracts in USDT."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Kucoin, KucoinUsdt


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return KuCoin's exchanges."""
    return [Kucoin, KucoinUsdt]
