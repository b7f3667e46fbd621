"""The request budget of one host, which may be shared with other processes."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from candled.exchange import Clock
from candled.token_bucket import MOST_CLOSED_S, TokenBucket


class Budget(Protocol):
    """The requests that may be made to one host."""

    async def acquire(self, weight: float = 1.0) -> None:
        """Wait until a request may be made, and count it `weight` times. With 0, wait only while the host is closed."""

    def close_for(self, seconds: float) -> None:
        """Allow no requests for some time, an hour at most, because the host asked for it."""

    def closed_for(self) -> float:
        """Return the seconds until the host may be asked again; 0.0 if it may be asked now.

        The host may be closed for longer than this process knows.
        """

    def remaining_share(self) -> float:
        """Return the share of the budget that is left, 0 to 1, as far as this process knows."""


MakeBudget = Callable[[str, float], Budget]
"""Returns the budget of a host, for a rate in requests per second. All callers for a host share it."""


class LocalBudget:
    """A budget of this process alone."""

    def __init__(self, clock: Clock, rate: float) -> None:
        self._clock = clock
        self._bucket = TokenBucket(rate)
        self._turn = asyncio.Lock()  # first come, first served; otherwise exchanges on one host could starve each other

    def limit(self, rate: float) -> None:
        """Allow at most `rate` requests a second from now on."""
        self._bucket.limit_rate(rate)

    async def acquire(self, weight: float = 1.0) -> None:
        """See `Budget.acquire`."""
        async with self._turn:
            while wait_s := self._bucket.try_take(self._clock.monotonic(), weight):
                await self._clock.sleep(wait_s)

    def close_for(self, seconds: float) -> None:
        """See `Budget.close_for`."""
        self._bucket.close_until(self._clock.monotonic() + min(seconds, MOST_CLOSED_S))

    def closed_for(self) -> float:
        """See `Budget.closed_for`."""
        return self._bucket.closed_for(self._clock.monotonic())

    def remaining_share(self) -> float:
        """See `Budget.remaining_share`."""
        return self._bucket.remaining_share(self._clock.monotonic())


class LocalBudgets:
    """The budgets of hosts, each shared by all requests of this process to the host."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._budgets: dict[str, LocalBudget] = {}

    def budget(self, host: str, rate: float) -> LocalBudget:
        """Return the budget of a host. Of several rates, the lowest applies."""
        found = self._budgets.get(host)
        if found is None:
            found = self._budgets[host] = LocalBudget(self._clock, rate)
        found.limit(rate)
        return found


class PartialBudget:
    """A part of a shared budget. A request counts in both; the rest is left to others."""

    def __init__(self, own: Budget, shared: Budget) -> None:
        self._own = own
        self._shared = shared

    async def acquire(self, weight: float = 1.0) -> None:
        """See `Budget.acquire`."""
        await self._own.acquire(weight)
        await self._shared.acquire(weight)

    def close_for(self, seconds: float) -> None:
        """See `Budget.close_for`."""
        self._shared.close_for(seconds)

    def closed_for(self) -> float:
        """See `Budget.closed_for`."""
        return self._shared.closed_for()

    def remaining_share(self) -> float:
        """See `Budget.remaining_share`."""
        return min(self._own.remaining_share(), self._shared.remaining_share())


def part_of(clock: Clock, share: float, shared: MakeBudget) -> MakeBudget:
    """Return budgets that use at most a share of each host's budget, and count their requests there."""
    own = LocalBudgets(clock)
    return lambda host, rate: PartialBudget(own.budget(host, rate * share), shared(host, rate))
