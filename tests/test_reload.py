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
from candled.reload import LIVE, NEEDS_RESTART, exchange_values, is_live, plan_reload
from candled.settings import ByteSize, Settings
from candled.universe_choice import ChoiceRules
from tests.sources import ROOT

PLUGINS = discover(one for one in metadata.entry_points(group="candled") if one.value.startswith("candled_plugins."))
DEFAULT = load(None, {}, PLUGINS)


def names() -> set[str]:
    """The name of every setting; those of an exchange with a star for its name."""
    found = {f"exchanges.*.{key}" for key in ExchangeKeys.model_fields} | {"exchanges.*.*"}
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
    assert names() == LIVE | NEEDS_RESTART, "a new setting belongs to LIVE or to NEEDS_RESTART"
    assert not LIVE & NEEDS_RESTART


def test_the_page_lists_the_settings_that_are_live():
    page = (ROOT / "docs" / "reference" / "settings.md").read_text("utf-8")
    listed = re.search(r"<!-- live settings -->\n(.*?)<!-- end of live settings -->", page, re.DOTALL)
    assert listed is not None
    written = re.findall(r"`([\w.*]+)`", listed[1].replace("NAME", "*"))
    assert written == sorted(LIVE)


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
    assert plan.live == ("server.max_connections", "log.level")
    removed = ", ".join(str(one) for one in DEFAULT.intervals[1:])
    assert plan.needs_restart == ("server.port", "exchanges", f"intervals (removal of {removed})")
    assert (plan.config.server.port, plan.config.server.max_connections) == (7000, 5)
    assert (plan.config.log.level, plan.config.exchanges) == ("debug", DEFAULT.exchanges)


def test_the_keys_of_a_plugin_are_named_with_their_exchange(tmp_path):
    plan = plan_reload(
        read("exchanges: {replay: {speed: 1}}", tmp_path), read("exchanges: {replay: {speed: 2, most: 3}}", tmp_path)
    )
    assert {*plan.live, *plan.needs_restart} == {"exchanges.replay.speed", "exchanges.replay.most"}
    assert "exchanges.replay.speed" in plan.needs_restart


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
    """Every value by its name."""
    found: dict[str, object] = {}
    for name in Config.model_fields:
        value = getattr(config, name)
        if name == "exchanges":
            found[name] = [one.name for one in value]
            found |= {f"exchanges.{one.name}.{key}": v for one in value for key, v in exchange_values(one).items()}
        elif isinstance(value, Settings):
            found |= {f"{name}.{key}": inner for key, inner in dict(value).items()}
        else:
            found[name] = value
    return found


@given(configs(), configs())
def test_a_plan_takes_every_live_change_and_nothing_else(running, wanted):
    plan = plan_reload(running, wanted)
    before, after, now = flat(running), flat(wanted), flat(plan.config)
    served, chosen = set(before.pop("intervals")), set(after.pop("intervals"))
    assert set(now.pop("intervals")) == served | chosen
    names = {name for name in before if name in after and before[name] != after[name]}
    names |= {"intervals"} if chosen - served else set()
    if lost := sorted(served - chosen):
        names.add(f"intervals (removal of {', '.join(map(str, lost))})")
    assert {*plan.live, *plan.needs_restart} == names
    assert all(map(is_live, plan.live))
    assert not any(map(is_live, plan.needs_restart))
    assert now.keys() == before.keys()
    for name in before:
        assert now[name] == (after[name] if name in plan.live else before[name])
    again = plan_reload(plan.config, wanted)
    assert again.live == ()
    assert again.needs_restart == plan.needs_restart


def test_a_contradiction_with_a_running_setting_is_a_problem(monkeypatch, tmp_path):
    """The new timeout is valid with the new interval, but not with the running one."""
    monkeypatch.setattr("candled.reload.LIVE", LIVE | {"server.ping_timeout"})
    running = read("server: {ping_interval: 5s, ping_timeout: 4s}", tmp_path)
    wanted = read("server: {ping_interval: 20s, ping_timeout: 10s}", tmp_path)
    (problem,) = plan_reload(running, wanted).problems
    assert problem == (
        "server.ping_timeout: at most server.ping_interval; server.ping_interval cannot change before a restart"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("log.level", True), ("server.port", False), ("exchanges", False), ("exchanges.x.api_key", False)],
)
def test_a_setting_is_live_or_not(name, expected):
    assert is_live(name) is expected
