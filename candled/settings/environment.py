"""Settings from environment variables, and the places of keys in messages."""

import difflib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr

from . import Settings, TextOrTexts, is_section
from .yaml_text import NotYaml, read_yaml

_TEXTS = get_args(TextOrTexts)[0]
Keys = Mapping[tuple[str, ...], Any]
"""Each key with its path, and its annotation; those of sections too."""


def keys_of(section: type[Settings], *path: str) -> dict[tuple[str, ...], Any]:
    """Return the keys of a section, which lies at `path`, and of the sections in it."""
    found: dict[tuple[str, ...], Any] = {}
    for key, field in section.model_fields.items():
        found[(*path, key)] = field.annotation
        if is_section(field.annotation):
            found |= keys_of(field.annotation, *path, key)
    return found


def apply_environment(
    raw: Mapping[str, Any], env: Mapping[str, str], prefix: str, keys: Keys, problems: list[str]
) -> dict[str, Any]:
    """Return `raw` with the values of variables such as `CANDLED_SERVER__PORT`, for the prefix `CANDLED_`.

    Two underscores stand between section and key, letters of either case match, and `_` matches `-` too. A value
    is YAML; for a text setting, values that YAML would read as another type are taken literally. An empty
    variable counts as unset. One with the prefix that names no setting is a problem.
    """
    names = {_variable(prefix, path): path for path in keys}
    result: dict[str, Any] = _copied(raw)
    for name in _set_variables(env, prefix):
        path = names.get(_normal(name))
        if path is None:
            problems.append(f"{name}: no such setting{_meant(_normal(name).removeprefix(prefix), prefix, names)}")
            continue
        try:
            env[name].encode()
            value = _environment_value(env[name], keys[path])
        except ValueError:  # not YAML, or not UTF-8
            problems.append(f"{name}: expected YAML, for instance a number, a text or [a, list]")
            continue
        _set(result, path, value)
    return result


def name_places(
    problems: Iterable[str],
    env: Mapping[str, str],
    prefix: str,
    keys: Keys,
    *,
    file: object = "",
    lines: Mapping[str, int] = MappingProxyType({}),
) -> list[str]:
    """Return the problems with the place of each key: `candled.yaml:12: server.port`, or the variable that set it."""
    names = {_variable(prefix, path): ".".join(path) for path in keys}
    variables = {names[_normal(name)]: name for name in _set_variables(env, prefix) if _normal(name) in names}
    return [_with_place(problem, variables, file, lines) for problem in problems]


def _with_place(problem: str, variables: Mapping[str, str], file: object, lines: Mapping[str, int]) -> str:
    """Name the place of the key that a problem begins with, and the variables of other dotted keys in it."""
    where, colon, rest = problem.partition(": ")
    if (key := _nearest(where, variables)) is not None:
        where = f"{where} ({variables[key]})"
    elif (key := _nearest(where, lines)) is not None:
        where = f"{file}:{lines[key]}: {where}"
    for key, name in variables.items():
        if "." in key:
            rest = re.sub(rf"(?<![\w.-]){re.escape(key)}(?![\w.-])", f"{key} ({name})", rest)
    return where + colon + rest


def _nearest(where: str, keys: Iterable[str]) -> str | None:
    """Return the longest key that is equal to `where` or contains it."""
    return max((key for key in keys if re.match(rf"{re.escape(key)}(?![\w-])", where)), key=len, default=None)


def _set_variables(env: Mapping[str, str], prefix: str) -> list[str]:
    """Return the variables with the prefix that are not empty, each section before its keys."""
    mine = [name for name in env if name.upper().startswith(prefix) and env[name].strip()]
    return sorted(mine, key=lambda name: (name.count("__"), name))


def _meant(rest: str, prefix: str, names: Iterable[str]) -> str:
    """Return a hint at the variable that was probably meant: one with the section added, or one of similar spelling."""
    unprefixed = [known for known in names if known.endswith(f"__{rest}")]
    close = unprefixed or difflib.get_close_matches(prefix + rest, list(names), n=1)
    return f", did you mean {close[0]}?" if close else ""


def _variable(prefix: str, path: Iterable[str]) -> str:
    return _normal(prefix + "__".join(path))


def _normal(name: str) -> str:
    return name.upper().replace("-", "_")


def _environment_value(text: str, kind: Any) -> Any:
    takes_list = kind == _TEXTS
    if not (takes_list or kind in (str, SecretStr) or get_origin(kind) is Literal):
        return read_yaml(text)
    try:
        value = read_yaml(text)
    except NotYaml:
        return text
    return value if isinstance(value, str) or (takes_list and isinstance(value, list)) else text


def _copied(value: Any) -> Any:
    return {str(key): _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _set(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *sections, key = path
    for section in sections:
        if raw.get(section) is None:
            raw[section] = {}
        raw = raw[section]
        if not isinstance(raw, dict):
            return  # reading reports that a mapping is expected there
    raw[key] = value
