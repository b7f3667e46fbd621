"""The KuCoin plugin: spot pairs."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Kucoin


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the KuCoin exchange."""
    return [Kucoin]
