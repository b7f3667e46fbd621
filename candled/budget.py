"""The request budget of one host: waited for, closed when the host asks for silence, perhaps shared with others."""

from collections.abc import Callable
from typing import Protocol

from candled.exchange import Clock
from candled.token_bucket import TokenBucket


class Budget(Protocol):
    """What may be asked of one host."""

    async def take(self) -> None:
        """Wait until a request may be made, and count it."""

    def close_for(self, seconds: float) -> None:
        """The host asked for silence: give out nothing for so long."""

    def closed_for(self) -> float:
        """Seconds until the host may be asked again, as far as it is known here; 0.0 when it may be asked now."""

    def left(self) -> float:
        """The share of the budget that is left, 0 to 1, as far as it is known here."""


MakeBudget = Callable[[str, float], Budget]
"""Gives the budget of a host, for so many requests per second."""


class LocalBudget:
    """A budget of this process alone."""

    def __init__(self, clock: Clock, rate: float) -> None:
        self._clock = clock
        self._bucket = TokenBucket(rate)

    async def take(self) -> None:
        while wait_s := self._bucket.take(self._clock.monotonic()):
            await self._clock.sleep(wait_s)

    def close_for(self, seconds: float) -> None:
        self._bucket.close_until(self._clock.monotonic() + seconds)

    def closed_for(self) -> float:
        return self._bucket.closed_for(self._clock.monotonic())

    def left(self) -> float:
        return self._bucket.left(self._clock.monotonic())
