"""Plugins as they are installed: found one by one, and a bad one harms only itself."""

import inspect
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib import metadata

import pytest
import websockets
import yaml
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

import candled
from candled import ConfigError, ExchangeError, Symbol, config, hookspecs
from candled.app import Daemon as InProcess
from candled.clock import SystemClock
from candled.model import MINUTE_MS
from candled.plugins import GROUP, discover
from tests.system.daemon import ROOT
from tests.system.daemon import Daemon as Subprocess

PAGE = (ROOT / "docs" / "how-to" / "plugins.md").read_text("utf-8")

GOOD = """
    from candled import Exchange, Settings, hookimpl, setting

    class XSettings(Settings):
        url: str = setting("wss://x.example", help="where")

    class X(Exchange):
        name = "x"
        Settings = XSettings
        async def fetch_markets(self, http): return []
        def make_feed(self, symbols): raise NotImplementedError
        async def fetch_history(self, http, symbol, start_ms, end_ms): return []
"""
OFFERS_X = f"""{GOOD}
    @hookimpl
    def candled_exchanges(): return [X]
"""


def status(name: str):
    """What became of the plugin of that name."""
    (found,) = (one for one in discover().statuses if one.name == name)
    return found


# ---------------------------------------------------------------- what is found


def test_the_bundled_plugins_are_found():
    plugins = discover()
    assert {"bitget", "replay"} <= plugins.exchanges.keys()
    assert all(one.ok and one.distribution == "candled" for one in plugins.statuses if one.name in ("bitget", "replay"))


@pytest.mark.slow
def test_an_installed_plugin_is_found_and_named_with_its_version(install):
    install(x_plugin=OFFERS_X)
    found = status("x_plugin")
    assert (found.ok, found.error, found.exchanges, str(found)) == (True, None, ("x",), "x_plugin (candled-x 1.0)")
    assert discover().exchanges["x"].__module__ == "x_plugin"


def test_an_entry_point_without_a_distribution_is_loaded_too():
    (found,) = discover([metadata.EntryPoint("bitget", "candled_plugins.bitget", GROUP)]).statuses
    assert (found.ok, found.distribution) == (True, "no distribution")


@pytest.mark.slow
def test_an_installed_plugin_replaces_a_bundled_exchange_and_is_logged(install, caplog):
    install(my_bitget=OFFERS_X.replace('name = "x"', 'name = "bitget"'))
    plugins = discover()
    assert plugins.exchanges["bitget"].__module__ == "my_bitget"
    assert status("bitget").ok
    assert "exchange bitget comes from my_bitget instead of candled" in caplog.text


@pytest.mark.slow
def test_of_two_installed_plugins_with_one_name_the_second_is_refused(install):
    install("candled-one", a_plugin=OFFERS_X)
    install("candled-two", b_plugin=OFFERS_X)
    assert status("a_plugin").ok
    assert status("b_plugin").error == "exchange x is offered by a_plugin already"


# ---------------------------------------------------------------- what is wrong with them


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("def candled_exchanges(): return []", "implements no hook; is the @hookimpl missing?"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchangs(): return [X]", "unknown hook 'candled_exchangs'"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchanges(settings): return [X]", "Argument(s) {'settings'}"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchanges(): 1 / 0", "ZeroDivisionError: division by zero"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchanges(): raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import asyncio; raise asyncio.CancelledError('gone')", "CancelledError: gone"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchanges(): raise GeneratorExit", "GeneratorExit"),
        ("class Own(BaseException): pass\nraise Own('odd')", "Own: odd"),
        (f"{GOOD}\n    @hookimpl\n    async def candled_exchanges(): return [X]",
         "candled_exchanges is async; hooks are plain functions"),
        (f"{GOOD}\n    async def later(): return [X]\n    @hookimpl\n    def candled_exchanges(): return later()",
         "candled_exchanges returned a value of type coroutine, expected a list of Exchange classes"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchanges(): pass",
         "candled_exchanges returned nothing, expected a list of Exchange classes"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchanges(): return X",
         "candled_exchanges returned class X, expected a list of Exchange classes"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchanges(): yield X",
         "candled_exchanges returned a value of type generator, expected a list of Exchange classes"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchanges(): return ['x']",
         "candled_exchanges offered a value of type str, expected a subclass of candled.Exchange"),
        (f"{GOOD}\n    @hookimpl\n    def candled_exchanges(): return [X, X]", "offers exchange x twice"),
        (OFFERS_X.replace("def fetch_history", "def fetch_past"), "X implements neither fetch_history nor fetch_rows"),
        (OFFERS_X.replace("def make_feed", "def make_feeds"),
         "X has no feed_class and does not implement make_feed"),
        (OFFERS_X.replace("def make_feed", "from candled import SocketFeed as feed_class\n        def make_feeds"),
         "X.Settings has no ws_url for feed_class; add it, or make_feed"),
        (OFFERS_X.replace('name = "x"', 'name = "X:1"'),
         "X.name is 'X:1', expected lower-case letters, digits, - and _"),
        (OFFERS_X.replace('name = "x"', ""), "X.name is None, expected lower-case letters, digits, - and _"),
        (OFFERS_X.replace("Settings = XSettings", ""), "X.Settings is no subclass of candled.Settings"),
        (OFFERS_X.replace("XSettings(Settings)", "XSettings"), "X.Settings is no subclass of candled.Settings"),
        (OFFERS_X.replace("url: str", "symbols: str"), "X.Settings has the key symbols, which is the daemon's"),
        (OFFERS_X.replace('setting("wss://x.example", help="where")', "None", 1),
         "the defaults of X.Settings.url: expected text, got nothing"),
        (OFFERS_X.replace("url: str = setting", "url: complex = setting"),
         "the defaults of X.Settings.url: should be an instance of complex"),
        (OFFERS_X.replace("url: str = setting", "url: Exchange = setting"), "PydanticSchemaGenerationError: Unable"),
        (OFFERS_X.replace("url: str = setting(\"wss://x.example\", help=\"where\")", "url: str"),
         "X.Settings: every key needs a default, url has none"),
    ],
)  # fmt: skip
def test_a_bad_plugin_is_named_with_its_reason_and_harms_no_other(install, source, error):
    install(bad=source, x_plugin=OFFERS_X.replace('name = "x"', 'name = "y"'))
    bad = status("bad")
    assert not bad.ok
    assert bad.exchanges == ()
    assert error in bad.error
    assert "\n" not in bad.error
    assert {"bitget", "replay", "y"} <= discover().exchanges.keys()


def test_a_broken_plugin_is_one_warning_with_its_traceback_at_debug_level(install, caplog):
    install(bad="raise RuntimeError('oh')")
    with caplog.at_level(logging.DEBUG, "candled.plugins"):
        discover()
    warning, detail = caplog.records
    assert (warning.levelname, warning.getMessage(), warning.exc_info) == (
        "WARNING",
        "plugin bad (candled-x 1.0) is not used: RuntimeError: oh",
        None,
    )
    assert detail.levelname == "DEBUG"
    assert "bad.py" in caplog.text


WAITS = "import time\ntime.sleep(3)"
ANSWERS_LATE = f"{GOOD}\n    import time\n    @hookimpl\n    def candled_exchanges(): time.sleep(3); return [X]"


@pytest.mark.slow
@pytest.mark.parametrize("source", [WAITS, ANSWERS_LATE], ids=["import", "hook"])
def test_a_plugin_that_takes_too_long_is_broken_and_the_others_are_not(install, source):
    install(a_slow=source, x_plugin=OFFERS_X.replace('name = "x"', 'name = "y"'))
    plugins = discover(
        (one for one in metadata.entry_points(group=GROUP) if one.name in ("a_slow", "x_plugin")), within_s=0.5
    )
    slow, good = plugins.statuses
    assert (slow.ok, slow.error) == (
        False,
        "took more than 0.5 s to be imported and to answer; does it wait for something?",
    )
    assert good.ok
    assert list(plugins.exchanges) == ["y"]


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("source", ["threading.Event().wait()", "while True: pass"])
def test_a_plugin_that_never_ends_does_not_keep_the_program_from_ending(install, tmp_path, source):
    install(endless=f"import threading\n{source}")
    program = (
        "from importlib import metadata; from candled.plugins import discover\n"
        "points = [one for one in metadata.entry_points(group='candled') if one.name == 'endless']\n"
        "print([status.ok for status in discover(points, within_s=0.5).statuses])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.returncode, ended.stdout) == (0, "[False]\n"), ended.stderr


@pytest.mark.usefixtures("daemon")
async def test_the_daemon_serves_beside_three_broken_plugins_and_names_each_in_health(install, tmp_path):
    install(
        will_not_import="import no_such_module",
        raises=f"{GOOD}\n    @hookimpl\n    def candled_exchanges(): raise ValueError('no exchange today')",
        awaits_for_ever=(
            f"{GOOD}\n    import asyncio\n    @hookimpl\n"
            "    async def candled_exchanges(): await asyncio.Event().wait()"
        ),
    )
    directory = tmp_path / "run"
    directory.mkdir()
    settings = {"exchanges": {"replay": {"symbols": ["BTC/USDT"]}}, "ingest": {"backfill": "0s"}}
    with Subprocess(directory, is_forked=False) as daemon:
        health = daemon.start(settings, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
        assert health["plugins"] == {
            **{one.name: {"status": "ok", "error": None} for one in discover().statuses if one.ok},
            "will_not_import": {"status": "broken", "error": "ModuleNotFoundError: No module named 'no_such_module'"},
            "raises": {"status": "broken", "error": "ValueError: no exchange today"},
            "awaits_for_ever": {
                "status": "broken",
                "error": "candled_exchanges is async; hooks are plain functions",
            },
        }
        async with websockets.connect(daemon.ws_url) as ws:
            await ws.send(json.dumps({"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m"}))
            assert json.loads(await ws.recv())["type"] == "initial"
        assert daemon.stop() == 0


# ---------------------------------------------------------------- the page for plugin authors


def blocks() -> dict[str, str]:
    """The files of the example in docs/how-to/plugins.md by name."""
    return dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def hooks_section() -> str:
    """The hooks with their docstrings, in Markdown."""
    hooks = [value for value in vars(hookspecs).values() if hasattr(value, "candled_spec")]
    return "\n\n".join(
        f"### `{hook.__name__}({', '.join(inspect.signature(hook).parameters)})`\n\n{inspect.getdoc(hook)}"
        for hook in hooks
    )


def test_the_hooks_of_the_page_are_those_of_the_program():
    page = re.search(r"<!-- hooks -->\n(.*?)\n<!-- end of hooks -->", PAGE, re.DOTALL)
    assert page is not None
    assert page[1].strip() == hooks_section(), "run `python -m tests.test_plugins` and paste the hooks into the page"


def test_every_name_a_plugin_may_import_is_on_the_page():
    assert [name for name in candled.__all__ if not re.search(rf"\b{name}\b", PAGE)] == []


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            candled.Exchange,
            [
                "requests_per_s",
                "max_history_minutes",
                "publishes_empty_candles",
                "is_simulated",
                "opens_at_previous_close",
            ],
        ),
        (candled.SocketFeed, ["ping", "ping_every_s", "lifetime_s", "snapshot"]),
        (candled.Exchange, ["feed_class"]),
        (candled.ConnectionLimits(), [field.name for field in fields(candled.ConnectionLimits)]),
    ],
)
def test_the_documented_defaults_are_the_defaults(owner, names):
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| ([^|,]+)", PAGE, re.MULTILINE))
    for name in names:
        default = getattr(owner, name)
        assert rows[name].strip() == (f"{default:g}" if isinstance(default, float) else str(default)), name


def test_a_plain_exchange_is_four_functions():
    functions = candled.Exchange.__abstractmethods__ | candled.SocketFeed.__abstractmethods__
    assert functions == {"fetch_markets", "subscribe", "read_frame"}  # and fetch_history, or fetch_rows


def test_the_example_does_not_grow():
    """A wider interface must not make a plain exchange longer."""
    assert len(blocks()["coinfair.py"].splitlines()) <= 101


def test_each_native_plugin_is_small_and_the_kit_names_none():
    native = [path for path in (ROOT / "plugins").iterdir() if (path / "messages.py").exists() and path.name != "ccxt"]
    assert len(native) == 11
    for path in native:
        assert {file.name for file in path.glob("*.py")} <= {"__init__.py", "exchange.py", "messages.py", "pushes.py"}
        assert len((path / "exchange.py").read_text("utf-8").splitlines()) <= 250, path.name
    kit = "".join(path.read_text("utf-8").lower() for path in (ROOT / "candled" / "testing").glob("*.py"))
    assert [path.name for path in native if path.name in kit] == []


@pytest.fixture
def coinfair(install):
    """The example of docs/how-to/plugins.md, installed under the name that its pyproject.toml gives it."""
    files = blocks()
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["entry-points"] == {GROUP: {"coinfair": "coinfair"}}
    install(project["name"], coinfair=files["coinfair.py"])
    return discover()


@pytest.mark.slow
def test_the_example_is_found_and_its_settings_are_read(coinfair, tmp_path):
    path = tmp_path / "candled.yaml"
    path.write_text(blocks()["candled.yaml"], "utf-8")
    (exchange,) = config.load(path, {"CANDLED_EXCHANGES__COINFAIR__REST_URL": "http://x"}, coinfair).exchanges
    assert exchange.settings.rest_url == "http://x"
    assert exchange.symbols == (Symbol("BTC", "USDT"),)
    with pytest.raises(ConfigError, match="did you mean ws_url"):
        config.load(path, {"CANDLED_EXCHANGES__COINFAIR": "{ws_ulr: x}"}, coinfair)


@pytest.mark.slow
def test_the_example_refuses_frames_that_are_not_documented(coinfair):
    exchange = coinfair.exchanges["coinfair"]
    feed = exchange(exchange.Settings(), SystemClock()).make_feed([Symbol("BTC", "USDT")])
    (refused,) = feed.read_frame('{"market": "btc-usdt", "refused": "no such market"}')
    assert refused.reason == "no such market"
    for frame in ("{", "[]", "7", '{"market": "eth-usdt"}', '{"market": "btc-usdt", "candle": [1], "sent": 1}'):
        with pytest.raises(ExchangeError):
            feed.read_frame(frame)


@pytest.mark.slow
async def test_the_example_brings_candles_to_clients(coinfair, tmp_path):
    port, stop = serve_coinfair()
    path = tmp_path / "candled.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "server": {"host": "127.0.0.1", "port": 0},
                "exchanges": {
                    "coinfair": {
                        "symbols": ["BTC/USDT"],
                        "ws_url": f"ws://127.0.0.1:{port}/v1",
                        "rest_url": f"http://127.0.0.1:{port}/v1",
                    }
                },
                "ingest": {"backfill": "0s"},
                "store": {"url": f"sqlite:///{tmp_path / 'candled.db'}", "journal": ""},
            }
        ),
        "utf-8",
    )
    daemon = InProcess(config.load(path, {}, coinfair), coinfair, SystemClock())
    await daemon.start()
    try:
        async with websockets.connect(f"ws://127.0.0.1:{daemon.port}/ws") as ws:
            await ws.send(json.dumps({"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 5}))
            initial = json.loads(await ws.recv())
            while len(initial["bars"]) < 5:  # subscribed before the history had come
                message = json.loads(await ws.recv())
                initial = message if message["type"] == "initial" else initial
            assert [bar["close"] for bar in initial["bars"][:-1]] == [Coinfair.CLOSE] * 4
            update = json.loads(await ws.recv())
            assert (update["type"], update["bar"]["high"]) == ("update", 101.00000001)
    finally:
        await daemon.stop()
        await stop()


class Coinfair:
    """The exchange the example speaks to: a candle a second, and as much history as is asked for."""

    CLOSE = 100.5

    @staticmethod
    def row(open_ms: int, volume: str = "3.25") -> list[str]:
        return [str(open_ms), "100", "101.00000001", "99.5", str(Coinfair.CLOSE), volume, "326.625"]


class Markets(RequestHandler):
    def get(self) -> None:
        self.finish(json.dumps([{"name": "btc-usdt", "digits": 8}]))


class Rows(RequestHandler):
    def get(self) -> None:
        assert self.get_argument("market") == "btc-usdt"
        now_ms = SystemClock().now_ms()
        last_ms = min(int(self.get_argument("to")), now_ms)
        rows = [Coinfair.row(at) for at in range(int(self.get_argument("from")), last_ms + 1, MINUTE_MS)]
        self.finish({"now": now_ms, "rows": rows})


class Stream(WebSocketHandler):
    async def on_message(self, frame: str | bytes) -> None:
        if frame == "ping":
            await self.write_message("pong")
            return
        market = json.loads(frame)["subscribe"]
        await self.write_message({"market": market})
        clock = SystemClock()
        for count in range(1000):
            now_ms = clock.now_ms()
            row = Coinfair.row(now_ms - now_ms % MINUTE_MS, f"3.{count + 26}")
            if self.ws_connection is None or self.ws_connection.is_closing():
                return
            await self.write_message({"market": market, "candle": row, "sent": now_ms})
            await clock.sleep(0.2)


def serve_coinfair():
    """Listen on a free port; return it and how to stop."""
    socket, port = bind_unused_port()
    server = HTTPServer(Application([("/v1", Stream), ("/v1/markets", Markets), ("/v1/candles", Rows)]))
    server.add_socket(socket)

    async def stop() -> None:
        server.stop()
        await server.close_all_connections()

    return port, stop


if __name__ == "__main__":
    print(hooks_section())
