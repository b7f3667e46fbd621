"""The Hyperliquid plugin: perpetual contracts and spot pairs."""

from candled import Exchange, hookimpl

from .exchange import Hyperliquid


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return the Hyperliquid exchange."""
    return [Hyperliquid]
