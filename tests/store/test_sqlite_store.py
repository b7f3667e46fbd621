"""The SQLite store: the contract of all stores, and what is special about a file."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import candled
from candled.errors import StoreRejected, StoreUnavailable
from candled.model import DEFAULT_INTERVALS, MINUTE
from candled.store import sqlite
from candled.store.sqlite import SqliteStore
from tests.store import load
from tests.store.contract import H1, LONGER, M5, StoreContract, everything, sums
from tests.store.rows import BTC, ETH, minute


@pytest.fixture
def path(tmp_path):
    return tmp_path / "candled.db"


@pytest.fixture
def open_store(path):
    stores = []

    def open_again(*intervals):
        store = SqliteStore(path, intervals)
        stores.append(store)
        store.open()
        return store

    yield open_again
    for store in stores:
        store.close()


class TestSqliteStore(StoreContract):
    """The contract."""


# ---------------------------------------------------------------- files it refuses


def refusal(path):
    with pytest.raises(StoreRejected) as refused:
        SqliteStore(path, DEFAULT_INTERVALS).open()
    return str(refused.value)


def test_a_newer_schema_is_refused_and_left_alone(path, open_store):
    open_store(MINUTE).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    assert "newer candled (schema 99; this one knows up to 1)" in refusal(path)
    assert path.read_bytes() == before


def test_a_file_of_another_program_is_refused_and_left_alone(path):
    with sqlite3.connect(path) as connection:
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


def test_a_damaged_file_is_reported_not_read_as_empty(path, open_store):
    store = open_store(*DEFAULT_INTERVALS)
    store.write([(BTC, minute(at)) for at in range(2000)])
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(random.Random(1).randbytes(size - 8 * 4096))
    damaged = open_store(*DEFAULT_INTERVALS)
    with pytest.raises(StoreRejected, match="malformed"):
        everything(damaged, BTC, MINUTE)


def test_a_closed_store_says_so(open_store):
    store = open_store(MINUTE)
    store.close()
    with pytest.raises(StoreRejected, match="not open"):
        store.newest("bitget")


# ---------------------------------------------------------------- trouble that passes


def test_a_lock_held_by_another_program_is_trouble_that_passes(path, open_store, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    store = open_store(MINUTE)
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.write([(BTC, minute(0))])
        assert everything(store, BTC, MINUTE) == []  # readers need no lock
        other.execute("COMMIT")
    finally:
        other.close()
    store.write([(BTC, minute(0))])
    assert everything(store, BTC, MINUTE) == [minute(0)]


def test_opening_can_be_tried_again(path, open_store, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    open_store(MINUTE).close()
    other = sqlite3.connect(path, isolation_level=None)
    store = SqliteStore(path, [MINUTE])
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.open()
        with pytest.raises(StoreRejected, match="not open"):
            store.newest("bitget")
    finally:
        other.close()
    store.open()
    assert store.newest("bitget") == {}
    store.close()


def test_a_full_disk_loses_nothing_that_was_stored_and_passes(open_store):
    store = open_store(*DEFAULT_INTERVALS)
    store.write([(BTC, minute(at)) for at in range(100)])
    store._connection().execute("PRAGMA max_page_count = 12")
    more = [(ETH, minute(at)) for at in range(3000)]
    with pytest.raises(StoreUnavailable, match="full"):
        store.write(more)
    assert (len(everything(store, BTC, MINUTE)), everything(store, ETH, MINUTE)) == (100, [])
    store._connection().execute("PRAGMA max_page_count = 100000")
    store.write(more)
    assert everything(store, ETH, H1) == sums([candle for _, candle in more], H1)


def test_folding_that_was_cut_short_is_done_again(open_store, monkeypatch):
    minutes = [minute(at) for at in (0, 1, 60_000, 200_000)]
    open_store(MINUTE).write([(BTC, candle) for candle in minutes])
    fold, calls = sqlite._fold, []

    def fold_once(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        fold(*args)

    monkeypatch.setattr(sqlite, "_fold", fold_once)
    with pytest.raises(KeyboardInterrupt):
        open_store(MINUTE, M5)
    monkeypatch.undo()
    open_store(MINUTE).write([(BTC, minute(2))])  # the interval given up again, its half history with it
    assert everything(open_store(MINUTE, M5), BTC, M5) == sums(sorted([*minutes, minute(2)]), M5)


# ---------------------------------------------------------------- the file itself


def test_one_file_is_left_after_closing(path, open_store):
    store = open_store(*DEFAULT_INTERVALS)
    store.write([(BTC, minute(0))])
    assert store.describe()["walBytes"] > 0
    store.close()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_decimals_are_kept_as_text_with_their_zeros(path, open_store):
    open_store(*DEFAULT_INTERVALS).write([(BTC, minute(0, volume="0.00000010"))])
    with sqlite3.connect(path) as connection:
        kept = [connection.execute(f"SELECT volume FROM {table}").fetchone() for table in ("candles", "rollups")]
    connection.close()
    assert kept == [("0.00000010",), ("0.00000010",)]


@pytest.mark.timeout(120)
def test_kill_9_during_load_loses_nothing_that_was_acknowledged(path, open_store):
    dice = random.Random(20250602)
    acknowledged = 0
    for _ in range(6):
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
    assert acknowledged > 1000  # or the load was none


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
