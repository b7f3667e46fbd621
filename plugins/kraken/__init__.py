"""The Kraken plugin: spot pairs."""

from candled import Exchange, hookimpl

from .exchange import Kraken


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return the Kraken exchange."""
    return [Kraken]
