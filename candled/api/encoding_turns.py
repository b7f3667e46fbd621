"""Turns of requests whose answers need many bars encoded."""

import asyncio
from collections.abc import Callable
from itertools import count

from candled.exchange import Clock


class EncodingTurns:
    """Encodes bars in slices, one in each pass of the event loop, for one request after the other."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()

    async def run(self, encode: Callable[[int], bool]) -> None:
        """Call `encode` with 0, 1, 2 and so on, each time in another pass, until it returns True for the last slice."""
        async with self._lock:
            for number in count():
                if encode(number):
                    return
                await self._clock.sleep(0)
