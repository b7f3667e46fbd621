"""The operator's settings: typed sections, one reading, every problem reported together."""

import ipaddress
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from candled.bus.redis.address import SCHEMES, RedisAddress
from candled.errors import CandledError, ConfigError
from candled.exchange import Clock, Exchange
from candled.model import DEFAULT_INTERVALS, Symbol
from candled.plugins import DAEMON_KEYS, Plugins, one_line
from candled.proxies import Proxies
from candled.settings import (
    STARS,
    ByteSize,
    Distinct,
    Duration,
    Keys,
    NotYaml,
    Settings,
    Size,
    TextOrTexts,
    Written,
    WrittenInterval,
    WrittenSymbol,
    apply_environment,
    as_written,
    distinct,
    keys_of,
    matching,
    name_places,
    read_section,
    read_yaml,
    redacted,
    refused,
    setting,
    suggestion,
)
from candled.store import make_store as make_store_at
from candled.store.interface import Store

logger = logging.getLogger(__name__)

MEMORY = "memory://"
KNOWN_STORES = ("sqlite", "postgresql", "postgres")
KNOWN_BUSES = ("memory", *SCHEMES)
ROLES = ("ingest", "serve")
ENVIRONMENT = "CANDLED_"

_DEFAULT_EXCHANGES = {"bitget": None}
EXCHANGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ORIGIN = r"\*|[Nn][Uu][Ll][Ll]|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+"
_PATH = r"(/[A-Za-z0-9_-]+)*"
# Kubernetes gives every pod the addresses of services called `candled` and `candled-…` in these variables
# (kubernetes.io/docs, "Accessing the Service", environment variables); the test suite has its own names.
_FOREIGN_VARIABLES = re.compile(
    r"CANDLED_TEST_|CANDLED_(?:[A-Z0-9]+_)*?"
    r"(?:SERVICE_(?:HOST=|PORT(?:_[A-Z0-9_]+)?=\d+$)|PORT=\w+://|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?=)",
    re.IGNORECASE,
)
# Parts of other databases' URLs, which would otherwise appear as a file name in every message about the store.
_NO_FILE = re.compile(r":[^/]*@|\?.*=")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError from None  # without its text, which repeats the value
    return text


def _check_hosts(written: str | tuple[str, ...]) -> str | tuple[str, ...]:
    hosts = (written,) if isinstance(written, str) else written
    if not hosts:
        raise refused('at least one address is needed; "" is every one of this machine')
    if len(hosts) > 1 and "" in hosts:
        raise refused('"" is every address of this machine, so that it stands alone')
    if any(host and not host.strip("[] ") for host in hosts):
        raise refused("blanks are no address")
    distinct(hosts)
    return written


def _check_headers(headers: tuple[str, ...]) -> tuple[str, ...]:
    if {"draft-6", "draft-8"} <= set(headers):
        raise refused("draft-6 or draft-8, they use one name for different things")
    return headers


def _check_url(url: str, what: str, known: Sequence[str]) -> str:
    """Return the scheme. The value is not repeated: where it is wrong, any part of it may be the password."""
    scheme, found, _ = url.partition("://")
    choice = ", ".join(f"{one}://" for one in known)
    if not found or not _SCHEME.fullmatch(scheme):
        raise refused(f"expected a URL, known: {choice}")
    if scheme not in known:
        raise refused(f"no {what} for {scheme}://; known: {choice}")
    return scheme


def _check_bus(url: str) -> str:
    scheme = _check_url(url, "bus", KNOWN_BUSES)
    if scheme == "memory" and url != MEMORY:
        raise refused("nothing can follow memory://")
    if scheme in SCHEMES:
        try:
            RedisAddress.parse(url)
        except ValueError as error:
            raise refused(str(error)) from None
    return url


def _check_store(url: str) -> str:
    if _check_url(url, "store", KNOWN_STORES) != "sqlite":
        return url
    file = url.removeprefix("sqlite://")
    if ":memory:" in file:
        raise refused("candles need a file, sqlite:///candled.db; a database in memory cannot keep them")
    if not file.startswith("/"):
        raise refused("three slashes before a relative file, sqlite:///candled.db")
    if file.endswith("/"):
        raise refused("the file is missing, for instance sqlite:///candled.db")
    if _NO_FILE.search(file):
        raise refused("sqlite:// is followed by a file alone, without user, password or parameters")
    return url


_Network = Annotated[str, Written("an address or a network such as 10.0.0.0/8", _network, {"type": "string"})]
_Origin = Annotated[str, matching(_ORIGIN, "* or an origin such as https://charts.example.org")]
_100_MS, _1_S = timedelta(milliseconds=100), timedelta(seconds=1)


class ServerSettings(Settings):
    """The address that clients connect to, and the limits of one client."""

    host: Annotated[TextOrTexts, AfterValidator(_check_hosts)] = setting(
        "0.0.0.0", 'the address to listen on, or a list; 127.0.0.1 for this machine only, "" for IPv4 and IPv6'
    )
    port: int = setting(7000, "the TCP port; 0 lets the system choose one", ge=0, le=65535)
    reuse_port: bool = setting(
        False, "let several processes of this machine listen on the port; the system spreads connections over them"
    )
    prefix: Annotated[str, matching(_PATH, "a path such as /candles")] = setting(
        "", "a path such as /candles that a reverse proxy leaves before candled's own paths"
    )
    allowed_origins: tuple[_Origin, ...] = setting(
        ("*",), "which web pages may connect, such as https://charts.example.org; * is any page"
    )
    trusted_proxies: tuple[_Network, ...] = setting(
        (), "addresses or networks of proxies whose X-Forwarded-For is believed"
    )
    max_connections: int = setting(10_000, "WebSocket connections in all; 0 for no limit", ge=0)
    max_connections_per_ip: int = setting(200, "WebSocket connections from one address; 0 for no limit", ge=0)
    max_handshakes_per_second: int = setting(
        1000, "WebSocket connections that are let in per second; 0 for no limit", ge=0
    )
    max_rooms_per_connection: int = setting(64, "subscriptions of one connection", ge=1)
    max_messages_per_second: int = setting(20, "messages a client may send per second; 0 for no limit", ge=0)
    ping_interval: Duration = setting("30s", "how often a connection is pinged", ge=_100_MS)
    ping_timeout: Duration = setting(
        "10s", "how long a client may take to answer a ping; at most ping_interval", ge=_100_MS
    )
    slow_client_timeout: Duration = setting(
        "30s", "how long a client may leave a message unread before it is disconnected", ge=_100_MS
    )
    compression: bool = setting(
        False, "compress large messages for clients that offer permessage-deflate; updates never are"
    )
    own_sockets: bool = setting(
        True, "own the sockets of clients after the handshake; false leaves them to Tornado, at five times the cost"
    )
    cache: Size = setting(
        "64MB", "memory for encoded bars, which rooms and HTTP answers are copied from", ge=ByteSize(10**6)
    )
    warmup_wait: Duration = setting(
        "10s",
        "how long a subscription waits until the current week is complete, before it gets the bars in memory",
        ge=timedelta(0),
    )

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses to listen on; an empty text is every one of this machine."""
        return (self.host,) if isinstance(self.host, str) else self.host


class LimitSettings(Settings):
    """The number of HTTP requests that one address may send in a window, by group of paths. The first one opens it."""

    api_requests: int = setting(100, "requests to /api/ in a window; 0 for no limit", ge=0)
    api_window: Duration = setting("15m", "the length of that window", ge=_1_S)
    udf_requests: int = setting(
        3000, "requests to /udf/ in a window; one pane of a TradingView chart makes 90 in 15 minutes", ge=0
    )
    udf_window: Duration = setting("15m", "the length of that window", ge=_1_S)
    klines_requests: int = setting(
        6000, "requests to Binance's paths in a window; 0 for no limit; ccxt makes up to 3000 a minute", ge=0
    )
    klines_window: Duration = setting("1m", "the length of that window", ge=_1_S)
    headers: Annotated[Distinct[Literal["legacy", "draft-6", "draft-8"]], AfterValidator(_check_headers)] = setting(
        ("legacy", "draft-6"),
        "headers that carry the limit: X-RateLimit-*, and RateLimit-* as in draft 6 or 8 of the IETF",
    )


class UdfSettings(Settings):
    """TradingView's charts, at /udf."""

    next_time: Literal["s", "ms"] = setting(
        "s", "the unit of nextTime where a range is empty: s or ms, which TradingView's pages disagree on"
    )


class KlinesSettings(Settings):
    """Binance's klines, for bots and libraries that speak Binance."""

    enabled: bool = setting(False, "serve /api/v3/klines and the kline streams")
    exchange: str | None = setting(None, "the exchange of these symbols; by default the first one")
    prefix: Annotated[str, matching(_PATH, "a path such as /binance")] = setting(
        "", "prefix of these paths, such as /binance"
    )


class IngestSettings(Settings):
    """The way candles are read from exchanges."""

    backfill: Duration = setting(
        "30d", "how far back a new store is filled; the current week always is", ge=timedelta(0)
    )
    grace_period: Duration = setting(
        "6s",
        "how long candled waits for late versions of a minute, once the next one has opened, before it is final",
        ge=timedelta(0),
        le=timedelta(minutes=5),
    )
    quiet_after: Duration = setting("1m", "how long a symbol may be silent before candled checks it over REST", ge=_1_S)
    confirm: bool = setting(
        True, "compare each final minute with the exchange's REST API once, within the request budget"
    )
    checkpoint: Duration = setting(
        "5s", "how often minutes that are not final yet are stored, so that a restart shows them", ge=_100_MS
    )
    shards: int = setting(
        1,
        "into how many parts the markets are divided for several ingest processes; the same in all processes",
        ge=1,
        le=1024,
    )


class StoreSettings(Settings):
    """The database of the candles."""

    url: Annotated[str, AfterValidator(_check_store)] = setting(
        "sqlite:///candled.db",
        "sqlite:///FILE, relative to the directory candled is started in, sqlite:////ABSOLUTE/FILE, or "
        "postgresql://user:password@host:5432/database, with or without TimescaleDB",
    )
    init: bool = setting(
        True, "the daemon makes or upgrades the store's tables on start; false leaves that to `candled init-db`"
    )
    flush_interval: Duration = setting(
        "250ms", "how long candles are gathered before they are written together", ge=timedelta(milliseconds=1)
    )
    journal: str = setting(
        "candled.journal", 'folder of the candles that wait while the store is unavailable; "" for none'
    )
    journal_limit: Size = setting("256MB", "the largest size of that folder", ge=ByteSize(64 * 10**3))
    compress_after: Duration = setting(
        "14d", "TimescaleDB compresses minutes older than this, in whole days; 0s for never", ge=timedelta(0)
    )
    retention: Duration = setting(
        "0s", "PostgreSQL drops minutes older than this, in whole days; 0s keeps them forever", ge=timedelta(0)
    )


class BusSettings(Settings):
    """The path of candles from ingest to serve."""

    url: Annotated[str, AfterValidator(_check_bus)] = setting(
        MEMORY,
        "memory:// inside one process, or redis://user:password@host:6379/0, rediss://, unix:///FILE, "
        "redis+sentinel://host:26379,host2/SERVICE, redis+cluster://host:6379,host2",
    )
    prefix: Annotated[
        str, matching(r"[^{}*?\[\]\s]*", "letters, digits and signs such as : and -, without blanks and brackets")
    ] = setting("", "prefix of every channel and key, for several candleds on one Redis")
    lease: Duration = setting(
        "6s",
        "how long an ingest process may be silent before another takes over",
        ge=timedelta(seconds=3),
        le=timedelta(seconds=60),
    )


class LogSettings(Settings):
    """The log, written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "the least serious level that is logged")


class ExchangeKeys(Settings):
    """The daemon's own keys of each exchange; the other keys under its name belong to its plugin."""

    symbols: Distinct[WrittenSymbol] = setting(("BTC/USDT",), "markets, written BASE/QUOTE", min_length=1)
    plugin: str | None = setting(None, "the plugin's exchange; by default the one of the same name")
    proxy: str | None = setting(
        None, "http://user:password@host:port, socks5h://…, or direct; by default the environment decides"
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
    log: LogSettings = setting(LogSettings(), "the log")


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
    config = read_section(Config, raw, "", problems).model_copy(update={"exchanges": exchanges})
    problems += _contradictions(config)
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


def make_exchanges(config: Config, clock: Clock) -> list[Exchange]:
    """Return an instance of each configured exchange, in order.

    Raises:
        ConfigError: some could not be created: a line or more for each of them.
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
        except (Exception, SystemExit) as error:  # a plugin may raise anything, even SystemExit
            logger.debug("exchanges.%s cannot be made", one.name, exc_info=True)
            problems.append(f"exchanges.{one.name}: {redacted(one_line(error))}")
    if problems:
        raise ConfigError(problems)
    return made


def make_store(config: Config, *, owns: bool = False, upgrade: bool | None = None) -> Store:
    """Return the store of the settings, not yet opened.

    By default a guest, as for commands: tables and intervals are not changed. With `owns`, as for the daemon, it
    keeps the bars of the settings' intervals and upgrades its tables if `upgrade` allows it; the default is the
    setting `store.init`.

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
    plain: dict[str, Any] = as_written(config.model_copy(update={"exchanges": ()}), redact=redact)
    plain["exchanges"] = {
        one.name: {
            "symbols": [str(symbol) for symbol in one.symbols],
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
    """Every key that the environment may set; under `exchanges` those of the configured and of all known exchanges."""
    chosen: dict[str, Any] = dict.fromkeys(plugins.exchanges)
    if isinstance(written := raw.get("exchanges"), Mapping):
        chosen |= {str(name): own.get("plugin") if isinstance(own, Mapping) else None for name, own in written.items()}
    keys = keys_of(Config)
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
        proxies = Proxies.of(keys.proxy, env)
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


# ---------------------------------------------------------------- checks across keys


def _contradictions(config: Config) -> Iterator[str]:
    """Yield the problems of settings that are right by themselves and do not fit together."""
    if config.server.ping_timeout > config.server.ping_interval:
        yield "server.ping_timeout: at most server.ping_interval"
    names = [one.name for one in config.exchanges]
    if config.klines.exchange is not None and config.klines.exchange not in names:
        yield f"klines.exchange: no such exchange{suggestion(config.klines.exchange, names)}"
    is_split = set(config.roles) != set(ROLES)
    if config.bus.url == MEMORY and is_split:
        yield "roles: bus.url memory:// stays inside one process, so that it needs both, [ingest, serve]"
    elif not config.roles:
        yield "roles: at least one is needed, ingest or serve"
    elif is_split and config.store.url.startswith("sqlite:"):
        reason = (
            "what it serves is stored by another" if config.roles == ("serve",) else "another serves what it stores"
        )
        yield f"store.url: SQLite is one process's file, and {reason}: both need the same postgresql://"
    if config.bus.url == MEMORY and config.ingest.shards > 1:
        yield "ingest.shards: several processes share the markets by way of Redis; with memory:// it is 1"
