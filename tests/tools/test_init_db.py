import pytest
import yaml

from candled.cli import main
from tests.servers import Database, shared_postgres


def settings(tmp_path, **store):
    path = tmp_path / "candled.yaml"
    path.write_text(yaml.safe_dump({"exchanges": {"replay": {}}, "store": store}), "utf-8")
    return str(path)


def test_init_db_makes_the_tables_once_and_again(tmp_path, capsys):
    with Database(shared_postgres()) as database:
        config = settings(tmp_path, url=database.url(), init=False)
        for _ in range(2):
            assert main(["init-db", "--config", config]) == 0
            assert "schema 3 is ready, with bars of 1m, 5m, 15m, 1h, 4h, 1D, 1W" in capsys.readouterr().out
        assert database.rows("SELECT count(*) FROM candled.intervals") == [(6,)]


def test_init_db_makes_the_embedded_file(tmp_path, capsys):
    assert main(["init-db", "--config", settings(tmp_path, url=f"sqlite:///{tmp_path}/new.db")]) == 0
    assert "sqlite: schema 3 is ready" in capsys.readouterr().out
    assert (tmp_path / "new.db").exists()


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none", "sqlite:////nowhere/at/all.db"])
def test_a_store_that_cannot_be_made_is_one_clear_line(tmp_path, capsys, url):
    assert main(["init-db", "--config", settings(tmp_path, url=url)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("candled: store")


def test_check_config_reads_the_address_of_the_store(tmp_path, capsys):
    address = "postgresql://me:hunter2@localhost:none/candles"
    assert main(["check-config", "--config", settings(tmp_path, url=address)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("candled: store.url: expected")
    assert "hunter2" not in line
