"""The Kraken plugin: spot pairs."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Kraken


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the Kraken exchange."""
    return [Kraken]
