"""Resuming clients in a process of their own; a part of `bench.restarts`.

    python -m bench.resuming_clients URL CLIENTS BARS SYMBOL...

It prints `ready` once all have bars. At a line of its standard input it compares the bars of all with fresh ones, and
prints one line of JSON: the reconnects, and what differs.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict

from tests.system.resuming import Record, ResumingClient, wait_until_equal

INTERVALS = ("1m", "5m")
FRESH = 1000
_STARTS_PER_S = 200
_EQUAL_S = 60.0


async def main(url: str, count: int, bars: int, symbols: Sequence[str]) -> None:
    """Run the clients."""
    rooms, record = [(symbol, interval) for symbol in symbols for interval in INTERVALS], Record()
    clients = [ResumingClient(url, rooms[number % len(rooms)], bars, record) for number in range(count)]
    async with AsyncExitStack() as stack:
        for client in clients:
            await stack.enter_async_context(client)
            await asyncio.sleep(1 / _STARTS_PER_S)
        while not all(client.subscription.has_bars for client in clients):
            await asyncio.sleep(0.05)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        differences = await wait_until_equal(clients, url, rooms, FRESH, _EQUAL_S)
        found = {
            "reconnects": [asdict(one) for one in record.reconnects],
            "failures": record.failures,
            "errors": record.errors,
            "bars": sum(len(client.bars) for client in clients),
            "differences": differences,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
