"""The load client in Python, for machines without a C compiler: the options and the output of load.c, but for delays.

python bench/load.py --port PORT --n CLIENTS [--sub TEXT | --subs FILE] [--secs SECONDS] [--slow COUNT]
"""

import argparse
import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import websockets

_AT_A_TIME = 64


class Load:
    """Counts what arrives. One slow task per client, so that a few thousand are what it can hold."""

    def __init__(self, port: int, asks: Sequence[str]) -> None:
        self.opened = self.failed = self.texts = 0
        self.answers_s: list[float] = []
        self._url = f"ws://127.0.0.1:{port}/ws"
        self._asks = asks
        self._gate = asyncio.Semaphore(_AT_A_TIME)

    async def follow(self, number: int, slow: bool) -> None:
        """One client."""
        async with self._gate:
            try:
                client = await websockets.connect(self._url, max_size=None, compression=None, ping_interval=None)
            except (OSError, websockets.InvalidHandshake):
                self.failed += 1
                return
            self.opened += 1
        began = time.monotonic()
        if self._asks:
            await client.send(self._asks[number % len(self._asks)])
        if slow:
            client.transport.pause_reading()
        is_first = bool(self._asks)
        async for _ in client:
            self.texts += 1
            if is_first:
                self.answers_s.append(time.monotonic() - began)
                is_first = False


async def main() -> None:
    """Run until SIGTERM or --secs, then print what was counted."""
    parser = argparse.ArgumentParser(prog="python bench/load.py", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--sub")
    parser.add_argument("--subs", type=Path)
    parser.add_argument("--secs", type=float, default=600)
    parser.add_argument("--slow", type=int, default=0)
    options, _ = parser.parse_known_args()
    asks = [options.sub] if options.sub else options.subs.read_text("utf-8").splitlines() if options.subs else []
    load, stopped = Load(options.port, asks), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    began = time.monotonic()
    followers = [asyncio.ensure_future(load.follow(at, at < options.slow)) for at in range(options.n)]
    while load.opened + load.failed < options.n and not stopped.is_set():
        await asyncio.sleep(0.01)
    open_s = time.monotonic() - began
    waiting = asyncio.ensure_future(stopped.wait())
    await asyncio.wait([waiting, asyncio.gather(*followers, return_exceptions=True)], timeout=options.secs,
                       return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
    ordered = sorted(load.answers_s) or [0.0]
    print(
        json.dumps(
            {
                "opened": load.opened,
                "failed": load.failed,
                "open_s": open_s,
                "text": load.texts,
                "v": {},
                "answers": len(load.answers_s),
                "answer_p50_us": 1e6 * ordered[len(ordered) // 2],
                "answer_p99_us": 1e6 * ordered[len(ordered) * 99 // 100],
            }
        ),
        flush=True,
    )
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
