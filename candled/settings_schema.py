"""JSON Schema of the settings, from the models that read them: for editors, which complete and check a file."""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from candled.config import EXCHANGE_NAME, Config
from candled.config.sections import ExchangeKeys
from candled.exchange import Exchange
from candled.settings import Settings, as_written, holds_secret, is_section, plain_text


def make_schema(
    exchanges: Mapping[str, type[Exchange]], plugins: Mapping[str, type[Settings]] | None = None
) -> dict[str, Any]:
    """Return the JSON Schema of a settings file, with the keys of `exchanges`, and of other `plugins` by name."""
    plugins = plugins or {}
    models: set[type[Settings]] = {Config, ExchangeKeys, *(exchange.Settings for exchange in exchanges.values())}
    models |= set(plugins.values())
    references, made = models_json_schema([(model, "validation") for model in models], schema_generator=_Generator)
    parts = made["$defs"]
    schemas = {model: parts.pop(references[model, "validation"]["$ref"].rpartition("/")[2]) for model in models}
    for name, exchange in exchanges.items():
        own, keys = schemas[exchange.Settings], schemas[ExchangeKeys]["properties"]
        parts[f"exchanges.{name}"] = {**own, "properties": {**keys, **own.get("properties", {})}}
    parts |= {f"plugins.{name}": schemas[kind] for name, kind in plugins.items()}
    whole = schemas[Config]
    whole["properties"]["plugins"] |= {
        "type": ["object", "null"],
        "properties": {name: {"$ref": f"#/$defs/plugins.{name}"} for name in sorted(plugins)},
        "additionalProperties": False,
    }
    names = sorted(exchanges)
    parts[_BY_PLUGIN] = _by_plugin(names)
    whole["properties"]["exchanges"] |= _by_name(names)
    parts = dict(sorted(parts.items()))
    return {"$schema": GenerateJsonSchema.schema_dialect, "title": "candled's settings", **whole, "$defs": parts}


_BY_PLUGIN = "exchange"
_CHOSEN: dict[str, Any] = {"type": "object", "required": ["plugin"], "properties": {"plugin": {"type": "string"}}}


def _by_plugin(names: list[str]) -> dict[str, Any]:
    """Return the schema of an exchange whose keys depend on its `plugin`."""
    return {
        **_CHOSEN,
        "properties": {"plugin": {"enum": names}},
        "allOf": [
            {"if": {"properties": {"plugin": {"const": name}}}, "then": {"$ref": f"#/$defs/exchanges.{name}"}}
            for name in names
        ],
    }


def _by_name(names: list[str]) -> dict[str, Any]:
    """Return the schema of all exchanges: the keys of one depend on its `plugin`, or else on its name."""
    by_plugin = {"$ref": f"#/$defs/{_BY_PLUGIN}"}
    return {
        "type": ["object", "null"],
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{EXCHANGE_NAME.pattern}$"},
        "properties": {
            name: {"if": _CHOSEN, "then": by_plugin, "else": {"$ref": f"#/$defs/exchanges.{name}"}} for name in names
        },
        "additionalProperties": by_plugin,
    }


class _Generator(GenerateJsonSchema):
    """Generates schemas for values as written in YAML, without titles, which would only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def encode_default(self, dft: Any) -> Any:
        return as_written(dft)

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}  # a type of a plugin that has no such form: any value

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        made.pop("title", None)
        made["type"] = ["object", "null"]  # null has nothing set
        for key, field in schema["cls"].model_fields.items():
            written = made["properties"][key]
            if is_section(field.annotation) or holds_secret(field):
                del written["default"]  # the keys of a section have their own, and a secret is never printed
            if "pattern" in written or "anyOf" in written:  # limits of a text are not for JSON Schema to check
                limits = [(words, getattr(one, name, None)) for one in field.metadata for words, name in _LIMITS]
                texts = [f"{words} {plain_text(limit)}" for words, limit in limits if limit is not None]
                written["description"] = "; ".join([written.get("description", ""), *texts])
        return made


_LIMITS = (("at least", "ge"), ("at most", "le"))
