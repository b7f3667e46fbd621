"""Somebody moves the daemon's SQLite file, or starts a second daemon on it: both say so, and nothing is lost."""

import time
from pathlib import Path

import pytest

from tests import deadlines
from tests.system.daemon import Daemon

pytestmark = [pytest.mark.usefixtures("daemon"), pytest.mark.slow]  # two processes


def config(directory: Path) -> dict:
    return {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"], "speed": 60}},
        "ingest": {"backfill": "1h"},
        "store": {"url": f"sqlite:///{directory / 'candled.db'}", "journal": str(directory / "journal")},
    }


def wait_until(is_so) -> None:
    deadline = deadlines.now() + 30
    while not is_so():
        assert deadlines.now() < deadline
        time.sleep(0.05)


def until(daemon: Daemon, state: str, status: str | None = None) -> dict:
    deadline = deadlines.now() + 30
    while True:
        health = daemon.get("/health?verbose")
        if health["store"]["state"] == state and status in (None, health["status"]):
            return health
        assert deadlines.now() < deadline, (health, daemon.output)
        time.sleep(0.05)


def test_a_file_that_was_moved_is_a_state_and_a_line_and_a_second_daemon_is_refused(tmp_path):
    path, kept = tmp_path / "candled.db", tmp_path / "kept.db"
    (tmp_path / "second").mkdir()
    with Daemon(tmp_path) as first, Daemon(tmp_path / "second") as second:
        first.start(config(tmp_path))
        until(first, "ok", "pass")
        second.launch({**config(tmp_path), "store": {"url": f"sqlite:///{path}", "journal": ""}})
        wait_until(lambda: "another candled uses it (process" in second.output)
        assert until(second, "unavailable", "warn")["store"]["lastError"].startswith(
            "candled.db: another candled uses it"
        )
        second.stop()
        path.rename(kept)
        assert "was deleted or moved" in until(first, "unavailable", "warn")["store"]["lastError"]
        wait_until(lambda: "was deleted or moved" in first.output)  # `/health` may be earlier than the line
        kept.rename(path)
        until(first, "ok", "pass")
        assert first.output.count("was deleted or moved") == 1
        assert first.stop() == 0
