"""The docs agree with the code: errors, close codes, states, `/health`, links. No file names a machine.

test_config.py checks the page on settings, test_plugins.py that on plugins, test_cli.py that on the command line,
test_architecture.py that on the architecture.
"""

import ast
import asyncio
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from candled import config
from candled.app import Daemon
from candled.client.values import State as ClientState
from candled.clock import SystemClock
from candled.model import REASONS, STATE_REASONS, STATES, State, StateReason
from candled.plugins import discover
from candled.protocol import messages
from candled.protocol import requests as protocol
from candled.serve.server import LARGEST_MESSAGE
from tests.sources import PAGES, ROOT, SOURCES, nodes, read, read_yaml

pytestmark = pytest.mark.no_cover

PROTOCOL = (ROOT / "docs" / "reference" / "protocol.md").read_text("utf-8")
WIRE = [
    ROOT / "candled" / "protocol" / "requests.py",
    *(path for folder in ("serve", "transport") for path in sorted((ROOT / "candled" / folder).glob("*.py"))),
]


def calls(path: Path, name: str) -> Iterator[ast.Call]:
    """Yield the calls of a function or method of that name in a file."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called == name:
                yield node


def beginning(text: ast.expr) -> str:
    """Return the fixed beginning of a text: all of a constant, an f-string up to its first value."""
    if isinstance(text, ast.JoinedStr):
        first = text.values[0]
        assert isinstance(first, ast.Constant), (
            "an error text must begin with fixed words, so that users can search for it"
        )
        return str(first.value)
    if isinstance(text, ast.Name | ast.Attribute):
        name = text.id if isinstance(text, ast.Name) else text.attr
        return str(getattr(messages, name, None) or getattr(protocol, name))
    assert isinstance(text, ast.Constant)
    return str(text.value)


def error_texts() -> list[str]:
    """Return the fixed beginning of every error that the server may send."""
    raised = [
        beginning(call.args[0])
        for path in WIRE
        for name in ("RequestError", "UnknownMarket")
        for call in calls(path, name)
    ]
    sent = [beginning(call.args[0]) for path in WIRE for call in calls(path, "error") if is_message(call)]
    return sorted({*raised, *sent})


def is_message(call: ast.Call) -> bool:
    """Return True for `messages.error("…")`, but not for `logger.error` or an error counted where it was raised."""
    function = call.func
    is_own = (
        isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "messages"
    )
    return is_own and not isinstance(call.args[0], ast.Call)


# ---------------------------------------------------------------- the wire


def test_the_errors_are_found():
    assert {"Invalid message format", "Unknown message type: ", "Failed to subscribe to candles"} <= set(error_texts())
    assert len(error_texts()) >= 9


def test_every_error_a_client_may_get_is_on_the_page():
    assert [text for text in error_texts() if f"`{text}" not in PROTOCOL] == []


def test_every_close_code_is_on_the_page_and_no_other():
    arguments = [call.args for path in WIRE for name in ("disconnect", "fail") for call in calls(path, name)]
    arguments += [
        call.args[1:]
        for path in WIRE
        for call in calls(path, "partial")
        if isinstance(call.args[0], ast.Attribute) and call.args[0].attr == "disconnect"
    ]
    used = {code.value for code, *reason in arguments if len(reason) == 1 and isinstance(code, ast.Constant)}
    section = PROTOCOL.split("## Closing")[1].split("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d{4}) \|", section, re.MULTILINE)}
    assert len(used) >= 3
    assert documented == used | {1002, 1009}  # from the library that reads the frames


def test_every_refusal_of_a_handshake_is_on_the_page():
    refused = {call.args[0].value for path in WIRE for call in calls(path, "_refuse") if len(call.args) == 2}
    limits = (ROOT / "candled" / "serve" / "connection_limiter.py").read_text("utf-8")
    refused |= {int(status) for status in re.findall(r"return (\d{3}), f?\"", limits)}
    assert refused == {503, 429}
    assert all(str(status) in PROTOCOL for status in refused | {403})


def test_the_numbers_of_the_protocol_are_on_the_page():
    page = " ".join(PROTOCOL.split())
    assert f"at most {LARGEST_MESSAGE // 1024} KiB from the client" in page
    assert f"0 to {protocol.MOST_BARS}, default {protocol.DEFAULT_BARS}" in page
    default = config.ServerSettings()
    assert f"The server pings every {default.ping_interval.seconds} s (`server.ping_interval`)" in page
    assert f"does not answer within {default.ping_timeout.seconds} s is closed" in page


# ---------------------------------------------------------------- /health


def keys(facts: Any, *, names: tuple[str, ...] = ("exchanges", "symbols", "plugins", "hosts")) -> set[str]:
    """Return the keys of nested facts, except the names of exchanges, symbols and the like below `names`."""
    found: set[str] = set()
    for key, value in facts.items():
        found.add(key)
        inner = value.values() if key in names else [value]
        for one in inner:
            found |= keys(one) if isinstance(one, dict) else set()
            if isinstance(one, list):
                found |= {name for item in one if isinstance(item, dict) for name in keys(item)}
    return found


@pytest.fixture(scope="module")
def health(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return `/health` of a daemon on replay."""
    directory = tmp_path_factory.mktemp("facts")
    document = {
        "server": {"host": "127.0.0.1", "port": 0},
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
    }
    (directory / "candled.yaml").write_text(yaml.safe_dump(document), "utf-8")

    async def ask() -> dict[str, Any]:
        plugins = discover()
        daemon = Daemon(config.load(directory / "candled.yaml", {}, plugins), plugins, SystemClock())
        try:
            await daemon.start()
            return dict(await daemon.health.report())
        finally:
            await daemon.stop()

    return asyncio.run(ask())


def test_every_key_of_health_is_on_the_page(health):
    documented = set(re.findall(r"`(\w+)`", PROTOCOL))
    found = keys(health)
    assert {"status", "state", "lastMessageAgeMs", "walBytes", "limit"} <= found
    assert found - documented == set()


def test_every_key_of_the_postgresql_store_is_on_the_page():
    tree = ast.parse((ROOT / "candled" / "store" / "postgres" / "store.py").read_text("utf-8"))
    documented = [
        node for node in ast.walk(tree) if isinstance(node, ast.Assign) and "_facts" in ast.unparse(node.targets[0])
    ]
    documented += [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "describe"]
    dicts = [node for one in documented for node in ast.walk(one) if isinstance(node, ast.Dict)]
    found = {key.value for one in dicts for key in one.keys if isinstance(key, ast.Constant)}
    assert found >= {"kind", "schema", "server"}
    assert found - set(re.findall(r"`(\w+)`", PROTOCOL)) == set()


def test_every_state_of_a_symbol_is_on_the_page_and_no_other():
    section = PROTOCOL.split("| state | meaning |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(get_args(State))


TROUBLESHOOTING = (ROOT / "docs" / "how-to" / "troubleshooting.md").read_text("utf-8")


def listed(page: str, title: str) -> list[str]:
    """Return the first column of the tables below a heading."""
    section = re.split(rf"^#+ {title}$", page, flags=re.MULTILINE)[1]
    return re.findall(r"^\| `(\w+)` \|", re.split(r"^#", section, flags=re.MULTILINE)[0], re.MULTILINE)


def test_every_state_and_reason_has_its_line_of_troubleshooting():
    assert listed(TROUBLESHOOTING, "States of a symbol") == list(STATES) == list(get_args(State))
    assert listed(TROUBLESHOOTING, "Why a symbol is not live") == list(STATE_REASONS) == list(get_args(StateReason))
    assert listed(TROUBLESHOOTING, "Why minutes are missing") == list(REASONS)


def test_every_state_of_the_parts_is_in_troubleshooting():
    section = TROUBLESHOOTING.split("## Parts of the daemon")[1].split("\n## ")[0]
    writer = (ROOT / "candled" / "store" / "writer.py").read_text("utf-8")
    states = re.search(r"self\._state: Literal\[(.*?)\]", writer)
    assert states is not None
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == re.findall(r'"(\w+)"', states[1])
    for name, texts in {
        "health.py": ("are being loaded", "is being opened", "is not connected"),
        "serve/health_handlers.py": ("is stopping",),
    }.items():
        source = (ROOT / "candled" / name).read_text("utf-8")
        assert all(f'"{text}"' in source and f"| `{text}` |" in section for text in texts)
    assert set(get_args(ClientState)) <= set(re.findall(r"`(\w+)`", section)) | set(STATES)


def test_clients_and_the_page_know_every_state_and_reason():
    words = (ROOT / "candled" / "serve" / "static" / "words.js").read_text("utf-8")
    states, reasons = re.findall(r"export const (?:STATES|STATE_REASONS) = \{\n(.*?)\n\};", words, re.DOTALL)
    assert set(STATES) <= set(re.findall(r"^  (\w+):", states, re.MULTILINE))
    assert re.findall(r"^  (\w+):", reasons, re.MULTILINE) == list(STATE_REASONS)
    gaps = re.search(r"export const REASONS = \{\n(.*?)\n\};", words, re.DOTALL)
    assert dict(re.findall(r'^  (\w+): "(.*)",$', gaps[1], re.MULTILINE)) == REASONS
    assert set(STATES) <= set(get_args(ClientState))
    types = (ROOT / "clients" / "js" / "candled.d.ts").read_text("utf-8")
    assert re.findall(r'"(\w+)"', types.split("export type FeedState")[1].split(";")[0]) == list(STATES)
    [document] = read_yaml(ROOT / "docs" / "reference" / "asyncapi.yaml")
    status = document["components"]["messages"]["status"]["payload"]["properties"]
    assert status["state"]["enum"] == list(STATES)


@pytest.mark.parametrize("page", ["docs/reference/http.md", "docs/reference/tools.md", "candled/serve/static/words.js"])
def test_the_reasons_of_gaps_are_the_same_everywhere(page):
    text = (ROOT / page).read_text("utf-8")
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) + re.findall(r"^  (\w+): \"", text, re.MULTILINE)
    assert set(REASONS) <= set(named)


def quoted_messages() -> list[str]:
    """Return the texts in backquotes in the first columns of the tables of messages in troubleshooting."""
    found = []
    for title in ("Request budgets", "Proxies", "File descriptors", "The store", "Wrong bars"):
        section = TROUBLESHOOTING.split(f"\n## {title}\n")[1].split("\n## ")[0]
        for cell in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE):
            found += [double or single for double, single in re.findall(r"`` (.+?) ``|`([^`]+)`", cell)]
    return found


def test_messages_are_found_in_troubleshooting():
    assert len(quoted_messages()) > 20


def test_every_message_of_troubleshooting_is_one_of_candled():
    texts, unknown = constants(), []
    for message in {*quoted_messages()} - {"CERTIFICATE_VERIFY_FAILED"}:  # that one is of OpenSSL
        parts = [part.strip(" ,:") for part in re.split(r"…|\b[NM]\b|\b3m\b|\d+|[()]", message)]
        unknown += [part for part in parts if len(part) > 3 and not any(part in text for text in texts)]
    assert unknown == []


def constants() -> frozenset[str]:
    """Return every text in the code of candled; of an f-string the fixed parts."""
    return frozenset(
        node.value
        for path in SOURCES
        if path.is_relative_to(ROOT / "candled")
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


# ---------------------------------------------------------------- links and names


def links() -> list[tuple[Path, str]]:
    """Return every relative link of every page."""
    return [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", read(page))
        if not re.match(r"[a-z]+:", target)
    ]


def programs() -> list[tuple[Path, str]]:
    """Return each page with each Python program on it."""
    return [(page, code) for page in PAGES for code in re.findall(r"^```python\n(.*?)^```$", read(page), re.S | re.M)]


def test_every_program_of_the_pages_is_python():
    assert len(programs()) > 5
    for page, code in programs():
        compile(code, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_links_are_found():
    assert len(links()) > 15


def is_broken(page: Path, target: str) -> bool:
    """Tell whether a link leads to no file, out of the repository, or to no heading of the file."""
    path, _, heading = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists() or not file.is_relative_to(ROOT):
        return True
    if not heading:
        return False
    headings = re.findall(r"^#+ (.+)$", read(file), re.MULTILINE)
    return heading not in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}


def test_every_relative_link_leads_somewhere():
    assert [f"{page}: {target}" for page, target in links() if is_broken(page, target)] == []


@pytest.mark.parametrize(
    ("target", "broken"),
    [("docs", False), ("#install", True), ("no.md", True), ("../../x", True), ("CONTRIBUTING.md#no-heading", True)],
)
def test_a_broken_link_is_noticed(target, broken):
    assert is_broken(ROOT / "README.md", target) is broken


def test_every_page_is_reached_from_the_readme():
    reached = {ROOT / "README.md"}
    found = [(page, (page.parent / target.split("#")[0]).resolve()) for page, target in links()]
    for _ in PAGES:
        reached |= {target for page, target in found if page in reached}
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in reached] == []


def test_every_name_of_contributing_exists():
    """Every class and path in backquotes exists; paths with `<name>` are patterns."""
    text = re.sub(r"^```.*?^```", "", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r"`(candled(?:\.\w+)*\.[A-Z]\w*)`", text)
    paths = [path for path in re.findall(r"`([\w.]+(?:/[\w.<>-]*)+)`", text) if "<" not in path]
    assert len(names) >= 3
    assert len(paths) >= 8
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    assert [path for path in paths if not (ROOT / path).exists()] == []


def texts() -> list[Path]:
    """Return the project's own text files."""
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".js", ".html", ".css", ".sql", ".json", ".txt", ".service", ""}
    folders = (
        "candled",
        "plugins",
        "config",
        "tests",
        "docs",
        "bench",
        "clients",
        "deploy",
        "examples",
        ".ci",
        ".github",
    )
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    beside = [
        path for path in ROOT.iterdir() if path.suffix in suffixes and not path.name.startswith((".git", ".coverage"))
    ]
    return sorted(
        path for path in {*inside, *beside} if path.is_file() and not {"vendor", "__pycache__"} & set(path.parts)
    )


# A folder of a developer's machine, or the address of a package registry, in lower case.
PRIVATE = re.compile(
    r"/(?:(?<![\w.~$}]/)(?:work|root|users|home/[a-z]\w*|tmp/[\w.-]+)|simple)/"
    r"|index[-_]url|artifact(?:ory|s)\.|\.pkg\.dev|registry\.[\w-]+\.\w+"
)


def test_no_file_names_a_machine_or_a_registry():
    files = texts()
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        for match in PRIVATE.finditer(path.read_text("utf-8").lower())
        if path != Path(__file__)
    ]
    assert found == []


@pytest.mark.parametrize("line", ["see /work/shared/x", "cd /home/ann/src", 'open("/tmp/dbg/x")', "--index-url x"])
def test_a_machine_would_be_noticed(line):
    assert PRIVATE.search(line)
