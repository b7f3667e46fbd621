"""The PostgreSQL store: the contract of all stores, and what is special about a server."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from candled.errors import ConfigError, StoreRejected, StoreUnavailable
from candled.model import ALL_TIME, DEFAULT_INTERVALS, MINUTE, Interval
from candled.store import KNOWN_STORES, make_store
from candled.store.postgres.pool import Pool
from candled.store.postgres.schema import SCHEMA
from candled.store.postgres.store import PostgresStore
from candled.store.sqlite.store import SqliteStore
from tests import tiers
from tests.servers import Database, shared_postgres
from tests.store.contract import (
    D1,
    H1,
    LONGER,
    M5,
    W1,
    StoreContract,
    check_renaming,
    everything,
    folded,
    renaming,
    sums,
)
from tests.store.rows import BTC, ETH, MONDAY_MS, minute, new_market

pytestmark = pytest.mark.usefixtures("postgres")

WEEK_MINUTES = 7 * 1440
DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS


@pytest.fixture(scope="module")
def reused():
    with Database(shared_postgres()) as database:
        yield database


@pytest.fixture
def database(reused):
    yield reused
    reused.clear()


@pytest.fixture
def stores():
    opened = []
    yield opened
    for store in opened:
        store.close()


@pytest.fixture
def open_store(database, stores):
    def open_again(*intervals, **options):
        store = PostgresStore(database.url(), intervals or None, **options)
        stores.append(store)
        store.open()
        return store

    return open_again


class TestPostgresStore(StoreContract):
    """The contract."""

    @staticmethod
    def read_endlessly(store):
        store._fetch_rows("SELECT pg_sleep(60)", ())


def test_the_page_renames_a_market_with_all_that_is_stored_of_it(database, open_store):
    check_renaming(open_store, lambda: database.rows(renaming("psql")))


# ---------------------------------------------------------------- addresses


def test_the_address_decides_which_store_it_is(tmp_path):
    assert isinstance(make_store(f"sqlite:///{tmp_path}/candled.db", [MINUTE]), SqliteStore)
    for scheme in ("postgresql", "postgres"):
        assert isinstance(make_store(f"{scheme}://candled@localhost/candled", [MINUTE]), PostgresStore)
    with pytest.raises(ConfigError) as refused:
        make_store("mysql://me:secret@localhost/candled", [MINUTE])
    assert "secret" not in str(refused.value)
    assert all(any(example in str(refused.value) for example in text.split()) for text in KNOWN_STORES.values())


@pytest.mark.parametrize("address", ["postgresql://me:secret@host:port/x", "postgresql://me:secret@host/x?colour=red"])
def test_an_address_with_a_mistake_is_refused_without_repeating_it(address):
    with pytest.raises(ConfigError) as refused:
        make_store(address, [MINUTE])
    assert "secret" not in str(refused.value)


def test_a_server_that_cannot_be_reached_is_a_passing_error():
    store = PostgresStore("postgresql://me:secret@127.0.0.1:1/candled", DEFAULT_INTERVALS)
    with pytest.raises(StoreUnavailable, match="refused") as refused:
        store.open()
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(StoreRejected, match="not open"):
        store.newest_minutes("bitget")


# ---------------------------------------------------------------- the schema


def test_a_newer_schema_is_refused_and_left_alone(database, open_store):
    open_store(MINUTE).close()
    database.rows("UPDATE candled.state SET schema = 99 RETURNING schema")
    with pytest.raises(StoreRejected, match=f"newer candled .schema 99; this one knows up to {SCHEMA}."):
        open_store(*DEFAULT_INTERVALS)
    assert database.rows("SELECT schema FROM candled.state") == [(99,)]
    assert database.rows("SELECT name FROM candled.intervals") == []


def test_a_database_of_the_first_schema_is_upgraded_as_it_stands(database, open_store):
    minutes = [minute(at, volume=f"{at}.10", quote="3") for at in range(20)]
    open_store(*DEFAULT_INTERVALS).write_minutes([(BTC, candle) for candle in (*minutes, minute(20, final=False))])
    database.rows(
        """ALTER TABLE candled.candles DROP COLUMN rev, DROP COLUMN src;
        ALTER TABLE candled.forming DROP CONSTRAINT forming_pkey, ADD CONSTRAINT running_pkey PRIMARY KEY (market);
        ALTER TABLE candled.forming DROP COLUMN rev, DROP COLUMN src;
        ALTER TABLE candled.forming RENAME TO running;
        ALTER TABLE candled.rollups DROP COLUMN rev;
        DROP TABLE candled.feeds, candled.changes, candled.processes;
        ALTER TABLE candled.intervals ADD COLUMN used_at timestamptz;
        UPDATE candled.state SET schema = 1 RETURNING schema"""
    )
    store = open_store(*DEFAULT_INTERVALS)
    assert everything(store, BTC, MINUTE) == minutes
    assert store.read_forming(BTC) == [minute(20, final=False)]
    revised = minute(3, volume="5", as_of_ms=10**13, src="rest")
    store.write_minutes([(BTC, revised), (BTC, minute(20, volume="4", final=False))])
    assert store.read_forming(BTC) == [minute(20, volume="4", final=False)]
    for interval in LONGER:
        expected = sums([*minutes[:3], revised._replace(rev=1), *minutes[4:]], interval)
        assert everything(store, BTC, interval) == expected
    store.register_feed([BTC], "a")
    assert store.changes_since(BTC, "a", 0) == []


def test_without_upgrade_a_database_that_is_not_up_to_date_is_refused_and_left_alone(database, open_store):
    with pytest.raises(StoreRejected, match=r"at schema 0, this program needs .*candled init-db"):
        open_store(MINUTE, upgrade=False)
    with pytest.raises(StoreRejected, match=r"at schema 0, this program needs .*candled init-db"):
        open_store()
    assert database.rows("SELECT to_regnamespace('candled')") == [(None,)]
    open_store(MINUTE).close()
    open_store(MINUTE, upgrade=False)


def test_processes_that_start_together_prepare_the_database_once(open_store):
    with ThreadPoolExecutor(6) as threads:
        jobs = [threads.submit(open_store, *DEFAULT_INTERVALS) for _ in range(6)]
        opened = [job.result() for job in jobs]
    for number, store in enumerate(opened):
        store.write_minutes([(BTC, minute(number))])
    assert everything(opened[0], BTC, M5) == sums([minute(number) for number in range(6)], M5)


def test_an_ordinary_role_that_owns_its_database_suffices(stores):
    dsn = shared_postgres()
    with Database(dsn) as admin:
        admin.rows(f"CREATE ROLE {admin.name} LOGIN")
        try:
            with Database(dsn, f"OWNER {admin.name}") as database:
                stores.append(PostgresStore(database.url(user=admin.name), DEFAULT_INTERVALS, retention_days=30))
                stores[0].open()
                stores[0].write_minutes([(BTC, minute(0))])
                stores[0].tidy_up(MONDAY_MS)
                assert everything(stores[0], BTC, W1) == [folded(minute(0))]
                stores[0].close()
        finally:
            admin.rows(f"DROP ROLE {admin.name}")


def test_a_role_that_may_not_create_tables_gets_that_error(database, stores):
    database.rows(f"CREATE ROLE {database.name} LOGIN")
    try:
        with pytest.raises(StoreRejected, match="permission denied"):
            PostgresStore(database.url(user=database.name), DEFAULT_INTERVALS).open()
    finally:
        database.rows(f"DROP ROLE {database.name}")


def test_tables_that_are_missing_while_a_backup_is_restored_are_a_passing_error(database, open_store):
    store = open_store(MINUTE, M5)
    store.write_minutes([(BTC, minute(0))])
    database.rows("ALTER SCHEMA candled RENAME TO elsewhere")
    with pytest.raises(StoreUnavailable):
        store.write_minutes([(BTC, minute(1))])
    with pytest.raises(StoreUnavailable):
        everything(store, BTC, M5)
    database.rows("ALTER SCHEMA elsewhere RENAME TO candled")
    store.write_minutes([(BTC, minute(1))])
    assert everything(store, BTC, M5) == sums([minute(0), minute(1)], M5)


def test_health_learns_the_server_and_the_free_connections(open_store):
    facts = open_store(MINUTE, writers=3, readers=5).describe()
    assert facts["kind"] in ("postgresql", "timescaledb")
    assert (facts["schema"], facts["freeWriters"], facts["freeReaders"]) == (SCHEMA, 3, 5)
    assert facts["server"].split(".")[0].isdigit()


# ---------------------------------------------------------------- what is in the tables


def test_everyone_can_read_the_tables(database, open_store):
    open_store(*DEFAULT_INTERVALS).write_minutes(
        [(BTC, minute(61, volume="0.00000010", as_of_ms=MONDAY_MS + 61_000 * 61))]
    )
    for table in ("candles", "rollups WHERE minutes = 1"):
        rows = database.rows(f"SELECT time, volume::text, quote_volume, as_of FROM candled.{table}")
        expected = (
            datetime(2025, 6, 2, 1, 1, tzinfo=UTC),
            "0.00000010",
            None,
            datetime(2025, 6, 2, 1, 2, 1, tzinfo=UTC),
        )
        assert rows == ([expected] if table == "candles" else [])
    assert database.rows("SELECT minutes, time FROM candled.rollups ORDER BY minutes DESC LIMIT 1") == [
        (WEEK_MINUTES, datetime(2025, 6, 2, tzinfo=UTC))
    ]


@settings(
    max_examples=50 if tiers.LONG else 15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at_ms=st.integers(0, 4_102_444_800_000))
def test_times_are_exact_to_the_millisecond(open_store, stores, at_ms):
    store = stores[0] if stores else open_store(MINUTE)
    market = new_market()  # of one market it only moves back
    store.set_complete_from(market, at_ms)
    assert store.complete_from(market) == at_ms


def test_the_newest_minutes_are_found_behind_a_gap_of_years(open_store):
    store = open_store(MINUTE)
    far = [minute(0), minute(1), minute(2_000_000), minute(2_000_001), minute(3_000_000)]
    store.write_minutes([(BTC, candle) for candle in far])
    assert store.read_bars(BTC, MINUTE, before_ms=10**15, limit=4) == far[1:]
    assert store.read_bars(BTC, MINUTE, before_ms=10**15, limit=9) == far
    assert store.read_bars(BTC, MINUTE, before_ms=far[0].open_ms, limit=9) == []
    assert [span.start_ms for span in store.stored_ranges(BTC, 0, 10**15)] == [
        far[0].open_ms,
        far[2].open_ms,
        far[4].open_ms,
    ]


# ---------------------------------------------------------------- several processes


def test_a_writer_keeps_up_the_intervals_of_other_processes_too(open_store):
    own, others = open_store(M5), open_store(M5, H1)
    own.write_minutes([(BTC, minute(0))])
    own.write_minutes([(BTC, minute(59, "7"))])
    assert everything(others, BTC, H1) == sums([minute(0), minute(59, "7")], H1)


def test_an_interval_whose_past_another_process_still_folds_lends_no_half_bars(database, open_store):
    m15 = Interval.parse("15m")
    minutes = [minute(at) for at in (0, 1, 40)]
    store = open_store(M5, H1)
    store.write_minutes([(BTC, candle) for candle in minutes[:2]])
    database.rows("INSERT INTO candled.intervals (name) VALUES ('15m') RETURNING name")  # the first thing it does
    store.write_minutes([(BTC, minutes[2])])
    assert everything(store, BTC, H1) == sums(minutes, H1)
    other = open_store(M5, m15, H1)
    assert everything(other, BTC, m15) == sums(minutes, m15)
    assert everything(other, BTC, H1) == sums(minutes, H1)


def test_minutes_written_while_history_is_folded_are_in_the_new_bars(open_store):
    old, new = [minute(at) for at in range(0, 400_000, 50)], [minute(at) for at in range(25, 400_000, 4000)]
    writer = open_store(MINUTE)
    writer.write_minutes([(BTC, candle) for candle in old])
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(open_store, *DEFAULT_INTERVALS)
        for candle in new:
            writer.write_minutes([(BTC, candle)])
        reader = opening.result()
    minutes = sorted([*old, *new])
    for interval in LONGER:
        assert everything(reader, BTC, interval) == sums(minutes, interval)


def age(database, seconds):
    """Make every process look as if it had checked in so much earlier."""
    database.rows(f"UPDATE candled.processes SET seen_at = seen_at - interval '{seconds} seconds' RETURNING id")


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"intervals": (M5, H1)}, []),
        ({"intervals": (M5,)}, ["intervals 5m, this process with 5m, 1h"]),
        ({"intervals": (M5, H1), "retention_days": 30}, ["retention 30 d, this process with off"]),
        ({"intervals": (H1,), "compress_after_days": 1}, ["intervals 1h, this", "compress_after 1 d, this"]),
    ],
)
def test_daemons_with_different_settings_are_named_while_both_run(database, open_store, others, named):
    own = open_store(M5, H1)
    other = open_store(*others.pop("intervals"), **others)
    other.check_in()
    age(database, 60)
    assert own.check_in() == []  # it may have ended before this one began
    other.check_in()
    found = own.check_in()
    assert len(found) == len(named)
    assert all(expected in text for expected, text in zip(named, found, strict=True))
    age(database, 180)
    assert own.check_in() == []


def test_an_interval_in_use_is_not_dropped(database, open_store):
    daemon, tool = open_store(M5, H1), open_store(M5)
    daemon.check_in()
    with pytest.raises(StoreRejected, match=r"bars of 1h are in use by .*: stop it first"):
        tool.drop_interval(H1)
    age(database, 180)
    assert tool.drop_interval(H1) == 0


# ---------------------------------------------------------------- maintenance


def test_old_minutes_are_dropped_by_weeks_and_their_bars_stay(open_store):
    minutes = [minute(at) for at in range(0, 4 * WEEK_MINUTES, 60)]
    store = open_store(*DEFAULT_INTERVALS, retention_days=10)
    store.write_minutes([(BTC, candle) for candle in minutes])
    bars = {interval: everything(store, BTC, interval) for interval in LONGER}
    store.tidy_up(MONDAY_MS + 3 * WEEK_MS + 2 * DAY_MS)  # ten days before that lies in the second week
    kept = everything(store, BTC, MINUTE)
    if store.describe()["kind"] == "timescaledb":  # where whole chunks go
        assert kept == minutes[-len(kept) :]
        assert 3 * 7 * 24 <= len(kept) < len(minutes)
    else:
        assert kept == minutes[7 * 24 :]
    assert {interval: everything(store, BTC, interval) for interval in LONGER} == bars
    assert store.read_bars(BTC, MINUTE, before_ms=10**15, limit=10**6) == kept
    store.rebuild_rollups(BTC, [ALL_TIME])
    assert {interval: everything(store, BTC, interval) for interval in LONGER} == bars


def test_a_minute_too_old_to_be_kept_does_not_spoil_its_bar(open_store):
    store = open_store(D1, retention_days=10)
    store.write_minutes([(BTC, minute(0)), (BTC, minute(1)), (BTC, minute(5 * WEEK_MINUTES))])
    store.tidy_up(MONDAY_MS + 5 * WEEK_MS)
    store.write_minutes([(BTC, minute(2)), (BTC, minute(5 * WEEK_MINUTES + 1))])
    assert [bar.volume for bar in everything(store, BTC, D1)] == [2, 2]
    assert len(everything(store, BTC, MINUTE)) == 2


def test_without_settings_maintenance_keeps_everything(open_store):
    store = open_store(*DEFAULT_INTERVALS)
    store.write_minutes([(BTC, minute(0))])
    store.tidy_up(MONDAY_MS + 1000 * WEEK_MS)
    assert everything(store, BTC, MINUTE) == [minute(0)]
    assert everything(store, BTC, D1) == [folded(minute(0))]


# ---------------------------------------------------------------- connections


def test_more_threads_than_connections_wait_their_turn(open_store):
    store = open_store(MINUTE, readers=2)
    store.write_minutes([(BTC, minute(0))])
    reads = 10_000 if tiers.LONG else 1000
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: everything(store, BTC, MINUTE), range(reads)))
    assert answers == [[minute(0)]] * reads
    assert store.describe()["freeReaders"] == 2


def test_a_returned_slot_goes_to_the_thread_that_waited_longest():
    pool = Pool(Mock, 1, wait_s=60)
    order, threads = [], []

    def borrow(number):
        with pool.borrow_connection():
            order.append(number)

    with pool.borrow_connection():
        for number in range(5):
            threads.append(threading.Thread(target=borrow, args=[number]))
            threads[-1].start()
            while len(pool._waiting) <= number:
                time.sleep(0.001)
    with pool.borrow_connection():  # comes last, although it asks before any of them has run
        order.append("again")
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4, "again"]


def test_a_connection_that_never_becomes_free_is_not_waited_for_without_end(open_store):
    store = open_store(MINUTE, readers=1, limit_s=0.2)
    with store._pools[2].borrow_connection(), pytest.raises(StoreUnavailable, match="busy"):
        store.newest_minutes("bitget")
    assert store.newest_minutes("bitget") == {}


def test_a_batch_that_the_server_refuses_leaves_the_connection_fit_for_the_next(open_store):
    store = open_store(*DEFAULT_INTERVALS, writers=1)
    with pytest.raises(StoreRejected, match="out of range"):
        store.write_minutes([(ETH, minute(0)), (BTC, minute(0)._replace(open_ms=10**18))])
    store.write_minutes([(BTC, minute(0))])
    assert (everything(store, BTC, W1), everything(store, ETH, MINUTE)) == ([folded(minute(0))], [])


def test_a_statement_that_takes_too_long_is_ended_by_the_server(open_store):
    store = open_store(MINUTE, readers=1, limit_s=0.5)
    with pytest.raises(StoreUnavailable, match="statement timeout"):
        store._fetch_rows("SELECT pg_sleep(5)", ())
    assert store.newest_minutes("bitget") == {}


def test_a_closed_store_raises_that_error(open_store):
    store = open_store(MINUTE)
    store.close()
    with pytest.raises(StoreRejected, match="not open"):
        store.newest_minutes("bitget")
