"""Candles ↔ database: what every store can do, the threads that do it, and which store an address means."""

from collections.abc import Iterable
from pathlib import Path

from candled.errors import ConfigError
from candled.model import Interval

from .interface import Store

# The schemes of addresses, and what a person should know of each.
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
    """Return the store that `url` means, not yet opened; without intervals as a guest, see `Store`.

    Without `upgrade` opening it changes no tables. Days are for PostgreSQL; see `PostgresStore`.

    Raises:
        ConfigError: no store has such addresses, or this one cannot be read. The text does not repeat it.
    """
    if url.startswith("sqlite:///"):
        from .sqlite.store import SqliteStore

        return SqliteStore(Path(url.removeprefix("sqlite:///")), intervals, upgrade=upgrade)
    if url.startswith(("postgresql://", "postgres://")):
        from .postgres.store import PostgresStore

        try:
            return PostgresStore(
                url,
                intervals,
                compress_after_days=compress_after_days,
                retention_days=retention_days,
                upgrade=upgrade,
            )
        except ConfigError as error:
            raise ConfigError([f"store.url: {problem}" for problem in error.problems]) from error
    raise ConfigError("store.url: expected an address of one of these stores: " + "; ".join(KNOWN_STORES.values()))
