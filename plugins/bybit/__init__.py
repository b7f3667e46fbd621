"""The Bybit plugin: spot pairs, linear and inverse perpetual contracts."""

from candled import Exchange, hookimpl

from .exchange import Bybit, BybitInverse, BybitLinear


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return Bybit's three kinds of markets. They have different WebSockets, so they are three exchanges."""
    return [Bybit, BybitLinear, BybitInverse]
