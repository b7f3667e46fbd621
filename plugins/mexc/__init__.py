"""The MEXC plugin: spot pairs."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Mexc


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the MEXC exchange."""
    return [Mexc]
