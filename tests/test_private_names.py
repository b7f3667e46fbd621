"""Names that libraries do not document: used in one module only, and each tested against the installed library."""

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from tests.sources import ROOT, SOURCES, name_of, nodes, read

pytestmark = pytest.mark.no_cover

MODULES = [path for path in SOURCES if path.is_relative_to(ROOT / "candled")]
# Names that begin with an underscore and are documented: of named tuples, of `os` and of SQLite's rows.
DOCUMENTED = {"_replace", "_asdict", "_fields", "_make", "_exit", "_current_frames"}
# Names without an underscore that the libraries' documentation does not have.
UNDOCUMENTED = re.compile(
    r"request\.connection\.stream|connection\.context|"
    r"client_terminated|compute_accept_value|current_size|parser_exc|close_sent|\.ui = "
)
LIBRARIES = {"tornado", "websockets", "asyncio", "redis", "psycopg2", "msgspec", "pydantic", "socket", "ssl"}


def library_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] in LIBRARIES]


@cache
def private_names(kind: type) -> set[str]:
    """The private attributes that a class of a library sets or defines."""
    names = {name for name in vars(kind) if name.startswith("_") and not name.startswith("__")}
    try:
        library = nodes(Path(inspect.getsourcefile(kind) or ""))
    except (TypeError, OSError):  # written in C
        return names
    for node in library:
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
            names |= {one.attr for one in ast.walk(node) if is_private(one) and is_self(one)}
    return names


def is_private(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")


def is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def uses(path: Path) -> set[str]:
    """The private names of libraries that a module uses: on an object, or on `self` in a subclass."""
    private = [one for one in nodes(path) if is_private(one)]
    own = {one.attr for one in private if is_self(one)}
    found = {one.attr for one in private if not is_self(one)} - own
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for node in nodes(path):
        kind = getattr(module, node.name, None) if isinstance(node, ast.ClassDef) else None
        if isinstance(kind, type):
            used = {one.attr for one in ast.walk(node) if is_private(one) and is_self(one)}
            found |= {name for base in library_bases(kind) for name in used & private_names(base)}
    return found


def test_undocumented_names_are_used_in_one_module():
    found = {name_of(path): [*(uses(path) - DOCUMENTED), *UNDOCUMENTED.findall(read(path))] for path in MODULES}
    assert [*filter(found.get, found)] == ["candled/transport/library_internals.py"], found


def test_the_search_finds_them():
    assert uses(ROOT / "candled/transport/library_internals.py") == {
        "_reason", "_finished", "_read_buffer_size", "_read_buffer", "_state", "_add_io_state", "_ssl_accepting",
        "_ssl", "_test_decode_cert",  # of Python, for certificates
    }  # fmt: skip
    assert len(set(UNDOCUMENTED.findall((ROOT / "candled/transport/library_internals.py").read_text()))) == 8
