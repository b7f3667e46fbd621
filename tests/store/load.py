"""A process that writes minutes as fast as it can and prints how many are durable; made to be killed."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress

from candled.clock import SystemClock
from candled.model import DEFAULT_INTERVALS, Candle
from candled.store.sqlite.store import SqliteStore
from candled.store.threads import StoreThreads
from candled.store.writer import Writer
from tests.store.rows import BTC, minute

BATCH = 40


def minutes(start: int, end: int) -> Sequence[Candle]:
    """What is written: each minute has its own volume."""
    return [minute(at, volume=f"{at}.01") for at in range(start, end)]


async def write_on(path: str, start: int) -> None:
    store = SqliteStore(path, DEFAULT_INTERVALS)
    threads = StoreThreads(store)
    await threads.run_write(store.open)
    writer = Writer(store, threads, SystemClock(), flush_interval_s=1)
    print(start, flush=True)
    while True:
        for candle in minutes(start, start + BATCH):
            writer.enqueue_row(BTC, candle)
        await writer.flush()
        start += BATCH
        print(start, flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(write_on(sys.argv[1], int(sys.argv[2])))
