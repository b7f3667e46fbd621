"""Query parameters: declared once, parsed strictly, and described in OpenAPI by the same declaration."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from candled.model import END_OF_TIME_MS, Interval, parse_iso_ms
from candled.protocol.messages import NUMBERS

from .errors import ApiError, shown

_WHOLE = re.compile(r"[0-9]{1,18}")
_SIGNED = re.compile(r"-?[0-9]{1,15}")
_RFC3339 = re.compile(
    r"(\d{4})-\d\d-\d\d[Tt]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:[Zz]|[+ -]\d\d:\d\d)?|(\d{4})-\d\d-\d\d", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One query parameter, and its description in OpenAPI."""

    #: The name in the query.
    name: str
    #: The description for OpenAPI; also the end of "expected …" if the schema has no title.
    about: str
    #: Returns the value of a text; raises `ValueError` for an invalid one.
    read: Callable[[str], Any]
    #: The JSON schema of the value.
    schema: Mapping[str, Any]
    #: The value if the query does not have the parameter. It is not a text for `read`.
    default: Any = None
    #: True if a query without the parameter is refused.
    required: bool = False
    #: Returns the end of "expected …", if it changes while the parameter exists.
    describe_expected: Callable[[], str] | None = None


def read_query(parameters: Sequence[Parameter], query: Mapping[str, Sequence[bytes]]) -> dict[str, Any]:
    """Return the values of all `parameters`, ignoring others in the query.

    Raises:
        ApiError: one is missing, sent twice, not UTF-8 or invalid. The message names the first such parameter.
    """
    values = {}
    for parameter in parameters:
        name = parameter.name
        given = query.get(name, ())
        if len(given) > 1:
            raise ApiError(400, "duplicate_parameter", f"{name}: expected once, got {len(given)} of them")
        if not given:
            if parameter.required:
                raise ApiError(400, "missing_parameter", f"{name}: expected {_expected(parameter)}, got nothing")
            values[name] = parameter.default
            continue
        try:
            text = given[0].decode("utf-8")
        except UnicodeDecodeError:
            raise ApiError(400, "invalid_parameter", f"{name}: expected UTF-8 text, got other bytes") from None
        try:
            values[name] = parameter.read(text)
        except ValueError:
            problem = f"{name}: expected {_expected(parameter)}, got {shown(text)}"
            raise ApiError(400, "invalid_parameter", problem) from None
    return values


def refuse_unknown(parameters: Sequence[Parameter], query: Mapping[str, Sequence[bytes]]) -> None:
    """Check that the query has no unknown parameter: a misspelled one would change the answer unnoticed.

    Raises:
        ApiError: it has one; the message names the first.
    """
    names = [parameter.name for parameter in parameters]
    for name in query:
        if name not in names:
            known = f"expected {', '.join(names)}" if names else "this path has no parameters"
            raise ApiError(400, "unknown_parameter", f"{shown(name)[1:-1]}: unknown parameter, {known}")


def _expected(parameter: Parameter) -> str:
    if parameter.describe_expected is not None:
        return parameter.describe_expected()
    return str(parameter.schema.get("title") or parameter.about)


# ---------------------------------------------------------------- kinds


def whole(
    name: str, about: str, at_least: int, at_most: int, default: int | None = None, *, required: bool = False
) -> Parameter:
    """Return a parameter for a whole number, digits only."""

    def read(text: str) -> int:
        if not _WHOLE.fullmatch(text) or not at_least <= int(text) <= at_most:
            raise ValueError
        return int(text)

    schema: dict[str, Any] = {
        "type": "integer", "minimum": at_least, "maximum": at_most,
        "title": f"a whole number from {at_least} to {at_most}",
    }  # fmt: skip
    if default is not None:
        schema["default"] = default
    return Parameter(name=name, about=about, read=read, schema=schema, default=default, required=required)


def moment(name: str, about: str) -> Parameter:
    """Return a parameter for a time: ISO 8601 or UTC epoch milliseconds, read as the latter.

    Times before 1970 become 0.
    """
    schema = {
        "title": "an ISO 8601 time such as 2024-10-24T10:00:00Z, or UTC epoch milliseconds",
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": END_OF_TIME_MS},
            {"type": "string", "format": "date-time"},
        ],
    }
    return Parameter(name=name, about=about, read=read_moment, schema=schema)


def read_moment(text: str) -> int:
    """Return a time, given as ISO 8601 or UTC epoch milliseconds, in UTC epoch ms.

    Raises:
        ValueError: it is neither, or later than any candle.
    """
    if _WHOLE.fullmatch(text):
        at_ms = int(text)
        if at_ms > END_OF_TIME_MS:
            raise ValueError
        return at_ms
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError
    if (match[1] or match[2]) == "0000":  # a year in RFC 3339, but not in Python
        return 0
    try:
        # an unescaped + arrives as a space
        return max(0, min(parse_iso_ms(text.upper().replace(",", ".").replace(" ", "+")), END_OF_TIME_MS))
    except OverflowError:  # an offset moved the time out of the years 1 to 9999
        return 0 if text.startswith("0001") else END_OF_TIME_MS


def seconds(name: str, about: str, default: int) -> Parameter:
    """Return a parameter for Unix seconds, read as UTC epoch ms. Times before 1970, which charts may send, become 0."""

    def read(text: str) -> int:
        if not _SIGNED.fullmatch(text):
            raise ValueError
        return max(0, min(int(text) * 1000, END_OF_TIME_MS))

    schema = {"type": "integer", "title": "a whole number of Unix seconds"}
    return Parameter(name=name, about=about, read=read, schema=schema, default=default)


def choice(name: str, about: str, values: Sequence[str], default: str) -> Parameter:
    """Return a parameter with a few allowed values."""

    def read(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    title = f"one of {', '.join(values)}"
    schema = {"type": "string", "enum": list(values), "title": title, "default": default}
    return Parameter(name=name, about=about, read=read, schema=schema, default=default)


def interval(intervals: Mapping[str, Interval]) -> Parameter:
    """Return the parameter for a served interval, read as `Interval`. Intervals may be added to `intervals` later."""

    def read(text: str) -> Interval:
        if text not in intervals:
            raise ValueError
        return intervals[text]

    return Parameter(
        name="interval",
        about="the length of a bar",
        read=read,
        schema={"type": "string", "enum": list(intervals)},
        required=True,
        describe_expected=lambda: f"one of {', '.join(intervals)}",
    )


def numbers() -> Parameter:
    """Return the parameter for the format of numbers, read as flags for `candled.protocol.messages.bar_text`."""
    about = "string: prices and volumes are JSON strings, which keep every digit if your JSON numbers become floats"
    words = choice("numbers", about, tuple(NUMBERS), "number")
    return replace(words, read=lambda text: NUMBERS[words.read(text)], default=NUMBERS["number"])


def text(name: str, about: str, *, values: Sequence[str] = (), required: bool = False) -> Parameter:
    """Return a parameter for any text. `values` are documented but not checked."""
    schema: dict[str, Any] = {"type": "string", "title": about}
    if values:
        schema["enum"] = list(values)
    return Parameter(name=name, about=about, read=str, schema=schema, required=required)
