"""The exchange of a plugin by the plugin's name or module, installed or not, for commands about one plugin."""

import importlib
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from candled.errors import ConfigError
from candled.exchange import Clock, Exchange
from candled.plugins import GROUP, PluginError, one_line, read_exchanges
from candled.settings import read_section


def load_exchanges(name: str) -> dict[str, type[Exchange]]:
    """Return the exchanges of a plugin by their names.

    `name` is that of an installed plugin, or of a module that can be imported, also from the current directory.

    Raises:
        ConfigError: there is no such plugin or module, or it breaks the rules of the hooks.
    """
    try:
        installed = metadata.entry_points(group=GROUP, name=name)
        return read_exchanges(next(iter(installed)).load() if installed else _import_module(name))
    except PluginError as error:
        raise ConfigError(f"{name}: {error}") from error
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{name}: {one_line(error)}") from error
        raise ConfigError(f"{name}: no such plugin or module; `candled plugins` lists the plugins") from None
    except (Exception, SystemExit) as error:  # a plugin may raise anything, even SystemExit
        raise ConfigError(f"{name}: {one_line(error)}") from error


def _import_module(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def choose_exchange(name: str, exchange: str | None = None) -> type[Exchange]:
    """Return the only exchange of a plugin, or the one that `exchange` names.

    Raises:
        ConfigError: as `load_exchanges`, or there is no such exchange, or several and no name.
    """
    offered = load_exchanges(name)
    if exchange is None and len(offered) == 1:
        return next(iter(offered.values()))
    if exchange in offered:
        return offered[exchange]
    got = "several exchanges" if exchange is None else exchange
    raise ConfigError(f"{name}: expected --exchange with one of {', '.join(offered)}, got {got}")


def make_exchange(kind: type[Exchange], assignments: Iterable[str], clock: Clock) -> Exchange:
    """Return an instance with its default settings, changed by assignments such as `ws_url=wss://…`, values in YAML.

    Raises:
        ConfigError: an assignment is wrong, or the exchange cannot be created.
    """
    raw: dict[str, Any] = {}
    problems: list[str] = []
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        if not sign:
            problems.append(f"--set: expected KEY=VALUE, got {assignment}")
            continue
        try:
            raw[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            problems.append(f"--set {key}: expected a value in YAML, got {value}")
    settings = read_section(kind.Settings, raw, "--set", problems)
    if problems:
        raise ConfigError(problems)
    try:
        return kind(settings, clock)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a plugin may raise anything, even SystemExit
        raise ConfigError(f"{kind.name}: {one_line(error)}") from error
