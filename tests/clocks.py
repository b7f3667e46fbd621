"""Clocks for tests: one that runs faster than the wall, one that moves only when told."""

import asyncio
import heapq
import math
import time
from itertools import count
from typing import Any

from tests import deadlines

_LONGEST_STEP_S = 0.01
START_MS = 1_760_000_040_000  # 2025-10-09T08:54:00Z, on a minute


class ScaledClock:
    """A clock that runs `speed` times as fast as the real one, `sleep` included.

    `now_ms` begins at `start_ms` (UTC epoch milliseconds), by default at the present.

    On a fast clock sleepers wake together, on steps of at most half a second of this clock and 10 ms of the real one:
    each would otherwise wake the loop on its own, a thousand times a second.
    """

    def __init__(self, speed: float = 1.0, start_ms: int | None = None) -> None:
        self.speed = speed
        #: real seconds between two moments at which sleepers wake; 0: they wake at any moment
        self.step_s = min(0.5 / speed, _LONGEST_STEP_S) if speed > 1 else 0.0
        self._start_ms = time.time_ns() // 1_000_000 if start_ms is None else start_ms
        self._started = time.monotonic()

    def now_ms(self) -> int:
        return self._start_ms + int(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return (time.monotonic() - self._started) * self.speed

    async def sleep(self, seconds: float) -> None:
        await _sleep_to_step(seconds / self.speed, self.step_s)


async def _sleep_to_step(seconds: float, step_s: float) -> None:
    """Sleep for at least `seconds`, until a multiple of `step_s`."""
    if step_s and seconds > 0:
        now = asyncio.get_running_loop().time()
        seconds = math.ceil((now + seconds) / step_s) * step_s - now
    await asyncio.sleep(seconds)


class FairScaledClock(ScaledClock):
    """A scaled clock whose real seconds are those of tests/deadlines.py: a busy machine is slow, and so is the market.

    So a fast market is never ahead of a daemon in the test's own process. Other processes cannot share it.
    """

    def __init__(self, speed: float = 1.0, start_ms: int | None = None) -> None:
        super().__init__(speed, start_ms)
        self._started = deadlines.now()

    def monotonic(self) -> float:
        return (deadlines.now() - self._started) * self.speed

    async def sleep(self, seconds: float) -> None:
        until, left_s = self.monotonic() + seconds, seconds
        while True:
            await _sleep_to_step(max(left_s, 0.0) / self.speed / deadlines.rate(), self.step_s)
            if (left_s := until - self.monotonic()) <= 0:
                return


class ManualClock:
    """A clock that stands still until `advance`; sleepers wake in the order of their deadlines."""

    def __init__(self, start_ms: int = START_MS) -> None:
        self._start_ms = start_ms
        self._now = 0.0
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_ms(self) -> int:
        return self._start_ms + round(self._now * 1000)

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move time forward by `seconds`. Each sleeper whose deadline passes runs at exactly its deadline.

        What a sleeper does before it waits again is done when this returns, as long as it waits only on this clock
        or on callbacks of the loop (not on threads or sockets).
        """
        target = self._now + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            deadline, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, deadline)
            if not woken.done():
                woken.set_result(None)
                await self.settle()
        self._now = target
        await self.settle()

    async def leap(self, seconds: float) -> None:
        """Move time forward as if the loop had been busy for so long: each sleeper whose deadline passed runs once."""
        self._now += seconds
        await self.advance(0)

    @property
    def sleepers(self) -> int:
        """How many tasks wait on this clock."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    async def settle(self, rounds: int = 20) -> None:
        """Let the loop run whatever is ready, without moving time."""
        loop: Any = asyncio.get_running_loop()
        for _ in range(rounds):
            await asyncio.sleep(0)
            if not loop._ready and not (loop._scheduled and loop._scheduled[0].when() <= loop.time()):
                return  # nothing has a next step: more rounds would only take time
