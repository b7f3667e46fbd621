"""The HTTP connections from accept to their end: their limits, and the choice of those that make room."""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from candled.addresses import NETWORKS_PER_CUSTOMER, client_of
from candled.token_bucket import TokenBucket

from .work_budget import CONNECT, REFUSAL, REFUSED, UNLIMITED, WorkBucket, WorkBudgets

# Connections beyond the limits of clients, in total and per address: for probes, and for answers while no place is
# free.
SPARE = 100
SPARE_PER_ADDRESS = 50
_FRESH_S = 1.0  # a new connection keeps its descriptor for this time
# Refused requests of an address, in a row and per second. Above that, its requests are refused unread.
_REFUSALS, _REFUSALS_PER_S = 50, 10
_MOST_REFUSED = 10_000  # buckets
REFUSED_S = 5  # seconds in which they are refused unread
# The reserve for probes from an address that has used up its budget: requests in a row, and requests a second.
_PROBES, _PROBES_PER_S = 20, 10
PROBES = ("/health/live", "/health/ready", "/livez", "/readyz")
MOST_UNSENT = 16 * 1024 * 1024  # bytes of answers that clients have not read, of all connections together


class HttpConnection(Protocol):
    """A connection. `candled.transport.hot_stream.HotStream` implements it."""

    address: str
    #: The customer of the address, as `client_of` returns it.
    customer: str
    #: The budget of its work; set by `add_connection`.
    budget: WorkBucket
    #: Monotonic time at which it is closed, while it awaits a request.
    deadline: float
    #: Bytes of answers that are not sent yet, and monotonic time of the last progress.
    unsent: int
    progressed_at: float

    def close(self) -> None:
        """Close the connection, which calls `remove_connection`."""

    def close_for_room(self) -> None:
        """Close the connection to make room. If it has begun to send a request, it gets an answer."""


class ClientCounts(Protocol):
    """The lasting connections: WebSockets and event streams. `candled.serve.connection_limiter` implements it."""

    count: int

    def count_of(self, customer: str) -> int:
        """Return the number of clients of one customer."""


class _Crowd:
    """Connections by customer, oldest first. It finds the customer that has most of them in constant time."""

    def __init__(self) -> None:
        self._members: dict[str, OrderedDict[HttpConnection, None]] = {}
        self._by_size: dict[int, dict[str, None]] = {}
        #: The number of connections of the customer that has most.
        self.largest = 0

    def add_member(self, one: HttpConnection) -> None:
        members = self._members.setdefault(one.customer, OrderedDict())
        if one not in members:
            members[one] = None
            self._resize(one.customer, len(members) - 1, len(members))

    def remove(self, one: HttpConnection) -> None:
        members = self._members.get(one.customer)
        if members is not None and one in members:
            del members[one]
            self._resize(one.customer, len(members) + 1, len(members))

    def oldest_of(self, customer: str) -> HttpConnection | None:
        return next(iter(self._members.get(customer, ())), None)

    def oldest_of_heaviest(self) -> HttpConnection | None:
        return self.oldest_of(next(iter(self._by_size[self.largest]))) if self.largest else None

    def size_of(self, customer: str) -> int:
        return len(self._members.get(customer, ()))

    def everyone(self) -> list[HttpConnection]:
        return [one for members in self._members.values() for one in members]

    def _resize(self, customer: str, former: int, size: int) -> None:
        if former:
            del self._by_size[former][customer]
            if not self._by_size[former]:
                del self._by_size[former]
        if size:
            self._by_size.setdefault(size, {})[customer] = None
        else:
            del self._members[customer]
        if size > self.largest or self.largest not in self._by_size:
            self.largest = size  # one more, or one less than the former largest


class HttpConnections:
    """Counts HTTP connections and clients together, and closes the least valuable ones. A limit of 0 means none.

    To make room, connections that await a request are closed before those being answered. Among them, the address with
    the most connections loses its oldest one. An address for which `is_proxy` is true has no limit of its own.
    `limits` are those of `set_limits`. Pure.
    """

    def __init__(
        self,
        clients: ClientCounts,
        *,
        is_proxy: Callable[[str], bool] = lambda _: False,
        budgets: WorkBudgets | None = None,
        prefix: str = "",
        **limits: Any,
    ) -> None:
        self._clients = clients
        self._budgets = WorkBudgets() if budgets is None else budgets
        self.set_limits(**limits)
        self._is_proxy = is_proxy
        self._prefix = prefix
        self._awaiting = _Crowd()
        self._answered = _Crowd()
        self._customers: Counter[str] = Counter()
        self._is_counted: set[HttpConnection] = set()
        self._refusals: dict[tuple[str, str], TokenBucket] = {}  # by customer and directory, of the last seconds
        self._probes: dict[str, TokenBucket] = {}  # by customer, of the last seconds
        self._refused_until: dict[tuple[str, str], float] = {}  # monotonic time until which these are refused unread
        self.unsent = 0  # bytes of answers
        self.closed_late = 0  # connections closed because of a timeout
        self.closed_for_room = 0

    def __len__(self) -> int:
        return len(self._is_counted)

    def set_limits(self, *, most: int, most_per_address: int, header_s: float, idle_s: float, stalled_s: float) -> None:
        """Change the limits. They apply to new connections, and to the next request of the others."""
        self._most = most
        self._most_per_address = most_per_address
        self._header_s = header_s
        self._idle_s = idle_s
        self._stalled_s = stalled_s

    def describe(self) -> dict[str, int]:
        """Return the numbers for `/health`."""
        return {
            "connections": len(self),
            "unsentBytes": self.unsent,
            "closedLate": self.closed_late,
            "closedForRoom": self.closed_for_room,
        }

    # ------------------------------------------------------------ calls from the acceptor

    def make_room(self, customer: str, address: str) -> bool:
        """Make room for a connection; return False if clients take all of it."""
        most = self._most_per_address
        if most and not self._is_proxy(address):
            most = most * (NETWORKS_PER_CUSTOMER if ":" in customer else 1) + SPARE_PER_ADDRESS
            if self._customers[customer] + self._clients.count_of(customer) >= most and not self._close_for_room(
                self._awaiting.oldest_of(customer) or self._answered.oldest_of(customer)
            ):
                return False
        return not self._most or len(self) + self._clients.count < self._most + SPARE or self.close_least()

    def is_address_refused(self, address: str, head: bytes, now: float) -> bool:
        """Return True if a connection has to be refused unread, because its address has used up its budget of work.

        `head` is the beginning of its request as far as it is known, because probes are not refused.
        """
        if self._is_proxy(address) or self._budgets.address_bucket(address).wait_of(now) != REFUSED:
            return False
        is_probe = not head or self.is_probe(_path_of(head))
        return not (is_probe and self._probe_bucket(client_of(address)).try_take(now) == 0)

    def is_probe(self, path: str) -> bool:
        """Return True for the path of a probe, with or without the prefix of the settings."""
        return path.removeprefix(self._prefix) in PROBES

    def admit_probe(self, path: str, customer: str, now: float) -> bool:
        """Take a request from the reserve for probes, which are answered even if the budget is used up."""
        return self.is_probe(path) and self._probe_bucket(customer).try_take(now) == 0

    def _probe_bucket(self, customer: str) -> TokenBucket:
        bucket = self._probes.get(customer)
        if bucket is None:
            bucket = TokenBucket(_PROBES_PER_S, _PROBES)
            if len(self._probes) < _MOST_REFUSED:
                self._probes[customer] = bucket
        return bucket

    def close_least(self) -> bool:
        """Close the least valuable connection; return False if there is none."""
        return self._close_for_room(self._awaiting.oldest_of_heaviest() or self._answered.oldest_of_heaviest())

    def close_stale(self, now: float, newcomer: str | None = None) -> bool:
        """Close the least valuable connection if it is idle, or half-open for a second; return False if not.

        For a `newcomer`, a customer with fewer connections, it is closed in any case.
        """
        one = self._awaiting.oldest_of_heaviest()
        is_fresh = one is not None and -_FRESH_S < one.deadline - now - self._header_s <= 0
        is_light = newcomer is not None and self._awaiting.size_of(newcomer) + 1 < self._awaiting.largest
        return (is_light or not is_fresh) and self._close_for_room(one)

    def add_connection(self, one: HttpConnection, now: float) -> None:
        """Count a new connection, which has the header timeout to send its request."""
        self._is_counted.add(one)
        one.budget = UNLIMITED if self._is_proxy(one.address) else self._budgets.open_connection(one.address)
        one.budget.charge(CONNECT, now)
        self._customers[one.customer] += 1
        self._awaiting.add_member(one)
        one.deadline = now + self._header_s

    def remove_connection(self, one: HttpConnection) -> None:
        """Stop counting a connection that has ended or is a client now."""
        self._awaiting.remove(one)
        self._answered.remove(one)
        if one in self._is_counted:
            self._is_counted.remove(one)
            self._budgets.close_connection(one.budget)
            self.unsent -= one.unsent
            one.unsent = 0
            self._customers[one.customer] -= 1
            if not self._customers[one.customer]:
                del self._customers[one.customer]

    # ------------------------------------------------------------ calls from the connections

    def await_request(self, one: HttpConnection, now: float) -> None:
        """Note that a connection was answered and may stay idle."""
        if one not in self._is_counted:  # it was an event stream
            self.add_connection(one, now)
        self._answered.remove(one)
        self._awaiting.add_member(one)
        one.deadline = now + self._idle_s

    def on_first_bytes(self, one: HttpConnection, now: float) -> None:
        """Note that a request begins: its header must be complete in time."""
        one.deadline = min(one.deadline, now + self._header_s)

    def on_request(self, one: HttpConnection, now: float) -> None:
        """Note that a header is complete, and its answer is being made."""
        if one in self._is_counted:
            one.progressed_at = now
            self._awaiting.remove(one)
            self._answered.add_member(one)

    def on_written(self, one: HttpConnection, size: int) -> None:
        """Count bytes of an answer that are not sent yet."""
        if one in self._is_counted:
            one.unsent += size
            self.unsent += size

    def on_sent(self, one: HttpConnection, size: int, now: float) -> None:
        """Count bytes of an answer that the kernel has taken."""
        if one in self._is_counted:
            one.unsent -= size
            self.unsent -= size
            one.progressed_at = now

    def count_refusal(self, one: HttpConnection, address: str, directory: str, now: float) -> None:
        """Count a request below `directory` that a limit refused. After too many, more are refused unread."""
        if not directory or self._is_proxy(address) or len(self._refusals) > _MOST_REFUSED:
            return
        key = one.customer, directory
        bucket = self._refusals.setdefault(key, TokenBucket(_REFUSALS_PER_S, _REFUSALS))
        if bucket.try_take(now):
            self._refused_until[key] = now + REFUSED_S

    def is_refused(self, one: HttpConnection, head: bytes, now: float) -> bool:
        """Return True if a request has to be refused unread; its connection then ends."""
        if one.budget.wait_of(now) == REFUSED:
            is_probe = self.is_probe(_path_of(head)) and self._probe_bucket(one.customer).remaining_share(now) > 0
            return not is_probe and one.budget.admit(REFUSAL, now) == REFUSED
        if not self._refused_until:
            return False
        directory = _path_of(head).rpartition("/")[0]
        return self._refused_until.get((one.customer, directory), 0.0) > now

    # ------------------------------------------------------------ every second

    def sweep(self, now: float) -> list[HttpConnection]:
        """Return the connections to be closed, each once: those that are late, and those that stopped reading."""
        self._refused_until = {name: until for name, until in self._refused_until.items() if until > now}
        self._refusals = {name: one for name, one in self._refusals.items() if one.remaining_share(now) < 1.0}
        self._probes = {name: one for name, one in self._probes.items() if one.remaining_share(now) < 1.0}
        late = [one for one in self._awaiting.everyone() if one.deadline <= now]
        reading = [one for one in self._is_counted if one.unsent]
        late += [one for one in reading if now - one.progressed_at > self._stalled_s]
        for one in late:
            one.deadline = one.progressed_at = math.inf
        self.closed_late += len(set(late))
        return list(dict.fromkeys(late))

    def close_unread(self) -> None:
        """Close connections of the address with the most unread bytes, until all unread bytes fit the limit."""
        while self.unsent > MOST_UNSENT:
            sizes: Counter[str] = Counter()
            for one in self._is_counted:
                sizes[one.customer] += one.unsent
            heaviest = sizes.most_common(1)[0][0]
            for one in [one for one in self._is_counted if one.unsent and one.customer == heaviest]:
                if self.unsent > MOST_UNSENT:
                    self._close_for_room(one)

    def _close_for_room(self, one: HttpConnection | None) -> bool:
        if one is None:
            return False
        self.closed_for_room += 1
        one.close_for_room()
        return True


def _path_of(head: bytes) -> str:
    """Return the path of a request that is not parsed yet."""
    return head.partition(b" ")[2].partition(b" ")[0].partition(b"?")[0].decode("latin-1")
