"""WebSocket clients in a process of their own; prints how many updates came in each second.

    python -m bench.clients PORT CLIENTS ROOMS SYMBOL...

Each client enters `ROOMS` rooms: the clients take the symbols in turn, and the intervals in turn for each symbol.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from itertools import count

import websockets

from candled.model import DEFAULT_INTERVALS

BARS = 100


class Clients:
    """Counts the updates of all of them."""

    def __init__(self, port: int, rooms: int, symbols: Sequence[str]) -> None:
        self.updates = 0
        self._url = f"ws://127.0.0.1:{port}/"
        self._rooms = rooms
        self._symbols = symbols
        self._turn = count()

    async def run(self, clients: int) -> None:
        """Print a line a second, until killed."""
        followers = [asyncio.ensure_future(self._follow()) for _ in range(clients)]
        while True:
            before = self.updates
            await asyncio.sleep(1.0)
            print(self.updates - before, flush=True)
            for follower in followers:
                if follower.done():
                    follower.result()

    async def _follow(self) -> None:
        async with websockets.connect(self._url, max_size=None, compression=None) as socket:
            for _ in range(self._rooms):
                await socket.send(json.dumps(self._request(next(self._turn))))
            async for text in socket:
                self.updates += '"update"' in str(text)[:40]

    def _request(self, turn: int) -> dict[str, object]:
        interval = DEFAULT_INTERVALS[(turn + turn // len(self._symbols)) % len(DEFAULT_INTERVALS)]
        symbol = self._symbols[turn % len(self._symbols)]
        return {"type": "subscribe", "symbol": symbol, "interval": str(interval), "initialBars": BARS}


if __name__ == "__main__":
    asyncio.run(Clients(int(sys.argv[1]), int(sys.argv[3]), sys.argv[4:]).run(int(sys.argv[2])))
