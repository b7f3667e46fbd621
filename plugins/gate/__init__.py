"""The Gate plugin: spot pairs, and perpetual contracts settled in USDT."""

from candled import Exchange, hookimpl

from .exchange import Gateio, GateioUsdt


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return Gate's spot market and its contracts. They have different hosts, so they are two exchanges."""
    return [Gateio, GateioUsdt]
