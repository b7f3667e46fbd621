"""The `replay` exchange: recorded candles, played on the present clock."""

from collections.abc import Sequence

from candled import Exchange, hookimpl

from .exchange import Replay


@hookimpl
def candled_exchanges() -> Sequence[type[Exchange]]:
    return [Replay]
