"""The notation of hosts and ports, and the client that an address counts for."""

import ipaddress
import re
from functools import lru_cache

_IPV6_CUSTOMER = 56  # bits that providers assign to one customer; express-rate-limit uses the same
_IPV6_NETWORK = 64  # bits of one network, in which a machine may choose any address
#: The IPv6 networks of one customer that may reach the limits of an address.
NETWORKS_PER_CUSTOMER = 4
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # its last 32 bits are an IPv4 address
_HOP = re.compile(r'"?(?:\[([0-9A-Fa-f:.]+)\](?::\d*)?|(\d+\.\d+\.\d+\.\d+):\d*)"?')


def with_port(host: str, port: int) -> str:
    """Return `127.0.0.1:7000`, `example.org:7000` or `[::1]:7000`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_port(hop: str) -> str:
    """Return the address of an entry of `X-Forwarded-For`, which some proxies write with a port: `192.0.2.1:5000`."""
    match = _HOP.fullmatch(hop)
    return hop if match is None else match[1] or match[2]


@lru_cache(maxsize=1024)
def client_of(address: str) -> str:
    """Return the client that an address counts for: the IPv4 address, or the first 56 bits of an IPv6 address.

    An IPv4 address written as IPv6 (`::ffff:192.0.2.1`) counts as IPv4. Text that is not an address counts as it is.
    """
    return _network_of(address, _IPV6_CUSTOMER)


@lru_cache(maxsize=1024)
def network_of(address: str) -> str:
    """Return the network of an address: the IPv4 address itself, or the first 64 bits of an IPv6 address."""
    return _network_of(address, _IPV6_NETWORK)


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet, also if it is an IPv4 address written as IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or nat64 or ip
    return ip.is_global and not ip.is_multicast


def _network_of(address: str, bits: int) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip), bits), strict=False))
