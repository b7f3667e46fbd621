"""The address of a Redis: one server, a server found through sentinels, or a cluster."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import parse_qsl, unquote

from candled.addresses import with_port

Kind = Literal["server", "socket", "sentinel", "cluster"]

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_PORT = 6379
_SENTINEL_PORT = 26379
_FILES = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}  # redis-py's names for them
_HOST = re.compile(r"\[([0-9A-Fa-f:.%]+)\](?::(.*))?|([^\s:\[\]@,]+)(?::(.*))?")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis: one server, a socket, sentinels or a cluster."""

    #: The kind of the address, which decides the meaning of the other fields.
    kind: Kind
    #: The hosts and ports of a server, of sentinels or of some nodes of a cluster; empty for a socket.
    hosts: tuple[tuple[str, int], ...] = ()
    #: The path of a socket; empty for other kinds.
    path: str = ""
    #: The name by which sentinels know the server; empty for other kinds.
    service: str = ""
    #: The number of the database; 0 for a cluster.
    database: int = 0
    #: The user of the servers; None for Redis's default user.
    username: str | None = None
    #: The password of the servers; None if they need none.
    password: str | None = field(default=None, repr=False)
    #: The user of the sentinels; None for Redis's default user.
    sentinel_username: str | None = None
    #: The password of the sentinels; None if they need none.
    sentinel_password: str | None = field(default=None, repr=False)
    #: True if connections use TLS, those to sentinels as well.
    tls: bool = False
    #: The paths of the TLS files, by redis-py's names for them.
    files: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(url: str) -> "RedisAddress":
        """Parse an address.

            redis://user:password@host:6379/0            also rediss:// for TLS
            unix:///path/to/socket?db=0                  also unix://user:password@/path
            redis+sentinel://host:26379,host2/service/0  also rediss+sentinel://; the sentinels' own account is
                                                         ?sentinel_username=…&sentinel_password=…
            redis+cluster://host:6379,host2              also rediss+cluster://

        Raises:
            ValueError: the address has another form. The text does not repeat it.
        """
        scheme, found, rest = url.partition("://")
        if not found or scheme not in SCHEMES:
            raise ValueError(f"expected one of {', '.join(f'{one}://' for one in SCHEMES)}")
        rest, _, query = rest.partition("?")
        options = _options(query, scheme)
        before, slash, path = rest.partition("/")
        username, password, hosts = _account(before)
        base = RedisAddress(
            "server",
            username=username,
            password=password,
            tls=scheme.startswith("rediss"),
            files={_FILES[name]: options[name] for name in _FILES if name in options},
        )
        if scheme == "unix":
            return _socket(base, hosts, slash + unquote(path), options)
        if scheme.endswith("+sentinel"):
            return _sentinel(base, hosts, path, options)
        if scheme.endswith("+cluster"):
            if path not in ("", "0"):
                raise ValueError("a cluster has only database 0, nothing can follow the nodes")
            return replace(base, kind="cluster", hosts=_hosts(hosts, _PORT))
        addresses = _hosts(hosts, _PORT)
        if len(addresses) > 1:
            raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
        return replace(base, hosts=addresses, database=_database(path))

    def __str__(self) -> str:
        """Return the address for people, without user and password."""
        hosts = ",".join(with_port(host, port) for host, port in self.hosts)
        if self.kind == "socket":
            return self.path
        return f"{self.service} at {hosts}" if self.kind == "sentinel" else hosts


def _socket(base: RedisAddress, host: str, path: str, options: Mapping[str, str]) -> RedisAddress:
    if host:
        raise ValueError("expected three slashes before the path of a socket, unix:///run/redis.sock")
    if path in ("", "/"):
        raise ValueError("the path of the socket is missing, unix:///run/redis.sock")
    return replace(base, kind="socket", path=path, database=_database(options.get("db", "")))


def _sentinel(base: RedisAddress, hosts: str, path: str, options: Mapping[str, str]) -> RedisAddress:
    service, _, database = path.partition("/")
    if not service:
        raise ValueError("the name of the service is missing after the sentinels, redis+sentinel://host:26379/mymaster")
    return replace(
        base,
        kind="sentinel",
        hosts=_hosts(hosts, _SENTINEL_PORT),
        service=unquote(service),
        database=_database(database),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _account(text: str) -> tuple[str | None, str | None, str]:
    account, at, hosts = text.rpartition("@")
    if not at:
        return None, None, hosts
    username, colon, password = account.partition(":")
    if not colon:
        raise ValueError("a colon is missing before the password, redis://:password@host")
    return unquote(username) or None, unquote(password) or None, hosts


def _hosts(text: str, port: int) -> tuple[tuple[str, int], ...]:
    return tuple(_host(one, port) for one in text.split(","))


def _host(text: str, port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise ValueError("expected host or host:port" if text else "the host is missing")
    host = match[1] or match[3]
    digits = match[2] if match[1] else match[4]
    if digits is None:
        return host, port
    if not re.fullmatch(r"[0-9]{1,5}", digits) or not 0 < int(digits) < 65536:
        raise ValueError("the port is a number from 1 to 65535; @, / and : in a password are written %40, %2F, %3A")
    return host, int(digits)


def _database(text: str) -> int:
    if text in ("", "/"):
        return 0
    if not re.fullmatch(r"[0-9]{1,4}", text):
        raise ValueError("the database is a number, redis://host:6379/0")
    return int(text)


def _options(query: str, scheme: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = ["db"] if scheme == "unix" else list(_FILES) if scheme.startswith("rediss") else []
    if scheme.endswith("+sentinel"):
        known += ["sentinel_username", "sentinel_password"]
    for name in options:
        if name not in known:
            choice = f"known are {', '.join(known)}" if known else "none is known"
            raise ValueError(f"an unknown parameter after the question mark, {choice}")
    return options
