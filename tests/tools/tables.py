"""A store of either kind, with a way past it to its tables."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from candled.model import DEFAULT_INTERVALS, MINUTE_MS, MarketKey
from candled.store import make_store
from tests.servers import Database, shared_postgres
from tests.tools.command import BTC

MARKET = MarketKey("bitget", BTC)


class SqliteFile:
    """A store's file, with a way past the store."""

    def __init__(self, path):
        self._path = path
        self.url = f"sqlite:///{path}"

    def spoil(self, statement, interval=None):
        where = "" if interval is None else f" AND interval_ms = {interval.ms}"
        connection = sqlite3.connect(self._path)
        with connection:
            connection.execute(statement.replace("AT(", "(").replace(" INTERVAL", where))
        connection.close()


class PostgresTables:
    """The same of a database."""

    def __init__(self, database):
        self._database = database
        self.url = database.url()

    def spoil(self, statement, interval=None):
        for name in ("rollups", "candles"):
            statement = statement.replace(f" {name} ", f" candled.{name} ")
        where = "" if interval is None else f" AND minutes = {interval.ms // MINUTE_MS}"
        statement = statement.replace("time_ms", "time").replace("AT(", "to_timestamp(0.001 * ")
        self._database.rows(statement.replace(" INTERVAL", where).replace("interval_ms", "minutes"))


@contextmanager
def new_tables(kind, directory) -> Iterator[SqliteFile | PostgresTables]:
    """A new store's place; skipped by name where no PostgreSQL server is."""
    if kind == "sqlite":
        yield SqliteFile(directory / "candled.db")
        return
    with Database(shared_postgres()) as database:
        yield PostgresTables(database)


def fill(tables, minutes, market=MARKET):
    store = opened(tables)
    store.write_minutes([(market, candle) for candle in minutes])
    store.close()


def opened(tables):
    store = make_store(tables.url, DEFAULT_INTERVALS)
    store.open()
    return store
