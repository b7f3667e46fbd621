"""The measurement of coverage in `make test`.

While its tracer is on, Python 3.11 takes twice the processor time, also for code that is not measured. So it is on only
while candled is imported for the first time, and while the first case of a test that is not left out prepares and runs.
Searches for counterexamples are left out: they repeat the same lines.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from coverage import Coverage
from coverage.python import PythonFileReporter

import candled
import plugins
from tests import tiers


class Measuring:
    """Start and stop the measurement that pytest-cov makes."""

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionstart(self, session: pytest.Session) -> Iterator[None]:
        """Measure the import of every module in the process that starts the workers, beside them."""
        yield
        is_worker = hasattr(session.config, "workerinput")
        files = [] if is_worker else import_all()
        self.measured = Coverage.current()
        while running := Coverage.current():  # in a worker pytest-cov starts two, and never reads the first
            running.stop()
        if self.measured is not None and not is_worker:
            remember_analyses(self.measured, files)

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


def remember_analyses(measuring: Coverage, files: list[str]) -> None:
    """Read the files beside the tests; after them no more than one core would work on that.

    Analyse each once: pytest-cov makes a report of the total and another of the files, one after the other.
    """
    analyse, known = Coverage._analyze, {}
    open_file, opened = Coverage._get_file_reporter, {}

    def open_once(measured: Coverage, morf: Any) -> Any:
        if morf not in opened:
            opened[morf] = open_file(measured, morf)
        return opened[morf]

    def read_files() -> None:
        for file in files:
            opened[file] = PythonFileReporter(file, measuring)
            opened[file].exit_counts()  # parses the file, and keeps the branches that it has

    reading = Thread(target=read_files, name="files for coverage", daemon=True)
    reading.start()

    def analyse_once(measured: Coverage, morf: Any, **options: Any) -> Any:
        reading.join()
        if (id(measured), morf) not in known:
            known[id(measured), morf] = analyse(measured, morf, **options)
        return known[id(measured), morf]

    Coverage._analyze, Coverage._get_file_reporter = analyse_once, open_once


def import_all() -> list[str]:
    """Import every module of candled and its plugins; return their files."""
    modules = [
        importlib.import_module(module.name)
        for package in (candled, plugins)
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        if not module.name.endswith("__main__")
    ]
    return [str(module.__file__) for module in modules]
