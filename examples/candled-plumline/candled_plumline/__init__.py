"""The exchange Plumline for candled."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Plumline

__all__ = ["Plumline", "candled_exchanges"]


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the exchanges of this plugin."""
    return [Plumline]
