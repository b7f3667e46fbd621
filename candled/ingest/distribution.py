"""The distribution of an exchange's symbols over connections."""

from collections.abc import Sequence

from candled.exchange import ConnectionLimits
from candled.model import Symbol


def distribute(
    symbols: Sequence[Symbol], limits: ConnectionLimits, shards: int = 1
) -> tuple[list[tuple[Symbol, ...]], tuple[Symbol, ...]]:
    """Return the symbols of each connection, in order, and those for which no connection is left.

    `shards` is the number of shards that connect from the same address and share its connections equally.
    """
    per_connection = max(1, limits.symbols_per_connection or len(symbols))
    groups = [tuple(symbols[first : first + per_connection]) for first in range(0, len(symbols), per_connection)]
    most = len(groups) if limits.connections is None else max(1, limits.connections // shards)
    return groups[:most], tuple(symbol for group in groups[most:] for symbol in group)
