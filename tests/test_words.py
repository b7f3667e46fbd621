"""The prose uses the field's words: docs and docstrings have no retired ones, and the code has every glossary term."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "plugins" / "README.md",
    ROOT / "bench" / "README.md",
]
SOURCES = [path for folder in ("candled", "plugins") for path in sorted((ROOT / folder).rglob("*.py"))]

# Each has a plainer word; see CONTRIBUTING.md, "Style". `at once` is fine where it means "at the same time" only.
RETIRED = [
    "anew", "at once", "for ever", "heard", "nobody", "of which", "ours", "said", "told", "whereof", "whoever",
]  # fmt: skip
RETIRED_WORDS = re.compile(rf"\b({'|'.join(RETIRED)})\b", re.IGNORECASE)
WHAT = re.compile(r"\bwhat(ever)?\b", re.IGNORECASE)
INDIRECT = {"What", "Whether", "Who", "Whoever", "How", "Where", "Whose"}


def prose(markdown: str) -> str:
    """A page without its code."""
    without_blocks = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`|<[^>\n]*>|\]\([^)]*\)", " ", without_blocks)


@cache
def docstrings(path: Path) -> list[tuple[str, str]]:
    """The name and docstring of a module and of everything defined in it."""
    return [*_docstrings(path)]


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", path.stem), text


def all_docstrings() -> Iterator[tuple[Path, str, str]]:
    return ((path, name, text) for path in SOURCES for name, text in docstrings(path))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_uses_no_retired_word(page):
    found = [
        f"{number}: {match[0]}"
        for number, line in enumerate(prose(page.read_text("utf-8")).splitlines(), 1)
        for match in RETIRED_WORDS.finditer(line)
    ]
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_docstring_uses_no_retired_word(path):
    found = [(name, match[0]) for name, text in docstrings(path) for match in RETIRED_WORDS.finditer(prose(text))]
    assert not found


def test_docstrings_begin_with_a_verb_or_a_noun():
    indirect = [
        f"{path.name}: {name}: {text[:60]}" for path, name, text in all_docstrings() if text.split()[0] in INDIRECT
    ]
    assert not indirect


def test_docstrings_use_nouns_instead_of_what_clauses():
    words = sum(len(text.split()) for _, _, text in all_docstrings())
    assert sum(len(WHAT.findall(text)) for _, _, text in all_docstrings()) / words * 1000 < 1


def test_the_help_of_settings_uses_no_retired_word():
    help_texts = re.findall(r'"description": "(.*)"', (ROOT / "config" / "candled.schema.json").read_text("utf-8"))
    assert len(help_texts) > 50
    assert [text for text in help_texts if RETIRED_WORDS.search(text) or WHAT.search(text) or "away" in text] == []


def test_docs_speak_to_the_reader():
    words = [word.lower() for page in PAGES for word in re.findall(r"[A-Za-z']+", prose(page.read_text("utf-8")))]
    assert sum(word in ("you", "your") for word in words) / len(words) * 1000 >= 10


def test_every_term_of_the_glossary_occurs_in_the_code():
    terms = re.findall(
        r"^\| ([^|`]+?) \|", (ROOT / "docs" / "reference" / "glossary.md").read_text("utf-8"), re.MULTILINE
    )[1:]
    code = "\n".join(path.read_text("utf-8") for path in SOURCES).lower().replace("_", " ")
    assert [term for term in terms if term != "---" and term.lower() not in code] == []
