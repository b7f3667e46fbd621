"""Prose, texts and names use the field's words: none is retired, and the code has every term of the glossary."""

import ast
import re
from collections.abc import Iterator, Set
from functools import cache
from pathlib import Path

import pytest

from tests.sources import PAGES, ROOT, SOURCES, find_comments, find_names, name_of, nodes, read

pytestmark = pytest.mark.no_cover

SCRIPTS = [
    path
    for folder in ("candled", "clients")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".js", ".ts", ".html", ".css", ".sql") and not {"vendor", "node_modules"} & {*path.parts}
]

# Each has a plainer word; see CONTRIBUTING.md, "Style". `at once` is fine where it means "at the same time" only.
RETIRED = [
    "anew", "(?:are|is) there", "at once", "away", "for ever", "heard", "held", "nobody", "of which", "ours", "said",
    "told", "whereof", "whoever",
]  # fmt: skip
RETIRED_WORDS = re.compile(rf"\b({'|'.join(RETIRED)})\b", re.IGNORECASE)
# In comments, log lines and error texts these are retired as well. Words of the wire specification are not among them.
RETIRED_TEXT = re.compile(rf"\b({'|'.join([*RETIRED, 'news', 'stuck', 'theirs', 'troubles?'])})\b", re.IGNORECASE)
# Words of identifiers that house rules replaced by a term of the field, or that are metaphors.
RETIRED_NAMES = {
    "anew", "door", "doubt", "doubtful", "doubts", "everybody", "filler", "forgotten", "gate", "goodbye", "healed",
    "hear", "heard", "held", "hole", "holes", "lacking", "ladder", "lane", "link", "links", "news", "nobody",
    "nonsense", "our", "ours", "patience", "rung", "said", "say", "says", "settled", "site", "spoke", "stuck", "tally",
    "tell", "telling", "tells", "theirs", "told", "trouble", "troubles", "verdict", "whereof", "whoever", "wires",
}  # fmt: skip
# Fields of answers over HTTP, whose names stay; calls of the standard library.
PUBLIC_NAMES = {"hole_count", "holes", "unlink"}
# Fields of answers, and the element that shows them.
SCRIPT_NAMES = {"hole", "holeCount", "holes"}
# Real ones: of Markdown, of a header and of network interfaces; an exchange.
REAL_NAMES = {"gate", "link", "links"}
WHAT = re.compile(r"\bwhat(ever)?\b", re.IGNORECASE)
INDIRECT = {"What", "Whether", "Who", "Whoever", "How", "Where", "Whose"}


def prose(markdown: str) -> str:
    """A page without its code."""
    without_blocks = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`|<[^>\n]*>|\]\([^)]*\)", " ", without_blocks)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """The name and docstring of a module and of everything defined in it."""
    for node in nodes(path):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", path.stem), text


def sentences(path: Path) -> list[tuple[int, str]]:
    """Each string of a module that has words, with its line."""
    strings = [node for node in nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [(node.lineno, node.value) for node in strings if " " in node.value]


@cache
def words_of(identifier: str) -> list[str]:
    """The words of a name in snake case or camel case, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def retired_names(path: Path, retired: Set[str]) -> list[str]:
    """The names in a module that have a retired word."""
    return sorted(name for name in find_names(path) if not retired.isdisjoint(words_of(name)))


def undocumented_fields(path: Path) -> list[str]:
    """The fields of a module's dataclasses that have no comment line above them, and are not named in the docstring."""
    lines, found = read(path).splitlines(), []
    for node in nodes(path):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            fields = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
            for field in fields:
                name, above = field.target.id, lines[field.lineno - 2].strip()
                is_named = re.search(rf"`{name}`|\b{name}:", ast.get_docstring(node) or "")
                if name != "_" and not above.startswith("#") and not is_named:
                    found.append(f"{name_of(path)}:{field.lineno}: {node.name}.{name}")
    return found


@cache
def all_docstrings() -> list[tuple[Path, str, str]]:
    return [(path, name, text) for path in SOURCES for name, text in docstrings(path)]


def test_a_page_uses_no_retired_word():
    found = [
        f"{name_of(page)}:{number}: {match[0]}"
        for page in PAGES
        for number, line in enumerate(prose(read(page)).splitlines(), 1)
        for match in RETIRED_WORDS.finditer(line)
    ]
    assert found == []


def test_a_docstring_uses_no_retired_word():
    found = [
        f"{name_of(path)}: {name}: {match[0]}"
        for path, name, text in all_docstrings()
        for match in RETIRED_WORDS.finditer(prose(text))
    ]
    assert found == []


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
    assert [text for text in help_texts if RETIRED_WORDS.search(text) or WHAT.search(text)] == []


def test_each_field_of_a_dataclass_is_documented():
    assert [one for path in SOURCES for one in undocumented_fields(path)] == []


def test_docs_speak_to_the_reader():
    words = [word.lower() for page in PAGES for word in re.findall(r"[A-Za-z']+", prose(read(page)))]
    assert sum(word in ("you", "your") for word in words) / len(words) * 1000 >= 10


def test_every_term_of_the_glossary_occurs_in_the_code():
    terms = re.findall(
        r"^\| ([^|`]+?) \|", (ROOT / "docs" / "reference" / "glossary.md").read_text("utf-8"), re.MULTILINE
    )[1:]
    code = "\n".join(map(read, SOURCES)).lower().replace("_", " ")
    assert [term for term in terms if term != "---" and term.lower() not in code] == []


def test_comments_log_lines_error_texts_and_names_use_no_retired_word():
    found = []
    for path in SOURCES:
        if RETIRED_TEXT.search(read(path)):
            found += [
                f"{name_of(path)}:{line}: {match[0]}"
                for line, text in [*find_comments(path), *sentences(path)]
                for match in RETIRED_TEXT.finditer(re.sub(r"`[^`]*`", "", text))
            ]
        found += [f"{name_of(path)}: {name}" for name in retired_names(path, RETIRED_NAMES) if name not in PUBLIC_NAMES]
    assert found == []


def test_helpers_of_tests_use_no_retired_word():
    found = [
        (name_of(path), name)
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in retired_names(path, RETIRED_NAMES - REAL_NAMES)
        if not name.startswith("test_")
    ]
    assert found == []


def test_scripts_pages_styles_and_statements_use_no_retired_word():
    found = []
    for path in SCRIPTS:
        source = path.read_text("utf-8")
        names = set(re.findall(r"[A-Za-z_]\w*", source)) if path.suffix in (".js", ".ts") else set()
        found += [(path.name, match[0]) for match in RETIRED_TEXT.finditer(source)]
        found += [(path.name, name) for name in sorted(names - SCRIPT_NAMES) if RETIRED_NAMES & {*words_of(name)}]
    assert len(SCRIPTS) > 15
    assert found == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("_LACKING", ["lacking"]),
        ("heardMs", ["heard", "ms"]),
        ("HTTPLink2", ["http", "link"]),
        ("mark_lost", ["mark", "lost"]),
    ],
)
def test_a_name_is_split_into_words(name, words):
    assert words_of(name) == words


def test_no_term_of_the_glossary_is_retired():
    glossary = (ROOT / "docs" / "reference" / "glossary.md").read_text("utf-8").lower()
    assert [word for word in sorted(RETIRED_NAMES) if re.search(rf"^\| {word} \|", glossary, re.MULTILINE)] == []
