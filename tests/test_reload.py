"""The differences between two readings of the settings: each setting is live or needs a restart, and none is lost."""

import re
from dataclasses import replace
from datetime import timedelta
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.config import Config, load
from candled.config.sections import ExchangeKeys
from candled.plugins import discover
from candled.reload import LIVE, LIVE_ALONE, compare_exchanges, exchange_values, is_live, plan_reload
from candled.settings import ByteSize, Settings
from candled.universe_choice import ChoiceRules
from tests.sources import ROOT

# The settings that are only read at the start. `exchanges` is the first exchange, the default of the protocol.
NEEDS_RESTART = frozenset({
    "access.jwt_algorithm", "access.jwt_audience", "access.jwt_issuer", "access.jwt_key_file", "access.tokens_file",
    "bus.lease", "bus.prefix", "bus.url",
    "control.socket",
    "exchanges",
    "ingest.backfill", "ingest.checkpoint", "ingest.confirm", "ingest.grace_period", "ingest.quiet_after",
    "ingest.shards",
    "klines.enabled", "klines.exchange", "klines.prefix",
    "log.format",
    "plugins",
    "roles",
    "server.allowed_origins", "server.cache", "server.compress_from", "server.compression", "server.health_details",
    "server.host", "server.internal_host", "server.internal_port", "server.metrics_per_symbol",
    "server.own_sockets", "server.ping_interval", "server.ping_timeout", "server.port", "server.prefix",
    "server.reuse_port", "server.shutdown_seconds", "server.status", "server.tls_certificate", "server.tls_key",
    "server.trusted_proxies",
    "store.compress_after", "store.flush_interval", "store.init", "store.journal", "store.journal_limit",
    "store.retention", "store.url",
    "udf.next_time",
})  # fmt: skip
PLUGINS = discover(one for one in metadata.entry_points(group="candled") if one.value.startswith("candled_plugins."))
DEFAULT = load(None, {}, PLUGINS)


def names() -> set[str]:
    """The name of every setting; those of an exchange with a star for its name."""
    found = {f"exchanges.*.{key}" for key in ExchangeKeys.model_fields} | {"exchanges.*", "exchanges.*.*"}
    for name, field in Config.model_fields.items():
        kind = field.annotation
        is_section = isinstance(kind, type) and issubclass(kind, Settings)
        found |= {f"{name}.{key}" for key in kind.model_fields} if is_section else {name}
    return found


def read(text: str, tmp_path) -> Config:
    path = tmp_path / "candled.yaml"
    path.write_text(text, "utf-8")
    return load(path, {}, PLUGINS)


def test_every_setting_is_in_one_of_the_lists():
    lists = [LIVE, LIVE_ALONE, NEEDS_RESTART]
    assert names() == set().union(*lists), "a new setting belongs to LIVE or to NEEDS_RESTART"
    assert len(names()) == sum(map(len, lists))


def test_the_page_lists_the_settings_that_are_live():
    page = (ROOT / "docs" / "reference" / "settings.md").read_text("utf-8")
    listed = re.search(r"<!-- live settings -->\n(.*?)<!-- end of live settings -->", page, re.DOTALL)
    assert listed is not None
    written = re.findall(r"`([\w.*]+)`", listed[1].replace("NAME", "*"))
    assert written == sorted(LIVE | LIVE_ALONE)


def test_equal_settings_change_nothing(tmp_path):
    plan = plan_reload(read("log: {level: debug}", tmp_path), read("{log: {level: debug}}", tmp_path))
    assert (plan.live, plan.needs_restart, plan.problems) == ((), (), ())


def test_changes_are_named_in_the_order_of_the_settings(tmp_path):
    wanted = read(
        "log: {level: debug}\nserver: {port: 7001, max_connections: 5}\nintervals: [1m]\n"
        "exchanges: {bitget: {}, replay: {}}",
        tmp_path,
    )
    plan = plan_reload(DEFAULT, wanted)
    assert plan.live == ("server.max_connections", "exchanges.replay", "log.level")
    removed = ", ".join(str(one) for one in DEFAULT.intervals[1:])
    assert plan.needs_restart == ("server.port", f"intervals (removal of {removed})")
    assert (plan.config.server.port, plan.config.server.max_connections) == (7000, 5)
    assert (plan.config.log.level, plan.config.exchanges) == ("debug", wanted.exchanges)


def test_the_keys_of_a_plugin_are_named_with_their_exchange(tmp_path):
    plan = plan_reload(
        read("exchanges: {replay: {speed: 1}}", tmp_path), read("exchanges: {replay: {speed: 2, most: 3}}", tmp_path)
    )
    assert plan.live == ("exchanges.replay.most", "exchanges.replay.speed")


def test_the_first_exchange_stays_the_first(tmp_path):
    """It is the default of the protocol. Everything else that is new is read."""
    both = read("exchanges: {replay: {}, bitget: {}}", tmp_path)
    plan = plan_reload(DEFAULT, both)
    assert (plan.live, plan.needs_restart) == (("exchanges.replay",), ("exchanges",))
    assert [one.name for one in plan.config.exchanges] == ["bitget", "replay"]
    plan = plan_reload(DEFAULT, read("exchanges: {replay: {}}", tmp_path))
    assert (plan.live, plan.needs_restart) == (("exchanges.replay",), ("exchanges",))
    assert [one.name for one in plan.config.exchanges] == ["bitget", "replay"]


def test_exchanges_of_processes_that_share_a_bus_need_a_restart(tmp_path):
    shared = "bus: {url: redis://h}\nexchanges: "
    running = read(shared + "{bitget: {}}", tmp_path)
    plan = plan_reload(running, read(shared + "{bitget: {symbols: [ETH/USDT], proxy: direct}, replay: {}}", tmp_path))
    assert plan.live == ("exchanges.bitget.symbols", "exchanges.bitget.proxy")
    assert plan.needs_restart == ("exchanges.replay",)
    plan = plan_reload(running, read(shared + '{bitget: {symbols: ["*/USDT"], top: 5}}', tmp_path))
    assert (plan.live, plan.config) == ((), running)
    assert plan.needs_restart == ("exchanges.bitget.symbols", "exchanges.bitget.top")


def test_the_changes_of_exchanges_are_told_apart(tmp_path):
    before = read("exchanges: {bitget: {}, replay: {speed: 1}, old: {plugin: replay}}", tmp_path)
    after = read("exchanges: {bitget: {symbols: [ETH/USDT]}, replay: {speed: 2}, new: {plugin: replay}}", tmp_path)
    changes = compare_exchanges(before, after)
    assert changes.removed == ("old",)
    found = (changes.added, changes.replaced, changes.chosen)
    assert [[one.name for one in group] for group in found] == [["new"], ["replay"], ["bitget"]]


def test_settings_that_need_a_restart_are_named_at_each_reload(tmp_path):
    wanted = read("server: {port: 7001, max_connections: 5}", tmp_path)
    again = plan_reload(plan_reload(DEFAULT, wanted).config, wanted)
    assert (again.live, again.needs_restart) == ((), ("server.port",))


# ---------------------------------------------------------------- any change


def others(value: object) -> list[object]:
    """Return values of the same type. They need not be valid: a plan only compares them."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [type(value)(value + 1)]
    if isinstance(value, timedelta):
        return [value + timedelta(seconds=1)]
    if isinstance(value, ByteSize):
        return [ByteSize(value + 1)]
    if isinstance(value, tuple):
        return [value[1:], value[::-1]]
    return [f"{value}x"]


SECTIONS = {name: value for name, value in dict(DEFAULT).items() if isinstance(value, Settings)}
KEYS = [(name, key) for name, section in SECTIONS.items() for key in dict(section)] + [
    (name, None) for name in Config.model_fields if name not in SECTIONS and name != "exchanges"
]
(BITGET,) = DEFAULT.exchanges
FEWER = replace(BITGET, choice=ChoiceRules(patterns=(), most=7), symbols=())
EXCHANGES = [(BITGET,), (FEWER,), (FEWER, replace(BITGET, name="x")), (replace(BITGET, name="x"),)]


@st.composite
def configs(draw) -> Config:
    """Settings that differ from the default ones in some keys."""
    update: dict[str, object] = {"exchanges": draw(st.sampled_from(EXCHANGES))}
    for name, key in draw(st.lists(st.sampled_from(KEYS), max_size=5)):
        section = update.get(name, getattr(DEFAULT, name))
        if key is None:
            update[name] = draw(st.sampled_from(others(section)))
        else:
            other = draw(st.sampled_from(others(getattr(section, key))))
            update[name] = section.model_copy(update={key: other})
    return DEFAULT.model_copy(update=update)


def flat(config: Config) -> dict[str, object]:
    """Every value by its name, except the intervals. A section of an exchange has its own name too."""
    found: dict[str, object] = {}
    for name in Config.model_fields:
        value = getattr(config, name)
        if name == "exchanges":
            found[name] = value[0].name
            found |= {f"exchanges.{one.name}": "there" for one in value}
            found |= {f"exchanges.{one.name}.{key}": v for one in value for key, v in exchange_values(one).items()}
        elif isinstance(value, Settings):
            found |= {f"{name}.{key}": inner for key, inner in dict(value).items()}
        elif name != "intervals":
            found[name] = value
    return found


@pytest.mark.slow
@given(configs(), configs())
def test_a_plan_takes_every_live_change_and_nothing_else(running, wanted):
    plan = plan_reload(running, wanted)
    before, after, now = flat(running), flat(wanted), flat(plan.config)
    changed = {name for name in before if name in after and before[name] != after[name]}
    sections = {f"exchanges.{one.name}" for one in (*running.exchanges, *wanted.exchanges)}
    changed |= {name for name in sections if (name in before) != (name in after)}
    changed.discard(f"exchanges.{running.exchanges[0].name}")  # named by `exchanges`
    served, chosen = set(running.intervals), set(wanted.intervals)
    changed |= {"intervals"} if chosen - served else set()
    if lost := sorted(served - chosen):
        changed.add(f"intervals (removal of {', '.join(map(str, lost))})")
    assert {*plan.live, *plan.needs_restart} == changed
    assert set(plan.config.intervals) == served | chosen

    is_alone = running.bus.url == "memory://"
    assert all(is_live(name, is_alone=is_alone) for name in plan.live)
    assert not any(is_live(name, is_alone=is_alone) for name in plan.needs_restart if not name.startswith("exchanges."))
    for name in sections - {f"exchanges.{running.exchanges[0].name}"}:
        assert (name in now) == (name in (after if name in plan.live else before))
    for name in now:
        known = after if name in plan.live or name not in before else before
        assert now[name] == known.get(name, before.get(name))
    again = plan_reload(plan.config, wanted)
    assert (again.live, again.needs_restart) == ((), plan.needs_restart)


def test_a_contradiction_with_a_running_setting_is_a_problem(tmp_path):
    """The bots could be served without the exchange only if their setting changed too."""
    running = read("exchanges: {bitget: {}, replay: {}}\nklines: {exchange: replay}", tmp_path)
    (problem,) = plan_reload(running, read("exchanges: {bitget: {}}", tmp_path)).problems
    assert problem == (
        "klines.exchange: no such exchange; known: bitget; klines.exchange cannot change before a restart"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("log.level", (True, True)),
        ("server.port", (False, False)),
        ("exchanges", (False, False)),
        ("exchanges.x", (False, True)),
        ("exchanges.x.plugin", (False, True)),
        ("exchanges.x.top", (True, True)),
        ("exchanges.x.api_key", (True, True)),
    ],
)
def test_a_setting_is_live_or_not(name, expected):
    assert (is_live(name, is_alone=False), is_live(name, is_alone=True)) == expected
