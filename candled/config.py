"""The operator's settings: typed sections, one reading, every problem reported together."""

import ipaddress
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from candled.bus.redis.address import SCHEMES, RedisAddress
from candled.errors import CandledError, ConfigError
from candled.exchange import Clock, Exchange
from candled.model import DEFAULT_INTERVALS, Interval, Symbol
from candled.plugins import DAEMON_KEYS, Plugins, one_line
from candled.proxies import Proxies
from candled.settings import (
    STARS,
    ByteSize,
    NotYaml,
    apply_environment,
    kinds_of,
    name_variables,
    read_section,
    read_yaml,
    redacted,
    rules,
    section_as_plain,
    setting,
    suggestion,
)
from candled.store import make_store as make_store_at
from candled.store.interface import Store

logger = logging.getLogger(__name__)

KNOWN_STORES = ("sqlite", "postgresql", "postgres")
KNOWN_BUSES = ("memory", *SCHEMES)
ROLES = ("ingest", "serve")
ENVIRONMENT = "CANDLED_"

_DEFAULT_EXCHANGES = {"bitget": None}
_EXCHANGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+", re.IGNORECASE)
_PREFIX = re.compile(r"(/[A-Za-z0-9_-]+)*")
# Kubernetes tells every pod of the services called `candled` and `candled-…` by these names where they are
# (kubernetes.io/docs, "Accessing the Service", environment variables); the test suite has its own names.
_NOT_OURS = re.compile(
    r"CANDLED_TEST_|CANDLED_(?:[A-Z0-9]+_)*?"
    r"(?:SERVICE_(?:HOST=|PORT(?:_[A-Z0-9_]+)?=\d+$)|PORT=\w+://|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?=)",
    re.IGNORECASE,
)
# What other databases' URLs have, and what would be repeated as a file name wherever the store is spoken of.
_NO_FILE = re.compile(r":[^/]*@|\?.*=")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How clients reach the server, and what one of them may take of it."""

    host: str | tuple[str, ...] = setting(
        "0.0.0.0", help='the address to listen on, or a list; 127.0.0.1 for this machine only, "" for IPv4 and IPv6'
    )
    port: int = setting(7000, help="the TCP port; 0 lets the system choose one", at_least=0, at_most=65535)
    prefix: str = setting("", help="a path such as /candles that a reverse proxy leaves before candled's own paths")
    allowed_origins: tuple[str, ...] = setting(
        ("*",), help="which web pages may connect, such as https://charts.example.org; * is any page"
    )
    trusted_proxies: tuple[str, ...] = setting(
        (), help="addresses or networks of proxies whose X-Forwarded-For is believed"
    )
    max_connections: int = setting(10_000, help="WebSocket connections in all; 0 for no limit", at_least=0)
    max_connections_per_ip: int = setting(
        200, help="WebSocket connections from one address; 0 for no limit", at_least=0
    )
    max_handshakes_per_second: int = setting(
        1000, help="WebSocket connections that are let in per second; 0 for no limit", at_least=0
    )
    max_rooms_per_connection: int = setting(64, help="subscriptions of one connection", at_least=1)
    max_messages_per_second: int = setting(20, help="messages a client may send per second; 0 for no limit", at_least=0)
    ping_interval: timedelta = setting(
        timedelta(seconds=30), help="how often a connection is pinged", at_least=timedelta(milliseconds=100)
    )
    ping_timeout: timedelta = setting(
        timedelta(seconds=10),
        help="how long a client may take to answer a ping; at most ping_interval",
        at_least=timedelta(milliseconds=100),
    )
    slow_client_timeout: timedelta = setting(
        timedelta(seconds=30),
        help="how long a client may leave a message unread before it is disconnected",
        at_least=timedelta(milliseconds=100),
    )
    compression: bool = setting(
        False, help="compress large messages for clients that offer permessage-deflate; updates never are"
    )
    own_sockets: bool = setting(
        True,
        help="own the sockets of clients after the handshake; false leaves them to Tornado, at five times the cost",
    )
    cache: ByteSize = setting(
        ByteSize(64 * 10**6),
        help="memory for encoded bars, which rooms and HTTP answers are copied from",
        at_least=ByteSize(10**6),
    )
    warmup_wait: timedelta = setting(
        timedelta(seconds=10),
        help="how long a subscription waits for the running week to be complete before it gets what is there",
        at_least=timedelta(0),
    )

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses to listen on; an empty text is every one of this machine."""
        return (self.host,) if isinstance(self.host, str) else self.host


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """How many HTTP requests one address may make, by group of paths: so many in a window that its first one begins."""

    api_requests: int = setting(100, help="requests to /api/ in a window; 0 for no limit", at_least=0)
    api_window: timedelta = setting(
        timedelta(minutes=15), help="the length of that window", at_least=timedelta(seconds=1)
    )
    udf_requests: int = setting(
        3000, help="requests to /udf/ in a window; one pane of a TradingView chart makes 90 in 15 minutes", at_least=0
    )
    udf_window: timedelta = setting(
        timedelta(minutes=15), help="the length of that window", at_least=timedelta(seconds=1)
    )
    klines_requests: int = setting(
        6000, help="requests to Binance's paths in a window; 0 for no limit; ccxt makes up to 3000 a minute", at_least=0
    )
    klines_window: timedelta = setting(
        timedelta(minutes=1), help="the length of that window", at_least=timedelta(seconds=1)
    )
    headers: tuple[str, ...] = setting(
        ("legacy", "draft-6"),
        help="which headers tell the limit: X-RateLimit-*, and RateLimit-* as in a draft of the IETF, 6 or 8",
        one_of=("legacy", "draft-6", "draft-8"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UdfSettings:
    """TradingView's charts, at /udf."""

    next_time: str = setting(
        "s", help="the unit of nextTime where a range is empty: s or ms, which TradingView's pages disagree on",
        one_of=("s", "ms"),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class KlinesSettings:
    """Binance's klines, for bots and libraries that speak Binance."""

    enabled: bool = setting(False, help="serve /api/v3/klines and the kline streams")
    exchange: str | None = setting(None, help="whose symbols they are; by default the first exchange's")
    prefix: str = setting("", help="what stands before these paths, such as /binance")


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """How candles are taken from exchanges."""

    backfill: timedelta = setting(
        timedelta(days=30),
        help="how far back a fresh store is filled; the running week always is",
        at_least=timedelta(0),
    )
    grace_period: timedelta = setting(
        timedelta(seconds=6),
        help="how long after its successor opened the late versions of a minute are waited for before it is final",
        at_least=timedelta(0),
        at_most=timedelta(minutes=5),
    )
    quiet_after: timedelta = setting(
        timedelta(seconds=60),
        help="after which silence of a symbol the exchange is asked by REST",
        at_least=timedelta(seconds=1),
    )
    confirm: bool = setting(
        True, help="compare each final minute with the exchange's REST API once, within the request budget"
    )
    checkpoint: timedelta = setting(
        timedelta(seconds=5),
        help="how often minutes that are not final yet are stored, so that a restart shows them",
        at_least=timedelta(milliseconds=100),
    )
    shards: int = setting(
        1,
        help="into how many parts the markets are divided for several ingest processes; the same in all processes",
        at_least=1,
        at_most=1024,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where candles are kept."""

    url: str = setting(
        "sqlite:///candled.db",
        help="sqlite:///FILE, relative to the directory candled is started in, sqlite:////ABSOLUTE/FILE, or "
        "postgresql://user:password@host:5432/database, with or without TimescaleDB",
    )
    init: bool = setting(
        True, help="the daemon makes or upgrades the store's tables on start; false leaves that to `candled init-db`"
    )
    flush_interval: timedelta = setting(
        timedelta(milliseconds=250),
        help="how long candles are gathered before they are written together",
        at_least=timedelta(milliseconds=1),
    )
    journal: str = setting("candled.journal", help='the folder where candles wait while the store is away; "" for none')
    journal_limit: ByteSize = setting(
        ByteSize(256 * 10**6), help="how large that folder may grow", at_least=ByteSize(64 * 10**3)
    )
    compress_after: timedelta = setting(
        timedelta(days=14),
        help="TimescaleDB compresses minutes older than this, in whole days; 0s for never",
        at_least=timedelta(0),
    )
    retention: timedelta = setting(
        timedelta(0),
        help="PostgreSQL drops minutes older than this, in whole days; 0s keeps them for ever",
        at_least=timedelta(0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings:
    """What carries candles from ingest to serve."""

    url: str = setting(
        "memory://",
        help="memory:// inside one process, or redis://user:password@host:6379/0, rediss://, unix:///FILE, "
        "redis+sentinel://host:26379,host2/SERVICE, redis+cluster://host:6379,host2",
    )
    prefix: str = setting("", help="stands before every channel and key, for several candleds on one Redis")
    lease: timedelta = setting(
        timedelta(seconds=6),
        help="how long an ingest process may be silent before another takes over",
        at_least=timedelta(seconds=3),
        at_most=timedelta(seconds=60),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What is logged, to standard error."""

    level: str = setting(
        "info", help="the least serious level that is logged", one_of=("debug", "info", "warning", "error")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeKeys:
    """What the daemon wants to know of each exchange; the other keys under its name are its plugin's."""

    symbols: tuple[Symbol, ...] = setting((Symbol("BTC", "USDT"),), help="which markets, written BASE/QUOTE")
    plugin: str | None = setting(None, help="which exchange of a plugin it is; by default the one of the same name")
    proxy: str | None = setting(
        None, help="http://user:password@host:port, socks5h://…, or direct; by default the environment decides"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    """One configured exchange; `settings` is an instance of `plugin.Settings`."""

    name: str
    plugin: type[Exchange]
    symbols: tuple[Symbol, ...]
    settings: Any
    #: of the section's `proxy` and of the environment
    proxies: Proxies = Proxies()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. `exchanges` are in the order of the file: the first is the default of the wire protocol."""

    server: ServerSettings = setting(ServerSettings(), help="how clients reach the server")
    roles: tuple[str, ...] = setting(ROLES, help="what this process does", one_of=ROLES)
    exchanges: tuple[ExchangeConfig, ...] = setting((), help="the exchanges, by name; the first is the default one")
    intervals: tuple[Interval, ...] = setting(DEFAULT_INTERVALS, help="the lengths of bars that are served")
    limits: LimitSettings = setting(LimitSettings(), help="how many HTTP requests one address may make")
    udf: UdfSettings = setting(UdfSettings(), help="TradingView's charts")
    klines: KlinesSettings = setting(KlinesSettings(), help="Binance's klines")
    ingest: IngestSettings = setting(IngestSettings(), help="how candles are taken from exchanges")
    store: StoreSettings = setting(StoreSettings(), help="where candles are kept")
    bus: BusSettings = setting(BusSettings(), help="what carries candles from ingest to serve")
    log: LogSettings = setting(LogSettings(), help="what is logged")


def load(path: Path | None, env: Mapping[str, str], plugins: Plugins) -> Config:
    """Read the settings from a file (None: all defaults) and from variables such as `CANDLED_SERVER__PORT`.

    Raises:
        ConfigError: with one line per problem, all of them in one run.
    """
    problems: list[str] = []
    raw = {} if path is None else _read_file(path)
    ours = {name: value for name, value in env.items() if not _NOT_OURS.match(f"{name}={value}")}
    kinds = _kinds(raw, plugins)
    raw = apply_environment(raw, ours, ENVIRONMENT, kinds, problems)
    exchanges = _read_exchanges(raw.pop("exchanges", None), env, plugins, problems)
    config = read_section(Config, raw, "", problems, beside=("exchanges",))
    config = replace(config, exchanges=exchanges, intervals=tuple(sorted(config.intervals)))
    _check(config, problems)
    if problems:
        raise ConfigError(name_variables(problems, ours, ENVIRONMENT, kinds))
    return config


def doubts(config: Config) -> list[str]:
    """What works in one process and not in several, of which this one may be: a line each."""
    if config.bus.url == "memory://" or not config.store.url.startswith("sqlite:"):
        return []
    return [
        "store.url: SQLite is one process's file; where several processes share bus.url only the one that leads stores "
        "candles, and the others find holes in their files: give all of them the same postgresql://"
    ]


def make_exchanges(config: Config, clock: Clock) -> list[Exchange]:
    """An instance of each configured exchange, in order.

    Raises:
        ConfigError: some could not be made, whatever their constructors raised: a line or more for each of them.
    """
    made: list[Exchange] = []
    problems: list[str] = []
    for one in config.exchanges:
        try:
            made.append(one.plugin(one.settings, clock))
        except ConfigError as error:
            problems += error.problems
        except CandledError as error:
            problems.append(f"exchanges.{one.name}: {redacted(str(error))}")
        except (Exception, SystemExit) as error:  # whatever a stranger's code may raise, its exit included
            logger.debug("exchanges.%s cannot be made", one.name, exc_info=True)
            problems.append(f"exchanges.{one.name}: {redacted(one_line(error))}")
    if problems:
        raise ConfigError(problems)
    return made


def make_store(config: Config, *, owns: bool = False, upgrade: bool | None = None) -> Store:
    """Return the store of the settings, not yet opened.

    As a guest by default, as for commands: nothing of its tables and intervals is changed. With `owns`, as for the
    daemon, it keeps the bars of the settings' intervals, and its tables are upgraded as `upgrade` says, by default as
    the settings do.

    Raises:
        ConfigError: `store.url` cannot be read. The text does not repeat it.
    """
    settings = config.store
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
    if config.store.url.startswith("sqlite:///"):
        beside = Path(config.store.url.removeprefix("sqlite:///"))
    elif config.store.journal:
        beside = Path(config.store.journal)
    else:
        return None
    return beside.with_name(f"{beside.name}-budget")


def as_plain(config: Config, *, redact: bool = True) -> dict[str, Any]:
    """The settings as YAML values that `load` reads back; with `redact`, secrets and passwords are stars."""
    plain = section_as_plain(replace(config, exchanges=()), redact=redact)
    plain["exchanges"] = {
        one.name: {
            "symbols": [str(symbol) for symbol in one.symbols],
            "plugin": one.plugin.name,
            "proxy": _written_proxy(one.proxies, redact=redact),
            **section_as_plain(one.settings, redact=redact),
        }
        for one in config.exchanges
    }
    return plain


def _written_proxy(proxies: Proxies, *, redact: bool) -> str | None:
    proxy = proxies.secure
    if proxies.written is None or proxy is None or proxy.user is None or not redact:
        return proxies.written
    return str(proxy).replace("://", f"://{proxy.user}:{STARS}@")


def keys() -> list[str]:
    """Every key of the settings but those of plugins, as it is written in problems: `server.port`."""
    found = []
    for section, kind in kinds_of(Config).items():
        found += [f"{section}.{key}" for key in kind] if isinstance(kind, Mapping) else [section]
    return [*found, *(f"exchanges.NAME.{key}" for key in rules(ExchangeKeys))]


# ---------------------------------------------------------------- the file


def _read_file(path: Path) -> dict[str, Any]:
    try:
        raw = read_yaml(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text") from error
    except NotYaml as error:
        line = "" if error.line is None else f", line {error.line}"
        raise ConfigError(f"{path}{line}: not valid YAML: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, such as `server: {{port: 7000}}`")
    return raw


def _kinds(raw: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """Every key that the environment may set; under `exchanges` those of the configured and of all known exchanges."""
    written = raw.get("exchanges")
    exchanges: dict[str, Any] = {name: _exchange_kinds(plugin) for name, plugin in plugins.exchanges.items()}
    if isinstance(written, Mapping):
        for name, keys in written.items():
            chosen = keys.get("plugin") if isinstance(keys, Mapping) else None
            plugin = plugins.exchanges.get(chosen if isinstance(chosen, str) else str(name))
            exchanges[str(name)] = _exchange_kinds(plugin)
    return {**kinds_of(Config), "exchanges": exchanges}


def _exchange_kinds(plugin: type[Exchange] | None) -> dict[str, Any]:
    return {**kinds_of(ExchangeKeys), **(kinds_of(plugin.Settings) if plugin else {})}


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
    if not _EXCHANGE_NAME.fullmatch(name):
        problems.append(f"{path}: expected a name of letters, digits, - and _")
        return None
    if not isinstance(raw, Mapping | None):
        problems.append(f"{path}: expected a mapping of settings, such as {{symbols: [BTC/USDT]}}")
        return None
    written = raw or {}
    keys = read_section(
        ExchangeKeys, {key: value for key, value in written.items() if key in DAEMON_KEYS}, path, problems
    )
    if not keys.symbols:
        problems.append(f"{path}.symbols: at least one is needed")
    _refuse_twice(keys.symbols, f"{path}.symbols", problems)
    proxies = Proxies()
    try:
        proxies = Proxies.of(keys.proxy, env)
    except ValueError as error:
        problems.append(f"{path}.proxy: {error}")
    plugin = plugins.exchanges.get(keys.plugin or name)
    if plugin is None:
        problems.append(_no_plugin(path if keys.plugin is None else f"{path}.plugin", keys.plugin or name, plugins))
        return None
    own = {key: value for key, value in written.items() if key not in DAEMON_KEYS}
    settings = read_section(plugin.Settings, own, path, problems, beside=DAEMON_KEYS)
    return ExchangeConfig(name=name, plugin=plugin, symbols=keys.symbols, settings=settings, proxies=proxies)


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


# ---------------------------------------------------------------- what types and bounds cannot say


def _check(config: Config, problems: list[str]) -> None:
    server = config.server
    if not server.hosts:
        problems.append('server.host: at least one address is needed; "" is every one of this machine')
    if len(server.hosts) > 1 and "" in server.hosts:
        problems.append('server.host: "" is every address of this machine, so that it stands alone')
    if any(host and not host.strip("[] ") for host in server.hosts):
        problems.append("server.host: blanks are no address")
    _refuse_twice(server.hosts, "server.host", problems)
    _each(_network, server.trusted_proxies, "server.trusted_proxies", problems)
    _each(_origin, server.allowed_origins, "server.allowed_origins", problems)
    if server.ping_timeout > server.ping_interval:
        problems.append("server.ping_timeout: at most server.ping_interval")
    if {"draft-6", "draft-8"} <= set(config.limits.headers):
        problems.append("limits.headers: draft-6 or draft-8, they use one name for different things")
    _refuse_twice(config.limits.headers, "limits.headers", problems)
    _check_paths(config, problems)
    if not config.intervals:
        problems.append("intervals: at least one is needed")
    _refuse_twice(config.intervals, "intervals", problems)
    _refuse_twice(config.roles, "roles", problems)
    _check_url(config.store.url, "store", KNOWN_STORES, problems)
    _check_url(config.bus.url, "bus", KNOWN_BUSES, problems)
    _check_sqlite(config.store.url, problems)
    if set("{}*?[]") & set(config.bus.prefix) or any(character.isspace() for character in config.bus.prefix):
        problems.append("bus.prefix: expected letters, digits and signs such as : and -, without blanks and brackets")
    _check_parts(config, problems)


def _check_parts(config: Config, problems: list[str]) -> None:
    """What one process cannot do for itself, where the settings leave it alone."""
    is_split = set(config.roles) != set(ROLES)
    if config.bus.url == "memory://" and is_split:
        problems.append("roles: bus.url memory:// stays inside one process, so that it needs both, [ingest, serve]")
    elif not config.roles:
        problems.append("roles: at least one is needed, ingest or serve")
    elif is_split and config.store.url.startswith("sqlite:"):
        lacks = "what it serves is stored by another" if config.roles == ("serve",) else "another serves what it stores"
        problems.append(f"store.url: SQLite is one process's file, and {lacks}: both need the same postgresql://")
    if config.bus.url == "memory://" and config.ingest.shards > 1:
        problems.append("ingest.shards: several processes share the markets by way of Redis; with memory:// it is 1")


def _check_paths(config: Config, problems: list[str]) -> None:
    for name, prefix, such in (
        ("server.prefix", config.server.prefix, "/candles"),
        ("klines.prefix", config.klines.prefix, "/binance"),
    ):
        if not _PREFIX.fullmatch(prefix):
            problems.append(f"{name}: expected a path such as {such}, got {redacted(prefix)!r}")
    exchange = config.klines.exchange
    names = [one.name for one in config.exchanges]
    if exchange is not None and exchange not in names:
        problems.append(f"klines.exchange: no such exchange{suggestion(exchange, names)}")


def _each(check: Callable[[str], str | None], texts: Sequence[str], path: str, problems: list[str]) -> None:
    for index, text in enumerate(texts):
        if wrong := check(text):
            problems.append(f"{path}[{index}]: {wrong}, got {redacted(text)!r}")


def _network(text: str) -> str | None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return "expected an address or a network such as 10.0.0.0/8"
    return None


def _origin(text: str) -> str | None:
    return None if _ORIGIN.fullmatch(text) else "expected * or an origin such as https://charts.example.org"


def _refuse_twice(values: Iterable[object], path: str, problems: list[str]) -> None:
    texts = [str(value) for value in values]
    problems.extend(f"{path}: {text} is there twice" for text in dict.fromkeys(texts) if texts.count(text) > 1)


def _check_url(url: str, what: str, known: Sequence[str], problems: list[str]) -> None:
    """The value is not repeated: where it is wrong, nobody knows which part of it is the password."""
    scheme, found, rest = url.partition("://")
    choice = ", ".join(f"{one}://" for one in known)
    if not found or not _SCHEME.fullmatch(scheme):
        problems.append(f"{what}.url: expected a URL, known: {choice}")
    elif scheme not in known:
        problems.append(f"{what}.url: no {what} for {scheme}://; known: {choice}")
    elif scheme == "memory" and rest:
        problems.append(f"{what}.url: nothing can follow memory://")
    elif scheme in SCHEMES:
        try:
            RedisAddress.parse(url)
        except ValueError as error:
            problems.append(f"{what}.url: {error}")


def _check_sqlite(url: str, problems: list[str]) -> None:
    if not url.startswith("sqlite://"):
        return
    file = url.removeprefix("sqlite://")
    if ":memory:" in file:
        problems.append("store.url: candles need a file, sqlite:///candled.db; a database in memory cannot keep them")
    elif not file.startswith("/"):
        problems.append("store.url: three slashes before a relative file, sqlite:///candled.db")
    elif file == "/" or file.endswith("/"):
        problems.append("store.url: the file is missing, for instance sqlite:///candled.db")
    elif _NO_FILE.search(file):
        problems.append("store.url: sqlite:// is followed by a file alone, without user, password or parameters")
