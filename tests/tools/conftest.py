"""Stores for the commands that look at tables themselves."""

from contextlib import ExitStack

import pytest

from tests.servers import Database, shared_postgres
from tests.tools.tables import PostgresTables, SqliteFile, Templates


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def database():
    """A database that tests clear."""
    with Database(shared_postgres()) as database:
        yield database


@pytest.fixture
def tables(kind, request):
    if kind == "sqlite":
        yield request.getfixturevalue("file")
        return
    database = request.getfixturevalue("database")
    yield PostgresTables(database)
    database.clear()


@pytest.fixture
def file(tmp_path):
    return SqliteFile(tmp_path / "candled.db")


@pytest.fixture(scope="session")
def templates(tmp_path_factory):
    with ExitStack() as until:
        yield Templates(tmp_path_factory.mktemp("templates"), until)
