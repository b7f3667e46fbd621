"""The address of a WebSocket that an exchange gives out over REST: it must not lead into a private network."""

import asyncio
import socket
from urllib.parse import urlsplit

from websockets.uri import parse_uri

from candled.addresses import is_public
from candled.errors import Unavailable


async def find_address(url: str, configured: str, *, resolves: bool) -> str | None:
    """Return the public IP address to connect to, if `url` has another host than `configured`.

    Args:
        url: the address that the plugin returned.
        configured: the address that the settings or the plugin name. Its host may be in a private network.
        resolves: True if this machine resolves names, False if a proxy does.

    Returns:
        None if the host is the configured one, or a proxy resolves its name.

    Raises:
        Unavailable: the host is in a private network, or its name is unknown.
        InvalidURI: `url` is not the address of a WebSocket.
    """
    parts = parse_uri(url)
    if parts.host == urlsplit(configured).hostname:
        return None
    if resolves:
        addresses = await _resolve(parts.host, parts.port)
    else:
        addresses = await _read_numeric(parts.host)
    if not all(map(is_public, addresses)):
        raise Unavailable(f"the exchange gave out the address of a private network: {parts.host[:100]}")
    return addresses[0] if resolves else None


async def _resolve(host: str, port: int, flags: int = 0) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"the name {host[:100]} cannot be resolved") from error
    return [str(address[0]) for *_, address in found]


async def _read_numeric(host: str) -> list[str]:
    """Return the usual notation of a numeric address or of `localhost`; an empty list for other names."""
    if host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost"):
        return ["127.0.0.1"]
    try:
        return await _resolve(host, 0, socket.AI_NUMERICHOST)
    except Unavailable:
        return []
