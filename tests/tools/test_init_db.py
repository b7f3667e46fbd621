import pytest
import yaml

from candled.cli import main
from candled.model import MINUTE
from candled.store import make_store
from candled.tools import commands
from tests.servers import Database, shared_postgres
from tests.store.rows import BTC, minute
from tests.store.test_sqlite_store import make_first_schema


def settings(tmp_path, **store):
    path = tmp_path / "candled.yaml"
    path.write_text(yaml.safe_dump({"exchanges": {"bitget": {"symbols": ["BTC/USDT"]}}, "store": store}), "utf-8")
    return str(path)


@pytest.mark.usefixtures("postgres")
def test_init_db_makes_the_tables_once_and_again(tmp_path, capsys):
    with Database(shared_postgres()) as database:
        config = settings(tmp_path, url=database.url(), init=False)
        for _ in range(2):
            assert main(["init-db", "--config", config]) == 0
            assert "schema 4 is ready, with bars of 1m, 5m, 15m, 1h, 4h, 1D, 1W" in capsys.readouterr().out
        assert database.rows("SELECT count(*) FROM candled.intervals") == [(6,)]


@pytest.mark.slow
def test_init_db_makes_the_embedded_file(tmp_path, capsys):
    assert main(["init-db", "--config", settings(tmp_path, url=f"sqlite:///{tmp_path}/new.db")]) == 0
    assert "sqlite: schema 5 is ready" in capsys.readouterr().out
    assert (tmp_path / "new.db").exists()


COMMANDS = [
    ["gaps"],
    ["repair"],
    ["verify"],
    ["backfill"],
    ["export", "BTC/USDT"],
    ["import", "minutes.csv", "--symbol", "BTC/USDT"],
]


def test_the_list_of_commands_on_stored_history_is_complete():
    names = {command.name or command.callback.__name__.strip("_") for command in commands.app.registered_commands}
    assert {arguments[0] for arguments in COMMANDS} == names - {"init-db", "init_db", "backup", "restore", "move"}


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minutes.csv").write_text("time_ms,open,high,low,close,volume\n0,1,1,1,1,1\n")


@pytest.fixture(scope="module")
def empty(postgres):
    """A database without tables, of all tests that leave it so."""
    with Database(shared_postgres()) as database:
        yield database


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("init", [True, False])
def test_no_other_command_makes_tables(tmp_path, empty, capsys, arguments, init):
    for url in (f"sqlite:///{tmp_path}/new.db", empty.url()):
        config = settings(tmp_path, url=url, init=init)
        assert main([*arguments, "--config", config]) == 2
        assert "run `candled init-db`" in capsys.readouterr().err
    assert empty.rows("SELECT to_regnamespace('candled')") == [(None,)]
    assert not (tmp_path / "new.db").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("init", [True, False])
def test_no_other_command_upgrades_an_older_file(tmp_path, capsys, arguments, init):
    path = tmp_path / "old.db"
    make_first_schema(path, [minute(0)])
    before = path.read_bytes()
    assert main([*arguments, "--config", settings(tmp_path, url=f"sqlite:///{path}", init=init)]) == 2
    assert "is at schema 1, this program needs schema 5: run `candled init-db`" in capsys.readouterr().err
    assert path.read_bytes() == before


def columns(database):
    return sorted(
        database.rows("SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'candled'")
    )


@pytest.fixture(scope="module")
def older(postgres, tmp_path_factory):
    """A database of an older version and its columns, of all tests that leave it so."""
    with Database(shared_postgres()) as database:
        assert main(["init-db", "--config", settings(tmp_path_factory.mktemp("older"), url=database.url())]) == 0
        database.rows("DROP TABLE candled.processes, candled.forming")
        database.rows("UPDATE candled.state SET schema = 2")
        yield database, columns(database)


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("init", [True, False])
def test_no_other_command_upgrades_older_tables(tmp_path, older, capsys, arguments, init):
    database, before = older
    config = settings(tmp_path, url=database.url(), init=init)
    assert main([*arguments, "--config", config]) == 2
    assert "the database is at schema 2, this program needs 4: run `candled init-db`" in capsys.readouterr().err
    assert columns(database) == before


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("scheme", ["sqlite", "postgresql"])
def test_an_interval_is_dropped_by_name_only(tmp_path, capsys, scheme):
    with Database(shared_postgres()) as database:
        url = database.url() if scheme == "postgresql" else f"sqlite:///{tmp_path}/new.db"
        config = settings(tmp_path, url=url)
        assert main(["init-db", "--config", config]) == 0
        (tmp_path / "candled.yaml").write_text(
            yaml.safe_dump(
                {"exchanges": {"bitget": {"symbols": ["BTC/USDT"]}}, "store": {"url": url}, "intervals": ["1m", "1D"]}
            ),
            "utf-8",
        )
        assert main(["init-db", "--config", config]) == 0
        assert "with bars of 1m, 5m, 15m, 1h, 4h, 1D, 1W" in capsys.readouterr().out
        assert main(["init-db", "--config", config, "--drop-interval", "4h", "--drop-interval", "2h"]) == 0
        out = capsys.readouterr().out
        assert out.splitlines()[:2] == ["4h: 0 bars dropped", "2h: no bars of it are kept"]
        assert "with bars of 1m, 5m, 15m, 1h, 1D, 1W" in out
        for interval, problem in (("1D", "is in the settings"), ("1m", "minutes are the truth")):
            assert main(["init-db", "--config", config, "--drop-interval", interval]) == 2
            assert problem in capsys.readouterr().err


@pytest.mark.usefixtures("postgres")
def test_check_names_what_is_pending_and_changes_nothing(tmp_path, capsys, monkeypatch):
    path = tmp_path / "old.db"
    make_first_schema(path, [minute(0)])
    before = path.read_bytes()
    config = settings(tmp_path, url=f"sqlite:///{path}")
    assert main(["init-db", "--check", "--config", config]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("sqlite: schema 1, this program needs 5", "pending: schema 5: retention")
    assert len(lines) == 5
    assert path.read_bytes() == before
    with Database(shared_postgres()) as database:
        config = settings(tmp_path, url=database.url())
        assert main(["init-db", "--check", "--config", config]) == 1
        assert "postgresql: schema 0, this program needs 4\npending: schema 1: tables\n" in capsys.readouterr().out
        assert database.rows("SELECT to_regnamespace('candled')") == [(None,)]
        assert main(["init-db", "--config", config]) == 0
        capsys.readouterr()
        assert main(["init-db", "--check", "--config", config]) == 0
        assert capsys.readouterr().out == "postgresql: schema 4, this program needs 4: ready\n"
        monkeypatch.setenv("CANDLED_INTERVALS", "[1m, 30m]")
        assert main(["init-db", "--check", "--config", config]) == 1
        assert capsys.readouterr().out.splitlines()[-1] == "pending: bars of 30m"


@pytest.mark.usefixtures("postgres")
def test_the_last_step_is_undone_and_done_again(tmp_path, capsys):
    with Database(shared_postgres()) as database:
        for scheme, url in (("sqlite", f"sqlite:///{tmp_path / 'new.db'}"), ("postgresql", database.url())):
            config = settings(tmp_path, url=url)
            newest = {"sqlite": 5, "postgresql": 4}[scheme]
            assert main(["init-db", "--config", config]) == 0
            store = make_store(url, None)
            store.open()
            store.write_minutes([(BTC, minute(0)), (BTC, minute(1, final=False)), (BTC, minute(2, final=False))])
            store.close()
            capsys.readouterr()
            assert main(["init-db", "--to", str(newest - 1), "--config", config]) == 0
            assert capsys.readouterr().out == f"{scheme}: schema {newest} before, schema {newest - 1} now\n"
            assert main(["gaps", "--config", config]) == 2
            assert main(["init-db", "--to", str(newest - 2), "--config", config]) == 2
            error = capsys.readouterr().err
            assert f"--to: expected a schema from {newest - 1} to {newest}, got {newest - 2}; restore a backup" in error
            assert main(["init-db", "--to", str(newest), "--config", config]) == 0
            store.open()
            assert store.read_bars(BTC, MINUTE, before_ms=10**15, limit=9) == [minute(0)]
            assert store.read_forming(BTC)[-1] == minute(2, final=False)
            store.close()
        assert tuple(
            database.rows("SELECT schema, (SELECT count(*) FROM candled.forming) + 2 FROM candled.state")[0]
        ) == (4, 3)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_file_of_every_former_schema_is_upgraded(tmp_path, version):
    config = settings(tmp_path, url=f"sqlite:///{tmp_path / 'new.db'}")
    assert main(["init-db", "--to", str(version), "--config", config]) == 0
    assert main(["init-db", "--config", config]) == 0
    assert main(["init-db", "--check", "--config", config]) == 0


def test_a_new_store_is_made_at_an_earlier_version_and_options_exclude_each_other(tmp_path, capsys):
    config = settings(tmp_path, url=f"sqlite:///{tmp_path / 'new.db'}")
    assert main(["init-db", "--to", "2", "--config", config]) == 0
    assert main(["init-db", "--check", "--config", config]) == 1
    assert "sqlite: schema 2, this program needs 5" in capsys.readouterr().out
    for wrong in (["--to", "6"], ["--to", "1"], ["--to", "3", "--check"]):
        assert main(["init-db", *wrong, "--config", config]) == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none", "sqlite:////nowhere/at/all.db"])
def test_a_store_that_cannot_be_made_is_one_clear_line(tmp_path, capsys, url):
    assert main(["init-db", "--config", settings(tmp_path, url=url)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("candled: store")


@pytest.mark.slow
def test_check_config_reads_the_address_of_the_store(tmp_path, capsys):
    address = "postgresql://me:hunter2@localhost:none/candles"
    assert main(["check-config", "--config", settings(tmp_path, url=address)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ": store.url: expected" in line
    assert "hunter2" not in line
