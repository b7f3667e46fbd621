"""The OKX plugin: spot pairs and perpetual contracts."""

from candled import Exchange, hookimpl

from .exchange import Okx


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return the OKX exchange."""
    return [Okx]
