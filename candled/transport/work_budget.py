"""The work that one connection and one address may cause: processor time and bytes, in one budget. Pure.

The unit is a second of processor time. A byte of an answer has a price too, because networks are as limited.
"""

import math
from typing import Self

from candled.addresses import NETWORKS_PER_CUSTOMER, client_of, network_of

# Costs, measured on one core of a small server. docs/reference/settings.md explains them.
BYTE = 10e-9  # of an answer
FRAME = 8e-6  # a received frame of any kind
SUBSCRIBE = 75e-6
BAR = 0.9e-6  # a bar of an answer from memory; most of it is the price of its bytes
PATTERN = 1e-3  # a pattern of symbols that no other client uses
PATTERN_MARKET = 8e-6  # in addition, for each market of its exchange
RESUME = 0.1e-3  # in addition, because its message is rendered for one client
COLD_BAR = 9e-6  # a bar that is read, folded and printed
SEARCHED = 1.5e-6  # a market whose names are searched
COLD_READ = 1e-3  # a query of the store
CONNECT = 0.1e-3
TLS_HANDSHAKE = 1e-3  # in addition, with a key of RSA, which takes longest
REQUEST = 0.3e-3  # an HTTP request, and a handshake
HOT_REQUEST = 25e-6  # one that is answered from memory
HEAD_PART = 20e-6  # a part of the head of a request, unless it is the last one
REFUSAL = 60e-6
PENALTY = 20e-3  # of a connection that goes on after a refusal; a client that retries once a second can afford it

REFUSED = math.inf
_LIGHT_PERCENT = 99  # a light client has at least this left of its saved-up budget
_END = 2  # a connection is closed at this multiple of the longest wait
_MOST_ADDRESSES = 100_000


def initial_cost(bars: int, *, is_loaded: bool, resumes: bool = False) -> float:
    """Return the cost of a subscription with so many bars."""
    return SUBSCRIBE + (bars * BAR if is_loaded else page_cost(bars)) + resumes * RESUME


def pattern_cost(markets: int) -> float:
    """Return the cost of a new pattern room, given the number of markets of its exchange."""
    return SUBSCRIBE + PATTERN + markets * PATTERN_MARKET


def page_cost(bars: int) -> float:
    """Return the cost of a page of bars that memory does not have ready."""
    return COLD_READ + bars * COLD_BAR


class WorkRate:
    """The rate at which the budgets of one kind are refilled. A change applies to all of them."""

    __slots__ = ("cost_factor",)

    def __init__(self, per_second: float) -> None:
        self.set_rate(per_second)

    def set_rate(self, per_second: float) -> None:
        """Refill `per_second` seconds of work per second from now on; 0 is no limit."""
        #: The seconds that it takes to pay for a second of work; 0.0 without a limit.
        self.cost_factor = 1 / per_second if per_second else 0.0


class WorkBucket:
    """A budget that is refilled steadily: of a connection, of its address, or of several networks of one customer.

    `paid_at` is the time at which all work charged so far is paid. Work is charged to the buckets above it too.
    """

    __slots__ = ("_budgets", "_rate", "key", "members", "paid_at", "parent")

    def __init__(self, budgets: "WorkBudgets", rate: WorkRate, parent: Self | None = None, key: str = "") -> None:
        self._budgets = budgets
        self._rate = rate
        self.parent = parent
        self.key = key
        # open connections of an address; networks in use of a customer
        self.members = 0
        # monotonic time; in the past, it is the unused part of the budget
        self.paid_at = -math.inf

    @property
    def longest_wait_s(self) -> float:
        """The seconds that an answer may wait."""
        return self._budgets.wait_s

    def charge(self, cost: float, now: float) -> float:
        """Charge work that is done in any case; return `wait_of` as it was before."""
        budgets = self._budgets
        oldest, latest, wait_s = now - budgets.burst_s, now + budgets.most_debt_s, 0.0
        bucket: WorkBucket | None = self
        while bucket is not None:
            factor = bucket._rate.cost_factor
            if factor:
                paid_at = bucket.paid_at
                if paid_at < oldest:
                    paid_at = oldest
                elif paid_at - now > wait_s:
                    wait_s = paid_at - now
                paid_at += cost * factor
                bucket.paid_at = paid_at if paid_at < latest else latest
            bucket = bucket.parent
        return wait_s if wait_s <= budgets.wait_s else REFUSED

    def is_light(self, now: float) -> bool:
        """Return True if little of the saved-up budget is used."""
        enough = now - _LIGHT_PERCENT / 100 * self._budgets.burst_s
        bucket: WorkBucket | None = self
        while bucket is not None:
            if bucket.paid_at > enough and bucket._rate.cost_factor:
                return False
            bucket = bucket.parent
        return True

    def wait_of(self, now: float) -> float:
        """Return the seconds that an answer has to wait until earlier work is paid; `REFUSED` if that is too long."""
        return self.charge(0.0, now)

    def admit(self, cost: float, now: float) -> float:
        """Charge work unless it is refused; return the seconds that its answer has to wait, or `REFUSED`."""
        budgets, bucket = self._budgets, self
        latest = now + budgets.wait_s
        while bucket.paid_at <= latest:
            if bucket.parent is None:
                wait_s = self.charge(cost, now)
                if wait_s:
                    budgets.waited += 1
                return wait_s
            bucket = bucket.parent
        self.charge(REFUSAL, now)
        budgets.refused += 1
        return REFUSED

    def penalize(self, now: float) -> bool:
        """Charge a connection for a request after a refusal; return True if it has to end. Its address pays nothing."""
        factor = self._rate.cost_factor
        if factor:
            self.paid_at = max(self.paid_at, now - self._budgets.burst_s) + PENALTY * factor
        is_over = self.paid_at - now > _END * self._budgets.wait_s
        self._budgets.ended += is_over
        return is_over


class WorkBudgets:
    """The budgets of all connections and addresses. A rate of 0 is no limit.

    The IPv6 addresses of a network (/64) share a budget. All networks of a customer (/56) share four times the rate.

    Args:
        per_connection: seconds of work per second.
        per_address: seconds of work per second.
        burst_s: the unused budget that may add up, in seconds.
        wait_s: the longest wait of an answer.
        most: the number of addresses that have budgets of their own. All others share one.
    """

    def __init__(
        self,
        per_connection: float = 0.0,
        per_address: float = 0.0,
        burst_s: float = 20.0,
        wait_s: float = 5.0,
        most: int = _MOST_ADDRESSES,
    ) -> None:
        self._per_connection, self._per_address, self._per_customer = WorkRate(0.0), WorkRate(0.0), WorkRate(0.0)
        self._most = most
        self._addresses: dict[str, WorkBucket] = {}  # those with open connections, and those not refilled yet
        self._others = WorkBucket(self, self._per_address)
        self.set_limits(per_connection, per_address, burst_s, wait_s)
        self.waited = self.refused = self.ended = 0

    def __len__(self) -> int:
        return len(self._addresses)

    def set_limits(self, per_connection: float, per_address: float, burst_s: float, wait_s: float) -> None:
        """Change the limits, also of open connections; see the class for the arguments."""
        self._per_connection.set_rate(per_connection)
        self._per_address.set_rate(per_address)
        self._per_customer.set_rate(NETWORKS_PER_CUSTOMER * per_address)
        self.burst_s = burst_s
        self.wait_s = wait_s
        self.most_debt_s = _END * wait_s + 1.0

    def describe(self) -> dict[str, int]:
        """Return the numbers for `/health`."""
        return {"addresses": len(self), "waited": self.waited, "refused": self.refused, "ended": self.ended}

    def open_connection(self, address: str) -> WorkBucket:
        """Return the budget of a new connection. Call `close_connection` at its end."""
        above = self.address_bucket(address)
        above.members += 1
        return WorkBucket(self, self._per_connection, above)

    def close_connection(self, bucket: WorkBucket) -> None:
        """Count the end of a connection."""
        above, bucket.parent = bucket.parent, None
        if above is not None:
            above.members -= 1

    def address_bucket(self, address: str) -> WorkBucket:
        """Return the budget of an address, for requests over a connection that many clients share."""
        network = network_of(address)
        found = self._addresses.get(network)
        if found is not None:
            return found
        if len(self._addresses) >= self._most:
            return self._others
        parent, customer = None, client_of(address)
        if customer != network:
            parent = self._addresses.get(customer)
            if parent is None:
                parent = self._addresses[customer] = WorkBucket(self, self._per_customer, key=customer)
            parent.members += 1
        found = self._addresses[network] = WorkBucket(self, self._per_address, parent, network)
        return found

    def sweep(self, now: float) -> None:
        """Forget addresses without connections whose budget is full again. Call it every second."""
        full = now - self.burst_s
        idle = [one for one in self._addresses.values() if not one.members and one.paid_at <= full]
        for one in idle:
            del self._addresses[one.key]
            if one.parent is not None:
                one.parent.members -= 1


UNLIMITED = WorkBucket(WorkBudgets(), WorkRate(0.0))
"""The budget of a connection that has none, such as a proxy's."""
