"""Settings as frozen dataclasses: read strictly from YAML and environment, printed without secrets."""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import timedelta
from decimal import Decimal
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import yaml

from .model import Interval, Symbol

Section = TypeVar("Section")

STARS = "***"
_KEY = "candled"
_DURATION = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT_US = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(B|KB|MB|GB|KiB|MiB|GiB)")
_SIZES = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "KiB": 2**10, "KB": 10**3, "B": 1}
# Up to the last @: a password may hold an @ that nobody escaped.
_URL_PASSWORD = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*://[^:/?#@]*:).*@", re.DOTALL)
_SECRET_NAMES = "[a-z0-9_.-]*(?:password|passwd|pwd|token|key|secret|signature)="
_QUERY_SECRET = re.compile(f"([?&;#]{_SECRET_NAMES})[^&]*", re.IGNORECASE)
# The same where other words stand around the URL, and where a URL or a libpq "host=… password=…" is misspelt.
_QUOTED_PASSWORD = re.compile(r"((?:[a-z][a-z0-9+.-]*:/*)?[^\s:/?#@]*:)[^\s]*@", re.IGNORECASE)
_QUOTED_SECRET = re.compile(rf"((?:^|[\s?&;#]){_SECRET_NAMES})[^\s&]*", re.IGNORECASE)
_MOST_DEPTH = 50
_MOST_NODES = 100_000


class ByteSize(int):
    """A number of bytes; written `512`, `256MB` (10^6) or `256MiB` (2^20)."""

    def __str__(self) -> str:
        unit = next(unit for unit, size in _SIZES.items() if self % size == 0)
        return f"{int(self) // _SIZES[unit]}{unit}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What `setting` knows of one key."""

    help: str = ""
    at_least: Any = None
    at_most: Any = None
    one_of: tuple[Any, ...] | None = None
    secret: bool = False
    schemes: tuple[str, ...] = ()


def setting(
    default: Any,
    *,
    help: str,
    at_least: Any = None,
    at_most: Any = None,
    one_of: Any = None,
    secret: bool = False,
    schemes: Iterable[str] = (),
) -> Any:
    """Declare one key of a section: a field of a frozen dataclass made with `kw_only=True`.

    The annotation says what may be written: `str`, `int`, `float`, `bool`, `timedelta` (written `250ms`, `10s`, `5m`,
    `2h`, `30d`), `ByteSize` (`256MB`), `Interval`, `Symbol`, `Literal`, `tuple[X, ...]`, `Mapping[str, X]`, another
    section, `X | None`, and `X | tuple[X, ...]`. Bounds are inclusive; they and `one_of` hold for each item of a
    tuple. A URL begins with one of its `schemes`, such as `wss`, and names a host. A secret is printed as stars, and so
    are the passwords, tokens and keys in URLs of any setting.
    """
    rule = Rule(help, at_least, at_most, None if one_of is None else tuple(one_of), secret, tuple(schemes))
    if isinstance(default, dict | list | set):
        return field(default_factory=default.copy, metadata={_KEY: rule})
    return field(default=default, metadata={_KEY: rule})


def rules(section: type[Any]) -> dict[str, Rule]:
    """The keys of a section in order, each with what `setting` was told."""
    return {one.name: one.metadata.get(_KEY, Rule()) for one in fields(section)}


# ---------------------------------------------------------------- YAML


class NotYaml(ValueError):
    """A text cannot be read. `line` counts from 1, None where it is not known; the error repeats no value."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def read_yaml(text: str) -> Any:
    """Read YAML of plain values, in which no key is written twice and nothing contains itself.

    Raises:
        NotYaml: with the reason.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise NotYaml(_without_value(error.problem or ""), mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, ValueError) as error:
        raise NotYaml(" ".join(str(error).split())) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # PyYAML's own, as for `!!bool maybe`
        raise NotYaml("a value is not what its tag says") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML would silently keep the last, and what has no end."""

    _depth = 0

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _refuse_endless(node)
        return node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self._depth > _MOST_DEPTH:
            raise yaml.MarkedYAMLError(None, None, "nested too deeply", parent.start_mark)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key.value} is written twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def _refuse_endless(root: yaml.Node) -> None:
    """An alias can stand inside what it names, and a few lines of aliases can mean millions of values."""
    waiting = [(root, 0)]
    for _ in range(_MOST_NODES):
        if not waiting:
            return
        node, depth = waiting.pop()
        if depth > _MOST_DEPTH:
            raise yaml.MarkedYAMLError(
                None, None, "nested too deeply, or an alias stands inside what it names", node.start_mark
            )
        if isinstance(node, yaml.MappingNode):
            waiting += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(part, depth + 1) for part in node.value]
    raise yaml.MarkedYAMLError(None, None, "too many values", root.start_mark)


def _without_value(problem: str) -> str:
    """PyYAML quotes what it takes for an alias or a tag: that may be a password that begins with * or !."""
    hidden = re.sub(r"(alias|tag) (?:handle )?'.*'", r"\1", problem, flags=re.DOTALL)
    return problem if hidden == problem else f"{hidden}; a text that begins with * or ! needs quotes"


# ---------------------------------------------------------------- reading


def read_section(
    cls: type[Section], raw: object, path: str, problems: list[str], *, beside: Iterable[str] = ()
) -> Section:
    """Read a mapping of YAML values into a section; None means that nothing is set.

    Every mistake adds a line to `problems` that begins with `path` and key; the key's default takes its place. Keys
    named in `beside` are read elsewhere: an unknown key is compared with them too.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        problems.append(f"{path or 'settings'}: expected a mapping of settings, got {_shown(raw)}")
        return cls()
    kinds, known = get_type_hints(cls), rules(cls)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        where = _join(path, key)
        if key not in known:
            problems.append(f"{where}: unknown setting{suggestion(str(key), [*beside, *known])}")
            continue
        before = len(problems)
        read = _read(kinds[key], value, where, problems, known[key])
        if len(problems) == before or _is_section(kinds[key]):  # a section has put its own defaults in
            values[key] = read
    try:
        return cls(**values)
    except ValueError as error:  # raised by the section's own __post_init__
        problems.append(f"{path}: {error}")
        return cls()


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one it resembles, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(wrong, names, n=1)
    if close:
        return f", did you mean {close[0]}?"
    return f"; known: {', '.join(names)}" if names else ""


def _read(kind: Any, raw: object, path: str, problems: list[str], rule: Rule) -> Any:
    """Read one value of the annotated `kind`; what is returned beside a new problem is not used."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_optional(arguments, raw, path, problems, rule)
    if origin is tuple:
        return _read_list(arguments[0], raw, path, problems, rule)
    if origin is not None and origin is not Literal and issubclass(origin, Mapping):
        return _read_mapping(arguments[1], raw, path, problems, rule)
    if _is_section(kind):
        return read_section(cast("type[Any]", kind), raw, path, problems)
    if kind is Any:
        return raw
    if origin is Literal:
        return _checked(raw, path, problems, Rule(one_of=arguments, secret=rule.secret))
    if kind not in _SCALARS:
        raise TypeError(f"{path}: settings cannot be of type {kind}")
    expected, read = _SCALARS[kind]
    try:
        value = read(raw)
    except ValueError as error:
        got = _kind_of(raw) if rule.secret else _shown(raw)
        detail = "" if rule.secret or not str(error) else f": {error}"
        problems.append(f"{path}: expected {expected}, got {got}{detail}")
        return None
    return _checked(value, path, problems, rule)


def _read_optional(kinds: tuple[Any, ...], raw: object, path: str, problems: list[str], rule: Rule) -> Any:
    others = [kind for kind in kinds if kind is not NoneType]
    if _is_one_or_more(kinds):
        return _read(kinds[1] if isinstance(raw, list) else kinds[0], raw, path, problems, rule)
    if len(others) != 1 or len(others) == len(kinds):
        raise TypeError(f"{path}: of unions only X | None and X | tuple[X, ...] can be a setting")
    return None if raw is None else _read(others[0], raw, path, problems, rule)


def _is_one_or_more(kinds: tuple[Any, ...]) -> bool:
    """Whether a union is `X | tuple[X, ...]`."""
    return len(kinds) == 2 and get_origin(kinds[1]) is tuple and get_args(kinds[1])[0] is kinds[0]


def _read_list(kind: Any, raw: object, path: str, problems: list[str], rule: Rule) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        example = f", for instance [{redacted(raw)}]" if isinstance(raw, str) and raw and not rule.secret else ""
        problems.append(f"{path}: expected a list{example}; got {_kind_of(raw) if rule.secret else _shown(raw)}")
        return ()
    return tuple(_read(kind, item, f"{path}[{index}]", problems, rule) for index, item in enumerate(raw))


def _read_mapping(kind: Any, raw: object, path: str, problems: list[str], rule: Rule) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        problems.append(f"{path}: expected a mapping, got {_kind_of(raw) if rule.secret else _shown(raw)}")
        return {}
    return {str(key): _read(kind, value, _join(path, key), problems, rule) for key, value in raw.items()}


def _checked(value: Any, path: str, problems: list[str], rule: Rule) -> Any:
    was = "" if rule.secret else f", was {plain_text(value)}"
    if rule.one_of is not None and value not in rule.one_of:
        problems.append(f"{path}: one of {', '.join(map(plain_text, rule.one_of))}{was}")
    elif rule.at_least is not None and value < rule.at_least:
        problems.append(f"{path}: at least {plain_text(rule.at_least)}{was}")
    elif rule.at_most is not None and value > rule.at_most:
        problems.append(f"{path}: at most {plain_text(rule.at_most)}{was}")
    elif rule.schemes and not _is_url(value, rule.schemes):
        problems.append(f"{path}: a URL that begins with {' or '.join(f'{one}://' for one in rule.schemes)}{was}")
    return value


def _is_url(text: str, schemes: Iterable[str]) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        return False


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("put it in quotes" if isinstance(raw, int | float) else "")
    return raw


def _whole(raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise ValueError
    return raw


def _number(raw: object) -> float:
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        raise ValueError
    try:
        value = float(raw)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(value):
        raise ValueError
    return value


def _yes_or_no(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError
    return raw


def _duration(raw: object) -> timedelta:
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        raise ValueError(f"a unit is missing, write {raw}s if seconds are meant")
    match = _DURATION.fullmatch(raw) if isinstance(raw, str) else None
    if match is None:
        raise ValueError
    microseconds = Decimal(match[1]) * _UNIT_US[match[2]]
    if microseconds != int(microseconds):
        raise ValueError("finer than a microsecond")
    try:
        return timedelta(microseconds=int(microseconds))
    except OverflowError:
        raise ValueError("too long") from None


def _byte_size(raw: object) -> ByteSize:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return ByteSize(raw)
    match = _SIZE.fullmatch(raw) if isinstance(raw, str) else None
    if match is None:
        raise ValueError
    return ByteSize(Decimal(match[1]) * _SIZES[match[2]])


def _symbol(raw: object) -> Symbol:
    if not isinstance(raw, str):
        raise ValueError
    try:
        return Symbol.parse(raw)
    except ValueError:
        raise ValueError from None  # its text repeats what ours says


def _interval(raw: object) -> Interval:
    if not isinstance(raw, str):
        raise ValueError
    return Interval.parse(raw)


_SCALARS: dict[Any, tuple[str, Callable[[object], Any]]] = {
    str: ("text", _text),
    int: ("a whole number", _whole),
    float: ("a number", _number),
    bool: ("true or false", _yes_or_no),
    timedelta: ("a duration such as 250ms, 10s, 5m, 2h or 30d", _duration),
    ByteSize: ("a size in bytes such as 256MB or 1GiB", _byte_size),
    Symbol: ("BASE/QUOTE such as BTC/USDT", _symbol),
    Interval: ("an interval such as 5m or 1D", _interval),
}


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind) and kind not in _SCALARS


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _kind_of(raw: object) -> str:
    if raw is None:
        return "nothing"
    if isinstance(raw, Mapping):
        return "a mapping"
    if isinstance(raw, list):
        return "a list"
    return "text" if isinstance(raw, str) else "another value"


def _shown(raw: object) -> str:
    """A wrong value for a message: short, and without passwords."""
    if raw is None or isinstance(raw, Mapping | list):
        return _kind_of(raw)
    text = redacted(plain_text(raw))
    text = text if len(text) <= 80 else text[:80] + "…"
    return repr(text) if isinstance(raw, str) else text


# ---------------------------------------------------------------- printing


def section_as_plain(instance: Any, *, redact: bool = True) -> dict[str, Any]:
    """The section as YAML values that `read_section` reads back; with `redact`, secrets and passwords are stars."""
    known = rules(type(instance))
    return {
        name: STARS if redact and rule.secret and getattr(instance, name) else _plain(getattr(instance, name), redact)
        for name, rule in known.items()
    }


def without_passwords(text: str) -> str:
    """The text with stars for passwords, tokens and keys, if it is a URL that holds some."""
    return _QUERY_SECRET.sub(rf"\1{STARS}", _URL_PASSWORD.sub(rf"\1{STARS}@", text))


def redacted(message: str) -> str:
    """A message with stars for what looks like a password in the URLs it quotes, well formed or not."""
    return _QUOTED_SECRET.sub(rf"\1{STARS}", _QUOTED_PASSWORD.sub(rf"\1{STARS}@", message))


def plain_text(value: Any) -> str:
    """A value as it is written in the settings, without passwords."""
    plain = _plain(value, redact=True)
    return ("true" if plain else "false") if isinstance(plain, bool) else str(plain)


def _plain(value: Any, redact: bool) -> Any:
    if isinstance(value, str):
        return without_passwords(value) if redact else value
    if isinstance(value, timedelta):
        return _duration_text(value)
    if isinstance(value, ByteSize | Interval | Symbol):
        return str(value)
    if is_dataclass(value):
        return section_as_plain(value, redact=redact)
    if isinstance(value, tuple | list):
        return [_plain(item, redact) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, redact) for key, item in value.items()}
    return value


def _duration_text(duration: timedelta) -> str:
    microseconds = duration // timedelta(microseconds=1)
    if microseconds == 0:
        return "0s"
    unit = next((unit for unit, size in _UNIT_US.items() if microseconds % size == 0), None)
    if unit is None:
        return f"{Decimal(microseconds) / 1000}ms"
    return f"{microseconds // _UNIT_US[unit]}{unit}"


# ---------------------------------------------------------------- environment

Kinds = Mapping[str, Any]
"""Which keys there are: each maps to its annotation, or to the `Kinds` below it."""


def kinds_of(section: type[Any]) -> dict[str, Any]:
    """The keys of a section and of the sections in it."""
    return {
        key: kinds_of(cast("type[Any]", kind)) if _is_section(kind) else kind
        for key, kind in get_type_hints(section).items()
        if key in rules(section)
    }


def apply_environment(
    raw: Mapping[str, Any], env: Mapping[str, str], prefix: str, kinds: Kinds, problems: list[str]
) -> dict[str, Any]:
    """Return `raw` with what variables such as `CANDLED_SERVER__PORT` set, for the prefix `CANDLED_`.

    Two underscores stand between section and key, letters of either case match, and `_` matches `-` too. A value
    is YAML; where the setting is text, whatever YAML would take for something else is taken literally. An empty
    variable counts as unset. One with the prefix that names no setting is a problem.
    """
    names = {_normal(name): path for name, path in _paths(kinds, prefix)}
    result: dict[str, Any] = _copied(raw)
    for name in _set_variables(env, prefix):
        path = names.get(_normal(name))
        if path is None:
            problems.append(f"{name}: no such setting{_meant(_normal(name).removeprefix(prefix), prefix, names)}")
            continue
        try:
            value = _environment_value(env[name], _kind_at(kinds, path))
        except NotYaml:
            problems.append(f"{name}: expected YAML, for instance a number, a text or [a, list]")
            continue
        _set(result, path, value)
    return result


def name_variables(problems: Iterable[str], env: Mapping[str, str], prefix: str, kinds: Kinds) -> list[str]:
    """The problems, with the variable in brackets behind each key that it set: `server.port (CANDLED_SERVER__PORT)`."""
    names = {_normal(name): ".".join(path) for name, path in _paths(kinds, prefix)}
    variables = {names[_normal(name)]: name for name in _set_variables(env, prefix) if _normal(name) in names}
    return [_with_variables(problem, variables) for problem in problems]


def _with_variables(problem: str, variables: Mapping[str, str]) -> str:
    """A problem begins with its key, which may lie within what a variable set; other keys are dotted words in it."""
    where, colon, rest = problem.partition(": ")
    nearest = max((key for key in variables if re.match(rf"{re.escape(key)}(?![\w-])", where)), key=len, default=None)
    if nearest is not None:
        where = f"{where} ({variables[nearest]})"
    for key, name in variables.items():
        if "." in key:
            rest = re.sub(rf"(?<![\w.-]){re.escape(key)}(?![\w.-])", f"{key} ({name})", rest)
    return where + colon + rest


def _set_variables(env: Mapping[str, str], prefix: str) -> list[str]:
    """The variables with the prefix that are not empty; of two for one setting the more precise comes later."""
    mine = [name for name in env if name.upper().startswith(prefix) and env[name].strip()]
    return sorted(mine, key=lambda name: (name.count("__"), name))


def _paths(kinds: Kinds, name: str, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    for key, kind in kinds.items():
        yield f"{name}{key}", (*path, key)
        if isinstance(kind, Mapping):
            yield from _paths(kind, f"{name}{key}__", (*path, key))


def _meant(rest: str, prefix: str, names: Iterable[str]) -> str:
    """The variable that was probably meant: its section forgotten, or another one that looks like it."""
    forgotten = [known for known in names if known.endswith(f"__{rest}")]
    close = forgotten or difflib.get_close_matches(prefix + rest, list(names), n=1)
    return f", did you mean {close[0]}?" if close else ""


def _normal(name: str) -> str:
    return name.upper().replace("-", "_")


def _kind_at(kinds: Kinds, path: tuple[str, ...]) -> Any:
    kind: Any = kinds
    for key in path:
        kind = kind[key]
    return kind


def _environment_value(text: str, kind: Any) -> Any:
    takes_list = kind == str | tuple[str, ...]
    if kind is not str and not takes_list:
        return read_yaml(text)
    try:
        value = read_yaml(text)
    except NotYaml:
        return text
    return value if isinstance(value, str) or (takes_list and isinstance(value, list)) else text


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _set(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *sections, key = path
    for section in sections:
        if raw.get(section) is None:
            raw[section] = {}
        raw = raw[section]
        if not isinstance(raw, dict):
            return  # reading will say that a mapping is expected there
    raw[key] = value
