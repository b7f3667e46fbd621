"""The Bitget plugin: spot pairs and perpetual contracts settled in USDT."""

from candled import Exchange, hookimpl

from .exchange import Bitget


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return the Bitget exchange."""
    return [Bitget]
