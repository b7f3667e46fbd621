"""The flows of the architecture page: the name of each step leads to one definition."""

import ast
import re
from collections import defaultdict
from functools import cache

import pytest

from tests.sources import ROOT, SOURCES, nodes, read

pytestmark = pytest.mark.no_cover

PAGE = read(ROOT / "docs/explanation/architecture.md")
FLOWS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
FLOWS = {title: re.findall(r"`(\w+)\.(\w+)`", body) for title, _, body in (one.partition("\n") for one in FLOWS)}
STEPS = sorted({step for title, steps in FLOWS.items() if re.match(r"Flow [123]\b", title) for step in steps})

# Steps that several classes implement, because the caller need not know which: one interface each.
INTERFACES = {
    "read_frame": {"SocketFeed", "BitgetFeed"},
    "publish": {"MemoryBus", "RedisBus"},
    "write_minutes": {"SqliteStore", "PostgresStore"},
    "on_client_message": {"ClientSession", "Undecided", "KlineClient", "_DetachedListener"},
    "request_snapshot": {"ClientConnection", "NullConnection", "KlineRoom"},
    "read_bars": {"HistoryReader", "SqliteStore", "PostgresStore"},  # the reader calls the store's, in a thread
    "on_short_write": {"ClientConnection", "SocketConnection"},
}


@cache
def definitions() -> dict[str, set[str]]:
    """The classes that define each method, without interfaces."""
    found = defaultdict(set)
    for path in SOURCES:
        for kind in (one for one in nodes(path) if isinstance(one, ast.ClassDef)):
            bases = {ast.unparse(base).rpartition(".")[2] for base in kind.bases}
            if bases & {"Protocol", "Interface"}:
                continue
            for one in kind.body:
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                    found[one.name].add(kind.name)
    return found


def test_the_name_of_a_step_leads_to_one_definition():
    assert len(STEPS) > 20
    found = definitions()
    for kind, method in STEPS:
        assert kind in found[method], method
        assert found[method] == INTERFACES.get(method, {kind}), method
