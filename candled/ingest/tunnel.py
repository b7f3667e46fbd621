"""Connections through proxies: HTTP CONNECT, SOCKS4 and SOCKS5. TLS to the exchange goes through the tunnel."""

import asyncio
import base64
import re
import socket
import ssl
from datetime import timedelta
from typing import Any

from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio import Proxy
from tornado.iostream import IOStream
from tornado.tcpclient import TCPClient

from candled.addresses import with_port
from candled.errors import Unavailable
from candled.proxies import Proxies, ProxyAddress

_SOCKS = {  # scheme → protocol, and whether the proxy resolves the host name
    "socks5": (ProxyType.SOCKS5, False),
    "socks5h": (ProxyType.SOCKS5, True),
    "socks4": (ProxyType.SOCKS4, False),
    "socks4a": (ProxyType.SOCKS4, True),
}
_WITHIN_S = 60.0  # unless the caller sets a limit
_LONGEST_HEAD = 64 * 1024
_STATUS = re.compile(r"HTTP/1\.[01] (\d{3})(?: (.*))?")


class _RefusedError(Exception):
    """The proxy answered, but did not connect."""


async def open_tunnel(proxy: ProxyAddress, host: str, port: int, within_s: float) -> socket.socket:
    """Return a connection to a host and port through a proxy.

    Raises:
        Unavailable: the connection failed. The text names the proxy without its password.
    """
    try:
        async with asyncio.timeout(within_s):
            return await _opened(proxy, host, port, within_s)
    except (TimeoutError, ProxyTimeoutError) as late:
        raise _too_late(proxy, within_s) from late
    except OSError as failure:  # including those errors of python-socks that are OSErrors
        raise Unavailable(f"cannot reach the proxy {proxy}: {failure.strerror or failure}") from failure
    except (_RefusedError, ProxyError, ValueError) as failure:
        raise Unavailable(f"the proxy {proxy} does not connect to {with_port(host, port)}: {failure}") from failure


class TunnelingTCPClient(TCPClient):
    """The TCP client for Tornado's HTTP client, which uses a proxy if the settings choose one."""

    def __init__(self, proxies: Proxies) -> None:
        super().__init__()
        self._proxies = proxies

    async def connect(
        self,
        host: str,
        port: int,
        af: socket.AddressFamily = socket.AF_UNSPEC,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        max_buffer_size: int | None = None,
        source_ip: str | None = None,
        source_port: int | None = None,
        timeout: float | timedelta | None = None,
    ) -> IOStream:
        """Return a stream to a host and port, with TLS if `ssl_options` is given."""
        proxy = self._proxies.choose(host, port, is_secure=ssl_options is not None)
        if proxy is None:
            return await super().connect(host, port, af, ssl_options, max_buffer_size, source_ip, source_port, timeout)
        within_s = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout or _WITHIN_S
        try:
            async with asyncio.timeout(within_s):
                stream = IOStream(await open_tunnel(proxy, host, port, within_s), max_buffer_size=max_buffer_size)
                if ssl_options is None:
                    return stream
                return await stream.start_tls(False, ssl_options, server_hostname=host)
        except TimeoutError as late:
            raise _too_late(proxy, within_s) from late


def _too_late(proxy: ProxyAddress, within_s: float) -> Unavailable:
    return Unavailable(f"no connection through the proxy {proxy} within {within_s:.3g} s")


async def _opened(proxy: ProxyAddress, host: str, port: int, within_s: float) -> socket.socket:
    """Try the addresses of the proxy one after the other."""
    found = await asyncio.get_running_loop().getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    failure = OSError("its name has no address")
    for family, _, _, _, address in found:
        try:
            if proxy.scheme == "http":
                return await _connect_over_http(proxy, family, address, host, port)
            kind, resolves_remotely = _SOCKS[proxy.scheme]
            socks = Proxy(kind, str(address[0]), proxy.port, proxy.user, proxy.password, resolves_remotely)
            return await socks.connect(host, port, within_s)
        except socket.gaierror as error:
            other = "socks5h" if kind is ProxyType.SOCKS5 else "socks4a"
            raise _RefusedError(f"the name is unknown here; with {other}:// the proxy looks it up") from error
        except (ConnectionError, ProxyConnectionError) as error:
            failure = error
    raise failure


# ---------------------------------------------------------------- HTTP: python-socks reads one packet only


async def _connect_over_http(proxy: ProxyAddress, family: int, address: Any, host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    peer = socket.socket(family, socket.SOCK_STREAM)
    peer.setblocking(False)
    try:
        await loop.sock_connect(peer, address)
        await loop.sock_sendall(peer, _request(proxy, with_port(host, port)))
        head = b""
        while b"\r\n\r\n" not in head:
            part = await loop.sock_recv(peer, _LONGEST_HEAD)
            head += part
            if not part or len(head) > _LONGEST_HEAD:
                raise _RefusedError("it closed the connection" if not part else "its answer does not end")
        _check_reply(head.decode("latin-1"))
    except BaseException:
        peer.close()
        raise
    return peer


def _request(proxy: ProxyAddress, target: str) -> bytes:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", "User-Agent: candled"]
    if proxy.user is not None:
        pair = base64.b64encode(f"{proxy.user}:{proxy.password}".encode("latin-1")).decode()
        lines.append(f"Proxy-Authorization: Basic {pair}")
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def _check_reply(head: str) -> None:
    """Raise an error if the proxy's reply to CONNECT is not a success."""
    lines, _, early = head.partition("\r\n\r\n")
    first, *headers = lines.split("\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise _RefusedError("it is no HTTP proxy")
    if status[1] == "407":
        wanted = ", ".join(
            value.split()[0] for name, _, value in (one.partition(":") for one in headers)
            if name.lower() == "proxy-authenticate" and value.strip()
        )  # fmt: skip
        raise _RefusedError(f"407, it requires another user or password ({wanted or 'Basic'}; candled knows Basic)")
    if not status[1].startswith("2"):
        raise _RefusedError(f"{status[1]} {status[2] or ''}".strip())
    if early:
        raise _RefusedError("it sends something before the exchange does")
