"""The OpenAPI 3.1 description of the REST API, generated from the operations that also parse its queries."""

from collections.abc import Mapping, Sequence
from typing import Any

from candled.model import REASONS

from .operations import Operation
from .parameters import Parameter

_TIME = {"type": "string", "format": "date-time", "examples": ["2024-10-24T10:00:00.000Z"]}
_REASON = {
    "type": "string",
    "enum": list(REASONS),
    "description": "; ".join(f"{reason}: {why}" for reason, why in REASONS.items()),
}


def _object(properties: Mapping[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items)}


def _nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


_NUMBER = {"type": ["number", "string"], "description": "a string with `numbers=string`, which keeps every digit"}
_GAP = {"from": _TIME, "to": _TIME, "minutes": {"type": "integer", "minimum": 1}, "reason": _REASON}
_MARKET = {"exchange": {"type": "string"}, "symbol": {"type": "string"}}

SCHEMAS: Mapping[str, Any] = {
    "Bar": _object(
        {
            "time": {**_TIME, "description": "when the bar begins"},
            "open": _NUMBER,
            "high": _NUMBER,
            "low": _NUMBER,
            "close": _NUMBER,
            "volume": {**_NUMBER, "description": "in base currency"},
            "quoteVolume": {**_NUMBER, "description": "left out if the exchange does not send it"},
            "final": {
                "type": "boolean",
                "description": "true once the bar is over and the grace period for late updates has passed",
            },
        },
        optional=("quoteVolume",),
    ),
    "Candles": _object(
        {
            **_MARKET,
            "interval": {"type": "string"},
            "bars": _list({"$ref": "#/components/schemas/Bar"}),
            "hasMore": {"type": "boolean", "description": "true if there are more bars in the direction of paging"},
            "oldest": {**_nullable(_TIME), "description": "when the first of these bars begins"},
            "next": {"type": ["string", "null"], "description": "the next page, relative to this one's address"},
            "epoch": {"type": "string", "description": "with seq: the position of the market's feed, for `resume`"},
            "seq": {"type": "integer"},
        },
        optional=("epoch", "seq"),
    ),
    "Symbols": _object(
        {
            "symbols": _list(
                _object(
                    {
                        **_MARKET,
                        "ticker": {"type": "string", "description": "its name at /udf"},
                        "priceDecimals": {"type": ["integer", "null"]},
                        "volumeDecimals": {"type": ["integer", "null"]},
                    }
                )
            )
        }
    ),
    "Intervals": _object(
        {"intervals": _list(_object({"interval": {"type": "string"}, "ms": {"type": "integer", "minimum": 60_000}}))}
    ),
    "Exchanges": _object(
        {
            "exchanges": _list(
                _object({"name": {"type": "string"}, "default": {"type": "boolean"}, "symbols": {"type": "integer"}})
            )
        }
    ),
    "Coverage": _object(
        {
            **_MARKET,
            "completeFrom": {
                **_nullable(_TIME),
                "description": "the time from which history is complete, except for known gaps",
            },
            "days": _list(
                _object(
                    {
                        "day": {"type": "string", "format": "date"},
                        "minutes": {"type": "integer", "minimum": 0},
                        "expected": {"type": "integer", "minimum": 1, "maximum": 1440},
                        "holeCount": {"type": "integer", "minimum": 0},
                        "holes": _list(_object(_GAP)),
                    }
                )
            ),
        }
    ),
    "Gaps": _object(
        {
            "gaps": _list(_object({**_MARKET, **_GAP, "attempts": {"type": "integer"}, "nextTry": _nullable(_TIME)})),
            "hasMore": {"type": "boolean"},
        }
    ),
    "Description": {"type": "object"},
    "Error": _object(
        {"error": _object({"code": {"type": "string"}, "message": {"type": "string"}})},
    ),
}

_HEADERS: Mapping[str, Any] = {
    name: {"description": about, "schema": {"type": kind}}
    for name, kind, about in (
        ("X-RateLimit-Limit", "integer", "requests allowed per window"),
        ("X-RateLimit-Remaining", "integer", "requests left in the window"),
        ("X-RateLimit-Reset", "integer", "end of the window, Unix seconds"),
        ("RateLimit-Policy", "string", "the limit and the length of the window"),
        ("RateLimit-Limit", "integer", "requests allowed per window"),
        ("RateLimit-Remaining", "integer", "requests left in the window"),
        ("RateLimit-Reset", "integer", "seconds until the window ends"),
    )
}


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """Return the complete description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "candled",
            "version": version,
            "description": "Exact candles of the served markets: the stored bars and the forming bar.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": ".."}],
        "paths": {operation.path: {"get": _operation(operation)} for operation in operations},
        "components": {"schemas": dict(SCHEMAS)},
    }


def _operation(operation: Operation) -> dict[str, Any]:
    return {
        "operationId": operation.name,
        "summary": operation.summary,
        **({"description": operation.about} if operation.about else {}),
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {
            "200": {
                "description": "the answer",
                "headers": dict(_HEADERS),
                "content": {kind: _content(schema) for kind, schema in operation.answers.items()},
            },
            "304": {"description": "unchanged since the answer with the ETag in `If-None-Match`"},
            "400": _refusal("a parameter is invalid"),
            "404": _refusal("the symbol or exchange is not served"),
            "429": {
                **_refusal("too many requests from this address; try again after `Retry-After` seconds"),
                "content": {"application/json": _content("Error"), "text/html": {"schema": {"type": "string"}}},
            },
            **({"501": _refusal("the server cannot write this format")} if len(operation.answers) > 1 else {}),
            "503": _refusal("the store cannot be read now; try again after `Retry-After` seconds"),
        },
    }


def _refusal(about: str) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": _content("Error")}}


def _content(schema: str | None) -> dict[str, Any]:
    return {"schema": {"type": "string"} if schema is None else {"$ref": f"#/components/schemas/{schema}"}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema = {key: value for key, value in parameter.schema.items() if key != "title"}
    return {
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "description": parameter.about,
        "schema": schema,
    }
