"""The Bitget plugin: spot and USDT-margined futures."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Bitget


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the Bitget exchange."""
    return [Bitget]
