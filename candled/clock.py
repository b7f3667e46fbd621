"""The real clock. All other code receives a `Clock`, which tests replace."""

import asyncio
import time


class SystemClock:
    """The `candled.exchange.Clock` of the system."""

    def now_ms(self) -> int:
        """Return the wall-clock time, UTC epoch milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return the seconds of a clock that never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await asyncio.sleep(seconds)
