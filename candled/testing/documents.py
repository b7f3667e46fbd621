"""JSON documents of an exchange: the places of their values, and times in any form."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from candled.model import DAY_MS

Path = tuple[str | int, ...]
"""The keys and indexes that lead to a value."""

_decode = msgspec.json.Decoder(float_hook=Decimal).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode
_DATE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
_DATE_LENGTH = 19
# How many units a millisecond has, and the name of the unit.
_UNITS = (
    (Decimal("0.001"), "seconds"),
    (Decimal(1), "milliseconds"),
    (Decimal(1000), "microseconds"),
    (Decimal(10**6), "nanoseconds"),
)


def parse_document(text: str | bytes) -> Any:
    """Return the document in a text, with every digit of its numbers; None if it is not JSON."""
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def write_document(document: Any) -> str:
    """Return a document as text."""
    return _encode(document).decode()


def list_values(document: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every value of a document that is neither an object nor a list, with its place."""
    if not isinstance(document, dict | list):
        yield path, document
        return
    for key, value in _items_of(document):
        yield from list_values(value, (*path, key))


def list_lists(document: Any, path: Path = ()) -> Iterator[tuple[Path, list[Any]]]:
    """Yield every list of a document, with its place."""
    if isinstance(document, list):
        yield path, document
    if isinstance(document, dict | list):
        for key, value in _items_of(document):
            yield from list_lists(value, (*path, key))


def _items_of(document: dict[str, Any] | list[Any]) -> Iterable[tuple[str | int, Any]]:
    return document.items() if isinstance(document, dict) else enumerate(document)


def with_value(document: Any, path: Path, value: Any) -> Any:
    """Return a copy of a document with another value at a place."""
    if not path:
        return value
    copy: Any = list(document) if isinstance(document, list) else dict(document)
    copy[path[0]] = with_value(copy[path[0]], path[1:], value)
    return copy


@dataclass(frozen=True, slots=True)
class Time:
    """A time, and the form in which the exchange writes it."""

    #: UTC epoch milliseconds.
    at_ms: int
    #: The unit of a number, or "ISO 8601".
    unit: str
    #: Return the value of another time, in the same form.
    write: Callable[[int], Any]


def read_number(value: Any) -> Decimal | None:
    """Return the finite number in a value; None if it has none."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    try:
        number = Decimal(value)
    except ArithmeticError:
        return None
    return number if number.is_finite() else None


def read_time(value: Any, near_ms: int, within_ms: int = DAY_MS) -> Time | None:
    """Return the time in a value, if it is one within `within_ms` of `near_ms`."""
    if isinstance(value, str) and _DATE.match(value):
        return _read_date(value, near_ms, within_ms)
    number = read_number(value)
    if number is None:
        return None
    for scale, unit in _UNITS:
        at_ms = number / scale
        if abs(at_ms - near_ms) <= within_ms:
            rest = at_ms - int(at_ms)

            def write(at_ms: int, scale: Decimal = scale, rest: Decimal = rest) -> Any:
                written = (at_ms + rest) * scale
                return type(value)(int(written) if written == int(written) else written.normalize())

            return Time(int(at_ms), unit, write)
    return None


def _read_date(value: str, near_ms: int, within_ms: int) -> Time | None:
    head, tail = value[:_DATE_LENGTH], value[_DATE_LENGTH:]
    try:
        at_ms = round(datetime.fromisoformat(head).replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        return None
    if abs(at_ms - near_ms) > within_ms:
        return None
    separator = head[10]

    def write(at_ms: int) -> str:
        return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%d{separator}%H:%M:%S}{tail}"

    return Time(at_ms, "ISO 8601", write)


class TimedDocument:
    """A document with times, to be written for other minutes. Its times are those within a day of `near_ms`."""

    def __init__(self, document: Any, near_ms: int) -> None:
        self._document = document
        self._near_ms = near_ms
        found = ((path, read_time(value, near_ms)) for path, value in list_values(document))
        self._times = [(path, time) for path, time in found if time is not None]

    def at(self, at_ms: int) -> Any:
        """Return a copy whose times are as far from `at_ms` as those of the document are from `near_ms`."""
        document = self._document
        for path, time in self._times:
            document = with_value(document, path, time.write(time.at_ms + at_ms - self._near_ms))
        return document
