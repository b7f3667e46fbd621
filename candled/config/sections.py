"""The sections of the settings: their keys, defaults, limits and texts."""

import ipaddress
import re
from collections.abc import Collection
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator

from candled.bus.redis.address import SCHEMES, RedisAddress
from candled.settings import (
    ByteSize,
    Distinct,
    Duration,
    Settings,
    Size,
    TextOrTexts,
    Written,
    WrittenPattern,
    distinct,
    matching,
    refused,
    setting,
)
from candled.symbol_pattern import SymbolPattern

MEMORY = "memory://"
KNOWN_STORES = ("sqlite", "postgresql", "postgres")
KNOWN_BUSES = ("memory", *SCHEMES)
ROLES = ("ingest", "serve")
_ORIGIN = r"\*|[Nn][Uu][Ll][Ll]|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+"
_PATH = r"(/[A-Za-z0-9_-]+)*"
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
        raise refused('at least one address is needed; "" means every address of this machine')
    if len(hosts) > 1 and "" in hosts:
        raise refused('"" means every address of this machine, so it cannot be one of several')
    if any(host and not host.strip("[] ") for host in hosts):
        raise refused("blanks are no address")
    distinct(hosts)
    return written


def _check_headers(headers: tuple[str, ...]) -> tuple[str, ...]:
    if {"draft-6", "draft-8"} <= set(headers):
        raise refused("choose draft-6 or draft-8: they use the same name for different values")
    return headers


def _check_url(url: str, what: str, known: Collection[str], *, is_closed: bool = True) -> str:
    """Return the scheme. Errors do not repeat the URL: any part of an invalid one may be the password.

    Without `is_closed`, other schemes than the known ones are accepted.
    """
    scheme, found, _ = url.partition("://")
    choice = ", ".join(f"{one}://" for one in known)
    if not found or not _SCHEME.fullmatch(scheme):
        raise refused(f"expected a URL, known: {choice}")
    if is_closed and scheme not in known:
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
    if _check_url(url, "store", KNOWN_STORES, is_closed=False) != "sqlite":
        return url
    file = url.removeprefix("sqlite://")
    if ":memory:" in file:
        raise refused("candles need a file, sqlite:///candled.db; a database in memory cannot keep them")
    if not file.startswith("/"):
        raise refused("three slashes before a relative file, sqlite:///candled.db")
    if file.endswith("/"):
        raise refused("the file is missing, for instance sqlite:///candled.db")
    if _NO_FILE.search(file):
        raise refused("only a file may follow sqlite://, without user, password or parameters")
    return url


def _check_patterns(patterns: tuple[SymbolPattern, ...]) -> tuple[SymbolPattern, ...]:
    if patterns and all(one.is_exclusion for one in patterns):
        raise refused("at least one symbol or pattern without ! is needed")
    return patterns


_Network = Annotated[str, Written("an address or a network such as 10.0.0.0/8", _network, {"type": "string"})]
_Origin = Annotated[str, matching(_ORIGIN, "* or an origin such as https://charts.example.org")]
_100_MS, _1_S = timedelta(milliseconds=100), timedelta(seconds=1)


class ServerSettings(Settings):
    """The address that clients connect to, and the limits of one client."""

    host: Annotated[TextOrTexts, AfterValidator(_check_hosts)] = setting(
        "0.0.0.0", 'the address to listen on, or a list; 127.0.0.1 for this machine only, "" for IPv4 and IPv6'
    )
    port: int = setting(7000, "the TCP port; 0 lets the system choose one", ge=0, le=65535)
    tls_certificate: str = setting(
        "", 'the PEM file of the certificate and its chain, for https and wss; read again when it changes; "" for none'
    )
    tls_key: str = setting("", 'the PEM file of the certificate\'s key; "" if it is in the same file')
    reuse_port: bool = setting(
        False, "let several processes of this machine listen on the port; the system spreads connections over them"
    )
    internal_host: Annotated[TextOrTexts, AfterValidator(_check_hosts)] = setting(
        "127.0.0.1", "the address of internal_port, or a list; strangers must not reach it"
    )
    internal_port: int | None = setting(
        None, "a port for operators, with /metrics and the details of /health; null for none", ge=0, le=65535
    )
    status: Literal["internal", "public", "off"] = setting(
        "internal", "the port with the status page: internal for internal_port, public for both, or off"
    )
    metrics_per_symbol: bool = setting(False, "add series of every symbol to /metrics")
    health_details: bool = setting(
        False, "show every client the details of /health?verbose and the reasons of /health/ready"
    )
    prefix: Annotated[str, matching(_PATH, "a path such as /candles")] = setting(
        "", "a path such as /candles that a reverse proxy leaves before candled's own paths"
    )
    allowed_origins: tuple[_Origin, ...] = setting(
        ("*",), "web pages that may connect, such as https://charts.example.org; * is any page"
    )
    trusted_proxies: tuple[_Network, ...] = setting(
        (), "addresses or networks of proxies whose X-Forwarded-For is trusted"
    )
    max_connections: int = setting(10_000, "total number of connections of every kind; 0 for no limit", ge=0)
    max_connections_per_ip: int = setting(200, "connections from one address, of every kind; 0 for no limit", ge=0)
    max_handshakes_per_second: int = setting(1000, "new WebSocket connections per second; 0 for no limit", ge=0)
    max_rooms_per_connection: int = setting(64, "subscriptions of one connection", ge=1)
    max_messages_per_second: int = setting(20, "messages a client may send per second; 0 for no limit", ge=0)
    ping_interval: Duration = setting("30s", "time between pings of a connection", ge=_100_MS)
    ping_timeout: Duration = setting("10s", "time a client has to answer a ping; at most ping_interval", ge=_100_MS)
    slow_client_timeout: Duration = setting(
        "30s", "how long a client may leave a message unread before it is disconnected", ge=_100_MS
    )
    header_timeout: Duration = setting(
        "10s", "how long a new connection may take to send the header of its request", ge=_100_MS
    )
    idle_timeout: Duration = setting(
        "75s", "how long a connection may wait for its next HTTP request; choose more than your proxy's limit", ge=_1_S
    )
    compression: bool = setting(
        False, "compress large messages for clients that offer permessage-deflate; updates never are"
    )
    compress_from: Size = setting(
        "2KB", "compress HTTP answers of this size or more for clients that accept gzip or zstd; 0 for none"
    )
    own_sockets: bool = setting(
        True, "take over the clients' sockets after the handshake; false lets Tornado keep them, at five times the CPU"
    )
    cache: Size = setting(
        "64MB", "memory for encoded bars, from which rooms and HTTP answers are copied", ge=ByteSize(10**6)
    )
    shutdown_seconds: float = setting(
        0.0, "the time over which clients are disconnected when candled stops; 0 for all immediately", ge=0.0, le=3600.0
    )
    warmup_wait: Duration = setting(
        "10s",
        "how long a subscription waits for the current week to be complete, before it gets the bars in memory",
        ge=timedelta(0),
    )

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses to listen on; an empty text means all addresses of this machine."""
        return (self.host,) if isinstance(self.host, str) else self.host

    @property
    def internal_hosts(self) -> tuple[str, ...]:
        """The addresses of the internal port, in the same form."""
        return (self.internal_host,) if isinstance(self.internal_host, str) else self.internal_host


class LimitSettings(Settings):
    """The work that a connection and an address may cause, and the HTTP requests that an address may send in a window.

    The first request opens the window of its group of paths.
    """

    connection_work: Duration = setting(
        "100ms", "processor time that one connection may use per second; 0s for no limit", ge=timedelta(0)
    )
    address_work: Duration = setting(
        "250ms",
        "processor time that all connections of one address may use per second; 0s for no limit",
        ge=timedelta(0),
    )
    work_burst: Duration = setting("20s", "how long unused work adds up", ge=_1_S)
    work_wait: Duration = setting(
        "5s", "how long an answer may wait until the budget is refilled, before its request is refused", ge=_100_MS
    )
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
    exempt_cached: bool = setting(
        False, "do not count answers with bars that clients or caches keep: 304, and pages of /api/pages with a rev"
    )
    headers: Annotated[Distinct[Literal["legacy", "draft-6", "draft-8"]], AfterValidator(_check_headers)] = setting(
        ("legacy", "draft-6"),
        "headers that carry the limit: X-RateLimit-*, and RateLimit-* as in draft 6 or 8 of the IETF",
    )


class UdfSettings(Settings):
    """TradingView's charts, at /udf."""

    next_time: Literal["s", "ms"] = setting(
        "s", "the unit of nextTime for an empty range: s or ms; TradingView's own pages disagree"
    )


class KlinesSettings(Settings):
    """Binance's klines, for bots and libraries that speak Binance."""

    enabled: bool = setting(False, "serve /api/v3/klines and the kline streams")
    exchange: str | None = setting(None, "the exchange whose symbols are served; by default the first one")
    prefix: Annotated[str, matching(_PATH, "a path such as /binance")] = setting(
        "", "prefix of these paths, such as /binance"
    )


class IngestSettings(Settings):
    """The way candles are read from exchanges."""

    backfill: Duration = setting(
        "30d", "how far back a new store is filled; the current week is always filled", ge=timedelta(0)
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
        "number of parts into which the markets are divided for several ingest processes; the same in all processes",
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
        True, "the daemon creates or upgrades the store's tables on start; false leaves that to `candled init-db`"
    )
    flush_interval: Duration = setting(
        "250ms", "how long candles are collected before they are written together", ge=timedelta(milliseconds=1)
    )
    journal: str = setting("candled.journal", 'folder where candles wait while the store is unavailable; "" for none')
    journal_limit: Size = setting("256MB", "the maximum size of that folder", ge=ByteSize(64 * 10**3))
    compress_after: Duration = setting(
        "14d", "TimescaleDB compresses minutes older than this, in whole days; 0s for never", ge=timedelta(0)
    )
    retention: Duration = setting(
        "0s", "minutes older than this are deleted, in whole days; 0s keeps them forever", ge=timedelta(0)
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


class ControlSettings(Settings):
    """The access to a running daemon for commands on its machine."""

    socket: str = setting(
        "candled.control", 'the Unix socket at which `candled reload` reaches the daemon; "" for none'
    )


class AccessSettings(Settings):
    """The access tokens that clients need. Without a file of tokens and without a key of JWTs, they need none."""

    tokens_file: str = setting(
        "", 'the file of tokens that `candled token` writes; it is read again when it changes; "" for none'
    )
    jwt_key_file: str = setting(
        "",
        "the file with the key that verifies JWTs: a secret for HS256, else a public key in PEM; it is read again when "
        'it changes; "" for none',
    )
    jwt_algorithm: Literal["HS256", "RS256", "EdDSA"] | None = setting(
        None, "the only algorithm of JWTs that is accepted: HS256, RS256 or EdDSA"
    )
    jwt_audience: str | None = setting(None, "the audience (aud) that JWTs must have; null to check none")
    jwt_issuer: str | None = setting(None, "the issuer (iss) that JWTs must have; null to check none")

    @property
    def needs_tokens(self) -> bool:
        """True if clients need a token."""
        return bool(self.tokens_file or self.jwt_key_file)


class LogSettings(Settings):
    """The log, written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "the least serious level that is logged")
    format: Literal["text", "json"] = setting("text", "text for people, or json: an object in each line")


class OnDemandSettings(Settings):
    """Listed markets that are not chosen: they run while clients use them."""

    most: int = setting(0, "the most of these markets at a time; 0 for none", ge=0, le=1000)
    keep: Duration = setting("1h", "how long a market runs after its last use", ge=timedelta(minutes=1))
    most_per_address: int = setting(10, "the most of them that clients of one address may have started", ge=1)


class ExchangeKeys(Settings):
    """The daemon's own keys of each exchange; the other keys under its name belong to its plugin."""

    symbols: Annotated[Distinct[WrittenPattern], AfterValidator(_check_patterns)] = setting(
        ("BTC/USDT",),
        "markets, written BASE/QUOTE or BASE/QUOTE:SETTLE, and patterns such as */USDT and /^BTC/; ! excludes",
        min_length=1,
    )
    top: int | None = setting(None, "choose only this number of matching markets, by volume", ge=1)
    min_age: Duration = setting("0s", "how long a market that matches a pattern must have been traded", ge=timedelta(0))
    most: int = setting(500, "the most markets that patterns may choose, together with named ones", ge=1)
    on_demand: OnDemandSettings = setting(
        OnDemandSettings(), "markets that clients ask for, and that `symbols` does not choose"
    )
    refresh: Duration = setting(
        "30m",
        "how often the exchange's list of markets is read, and markets are chosen from it",
        ge=timedelta(minutes=1),
    )
    plugin: str | None = setting(None, "the plugin's exchange; by default the one of the same name")
    proxy: str | None = setting(
        None, "http://user:password@host:port, socks5h://…, or direct; by default the environment decides"
    )
