"""A browser's own EventSource against a daemon that is restarted under it."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests import deadlines
from tests.system.daemon import Daemon
from tests.tiers import CHROMIUM_OPTIONS

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[test]'")

pytestmark = pytest.mark.usefixtures("browser", "daemon")

LISTEN = """() => {
  window.received = [];
  const source = new EventSource('/events?symbol=BTC/USDT&interval=1m&initialBars=5');
  source.onmessage = (event) => window.received.push({id: event.lastEventId, ...JSON.parse(event.data)});
}"""


def wait_for(page: Any, count: int, *, until: str = "", within_s: float = 30) -> list[dict[str, Any]]:
    """At least so many messages, the last of them of type `until` if that is given."""
    deadline = deadlines.now() + within_s
    while deadlines.now() < deadline:
        messages: list[dict[str, Any]] = page.evaluate("window.received")
        if len(messages) >= count and messages[-1]["type"] == (until or messages[-1]["type"]):
            return messages
        time.sleep(0.1)
    raise AssertionError(page.evaluate("window.received"))


def test_an_event_source_comes_back_by_itself_and_says_where_it_was(tmp_path: Path) -> None:
    config = {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
    }
    with Daemon(tmp_path) as daemon, playwright.sync_playwright() as driver:
        daemon.start(config)
        browser = driver.chromium.launch(**CHROMIUM_OPTIONS)
        page = browser.new_page()
        page.goto(daemon.url)
        page.evaluate(LISTEN)
        before = wait_for(page, 3)
        assert [message["type"] for message in before[:3]] == ["initial", "update", "update"]
        assert before[2]["id"] == f"{before[2]['epoch']}:{before[2]['seq']}:{before[2]['id'].rpartition(':')[2]}"
        daemon.stop()
        assert wait_for(page, 1)[-1]["type"] == "bye"
        count = len(wait_for(page, 1))
        daemon.start(config)
        after = wait_for(page, count + 2, until="update")[count:]
        browser.close()
    assert after[0]["type"] in ("resumed", "initial")
    assert "recovered" in after[0]  # only for a client that sent an id
    # A minute that passed meanwhile may be read afterwards: an older bar then changes, and who knows no corrections is
    # sent everything again.
    assert {message["type"] for message in after[1:]} <= {"update", "initial"}
