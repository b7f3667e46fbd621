"""Stores for the commands that look at tables themselves."""

from contextlib import ExitStack

import pytest

from tests.tools.tables import SqliteFile, Templates, new_tables


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def kind(request):
    return request.param


@pytest.fixture
def tables(kind, tmp_path):
    with new_tables(kind, tmp_path) as tables:
        yield tables


@pytest.fixture
def file(tmp_path):
    return SqliteFile(tmp_path / "candled.db")


@pytest.fixture(scope="session")
def templates(tmp_path_factory):
    with ExitStack() as until:
        yield Templates(tmp_path_factory.mktemp("templates"), until)
