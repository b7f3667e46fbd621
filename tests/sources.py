"""The files of the project, each parsed once per process, for the tests of rules that all of them keep."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("candled", "plugins") for path in sorted((ROOT / folder).rglob("*.py"))]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("plugins", "bench", "examples/candled-plumline")),
]


# A comment, a string with its prefix, or a name: all that has letters but numbers, six times as fast as `tokenize`.
_TOKEN = re.compile(
    r'(?P<comment>#[^\n]*)|(?:\b[A-Za-z]{1,2})?(?:"""(?:\\.|[^\\])*?"""|'
    r"'''(?:\\.|[^\\])*?'''|"
    r'"(?:\\.|[^"\\\n])*"|'
    r"'(?:\\.|[^'\\\n])*')|\b(?P<name>[^\W\d]\w*)",
    re.DOTALL,
)


@cache
def read(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text("utf-8")


@cache
def read_yaml(path: Path) -> list[Any]:
    """Return the documents of a file of YAML."""
    return [*yaml.load_all(read(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))]  # C's takes a tenth of the time


def find_names(path: Path) -> set[str]:
    """Return the names and keywords of a module."""
    return {match["name"] for match in _TOKEN.finditer(read(path)) if match["name"]}


def find_comments(path: Path) -> list[tuple[int, str]]:
    """Return each comment of a module, with its line."""
    source = read(path)
    found = [match for match in _TOKEN.finditer(source) if match["comment"]]
    return [(source.count("\n", 0, match.start()) + 1, match[0]) for match in found]


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
