"""Rules that the tests themselves keep: those of handlers use pytest-tornado's client, server and loop."""

import ast
import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiers
from tests.servers import start_program
from tests.sources import nodes

pytestmark = pytest.mark.no_cover

TESTS = Path(__file__).parent
OF_HANDLERS = sorted(path for folder in ("api", "serve") for path in (TESTS / folder).glob("*.py"))
HAND_MADE = {"AsyncHTTPClient", "SimpleAsyncHTTPClient", "HTTPClient", "HTTPServer", "urlopen", "HTTPConnection"}


def find_hand_made(module: Iterable[ast.AST]) -> list[str]:
    """Return the calls that make a client or a server of HTTP, each with its line."""
    calls = [node for node in module if isinstance(node, ast.Call)]
    names = [(node.lineno, ast.unparse(node.func).rpartition(".")[2]) for node in calls]
    return [f"{line}: {name}" for line, name in sorted(names) if name in HAND_MADE]


def find_async_fixtures(module: Iterable[ast.AST]) -> list[str]:
    """Return the fixtures that pytest-asyncio would run, on a loop of its own."""
    functions = [node for node in module if isinstance(node, ast.AsyncFunctionDef)]
    return [
        node.name
        for node in functions
        for decorator in node.decorator_list
        if ast.unparse(decorator).partition("(")[0].endswith(".fixture")
    ]


def test_handlers_are_asked_by_the_client_of_pytest_tornado():
    modules = {f"{path.parent.name}/{path.name}": nodes(path) for path in OF_HANDLERS}
    found = {name: find_hand_made(module) + find_async_fixtures(module) for name, module in modules.items()}
    assert {name: breaches for name, breaches in found.items() if breaches} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("client = AsyncHTTPClient(force_instance=True)", ["1: AsyncHTTPClient"]),
        ("x = 1\nurllib.request.urlopen(url).read()", ["2: urlopen"]),
        ("def fetch(http_client: AsyncHTTPClient): http_client.fetch(url)", []),
    ],
)
def test_a_client_made_by_hand_is_found(source, found):
    assert find_hand_made(ast.walk(ast.parse(source))) == found


def test_an_async_fixture_is_found():
    source = "@pytest.fixture(scope='module')\nasync def bars():\n    yield 1"
    assert find_async_fixtures(ast.walk(ast.parse(source))) == ["bars"]


@pytest.fixture
def loop(io_loop):
    return io_loop.asyncio_loop


@pytest.mark.gen_test
async def test_a_test_marked_gen_test_runs_on_the_loop_of_its_fixtures(loop):
    assert asyncio.get_running_loop() is loop


async def test_a_test_that_pytest_asyncio_runs_cannot_use_them(request):
    with pytest.raises(pytest.fail.Exception, match="mark this test gen_test"):
        request.getfixturevalue("io_loop")


@given(st.lists(st.sets(st.tuples(st.integers(0, 3), st.sampled_from("abcd"))).map(frozenset), max_size=8))
def test_the_short_form_of_a_slow_test_has_each_value_of_its_parameters(cases):
    chosen = tiers.cover(dict(enumerate(cases)))
    assert set().union(*(cases[number] for number in chosen)) == set().union(*cases)


def test_the_short_form_of_a_slow_test_has_no_more_cases_than_its_longest_parameters():
    product = {(a, b): frozenset([(0, a), (1, b)]) for a in "wxyz" for b in "123"}
    assert len(tiers.cover(product)) == 4


def test_files_that_need_programs_are_among_the_others_and_stay_together():
    def make(path: str, *markers: str) -> SimpleNamespace:
        return SimpleNamespace(path=path, iter_markers=lambda: [SimpleNamespace(name=name) for name in markers])

    items = [make(path) for path in "aabbbbcc"] + [make("p", "daemon"), make("p"), make("q", "redis"), make("q")]
    tiers.spread(items)
    assert "".join(item.path for item in items) == "aappbbbbqqcc"


def test_no_test_is_ended_by_the_wall_before_its_own_deadline(pytestconfig):
    """A busy machine is slow, and no test turns red for it: pytest-tornado's own default is 5 s."""
    assert pytestconfig.getoption("async_test_timeout") >= float(pytestconfig.getini("timeout"))


def test_a_server_outlives_the_thread_of_the_test_that_needs_it_first(daemon):
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: started.append(start_program(["sleep", "60"])))
    thread.start()
    thread.join()
    with started[0] as program:
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.3)
        program.kill()


def test_a_test_of_the_quick_tier_that_starts_a_program_fails_before_that(monkeypatch):
    config = SimpleNamespace(option=SimpleNamespace(quick=True))
    monkeypatch.setattr(tiers, "_running", SimpleNamespace(config=config, iter_markers=lambda: (), nodeid="test_x"))
    with pytest.raises(AssertionError, match="test_x needs daemon: take that fixture"):
        subprocess.Popen([sys.executable, "-c", "0"])
