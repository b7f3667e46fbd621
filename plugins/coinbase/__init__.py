"""The Coinbase plugin: spot pairs of Advanced Trade."""

from candled import Exchange, hookimpl

from .exchange import Coinbase


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return the Coinbase exchange."""
    return [Coinbase]
