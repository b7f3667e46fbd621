"""The `replay` exchange: recorded candles, replayed at the current time."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Replay


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    """Return the replay exchange."""
    return [Replay]
