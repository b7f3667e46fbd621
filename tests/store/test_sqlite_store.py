"""The SQLite store: the contract of all stores, and what is special about a file."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

import candled
from candled.errors import StoreRejected, StoreUnavailable
from candled.model import DEFAULT_INTERVALS, MINUTE
from candled.store.sqlite import file
from candled.store.sqlite import store as sqlite
from candled.store.sqlite.store import SqliteStore
from tests.store import load
from tests.store.contract import H1, LONGER, M5, StoreContract, check_renaming, everything, folded, renaming, sums
from tests.store.rows import BTC, ETH, minute
from tests.tiers import LONG


@pytest.fixture
def path(tmp_path):
    return tmp_path / "candled.db"


@pytest.fixture
def open_store(path):
    stores = []

    def open_again(*intervals, **options):
        store = SqliteStore(path, intervals or None, **options)
        if intervals:  # the file belongs to one at a time
            for before in stores:
                before.close()
        stores.append(store)
        store.open()
        return store

    yield open_again
    for store in stores:
        store.close()


class TestSqliteStore(StoreContract):
    """The contract."""

    @staticmethod
    def read_endlessly(store):
        store._fetch_rows(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 999999999) SELECT max(i) FROM n"
        )


def test_the_page_renames_a_market_with_all_that_is_stored_of_it(path, open_store):
    def rename():
        connection = sqlite3.connect(path)
        with connection:
            connection.execute(renaming("sqlite3"))
        connection.close()

    check_renaming(open_store, rename)


# ---------------------------------------------------------------- files it refuses


def refusal(path):
    with pytest.raises(StoreRejected) as refused:
        SqliteStore(path, DEFAULT_INTERVALS).open()
    return str(refused.value)


def test_a_newer_schema_is_refused_and_left_alone(path, open_store):
    open_store(MINUTE).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    assert f"newer candled (schema 99; this one knows up to {sqlite.SCHEMA})" in refusal(path)
    assert path.read_bytes() == before


def test_a_file_of_another_program_is_refused_and_left_alone(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = path.read_bytes()
    assert "another program" in refusal(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(path):
    path.write_text("time_ms,open,high,low,close,volume\n" * 100)
    assert "not a database" in refusal(path)


def test_a_missing_directory_is_named(path):
    assert f"the directory {path.parent / 'typo'} does not exist" in refusal(path.parent / "typo" / "candled.db")


def test_a_directory_cannot_be_the_file(tmp_path):
    assert "cannot be opened for writing" in refusal(tmp_path)


@pytest.mark.slow
def test_a_damaged_file_is_reported_not_read_as_empty(path, open_store):
    store = open_store(*DEFAULT_INTERVALS)
    store.write_minutes([(BTC, minute(at)) for at in range(2000)])
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(16 * 4096)  # after the first pages of each table
        file.write(random.Random(1).randbytes(size - 16 * 4096))
    damaged = open_store(*DEFAULT_INTERVALS)
    with pytest.raises(StoreRejected, match="malformed"):
        everything(damaged, BTC, MINUTE)


def test_a_file_overwritten_while_it_is_open_is_named_by_every_call_and_by_the_next_start(path, open_store):
    store = open_store(*DEFAULT_INTERVALS)
    store.write_minutes([(BTC, minute(at)) for at in range(300)])
    other = sqlite3.connect(path)
    assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)  # nothing is left in its log
    other.close()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    for call in (
        lambda: store.write_minutes([(BTC, minute(400))]),
        lambda: everything(store, BTC, MINUTE),
        lambda: everything(store, BTC, H1),
    ):
        with pytest.raises(StoreRejected, match=r"candled\.db: file is not a database"):
            call()
    store.close()
    assert "candled.db: file is not a database" in refusal(path)


def test_a_closed_store_raises_that_error(open_store):
    store = open_store(MINUTE)
    store.close()
    with pytest.raises(StoreRejected, match="not open"):
        store.newest_minutes("bitget")


# ---------------------------------------------------------------- whose file it is


def test_a_second_daemon_is_refused_by_name_and_has_the_file_when_the_first_ends(path, open_store):
    first, second = open_store(M5), SqliteStore(path, [H1])
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=f"another candled uses it .process {os.getpid()}."):
            second.open()
    first.write_minutes([(BTC, minute(0))])
    assert first.intervals() == [M5]
    first.close()
    second.open()
    assert second.intervals() == [M5, H1]
    second.close()


LOST = {
    "deleted": (lambda path: path.unlink(), "candled.db: was deleted or moved"),
    "moved": (lambda path: path.rename(path.with_name("moved")), "candled.db: was deleted or moved"),
    "replaced": (lambda path: shutil.copy(path, path.with_name("copy")).replace(path), "candled.db: was replaced"),
    "its log deleted": (lambda path: path.with_name("candled.db-wal").unlink(), "candled.db-wal: was deleted or moved"),
    "its directory moved": (lambda path: path.parent.rename(path.parent.with_name("moved")), "was deleted or moved"),
}


@pytest.mark.parametrize("case", LOST)
def test_a_file_that_others_do_not_see_is_neither_read_nor_written_until_it_is_back(tmp_path, case):
    path = tmp_path / "data" / "candled.db"
    path.parent.mkdir()
    store = SqliteStore(path, [M5])
    store.open()
    lose, message = LOST[case]
    kept = path.with_name("kept"), path.with_name("kept-wal")
    try:
        store.write_minutes([(BTC, minute(0))])
        for name, link in zip((path, path.with_name("candled.db-wal")), kept, strict=True):
            os.link(name, link)
        lose(path)
        for call in (
            lambda: store.write_minutes([(BTC, minute(1))]),
            lambda: store.read_bars(BTC, MINUTE, before_ms=2**60, limit=9),
            store.check_in,
        ):
            with pytest.raises(StoreUnavailable, match=message):
                call()
        if case == "its directory moved":
            path.parent.with_name("moved").rename(path.parent)
        for name, link in zip((path, path.with_name("candled.db-wal")), kept, strict=True):
            link.replace(name)
        store.check_in()
        store.write_minutes([(BTC, minute(1))])
        assert len(everything(store, BTC, MINUTE)) == 2
    finally:
        store.close()


def test_two_daemons_do_not_share_a_file_whose_lock_file_was_deleted(path, open_store):
    first, second = open_store(M5), SqliteStore(path, [M5])
    lock = path.with_name("candled.db-owner")
    lock.unlink()
    first.check_in()
    with pytest.raises(StoreUnavailable, match="another candled uses it"):
        second.open()
    lock.unlink()
    second.open()
    for call in (first.check_in, lambda: first.write_minutes([(BTC, minute(0))])):
        with pytest.raises(StoreUnavailable, match=f"another candled uses it .process {os.getpid()}."):
            call()
    second.write_minutes([(BTC, minute(0))])
    second.close()
    first.check_in()
    first.write_minutes([(BTC, minute(1))])
    first.close()
    assert not lock.exists()


@pytest.mark.usefixtures("daemon")
def test_the_file_is_free_again_however_its_daemon_ended(path, open_store):
    load_and_kill(path, 0, after_s=0.1)
    assert len(everything(open_store(*DEFAULT_INTERVALS), BTC, MINUTE)) > 0


def test_another_name_of_the_file_is_the_same_file(path, open_store):
    open_store(MINUTE)
    other = path.with_name("other.db")
    other.symlink_to(path)
    with pytest.raises(StoreUnavailable, match="another candled"):
        SqliteStore(other, [MINUTE]).open()


def first_schema(path):
    make_first_schema(path, [minute(0)])


@pytest.mark.parametrize("made", [lambda path: None, lambda path: path.touch(), first_schema])
@pytest.mark.parametrize("options", [{"intervals": None}, {"intervals": [H1], "upgrade": False}])
def test_a_store_that_may_not_upgrade_names_the_command_and_leaves_the_file_alone(path, made, options):
    made(path)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(StoreRejected, match="run `candled init-db`"):
        SqliteStore(path, **options).open()
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_guest_writes_nothing_by_opening_and_reading(path, open_store):
    open_store(M5).write_minutes([(BTC, minute(0))])
    open_store(M5).close()
    path.chmod(0o444)
    before = path.read_bytes(), path.stat().st_mtime_ns
    guest = open_store()
    assert everything(guest, BTC, M5) == [folded(minute(0))]
    guest.close()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


# ---------------------------------------------------------------- trouble that passes


def test_a_lock_of_another_program_is_a_passing_error(path, open_store, monkeypatch):
    monkeypatch.setattr(file, "BUSY_TIMEOUT_S", 0.05)
    store = open_store(MINUTE)
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.write_minutes([(BTC, minute(0))])
        assert everything(store, BTC, MINUTE) == []  # readers need no lock
        other.execute("COMMIT")
    finally:
        other.close()
    store.write_minutes([(BTC, minute(0))])
    assert everything(store, BTC, MINUTE) == [minute(0)]


def test_opening_can_be_tried_again(path, open_store, monkeypatch):
    monkeypatch.setattr(file, "BUSY_TIMEOUT_S", 0.05)
    open_store(MINUTE).close()
    other = sqlite3.connect(path, isolation_level=None)
    store = SqliteStore(path, [MINUTE])
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.open()
        with pytest.raises(StoreRejected, match="not open"):
            store.newest_minutes("bitget")
    finally:
        other.close()
    store.open()
    assert store.newest_minutes("bitget") == {}
    store.close()


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_stored_and_passes(open_store):
    store = open_store(*DEFAULT_INTERVALS)
    store.write_minutes([(BTC, minute(at)) for at in range(100)])
    store._file.thread_connection().execute("PRAGMA max_page_count = 12")
    more = [(ETH, minute(at)) for at in range(3000)]
    with pytest.raises(StoreUnavailable, match="full"):
        store.write_minutes(more)
    assert (len(everything(store, BTC, MINUTE)), everything(store, ETH, MINUTE)) == (100, [])
    store._file.thread_connection().execute("PRAGMA max_page_count = 100000")
    store.write_minutes(more)
    assert everything(store, ETH, H1) == sums([candle for _, candle in more], H1)


def test_folding_that_was_cut_short_is_done_again(open_store, monkeypatch):
    minutes = [minute(at) for at in (0, 1, 60_000, 200_000)]
    open_store(MINUTE).write_minutes([(BTC, candle) for candle in minutes])
    fold, calls = sqlite.fold_levels, []

    def fold_once(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        fold(*args)

    monkeypatch.setattr(sqlite, "fold_levels", fold_once)
    with pytest.raises(KeyboardInterrupt):
        open_store(MINUTE, M5)
    monkeypatch.undo()
    open_store(MINUTE).write_minutes([(BTC, minute(2))])  # the interval is given up again, its half history with it
    assert open_store(MINUTE).intervals() == []
    assert everything(open_store(MINUTE, M5), BTC, M5) == sums(sorted([*minutes, minute(2)]), M5)


# ---------------------------------------------------------------- the file itself


def test_one_file_is_left_after_closing(path, open_store):
    store = open_store(*DEFAULT_INTERVALS)
    store.write_minutes([(BTC, minute(0))])
    assert store.describe()["walBytes"] > 0
    store.close()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_decimals_are_kept_as_text_with_their_zeros(path, open_store):
    open_store(*DEFAULT_INTERVALS).write_minutes([(BTC, minute(0, volume="0.00000010"))])
    with closing(sqlite3.connect(path)) as connection, connection:
        kept = [connection.execute(f"SELECT volume FROM {table}").fetchone() for table in ("candles", "rollups")]
    connection.close()
    assert kept == [("0.00000010",), ("0.00000010",)]


@pytest.mark.parametrize("value", ["x'31'", "'1e5x'", "'1,2'", "''", "'1\"],[2'"])
def test_a_value_that_is_no_number_is_not_printed(path, open_store, value):
    store = open_store(M5)
    store.write_minutes([(BTC, minute(0)), (BTC, minute(1))])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE candles SET close = {value} WHERE time_ms = {minute(1).open_ms}")
    with pytest.raises(StoreRejected, match=r"a stored bar cannot be read: 2025-06-02T00:01.*close"):
        store.read_texts_between(BTC, MINUTE, 0, minute(2).open_ms)
    assert list(store.read_texts_between(BTC, MINUTE, 0, minute(1).open_ms).times) == [minute(0).open_ms]


@pytest.mark.usefixtures("daemon")
def test_kill_9_during_load_loses_nothing_that_was_acknowledged(path, open_store):
    dice = random.Random(20250602)
    acknowledged = 0
    for _ in range(6 if LONG else 3):
        acknowledged = load_and_kill(path, acknowledged, after_s=dice.uniform(0.05, 0.6))
        store = open_store(*DEFAULT_INTERVALS)
        stored = everything(store, BTC, MINUTE)
        assert len(stored) >= acknowledged
        assert stored == load.minutes(0, len(stored))
        for interval in LONGER:
            assert everything(store, BTC, interval) == sums(stored, interval)
        store.close()
        acknowledged = len(stored)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert acknowledged > 300  # or the load was none


def load_and_kill(path: Path, start: int, *, after_s: float) -> int:
    """Let a process write on from minute `start`; kill it `after_s` after its first word; return its last word."""
    root = Path(candled.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-m", "tests.store.load", str(path), str(start)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        words = [child.stdout.readline()]
        time.sleep(after_s)
        os.kill(child.pid, signal.SIGKILL)
        words += child.stdout.read().splitlines(keepends=True)
    assert child.returncode == -signal.SIGKILL
    return max(json.loads(word) for word in words if word.endswith("\n"))


# ---------------------------------------------------------------- files of earlier versions


def test_a_file_of_the_first_schema_is_upgraded_as_it_stands(path, open_store):
    minutes = [minute(at, volume=f"{at}.10", quote="3") for at in range(20)]
    make_first_schema(path, minutes, running=minute(20, final=False))
    store = open_store(*DEFAULT_INTERVALS)
    assert everything(store, BTC, MINUTE) == minutes
    for interval in LONGER:
        assert everything(store, BTC, interval) == sums(minutes, interval)
    assert store.read_forming(BTC) == [minute(20, final=False)]
    assert store.describe()["schema"] == sqlite.SCHEMA
    revised = minute(3, volume="5", as_of_ms=10**13, src="rest")
    store.write_minutes([(BTC, revised)])
    assert everything(store, BTC, H1) == sums([*minutes[:3], revised._replace(rev=1), *minutes[4:]], H1)
    store.register_feed([BTC], "a")
    assert store.changes_since(BTC, "a", 0) == []


def test_an_upgrade_that_was_cut_short_is_done_again_from_the_start(path, open_store, monkeypatch):
    make_first_schema(path, [minute(0)])
    with monkeypatch.context() as broken:
        broken.setattr(sqlite.sql, "STEPS", (sqlite.sql.STEPS[0], (*sqlite.sql.STEPS[1], "SELECT no_such_column")))
        with pytest.raises(StoreRejected, match="no_such_column"):
            open_store(*DEFAULT_INTERVALS)
    assert everything(open_store(*DEFAULT_INTERVALS), BTC, MINUTE) == [minute(0)]


def test_of_daemons_that_start_together_one_upgrades_the_file_and_has_it(path):
    make_first_schema(path, [minute(0)])

    def start(_):
        store = SqliteStore(path, DEFAULT_INTERVALS)
        try:
            store.open()
        except StoreUnavailable as error:
            assert "another candled uses it" in str(error)
            return None
        return store

    with ThreadPoolExecutor(4) as threads:
        [store] = [store for store in threads.map(start, range(4)) if store]
    assert everything(store, BTC, MINUTE) == [minute(0)]
    store.close()
    store.close()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def make_first_schema(path, minutes, running=None):
    """The file as the first version wrote it, by statements of that time."""
    values = (
        "time_ms INTEGER NOT NULL, open TEXT NOT NULL, high TEXT NOT NULL, low TEXT NOT NULL, close TEXT NOT NULL,"
        "volume TEXT NOT NULL, quote_volume TEXT, as_of_ms INTEGER NOT NULL"
    )
    connection = sqlite3.connect(path)
    connection.executescript(f"""
        CREATE TABLE markets (id INTEGER PRIMARY KEY, exchange TEXT NOT NULL, symbol TEXT NOT NULL,
            complete_from_ms INTEGER, UNIQUE (exchange, symbol));
        CREATE TABLE candles (market INTEGER NOT NULL, {values}, PRIMARY KEY (market, time_ms)) WITHOUT ROWID;
        CREATE TABLE rollups (market INTEGER NOT NULL, interval_ms INTEGER NOT NULL, {values},
            PRIMARY KEY (market, interval_ms, time_ms)) WITHOUT ROWID;
        CREATE TABLE running (market INTEGER PRIMARY KEY, {values});
        CREATE TABLE holes (market INTEGER NOT NULL, start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL,
            reason TEXT NOT NULL, attempts INTEGER NOT NULL, retry_ms INTEGER, PRIMARY KEY (market, start_ms)
        ) WITHOUT ROWID;
        CREATE TABLE intervals (interval_ms INTEGER PRIMARY KEY);
        INSERT INTO markets VALUES (7, 'bitget', 'BTC/USDT', NULL);
        PRAGMA application_id = {0x63616E64};
        PRAGMA user_version = 1;
        PRAGMA journal_mode = WAL;
        """)

    def row(bar):
        return (bar.open_ms, *(None if n is None else format(n, "f") for n in bar.values), bar.as_of_ms)

    with connection:
        connection.executemany(f"INSERT INTO candles VALUES (7, {MARKS})", map(row, minutes))
        for interval in LONGER:
            connection.execute("INSERT INTO intervals VALUES (?)", (interval.ms,))
            bars = [(interval.ms, *row(bar)) for bar in sums(minutes, interval)]
            connection.executemany(f"INSERT INTO rollups VALUES (7, ?, {MARKS})", bars)
        if running:
            connection.execute(f"INSERT INTO running VALUES (7, {MARKS})", row(running))
    connection.close()


MARKS = ", ".join("?" * 8)
