"""Imports point one way, `cli → app → edges → pure → model → errors`, and only the listed edges touch the outside.

`python -m tests.test_architecture` prints the table of import rules for docs/explanation/architecture.md.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import candled
from tests.sources import ROOT, SOURCES, nodes, read

pytestmark = pytest.mark.no_cover

# Modules that do I/O, wait or read the time. Files are not included: any part may read settings and recordings.
OUTSIDE = {
    "asyncio", "concurrent", "http.client", "http.server", "multiprocessing", "psycopg2", "queue", "redis", "select",
    "selectors", "signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "threading", "time", "tornado",
    "urllib.request",
}  # fmt: skip

# Modules that import one of those. Those in `tools/` are not listed: they are commands, and may import any.
EDGES = {
    "app", "closed_bar_hooks", "plugin_hooks",
    "health", "budget", "budget_file", "ingest_side", "cli", "clock", "daemon_threads", "plugins",
    "signals", "workers", "loop_watchdog", "reloader", "control", "service_manager",
    "ingest/exchange_ingest", "ingest/repair_scheduler", "ingest/feed_pool", "ingest/feeds", "ingest/http",
    "ingest/tunnel", "ingest/prepared_address",
    "api/encoding_turns", "api/handler", "api/pages",
    "client/client", "client/connection", "client/subscription",
    "bus/redis/shared_limits", "bus/redis/leases", "bus/redis/publisher", "bus/redis/bus", "bus/redis/connections",
    "bus/redis/market_lists", "bus/redis/subscriber",
    "tasks", "testing/kit", "testing/stage",
    "transport/acceptor", "transport/hot_stream", "transport/stream_poller", "transport/library_internals",
    "serve/hot_path",
    "serve/access", "serve/client", "serve/events", "serve/handlers", "serve/internal",
    "serve/listening", "serve/pager",
    "serve/kept_pages", "serve/prefix", "serve/server", "serve/static_files",
    "transport/socket_connection", "transport/socket_detach",
    "transport/tls",
    "transport/tornado_connection",
    "store/history", "store/ingest_store", "store/journal", "store/journal_spill", "store/postgres/pool",
    "store/sqlite/backup", "store/sqlite/file", "store/sqlite/rollups", "store/sqlite/store", "store/threads",
    "store/writer",
}  # fmt: skip

# Modules that do I/O only through an edge, which they import. The text is the reason.
HOLDERS = {
    "__main__": "handles signals and calls cli",
    "__init__": "has the names for plugins, among them that of polling",
    **dict.fromkeys(
        ("api/bar_answers", "api/klines", "api/rest", "api/routes", "api/udf"), "resources over api/handler"
    ),
    "serve/market_starts": "waits for markets through tasks",
    "api/kline_streams": "starts markets over serve/market_starts",
    "store/sqlite/retention": "deletes over store/sqlite/file",
    "aggregate/store_reader": "starts tasks and waits through tasks",
    "aggregate/resume": "reads over store/history",
    "aggregate/live_bars": "reads over aggregate/store_reader",
    **dict.fromkeys(("api/context", "api/past_pages"), "read over store/history"),
    "bus/redis/context": "names the servers of bus/redis/connections",
    "bus/redis/processes": "calls over bus/redis/connections",
    "ingest/context": "names store/ingest_store and ingest/http",
    "ingest/publisher": "repeats writes through tasks",
    "ingest/market_loader": "reads through tasks",
    "ingest/market_chooser": "changes many markets through tasks",
    "ingest/market_listing": "reads the list over ingest/http",
    **dict.fromkeys(("ingest/stored_past", "ingest/store_audit"), "publish over ingest/publisher"),
    "ingest/renamed_history": "copies over store/ingest_store",
    "client/__init__": "exports the names of the client",
    **dict.fromkeys(("client/closed_bars", "client/stream"), "streams over client/subscription"),
    "bus/factory": "creates the bus for an address",
    "serve/page": "renders the template beside serve/handlers",
    **dict.fromkeys(("serve/health_handlers", "serve/status_handlers"), "handlers over serve/handlers"),
    **dict.fromkeys(
        ("metrics/collector", "metrics/ingest", "metrics/serving", "metrics/storing"), "read counts of many edges"
    ),
    "parts": "names parts that are edges",
    "status/market_rows": "leaves the loop to others through the clock",
    "status/report": "reads counts of many edges",
    "status/processes": "reads those of the server, and the list of bus/redis/processes",
    "testing/__init__": "has the tests for authors of plugins",
    "testing/modules": "loads one plugin, as plugins does",
    "testing/findings": "judges the results of testing/replayed",
    "testing/plugin_tests": "replays recordings",
    **dict.fromkeys(("testing/frame_checks", "testing/page_checks"), "call a plugin, and replay to it"),
    "testing/scripted_pages": "reads answers as ingest/http does",
    "testing/replayed": "reads recorded answers as ingest/http does",
    "polling": "reads several symbols through tasks",
    "stored_minutes": "reads a store",
    "store/upkeep": "repeats calls of store/threads",
    "config/__init__": "loads plugins, because they declare the settings of their exchanges",
    "reload": "compares the values of config",
    "settings_schema": "asks the same plugins for their keys",
    "store/__init__": "creates the store for an address",
    "store/postgres/store": "runs statements on the connections of store/postgres/pool",
    "store/postgres/markets": "reads and locks their rows over them",
    "store/postgres/rollups": "runs the statements for rollups on them",
    "store/postgres/schema/__init__": "creates tables over store/postgres/pool",
    "store/postgres/schema/timescale": "does the same for TimescaleDB",
    "store/postgres/maintenance": "deletes old rows over them",
}

# The most modules in a chain of imports.
DEPTH = 11

# The parts that a part may import, besides itself. `app` passes in everything else.
STEPS = {
    "errors": set(),
    "histogram": set(),
    "token_bucket": set(),
    "addresses": set(),
    "proxies": {"addresses"},
    "daemon_threads": set(),
    "budget": {"exchange", "token_bucket"},
    "budget_file": {"exchange", "token_bucket", "budget"},
    "model": {"errors"},
    "universe": {"model"},
    "symbol_pattern": {"model"},
    "universe_choice": {"model", "symbol_pattern"},
    "evidence": set(),
    "exchange": {"errors", "evidence", "model"},
    "hookspecs": {"exchange", "model", "settings", "store"},
    "on_demand": {"errors", "exchange", "model", "universe", "universe_choice"},
    "stored_minutes": {"model", "store"},
    "trade_bars": {"errors", "exchange", "model"},
    "market_table": {"errors", "exchange"},
    "frames": {"errors", "exchange", "model"},
    "polling": {"errors", "exchange", "model", "tasks"},
    "loop_watchdog": set(),
    "logs": {"model"},
    "settings": {"model", "symbol_pattern"},
    "clock": set(),
    "tasks": {"errors", "exchange"},
    "plugins": {"errors", "exchange", "hookspecs", "settings"},
    "store": {"errors", "model", "exchange", "daemon_threads", "histogram", "tasks"},
    "access": {"config", "errors", "exchange", "model", "settings", "symbol_pattern"},
    "settings_schema": {"exchange", "settings", "config"},
    "reload": {"settings", "config"},
    "control": {"errors", "reload"},
    "service_manager": {"exchange", "tasks"},
    "config": {
        "errors",
        "model",
        "exchange",
        "hookspecs",
        "settings",
        "plugins",
        "proxies",
        "store",
        "symbol_pattern",
        "bus",
        "universe_choice",
    },
    "bus": {
        "addresses",
        "budget",
        "errors",
        "exchange",
        "model",
        "tasks",
        "token_bucket",
        "universe",
        "universe_choice",
    },
    "ingest": {
        "addresses",
        "budget",
        "bus",
        "errors",
        "exchange",
        "histogram",
        "model",
        "proxies",
        "store",
        "tasks",
        "token_bucket",
        "universe",
        "universe_choice",
    },
    "aggregate": {"bus", "errors", "exchange", "model", "store", "tasks", "universe"},
    "protocol": {"errors", "model", "universe"},
    "rooms": {"access", "exchange", "model", "protocol", "symbol_pattern", "universe"},
    "transport": {"access", "addresses", "errors", "exchange", "model", "protocol", "rooms", "tasks", "token_bucket"},
    "serve": {
        "access",
        "addresses",
        "aggregate",
        "config",
        "errors",
        "exchange",
        "histogram",
        "model",
        "on_demand",
        "protocol",
        "rooms",
        "tasks",
        "token_bucket",
        "transport",
        "universe",
    },
    "api": {
        "access",
        "addresses",
        "aggregate",
        "config",
        "errors",
        "exchange",
        "model",
        "on_demand",
        "protocol",
        "rooms",
        "serve",
        "store",
        "tasks",
        "token_bucket",
        "transport",
        "universe",
    },
    "client": {"clock", "errors", "exchange", "model", "tasks", "token_bucket"},
}
ROOTS = {
    "app",
    "workers",
    "closed_bar_hooks",
    "health",
    "ingest_side",
    "plugin_hooks",
    "reloader",
    "cli",
    "metrics",
    "parts",
    "status",
    "tools",
    "testing",
    "signals",
    "__main__",
    "candled",
}  # may import every part

# The only modules of a part that another part may import: values and pure functions.
SHARED = {
    "bus": {"bus/__init__", "bus/redis/address"},  # the types of messages and addresses
    "config": {"config/__init__", "config/sections"},  # the type of the server's own section
    "rooms": {
        "rooms/hub",
        "rooms/recipients",
        "rooms/encoded_bars",
    },
    "serve": {
        "serve/access",
        "serve/grants",
        "serve/connection_limiter",
        "serve/content_coding",
        "serve/hot_path",
        "serve/kept_pages",
        "serve/market_starts",
        "serve/rate_limit",
        "serve/request_checks",
        "serve/request_ids",
    },  # the values of a request, its limit, and the start of its market
    "store": {
        "store/__init__",
        "store/interface",
        "store/history",
        "store/ingest_store",
    },  # stores, their readers and writers
}

# All other modules wait and read the time through `candled.exchange.Clock`.
OWN_TIME = {
    "clock": "is the real clock",
    "loop_watchdog": "watches the event loop from a thread, which has none",
    "closed_bar_hooks": "measures the calls of plugins in their threads",
    "store/postgres/pool": "watches database calls from a thread, which has no event loop",
}


# All other modules start tasks through `candled.tasks`, which logs those that crash.
OWN_TASKS = {
    "tasks": "is that module",
    "serve/handlers": "turns an awaitable of Tornado into a future",
    "store/history": "shares a read between callers that receive its error",
    "transport/socket_detach": "turns an awaitable of Tornado into a future",
}
# All other modules repeat calls through `candled.tasks`. A loop that only waits for a condition repeats nothing.
OWN_LOOPS = {
    "tasks": "is that module",
    "aggregate/resume": "waits for a condition, but not without limit",
    "aggregate/store_reader": "reads a range that may have grown after a failure",
    "budget_file": "reads a file that other processes change while it waits",
    "bus/redis/bus": "reads what it can, and waits only if some markets could not be read",
    "ingest/exchange_ingest": "spreads the markets over a time",
    "ingest/feeds": "sends frames until the connection is of no use, which is no failure of the loop",
    "ingest/market_listing": "waits longer after a complete answer than after an incomplete one",
    "ingest/store_audit": "spreads the markets over a time",
    "polling": "yields the events of each poll before it waits",
    "serve/server": "closes connections evenly over a time",
    "serve/client": "answers each request, which may be replaced meanwhile, with one error",
    "store/writer": "writes on, with pauses that depend on the last write",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "candled").with_suffix("").as_posix()


MODULES = {name_of(path): path for path in SOURCES if path.is_relative_to(ROOT / "candled")}
DOTTED = {f"candled/{name}".removesuffix("/__init__").replace("/", "."): name for name in MODULES}
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
PLUGINS = {path.relative_to(ROOT).as_posix(): path for path in SOURCES if path not in MODULES.values()}
PURE = sorted(name for name in MODULES.keys() - EDGES - HOLDERS.keys() if not name.startswith("tools/"))


@cache
def imported(path: Path, walk: Callable[[Path], Iterable[ast.AST]] = nodes) -> frozenset[str]:
    """Return the absolute names of all modules that a file imports anywhere; both x and x.y for `from x import y`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in walk(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            beginning = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*beginning, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def run_on_import(path: Path) -> Iterator[ast.AST]:
    """Yield the nodes of a module that run when it is imported: not functions, and nothing under TYPE_CHECKING."""
    return _run_on_import(nodes(path)[0])


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _run_on_import(child)


def touches(path: Path) -> set[str]:
    """Return the modules of `OUTSIDE` that a file imports."""
    return {module for module in imported(path) if any(f"{module}.".startswith(f"{one}.") for one in OUTSIDE)}


def own(name: str, walk: Callable[[Path], Iterable[ast.AST]] = nodes) -> set[str]:
    """Return the modules of candled that a module imports."""
    return {DOTTED[module] for module in imported(MODULES[name], walk) if module in DOTTED} - {name}


@cache
def longest_chain(name: str) -> tuple[str, ...]:
    """Return the longest chain of modules that are imported one after the other when this one is."""
    return (name, *max((longest_chain(other) for other in sorted(own(name, run_on_import))), key=len, default=()))


def step_of(name: str) -> str:
    return "candled" if name == "__init__" else name.split("/")[0]


def rules_table() -> str:
    """Return `DEPTH` and the table of `STEPS` in Markdown."""
    depth = f"A chain of imports has at most {DEPTH} modules, and none is a circle."
    rows = [f"| `{step}` | {', '.join(f'`{one}`' for one in sorted(may)) or 'none'} |" for step, may in STEPS.items()]
    return "\n".join([depth, "", "| part | may import |", "| --- | --- |", *rows])


# ---------------------------------------------------------------- the outside


def test_only_edges_touch_the_outside():
    assert {name: touches(MODULES[name]) for name in PURE if touches(MODULES[name])} == {}
    found = {name: own(name) & (EDGES | HOLDERS.keys()) for name in PURE}
    assert {name: edges for name, edges in found.items() if edges} == {}


def test_what_is_listed_as_an_edge_is_one():
    assert [name for name in sorted(EDGES) if not touches(MODULES[name])] == []


def test_a_module_listed_as_a_holder_of_an_edge_has_one_and_is_none_itself():
    assert [name for name in HOLDERS if touches(MODULES[name])] == []
    assert [name for name in HOLDERS if not own(name) & (EDGES | HOLDERS.keys())] == []


def test_waiting_and_time_go_through_the_injected_clock():
    real = re.compile(
        r"asyncio\.sleep\(|\btime\.(?:time|time_ns|monotonic|perf_counter|sleep)\b|\.(?:utcnow|today|call_later)\(|"
        r"datetime\.now\(|loop\(?\)?\.time\(\)"
    )
    assert {name for name, path in MODULES.items() if real.search(read(path))} == OWN_TIME.keys()


def loops_with_sleep(module: ast.AST) -> list[str]:
    """Return the sleeps that repeat something else: those in a loop with other statements."""
    found = []

    def visit(node: ast.AST, loop: ast.While | ast.For | ast.AsyncFor | None) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            loop = None
        elif isinstance(node, ast.While | ast.For | ast.AsyncFor):
            loop = node
        elif (
            isinstance(node, ast.Await)
            and loop is not None
            and re.match(r"await [\w.]*\bsleep\((?!0\))", ast.unparse(node))
        ):
            is_wait = [ast.unparse(one) for one in loop.body] == [ast.unparse(node)]
            found.extend([] if is_wait else [ast.unparse(node)])
        for child in ast.iter_child_nodes(node):
            visit(child, loop)

    visit(module, None)
    return found


def test_tasks_and_repeated_calls_go_through_the_module_tasks():
    made = re.compile(r"\bensure_future\(|\b(?:asyncio|loop)\.create_task\(")
    assert {name for name, path in MODULES.items() if made.search(read(path))} == OWN_TASKS.keys()
    sleeping = {name: path for name, path in MODULES.items() if "sleep(" in read(path)}
    assert {name for name, path in sleeping.items() if loops_with_sleep(nodes(path)[0])} == OWN_LOOPS.keys()


@pytest.mark.parametrize(
    ("body", "is_found"),
    [
        ("while is_busy(): await clock.sleep(1)", False),
        ("while True:\n  work()\n  await clock.sleep(0)", False),
        ("while True:\n  work()\n  await clock.sleep(1)", True),
        ("while True:\n  while is_busy(): await clock.sleep(1)\n  work()", False),
        ("for one in all:\n  if one: await asyncio.sleep(wait_s)", True),
    ],
)
def test_a_loop_by_hand_is_noticed(body, is_found):
    assert bool(loops_with_sleep(ast.parse(body))) is is_found


def test_constants_of_time_are_those_of_the_model():
    again = re.compile(r"\b86_400_000\b|\b2 ?\*\* ?62\b|Interval\.parse\(\"1[mDW]\"\)")
    assert {step_of(name) for name, path in MODULES.items() if again.search(read(path))} == {"model"}


# ---------------------------------------------------------------- directions


def between_steps() -> Iterator[tuple[str, str]]:
    """Yield each module that may not import every part, with each module of another part that it imports."""
    for name in sorted(MODULES):
        if step_of(name) not in ROOTS:
            yield from ((name, other) for other in sorted(own(name)) if step_of(other) != step_of(name))


def test_a_step_knows_only_the_steps_it_may():
    # `from candled import __version__` and the like: the package itself, not a step
    allowed = {step: may | {"candled"} for step, may in STEPS.items()}
    assert [pair for pair in between_steps() if step_of(pair[1]) not in allowed[step_of(pair[0])]] == []


def test_a_step_knows_of_another_only_what_is_shared():
    assert [pair for pair in between_steps() if pair[1] not in SHARED.get(step_of(pair[1]), pair)] == []


def test_only_the_command_line_imports_the_composition_root_and_no_module_the_command_line():
    assert {name for name in MODULES if "app" in own(name)} == {"cli"}
    assert {name for name in MODULES if "cli" in own(name)} == {"__main__"}


def test_there_are_no_circles_between_steps():
    def reach(step: str, seen: frozenset[str]) -> None:
        assert step not in seen, f"{step} imports itself through {sorted(seen)}"
        for other in sorted(STEPS.get(step, set())):
            reach(other, seen | {step})

    for step in STEPS:
        reach(step, frozenset())


def test_no_module_imports_itself_through_others():
    """Imports for annotations, and those inside functions, count too: a circle is a circle."""
    TopologicalSorter({name: own(name) for name in MODULES}).prepare()  # the error shows the circle


def test_no_chain_of_imports_is_longer_than_documented():
    longest = max(map(longest_chain, MODULES), key=len)
    assert len(longest) <= DEPTH, " → ".join(longest)


def test_every_part_of_the_tree_has_its_place():
    assert {step_of(name) for name in MODULES} == STEPS.keys() | ROOTS
    assert EDGES | HOLDERS.keys() <= MODULES.keys()
    assert set().union(*SHARED.values()) <= MODULES.keys()


# ---------------------------------------------------------------- the page


def methods(path: Path) -> set[str]:
    """Return the methods that the classes of a file define, as `Class.method`."""
    return {
        f"{owner.name}.{one.name}"
        for owner in nodes(path)
        if isinstance(owner, ast.ClassDef)
        for one in owner.body
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    }


STEPS_OF_FLOWS = re.findall(r"`(\w+\.\w+)` in `([\w/]+\.py)`", read(PAGE))


def test_every_step_of_a_flow_names_a_method():
    rows = re.findall(r"^\| .+\.py` \|$", read(PAGE), re.MULTILINE)
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"`\w+\.\w+` in `[\w/]+\.py`", row)] == []


def test_every_method_of_the_page_exists():
    assert [f"{method} in {file}" for method, file in STEPS_OF_FLOWS if method not in methods(ROOT / file)] == []


def test_the_table_of_the_page_is_that_of_the_rules():
    page = re.search(r"<!-- import rules -->\n(.*?)\n?<!-- end of import rules -->", read(PAGE), re.DOTALL)
    assert page is not None
    assert page[1].strip() == rules_table(), "run `python -m tests.test_architecture` and paste the table into the page"


# ---------------------------------------------------------------- plugins


def test_a_bundled_plugin_uses_what_a_third_partys_may_and_nothing_else():
    allowed = {f"candled.{one}" for one in candled.__all__} | {"candled"}
    for name, path in PLUGINS.items():
        own = {module for module in imported(path) if module.split(".")[0] in ("candled", "candled_plugins")}
        assert own <= allowed, name


def test_a_bundled_plugin_has_no_socket_and_no_clock():
    for name, path in PLUGINS.items():
        assert touches(path) == set(), name
        assert not re.search(r"asyncio|\btime\.(time|sleep|monotonic)|datetime\.now", read(path)), name


def test_a_bundled_plugin_does_not_reach_into_another():
    for name, path in PLUGINS.items():
        others = {module.split(".")[1] for module in imported(path) if module.startswith("plugins.")}
        assert others <= {name.split("/")[1]}, name


def test_the_rules_would_notice_a_breach():
    """`imported` finds every form of import, also inside functions."""
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..x.y import z\n\ndef f():\n    import tornado.web\n"
    path = ROOT / "candled" / "rooms" / "hub.py"
    assert imported.__wrapped__(path, lambda _: ast.walk(ast.parse(source))) == {
        "a.b", "c", "c.d", "candled.rooms", "candled.rooms.e", "candled.x.y", "candled.x.y.z", "tornado.web",
    }  # fmt: skip


def test_test_modules_have_names_of_their_own():
    """Pytest imports test modules by their name without the folder."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


if __name__ == "__main__":
    print(rules_table())


LONGEST_FUNCTION, LONGEST_FILE = 57, 600  # lines


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The name and the length of each function."""
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_and_files_are_short():
    lengths = [(str(path), name, length) for path in SOURCES for name, length in functions(path)]
    assert [one for one in lengths if one[2] > LONGEST_FUNCTION] == []
    assert [str(path) for path in SOURCES if len(read(path).splitlines()) > LONGEST_FILE] == []
