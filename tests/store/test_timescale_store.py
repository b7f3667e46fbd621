"""The PostgreSQL store on a server with TimescaleDB: the same contract, and minutes in chunks."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from candled.errors import StoreUnavailable
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS
from candled.store.postgres import store as postgres
from candled.store.postgres.schema.timescale import Timescale
from candled.store.postgres.store import PostgresStore
from tests.servers import NO_TIMESCALE, Database, has_timescale, own_timescale, shared_timescale
from tests.store.contract import LONGER, M5, StoreContract, everything, folded, sums
from tests.store.rows import BTC, MONDAY_MS, minute, new_market

pytestmark = pytest.mark.usefixtures("postgres")

if not has_timescale():
    pytest.skip(NO_TIMESCALE, allow_module_level=True)

DAY_MS = 86_400_000
WEEK_MINUTES = 7 * 1440


@pytest.fixture
def database():
    with Database(shared_timescale()) as database:
        yield database


@pytest.fixture
def open_store(database):
    stores = []

    def open_again(*intervals, **options):
        store = PostgresStore(database.url(), intervals or None, **options)
        stores.append(store)
        store.open()
        return store

    yield open_again
    for store in stores:
        store.close()


def compressed_chunks(database: Database) -> int:
    return int(database.rows("SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed")[0][0])


def uncompressed_minutes(database: Database) -> int:
    """Minutes that lie beside the compressed ones of their chunk, as corrections do."""
    [(chunks,)] = database.rows(
        """SELECT array_agg(quote_ident(chunk_schema) || '.' || quote_ident(chunk_name))
        FROM timescaledb_information.chunks WHERE is_compressed"""
    )
    return sum(int(database.rows(f"SELECT count(*) FROM ONLY {chunk}")[0][0]) for chunk in chunks)


class TestTimescaleStore(StoreContract):
    """The contract."""

    @staticmethod
    def read_endlessly(store):
        store._fetch_rows("SELECT pg_sleep(60)", ())


def test_minutes_are_kept_in_chunks_of_a_week(database, open_store):
    store = open_store(*DEFAULT_INTERVALS)
    store.write_minutes([(BTC, minute(week * WEEK_MINUTES)) for week in range(4)])
    chunks = database.rows("SELECT DISTINCT range_end - range_start FROM timescaledb_information.chunks")
    assert [length.days for (length,) in chunks] == [7]
    facts = store.describe()
    assert (facts["kind"], facts["compression"]) == ("timescaledb", False)
    assert facts["timescaledb"]


def test_an_ordinary_role_gets_chunks_too():
    dsn = shared_timescale()
    with Database(dsn) as admin:
        admin.rows(f"CREATE ROLE {admin.name} LOGIN")
        try:
            with Database(dsn, f"OWNER {admin.name}") as database:
                store = PostgresStore(database.url(user=admin.name), [M5], compress_after_days=1)
                store.open()
                store.write_minutes([(BTC, minute(0))])
                store.tidy_up(MONDAY_MS + 30 * DAY_MS)
                store.close()
                assert store.describe()["kind"] == "timescaledb"
                assert compressed_chunks(database) == 1
        finally:
            admin.rows(f"DROP ROLE {admin.name}")


def test_corrections_and_late_minutes_inside_compressed_chunks_are_exact(database, open_store):
    """Three days of ten markets corrected, minutes added between old ones, and single ones all over the history."""
    dice = random.Random(20251117)
    store = open_store(*DEFAULT_INTERVALS, compress_after_days=14)
    markets = [new_market() for _ in range(10)]
    best = {market: {at: minute(at) for at in range(0, 4 * WEEK_MINUTES, 3)} for market in markets}
    for market in markets:
        store.write_minutes([(market, candle) for candle in best[market].values()])
    store.tidy_up(MONDAY_MS + 60 * DAY_MS)
    assert compressed_chunks(database) >= 4

    for market in markets:
        days = range(8 * 1440, 11 * 1440)
        spots = dice.sample(range(0, 4 * WEEK_MINUTES), 300)
        rows = {at: minute(at, "5", volume="7", as_of_ms=MONDAY_MS + (at + 9) * MINUTE_MS) for at in (*days, *spots)}
        best[market] |= {at: row._replace(rev=int(at in best[market])) for at, row in rows.items()}
        shuffled = list(rows.values())
        dice.shuffle(shuffled)
        store.write_minutes([(market, candle) for candle in shuffled])
        store.write_minutes([(market, minute(at, volume="99")) for at in days])  # older copies
    for _ in range(2):  # as corrected, and compressed again
        for market in markets:
            minutes = [best[market][at] for at in sorted(best[market])]
            assert everything(store, market, MINUTE) == minutes
            assert store.read_bars(market, MINUTE, before_ms=minutes[5000].open_ms, limit=100) == minutes[4900:5000]
            for interval in LONGER:
                assert everything(store, market, interval) == sums(minutes, interval)
        store.tidy_up(MONDAY_MS + 61 * DAY_MS)
        assert uncompressed_minutes(database) == 0


def test_compressed_minutes_of_the_first_schema_are_upgraded_as_they_stand(database, open_store):
    store = open_store(*DEFAULT_INTERVALS, compress_after_days=14)
    minutes = [minute(at, volume=f"{at}.10", quote="3") for at in range(0, 4 * WEEK_MINUTES, 7)]
    store.write_minutes([(BTC, candle) for candle in minutes])
    store.tidy_up(MONDAY_MS + 60 * DAY_MS)
    before = compressed_chunks(database)
    assert before >= 4
    for statement in (
        "ALTER TABLE candled.candles DROP COLUMN rev",
        "ALTER TABLE candled.candles DROP COLUMN src",
        "ALTER TABLE candled.forming DROP COLUMN rev, DROP COLUMN src",
        "ALTER TABLE candled.forming DROP CONSTRAINT forming_pkey, ADD CONSTRAINT running_pkey PRIMARY KEY (market)",
        "ALTER TABLE candled.forming RENAME TO running",
        "ALTER TABLE candled.rollups DROP COLUMN rev",
        "ALTER TABLE candled.intervals ADD COLUMN used_at timestamptz",
        "DROP TABLE candled.feeds, candled.changes, candled.processes",
        "UPDATE candled.state SET schema = 1",
    ):
        database.rows(statement)
    again = open_store(*DEFAULT_INTERVALS, compress_after_days=14)
    assert compressed_chunks(database) == before
    assert everything(again, BTC, MINUTE) == minutes
    revised = {at: minute(7 * at, "5", as_of_ms=10**13, src="rest") for at in range(0, len(minutes), 50)}
    again.write_minutes([(BTC, candle) for candle in revised.values()])
    truth = [revised[at]._replace(rev=1) if at in revised else candle for at, candle in enumerate(minutes)]
    for _ in range(2):  # as corrected, and compressed again
        assert everything(again, BTC, MINUTE) == truth
        for interval in LONGER:
            assert everything(again, BTC, interval) == sums(truth, interval)
        again.tidy_up(MONDAY_MS + 61 * DAY_MS)
        assert uncompressed_minutes(database) == 0


def test_tables_in_chunks_are_left_alone_by_a_server_that_runs_without_the_library():
    """Such a server would change a part of each table only."""
    server = own_timescale(shared_preload_libraries="timescaledb", synchronous_commit="on")
    try:
        with Database(server.dsn) as database:
            store = PostgresStore(database.url(), [M5], compress_after_days=1)
            store.open()
            store.write_minutes([(BTC, minute(0))])
            store.close()
            database.rows("UPDATE candled.state SET schema = 1")
            server.kill()
            server.start(shared_preload_libraries="")
            with pytest.raises(StoreUnavailable, match="need TimescaleDB"):
                store.open()
            assert database.rows("SELECT schema FROM candled.state") == [(1,)]
    finally:
        server.remove()


def test_one_batch_may_touch_all_of_a_compressed_history(open_store):
    store = open_store(MINUTE, compress_after_days=1)
    minutes = [minute(at) for at in range(150_000)]
    for start in range(0, len(minutes), 5000):
        store.write_minutes([(BTC, candle) for candle in minutes[start : start + 5000]])
    store.tidy_up(MONDAY_MS + 1000 * DAY_MS)
    late = {at: minute(at, volume="3", as_of_ms=MONDAY_MS + 10**10) for at in range(0, 150_000, 500)}
    store.write_minutes([(BTC, candle) for candle in late.values()])
    revised = {at: candle._replace(rev=1) for at, candle in late.items()}
    assert everything(store, BTC, MINUTE) == [revised.get(at, candle) for at, candle in enumerate(minutes)]


def test_old_chunks_are_dropped_and_their_bars_stay(database, open_store):
    minutes = [minute(at) for at in range(0, 8 * WEEK_MINUTES, 60)]
    store = open_store(*DEFAULT_INTERVALS, retention_days=20, compress_after_days=10)
    store.write_minutes([(BTC, candle) for candle in minutes])
    bars = {interval: everything(store, BTC, interval) for interval in LONGER}
    store.tidy_up(minutes[-1].open_ms)
    kept = everything(store, BTC, MINUTE)
    assert kept == minutes[-len(kept) :]
    assert 20 * 24 <= len(kept) <= 34 * 24  # whole chunks go, in whole weeks
    store.write_minutes([(BTC, minute(30, volume="5"))])
    assert {interval: everything(store, BTC, interval) for interval in LONGER} == bars


def test_a_server_of_the_free_licence_keeps_chunks_and_never_compresses():
    with on_own_server(**{"shared_preload_libraries": "timescaledb", "timescaledb.license": "apache"}) as database:
        store = PostgresStore(database.url(), [M5], compress_after_days=1, retention_days=300)
        store.open()
        store.write_minutes([(BTC, minute(0))])
        store.tidy_up(MONDAY_MS + 100 * DAY_MS)
        facts = store.describe()
        assert (facts["kind"], facts["compression"]) == ("timescaledb", False)
        assert compressed_chunks(database) == 0
        store.tidy_up(MONDAY_MS + 400 * DAY_MS)
        assert (everything(store, BTC, MINUTE), everything(store, BTC, M5)) == ([], [folded(minute(0))])
        store.close()


def test_a_server_that_has_not_loaded_the_library_is_used_without_it(caplog):
    caplog.set_level("INFO")
    with on_own_server() as database:
        store = PostgresStore(database.url(), [M5], compress_after_days=1)
        store.open()
        store.write_minutes([(BTC, minute(0))])
        store.tidy_up(MONDAY_MS + 100 * DAY_MS)
        assert store.describe()["kind"] == "postgresql"
        assert everything(store, BTC, M5) == [folded(minute(0))]
        store.close()
    assert "with plain tables: TimescaleDB is installed but not in the server's shared_preload_libraries" in caplog.text


@contextmanager
def on_own_server(**settings: str) -> Iterator[Database]:
    server = own_timescale(**settings)
    try:
        with Database(server.dsn) as database:
            yield database
    finally:
        server.remove()


def test_minutes_from_before_timescale_stay_in_a_plain_table(open_store, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(postgres.timescale, "prepare_extension", lambda link: Timescale())
        open_store(M5).write_minutes([(BTC, minute(0))])
    store = open_store(M5, compress_after_days=1, retention_days=300)
    store.write_minutes([(BTC, minute(1))])
    store.tidy_up(MONDAY_MS + 100 * DAY_MS)
    assert store.describe()["kind"] == "postgresql"
    assert everything(store, BTC, M5) == sums([minute(0), minute(1)], M5)
