"""The request budget of one host: waited for, closed when the host asks for silence, perhaps shared with others."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from candled.exchange import Clock
from candled.token_bucket import MOST_CLOSED_S, TokenBucket


class Budget(Protocol):
    """What may be asked of one host."""

    async def acquire(self) -> None:
        """Wait until a request may be made, and count it."""

    def close_for(self, seconds: float) -> None:
        """The host asked for silence: give out nothing for so long, an hour at most."""

    def closed_for(self) -> float:
        """Seconds until the host may be asked again, as far as it is known here; 0.0 when it may be asked now."""

    def remaining_share(self) -> float:
        """The share of the budget that is left, 0 to 1, as far as it is known here."""


MakeBudget = Callable[[str, float], Budget]
"""Gives the budget of a host, for so many requests per second: whoever asks for a host shares it."""


class LocalBudget:
    """A budget of this process alone."""

    def __init__(self, clock: Clock, rate: float) -> None:
        self._clock = clock
        self._bucket = TokenBucket(rate)
        self._turn = asyncio.Lock()  # who waits longest is next, or one exchange would keep another on its host waiting

    def limit(self, rate: float) -> None:
        """Give out no more than `rate` requests a second from now on."""
        self._bucket.limit(rate)

    async def acquire(self) -> None:
        async with self._turn:
            while wait_s := self._bucket.try_take(self._clock.monotonic()):
                await self._clock.sleep(wait_s)

    def close_for(self, seconds: float) -> None:
        self._bucket.close_until(self._clock.monotonic() + min(seconds, MOST_CLOSED_S))

    def closed_for(self) -> float:
        return self._bucket.closed_for(self._clock.monotonic())

    def remaining_share(self) -> float:
        return self._bucket.remaining_share(self._clock.monotonic())


class LocalBudgets:
    """The budgets of hosts, each shared by everything in this process that asks the host."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._budgets: dict[str, LocalBudget] = {}

    def budget(self, host: str, rate: float) -> LocalBudget:
        """Return the budget of a host; of several rates the lowest holds."""
        found = self._budgets.get(host)
        if found is None:
            found = self._budgets[host] = LocalBudget(self._clock, rate)
        found.limit(rate)
        return found


class PartialBudget:
    """A part of a shared budget: what is taken counts in both, and the rest is left to others."""

    def __init__(self, own: Budget, shared: Budget) -> None:
        self._own = own
        self._shared = shared

    async def acquire(self) -> None:
        await self._own.acquire()
        await self._shared.acquire()

    def close_for(self, seconds: float) -> None:
        self._shared.close_for(seconds)

    def closed_for(self) -> float:
        return self._shared.closed_for()

    def remaining_share(self) -> float:
        return min(self._own.remaining_share(), self._shared.remaining_share())


def part_of(clock: Clock, share: float, shared: MakeBudget) -> MakeBudget:
    """Return budgets of which each gives out at most a share of the host's, and counts it there."""
    own = LocalBudgets(clock)
    return lambda host, rate: PartialBudget(own.budget(host, rate * share), shared(host, rate))
