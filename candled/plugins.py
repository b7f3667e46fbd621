"""Finds plugins by the entry-point group `candled` and checks each one alone, so that a bad one harms only itself."""

import inspect
import logging
import queue
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from typing import Any, TypeVar

import pluggy

from candled import hookspecs
from candled.errors import CandledError
from candled.exchange import Exchange
from candled.hookspecs import MakeStore
from candled.settings import Settings, is_section, read_section

logger = logging.getLogger(__name__)

GROUP = "candled"
DAEMON_KEYS = ("symbols", "top", "min_age", "most", "on_demand", "refresh", "plugin", "proxy")
"""The keys under an exchange that are the daemon's, so that no plugin may use them."""

T = TypeVar("T")

_WITHIN_S = 10.0
_BUNDLED = "candled_plugins."
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_OWN_SCHEMES = ("sqlite", "postgresql", "postgres")


class PluginError(CandledError):
    """A plugin breaks a rule of docs/how-to/plugins.md; its author can act."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginStatus:
    """The outcome of loading one entry point."""

    #: The name of the entry point.
    name: str
    #: The name of the installed distribution that has it; `no distribution` if it has none.
    distribution: str
    #: The version of the distribution; empty without one.
    version: str
    #: True if the plugin can be used.
    ok: bool
    #: The reason why the plugin cannot be used, on one line; None if it can.
    error: str | None = None
    #: The names of the exchanges that it provides.
    exchanges: tuple[str, ...] = ()
    #: The names of its other hooks.
    hooks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True, slots=True)
class Offers:
    """The answers of one plugin to the hooks that are called once, and its other hooks."""

    #: The classes of exchanges, by name.
    exchanges: Mapping[str, type[Exchange]] = field(default_factory=dict)
    #: The class of the plugin's own settings; None if it has none.
    settings: type[Settings] | None = None
    #: The functions that make a store, by the scheme of its address.
    stores: Mapping[str, MakeStore] = field(default_factory=dict)
    #: pluggy's caller of each hook that it implements, by the hook's name.
    hooks: Mapping[str, pluggy.HookCaller] = field(default_factory=dict)

    def call_hook(self, name: str, **arguments: Any) -> Any:
        """Return the answer to a hook that the plugin implements; None if it has none."""
        return next(iter(self.hooks[name](**arguments)), None)


@dataclass(frozen=True, slots=True)
class Plugins:
    """The plugins that were found, and their offers."""

    #: The classes of all exchanges, by name.
    exchanges: dict[str, type[Exchange]]
    #: The outcome for each plugin that was found, those that cannot be used included.
    statuses: list[PluginStatus]
    #: The offers of the plugins that can be used, by plugin.
    offers: dict[str, Offers] = field(default_factory=dict)

    def with_hook(self, hook: str) -> dict[str, Offers]:
        """Return the plugins that implement a hook."""
        return {name: offers for name, offers in self.offers.items() if hook in offers.hooks}

    @property
    def stores(self) -> dict[str, MakeStore]:
        """The stores of plugins by scheme."""
        return {scheme: make for offers in self.offers.values() for scheme, make in offers.stores.items()}

    @property
    def settings(self) -> dict[str, type[Settings]]:
        """The classes of the plugins' own settings by plugin."""
        return {name: offers.settings for name, offers in self.offers.items() if offers.settings is not None}

    def packages(self) -> dict[str, str]:
        """Return the names of the plugins by their packages."""
        names = {exchange: one.name for one in self.statuses for exchange in one.exchanges}
        found = {_package_of(one.__module__): names.get(name, name) for name, one in self.exchanges.items()}
        for name, offers in self.offers.items():
            for caller in offers.hooks.values():
                for implementation in caller.get_hookimpls():
                    found.setdefault(_package_of(implementation.function.__module__), name)
        return found


def _package_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: 2 if module.startswith(_BUNDLED) else 1])


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
    found = Plugins({}, [], {})
    for entry_point in sorted(entry_points, key=lambda one: (_is_bundled(one), one.name, one.value)):
        found.statuses.append(_load(entry_point, found, within_s))
    return found


def one_line(error: BaseException) -> str:
    """Return the type and text of an exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())


def reason_of(error: BaseException) -> str:
    """Return the text of one of candled's own errors, or the type and text of any other, on one line."""
    return str(error) if isinstance(error, CandledError) else one_line(error)


def _is_bundled(entry_point: metadata.EntryPoint) -> bool:
    return entry_point.value.startswith(_BUNDLED)


def _load(entry_point: metadata.EntryPoint, found: Plugins, within_s: float) -> PluginStatus:
    """Add the offers of one plugin to those that were found before."""
    distribution, version = _name_and_version(entry_point.dist)

    def status(error: str | None, names: Iterable[str] = (), hooks: Iterable[str] = ()) -> PluginStatus:
        return PluginStatus(
            name=entry_point.name,
            distribution=distribution,
            version=version,
            ok=error is None,
            error=error,
            exchanges=tuple(names),
            hooks=tuple(hook for hook in hooks if hook != "candled_exchanges"),
        )

    try:
        offers = _answer(entry_point, within_s)
        if not _is_bundled(entry_point):
            _refuse_taken(offers, found)
    except PluginError as error:
        logger.warning("plugin %s is not used: %s", status(None), error)
        if error.__cause__ is not None:
            logger.debug("plugin %s:", entry_point.name, exc_info=error.__cause__)
        return status(str(error))
    exchanges = found.exchanges
    new = {name: exchange for name, exchange in offers.exchanges.items() if name not in exchanges}
    for name in offers.exchanges.keys() - new.keys():
        logger.warning("exchange %s comes from %s instead of candled", name, exchanges[name].__module__)
    exchanges.update(new)
    found.offers[entry_point.name] = offers
    return status(None, new, offers.hooks)


@lru_cache(maxsize=32)  # a distribution may have many plugins, and reads its whole description for each of these
def _name_and_version(dist: metadata.Distribution | None) -> tuple[str, str]:
    return (dist.name, dist.version) if dist else ("no distribution", "")


def _answer(entry_point: metadata.EntryPoint, within_s: float) -> Offers:
    """Return the offers of a plugin. A thread of its own imports and calls it, and is abandoned if it never ends.

    Raises:
        PluginError: it breaks the rules of the hooks, raised an exception, or took too long.
    """
    try:
        return call_within(within_s, lambda: read_offers(entry_point.load()), f"plugin {entry_point.name}")
    except TookTooLong as error:
        raise PluginError(f"{error} to be imported and to answer; does it wait for something?") from None
    except PluginError:
        raise
    except BaseException as error:
        raise PluginError(one_line(error)) from error


def _refuse_taken(offers: Offers, found: Plugins) -> None:
    for name in offers.exchanges:
        if name in found.exchanges:
            raise PluginError(f"exchange {name} is offered by {found.exchanges[name].__module__} already")
    for scheme in offers.stores:
        if scheme in found.stores:
            raise PluginError(f"a store for {scheme}:// is offered by another plugin already")


def read_exchanges(plugin: object) -> dict[str, type[Exchange]]:
    """Ask a loaded plugin for its exchanges, by name.

    Raises:
        PluginError: it breaks the rules of the hooks.
    """
    offers = read_offers(plugin)
    if "candled_exchanges" not in offers.hooks:
        raise PluginError("has no exchange; it does not implement candled_exchanges")
    return dict(offers.exchanges)


def read_offers(plugin: object) -> Offers:
    """Ask a loaded plugin for its exchanges, settings and stores.

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
    offers = Offers(hooks={caller.name: caller for caller in callers})
    exchanges = _read_exchanges(offers) if "candled_exchanges" in offers.hooks else {}
    settings = offers.call_hook("candled_settings") if "candled_settings" in offers.hooks else None
    if "candled_settings" in offers.hooks:
        _check_settings("candled_settings", settings)
    stores = _read_stores(offers) if "candled_stores" in offers.hooks else {}
    return Offers(exchanges, settings, stores, offers.hooks)


def _read_exchanges(offers: Offers) -> dict[str, type[Exchange]]:
    answer = offers.call_hook("candled_exchanges")
    if answer is None:
        raise PluginError("candled_exchanges returned nothing, expected a list of Exchange classes")
    if inspect.iscoroutine(answer):
        answer.close()  # else Python warns that it was never awaited
    if not isinstance(answer, list | tuple):
        raise PluginError(f"candled_exchanges returned {_what(answer)}, expected a list of Exchange classes")
    offered: dict[str, type[Exchange]] = {}
    for one in answer:
        if not (isinstance(one, type) and issubclass(one, Exchange)):
            raise PluginError(f"candled_exchanges offered {_what(one)}, expected a subclass of candled.Exchange")
        check_exchange(one)
        if one.name in offered:
            raise PluginError(f"offers exchange {one.name} twice")
        offered[one.name] = one
    return offered


def _read_stores(offers: Offers) -> Mapping[str, MakeStore]:
    answer = offers.call_hook("candled_stores")
    if not isinstance(answer, Mapping):
        raise PluginError(f"candled_stores returned {_what(answer)}, expected a mapping of schemes")
    for scheme, make in answer.items():
        if not isinstance(scheme, str) or not _SCHEME.fullmatch(scheme):
            raise PluginError(f"candled_stores: expected a scheme such as duckdb, got {scheme!r}")
        if scheme in _OWN_SCHEMES:
            raise PluginError(f"candled_stores: {scheme}:// is candled's own")
        if not callable(make):
            raise PluginError(f"candled_stores: {scheme} is {_what(make)}, expected a function")
    return answer


def _refuse_async(caller: pluggy.HookCaller) -> None:
    """Refuse async hooks: they are not awaited, so that an endless one cannot block the start."""
    for implementation in caller.get_hookimpls():
        function = implementation.function
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise PluginError(f"{caller.name} is async; hooks are plain functions")


def _what(value: object) -> str:
    return f"class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"


def check_exchange(exchange: type[Exchange]) -> None:
    """Check the class of an exchange.

    Raises:
        PluginError: it breaks a rule.
    """
    if missing := sorted(getattr(exchange, "__abstractmethods__", ())):
        raise PluginError(f"{exchange.__name__} does not implement {', '.join(missing)}")
    if exchange.fetch_history is Exchange.fetch_history and exchange.fetch_rows is Exchange.fetch_rows:
        raise PluginError(f"{exchange.__name__} implements neither fetch_history nor fetch_rows")
    name = getattr(exchange, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(f"{exchange.__name__}.name is {name!r}, expected lower-case letters, digits, - and _")
    settings: Any = getattr(exchange, "Settings", None)
    _check_settings(f"{exchange.__name__}.Settings", settings)
    if taken := [key for key in DAEMON_KEYS if key in settings.model_fields]:
        raise PluginError(f"{exchange.__name__}.Settings has the key {taken[0]}, which is the daemon's")
    if exchange.make_feed is Exchange.make_feed:
        if exchange.feed_class is None:
            raise PluginError(f"{exchange.__name__} has no feed_class and does not implement make_feed")
        if "ws_url" not in settings.model_fields:
            raise PluginError(f"{exchange.__name__}.Settings has no ws_url for feed_class; add it, or make_feed")


def _check_settings(owner: str, settings: Any) -> None:
    if not is_section(settings):
        raise PluginError(f"{owner} is no subclass of candled.Settings")
    if bare := [key for key, one in settings.model_fields.items() if one.is_required()]:
        raise PluginError(f"{owner}: every key needs a default, {bare[0]} has none")
    problems: list[str] = []
    read_section(settings, None, owner, problems)
    if problems:
        raise PluginError(f"the defaults of {problems[0]}")
