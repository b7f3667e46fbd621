"""The rows of markets: their numbers, locks, spans and forming minutes."""

from collections.abc import Iterable, Mapping

from candled.model import END_OF_TIME_MS, MINUTE_MS, Candle, MarketKey

from . import statements as sql
from .pool import DatabaseConnection
from .rows import as_columns


def names_of(market: MarketKey) -> tuple[str, str]:
    """Return the names of a market in the database."""
    return market.exchange, str(market.symbol)


def lock_markets(connection: DatabaseConnection, markets: Iterable[MarketKey]) -> dict[MarketKey, int]:
    """Return the numbers of the markets, adding missing ones, and lock them against other writers.

    The locks end with the transaction.
    """
    names = {names_of(market): market for market in markets}
    columns = [list(column) for column in zip(*names, strict=True)]
    connection.execute(sql.ADD_MARKETS, columns)
    return {names[exchange, symbol]: id for id, exchange, symbol in connection.fetch_rows(sql.LOCK_MARKETS, columns)}


def read_kept_from(connection: DatabaseConnection) -> int:
    """Return the time before which minutes may have been dropped."""
    return max((kept_ms for (kept_ms,) in connection.fetch_rows(sql.KEPT_FROM)), default=0)


def put_forming(connection: DatabaseConnection, forming: Mapping[int, Mapping[int, Candle]]) -> None:
    """Store forming minutes, given by market and opening time."""
    rows = [(id, forming[id][open_ms]) for id in sorted(forming) for open_ms in sorted(forming[id])]
    times = [candle.open_ms for _, candle in rows]
    columns = as_columns([id for id, _ in rows], [candle for _, candle in rows])
    connection.execute(sql.PUT_FORMING, (*columns, min(times), max(times)))


def spans_within(
    connection: DatabaseConnection, market: MarketKey, start_ms: int, end_ms: int
) -> list[tuple[int, int, int]]:
    """Return the market's number and the part of `[start_ms, end_ms)` that its minutes span; empty if it has none."""
    return [
        (market_id, max(start_ms, first_ms), min(end_ms, last_ms + MINUTE_MS))
        for market_id, first_ms, last_ms in connection.fetch_rows(sql.MARKET_SPAN, names_of(market))
    ]


def limited_time(at_ms: int) -> int:
    """Return the time, limited to the range of PostgreSQL's calendar."""
    return max(0, min(at_ms, END_OF_TIME_MS))
