"""The OKX plugin: spot pairs and perpetual contracts."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Okx


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the OKX exchange."""
    return [Okx]
