"""Turns of requests whose answers need many bars encoded."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeVar

from candled.exchange import Clock
from candled.model import Candle
from candled.rooms.encoded_bars import BARS_PER_TURN

T = TypeVar("T")


async def encode_slices(bars: Sequence[Candle], encode: Callable[[Sequence[Candle]], T], clock: Clock) -> list[T]:
    """Encode bars in slices, each in a pass of its own; return the results."""
    parts = []
    for start in range(0, len(bars), BARS_PER_TURN):
        parts.append(encode(bars[start : start + BARS_PER_TURN]))
        await clock.sleep(0)
    return parts


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
