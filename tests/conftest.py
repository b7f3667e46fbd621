"""What every test may rely on."""

import asyncio
import inspect
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
import pytest_asyncio
import websockets
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import Application

from candled.plugins import GROUP
from tests import collector, compiling, redis_servers, servers, tiers

T = TypeVar("T")

# What needs programs, a library that takes seconds to import, or the conformance kit for each of many exchanges.
NOT_QUICK = {"chaos", "system", "ccxt", "test_ccxt.py", "test_conformance.py", "test_planted_mistakes.py"}

# A shell that starts the run in the background has it ignore Ctrl-C, and `nohup` the end of the terminal. The programs
# that tests start would ignore them too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The suite starts hundreds of programs, and rewrites the assertions of 300 modules: only the first run compiles them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Searches for counterexamples: in the suite a few, the same in every run, so that a change turns a test red and luck
# does not; in `make soak` thousands, others each time. A test whose example is dear takes `tiers.few_examples`.
hypothesis.settings.register_profile("short", max_examples=30, deadline=None, derandomize=True)
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium(browser: None) -> AsyncIterator[Any]:
    """Give Playwright's Chromium on the loop of the module."""
    playwright = pytest.importorskip("playwright.async_api", reason="needs Playwright: pip install -e '.[test]'")
    async with playwright.async_playwright() as driver:
        chromium = await driver.chromium.launch(**tiers.CHROMIUM_OPTIONS)
        yield chromium
        await chromium.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests that need nothing but Python and are not slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run a worker for each core with `--quick`; otherwise three more, as tests of programs wait half the time.

    Each takes about 0.4 GB.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if config.option.quick else cores + 3


def pytest_configure(config: pytest.Config) -> None:
    for name, reason in tiers.NEEDS.items():
        config.addinivalue_line("markers", f"{name}: {reason}")
    if config.option.quick:
        tiers.use_memory()
    tiers.watch_programs()
    collector.install()
    asyncio.set_event_loop(None)  # otherwise a request for the current loop makes one that is never closed
    if config.pluginmanager.hasplugin("_cov"):
        from tests.measuring import Measuring

        config.pluginmanager.register(Measuring())


def pytest_sessionstart(session: pytest.Session) -> None:
    if worker := getattr(session.config, "workerinput", None):
        compiling.compile_share(session.config, int(worker["workerid"].removeprefix("gw")), worker["workercount"])


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the folders and files of `NOT_QUICK` out of the quick tier, without importing them."""
    return True if config.option.quick and collection_path.name in NOT_QUICK else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    with collector.pause():
        return (yield)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tiers.mark(items)
    tiers.spread(items)
    chosen = tiers.choose_cases(items)
    config.hook.pytest_deselected(items=[*{*items} - {*chosen}])
    items[:] = chosen
    if config.option.quick:
        left_out = {item for item in items if tiers.is_marked(item, "slow", *tiers.NEEDS)}
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    collector.set_aside()
    tiers.enter(item)
    try:
        return (yield)
    finally:
        tiers.enter(None)


# ---------------------------------------------------------------- HTTP, by pytest-tornado


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    """Leave what is marked `gen_test` to pytest-tornado: pytest-asyncio would run it on a loop of its own."""
    found = yield
    if inspect.iscoroutinefunction(obj) and found and all(item.get_closest_marker("gen_test") for item in found):
        return list(collector._genfunctions(name, obj))
    return found


@pytest.fixture
def io_loop(request: pytest.FixtureRequest, io_loop: IOLoop) -> Iterator[IOLoop]:
    """Give pytest-tornado's loop; end it as `asyncio.run` ends one, with no task and no thread left."""
    if request.node.get_closest_marker("asyncio"):
        pytest.fail("mark this test gen_test: else pytest-asyncio runs it, on another loop than io_loop", pytrace=False)
    yield io_loop
    io_loop.run_sync(_end_tasks)


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


@pytest.fixture
def enter(request: pytest.FixtureRequest, io_loop: IOLoop) -> Callable[[AbstractAsyncContextManager[T]], T]:
    """Enter an asynchronous context on `io_loop` until the test ends: what an `async` fixture is for pytest-asyncio."""

    def enter(opened: AbstractAsyncContextManager[T]) -> T:
        entered = io_loop.run_sync(opened.__aenter__)
        request.addfinalizer(lambda: io_loop.run_sync(lambda: opened.__aexit__(None, None, None)))
        return entered

    return enter


@pytest.fixture
def http_server(app: Application, http_server: HTTPServer) -> HTTPServer:
    """Give pytest-tornado's server. It asks for `app` only while it runs; so parameters of a test reach `app` too."""
    return http_server


@pytest.fixture
def fetch(http_client: AsyncHTTPClient, base_url: str) -> Callable[..., Awaitable[HTTPResponse]]:
    """Fetch a path of `app` with pytest-tornado's client; any status is an answer."""
    options = {"raise_error": False, "allow_nonstandard_methods": True}
    options |= {"connect_timeout": 900, "request_timeout": 900}  # a busy machine is slow: as pytest's own
    return lambda path, method="GET", **more: http_client.fetch(base_url + path, method=method, **options, **more)


@pytest.fixture
def connect(http_server: HTTPServer, http_port: int) -> Callable[..., websockets.connect]:
    """Open a WebSocket of `app`, by its path."""
    return lambda path="/": websockets.connect(f"ws://127.0.0.1:{http_port}{path}", max_size=None)


@pytest.fixture
def get(fetch: Callable[..., Awaitable[HTTPResponse]]) -> Callable[[str], Awaitable[Any]]:
    """Fetch a path of `app`; give the JSON of the answer, its numbers exact."""

    async def get(path: str) -> Any:
        return json.loads((await fetch(path)).body, parse_float=Decimal, parse_int=Decimal)

    return get


# ---------------------------------------------------------------- plugins


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution of modules, as pip would, each an entry point of its own name; they go with the test."""
    monkeypatch.syspath_prepend(tmp_path)
    installed: list[str] = []

    def put(distribution: str = "candled-x", **sources: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", "utf-8")
        points = "".join(f"{module} = {module}\n" for module in sources)
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}", "utf-8")
        for module, source in sources.items():
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source), "utf-8")
            installed.append(module)

    yield put
    for module in installed:
        sys.modules.pop(module, None)
