"""The hooks for stores, paths, commands, settings and closed bars, with small plugins that are installed for real."""

import asyncio
import json
import logging
import threading
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tornado.httpclient import AsyncHTTPClient

from candled import ConfigError, cli, config
from candled.app import Daemon
from candled.closed_bar_hooks import ClosedBarReporter, HookThread
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Symbol
from candled.plugins import discover
from candled.settings_schema import make_schema
from candled.store.sqlite.store import SqliteStore
from candled.tools import plugin_subcommands
from tests import deadlines
from tests.clocks import START_MS, FairScaledClock, ManualClock
from tests.metrics.scrape import read_series
from tests.sources import ROOT
from tests.system.several import Several

BTC = MarketKey("replay", Symbol("BTC", "USDT"))
FIVE = Interval.parse("5m")

TOY = """
    import time
    import typer
    from pathlib import Path
    from tornado.web import RequestHandler
    from candled import Interval, Settings, Symbol, hookimpl, setting
    from candled.store.sqlite.store import SqliteStore

    closed = []

    class ToySettings(Settings):
        greeting: str = setting("hello", "the first word")

    class ToyStore(SqliteStore):
        def describe(self):
            return {**super().describe(), "kind": "toy"}

    class Greeting(RequestHandler):
        def initialize(self, settings, context):
            self.settings_of_plugin, self.context = settings, context

        async def get(self):
            bars = await self.context.read_bars("replay", Symbol("BTC", "USDT"), Interval.parse("1m"), 3)
            self.write({"greeting": self.settings_of_plugin.greeting, "opens": [bar.open_ms for bar in bars]})

    @hookimpl
    def candled_settings():
        return ToySettings

    @hookimpl
    def candled_stores():
        return {"toy": lambda url, intervals: ToyStore(Path(url.removeprefix("toy://")), intervals)}

    @hookimpl
    def candled_routes(settings, context):
        return [("/toy", Greeting, {"settings": settings, "context": context})]

    @hookimpl
    def candled_commands():
        app = typer.Typer(help="Greets.")

        @app.command()
        def greet(name: str):
            "Greet somebody."
            print("hello", name)
            return 3

        @app.command()
        def fail():
            "Fail."
            raise RuntimeError("no greeting today")

        return app

    @hookimpl
    def candled_closed_bar(exchange, symbol, interval, bar):
        closed.append((exchange, symbol, interval, bar))
"""
FAILING = """
    from candled import hookimpl

    @hookimpl
    def candled_closed_bar(bar):
        raise ValueError("not today")

    @hookimpl
    def candled_routes(context):
        return [("/failing", "no handler", {})]
"""


@pytest.fixture(autouse=True)
def _fresh_commands():
    plugin_subcommands.find_commands.cache_clear()
    yield
    plugin_subcommands.find_commands.cache_clear()


def load(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> config.Config:
    path = tmp_path / "candled.yaml"
    path.write_text(text, "utf-8")
    return config.load(path, env or {}, discover())


def recording(tmp_path: Path) -> Path:
    path = tmp_path / "hour.csv"
    rows = [f"{n * MINUTE_MS},10,{12 + n % 7}.5,9,{10 + n % 2}.25,{n + 1}.125" for n in range(60)]
    path.write_text("\n".join(["time_ms,open,high,low,close,volume", *rows]) + "\n", "utf-8")
    return path


# ---------------------------------------------------------------- in the daemon


@pytest.mark.slow
@pytest.mark.usefixtures("daemon")
async def test_a_daemon_uses_the_store_the_path_and_the_closed_bars_of_plugins(install, tmp_path, caplog):
    install(toy=TOY, failing=FAILING)
    settings = {
        "server": {"host": "127.0.0.1", "port": 0, "health_details": True, "internal_port": 0},
        "exchanges": {"replay": {"symbols": ["BTC/USDT"], "files": {"BTC/USDT": str(recording(tmp_path))}}},
        "intervals": ["1m", "5m"],
        "ingest": {"backfill": "10m"},
        "store": {"url": f"toy://{tmp_path}/toy.db", "journal": ""},
        "plugins": {"toy": {"greeting": "good morning"}},
    }
    read, plugins = load(tmp_path, yaml.safe_dump(settings)), discover()
    clock = FairScaledClock(60.0, START_MS)
    daemon = Daemon(read, plugins, clock)
    await daemon.start()
    try:
        import toy

        async with deadlines.timeout(30):
            while sum(interval == FIVE for _, _, interval, _ in toy.closed) < 1 or len(toy.closed) < 7:
                await asyncio.sleep(0.05)
        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{daemon.port}/toy")
        health = await daemon.health.report()
        metrics = (await AsyncHTTPClient().fetch(f"http://127.0.0.1:{daemon.internal_port}/metrics")).body.decode()
    finally:
        await daemon.stop()
    calls = {
        (dict(labels)["plugin"], dict(labels)["result"]): value
        for (name, labels), value in read_series(metrics).items()
        if name == "candled_closed_bar_calls_total"
    }
    assert (calls["toy", "ok"] > 0, calls["toy", "failed"]) == (True, 0)
    assert (calls["failing", "ok"], calls["failing", "failed"] > 0) == (0, True)
    body = json.loads(answer.body)
    assert body["greeting"] == "good morning"
    assert len(body["opens"]) == 3
    assert health["store"]["kind"] == "toy"
    assert health["plugins"]["toy"]["closedBars"]["failed"] == 0
    failing = health["plugins"]["failing"]
    assert (failing["status"], failing["closedBars"]["failed"]) == ("broken", failing["closedBars"]["called"])
    assert failing["closedBars"]["called"] > 0
    assert "plugin failing: candled_closed_bar failed: ValueError: not today" in caplog.text
    assert "plugin failing: its routes are not served: candled_routes: expected (pattern" in caplog.text
    assert set(Counter((interval, bar.open_ms) for _, _, interval, bar in toy.closed).values()) == {1}
    check_closed_bars(tmp_path / "toy.db", toy.closed)


def check_closed_bars(file: Path, closed: list[tuple[str, Symbol, Interval, Candle]]) -> None:
    """Each closed bar is that of the store, and none is left out."""
    store = SqliteStore(file, None)
    store.open()
    try:
        for interval in (MINUTE, FIVE):
            bars = {bar.open_ms: bar for _, _, one, bar in closed if one == interval}
            stored = store.read_bars_between(BTC, interval, min(bars), max(bars) + 1)
            assert [bar.values for bar in bars.values()] == [bar.values for bar in stored]
            assert list(bars) == sorted(bars)
    finally:
        store.close()


# ---------------------------------------------------------------- settings


def test_the_settings_of_a_plugin_are_read_printed_and_in_the_schema(install, tmp_path):
    install(toy=TOY)
    assert load(tmp_path, "").plugins["toy"].greeting == "hello"
    env = {"CANDLED_PLUGINS__TOY__GREETING": "good evening"}
    read = load(tmp_path, "plugins: {toy: {greeting: hi}}", env)
    assert config.as_plain(read)["plugins"] == {"toy": {"greeting": "good evening"}}
    plugins = discover()
    schema = make_schema(plugins.exchanges, plugins.settings)
    assert schema["properties"]["plugins"]["properties"] == {"toy": {"$ref": "#/$defs/plugins.toy"}}
    assert schema["$defs"]["plugins.toy"]["properties"]["greeting"]["default"] == "hello"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("plugins: {toy: {greting: x}}", "plugins.toy.greting: unknown setting, did you mean greeting?"),
        ("plugins: {tyo: }", "plugins.tyo: no plugin has settings of this name, did you mean toy?"),
        ("plugins: [toy]", "plugins: expected a mapping by plugin, such as `webhook: {url: https://example.org}`"),
        (
            "store: {url: 'duck://x'}",
            "store.url: no store for duck://; known: sqlite://, postgresql://, postgres://, toy://",
        ),
    ],
)
def test_a_mistake_in_the_settings_of_a_plugin_is_named(install, tmp_path, text, problem):
    install(toy=TOY)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert [one.partition("candled.yaml:1: ")[2] for one in caught.value.problems] == [problem]


HEAD = "from candled import Settings, hookimpl, setting\n@hookimpl\n"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def candled_stores(): return ['x']", "candled_stores returned a value of type list, expected a mapping"),
        ("def candled_stores(): return {'sqlite': print}", "candled_stores: sqlite:// is candled's own"),
        ("def candled_stores(): return {'A b': print}", "candled_stores: expected a scheme such as duckdb, got 'A b'"),
        ("def candled_stores(): return {'x': 1}", "candled_stores: x is a value of type int, expected a function"),
        ("def candled_settings(): return dict", "candled_settings is no subclass of candled.Settings"),
        ("def candled_closed_bar(bra): pass", "Argument(s) {'bra'}"),
        ("async def candled_closed_bar(bar): pass", "candled_closed_bar is async; hooks are plain functions"),
    ],
)
def test_a_plugin_that_breaks_a_rule_is_named(install, source, error):
    install(bad=HEAD + source)
    (bad,) = (one for one in discover().statuses if one.name == "bad")
    assert error in bad.error


def test_of_two_stores_with_one_scheme_the_second_is_refused(install):
    source = HEAD + "def candled_stores(): return {'x': print}"
    install("candled-one", a_plugin=source)
    install("candled-two", b_plugin=source)
    statuses = {one.name: one.error for one in discover().statuses}
    assert statuses["a_plugin"] is None
    assert statuses["b_plugin"] == "a store for x:// is offered by another plugin already"


# ---------------------------------------------------------------- commands


@pytest.mark.slow
def test_the_commands_of_a_plugin_are_in_the_help_and_run(install, capsys, caplog):
    install(toy=TOY, bad=HEAD + "def candled_commands(): return 5")
    assert cli.main(["--help"]) == 0
    assert "\nPlugins:\n  toy           Greets.\n" in capsys.readouterr().out
    assert "plugin bad: its commands cannot be used: candled_commands returned int" in caplog.text
    assert cli.main(["toy", "greet", "you"]) == 3
    assert capsys.readouterr().out == "hello you\n"
    assert cli.main(["toy", "fail"]) == 1
    assert capsys.readouterr().err == "candled: plugin toy: RuntimeError: no greeting today\n"
    assert cli.main(["toy", "greet"]) == 2
    assert cli.main(["plugins"]) == 0
    assert "toy (candled-x 1.0): exchanges: none; hooks: " in capsys.readouterr().out


# ---------------------------------------------------------------- closed bars


class Bars:
    """Bars in memory that become final when a test says so."""

    def __init__(self) -> None:
        self.opens: list[int] = []
        self.final: set[int] = set()

    def newest_times(self, market, interval, count):
        return self.opens[-count:]

    def bars_between(self, market, interval, start_ms, end_ms):
        return [Candle.parse(at, "1", "1", "1", "1", "1") for at in self.opens if start_ms <= at < end_ms]

    def is_final(self, market, interval, bar):
        return bar.open_ms in self.final

    def is_range_final(self, market, start_ms, end_ms):
        return start_ms in self.final


def reporter(bars: Bars, reported: list[int], *, is_read: bool = True) -> ClosedBarReporter:
    return ClosedBarReporter(
        bars,
        lambda: (MINUTE,),
        ManualClock(),
        lambda market, interval, bar: reported.append((bar.open_ms - START_MS) // MINUTE_MS),
        lambda market: is_read,
    )


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=60))
def test_each_bar_is_reported_once_when_it_is_final(steps):
    """Minutes begin and become final in any order."""
    bars, reported = Bars(), []
    listener = reporter(bars, reported)
    listener.on_finality(BTC)  # sees the market for the first time
    for minute, is_over in steps:
        at = START_MS + minute * MINUTE_MS
        bars.opens = sorted({*bars.opens, at})
        if is_over:
            bars.final.add(at)
        listener.on_finality(BTC)
    over = sorted((at - START_MS) // MINUTE_MS for at in bars.final)
    assert sorted(reported) == over


def test_bars_that_closed_before_the_start_or_are_read_elsewhere_are_not_reported():
    bars, reported = Bars(), []
    bars.opens = [START_MS - MINUTE_MS, START_MS]
    bars.final = set(bars.opens[:1])
    listener, other = reporter(bars, reported), reporter(bars, reported, is_read=False)
    for one in (listener, other):
        one.on_finality(BTC)
    assert reported == []
    bars.final.add(START_MS)
    for one in (listener, other):
        one.on_finality(BTC)
    assert reported == [0]


def test_a_slow_hook_is_named_and_its_surplus_dropped(caplog):
    may_end = threading.Event()
    thread = HookThread("slow", lambda *_: may_end.wait(10), most=2, slow_s=0.0)
    bar = Candle.parse(START_MS, "1", "1", "1", "1", "1")
    with caplog.at_level(logging.WARNING):
        thread.put(BTC, MINUTE, bar)
        while thread.describe()["queued"]:
            may_end.wait(0.001)
        for _ in range(3):
            thread.put(BTC, MINUTE, bar)
        may_end.set()
        thread.stop(10)
    assert "plugin slow: too many closed bars wait for its hook" in caplog.text
    assert "plugin slow: candled_closed_bar took 0.0 s; later bars wait" in caplog.text
    facts = thread.describe()
    assert (facts["called"], facts["dropped"], facts["failed"]) == (3, 1, 0)


NOTES = """
    from candled import Settings, hookimpl, setting

    class NotesSettings(Settings):
        file: str = setting("notes.txt", "where closed bars are written")

    @hookimpl
    def candled_settings():
        return NotesSettings

    @hookimpl
    def candled_closed_bar(settings, symbol, interval, bar):
        with open(settings.file, "a") as notes:
            print(symbol, interval, bar.open_ms, file=notes)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("postgres", "redis", "daemon")
async def test_of_several_processes_one_reports_each_closed_bar(install, tmp_path):
    install(notes=NOTES)
    notes = tmp_path / "notes.txt"
    own = {
        "exchanges": {"replay": {"symbols": ["BTC/USDT", "ETH/USDT"], "speed": 30}},
        "intervals": ["1m", "5m"],
        "plugins": {"notes": {"file": str(notes)}},
    }
    directory = tmp_path / "deployment"
    directory.mkdir()
    with Several(directory, 2, {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, **own) as several:
        async with deadlines.timeout(60):
            while not notes.exists() or notes.read_text().count(" 5m ") < 2:
                await asyncio.sleep(0.1)
        health = [one.get("/health?verbose")["plugins"]["notes"] for one in (several.ingest, *several.serving)]
    lines = Counter(notes.read_text().splitlines())
    assert set(lines.values()) == {1}
    assert health[0]["closedBars"]["called"] > 0
    assert all(one.get("closedBars", {"called": 0})["called"] == 0 for one in health[1:])
    for symbol in ("BTC/USDT", "ETH/USDT"):
        opens = sorted(int(line.split()[2]) for line in lines if line.startswith(f"{symbol} 1m "))
        assert opens == list(range(opens[0], opens[-1] + 1, MINUTE_MS))
