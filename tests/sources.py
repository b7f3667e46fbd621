"""The files of the project, each parsed once per process, for the tests of rules that all of them keep."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("candled", "plugins") for path in sorted((ROOT / folder).rglob("*.py"))]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("plugins", "bench", "examples/candled-plumline")),
]


@cache
def read(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text("utf-8")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return every node of a module, the module itself first."""
    found: list[ast.AST] = [ast.parse(read(path))]
    for node in found:  # in the order of ast.walk, and without Load and Store, in a third of its time
        for value in vars(node).values():
            if isinstance(value, list):
                found += [one for one in value if isinstance(one, ast.AST)]
            elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
                found.append(value)
    return found


def name_of(path: Path) -> str:
    """Return the path of a file in the repository."""
    return path.relative_to(ROOT).as_posix()
