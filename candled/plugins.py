"""Finds plugins by the entry-point group `candled` and checks each one alone, so that a bad one harms only itself."""

import inspect
import logging
import queue
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

import pluggy

from candled import hookspecs
from candled.errors import CandledError
from candled.exchange import Exchange
from candled.settings import is_section, read_section

logger = logging.getLogger(__name__)

GROUP = "candled"
DAEMON_KEYS = ("symbols", "top", "min_age", "most", "refresh", "plugin", "proxy")
"""The keys under an exchange that are the daemon's, so that no plugin may use them."""

T = TypeVar("T")

_WITHIN_S = 10.0
_BUNDLED = "candled_plugins."
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class PluginError(CandledError):
    """A plugin breaks a rule of docs/how-to/plugins.md; its author can act."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginStatus:
    """The outcome of loading one entry point.

    `error` is one line, None if the plugin is fine; `exchanges` are the names it provides.
    """

    name: str
    distribution: str
    version: str
    ok: bool
    error: str | None = None
    exchanges: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True, slots=True)
class Plugins:
    """All exchanges by name, and one status per plugin found."""

    exchanges: Mapping[str, type[Exchange]]
    statuses: list[PluginStatus]

    def packages(self) -> dict[str, str]:
        """Return the names of the plugins with exchanges by their packages."""
        names = {exchange: one.name for one in self.statuses for exchange in one.exchanges}
        return {_package_of(one): names.get(name, name) for name, one in self.exchanges.items()}


def _package_of(exchange: type[Exchange]) -> str:
    parts = exchange.__module__.split(".")
    return ".".join(parts[: 2 if exchange.__module__.startswith(_BUNDLED) else 1])


class TookTooLong(CandledError):
    """A call of a plugin did not return in time."""


def call_within(seconds: float, call: Callable[[], T], name: str) -> T:
    """Return the result of a call in a thread of its own, which is abandoned if the call never ends.

    Raises:
        TookTooLong: the call did not return within `seconds`.
        BaseException: the call raised it. It may be anything, even SystemExit.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TookTooLong(f"took more than {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def discover(entry_points: Iterable[metadata.EntryPoint] | None = None, *, within_s: float = _WITHIN_S) -> Plugins:
    """Load every plugin that is installed, or `entry_points`, one by one, each within `within_s` seconds.

    An exception in a plugin does not leave this function. It is logged as one warning, with the traceback at debug
    level, and appears in the plugin's status. If two plugins offer an exchange of the same name, an installed one
    replaces the bundled one; otherwise the first one stays.
    """
    if entry_points is None:
        entry_points = metadata.entry_points(group=GROUP)
    exchanges: dict[str, type[Exchange]] = {}
    statuses: list[PluginStatus] = []
    for entry_point in sorted(entry_points, key=lambda one: (_is_bundled(one), one.name, one.value)):
        statuses.append(_load(entry_point, exchanges, within_s))
    return Plugins(exchanges, statuses)


def one_line(error: BaseException) -> str:
    """Return the type and text of an exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())


def _is_bundled(entry_point: metadata.EntryPoint) -> bool:
    return entry_point.value.startswith(_BUNDLED)


def _load(entry_point: metadata.EntryPoint, exchanges: dict[str, type[Exchange]], within_s: float) -> PluginStatus:
    """Add the exchanges of one plugin to `exchanges`."""
    dist = entry_point.dist

    def status(error: str | None, names: Iterable[str] = ()) -> PluginStatus:
        return PluginStatus(
            name=entry_point.name,
            distribution=dist.name if dist else "no distribution",
            version=dist.version if dist else "",
            ok=error is None,
            error=error,
            exchanges=tuple(names),
        )

    try:
        offered = _answer(entry_point, within_s)
        if not _is_bundled(entry_point):
            _refuse_taken(offered, exchanges)
    except PluginError as error:
        logger.warning("plugin %s is not used: %s", status(None), error)
        if error.__cause__ is not None:
            logger.debug("plugin %s:", entry_point.name, exc_info=error.__cause__)
        return status(str(error))
    new = {name: exchange for name, exchange in offered.items() if name not in exchanges}
    for name in offered.keys() - new.keys():
        logger.warning("exchange %s comes from %s instead of candled", name, exchanges[name].__module__)
    exchanges.update(new)
    return status(None, new)


def _answer(entry_point: metadata.EntryPoint, within_s: float) -> dict[str, type[Exchange]]:
    """Return the exchanges of a plugin. A thread of its own imports and calls it, and is abandoned if it never ends.

    Raises:
        PluginError: it breaks the rules of the hooks, raised an exception, or took too long.
    """
    try:
        return call_within(within_s, lambda: read_exchanges(entry_point.load()), f"plugin {entry_point.name}")
    except TookTooLong as error:
        raise PluginError(f"{error} to be imported and to answer; does it wait for something?") from None
    except PluginError:
        raise
    except BaseException as error:
        raise PluginError(one_line(error)) from error


def _refuse_taken(offered: Iterable[str], exchanges: Mapping[str, type[Exchange]]) -> None:
    for name in offered:
        if name in exchanges:
            raise PluginError(f"exchange {name} is offered by {exchanges[name].__module__} already")


def read_exchanges(plugin: object) -> dict[str, type[Exchange]]:
    """Ask a loaded plugin for its exchanges, by name.

    Raises:
        PluginError: it breaks the rules of the hooks.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(" ".join(str(error).split())) from error
    callers = manager.get_hookcallers(plugin)
    if not callers:
        raise PluginError("implements no hook; is the @hookimpl missing?")
    for caller in callers:
        _refuse_async(caller)
    answers = manager.hook.candled_exchanges()
    if not answers:
        raise PluginError("candled_exchanges returned nothing, expected a list of Exchange classes")
    offered: dict[str, type[Exchange]] = {}
    for exchange in _checked(answers[0]):
        if exchange.name in offered:
            raise PluginError(f"offers exchange {exchange.name} twice")
        offered[exchange.name] = exchange
    return offered


def _refuse_async(caller: pluggy.HookCaller) -> None:
    """Refuse async hooks: they are not awaited, so that an endless one cannot block the start."""
    for implementation in caller.get_hookimpls():
        function = implementation.function
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise PluginError(f"{caller.name} is async; hooks are plain functions")


def _checked(answer: object) -> list[type[Exchange]]:
    if inspect.iscoroutine(answer):
        answer.close()  # else Python warns that it was never awaited
    if not isinstance(answer, list | tuple):
        raise PluginError(f"candled_exchanges returned {_what(answer)}, expected a list of Exchange classes")
    for one in answer:
        if not (isinstance(one, type) and issubclass(one, Exchange)):
            raise PluginError(f"candled_exchanges offered {_what(one)}, expected a subclass of candled.Exchange")
        check_exchange(one)
    return list(answer)


def _what(value: object) -> str:
    return f"class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"


def check_exchange(exchange: type[Exchange]) -> None:
    """Check the class of an exchange.

    Raises:
        PluginError: it breaks a rule.
    """
    if missing := sorted(getattr(exchange, "__abstractmethods__", ())):
        raise PluginError(f"{exchange.__name__} does not implement {', '.join(missing)}")
    name = getattr(exchange, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(f"{exchange.__name__}.name is {name!r}, expected lower-case letters, digits, - and _")
    settings: Any = getattr(exchange, "Settings", None)
    _check_settings(exchange.__name__, settings)
    if exchange.make_feed is Exchange.make_feed:
        if exchange.feed_class is None:
            raise PluginError(f"{exchange.__name__} has no feed_class and does not implement make_feed")
        if "ws_url" not in settings.model_fields:
            raise PluginError(f"{exchange.__name__}.Settings has no ws_url for feed_class; add it, or make_feed")


def _check_settings(owner: str, settings: Any) -> None:
    if not is_section(settings):
        raise PluginError(f"{owner}.Settings is no subclass of candled.Settings")
    if taken := [key for key in DAEMON_KEYS if key in settings.model_fields]:
        raise PluginError(f"{owner}.Settings has the key {taken[0]}, which is the daemon's")
    if bare := [key for key, field in settings.model_fields.items() if field.is_required()]:
        raise PluginError(f"{owner}.Settings: every key needs a default, {bare[0]} has none")
    problems: list[str] = []
    read_section(settings, None, f"{owner}.Settings", problems)
    if problems:
        raise PluginError(f"the defaults of {problems[0]}")
