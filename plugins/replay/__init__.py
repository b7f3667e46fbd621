"""The `replay` exchange: recorded candles, replayed at the current time."""

from candled import Exchange, hookimpl

from .exchange import Replay


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return the replay exchange."""
    return [Replay]
