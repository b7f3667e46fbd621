"""The differences between two readings of the settings, and which of them a running daemon can apply. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from candled.config import Config, ExchangeConfig, contradictions
from candled.config.sections import MEMORY
from candled.settings import Settings

#: The settings that a running daemon can change. `exchanges.*.*` is every key of a plugin. Settings that are neither in
#: this list nor in the next are only read at the start; tests/test_reload.py has them.
LIVE = frozenset({
    "exchanges.*.*", "exchanges.*.min_age", "exchanges.*.most", "exchanges.*.on_demand",
    "exchanges.*.proxy", "exchanges.*.refresh", "exchanges.*.symbols", "exchanges.*.top",
    "intervals",
    "limits.address_work", "limits.api_requests", "limits.api_window", "limits.connection_work",
    "limits.exempt_cached", "limits.headers", "limits.klines_requests", "limits.klines_window", "limits.udf_requests",
    "limits.udf_window", "limits.work_burst", "limits.work_wait",
    "log.level",
    "server.header_timeout", "server.idle_timeout", "server.max_connections", "server.max_connections_per_ip",
    "server.max_handshakes_per_second", "server.max_messages_per_second", "server.max_rooms_per_connection",
    "server.slow_client_timeout", "server.warmup_wait",
})  # fmt: skip
#: The settings that a running daemon can change if it is the only process. `exchanges.*` is a section as a whole.
LIVE_ALONE = frozenset({"exchanges.*", "exchanges.*.plugin"})
_CHOICE = {"symbols": "patterns", "top": "top", "min_age": "min_age", "most": "most"}  # keys → fields of `ChoiceRules`


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """The changes from the running settings to new ones."""

    #: The settings to use from now on: the running ones, with the changes that can be applied.
    config: Config
    #: The names of the changed settings that can be applied, in the order of the file.
    live: tuple[str, ...] = ()
    #: The names of the changed settings that keep their running values until a restart.
    needs_restart: tuple[str, ...] = ()
    #: Contradictions between new values and running ones that need a restart. With any, nothing can be applied.
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadResult:
    """The result of a reload."""

    #: The mistakes in the settings, a line each. With any, the former settings stay in force.
    problems: tuple[str, ...] = ()
    #: The names of the changed settings that are in force now.
    applied: tuple[str, ...] = ()
    #: The names of the changed settings that need a restart.
    needs_restart: tuple[str, ...] = ()


def plan_reload(running: Config, wanted: Config) -> ReloadPlan:
    """Compare the running settings with new ones."""
    is_alone = running.bus.url == MEMORY
    names = list(_changed_names(running, wanted))
    blocked = set() if is_alone else _blocked_choices(running, wanted)
    live = tuple(name for name in names if is_live(name, is_alone=is_alone) and name not in blocked)
    kept = tuple(name for name in names if name not in live)
    merged = _merge(running, wanted, set(live))
    problems = tuple(
        f"{problem}; {', '.join(kept)} cannot change before a restart" for problem in contradictions(merged)
    )
    return ReloadPlan(merged, live, kept, problems)


@dataclass(frozen=True, slots=True)
class ExchangeChanges:
    """The changes from the exchanges of one configuration to those of another."""

    #: The names of the exchanges that are not read any more.
    removed: tuple[str, ...]
    #: New exchanges.
    added: tuple[ExchangeConfig, ...]
    #: Exchanges that are read in another way: another plugin or proxy, other settings of the plugin.
    replaced: tuple[ExchangeConfig, ...]
    #: Exchanges with other rules for their markets.
    chosen: tuple[ExchangeConfig, ...]


def compare_exchanges(before: Config, after: Config) -> ExchangeChanges:
    """Return the exchanges that were removed, added or changed between two configurations."""
    old, new = ({one.name: one for one in config.exchanges} for config in (before, after))
    common = [(old[one.name], one) for one in after.exchanges if one.name in old]
    return ExchangeChanges(
        removed=tuple(name for name in old if name not in new),
        added=tuple(one for one in after.exchanges if one.name not in old),
        replaced=tuple(now for was, now in common if now != _with_markets_of(was, now)),
        chosen=tuple(now for was, now in common if was.choice != now.choice),
    )


def _with_markets_of(was: ExchangeConfig, now: ExchangeConfig) -> ExchangeConfig:
    """Return `was` with the rules for markets of `now`. They can change while the exchange is read."""
    return replace(was, choice=now.choice, symbols=now.symbols, on_demand=now.on_demand)


def is_live(name: str, *, is_alone: bool) -> bool:
    """Return whether a running daemon can change a setting, such as `exchanges.bitget.symbols`.

    `is_alone` is True for a process that shares nothing with others.
    """
    pattern = _pattern_of(name)
    return pattern in LIVE or (is_alone and pattern in LIVE_ALONE)


def _blocked_choices(running: Config, wanted: Config) -> set[str]:
    """Return the keys that choose markets, of each exchange that gets its first pattern or loses its last one.

    Processes that share a bus agree at their start on the exchanges whose markets are chosen by patterns.
    """
    old = {one.name: one for one in running.exchanges}
    changed = [
        one.name
        for one in wanted.exchanges
        if one.name in old and bool(one.choice.wildcards) != bool(old[one.name].choice.wildcards)
    ]
    return {f"exchanges.{name}.{key}" for name in changed for key in _CHOICE}


def _pattern_of(name: str) -> str:
    """Return a setting's entry in `LIVE` or the other lists, with `*` for an exchange's name and a plugin's key."""
    _, _, path = name.partition("exchanges.")
    if not path:
        return name
    key = path.partition(".")[2]
    pattern = f"exchanges.*.{key}" if key else "exchanges.*"
    return pattern if pattern in LIVE | LIVE_ALONE else "exchanges.*.*"


def _changed_names(running: Config, wanted: Config) -> Iterator[str]:
    for name in type(running).model_fields:
        before, after = getattr(running, name), getattr(wanted, name)
        if name == "exchanges":
            yield from _changed_exchanges(before, after)
        elif name == "intervals":
            if not set(after) <= set(before):
                yield name
            if removed := sorted(set(before) - set(after)):
                yield f"{name} (removal of {', '.join(map(str, removed))})"
        elif isinstance(before, Settings):
            yield from (f"{name}.{key}" for key in _changed_keys(dict(before), dict(after)))
        elif before != after:
            yield name


def _changed_exchanges(before: tuple[ExchangeConfig, ...], after: tuple[ExchangeConfig, ...]) -> Iterator[str]:
    if before[0].name != after[0].name:
        yield "exchanges"
    old, new = ({one.name: one for one in group} for group in (before, after))
    for name in {**old, **new}:
        if name in old and name in new:
            changed = _changed_keys(exchange_values(old[name]), exchange_values(new[name]))
            yield from (f"exchanges.{name}.{key}" for key in changed)
        elif name != before[0].name:  # the default one stays
            yield f"exchanges.{name}"


def exchange_values(one: ExchangeConfig) -> dict[str, Any]:
    """Return the values of an exchange's keys: those of the daemon, then those of the plugin."""
    own = {key: getattr(one.choice, name) for key, name in _CHOICE.items()}
    own["on_demand"] = replace(one.on_demand, exclusions=())  # they belong to the symbols
    return {**own, "refresh": one.refresh, "plugin": one.plugin, "proxy": one.proxies, **dict(one.settings)}


def _changed_keys(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in {**before, **after} if key not in before or key not in after or before[key] != after[key]]


def _merge(running: Config, wanted: Config, live: set[str]) -> Config:
    """Return the running settings with the new values of those in `live`."""
    update: dict[str, Any] = {}
    for name in type(running).model_fields:
        before, after = getattr(running, name), getattr(wanted, name)
        if name == "exchanges":
            update[name] = _merge_exchanges(before, after, live)
        elif isinstance(before, Settings):
            keys = [key for key in type(before).model_fields if f"{name}.{key}" in live]
            update[name] = before.model_copy(update={key: getattr(after, key) for key in keys})
        elif name == "intervals" and name in live:
            update[name] = tuple(sorted({*before, *after}))
        elif name in live:
            update[name] = after
    return running.model_copy(update=update)


def _merge_exchanges(
    before: tuple[ExchangeConfig, ...], after: tuple[ExchangeConfig, ...], live: set[str]
) -> tuple[ExchangeConfig, ...]:
    """Return the exchanges in their new order, except that the default one stays and is the first."""
    old, new = ({one.name: one for one in group} for group in (before, after))
    added = {name for name in new.keys() - old.keys() if f"exchanges.{name}" in live}
    removed = {name for name in old.keys() - new.keys() if f"exchanges.{name}" in live}
    order = dict.fromkeys([before[0].name, *(name for name in new if name in old or name in added), *old])
    return tuple(
        new[name] if name in added else _merge_exchange(old[name], new.get(name, old[name]), live)
        for name in order
        if name not in removed
    )


def _merge_exchange(running: ExchangeConfig, wanted: ExchangeConfig, live: set[str]) -> ExchangeConfig:
    """Return an exchange with its new settings, but without those new rules that are not in `live`."""
    rules = {
        name: getattr(wanted.choice, name) for key, name in _CHOICE.items() if f"exchanges.{wanted.name}.{key}" in live
    }
    choice = replace(running.choice, **rules)
    return replace(wanted, choice=choice, symbols=choice.named)
