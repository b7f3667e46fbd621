"""The distribution of an exchange's symbols over connections."""

from collections.abc import Sequence

from candled.exchange import ConnectionLimits
from candled.model import Symbol


def distribute(
    symbols: Sequence[Symbol], limits: ConnectionLimits, shards: int = 1, loads: Sequence[int | None] = ()
) -> tuple[list[tuple[Symbol, ...]], tuple[Symbol, ...]]:
    """Return the symbols of each connection, in order, and those for which no connection is left.

    `loads` has the number of symbols on each open connection, or None if it takes no more. The result begins with the
    symbols to add to each open connection: these are filled before another one is opened. `shards` is the number of
    shards that connect from the same address and share its connections equally.
    """
    per_connection = max(1, limits.symbols_per_connection or len(symbols) + sum(load or 0 for load in loads))
    waiting, groups = list(symbols), []
    for load in loads:
        room = 0 if load is None else max(0, per_connection - load)
        groups.append(tuple(waiting[:room]))
        del waiting[:room]
    new = [tuple(waiting[first : first + per_connection]) for first in range(0, len(waiting), per_connection)]
    most = len(new) if limits.connections is None else max(0, max(1, limits.connections // shards) - len(groups))
    return groups + new[:most], tuple(symbol for group in new[most:] for symbol in group)
