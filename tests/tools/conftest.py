"""Stores for the commands that look at tables themselves."""

import pytest

from tests.tools.tables import SqliteFile, new_tables


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def tables(request, tmp_path):
    with new_tables(request.param, tmp_path) as tables:
        yield tables


@pytest.fixture
def file(tmp_path):
    return SqliteFile(tmp_path / "candled.db")
