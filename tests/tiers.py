"""The needs of tests: a test runs with nothing but Python unless it takes one of the fixtures in `NEEDS`.

Each fixture gives its name as a marker to the tests that take it, so that `-m "not postgres"` selects by need.
A test that starts a program without any of them fails and names the line to add.
"""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

T = TypeVar("T")
#: the parameters of a case: of each set of them its number and the name of its value
Values = frozenset[tuple[int, str]]

NEEDS = {
    "postgres": "needs a PostgreSQL server",
    "redis": "needs a Redis server",
    "daemon": "runs the whole daemon, or programs: a command, Node, nginx",
    "browser": "needs Chromium and Playwright",
}
NO_CHROMIUM = "needs Chromium: apt-get install --no-install-recommends chromium fonts-liberation"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: how Playwright launches it
CHROMIUM_OPTIONS = {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]}

_MEMORY, _ENOUGH_BYTES = Path("/dev/shm"), 1 << 30
_running: pytest.Item | None = None

LONG = "CANDLED_TEST_LONG" in os.environ
few_examples = hypothesis.settings(max_examples=2000 if LONG else 15, deadline=None, derandomize=not LONG)


def mark(items: list[pytest.Item]) -> None:
    """Mark each test with the names of the fixtures in `NEEDS` that it takes; skip long ones in the short form."""
    for item in items:
        if item.get_closest_marker("long") and not LONG:
            item.add_marker(pytest.mark.skip(reason="the long form: make soak, or make chaos"))
        named = {name for used in item.iter_markers("usefixtures") for name in used.args}
        for need in NEEDS:
            if need in named or need in getattr(item, "fixturenames", ()):
                item.add_marker(need)


def spread(items: list[pytest.Item]) -> None:
    """Put the files that need programs evenly among the others.

    The former wait half their time, the latter do not: at any time some workers run each, and no core is idle.
    """
    needy = {item.path for item in items if is_marked(item, *NEEDS)}
    totals = Counter(item.path in needy for item in items)
    before: Counter[bool] = Counter()
    places: dict[Path, float] = {}
    for item in items:
        is_needy = item.path in needy
        places.setdefault(item.path, before[is_needy] / totals[is_needy])
        before[is_needy] += 1
    items.sort(key=lambda item: places[item.path])  # stable: a file's tests stay together


def choose_cases(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the items without the slow cases that the short form leaves out.

    A slow test with several sets of parameters runs so often that each value of each set occurs: once as often as the
    longest set has values, not as often as there are combinations. The long form runs all of them.
    """
    if LONG:
        return items
    tests: dict[str, dict[pytest.Item, Values]] = {}
    for item in items:
        if is_marked(item, "slow") and hasattr(item, "callspec"):
            values = frozenset(enumerate(item.callspec._idlist))
            tests.setdefault(item.nodeid.partition("[")[0], {})[item] = values
    left_out = {item for cases in tests.values() for item in cases.keys() - cover(cases)}
    return [item for item in items if item not in left_out]


def cover(cases: Mapping[T, Values]) -> set[T]:
    """Return few cases that have all values of all."""
    chosen: set[T] = set()
    missing = frozenset[tuple[int, str]]().union(*cases.values())
    while missing:
        best = max(cases, key=lambda case: len(cases[case] & missing))  # the first of them
        chosen.add(best)
        missing -= cases[best]
    return chosen


def is_marked(item: pytest.Item, *markers: str) -> bool:
    """Tell whether a test has one of these markers."""
    return any(marker.name in markers for marker in item.iter_markers())


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


def use_memory() -> None:
    """Put the folders of tests in memory: hundreds of stores would wait for the disk, which none of them tests."""
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


def watch_programs() -> None:
    """Fail a test that starts a program and takes none of the fixtures, from now until the end of the run.

    An audit hook would also run when a thread starts while coverage is measured. On CPython 3.11, it could end another
    thread that starts at the same time.
    """
    start = subprocess.Popen.__init__

    @wraps(start)
    def start_checked(popen: subprocess.Popen[Any], *args: Any, **kwargs: Any) -> None:
        require("daemon", "postgres", "redis", "browser")
        start(popen, *args, **kwargs)

    subprocess.Popen.__init__ = start_checked  # type: ignore[method-assign]
