"""The machine behind all settings: dataclass sections, read strictly, every problem reported in one run."""

import dataclasses
import difflib
import re
import types
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import yaml

from candled.model import Interval, Symbol

S = TypeVar("S")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_STARS = "***"


def setting(
    default: Any,
    *,
    help: str,
    at_least: Any = None,
    at_most: Any = None,
    one_of: tuple[Any, ...] | None = None,
    secret: bool = False,
) -> Any:
    """A field of a settings section (a frozen, keyword-only dataclass).

    `help` is one sentence for the operator. `at_least` and `at_most` bound numbers and durations, `one_of` lists all
    values there are, `secret` prints as stars.
    """
    metadata = {"help": help, "at_least": at_least, "at_most": at_most, "one_of": one_of, "secret": secret}
    if isinstance(default, dict | list | set):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# ---------------------------------------------------------------- reading


def read_section(section: type[S], raw: object, path: str, problems: list[str]) -> S:
    """Read a section from what YAML gave. Mistakes are added to `problems`, one line each, and keep the default."""
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        problems.append(f"{path}: expected a mapping of settings, got {_shown(raw)}")
        raw = {}
    fields = {field.name: field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    report_unknown(raw, fields, path, problems)
    hints = get_type_hints(section)
    values = {}
    for name, field in fields.items():
        if name not in raw:
            continue
        where = _join(path, name)
        try:
            value = read_value(hints[name], raw[name], where)
            _check_bounds(value, field.metadata, where)
        except ValueError as error:
            problems.append(str(error))
            continue
        values[name] = value
    return section(**values)


def report_unknown(raw: Mapping[Any, Any], known: Mapping[str, Any], path: str, problems: list[str]) -> None:
    """Name the keys that do not exist, each with the one that was probably meant."""
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            problems.append(
                f"{_join(path, str(key))}: unknown setting" + (f", did you mean {near[0]}?" if near else "")
            )


def read_value(kind: Any, raw: object, where: str) -> Any:
    """Read one value of a type.

    Raises:
        ValueError: its text is the problem's line.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if raw is None and type(None) in args:
            return None
        return read_value(next(arg for arg in args if arg is not type(None)), raw, where)
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise ValueError(f"{where}: expected a list, got {_shown(raw)}")
        return tuple(read_value(args[0], item, f"{where}[{number}]") for number, item in enumerate(raw))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(raw, Mapping):
            raise ValueError(f"{where}: expected a mapping, got {_shown(raw)}")
        return {str(key): read_value(args[1], item, f"{where}.{key}") for key, item in raw.items()}
    if origin is Literal:
        if raw not in args:
            raise ValueError(f"{where}: expected one of {', '.join(map(str, args))}, got {_shown(raw)}")
        return raw
    return _read_scalar(kind, raw, where)


def _read_scalar(kind: Any, raw: object, where: str) -> Any:
    if kind is Any or (kind in (str, bool) and isinstance(raw, kind)):
        return raw
    if kind is int and isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    reader = _READERS.get(kind)
    if reader is None:
        raise ValueError(f"{where}: expected {_NAMES.get(kind, kind.__name__)}, got {_shown(raw)}")
    try:
        if not isinstance(raw, str):
            raise ValueError(f"expected {_NAMES[kind]}, got {_shown(raw)}")
        return reader(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def read_duration(text: str) -> timedelta:
    """Read `250ms`, `10s`, `5m`, `2h`, `30d`.

    Raises:
        ValueError: not of that form.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a duration such as 250ms, 10s, 5m, 2h or 30d, got {text!r}")
    return timedelta(**{_UNIT[match[2]]: float(match[1])})


_READERS: dict[Any, Callable[[str], Any]] = {timedelta: read_duration, Interval: Interval.parse, Symbol: Symbol.parse}
_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    timedelta: "a duration such as 250ms, 10s, 5m, 2h or 30d",
    Interval: "an interval such as 5m or 1D",
    Symbol: "a symbol such as BTC/USDT",
}


def _check_bounds(value: Any, metadata: Mapping[str, Any], where: str) -> None:
    least, most, choice = metadata.get("at_least"), metadata.get("at_most"), metadata.get("one_of")
    if choice is not None and value not in choice:
        near = difflib.get_close_matches(str(value), list(map(str, choice)), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ValueError(f"{where}: expected one of {', '.join(map(str, choice))}, got {_shown(value)}{hint}")
    if least is not None and value < least:
        raise ValueError(f"{where}: at least {plain(least)}, was {plain(value)}")
    if most is not None and value > most:
        raise ValueError(f"{where}: at most {plain(most)}, was {plain(value)}")


# ---------------------------------------------------------------- printing


def section_as_plain(section: Any) -> dict[str, Any]:
    """A section as YAML could hold it, with secrets, and passwords inside URLs, as stars."""
    result = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        secret = field.metadata.get("secret") and value
        result[field.name] = _STARS if secret else plain(value)
    return result


def plain(value: Any) -> Any:
    """A setting's value as text, number or list, such as the operator would write it."""
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, Interval | Symbol):
        return str(value)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, str) and "://" in value:
        return without_password(value)
    return value


def duration_text(value: timedelta) -> str:
    """Print a duration in the largest unit that divides it: `30d`, `90s`, `250ms`."""
    ms = round(value.total_seconds() * 1000)
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms and ms % length == 0:
            return f"{ms // length}{unit}"
    return f"{ms}ms" if ms else "0s"


def without_password(url: str) -> str:
    """The URL with its password as stars."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{_STARS}@{host}"))


# ---------------------------------------------------------------- environment

ENVIRONMENT_PREFIX = "CANDLED_"


def apply_environment(raw: dict[str, Any], environment: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """Lay `CANDLED_SECTION__KEY=value` over what the file says; the value is read as YAML.

    Names are compared without case, and `_` stands for `-` as well. Keys of the file keep their spelling. Names that
    start with `CANDLED_TEST_` are left to the tests.
    """
    result = _copy(raw)
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name.startswith("CANDLED_TEST_"):
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(f"{name}: expected a value in YAML, got {_shown(text)}")
            continue
        keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        section = result
        for key in keys[:-1]:
            spelled = _spelling(key, section)
            if not isinstance(section.get(spelled), dict):
                section[spelled] = {}
            section = section[spelled]
        section[_spelling(keys[-1], section)] = value
    return result


def _spelling(key: str, section: Mapping[str, Any]) -> str:
    return next((known for known in section if str(known).lower().replace("-", "_") == key), key)


def _copy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in raw.items()}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
