"""The differences between two readings of the settings, and which of them a running daemon can apply. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from candled.config import Config, ExchangeConfig, contradictions
from candled.settings import Settings

#: The settings that a running daemon can change. Every other one is in `NEEDS_RESTART`.
LIVE = frozenset({
    "intervals",
    "limits.address_work", "limits.api_requests", "limits.api_window", "limits.connection_work",
    "limits.exempt_cached", "limits.headers", "limits.klines_requests", "limits.klines_window", "limits.udf_requests",
    "limits.udf_window", "limits.work_burst", "limits.work_wait",
    "log.level",
    "server.header_timeout", "server.idle_timeout", "server.max_connections", "server.max_connections_per_ip",
    "server.max_handshakes_per_second", "server.max_messages_per_second", "server.max_rooms_per_connection",
    "server.slow_client_timeout", "server.warmup_wait",
})  # fmt: skip
#: The settings that are only read at the start. `exchanges` is the list and the order of the exchanges,
#: `exchanges.*.*` every key of a plugin.
NEEDS_RESTART = frozenset({
    "bus.lease", "bus.prefix", "bus.url",
    "control.socket",
    "exchanges", "exchanges.*.*", "exchanges.*.min_age", "exchanges.*.most", "exchanges.*.plugin", "exchanges.*.proxy",
    "exchanges.*.refresh", "exchanges.*.symbols", "exchanges.*.top",
    "ingest.backfill", "ingest.checkpoint", "ingest.confirm", "ingest.grace_period", "ingest.quiet_after",
    "ingest.shards",
    "klines.enabled", "klines.exchange", "klines.prefix",
    "roles",
    "server.allowed_origins", "server.cache", "server.compress_from", "server.compression", "server.health_details",
    "server.host", "server.internal_host", "server.internal_port", "server.metrics_per_symbol",
    "server.own_sockets", "server.ping_interval", "server.ping_timeout", "server.port", "server.prefix",
    "server.reuse_port", "server.trusted_proxies",
    "store.compress_after", "store.flush_interval", "store.init", "store.journal", "store.journal_limit",
    "store.retention", "store.url",
    "udf.next_time",
})  # fmt: skip


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
    names = list(_changed_names(running, wanted))
    live = tuple(name for name in names if is_live(name))
    merged = _merge(running, wanted, set(live))
    kept = tuple(name for name in names if name not in live)
    problems = tuple(
        f"{problem}; {', '.join(kept)} cannot change before a restart" for problem in contradictions(merged)
    )
    return ReloadPlan(merged, live, kept, problems)


def is_live(name: str) -> bool:
    """Return whether a running daemon can change the setting of this name, such as `exchanges.bitget.symbols`."""
    return _pattern_of(name) in LIVE


def _pattern_of(name: str) -> str:
    """Return the entry of `LIVE` or `NEEDS_RESTART` for a setting."""
    if not name.startswith("exchanges."):
        return name
    key = name.split(".", 2)[2]
    pattern = f"exchanges.*.{key}"
    return pattern if pattern in LIVE | NEEDS_RESTART else "exchanges.*.*"


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
    if [one.name for one in before] != [one.name for one in after]:
        yield "exchanges"
    new = {one.name: one for one in after}
    for one in before:
        if one.name in new:
            changed = _changed_keys(exchange_values(one), exchange_values(new[one.name]))
            yield from (f"exchanges.{one.name}.{key}" for key in changed)


def exchange_values(one: ExchangeConfig) -> dict[str, Any]:
    """Return the values of an exchange's keys: those of the daemon, then those of the plugin."""
    choice = one.choice
    own = {"symbols": choice.patterns, "top": choice.top, "min_age": choice.min_age, "most": choice.most}
    return {**own, "refresh": one.refresh, "plugin": one.plugin, "proxy": one.proxies, **dict(one.settings)}


def _changed_keys(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in {**before, **after} if key not in before or key not in after or before[key] != after[key]]


def _merge(running: Config, wanted: Config, live: set[str]) -> Config:
    """Return the running settings with the new values of those in `live`."""
    update: dict[str, Any] = {}
    for name in type(running).model_fields:
        before, after = getattr(running, name), getattr(wanted, name)
        if name == "exchanges":
            new = {one.name: one for one in after}
            update[name] = tuple(_merge_exchange(one, new.get(one.name, one), live) for one in before)
        elif isinstance(before, Settings):
            keys = [key for key in type(before).model_fields if f"{name}.{key}" in live]
            update[name] = before.model_copy(update={key: getattr(after, key) for key in keys})
        elif name == "intervals" and name in live:
            update[name] = tuple(sorted({*before, *after}))
        elif name in live:
            update[name] = after
    return running.model_copy(update=update)


def _merge_exchange(running: ExchangeConfig, wanted: ExchangeConfig, live: set[str]) -> ExchangeConfig:
    keys = [key for key in ("symbols", "top", "min_age", "most") if f"exchanges.{running.name}.{key}" in live]
    if not keys:
        return running
    new = {
        "patterns" if key == "symbols" else key: value for key, value in exchange_values(wanted).items() if key in keys
    }
    choice = replace(running.choice, **new)
    return replace(running, choice=choice, symbols=choice.named)
