"""The operator's settings: one reading, every problem reported together."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, PrivateAttr

from candled.errors import CandledError, ConfigError
from candled.exchange import Clock, Exchange
from candled.hookspecs import MakeStore
from candled.model import DEFAULT_INTERVALS, Symbol
from candled.plugins import DAEMON_KEYS, Plugins, TookTooLong, call_within, one_line
from candled.proxies import Proxies
from candled.settings import (
    STARS,
    Distinct,
    Settings,
    Written,
    WrittenInterval,
    as_written,
    read_section,
    redacted,
    setting,
    suggestion,
)
from candled.settings.environment import Keys, apply_environment, keys_of, name_places
from candled.settings.yaml_text import NotYaml, read_yaml
from candled.store import make_store as make_store_at
from candled.store.interface import Store
from candled.universe_choice import ChoiceRules, DemandRules

from .sections import (
    KNOWN_STORES,
    MEMORY,
    ROLES,
    AccessSettings,
    BusSettings,
    ControlSettings,
    ExchangeKeys,
    IngestSettings,
    KlinesSettings,
    LimitSettings,
    LogSettings,
    ServerSettings,
    StoreSettings,
    UdfSettings,
)

logger = logging.getLogger(__name__)

_CREATED_WITHIN_S = 10.0  # the constructor of an exchange

ENVIRONMENT = "CANDLED_"

_DEFAULT_EXCHANGES = {"bitget": None}
EXCHANGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Kubernetes gives every pod the addresses of services called `candled` and `candled-…` in these variables
# (kubernetes.io/docs, "Accessing the Service", environment variables); the test suite has its own names.
_FOREIGN_VARIABLES = re.compile(
    r"CANDLED_TEST_|CANDLED_(?:[A-Z0-9]+_)*?"
    r"(?:SERVICE_(?:HOST=|PORT(?:_[A-Z0-9_]+)?=\d+$)|PORT=\w+://|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?=)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    """One configured exchange."""

    #: the exchange's name in the settings, in addresses and in answers
    name: str
    #: the class of the exchange, which a plugin offers
    plugin: type[Exchange]
    #: the markets that are named one by one
    symbols: tuple[Symbol, ...]
    #: the exchange's own settings, an instance of `plugin.Settings`
    settings: Any
    #: the rules for the markets, those in `symbols` included
    choice: ChoiceRules = ChoiceRules(patterns=())
    #: the rules for markets that clients ask for
    on_demand: DemandRules = DemandRules()
    #: the proxies of the section's `proxy`, or of the environment
    proxies: Proxies = Proxies()
    #: how often the list of markets is read
    refresh: timedelta = timedelta(minutes=30)


class Config(Settings):
    """All settings. `exchanges` are in the order of the file: the first is the default of the wire protocol."""

    server: ServerSettings = setting(ServerSettings(), "how clients reach the server")
    roles: Distinct[Literal["ingest", "serve"]] = setting(ROLES, "the work of this process")
    exchanges: Annotated[tuple[ExchangeConfig, ...], Written("a mapping by name", tuple, {})] = setting(
        (), "the exchanges, by name; the first is the default one"
    )
    intervals: Annotated[Distinct[WrittenInterval], AfterValidator(lambda given: tuple(sorted(given)))] = setting(
        tuple(map(str, DEFAULT_INTERVALS)), "the lengths of bars that are served", min_length=1
    )
    limits: LimitSettings = setting(LimitSettings(), "how many HTTP requests one address may make")
    udf: UdfSettings = setting(UdfSettings(), "TradingView's charts")
    klines: KlinesSettings = setting(KlinesSettings(), "Binance's klines")
    ingest: IngestSettings = setting(IngestSettings(), "how candles are taken from exchanges")
    store: StoreSettings = setting(StoreSettings(), "where candles are kept")
    bus: BusSettings = setting(BusSettings(), "the bus between ingest and serve")
    control: ControlSettings = setting(ControlSettings(), "access for commands")
    access: AccessSettings = setting(AccessSettings(), "the tokens that clients need")
    log: LogSettings = setting(LogSettings(), "the log")
    plugins: Annotated[Mapping[str, Any], Written("a mapping by plugin", dict, {})] = setting(
        {}, "the settings of plugins that are no exchange, by the plugin's name"
    )
    # makes the store, if its scheme is that of a plugin
    _make_store: MakeStore | None = PrivateAttr(None)

    @property
    def store_maker(self) -> MakeStore | None:
        """The plugin's function that makes the store; None if the store is candled's own."""
        return self._make_store

    def use_store_of_plugin(self, make: MakeStore) -> None:
        """Make the store by the function of a plugin. Call this only while the settings are read."""
        self._make_store = make

    @property
    def demand_rules(self) -> Mapping[str, DemandRules]:
        """The rules for the markets on demand of each exchange."""
        return {one.name: one.on_demand for one in self.exchanges}


def control_socket(path: Path | None, env: Mapping[str, str]) -> str:
    """Return `control.socket` of a file and the environment, even if other settings are wrong.

    Raises:
        ConfigError: the file cannot be read, or this setting is wrong.
    """
    problems: list[str] = []
    raw = {} if path is None else _read_file(path, {})
    own = {"control": raw.get("control")}
    keys = {key: kind for key, kind in keys_of(Config).items() if key[0] == "control"}
    own_names = (f"{ENVIRONMENT}CONTROL", f"{ENVIRONMENT}CONTROL__SOCKET")
    variables = {name: value for name, value in env.items() if name.upper() in own_names}
    own = apply_environment(own, variables, ENVIRONMENT, keys, problems)
    settings = read_section(ControlSettings, own["control"], "control", problems)
    if problems:
        raise ConfigError(problems)
    return settings.socket


def load(path: Path | None, env: Mapping[str, str], plugins: Plugins) -> Config:
    """Read the settings from a file (None: all defaults) and from variables such as `CANDLED_SERVER__PORT`.

    Raises:
        ConfigError: with one line per problem, all of them in one run.
    """
    problems: list[str] = []
    lines: dict[str, int] = {}
    raw = {} if path is None else _read_file(path, lines)
    variables = {name: value for name, value in env.items() if not _FOREIGN_VARIABLES.match(f"{name}={value}")}
    keys = _keys(raw, plugins)
    raw = apply_environment(raw, variables, ENVIRONMENT, keys, problems)
    exchanges = _read_exchanges(raw.pop("exchanges", None), env, plugins, problems)
    own = _read_plugins(raw.pop("plugins", None), plugins, problems)
    config = read_section(Config, raw, "", problems).model_copy(update={"exchanges": exchanges, "plugins": own})
    _find_store(config, plugins, problems)
    problems += contradictions(config)
    if problems:
        raise ConfigError(name_places(problems, variables, ENVIRONMENT, keys, file=path, lines=lines))
    return config


def config_warnings(config: Config) -> list[str]:
    """Return warnings about settings that work in one process but not in several, a line each."""
    if config.bus.url == MEMORY or not config.store.url.startswith("sqlite:"):
        return []
    return [
        "store.url: SQLite is one process's file; where several processes share bus.url only the one that leads stores "
        "candles, and the others find gaps in their files: give all of them the same postgresql://"
    ]


def make_exchange(config: ExchangeConfig, clock: Clock) -> Exchange:
    """Return an instance of a configured exchange.

    Raises:
        ConfigError: its constructor failed, or did not return within 10 seconds.
    """
    try:
        return call_within(_CREATED_WITHIN_S, lambda: config.plugin(config.settings, clock), f"exchange {config.name}")
    except ConfigError:
        raise
    except TookTooLong as error:
        problem = f"{error} to be created; does its constructor wait for something?"
    except CandledError as error:
        problem = str(error)
    except (Exception, SystemExit) as error:  # a plugin may raise anything, even SystemExit
        logger.debug("exchanges.%s cannot be created", config.name, exc_info=True)
        problem = one_line(error)
    raise ConfigError(f"exchanges.{config.name}: {redacted(problem)}")


def make_exchanges(config: Config, clock: Clock) -> list[Exchange]:
    """Return an instance of each configured exchange, in order.

    Raises:
        ConfigError: some could not be created: a line or more for each of them.
    """
    made: list[Exchange] = []
    problems: list[str] = []
    for one in config.exchanges:
        try:
            made.append(make_exchange(one, clock))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return made


def make_store(config: Config, *, owns: bool = False, upgrade: bool | None = None) -> Store:
    """Return the store of the settings, not yet opened.

    By default it is a guest (see `Store`), as for commands: it changes neither tables nor intervals. With `owns`, as
    for the daemon, it keeps the bars of the settings' intervals and upgrades its tables if `upgrade` allows it; the
    default is the setting `store.init`.

    Raises:
        ConfigError: `store.url` cannot be read. The error text does not contain it.
    """
    settings = config.store
    if config.store_maker is not None:
        try:
            return config.store_maker(settings.url, config.intervals if owns else None)
        except ConfigError:
            raise
        except Exception as error:  # a plugin may raise anything
            raise ConfigError(f"store.url: {redacted(one_line(error))}") from error
    return make_store_at(
        settings.url,
        config.intervals if owns else None,
        upgrade=settings.init if upgrade is None else upgrade,
        compress_after_days=settings.compress_after.days or None,
        retention_days=settings.retention.days or None,
    )


def budget_path(config: Config) -> Path | None:
    """Return the file by which processes on one machine share request budgets without Redis; None if there is none.

    It lies beside the SQLite file, else beside the journal.
    """
    beside = local_file(config)
    return None if beside is None else beside.with_name(f"{beside.name}-budget")


def local_file(config: Config) -> Path | None:
    """Return the SQLite file, else the journal; None if there is neither."""
    if config.store.url.startswith("sqlite:///"):
        return Path(config.store.url.removeprefix("sqlite:///"))
    return Path(config.store.journal) if config.store.journal else None


def as_plain(config: Config, *, redact: bool = True) -> dict[str, Any]:
    """Return the settings as YAML values that `load` reads back; with `redact`, secrets and passwords are stars."""
    plain: dict[str, Any] = as_written(config.model_copy(update={"exchanges": ()}), redact=redact)
    plain["exchanges"] = {
        one.name: {
            "symbols": [str(pattern) for pattern in one.choice.patterns],
            "top": one.choice.top,
            "min_age": as_written(one.choice.min_age),
            "most": one.choice.most,
            "on_demand": {
                "most": one.on_demand.most,
                "keep": as_written(timedelta(seconds=one.on_demand.keep_s)),
                "most_per_address": one.on_demand.most_per_address,
            },
            "refresh": as_written(one.refresh),
            "plugin": one.plugin.name,
            "proxy": _written_proxy(one.proxies, redact=redact),
            **as_written(one.settings, redact=redact),
        }
        for one in config.exchanges
    }
    return plain


def _written_proxy(proxies: Proxies, *, redact: bool) -> str | None:
    proxy = proxies.secure
    if proxies.written is None or proxy is None or proxy.user is None or not redact:
        return proxies.written
    return str(proxy).replace("://", f"://{proxy.user}:{STARS}@")


# ---------------------------------------------------------------- the file


def _read_file(path: Path, lines: dict[str, int]) -> dict[str, Any]:
    try:
        raw = read_yaml(path.read_text("utf-8-sig"), lines)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text") from error
    except NotYaml as error:
        line = "" if error.line is None else f":{error.line}"
        raise ConfigError(f"{path}{line}: not valid YAML: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, such as `server: {{port: 7000}}`")
    return raw


def _keys(raw: Mapping[str, Any], plugins: Plugins) -> Keys:
    """Return every key that the environment may set, including those of all configured and all known exchanges."""
    chosen: dict[str, Any] = dict.fromkeys(plugins.exchanges)
    if isinstance(written := raw.get("exchanges"), Mapping):
        chosen |= {str(name): own.get("plugin") if isinstance(own, Mapping) else None for name, own in written.items()}
    keys = keys_of(Config)
    for name, kind in plugins.settings.items():
        keys |= {("plugins", name): None, **keys_of(kind, "plugins", name)}
    for name, other in chosen.items():
        keys |= {("exchanges", name): None, **keys_of(ExchangeKeys, "exchanges", name)}
        if plugin := plugins.exchanges.get(other if isinstance(other, str) else name):
            keys |= keys_of(plugin.Settings, "exchanges", name)
    return keys


# ---------------------------------------------------------------- exchanges


def _read_exchanges(
    raw: object, env: Mapping[str, str], plugins: Plugins, problems: list[str]
) -> tuple[ExchangeConfig, ...]:
    if raw is None:
        raw = _DEFAULT_EXCHANGES
    if not isinstance(raw, Mapping):
        problems.append("exchanges: expected a mapping by name, such as `bitget: {symbols: [BTC/USDT]}`")
        return ()
    if not raw:
        problems.append("exchanges: at least one is needed")
    read = (_read_exchange(str(name), keys, env, plugins, problems) for name, keys in raw.items())
    return tuple(exchange for exchange in read if exchange is not None)


def _read_exchange(
    name: str, raw: object, env: Mapping[str, str], plugins: Plugins, problems: list[str]
) -> ExchangeConfig | None:
    path = f"exchanges.{name}"
    if not EXCHANGE_NAME.fullmatch(name):
        problems.append(f"{path}: expected a name of letters, digits, - and _")
        return None
    if not isinstance(raw, Mapping | None):
        problems.append(f"{path}: expected a mapping of settings, such as {{symbols: [BTC/USDT]}}")
        return None
    written = raw or {}
    keys = read_section(
        ExchangeKeys, {key: value for key, value in written.items() if key in DAEMON_KEYS}, path, problems
    )
    proxies = Proxies()
    try:
        proxies = Proxies.from_setting(keys.proxy, env)
    except ValueError as error:
        problems.append(f"{path}.proxy: {error}")
    plugin = plugins.exchanges.get(keys.plugin or name)
    if plugin is None:
        problems.append(_no_plugin(path if keys.plugin is None else f"{path}.plugin", keys.plugin or name, plugins))
        return None
    own = {key: value for key, value in written.items() if key not in DAEMON_KEYS}
    try:
        settings = read_section(plugin.Settings, own, path, problems, beside=DAEMON_KEYS)
    except Exception as error:  # from a validator of the plugin
        problems.append(f"{path}: {redacted(one_line(error))}")
        return None
    choice = ChoiceRules(patterns=keys.symbols, top=keys.top, min_age=keys.min_age, most=keys.most)
    if not any(problem.startswith(f"{path}.symbols") for problem in problems):
        problems += _check_choice(path, choice)
    return ExchangeConfig(
        name=name,
        plugin=plugin,
        symbols=choice.named,
        settings=settings,
        choice=choice,
        on_demand=DemandRules(
            most=keys.on_demand.most,
            keep_s=keys.on_demand.keep.total_seconds(),
            most_per_address=keys.on_demand.most_per_address,
            exclusions=choice.exclusions,
        ),
        proxies=proxies,
        refresh=keys.refresh,
    )


def _check_choice(path: str, choice: ChoiceRules) -> Iterator[str]:
    """Yield the problems of keys that have no effect without a pattern."""
    if not choice.wildcards:
        if choice.top is not None:
            yield f"{path}.top: chooses from patterns, and symbols has none, such as */USDT"
        if choice.min_age:
            yield f"{path}.min_age: applies to patterns, and symbols has none, such as */USDT"


def _no_plugin(path: str, wanted: str, plugins: Plugins) -> str:
    broken = [status for status in plugins.statuses if not status.ok]
    for status in broken:
        if status.name == wanted:
            return f"{path}: plugin {status} cannot be used: {status.error}"
    also = f"; {', '.join(map(str, broken))} cannot be used" if broken else ""
    return (
        f"{path}: no plugin offers this exchange{suggestion(wanted, plugins.exchanges)} "
        f"(`candled plugins` lists them){also}"
    )


# ---------------------------------------------------------------- other plugins


def _read_plugins(raw: object, plugins: Plugins, problems: list[str]) -> dict[str, Settings]:
    """Read the settings of each plugin that has some of its own."""
    if not isinstance(raw, Mapping | None):
        problems.append("plugins: expected a mapping by plugin, such as `webhook: {url: https://example.org}`")
        raw = None
    known, written = plugins.settings, raw or {}
    for name in written:
        if name not in known:
            problems.append(f"plugins.{name}: no plugin has settings of this name{suggestion(str(name), known)}")
    return {name: read_section(kind, written.get(name), f"plugins.{name}", problems) for name, kind in known.items()}


def _find_store(config: Config, plugins: Plugins, problems: list[str]) -> None:
    """Let the plugin that offers the scheme of `store.url` make the store."""
    scheme = config.store.url.partition("://")[0]
    if scheme in KNOWN_STORES:
        return
    stores = plugins.stores
    if scheme in stores:
        config.use_store_of_plugin(stores[scheme])
    else:
        choice = ", ".join(f"{one}://" for one in (*KNOWN_STORES, *stores))
        problems.append(f"store.url: no store for {scheme}://; known: {choice}")


# ---------------------------------------------------------------- checks across keys


def contradictions(config: Config) -> Iterator[str]:
    """Yield the problems of settings that are valid on their own but contradict each other."""
    if config.server.ping_timeout > config.server.ping_interval:
        yield "server.ping_timeout: at most server.ping_interval"
    if config.server.internal_port and config.server.internal_port == config.server.port:
        yield "server.internal_port: another port than server.port, which strangers reach"
    if config.server.tls_key and not config.server.tls_certificate:
        yield "server.tls_certificate: needed with server.tls_key"
    if bool(config.access.jwt_key_file) != (config.access.jwt_algorithm is not None):
        yield "access.jwt_algorithm: needed together with access.jwt_key_file, and only then"
    names = [one.name for one in config.exchanges]
    if config.klines.exchange is not None and config.klines.exchange not in names:
        yield f"klines.exchange: no such exchange{suggestion(config.klines.exchange, names)}"
    is_split = set(config.roles) != set(ROLES)
    if config.bus.url == MEMORY and is_split:
        yield "roles: bus.url memory:// stays inside one process, so that it needs both, [ingest, serve]"
    elif not config.roles:
        yield "roles: at least one is needed, ingest or serve"
    elif is_split and config.store.url.startswith("sqlite:"):
        reason = "another process stores the candles" if config.roles == ("serve",) else "another process serves them"
        yield f"store.url: SQLite is one process's file, and {reason}: both need the same postgresql://"
    if config.bus.url == MEMORY and config.ingest.shards > 1:
        yield "ingest.shards: several processes share the markets by way of Redis; with memory:// it is 1"
