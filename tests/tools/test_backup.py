"""`candled backup` and `candled restore`: real files, beside a writer, and files that are no backups."""

import sqlite3
import subprocess
import threading
from contextlib import closing

import pytest
import yaml

from candled.cli import main
from candled.model import DEFAULT_INTERVALS, MINUTE
from candled.store.postgres.store import PostgresStore
from candled.store.sqlite.store import SqliteStore
from tests.servers import Database, find_binaries, shared_postgres
from tests.store.contract import everything
from tests.store.rows import BTC, minute
from tests.store.test_sqlite_store import make_first_schema


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "candled.yaml"
    store = {"url": f"sqlite:///{tmp_path}/candled.db"}
    path.write_text(yaml.safe_dump({"exchanges": {"bitget": {"symbols": ["BTC/USDT"]}}, "store": store}), "utf-8")
    return str(path)


@pytest.fixture
def store(tmp_path):
    one = SqliteStore(tmp_path / "candled.db", DEFAULT_INTERVALS)
    one.open()
    yield one
    one.close()


def bars(path, interval=MINUTE):
    one = SqliteStore(path, DEFAULT_INTERVALS)
    one.open()
    try:
        return everything(one, BTC, interval)
    finally:
        one.close()


def test_a_backup_beside_a_writer_is_the_store_at_one_moment(tmp_path, config, store, capsys):
    written, is_over = [], threading.Event()

    def write():
        while not is_over.is_set():
            number = len(written)
            store.write_minutes([(BTC, minute(number))])
            written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(written) < 50:
            is_over.wait(0.001)
        before = len(written)
        assert main(["backup", str(tmp_path / "copy.db"), "--config", config]) == 0
        after = len(written) + 1
    finally:
        is_over.set()
        writer.join()
    assert capsys.readouterr().out.endswith("bytes, 1 market\n")
    assert sorted(path.name for path in tmp_path.glob("copy.db*")) == ["copy.db"]
    copied = bars(tmp_path / "copy.db")
    assert before <= len(copied) <= after
    assert copied == [minute(number) for number in range(len(copied))]
    for interval in DEFAULT_INTERVALS:  # longer bars are those of the same minutes
        volumes = sum(bar.volume for bar in bars(tmp_path / "copy.db", interval))
        assert volumes == sum(one.volume for one in copied)


def test_a_restore_brings_back_the_backup_and_keeps_the_former_file(tmp_path, config, store, capsys):
    store.write_minutes([(BTC, minute(0))])
    copy, path = tmp_path / "copy.db", tmp_path / "candled.db"
    assert main(["backup", str(copy), "--config", config]) == 0
    store.write_minutes([(BTC, minute(1))])
    capsys.readouterr()

    assert main(["restore", str(copy), "--config", config]) == 2
    assert "candled.db: another candled uses it" in capsys.readouterr().err
    store.close()
    assert main(["restore", str(copy), "--config", config]) == 0
    assert capsys.readouterr().out == f"{path}: restored from {copy}; the former file is {path}.former-1\n"
    assert bars(path) == [minute(0)]
    assert bars(tmp_path / "candled.db.former-1") == [minute(0), minute(1)]
    assert main(["restore", str(copy), "--config", config]) == 0
    assert (tmp_path / "candled.db.former-2").exists()


def test_the_last_rows_of_a_killed_daemon_stay_with_the_former_file(tmp_path, config, store):
    """They are in the write-ahead log, which belongs to the file that is renamed."""
    copy, path = tmp_path / "copy.db", tmp_path / "candled.db"
    assert main(["backup", str(copy), "--config", config]) == 0
    store.write_minutes([(BTC, minute(0))])
    names = [f"candled.db{suffix}" for suffix in ("", "-wal")]
    killed = {name: (tmp_path / name).read_bytes() for name in names}
    store.close()
    for name in names:
        (tmp_path / name).write_bytes(killed[name])
    assert main(["restore", str(copy), "--config", config]) == 0
    assert bars(path) == []
    assert bars(tmp_path / "candled.db.former-1") == [minute(0)]


def test_a_restore_without_a_store_makes_one(tmp_path, config, store):
    store.write_minutes([(BTC, minute(0))])
    assert main(["backup", str(tmp_path / "copy.db"), "--config", config]) == 0
    store.close()
    (tmp_path / "candled.db").unlink()
    assert main(["restore", str(tmp_path / "copy.db"), "--config", config]) == 0
    assert bars(tmp_path / "candled.db") == [minute(0)]


def test_a_backup_of_an_older_version_is_restored_as_it_is(tmp_path, config):
    make_first_schema(tmp_path / "old.db", [minute(0)])
    assert main(["restore", str(tmp_path / "old.db"), "--config", config]) == 0
    assert bars(tmp_path / "candled.db") == [minute(0)]  # opening upgrades it


def _damage(path):
    content = bytearray(path.read_bytes())
    content[4096:12288] = bytes(8192)
    path.write_bytes(content)


def _other_program(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE notes (text)")


def _newer(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_damage, "damaged"),
        (_other_program, "is not a store of candled"),
        (_newer, "was written by a newer candled (schema 99, and this one has 5)"),
        (lambda path: path.write_text("time,open\n"), "file is not a database"),
        (lambda path: path.unlink(), "there is no such file"),
    ],
    ids=["damaged", "of another program", "newer", "text", "missing"],
)
def test_a_file_that_is_no_backup_changes_nothing(tmp_path, config, store, capsys, change, problem):
    store.write_minutes([(BTC, minute(number)) for number in range(500)])
    assert main(["backup", str(tmp_path / "copy.db"), "--config", config]) == 0
    store.close()
    change(tmp_path / "copy.db")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert main(["restore", str(tmp_path / "copy.db"), "--config", config]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert problem in lines[0] or (change is _damage and "malformed" in lines[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len(bars(tmp_path / "candled.db")) == 500


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["backup", "taken"], "exists already; expected the name of a new file"),
        (["backup", "nowhere/copy.db"], "unable to open database file"),
        (["restore", "candled.db"], "is the store of the settings"),
    ],
)
def test_mistakes_are_one_line_each(tmp_path, config, store, capsys, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    assert main([*arguments, "--config", config]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_a_store_that_is_no_file_names_the_programs_of_postgresql(tmp_path, capsys):
    path = tmp_path / "candled.yaml"
    path.write_text("store: {url: postgresql://candled@127.0.0.1:1/none}", "utf-8")
    for command, program in (("backup", "pg_dump"), ("restore", "pg_restore")):
        assert main([command, str(tmp_path / "copy.db"), "--config", str(path)]) == 2
        assert f"for PostgreSQL use {program}" in capsys.readouterr().err


@pytest.mark.usefixtures("postgres")
def test_the_recipe_for_postgresql_brings_back_all_bars(tmp_path):
    """The commands of docs/how-to/backup.md."""
    binaries, dump = find_binaries(), tmp_path / "candled.dump"
    if binaries is None or not (binaries / "pg_dump").exists():
        pytest.skip("needs pg_dump beside the programs of the server")
    minutes = [minute(number) for number in range(200)]
    with Database(shared_postgres()) as first, Database(shared_postgres()) as second:
        store = PostgresStore(first.url(), DEFAULT_INTERVALS)
        store.open()
        store.write_minutes([(BTC, one) for one in minutes])
        expected = {interval: everything(store, BTC, interval) for interval in DEFAULT_INTERVALS}
        store.close()
        subprocess.run([binaries / "pg_dump", "--format=custom", "--file", dump, first.url()], check=True)
        subprocess.run([binaries / "pg_restore", "--exit-on-error", "--dbname", second.url(), dump], check=True)
        store = PostgresStore(second.url(), DEFAULT_INTERVALS)
        store.open()
        assert {interval: everything(store, BTC, interval) for interval in DEFAULT_INTERVALS} == expected
        assert expected[MINUTE] == minutes
        store.close()
