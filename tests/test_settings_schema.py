"""The JSON Schema of the settings: what it has, what it accepts, and the published copy."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import SecretStr

from candled import ConfigError, Exchange, Settings, setting
from candled.cli import main
from candled.config import Config, load
from candled.config.sections import ExchangeKeys, OnDemandSettings
from candled.plugins import Plugins, discover
from candled.settings import is_section
from candled.settings_schema import make_schema
from tests.bundled import PLUGINS

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "config" / "candled.schema.json"
SCHEMA = make_schema(PLUGINS.exchanges)
FILES = [ROOT / "candled.yaml", ROOT / "candled" / "demo.yaml", *sorted((ROOT / "config").glob("*.yaml"))]


def mistakes(document: object, schema: Mapping[str, Any] = SCHEMA) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


def test_it_is_json_schema_of_its_draft():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_published_copy_is_what_the_command_prints():
    """Write it with: candled config schema > config/candled.schema.json."""
    assert PUBLISHED.read_text("utf-8") == json.dumps(SCHEMA, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_settings_file_of_the_project_names_the_published_copy_and_passes(path):
    text = path.read_text("utf-8")
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named, "an editor looks for the schema in the first line"
    assert (path.parent / named[1]).resolve() == PUBLISHED
    assert mistakes(yaml.safe_load(text)) == []


def sections() -> list[tuple[str, type[Settings]]]:
    """Each model with the name of its schema."""
    exchanges = [(f"exchanges.{name}", one.Settings) for name, one in PLUGINS.exchanges.items()]
    shared = [(f"exchanges.{name}", ExchangeKeys) for name in PLUGINS.exchanges]
    own = [
        (one.annotation.__name__, one.annotation) for one in Config.model_fields.values() if is_section(one.annotation)
    ]
    inner = [
        (one.annotation.__name__, one.annotation)
        for _, model in exchanges
        for one in model.model_fields.values()
        if is_section(one.annotation)
    ]
    return [*own, *exchanges, *inner, *shared, (OnDemandSettings.__name__, OnDemandSettings)]


@pytest.mark.parametrize(("name", "model"), sections(), ids=str)
def test_every_key_has_its_help_and_its_default(name, model):
    schema = SCHEMA["$defs"][name]
    for key, field in model.model_fields.items():
        written = schema["properties"][key]
        assert written["description"].startswith(field.description)
        if is_section(field.annotation):
            continue  # each of its keys has a default
        assert mistakes({"key": written["default"]}, {"properties": {"key": written}, "$defs": SCHEMA["$defs"]}) == []


def test_limits_are_there():
    server, store = SCHEMA["$defs"]["ServerSettings"]["properties"], SCHEMA["$defs"]["StoreSettings"]["properties"]
    assert (server["port"]["minimum"], server["port"]["maximum"], server["port"]["default"]) == (0, 65535, 7000)
    assert (server["ping_interval"]["default"], server["cache"]["default"]) == ("30s", "64MB")
    assert server["ping_interval"]["description"].endswith("; at least 100ms")
    assert store["journal_limit"]["description"].endswith("; at least 64KB")


@pytest.mark.parametrize(
    "text",
    [
        "server: {prot: 7000}",
        "servers: {}",
        "server: {port: 99999}",
        "server: {port: '7000'}",
        "server: {host: 7}",
        "server: {ping_interval: 30}",
        "server: {ping_interval: 30 s}",
        "server: {cache: 64PB}",
        "server: {prefix: candles}",
        "server: {allowed_origins: '*'}",
        "server: []",
        "intervals: [5x]",
        "intervals: []",
        "roles: [read]",
        "limits: {headers: [draft-7]}",
        "log: {level: loud}",
        "exchanges: {}",
        "exchanges: [bitget]",
        "exchanges: {'bit get': {plugin: bitget}}",
        "exchanges: {bitget: {symbols: [BTCUSDT]}}",
        "exchanges: {bitget: {symbols: []}}",
        "exchanges: {bitget: {speed: 2}}",
        "exchanges: {bitget: {plugin: replay, markets: [spot]}}",
        "exchanges: {futures: {markets: [usdt-futures]}}",
        "exchanges: {futures: {plugin: bitget, markets: [moon]}}",
        "exchanges: {futures: {plugin: bitgte}}",
        "exchanges: {replay: {speed: 0.5}}",
        "exchanges: {bitget: {rest_url: 'ftp://h'}}",
    ],
)
def test_a_mistake_that_candled_reports_an_editor_marks_too(text, tmp_path):
    (tmp_path / "candled.yaml").write_text(text, "utf-8")
    assert mistakes(yaml.safe_load(text))
    with pytest.raises(ConfigError):
        load(tmp_path / "candled.yaml", {}, PLUGINS)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "server: ",
        "exchanges: ",
        "exchanges: {bitget: , replay: {speed: 2}}",
        "exchanges: {bitget: {plugin: null, markets: [usdt-futures]}}",
        "exchanges: {bitget: {plugin: replay, speed: 2}}",
        "exchanges: {futures: {plugin: bitget, markets: [usdt-futures]}}",
        "server: {host: ['127.0.0.1', '::1'], cache: 1000000, ping_timeout: 0.5s}",
    ],
)
def test_what_candled_takes_passes(text, tmp_path):
    (tmp_path / "candled.yaml").write_text(text, "utf-8")
    assert mistakes(yaml.safe_load(text)) == []
    load(tmp_path / "candled.yaml", {}, PLUGINS)


def test_a_plugins_keys_are_there_whatever_their_types():
    class OwnSettings(Settings):
        code: SecretStr = setting("hunter2", "the code")
        when: complex = setting(1j, "a type that JSON does not have")

    class NoSettings(Settings):
        pass

    replay = PLUGINS.exchanges["replay"]
    own, none = (
        type(name, (replay,), {"Settings": one}) for name, one in (("Own", OwnSettings), ("None_", NoSettings))
    )
    exchanges: dict[str, type[Exchange]] = {"own": own, "none": none}
    schema = make_schema(exchanges)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$defs"]["exchanges.own"]["properties"].keys() == {*ExchangeKeys.model_fields, "code", "when"}
    assert mistakes({"exchanges": {"own": {"code": "x"}, "none": None}}, schema) == []
    assert mistakes({"exchanges": {"none": {"code": "x"}}}, schema)
    assert "hunter2" not in json.dumps(schema)
    assert Plugins(exchanges, []).exchanges == exchanges


def test_the_command_prints_it_with_the_keys_of_every_plugin(capsys):
    assert main(["config", "schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == make_schema(discover().exchanges)
    assert "markets" in printed["$defs"]["exchanges.bitget"]["properties"]
