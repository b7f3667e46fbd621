"""What every test may rely on."""

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests import redis_servers, servers, tiers

# A shell that starts the run in the background has it ignore Ctrl-C, and the programs that tests start would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Searches for counterexamples: a few seconds each in the suite, thorough in `make soak`.
hypothesis.settings.register_profile("short", max_examples=50, deadline=None)
hypothesis.settings.register_profile("long", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("long" if tiers.LONG else "short")

# ---------------------------------------------------------------- tiers


@pytest.fixture(scope="session")
def postgres() -> None:
    """Need PostgreSQL's programs or a server: see tests/servers.py."""
    if servers.POSTGRES_DSN not in os.environ and servers.find_binaries() is None:
        pytest.skip(servers.NOT_FOUND)


@pytest.fixture(scope="session")
def redis() -> None:
    """Need Redis's program or a server: see tests/redis_servers.py."""
    if redis_servers.REDIS_URL not in os.environ and redis_servers.find_program() is None:
        pytest.skip(redis_servers.NOT_FOUND)


@pytest.fixture(scope="session")
def daemon() -> None:
    """Need to start programs."""


@pytest.fixture(scope="session")
def browser() -> None:
    """Need Chromium."""
    if tiers.CHROMIUM is None:
        pytest.skip(tiers.NO_CHROMIUM)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests that need nothing but Python and are not slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run one worker more than there are cores, as most of the whole suite waits for servers; with `--quick` none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if config.option.quick else cores + 1


def pytest_configure(config: pytest.Config) -> None:
    for name, reason in tiers.NEEDS.items():
        config.addinivalue_line("markers", f"{name}: {reason}")
    tiers.watch_programs()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tiers.mark(items)
    if config.option.quick:
        left_out = {item for item in items if tiers.is_marked(item, "slow", *tiers.NEEDS)}
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    tiers.enter(item)
    try:
        return (yield)
    finally:
        tiers.enter(None)
