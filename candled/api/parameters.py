"""Query parameters: declared once, read strictly, and described in OpenAPI by the same declaration."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from candled.model import Interval, parse_iso_ms
from candled.protocol.messages import NUMBERS

from .errors import ApiError, shown
from .pages import EVER_MS

_WHOLE = re.compile(r"[0-9]{1,18}")
_SIGNED = re.compile(r"-?[0-9]{1,15}")
_RFC3339 = re.compile(
    r"(\d{4})-\d\d-\d\d[Tt]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:[Zz]|[+ -]\d\d:\d\d)?|(\d{4})-\d\d-\d\d", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One query parameter. `read` raises `ValueError` with what was expected; `schema` is its JSON schema."""

    name: str
    about: str
    read: Callable[[str], Any]
    schema: Mapping[str, Any]
    default: Any = None
    required: bool = False
    example: Any = field(default=None)


def read_query(parameters: Sequence[Parameter], query: Mapping[str, Sequence[bytes]]) -> dict[str, Any]:
    """Return the values of all `parameters`; what the query has beside them is ignored.

    Raises:
        Refusal: one is missing, there twice, no text, or not what was expected; the first of them is named.
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
    """Refuse a query with another parameter than these: a misspelled one would change the answer unnoticed.

    Raises:
        Refusal: there is one; the first is named.
    """
    names = [parameter.name for parameter in parameters]
    for name in query:
        if name not in names:
            known = f"expected {', '.join(names)}" if names else "this path has no parameters"
            raise ApiError(400, "unknown_parameter", f"{shown(name)[1:-1]}: unknown parameter, {known}")


def _expected(parameter: Parameter) -> str:
    return str(parameter.schema.get("title") or parameter.about)


# ---------------------------------------------------------------- kinds


def whole(name: str, about: str, at_least: int, at_most: int, default: int | None = None) -> Parameter:
    """A whole number, digits only."""

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
    return Parameter(name=name, about=about, read=read, schema=schema, default=default)


def moment(name: str, about: str, default: int | None = None) -> Parameter:
    """A time, ISO 8601 or UTC epoch milliseconds; read as the latter. What lies before 1970 is 1970."""
    schema = {
        "title": "an ISO 8601 time such as 2024-10-24T10:00:00Z, or UTC epoch milliseconds",
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": EVER_MS},
            {"type": "string", "format": "date-time"},
        ],
    }
    return Parameter(name=name, about=about, read=read_moment, schema=schema, default=default)


def read_moment(text: str) -> int:
    """UTC epoch milliseconds of a time that is written as such or as ISO 8601.

    Raises:
        ValueError: neither, or later than any candle.
    """
    if _WHOLE.fullmatch(text):
        at_ms = int(text)
        if at_ms > EVER_MS:
            raise ValueError
        return at_ms
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError
    if (match[1] or match[2]) == "0000":  # RFC 3339 has that year, Python has not
        return 0
    try:
        # a + that nobody escaped arrives as a space
        return max(0, min(parse_iso_ms(text.upper().replace(",", ".").replace(" ", "+")), EVER_MS))
    except OverflowError:  # the first or last day of all years, moved out of them by its offset
        return 0 if text.startswith("0001") else EVER_MS


def seconds(name: str, about: str, default: int) -> Parameter:
    """A time in Unix seconds; read as UTC epoch milliseconds. What lies before 1970, as charts ask for it, is 1970."""

    def read(text: str) -> int:
        if not _SIGNED.fullmatch(text):
            raise ValueError
        return max(0, min(int(text) * 1000, EVER_MS))

    schema = {"type": "integer", "title": "a whole number of Unix seconds"}
    return Parameter(name=name, about=about, read=read, schema=schema, default=default)


def choice(name: str, about: str, values: Sequence[str], default: str | None = None, **more: Any) -> Parameter:
    """One of a few words."""

    def read(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    schema: dict[str, Any] = {"type": "string", "enum": list(values), "title": f"one of {', '.join(values)}"}
    if default is not None:
        schema["default"] = default
    return Parameter(name=name, about=about, read=read, schema=schema, default=default, **more)


def interval(name: str, intervals: Mapping[str, Interval], **more: Any) -> Parameter:
    """One of the served intervals, read as `Interval`."""

    def read(text: str) -> Interval:
        if text not in intervals:
            raise ValueError
        return intervals[text]

    schema = {"type": "string", "enum": list(intervals), "title": f"one of {', '.join(intervals)}"}
    return Parameter(name=name, about="the length of a bar", read=read, schema=schema, required=True, **more)


def numbers() -> Parameter:
    """How numbers of bars are written; read as what `candled.protocol.messages.bar_text` takes."""
    about = "string: prices and volumes are JSON strings, which keep every digit where JSON numbers become floats"
    words = choice("numbers", about, tuple(NUMBERS), "number")
    return replace(words, read=lambda text: NUMBERS[words.read(text)], default=NUMBERS["number"])


def text(name: str, about: str, *, values: Sequence[str] = (), required: bool = False) -> Parameter:
    """Any text; `values` are those that mean something, which whoever reads it checks."""
    schema: dict[str, Any] = {"type": "string", "title": about}
    if values:
        schema["enum"] = list(values)
    return Parameter(name=name, about=about, read=str, schema=schema, required=required)
