"""Listening sockets on any number of IPv4 and IPv6 addresses, all with the same port."""

import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from candled.addresses import with_port
from candled.errors import ConfigError

_ATTEMPTS = 20  # to find a port that is free on every address, if the system chooses it
_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # for instance, if IPv6 is switched off
_OWN = ("", "0.0.0.0", "::", "127.0.0.1")


class _TakenError(ConfigError):
    """Port already in use."""


def listen(
    hosts: Sequence[str], port: int, backlog: int | None, *, shared: bool = False, name: str = "server"
) -> list[socket.socket]:
    """Return sockets on all addresses of `hosts`. An empty host means all addresses of this machine.

    With port 0 the system chooses one port for all of them. `shared` lets other processes of the same user listen on
    the port too. Without a `backlog`, the sockets only have the port: the system gives them no connections until you
    call `listen` of each. `name` is the setting that an error names.

    Raises:
        ConfigError: an address cannot be listened on; the text names it. No socket stays open.
    """
    for _ in range(_ATTEMPTS if port == 0 else 0):
        with suppress(_TakenError):
            return _listen(hosts, port, backlog, shared, name)
    return _listen(hosts, port, backlog, shared, name)


def in_browser(hosts: Sequence[str], port: int) -> str:
    """Return the host and port to enter in a browser on this machine: `localhost` if the hosts include it."""
    host = hosts[0].strip("[]")
    return with_port("localhost" if host in _OWN else host, port)


def _listen(hosts: Sequence[str], port: int, backlog: int | None, shared: bool, name: str) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    with ExitStack() as opened:
        for host in hosts:
            unavailable: ConfigError | None = None
            works = False
            for family, address in _addresses(host, name):
                number = sockets[0].getsockname()[1] if sockets else port
                if (address[0], number) not in [one.getsockname()[:2] for one in sockets]:  # another host may have it
                    try:
                        sockets.append(_listening(family, (address[0], number, *address[2:]), backlog, shared))
                    except OSError as error:
                        unavailable = _problem(error, with_port(str(address[0]), number), name)
                        if error.errno not in _UNAVAILABLE:
                            raise unavailable from error
                        continue
                    opened.callback(sockets[-1].close)
                works = True
            if unavailable is not None and not works:
                raise unavailable
        opened.pop_all()
    return sockets


def _addresses(host: str, setting: str) -> list[tuple[socket.AddressFamily, Any]]:
    """Resolve a host; IPv4 addresses come first."""
    name = host.strip("[]") or None
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{setting}: cannot listen on {host}: {getattr(error, 'strerror', None) or error}") from error
    return [(family, address) for family, _, _, _, address in sorted(found, key=lambda one: one[0])]


def _listening(
    family: socket.AddressFamily, address: tuple[str | int, ...], backlog: int | None, shared: bool
) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # IPv4 gets a socket of its own
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind(address)
        if backlog is not None:
            one.listen(backlog)
    except BaseException:
        one.close()
        raise
    return one


def _problem(error: OSError, address: str, name: str) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return _TakenError(f"{name}: cannot listen on {address}: the port is in use")
    return ConfigError(f"{name}: cannot listen on {address}: {error.strerror or error}")
