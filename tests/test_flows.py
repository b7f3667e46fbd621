"""The flows of the architecture page: the name of each step leads to one definition, and each step calls the next."""

import ast
import re
from collections import defaultdict
from functools import cache

import pytest

from tests.sources import ROOT, SOURCES, name_of, nodes, read

pytestmark = pytest.mark.no_cover

PAGE = read(ROOT / "docs/explanation/architecture.md")
STEP = re.compile(r"`(\w+)\.(\w+)` in `([\w/]+\.py)`")
PARTS = (part.partition("\n") for part in re.split(r"^## ", PAGE, flags=re.MULTILINE))
FLOWS = {title: STEP.findall(body) for title, _, body in PARTS if title.startswith("Flow ")}
TO_FOLLOW_BY_NAME = [title for title in FLOWS if not title.startswith("Flow 4")]  # many handlers share its names

# These connect parts that do not import each other.
WIRING = ["candled/app.py", "candled/serve/server.py"]
# Steps that several classes implement, because the caller need not know which: one interface each.
INTERFACES = {
    "read_frame": {"SocketFeed", "BitgetFeed"},
    "on_bars_changed": {"Hub", "ClosedBarReporter"},  # which ignores them
    "on_event": {"FeedPool", "Recorder", "_FirstAnswer"},
    "publish": {"MemoryBus", "RedisBus"},
    "write_minutes": {"SqliteStore", "PostgresStore"},
    "on_client_message": {"ConnectionListener", "ClientSession", "Unauthenticated", "Undecided", "KlineClient"},
    "make_initial": {"ConnectionListener", "ClientSession", "KlineClient"},
    "request_snapshot": {"ClientConnection", "NullConnection", "KlineRoom"},
    "read_bars": {"HistoryReader", "SqliteStore", "PostgresStore"},  # the reader calls the store's, in a thread
    "on_short_write": {"ClientConnection", "SocketConnection"},
}


@cache
def definitions() -> dict[str, set[tuple[str, str]]]:
    """The classes that define each method, with their files, without interfaces, and with one plugin for all."""
    found = defaultdict(set)
    for path in (one for one in SOURCES if not one.is_relative_to(ROOT / "plugins") or "bitget" in one.parts):
        for kind in (one for one in nodes(path) if isinstance(one, ast.ClassDef)):
            bases = {ast.unparse(base).rpartition(".")[2] for base in kind.bases}
            if bases & {"Protocol", "Interface"}:
                continue
            for one in kind.body:
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                    found[one.name].add((kind.name, name_of(path)))
    return found


@pytest.mark.parametrize("title", TO_FOLLOW_BY_NAME)
def test_the_name_of_a_step_leads_to_one_definition(title):
    assert len(FLOWS[title]) > 5
    for kind, method, _ in FLOWS[title]:
        assert {name for name, _ in definitions()[method]} == INTERFACES.get(method, {kind}), method


@pytest.mark.parametrize("title", FLOWS)
def test_each_step_is_called_by_one_before_it(title):
    (_, _, first), *later = FLOWS[title]
    before = [*WIRING, first]
    for kind, method, path in later:
        callers = [one for one in before if re.search(rf'[."]{method}\b', read(ROOT / one))]
        assert (kind, path) in definitions()[method], f"{kind}.{method} in {path}"
        assert callers, f"{kind}.{method} is named in none of {before}"
        before.append(path)
