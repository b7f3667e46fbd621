"""The OpenAPI 3.1 description of the REST API, generated from the operations that also parse its queries."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from .operations import Error, Operation
from .parameters import Parameter

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


_SCHEMES: Mapping[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an access token of candled, or a JWT"},
    "query": {"type": "apiKey", "in": "query", "name": "token", "description": "the same, where no header can be set"},
}


def document(operations: Sequence[Operation], version: str, *, needs_token: bool = False) -> dict[str, Any]:
    """Return the complete description, with the security schemes if clients need a token."""
    description = _document(operations, version)
    if needs_token:
        description["components"]["securitySchemes"] = _SCHEMES
        description["security"] = [{name: []} for name in _SCHEMES]
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        for path in description["paths"].values():
            path["get"]["responses"] |= {
                "401": {"description": "the token is missing, invalid or expired", "content": error},
                "403": {"description": "the token does not allow this symbol or interval", "content": error},
            }
    return description


def _document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    answers = [Error, *(answer for operation in operations for answer in operation.answers.values())]
    schemas, components = msgspec.json.schema_components(answers, ref_template="#/components/schemas/{name}")
    error, *rest = ({"schema": schema} for schema in schemas)
    contents = iter(rest)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "candled",
            "version": version,
            "description": "Exact candles of the served markets: the stored bars and the forming bar.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": ".."}],
        "paths": {
            operation.path: {"get": _operation(operation, {kind: next(contents) for kind in operation.answers}, error)}
            for operation in operations
        },
        "components": {"schemas": components},
    }


def _operation(operation: Operation, contents: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, Any]:
    def refusal(about: str, **more: Any) -> dict[str, Any]:
        return {"description": about, "content": {"application/json": error, **more}}

    too_many = "too many requests from this address; try again after `Retry-After` seconds"
    return {
        "operationId": operation.name,
        "summary": operation.summary,
        **({"description": operation.about} if operation.about else {}),
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {
            "200": {"description": "the answer", "headers": dict(_HEADERS), "content": contents},
            **({"302": {"description": "the address with the current revision"}} if operation.redirects else {}),
            "304": {"description": "unchanged since the answer with the ETag in `If-None-Match`"},
            "400": refusal("a parameter is invalid"),
            "404": refusal("the symbol or exchange is not served"),
            "406": refusal("`Accept-Encoding` refuses every coding of the server, and plain bodies"),
            "429": refusal(too_many, **{"text/html": {"schema": {"type": "string"}}}),
            **({"501": refusal("the server cannot write this format")} if len(contents) > 1 else {}),
            "503": refusal("no other market can be started, or the store cannot be read now; see `Retry-After`"),
        },
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema = {key: value for key, value in parameter.schema.items() if key != "title"}
    return {
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "description": parameter.about,
        "schema": schema,
    }
