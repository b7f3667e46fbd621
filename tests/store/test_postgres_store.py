"""The PostgreSQL store: the contract of all stores, and what is special about a server."""

import pytest

from candled.store.postgres import PostgresStore
from tests.servers import Database, shared_postgres
from tests.store.contract import StoreContract


@pytest.fixture
def database():
    with Database(shared_postgres()) as database:
        yield database


@pytest.fixture
def open_store(database):
    stores = []

    def open_again(*intervals):
        store = PostgresStore(database.url(), intervals)
        stores.append(store)
        store.open()
        return store

    yield open_again
    for store in stores:
        store.close()


class TestPostgresStore(StoreContract):
    """The contract."""
