"""Imports point one way, `cli → app → edges → pure → model → errors`, and only the listed edges touch the outside."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import candled

ROOT = Path(__file__).parents[1]

# What moves, waits or knows the time. Files are not among it: settings and recordings are read by whoever needs them.
OUTSIDE = {
    "asyncio", "concurrent", "http.client", "http.server", "multiprocessing", "psycopg2", "queue", "redis", "select",
    "selectors", "signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "threading", "time", "tornado",
    "urllib.request",
}  # fmt: skip

# Modules that touch the outside themselves. `tools/` are commands of their own, each an edge as the command line is.
EDGES = {
    "app", "budget", "budget_file", "ingest_side", "cli", "clock", "daemon_threads", "parallel", "plugins", "signals",
    "tools/tail",
    "aggregate/live_bars",
    "ingest/exchange_ingest", "ingest/feeds", "ingest/http", "ingest/tunnel",
    "api/handler",
    "client/client", "client/link", "client/stream",
    "bus/redis/shared_limits", "bus/redis/leases", "bus/redis/publisher", "bus/redis/bus", "bus/redis/connections",
    "bus/redis/subscriber",
    "tasks",
    "transport/acceptor", "serve/client", "serve/events", "serve/handlers", "serve/listening", "serve/pager",
    "serve/prefix", "serve/server", "transport/socket_connection", "transport/socket_detach",
    "transport/tornado_connection",
    "store/history", "store/postgres/pool", "store/sqlite/store", "store/threads", "store/writer",
}  # fmt: skip

# Modules that touch it only through those edges: they hold one, and decide which.
HOLDERS = {
    "__main__": "obeys signals, and calls cli",
    **dict.fromkeys(("api/klines", "api/rest", "api/routes", "api/udf"), "resources over api/handler"),
    "client/__init__": "names what a program may import of the client",
    "bus/factory": "makes the bus that an address means",
    "config": "an exchange's settings are declared by its plugin, so that reading them means finding plugins",
    "serve/clients": "names files for the handlers",
    "store/__init__": "makes the store that an address means",
    "store/ingest_store": "writer and history of one store in one hand",
    "store/postgres/store": "statements on the connections of postgres_pool",
    "store/postgres/rollups": "the folding statements over them",
    "store/postgres/schema/__init__": "creates tables over postgres_pool",
    "store/postgres/schema/timescale": "the same for what TimescaleDB adds",
    "store/postgres/maintenance": "drops what is old over them",
}

# Which steps a step may know, beside itself. What is missing here it is handed by `app`.
FOUNDATION = {"addresses", "errors", "tasks", "model", "exchange", "token_bucket", "budget", "parallel"}
STEPS = {
    "errors": set(),
    "token_bucket": set(),
    "parallel": set(),
    "addresses": set(),
    "proxies": {"addresses"},
    "daemon_threads": set(),
    "budget": {"exchange", "token_bucket"},
    "budget_file": {"exchange", "token_bucket", "budget"},
    "model": {"errors"},
    "exchange": {"errors", "model"},
    "hookspecs": {"exchange"},
    "settings": {"model"},
    "clock": set(),
    "tasks": {"exchange"},
    "plugins": {"candled", "errors", "exchange", "hookspecs", "settings"},
    "store": {"errors", "model", "exchange", "bus", "daemon_threads"},
    "config": {"errors", "model", "exchange", "settings", "plugins", "proxies", "store", "bus"},
    "bus": FOUNDATION,
    "ingest": FOUNDATION | {"bus", "proxies", "store"},
    "aggregate": FOUNDATION | {"bus"},
    "protocol": FOUNDATION | {"bus"},
    "rooms": FOUNDATION | {"aggregate", "bus", "protocol"},
    "transport": FOUNDATION | {"protocol", "rooms"},
    "serve": FOUNDATION | {"bus", "protocol", "rooms", "transport", "config"},
    "api": FOUNDATION | {"bus", "protocol", "rooms", "serve", "transport", "store", "config"},
    "client": FOUNDATION | {"clock", "ingest"},
}
ROOTS = {"app", "ingest_side", "cli", "tools", "signals", "__main__", "candled"}  # they put the steps together

# The only modules of a step that another step may know: values and pure arithmetic.
SHARED = {
    "aggregate": {"aggregate/aggregator"},  # what a changed bar is
    "bus": {"bus/__init__", "bus/interface", "bus/redis/address"},  # what is published, and how a bus is written
    "config": {"config"},  # the type of the server's own section
    "ingest": {"ingest/backoff"},  # a client that connects again waits as a feed does
    "rooms": {
        "rooms/__init__",
        "rooms/hub",
        "rooms/recipients",
        "rooms/encoded_bars",
    },
    "serve": {"serve/connection_limiter", "serve/rate_limit"},  # whose a request is, and how many it may make
    "store": {"store/__init__", "store/interface", "store/holes"},  # what a store can do, and its values
}

# Waiting and time go through `candled.exchange.Clock`; these are the outermost edges.
OWN_TIME = {
    "clock": "is the real clock",
    "store/postgres/pool": "watches database calls from a thread, where no clock of the loop reaches",
    "tools/progress": "a default, replaced in tests",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "candled").with_suffix("").as_posix()


MODULES = {name_of(path): path for path in sorted((ROOT / "candled").rglob("*.py"))}
PLUGINS = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "plugins").rglob("*.py"))}
PURE = sorted(name for name in MODULES.keys() - EDGES - HOLDERS.keys() if not name.startswith("tools/"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Every module that a file imports anywhere in it, by its absolute name; of `from x import y` both x and x.y."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            beginning = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*beginning, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def touches(path: Path) -> set[str]:
    """What of the outside a file imports."""
    return {module for module in imported(path) if any(f"{module}.".startswith(f"{one}.") for one in OUTSIDE)}


def own(name: str) -> set[str]:
    """The modules of candled that a module imports."""
    dotted = {f"candled/{other}".removesuffix("/__init__").replace("/", "."): other for other in MODULES}
    return {dotted[module] for module in imported(MODULES[name]) if module in dotted} - {name}


def step_of(name: str) -> str:
    return "candled" if name == "__init__" else name.split("/")[0]


# ---------------------------------------------------------------- the outside


@pytest.mark.parametrize("name", PURE)
def test_only_edges_touch_the_outside(name):
    assert touches(MODULES[name]) == set()
    assert own(name) & (EDGES | HOLDERS.keys()) == set()


@pytest.mark.parametrize("name", sorted(EDGES))
def test_what_is_listed_as_an_edge_is_one(name):
    assert touches(MODULES[name])


@pytest.mark.parametrize("name", sorted(HOLDERS))
def test_what_is_listed_as_a_holder_holds_an_edge_and_is_none_itself(name):
    assert touches(MODULES[name]) == set()
    assert own(name) & (EDGES | HOLDERS.keys())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_waiting_and_time_go_through_the_injected_clock(name):
    text = MODULES[name].read_text("utf-8")
    used = re.findall(
        r"asyncio\.sleep\(|\btime\.(?:time|time_ns|monotonic|perf_counter|sleep)\b|\.(?:utcnow|today|call_later)\(|"
        r"datetime\.now\(|loop\(?\)?\.time\(\)",
        text,
    )
    assert bool(used) == (name in OWN_TIME), used


# ---------------------------------------------------------------- directions


@pytest.mark.parametrize("name", sorted(name for name in MODULES if step_of(name) not in ROOTS))
def test_a_step_knows_only_the_steps_it_may(name):
    step = step_of(name)
    others = {step_of(other) for other in own(name)} - {step}
    # `from candled import __version__` and the like: the package itself, not a step
    assert others - {"candled"} <= STEPS[step]


@pytest.mark.parametrize("name", sorted(name for name in MODULES if step_of(name) not in ROOTS))
def test_a_step_knows_of_another_only_what_is_shared(name):
    step = step_of(name)
    for other in own(name):
        if step_of(other) != step and step_of(other) in SHARED:
            assert other in SHARED[step_of(other)]


def test_only_the_command_line_knows_the_composition_root_and_nobody_the_command_line():
    assert {name for name in MODULES if "app" in own(name)} == {"cli"}
    assert {name for name in MODULES if "cli" in own(name)} == {"__main__"}


def test_there_are_no_circles_between_steps():
    def reach(step: str, seen: frozenset[str]) -> None:
        assert step not in seen, f"{step} knows itself through {sorted(seen)}"
        for other in sorted(STEPS.get(step, set())):
            reach(other, seen | {step})

    for step in STEPS:
        reach(step, frozenset())


def test_every_part_of_the_tree_has_its_place():
    assert {step_of(name) for name in MODULES} == STEPS.keys() | ROOTS
    assert EDGES | HOLDERS.keys() <= MODULES.keys()
    assert set().union(*SHARED.values()) <= MODULES.keys()


# ---------------------------------------------------------------- plugins


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_a_bundled_plugin_uses_what_a_third_partys_may_and_nothing_else(name):
    allowed = {f"candled.{one}" for one in candled.__all__} | {"candled"}
    assert {module for module in imported(PLUGINS[name]) if module.split(".")[0] == "candled"} <= allowed
    assert not [module for module in imported(PLUGINS[name]) if module.startswith("candled_plugins")]


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_a_bundled_plugin_holds_no_socket_and_no_clock(name):
    assert touches(PLUGINS[name]) == set()
    assert not re.search(r"asyncio|\btime\.(time|sleep|monotonic)|datetime\.now", PLUGINS[name].read_text("utf-8"))


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_a_bundled_plugin_does_not_reach_into_another(name):
    package = name.split("/")[1]
    others = {module for module in imported(PLUGINS[name]) if module.startswith("plugins.")}
    assert all(module.split(".")[1] == package for module in others)


def test_the_rules_would_notice_a_breach(tmp_path, monkeypatch):
    """The reader of imports sees every form, and inside functions as well."""
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..x.y import z\n\ndef f():\n    import tornado.web\n"
    path = ROOT / "candled" / "rooms" / "hub.py"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: source)
    assert imported.__wrapped__(path) == {
        "a.b", "c", "c.d", "candled.rooms", "candled.rooms.e", "candled.x.y", "candled.x.y.z", "tornado.web",
    }  # fmt: skip


def test_test_modules_have_names_of_their_own():
    """Pytest imports them by their name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
