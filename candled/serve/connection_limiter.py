"""Limits on connections and handshakes, and the address of a client behind proxies."""

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from candled.addresses import NETWORKS_PER_CUSTOMER, client_of, network_of, without_port
from candled.token_bucket import TokenBucket

if TYPE_CHECKING:
    from candled.config.sections import ServerSettings

_LONGEST_WAIT_S = 60.0
# A customer's share of the handshakes, per second and in a row, and the part of a second's handshakes that is reserved
# for customers within their share.
_SHARE, _SHARE_IN_A_ROW, _RESERVED = 1 / 8, 1 / 4, 0.5
_MOST_SHARES = 10_000  # customers, about 4 MB

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ClientLimits:
    """The limits of each client's session. All sessions share one object, so that a change applies to all of them."""

    def __init__(self, settings: "ServerSettings") -> None:
        self.set_limits(settings)

    def set_limits(self, settings: "ServerSettings") -> None:
        """Take the limits of new settings."""
        #: Subscriptions of one connection.
        self.max_rooms_per_connection = settings.max_rooms_per_connection
        #: Messages a client may send per second; 0 for no limit.
        self.max_messages_per_second = settings.max_messages_per_second
        #: How long a subscription waits for the current week to be complete.
        self.warmup_wait = settings.warmup_wait


class _Handshakes:
    """The handshakes that may be admitted, of all clients or of one customer."""

    def __init__(self, per_second: float, burst: float) -> None:
        self.bucket = TokenBucket(per_second, burst)
        self._rejected = 0  # rejected handshakes, less those admitted since

    def on_admitted(self) -> None:
        """Note an admitted handshake."""
        self._rejected = max(0, self._rejected - 1)

    def reject(self, per_second: float) -> float:
        """Return the seconds after which a client should try again, if so many per second are admitted then."""
        self._rejected += 1
        return min(_LONGEST_WAIT_S, 1.0 + self._rejected / per_second)


class ConnectionLimiter:
    """Counts clients in total and per address, and handshakes per second. A limit of 0 means none.

    An IPv6 address counts for its network (/64), and for its customer (/56), whose limit is four times as high. A
    customer with more handshakes than its share is rejected while less than half of the handshakes of a second are
    left.
    """

    def __init__(self, most: int, most_per_address: int, most_per_second: int = 0) -> None:
        self._per_second = 0
        self._handshakes = _Handshakes(0, 0)
        self._shares: OrderedDict[str, _Handshakes] = OrderedDict()  # by customer, oldest first
        self.set_limits(most, most_per_address, most_per_second)
        self._networks: Counter[str] = Counter()
        self._customers: Counter[str] = Counter()
        self.count = 0

    def set_limits(self, most: int, most_per_address: int, most_per_second: int) -> None:
        """Change the limits. Clients above a lower one stay connected."""
        self._most = most
        self._most_per_address = most_per_address
        if most_per_second != self._per_second:
            self._per_second = most_per_second
            self._handshakes = _Handshakes(most_per_second, most_per_second)
            self._shares.clear()

    def admit_handshake(self, now: float, address: str) -> float:
        """Return 0.0 if a handshake is admitted, else the seconds after which the client should try again.

        The times of clients rejected together are spread, so that no more return per second than can be admitted.
        """
        if not self._per_second:
            return 0.0
        everyone, share = self._handshakes, self._share_of(client_of(address), now)
        if share.bucket.try_take(now) and everyone.bucket.remaining_share(now) < _RESERVED:
            return share.reject(self._per_second)
        if everyone.bucket.try_take(now):
            return everyone.reject(self._per_second)
        everyone.on_admitted()
        share.on_admitted()
        return 0.0

    def return_handshake(self) -> None:
        """Note that an admitted handshake was refused for another reason."""
        self._handshakes.bucket.give_back()

    def _share_of(self, customer: str, now: float) -> _Handshakes:
        found = self._shares.get(customer)
        if found is None:
            while self._shares:
                oldest, share = next(iter(self._shares.items()))
                if len(self._shares) < _MOST_SHARES and share.bucket.remaining_share(now) < 1.0:
                    break
                del self._shares[oldest]
            found = self._shares[customer] = _Handshakes(self._per_second * _SHARE, self._per_second * _SHARE_IN_A_ROW)
        return found

    def refusal_for(self, address: str) -> tuple[int, str] | None:
        """Return the HTTP status and message that refuse a connection from `address`; None if it is accepted."""
        if self._most and self.count >= self._most:
            return 503, f"Too many connections: this server takes {self._most}"
        most, customer = self._most_per_address, client_of(address)
        if most and (
            self._networks[network_of(address)] >= most
            or self._customers[customer] >= most * (NETWORKS_PER_CUSTOMER if ":" in customer else 1)
        ):
            return 429, f"Too many connections from {address}: at most {most}"
        return None

    def count_of(self, customer: str) -> int:
        """Return the number of clients of one customer, a result of `client_of`."""
        return self._customers[customer]

    def add_connection(self, address: str) -> None:
        """Count a new client."""
        self.count += 1
        self._networks[network_of(address)] += 1
        self._customers[client_of(address)] += 1

    def remove_connection(self, address: str) -> None:
        """Count the end of a client."""
        self.count -= 1
        for counts, key in ((self._networks, network_of(address)), (self._customers, client_of(address))):
            counts[key] -= 1
            if not counts[key]:
                del counts[key]


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse addresses and networks such as `10.0.0.0/8`.

    Raises:
        ValueError: a text is neither.
    """
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[Network]) -> str:
    """Return the address that a request comes from.

    `X-Forwarded-For` counts only if the TCP peer is a trusted proxy. Then the client is the last address in the list
    that is not a trusted proxy's. A client could forge the others.
    """
    address = peer
    hops = [without_port(hop.strip()) for hop in (forwarded_for or "").split(",") if hop.strip()]
    while hops and is_trusted(address, trusted):
        address = hops.pop()
    return address


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Return True if the address is that of a trusted proxy."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:  # IPv4 on a dual-stack socket
        ip = ip.ipv4_mapped
    return any(ip in network for network in trusted)
