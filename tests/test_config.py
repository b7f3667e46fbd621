"""The operator's settings as a whole: files, environment, exchanges, and what the pages say of them."""

import re
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from pydantic import field_validator

from candled import ConfigError, Exchange, ExchangeError, Interval, Settings, Symbol, setting
from candled import config as config_package
from candled.clock import SystemClock
from candled.config import Config, as_plain, config_warnings, load, make_exchanges
from candled.config.sections import KNOWN_BUSES, KNOWN_STORES, ExchangeKeys, ServerSettings
from candled.model import DEFAULT_INTERVALS
from candled.plugins import Plugins, PluginStatus
from candled.settings import as_written, is_section
from candled.symbol_pattern import SYMBOL_PATTERN_FORM
from tests.bundled import PLUGINS

ROOT = Path(__file__).parents[1]
SECTIONS = {name: field.annotation for name, field in Config.model_fields.items() if is_section(field.annotation)}
BTC = Symbol("BTC", "USDT")
STORES, BUSES = (", ".join(f"{scheme}://" for scheme in known) for known in (KNOWN_STORES, KNOWN_BUSES))


@pytest.fixture
def settings(tmp_path):
    """Read settings from the text of a file and the environment."""

    def read(text: str = "", env: dict[str, str] | None = None, plugins: Plugins = PLUGINS) -> Config:
        path = tmp_path / "candled.yaml"
        path.write_text(text, "utf-8")
        return load(path, env or {}, plugins)

    return read


@pytest.fixture
def problems(settings):
    """Read settings that are wrong; the problems, without the lines of keys."""

    def read(*args, **kwargs) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            settings(*args, **kwargs)
        return tuple(re.sub(r"^\S*candled\.yaml:\d+: (?!not valid)", "", one) for one in caught.value.problems)

    return read


@pytest.fixture
def places(settings, tmp_path):
    """Read settings that are wrong; the line and the key of each problem."""

    def read(*args, **kwargs) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            settings(*args, **kwargs)
        return [one.replace(f"{tmp_path}/", "").rpartition(": ")[0] for one in caught.value.problems]

    return read


# ---------------------------------------------------------------- defaults


def test_an_empty_file_is_valid_and_means_bitget(settings):
    config = settings("")
    assert config == load(None, {}, PLUGINS)
    (bitget,) = config.exchanges
    assert (bitget.name, bitget.plugin.name, bitget.symbols) == ("bitget", "bitget", (BTC,))
    assert (config.server, config.roles, config.intervals) == (
        ServerSettings(),
        ("ingest", "serve"),
        DEFAULT_INTERVALS,
    )


def test_the_settings_file_of_the_project_is_the_defaults():
    assert load(ROOT / "candled.yaml", {}, PLUGINS) == load(None, {}, PLUGINS)


def test_the_settings_file_of_the_project_has_every_key():
    written = yaml.safe_load((ROOT / "candled.yaml").read_text("utf-8"))
    assert written == as_plain(load(None, {}, PLUGINS))


def test_the_settings_file_of_the_project_explains_every_key():
    lines = (ROOT / "candled.yaml").read_text("utf-8").splitlines()
    bare = [line for line in lines if re.match(r" *\w+: *\S", line) and "#" not in line]
    assert [line.strip().partition(":")[0] for line in bare] == [
        "ws_url",
        "rest_url",
    ]  # docs/reference/bitget.md has these


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_the_example_can_be_used(path):
    config = load(path, {}, PLUGINS)
    assert config != load(None, {}, PLUGINS)
    assert all(exchange.symbols for exchange in config.exchanges)


def test_the_demo_needs_nothing_but_candled():
    config = load(ROOT / "candled" / "demo.yaml", {}, PLUGINS)
    assert [exchange.plugin.name for exchange in config.exchanges] == ["replay"]
    assert (config.server.host, config.server.port) == ("127.0.0.1", 7000)


# ---------------------------------------------------------------- pages


def documented() -> dict[str, str]:
    """Keys of the tables in docs/reference/settings.md and their defaults."""
    page = (ROOT / "docs" / "reference" / "settings.md").read_text("utf-8")
    return dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \|$", page, re.MULTILINE))


def test_every_setting_is_documented_and_nothing_else():
    keys = [f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields]
    keys += [f"exchanges.NAME.{key}" for key in ExchangeKeys.model_fields]
    assert sorted(documented()) == sorted([*keys, *(Config.model_fields.keys() - SECTIONS.keys() - {"exchanges"})])


@pytest.mark.parametrize("section", SECTIONS)
def test_the_documented_defaults_are_the_defaults(section):
    page = documented()
    for key, value in as_written(getattr(Config(), section)).items():
        default = page[f"{section}.{key}"].strip("`")
        assert yaml.safe_load(default) == value, key


def test_every_setting_has_a_help_text():
    sections = [Config, ExchangeKeys, *SECTIONS.values(), *(plugin.Settings for plugin in PLUGINS.exchanges.values())]
    fields = [(section, key, field) for section in sections for key, field in section.model_fields.items()]
    assert [(section, key) for section, key, field in fields if not field.description] == []


@pytest.mark.parametrize("name", ["bitget", "replay"])
def test_the_settings_of_a_bundled_plugin_are_on_its_page(name):
    page = (ROOT / "docs" / "reference" / f"{name}.md").read_text("utf-8")
    for key in PLUGINS.exchanges[name].Settings.model_fields:
        assert f"| `{key}` |" in page


# ---------------------------------------------------------------- files


def test_what_is_printed_reads_back(settings, tmp_path):
    config = load(ROOT / "config" / "large.yaml", {}, PLUGINS)
    assert settings(yaml.safe_dump(as_plain(config, redact=False))) == config


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory$"):
        load(tmp_path / "none.yaml", {}, PLUGINS)


def test_a_file_that_is_not_text_is_one_line(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"not UTF-8 text$"):
        load(path, {}, PLUGINS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server:\n  port: [1\nstore: {}", "candled.yaml:3: not valid YAML: "),
        ("server:\n\tport: 1", "candled.yaml:2: not valid YAML: "),
        ("server: {}\nstore: {}\nserver: {port: 1}", "candled.yaml:3: not valid YAML: server is written twice"),
        ("store: {url: a, url: b}", "candled.yaml:1: not valid YAML: url is written twice"),
        ("server: \x07", "not valid YAML: "),
        ("- server", "expected a mapping of settings"),
        (
            "log: {}\nserver: &s {host: *s}",
            "candled.yaml:2: not valid YAML: nested too deeply, or an alias",
        ),
        ("server: " + "[" * 3000, "candled.yaml:1: not valid YAML: nested too deeply"),
        ("log: {}\nserver: {port: !!int ''}", "not valid YAML: a value does not match its tag"),
    ],
)
def test_a_file_that_is_not_yaml_is_one_line_with_the_position(problems, text, expected):
    (only,) = problems(text)
    assert "candled.yaml" in only
    assert expected in only
    assert "\n" not in only


def test_anchors_and_merged_keys_are_no_duplicates(settings):
    config = settings(
        "exchanges:\n"
        "  bitget: &spot {symbols: [BTC/USDT], markets: [spot]}\n"
        "  futures: {<<: *spot, plugin: bitget, markets: [usdt-futures]}"
    )
    assert [exchange.settings.markets for exchange in config.exchanges] == [("spot",), ("usdt-futures",)]


PLACES = [
    pytest.param("\nserver:\n  port: no", {}, ["candled.yaml:3: server.port"], id="a key"),
    pytest.param("server: {port: no}", {}, ["candled.yaml:1: server.port"], id="a key in braces"),
    pytest.param("log: {}\nservers:\n  port: 1", {}, ["candled.yaml:2: servers"], id="an unknown section"),
    pytest.param("server:\n  hosts: 1\n", {}, ["candled.yaml:2: server.hosts"], id="an unknown key"),
    pytest.param("intervals:\n  - 1m\n  - 7x\n", {}, ["candled.yaml:3: intervals[1]"], id="an item"),
    pytest.param(
        "exchanges:\n  replay:\n    symbols: [BTC/USDT,\n      BTCUSDT]\n    sped: 1",
        {},
        ["candled.yaml:4: exchanges.replay.symbols[1]", "candled.yaml:5: exchanges.replay.sped"],
        id="an exchange",
    ),
    pytest.param("server:\n  <<: {port: no}", {}, ["candled.yaml:2: server.port"], id="a merged key"),
    pytest.param(
        "log: &no\n  level: 7\nserver: *no",
        {},
        ["candled.yaml:2: log.level", "candled.yaml:2: server.level"],
        id="alias",
    ),
    pytest.param("", {"CANDLED_SERVER__PORT": "no"}, ["server.port (CANDLED_SERVER__PORT)"], id="a variable"),
    pytest.param(
        "server:\n  port: 7\n  host: 1",
        {"CANDLED_SERVER__PORT": "no"},
        ["server.port (CANDLED_SERVER__PORT)", "candled.yaml:3: server.host"],
        id="a variable over a key",
    ),
    pytest.param("log: {}\nroles: [ingest]", {}, ["candled.yaml:2: roles"], id="a contradiction"),
    pytest.param("bus: {url: redis://h}", {"CANDLED_ROLES": "[]"}, ["roles (CANDLED_ROLES)"], id="of a variable"),
]


@pytest.mark.parametrize(("text", "env", "expected"), PLACES)
def test_every_problem_names_its_line_or_its_variable(places, text, env, expected):
    assert [place.partition(": expected")[0].partition(": unknown")[0] for place in places(text, env)] == expected


def test_all_problems_of_all_places_come_in_one_run(problems):
    text = """
        servers: {}
        server: {port: seventy, ping_timeout: 1h, trusted_proxies: [proxy]}
        exchanges: {bitget: {markets: [moon]}}
        store: {url: mysql://h/d, flush_intervall: 1s}
    """
    assert problems(text, {"CANDLED_BUS__URLS": "x"}) == (
        "CANDLED_BUS__URLS: no such setting, did you mean CANDLED_BUS__URL?",
        "exchanges.bitget.markets[0]: one of spot, usdt-futures, was moon",
        "servers: unknown setting, did you mean server?",
        "server.port: expected a whole number, got 'seventy'",
        "server.trusted_proxies[0]: expected an address or a network such as 10.0.0.0/8, got 'proxy'",
        "store.flush_intervall: unknown setting, did you mean flush_interval?",
        f"store.url: no store for mysql://; known: {STORES}",
        "server.ping_timeout: at most server.ping_interval",
    )


# ---------------------------------------------------------------- what types cannot say


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("intervals: []", "intervals: at least one is needed"),
        ("intervals: [1m, 5m, 1m]", "intervals: 1m is listed twice"),
        ("roles: [serve, serve]", "roles: serve is listed twice"),
        ("store: {url: candled.db}", f"store.url: expected a URL, known: {STORES}"),
        ("store: {url: 'sqlite://candled.db'}", "store.url: three slashes before a relative file, sqlite:///candled.db"),
        ("store: {url: 'sqlite:///'}", "store.url: the file is missing, for instance sqlite:///candled.db"),
        ("bus: {url: 'nats://h'}", f"bus.url: no bus for nats://; known: {BUSES}"),
        ("bus: {url: 'memory://x'}", "bus.url: nothing can follow memory://"),
        ("server: {host: ' '}", "server.host: blanks are no address"),
        ("log: {level: loud}", "log.level: one of debug, info, warning, error, was loud"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(problems, text, expected):
    assert expected in problems(text)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hunter2@host/db",
        "postgresql:/me:hunter2@host/db",
        "me:hunter2@host/db",
        "host=h password=hunter2",
        "host=h password=hunter2 service=postgresql://host/db",
        "sqlite://me:hunter2@host/db",
        "sqlite://host/db?password=hunter2",
        "sqlite:///me:hunter2@host/db",
        "sqlite:///candled.db?key=hunter2",
        "memory://me:hunter2@host",
        "*hunter2",
        "!hunter2",
    ],
)
@pytest.mark.parametrize("section", ["store", "bus"])
def test_an_address_that_cannot_be_used_is_never_repeated(problems, section, url):
    for output in (
        problems(f"{section}: {{url: {url}}}"),
        problems("", {f"CANDLED_{section.upper()}__URL": url}),
        problems(f"{section}: {url}"),
        problems("", {f"CANDLED_{section.upper()}": f"{{url: '{url}', no-such-key: 1}}"}),
    ):
        assert output
        assert "hunter2" not in "".join(output)


@pytest.mark.parametrize("url", ["sqlite://:memory:", "sqlite:///:memory:"])
def test_a_store_in_memory_is_refused(problems, url):
    assert problems(f"store: {{url: '{url}'}}")[0].startswith("store.url: candles need a file")


@pytest.mark.parametrize("roles", ["[ingest]", "[serve]", "[]"])
def test_the_memory_bus_needs_both_roles_in_one_process(problems, roles):
    assert problems(f"roles: {roles}") == (
        "roles: bus.url memory:// stays inside one process, so that it needs both, [ingest, serve]",
    )


def test_a_process_without_a_role_is_refused(problems):
    assert problems("roles: []\nbus: {url: redis://h}") == ("roles: at least one is needed, ingest or serve",)


@pytest.mark.parametrize(("role", "why"), [("serve", "another process stores"), ("ingest", "another process serves")])
def test_processes_with_one_role_each_cannot_share_a_file(problems, settings, role, why):
    (only,) = problems(f"roles: [{role}]\nbus: {{url: redis://h}}")
    assert only.startswith("store.url: SQLite is one process's file")
    assert why in only
    assert settings(f"roles: [{role}]\nbus: {{url: redis://h}}\nstore: {{url: 'postgresql://h/d'}}").roles == (role,)


def test_shards_need_a_redis(problems):
    (only,) = problems("ingest: {shards: 2}")
    assert only.startswith("ingest.shards: several processes")


def test_a_file_beside_a_redis_is_doubted_and_nothing_else(settings):
    (only,) = config_warnings(settings("bus: {url: redis://h}"))
    assert only.startswith("store.url: SQLite is one process's file")
    assert (
        config_warnings(settings(""))
        == config_warnings(settings("bus: {url: redis://h}\nstore: {url: 'postgresql://h/d'}"))
        == []
    )


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://example.org/page", ""])
def test_an_origin_that_no_browser_sends_is_refused(problems, origin):
    (only,) = problems(f"server: {{allowed_origins: ['*', '{origin}']}}")
    assert only.startswith("server.allowed_origins[1]: expected * or an origin")


def test_origins_and_proxies_are_taken_as_written(settings):
    server = settings(
        "server: {allowed_origins: ['https://a.example:8443'], trusted_proxies: [127.0.0.1, '::1', 10.0.0.0/8]}"
    ).server
    assert server.allowed_origins == ("https://a.example:8443",)
    assert server.trusted_proxies == ("127.0.0.1", "::1", "10.0.0.0/8")


def test_intervals_are_sorted_by_length(settings):
    assert settings("intervals: [1D, 1m, 2h]").intervals == tuple(map(Interval.parse, ("1m", "2h", "1D")))


# ---------------------------------------------------------------- exchanges


def test_exchanges_keep_the_order_of_the_file(settings):
    config = settings("exchanges: {replay: {symbols: [ETH/USDT]}, bitget: }")
    assert [exchange.name for exchange in config.exchanges] == ["replay", "bitget"]


def test_one_plugin_can_serve_two_exchanges(settings):
    config = settings("exchanges: {bitget: , bitget-futures: {plugin: bitget, markets: [usdt-futures]}}")
    assert [exchange.settings.markets for exchange in config.exchanges] == [("spot",), ("usdt-futures",)]
    assert config.exchanges[0].plugin is config.exchanges[1].plugin


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exchanges: [bitget]", "exchanges: expected a mapping by name, such as `bitget: {symbols: [BTC/USDT]}`"),
        ("exchanges: {}", "exchanges: at least one is needed"),
        ("exchanges: {bitget: [BTC/USDT]}",
         "exchanges.bitget: expected a mapping of settings, such as {symbols: [BTC/USDT]}"),
        ("exchanges: {'bit get': }", "exchanges.bit get: expected a name of letters, digits, - and _"),
        ("exchanges: {bitgte: }",
         "exchanges.bitgte: no plugin offers this exchange, did you mean bitget? (`candled plugins` lists them)"),
        ("exchanges: {mine: {plugin: bitgte}}",
         "exchanges.mine.plugin: no plugin offers this exchange, did you mean bitget? (`candled plugins` lists them)"),
        ("exchanges: {bitget: {symbols: []}}", "exchanges.bitget.symbols: at least one is needed"),
        ("exchanges: {bitget: {symbols: ['!BTC/USDT', '!*/EUR']}}",
         "exchanges.bitget.symbols: at least one symbol or pattern without ! is needed"),
        ("exchanges: {bitget: {symbols: ['/(/']}}",
         "exchanges.bitget.symbols[0]: "
         f"expected {SYMBOL_PATTERN_FORM}, got '/(/': "
         "no regular expression: missing ), unterminated subpattern at position 0"),
        ("exchanges: {bitget: {symbols: [BTC/USDT, '/(/'], top: 5, min_age: 1d}}",  # it is the only mistake
         "exchanges.bitget.symbols[1]: "
         f"expected {SYMBOL_PATTERN_FORM}, got '/(/': "
         "no regular expression: missing ), unterminated subpattern at position 0"),
        ("exchanges: {bitget: {symbols: [BTC/USDT], top: 5}}",
         "exchanges.bitget.top: chooses from patterns, and symbols has none, such as */USDT"),
        ("exchanges: {bitget: {symbols: [BTC/USDT], min_age: 1d}}",
         "exchanges.bitget.min_age: applies to patterns, and symbols has none, such as */USDT"),
        ("exchanges: {bitget: {symbols: [BTC/USDT, BTC/USDT]}}",
         "exchanges.bitget.symbols: BTC/USDT is listed twice"),
        ("exchanges: {bitget: {symbol: BTC/USDT}}",
         "exchanges.bitget.symbol: unknown setting, did you mean symbols?"),
        ("exchanges: {replay: {speed: 0.5}}", "exchanges.replay.speed: at least 1.0, was 0.5"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_exchange_names_the_remedy(problems, text, expected):
    assert problems(text) == (expected,)


def broken(name: str) -> Plugins:
    status = PluginStatus(name=name, distribution="candled-x", version="1.0", ok=False, error="ImportError: no")
    return Plugins(PLUGINS.exchanges, [*PLUGINS.statuses, status])


def test_a_broken_plugin_that_is_not_used_stops_nothing(settings):
    assert settings("", plugins=broken("coinfair")).exchanges[0].name == "bitget"


def test_a_broken_plugin_that_is_used_is_reported_with_its_error(problems):
    assert problems("exchanges: {coinfair: }", plugins=broken("coinfair")) == (
        "exchanges.coinfair: plugin coinfair (candled-x 1.0) cannot be used: ImportError: no",
    )


def test_an_exchange_that_no_plugin_offers_names_the_broken_plugins(problems):
    (only,) = problems("exchanges: {coinfair: }", plugins=broken("other"))
    assert only.endswith("; other (candled-x 1.0) cannot be used")


def test_whatever_a_validator_of_a_plugin_raises_is_a_problem(problems):
    class Checked(Settings):
        url: str = setting("wss://x", help="")

        @field_validator("url")
        @classmethod
        def _check(cls, url: str) -> str:
            return url if url == "wss://x" else {}[url]

    offered = {"own": type("Own", (PLUGINS.exchanges["replay"],), {"name": "own", "Settings": Checked})}
    plugins = Plugins({**PLUGINS.exchanges, **offered}, PLUGINS.statuses)
    assert problems("exchanges: {replay: {speed: 0}, own: {url: 'wss://me:hunter2@h'}}", plugins=plugins) == (
        "exchanges.replay.speed: at least 1.0, was 0",
        "exchanges.own: KeyError: 'wss:***@h'",
    )


def raising(name: str, error: BaseException) -> type[Exchange]:
    """An exchange that cannot be made."""

    class Raising(PLUGINS.exchanges["replay"]):
        def __init__(self, settings: object, clock: object) -> None:
            raise error

    Raising.name = name
    return Raising


@pytest.mark.slow
def test_every_exchange_that_cannot_be_made_is_named_in_one_run(settings):
    errors = {
        "acme": OSError(13, "Permission denied"),
        "base": ValueError("two\nlines about wss://me:hunter2@host"),
        "cold": ExchangeError("no such market"),
        "deep": ConfigError(["exchanges.deep.key: is needed", "exchanges.deep.user: is needed"]),
        "ends": SystemExit(3),
    }
    offered = {name: raising(name, error) for name, error in errors.items()}
    plugins = Plugins({**PLUGINS.exchanges, **offered}, PLUGINS.statuses)
    config = settings(f"exchanges: {{replay: , {', '.join(f'{name}: ' for name in errors)}}}", plugins=plugins)
    with pytest.raises(ConfigError) as caught:
        make_exchanges(config, SystemClock())
    assert caught.value.problems == (
        "exchanges.acme: PermissionError: [Errno 13] Permission denied",
        "exchanges.base: ValueError: two lines about wss://me:***@host",
        "exchanges.cold: no such market",
        "exchanges.deep.key: is needed",
        "exchanges.deep.user: is needed",
        "exchanges.ends: SystemExit: 3",
    )


def test_a_constructor_that_hangs_is_named_and_does_not_hang_the_start(settings, monkeypatch):
    class Hangs(Exchange):
        name = "hangs"
        Settings = PLUGINS.exchanges["replay"].Settings

        def __init__(self, settings, clock):
            threading.Event().wait(30)

        def make_feed(self, symbols): ...
        async def fetch_markets(self, http): ...
        async def fetch_history(self, http, symbol, start_ms, end_ms): ...

    monkeypatch.setattr(config_package, "_CREATED_WITHIN_S", 0.2)
    plugins = Plugins({**PLUGINS.exchanges, "hangs": Hangs}, PLUGINS.statuses)
    config = settings("exchanges: {hangs: }", plugins=plugins)
    with pytest.raises(ConfigError) as caught:
        make_exchanges(config, SystemClock())
    assert caught.value.problems == (
        "exchanges.hangs: took more than 0.2 s to be created; does its constructor wait for something?",
    )


@pytest.mark.slow
def test_exchanges_are_made_in_the_order_of_the_settings(settings):
    config = settings("exchanges: {replay: , bitget: }")
    assert [exchange.name for exchange in make_exchanges(config, SystemClock())] == ["replay", "bitget"]


# ---------------------------------------------------------------- environment


def test_the_environment_goes_over_the_file(settings):
    env = {
        "CANDLED_SERVER__PORT": "7001",
        "CANDLED_INGEST__BACKFILL": "2h",
        "CANDLED_INTERVALS": "[5m, 1m]",
        "CANDLED_EXCHANGES__BITGET__SYMBOLS": "[ETH/USDT]",
        "CANDLED_EXCHANGES__BITGET__MARKETS": "[usdt-futures]",
        "PATH": "/bin",
    }
    config = settings("server: {port: 1, host: 127.0.0.1}", env)
    assert (config.server.port, config.server.host) == (7001, "127.0.0.1")
    assert config.ingest.backfill == timedelta(hours=2)
    assert list(map(str, config.intervals)) == ["1m", "5m"]
    assert config.exchanges[0].symbols == (Symbol("ETH", "USDT"),)
    assert config.exchanges[0].settings.markets == ("usdt-futures",)


def test_the_environment_reaches_exchanges_of_any_name(settings):
    text = "exchanges: {bitget: , Bitget-Futures: {plugin: bitget}}"
    config = settings(text, {"CANDLED_EXCHANGES__BITGET_FUTURES__MARKETS": "[usdt-futures]"})
    assert [exchange.settings.markets for exchange in config.exchanges] == [("spot",), ("usdt-futures",)]


def test_the_environment_can_name_an_exchange_the_file_does_not(settings):
    env = {"CANDLED_EXCHANGES__REPLAY__SPEED": "10"}
    assert [exchange.name for exchange in settings("", env).exchanges] == ["replay"]
    assert [exchange.name for exchange in settings("exchanges: {bitget: }", env).exchanges] == ["bitget", "replay"]


def test_variables_of_kubernetes_for_a_service_called_candled_are_left_alone(settings):
    env = {
        "CANDLED_SERVICE_HOST": "10.0.0.11",
        "CANDLED_SERVICE_PORT": "7000",
        "CANDLED_SERVICE_PORT_HTTP": "7000",
        "CANDLED_PORT": "tcp://10.0.0.11:7000",
        "CANDLED_PORT_7000_TCP": "tcp://10.0.0.11:7000",
        "CANDLED_PORT_7000_TCP_PROTO": "tcp",
    }
    assert settings("", env) == settings("")


def test_variables_of_kubernetes_for_services_called_candled_something_are_left_alone(settings):
    env = {
        "CANDLED_REDIS_SERVICE_HOST": "10.0.0.12",
        "CANDLED_REDIS_SERVICE_PORT": "6379",
        "CANDLED_REDIS_SERVICE_PORT_REDIS": "6379",
        "CANDLED_REDIS_PORT": "tcp://10.0.0.12:6379",
        "CANDLED_REDIS_PORT_6379_TCP": "tcp://10.0.0.12:6379",
        "CANDLED_REDIS_PORT_6379_TCP_PROTO": "tcp",
        "CANDLED_REDIS_PORT_6379_TCP_PORT": "6379",
        "CANDLED_REDIS_PORT_6379_TCP_ADDR": "10.0.0.12",
        "CANDLED_TIMESCALE_DB_2_SERVICE_HOST": "fd00::12",
        "CANDLED_TIMESCALE_DB_2_PORT": "tcp://[fd00::12]:5432",
        "CANDLED_TIMESCALE_DB_2_PORT_5432_SCTP": "sctp://[fd00::12]:5432",
    }
    assert settings("", env) == settings("")


@pytest.mark.parametrize(
    "name",
    [
        "CANDLED_SERVER__PORT_7000_TCP",
        "CANDLED_SERVER__SERVICE_HOST",
        "CANDLED_REDIS_PORT",
        "CANDLED_SERVER__SERVICE_PORT",
    ],
)
def test_what_only_looks_like_kubernetes_is_a_mistake(problems, name):
    (only,) = problems("", {name: "7000"})
    assert only.startswith(f"{name}: no such setting")


def test_an_empty_variable_counts_as_unset(settings):
    env = {"CANDLED_SERVER__HOST": "", "CANDLED_SERVER__PORT": "", "CANDLED_STORE": "", "CANDLED_STORE__JOURNAL": ""}
    text = "server: {host: 127.0.0.1, port: 7001}"
    assert settings(text, env) == settings(text)
    assert settings("", {"CANDLED_STORE__JOURNAL": '""'}).store.journal == ""


def test_problems_that_come_from_the_environment_name_the_variable(problems):
    env = {
        "CANDLED_SERVER__PORT": "99999",
        "CANDLED_SERVER__PING_INTERVAL": "1s",
        "CANDLED_STORE": "{flush_intervall: 1s}",
        "CANDLED_EXCHANGES__BITGET__SYMBOLS": "[BTCUSDT]",
        "CANDLED_BUS__URL": "nats://h",
    }
    assert problems("ingest: {grace_period: -1s}", env) == (
        "exchanges.bitget.symbols[0] (CANDLED_EXCHANGES__BITGET__SYMBOLS): "
        f"expected {SYMBOL_PATTERN_FORM}, got 'BTCUSDT'",
        "ingest.grace_period: at least 0s, was -1s",
        "store.flush_intervall (CANDLED_STORE): unknown setting, did you mean flush_interval?",
        f"bus.url (CANDLED_BUS__URL): no bus for nats://; known: {BUSES}",
        "server.port (CANDLED_SERVER__PORT): at most 65535, was 99999",
        "server.ping_timeout: at most server.ping_interval (CANDLED_SERVER__PING_INTERVAL)",
    )


def test_a_port_without_its_section_is_a_mistake(problems):
    assert problems("", {"CANDLED_PORT": "7001"}) == (
        "CANDLED_PORT: no such setting, did you mean CANDLED_SERVER__PORT?",
    )
