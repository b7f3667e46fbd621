"""The measurement of coverage in `make test`.

While its tracer is on, Python 3.11 takes twice the processor time, also for code that is not measured. So it is on only
while candled is imported for the first time, and while the first case of a test that is not left out prepares and runs.
Searches for counterexamples are left out: they repeat the same lines.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from coverage import Coverage

import candled
import plugins
from tests import tiers


class Measuring:
    """Start and stop the measurement that pytest-cov makes."""

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Measure the import of every module in the process that starts the workers, not in each of them."""
        if not hasattr(session.config, "workerinput"):
            remember_analyses()
            import_all()
        self.measured = Coverage.current()
        while running := Coverage.current():  # in a worker pytest-cov starts two, and never reads the first
            running.stop()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Choose the tests that are measured; every worker chooses the same."""
        first = {item.nodeid.split("[")[0]: item for item in reversed(session.items)}
        self.chosen = {item for item in first.values() if not _is_left_out(item)}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        with self.measure(item):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with self.measure(item):
            return (yield)

    @contextlib.contextmanager
    def measure(self, item: pytest.Item) -> Iterator[None]:
        """Measure meanwhile if the test is one of those chosen."""
        if self.measured is None:
            yield
            return
        if item in self.chosen:
            self.measured.start()
        try:
            yield
        finally:
            self.measured.stop()  # pytest-cov starts it at the end of a test marked no_cover


def _is_left_out(item: pytest.Item) -> bool:
    is_search = getattr(getattr(item, "function", None), "is_hypothesis_test", False)
    return is_search or tiers.is_marked(item, "no_cover", "slow", "daemon", "browser", "redis")


def remember_analyses() -> None:
    """Analyse each file once: pytest-cov makes a report of the total and another of the files, one after the other."""
    analyse, known = Coverage._analyze, {}

    def analyse_once(measured: Coverage, morf: Any, **options: Any) -> Any:
        if (id(measured), morf) not in known:
            known[id(measured), morf] = analyse(measured, morf, **options)
        return known[id(measured), morf]

    Coverage._analyze = analyse_once


def import_all() -> None:
    """Import every module of candled and its plugins."""
    for package in (candled, plugins):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
