"""The Hyperliquid plugin: perpetual contracts and spot pairs."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Hyperliquid


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the Hyperliquid exchange."""
    return [Hyperliquid]
