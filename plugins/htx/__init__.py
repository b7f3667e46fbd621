"""The HTX plugin: spot pairs."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Htx


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the HTX exchange."""
    return [Htx]
