"""The needs of tests: a test runs with nothing but Python unless it takes one of the fixtures in `NEEDS`.

Each fixture gives its name as a marker to the tests that take it, so that `-m "not postgres"` selects by need.
A test that starts a program without any of them fails and names the line to add.
"""

import os
import shutil
import sys
from typing import Any

import hypothesis
import pytest

NEEDS = {
    "postgres": "needs a PostgreSQL server",
    "redis": "needs a Redis server",
    "daemon": "runs the whole daemon, or programs: a command, Node, nginx",
    "browser": "needs Chromium and Playwright",
}
NO_CHROMIUM = "needs Chromium: apt-get install --no-install-recommends chromium fonts-liberation"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_running: pytest.Item | None = None

LONG = "CANDLED_TEST_LONG" in os.environ
few_examples = hypothesis.settings(max_examples=2000 if LONG else 15, deadline=None, derandomize=not LONG)


def mark(items: list[pytest.Item]) -> None:
    """Mark each test with the names of the fixtures in `NEEDS` that it takes; skip long ones in the short form."""
    for item in items:
        if item.get_closest_marker("long") and not LONG:
            item.add_marker(pytest.mark.skip(reason="the long form: make soak, or make chaos"))
        for need in NEEDS:
            named = any(need in used.args for used in item.iter_markers("usefixtures"))
            if named or need in getattr(item, "fixturenames", ()):
                item.add_marker(need)


def put_first(items: list[pytest.Item]) -> None:
    """Put the files that need programs first: their tests take longest, so that none of them is left for the end."""
    needy = {item.path for item in items if is_marked(item, *NEEDS)}
    items.sort(key=lambda item: item.path not in needy)  # stable: a file's tests stay together


def is_marked(item: pytest.Item, *markers: str) -> bool:
    """Tell whether a test has one of these markers."""
    return any(item.get_closest_marker(marker) for marker in markers)


def enter(item: pytest.Item | None) -> None:
    """Remember the test that runs from now on; None between tests."""
    global _running
    _running = item


def require(*needs: str) -> None:
    """Fail the running test of the quick tier unless it has one of these markers."""
    if _running is None or not _running.config.option.quick or is_marked(_running, *needs):
        return
    name = _running.nodeid
    raise AssertionError(f"{name} needs {needs[0]}: take that fixture, or pytest.mark.usefixtures({needs[0]!r})")


def watch_programs() -> None:
    """Fail a test that starts a program and takes none of the fixtures, from now until the end of the run."""
    sys.addaudithook(_on_audit)


def _on_audit(event: str, _: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and _running is not None:
        require("daemon", "postgres", "redis", "browser")
