"""The commands of plugins, `candled NAME …`."""

import inspect
import logging
import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from importlib import metadata
from typing import Any

import typer

from candled.errors import ConfigError

from .options import Outcome

logger = logging.getLogger(__name__)

_HEADING = "Plugins"


@cache
def find_commands() -> dict[str, Any]:
    """Return the command, or the group of commands, of each plugin that has some. A bad one is left out and logged."""
    others = [one for one in metadata.entry_points(group="candled") if not one.value.startswith("candled_plugins.")]
    if not others:  # the bundled plugins have no commands, and need many libraries
        return {}
    from candled.plugins import PluginError, discover, reason_of

    found: dict[str, Any] = {}
    for name, offers in discover(others).with_hook("candled_commands").items():
        try:
            answer = offers.call_hook("candled_commands")
            if not isinstance(answer, typer.Typer):
                raise PluginError(f"candled_commands returned {type(answer).__name__}, expected a typer.Typer")
            command = typer.main.get_command(answer)
        except BaseException as error:  # a plugin may raise anything, even SystemExit
            logger.warning("plugin %s: its commands cannot be used: %s", name, reason_of(error))
            continue
        command.name = name
        command.rich_help_panel = _HEADING  # type: ignore[attr-defined]
        _bind(name, command)
        found[name] = command
    return found


def _bind(plugin: str, command: Any) -> None:
    """Let the commands return themselves with their arguments, as candled's own do, to be run by `candled.cli.main`."""
    for inner in getattr(command, "commands", {}).values():
        _bind(plugin, inner)
    if not getattr(command, "commands", None) and command.callback is not None:
        command.callback = _bound(plugin, command.callback)


def _bound(plugin: str, function: Callable[..., Any]) -> Callable[..., "partial[Outcome]"]:
    @wraps(function)
    def bind(*arguments: Any, **options: Any) -> "partial[Outcome]":
        return partial(_run, plugin, partial(function, *arguments, **options))

    return bind


def _run(plugin: str, call: Callable[[], Any]) -> Outcome:
    """Run a command of a plugin; return its exit status. An error in it is a line with the plugin's name."""
    try:
        outcome = call()
    except (ConfigError, typer.Exit, typer.TyperException):
        raise
    except Exception as error:
        from candled.plugins import one_line

        logger.debug("plugin %s:", plugin, exc_info=True)
        print(f"candled: plugin {plugin}: {one_line(error)}", file=sys.stderr)
        return 1
    return outcome if isinstance(outcome, int) or inspect.iscoroutine(outcome) else 0
