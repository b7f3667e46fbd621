"""The Coinbase plugin: spot pairs of Advanced Trade."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Coinbase


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the Coinbase exchange."""
    return [Coinbase]
