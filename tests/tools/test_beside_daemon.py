"""Commands beside a running daemon: whatever their settings, its bars stay those of its minutes."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from candled.cli import main
from candled.model import MINUTE, Interval, MarketKey, Symbol
from candled.store.batch import fold_bars
from candled.store.sqlite.store import SqliteStore
from tests.system.daemon import Daemon

pytestmark = pytest.mark.usefixtures("daemon")

MARKET = MarketKey("replay", Symbol("BTC", "USDT"))
KEPT = [Interval.parse(text) for text in ("3m", "6m", "1D", "1W")]
SETTINGS = {
    "exchanges": {"replay": {"symbols": ["BTC/USDT"], "speed": 480}},
    "intervals": ["1m", *map(str, KEPT)],
    "ingest": {"backfill": "0s", "grace_period": "0s"},
    "store": {"url": "sqlite:///candled.db", "journal": ""},
}
OTHER_INTERVALS = "[1m, 6m, 1W]"


def minutes(directory: Path) -> int:
    with closing(sqlite3.connect(directory / "candled.db")) as connection:
        return connection.execute("SELECT count(*) FROM candles").fetchone()[0]


def check(directory: Path, kept: list[Interval]) -> int:
    """Prove that the bars of every interval are those of the minutes; return how many there are."""
    store = SqliteStore(directory / "candled.db", None)
    store.open()
    try:
        assert store.intervals() == kept
        rows = store.read_bars_between(MARKET, MINUTE, 0, 2**62)
        compared = 0
        for interval in kept:
            bars = store.read_bars_between(MARKET, interval, 0, 2**62)
            expected = fold_bars(rows, interval)
            assert [(bar.open_ms, bar.values) for bar in bars] == [(bar.open_ms, bar.values) for bar in expected]
            compared += len(bars)
        return compared
    finally:
        store.close()


def test_no_command_with_other_settings_touches_the_bars_of_a_running_daemon(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [
        (["gaps"], {0, 1}),
        (["verify", "--repair"], {0}),
        (["verify", "--digest"], {0}),
        (["export", "BTC/USDT", "--interval", "3m", "--output", "3m.csv"], {0}),
        (["export", "BTC/USDT", "--to", "2030-01-01", "--output", "1m.csv"], {0}),
        (["import", "1m.csv", "--symbol", "BTC/USDT", "--skip-bad"], {0}),
        (["check-config"], {0}),
        (["init-db"], {2}),
        (["init-db", "--drop-interval", "3m"], {2}),
    ]
    with Daemon(tmp_path) as daemon:
        daemon.start(SETTINGS)
        while daemon.get("/health?verbose")["status"] != "pass" or minutes(tmp_path) < 30:
            time.sleep(0.2)
        monkeypatch.setenv("CANDLED_INTERVALS", OTHER_INTERVALS)
        for arguments, statuses in commands:
            before = minutes(tmp_path)
            status, printed = main([*arguments, "--config", "candled.yaml"]), capsys.readouterr()
            assert status in statuses, (arguments, printed)
            if status == 2:
                assert f"another candled uses it (process {daemon.process.pid})" in printed.err
            while minutes(tmp_path) < before + 4:  # the daemon folds on
                time.sleep(0.1)
        bars = daemon.get("/api/candles?symbol=BTC/USDT&interval=3m&limit=1000")["bars"]
        assert daemon.stop() == 0
    assert check(tmp_path, KEPT) > 30
    assert len(bars) > 20


def test_a_second_daemon_waits_for_the_file_and_takes_over(tmp_path):
    (tmp_path / "second").mkdir()
    url = f"sqlite:///{tmp_path / 'candled.db'}"
    with Daemon(tmp_path) as first, Daemon(tmp_path / "second") as second:
        first.start(SETTINGS)
        while first.get("/health?verbose")["status"] != "pass":
            time.sleep(0.1)
        health = second.start({**SETTINGS, "intervals": ["1m", "5m"], "store": {"url": url, "journal": ""}})
        while not health["store"]["lastError"]:  # `/health` may be a second old
            time.sleep(0.1)
            health = second.get("/health?verbose")
        assert health["store"]["state"] == "unavailable"
        assert f"another candled uses it (process {first.process.pid})" in health["store"]["lastError"]
        assert second.get("/health/ready")["status"] != "pass"
        assert first.stop() == 0
        while (health := second.get("/health?verbose"))["status"] != "pass":
            time.sleep(0.1)
        assert health["store"]["intervals"] == ["3m", "5m", "6m", "1D", "1W"]
        assert second.stop() == 0
    check(tmp_path, sorted([*KEPT, Interval.parse("5m")]))
