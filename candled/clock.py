"""The real clock. Everything else is handed a `Clock`, so that tests can turn it."""

import asyncio
import time


class SystemClock:
    """Wall clock, monotonic seconds and waiting, as `candled.exchange.Clock` asks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
