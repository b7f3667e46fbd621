"""The measurement of coverage in `make test`.

While its tracer is on, Python 3.11 takes twice the processor time, also for code that is not measured. So it is on only
while candled is imported for the first time, and while a test that is not left out prepares and runs.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator

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
            import_all()
        self.measured = Coverage.current()
        while running := Coverage.current():  # in a worker pytest-cov starts two, and never reads the first
            running.stop()

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
        """Measure meanwhile, unless the test is left out."""
        if self.measured is None:
            yield
            return
        if not tiers.is_marked(item, "no_cover", "slow", "daemon", "browser", "redis"):
            self.measured.start()
        try:
            yield
        finally:
            self.measured.stop()  # pytest-cov starts it at the end of a test marked no_cover


def import_all() -> None:
    """Import every module of candled and its plugins."""
    for package in (candled, plugins):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
