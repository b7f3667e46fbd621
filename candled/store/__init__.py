"""Candles in a database: the interface of all stores, their threads, and the choice of a store by its address."""

from collections.abc import Iterable
from pathlib import Path

from candled.errors import ConfigError
from candled.model import Interval

from .interface import Store

# Address schemes and their descriptions for error texts.
KNOWN_STORES = {
    "sqlite": "one file, embedded: sqlite:///candled.db",
    "postgresql": "PostgreSQL, with or without TimescaleDB: postgresql://user:password@host:5432/database",
    "postgres": "the same as postgresql://",
}


def make_store(
    url: str,
    intervals: Iterable[Interval] | None,
    *,
    upgrade: bool = True,
    compress_after_days: int | None = None,
    retention_days: int | None = None,
) -> Store:
    """Return the store at `url`, not yet opened. Without `intervals` it is a guest, see `Store`.

    Without `upgrade`, opening it changes no tables. `compress_after_days` applies to TimescaleDB only; see
    `PostgresStore`. Minutes are kept for `retention_days` days; None: forever.

    Raises:
        ConfigError: no store has such addresses, or the address is invalid. The text does not repeat the address.
    """
    if url.startswith("sqlite:///"):
        from .sqlite.store import SqliteStore

        path = Path(url.removeprefix("sqlite:///"))
        return SqliteStore(path, intervals, upgrade=upgrade, retention_days=retention_days)
    if url.startswith(("postgresql://", "postgres://")):
        from .postgres.store import PostgresStore

        try:
            return PostgresStore(
                url, intervals, compress_after_days=compress_after_days, retention_days=retention_days, upgrade=upgrade
            )
        except ConfigError as error:
            raise ConfigError([f"store.url: {problem}" for problem in error.problems]) from error
    raise ConfigError("store.url: expected an address of one of these stores: " + "; ".join(KNOWN_STORES.values()))
