"""The proxy of a connection to an exchange: from the settings, otherwise from the environment."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from candled.addresses import with_port

DIRECT = "direct"
"""The setting for direct connections, regardless of the environment."""

_PORTS = {"http": 80, "socks5": 1080, "socks5h": 1080, "socks4": 1080, "socks4a": 1080}
_EXPECTED = "expected a proxy such as http://user:password@proxy.example.org:3128 or socks5h://127.0.0.1:1080"
_LONGEST = 255  # bytes of a SOCKS user and password
_ENTRY = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>\d+))?")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """One proxy. `str()` omits user and password."""

    #: `http`, `socks4`, `socks4a`, `socks5` or `socks5h`.
    scheme: str
    #: The host name or IP address, without brackets.
    host: str
    #: The port; the scheme's usual one if the address has none.
    port: int
    #: The user; None for a proxy without authentication.
    user: str | None = None
    #: The password, which may be empty; None without a user.
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `http://user:password@host:port`; a text without a scheme means `http://`.

        Raises:
            ValueError: the text is invalid. The message gives the reason and does not repeat the password.
        """
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname, parts.port
        except ValueError:  # its text may repeat everything
            raise ValueError(_EXPECTED) from None
        scheme = "socks5" if parts.scheme == "socks" else parts.scheme  # as desktops write it
        if scheme == "https":
            raise ValueError("TLS to the proxy itself is not supported: write http://, the exchange's TLS goes through")
        if scheme not in _PORTS:
            raise ValueError(f"a proxy begins with one of {', '.join(f'{one}://' for one in _PORTS)}")
        if not host or parts.path.strip("/") or parts.query or parts.fragment or port == 0:
            raise ValueError(f"{_EXPECTED}; signs such as / and # in a password are written as %2F and %23")
        user, password = (None if one is None else unquote(one) for one in (parts.username, parts.password))
        if scheme == "http" and (":" in (user or "") or not _is_latin(f"{user}{password}")):
            raise ValueError("HTTP proxies take no : in a user, and only Latin letters in user and password")
        if any(len((one or "").encode()) > _LONGEST for one in (user, password)):
            raise ValueError(f"user and password have at most {_LONGEST} bytes each")
        return cls(scheme, host, port or _PORTS[scheme], user or None, (password or "") if user else None)

    def __str__(self) -> str:
        return f"{self.scheme}://{with_port(self.host, self.port)}"

    @property
    def full_text(self) -> str:
        """The text that `parse` reads, with user and password."""
        user = "" if self.user is None else f"{quote(self.user, '')}:{quote(self.password or '', '')}@"
        return f"{self.scheme}://{user}{with_port(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class Proxies:
    """The choice of a proxy for each address. Without arguments, all connections are direct."""

    #: The value in the settings; None: the environment decides.
    written: str | None = field(default=None, repr=False)
    #: The proxy for `https://` and `wss://`.
    secure: ProxyAddress | None = None
    #: The proxy for `http://` and `ws://`.
    plain: ProxyAddress | None = None
    #: Hosts to connect to without a proxy, as in the variable `NO_PROXY`.
    exempt: str = ""
    #: True if the proxies come from the environment. These are not used for this machine's own addresses.
    is_environment: bool = False

    @classmethod
    def from_setting(cls, written: str | None, env: Mapping[str, str]) -> Self:
        """Parse a setting, or the variables `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` if it is None.

        Raises:
            ValueError: a value is invalid. The message names the variable and does not repeat a password.
        """
        if written is not None:
            text = written.strip()
            proxy = None if text.lower() in ("", DIRECT) else ProxyAddress.parse(text)
            return cls(written, proxy, proxy)
        found = {name: _variable(env, name) for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")}
        secure, plain = (
            _parsed(name, found[name]) if found[name] else _parsed("ALL_PROXY", found["ALL_PROXY"])
            for name in ("HTTPS_PROXY", "HTTP_PROXY")
        )
        return cls(None, secure, plain, found["NO_PROXY"], is_environment=True)

    def choose(self, host: str, port: int, *, is_secure: bool) -> ProxyAddress | None:
        """Return the proxy for a host and port; None for a direct connection."""
        proxy = self.secure if is_secure else self.plain
        if proxy is None or (self.is_environment and _is_own(host)) or is_exempt(self.exempt, host, port):
            return None
        return proxy

    def describe(self) -> str:
        """Describe the proxies in use, without passwords."""
        origin = "the environment" if self.is_environment else "the settings"
        secure, plain = ("direct" if one is None else _named(one) for one in (self.secure, self.plain))
        shown = secure if secure == plain else f"{secure} (http:// and ws://: {plain})"
        if self.secure is None and self.plain is None:
            return "direct" if self.is_environment else f"direct, from {origin}"
        return f"{shown}, from {origin}{f', except for {self.exempt}' if self.exempt else ''}"


def is_exempt(no_proxy: str, host: str, port: int) -> bool:
    """Return whether a list such as `localhost,.corp.example,10.0.0.0/8,[::1]:8443` contains this host and port.

    `*` matches all hosts. A name matches itself and its subdomains, an address matches itself, and a network its
    addresses.
    """
    name = host.strip("[]").rstrip(".").lower()
    address = _address(name)
    return any(_names(entry.lower(), name, address, port) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _names(entry: str, name: str, address: _Address | None, port: int) -> bool:
    if entry == "*":
        return True
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    else:
        return address is not None and address in network
    match = _ENTRY.fullmatch(entry)
    if match is None or (match["port"] and int(match["port"]) != port):
        return False
    only = match["host"].removeprefix("*").strip(".")
    if address is not None:
        return _address(only.strip("[]")) == address
    return bool(only) and (name == only or name.endswith(f".{only}"))


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_own(host: str) -> bool:
    address = _address(host.strip("[]"))
    return address.is_loopback if address is not None else host.rstrip(".").lower() == "localhost"


def _variable(env: Mapping[str, str], name: str) -> str:
    return (env.get(name.lower()) or env.get(name) or "").strip()


def _parsed(name: str, text: str) -> ProxyAddress | None:
    try:
        return ProxyAddress.parse(text) if text else None
    except ValueError as error:
        raise ValueError(f"the variable {name}: {error}") from None


def _named(proxy: ProxyAddress) -> str:
    return str(proxy) if proxy.user is None else f"{proxy} as {proxy.user}"


def _is_latin(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True
