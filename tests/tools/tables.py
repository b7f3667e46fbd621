"""A store of either kind, with a way past it to its tables."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Candle, MarketKey
from candled.store import make_store
from tests.servers import Database, shared_postgres
from tests.tools.command import BTC

MARKET = MarketKey("bitget", BTC)


class SqliteFile:
    """A store's file, with a way past the store."""

    def __init__(self, path):
        self.path = path
        self.url = f"sqlite:///{path}"

    def spoil(self, statement, interval=None):
        where = "" if interval is None else f" AND interval_ms = {interval.ms}"
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute(statement.replace("AT(", "(").replace(" INTERVAL", where))
        connection.close()


class PostgresTables:
    """The same of a database."""

    def __init__(self, database):
        self.database = database
        self.url = database.url()

    def spoil(self, statement, interval=None):
        for name in ("rollups", "candles"):
            statement = statement.replace(f" {name} ", f" candled.{name} ")
        where = "" if interval is None else f" AND minutes = {interval.ms // MINUTE_MS}"
        statement = statement.replace("time_ms", "time").replace("AT(", "to_timestamp(0.001 * ")
        self.database.rows(statement.replace(" INTERVAL", where).replace("interval_ms", "minutes"))


class Templates:
    """Stores that are filled once; tests get copies."""

    def __init__(self, directory: Path, until: ExitStack) -> None:
        self._directory = directory
        self._until = until
        self._filled: dict[tuple[str, Callable], SqliteFile | PostgresTables] = {}

    @contextmanager
    def copy(
        self, kind: str, make: Callable[[], list[Candle]], directory: Path
    ) -> Iterator[SqliteFile | PostgresTables]:
        """A new store with the minutes that `make` returns."""
        source = self._filled.get((kind, make))
        if source is None:
            place = self._directory / make.__name__
            place.mkdir(exist_ok=True)
            source = self._filled[kind, make] = self._until.enter_context(new_tables(kind, place))
            fill(source, make())
        if isinstance(source, SqliteFile):
            yield SqliteFile(shutil.copy(source.path, directory / "candled.db"))
            return
        with Database(shared_postgres(), f"TEMPLATE {source.database.name}") as database:
            yield PostgresTables(database)


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
