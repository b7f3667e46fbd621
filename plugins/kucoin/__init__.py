"""The KuCoin plugin: spot pairs, and contracts in USDT."""

from candled import Exchange, hookimpl

from .exchange import Kucoin, KucoinUsdt


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return KuCoin's exchanges."""
    return [Kucoin, KucoinUsdt]
