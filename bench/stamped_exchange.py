"""A fake Bitget whose pushes carry its own time: the close is the seconds of CLOCK_MONOTONIC, to microseconds.

    python -m bench.stamped_exchange PORT START_MS EVERY_S SYMBOL...

Each market is pushed once in EVERY_S, all of them spread over that time. The close of a running minute is the close of
every longer bar, so a client of any interval can tell how long the newest push of its bar was on its way.
"""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.latency import Exchange, inst_id
from candled.model import MINUTE_MS
from tests.clocks import ScaledClock

OPEN = "0.01"  # below every close, so that low and high are known: the first and the newest one
SLICE_S = 0.005


class StampedExchange(Exchange):
    """The markets of `names`, on a clock that began at `start_ms` (UTC epoch milliseconds)."""

    def __init__(self, port: int, start_ms: int, names: Sequence[str], delay_s: float = 0.0) -> None:
        self._clock = ScaledClock(start_ms=start_ms)
        self._names = names
        super().__init__(port, delay_s)

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def snapshot(self, name: str) -> str:
        return self._frame("snapshot", name)

    async def push_for_ever(self, every_s: float) -> None:
        """Push the due markets, a few at a time."""
        done, started = 0, time.monotonic()
        while True:
            due = int((time.monotonic() - started) * len(self._names) / every_s)
            for number in range(done, due):
                name = self._names[number % len(self._names)]
                if self.has_subscribers(name):
                    self.send(name, self._frame("update", name))
            done = due
            await asyncio.sleep(SLICE_S)

    def _frame(self, action: str, name: str) -> str:
        return self.frame_of(action, name, self.rows(name, action))

    def rows(self, name: str, action: str) -> list[list[str]]:
        """The rows of a market's next frame: its running minute."""
        sent_ms = self.now_ms()
        open_ms = sent_ms - sent_ms % MINUTE_MS
        close = f"{time.monotonic():.6f}"
        volume = f"{(sent_ms - open_ms) / 1000 + 1:.6f}"
        quote = f"{float(close) * float(volume):.8f}"
        return [[str(open_ms), OPEN, close, OPEN, close, volume, quote, quote]]

    def frame_of(self, action: str, name: str, rows: Sequence[Any]) -> str:
        """A frame of a market with these rows."""
        arg = {"instType": "SPOT", "channel": "candle1m", "instId": name}
        return json.dumps({"action": action, "arg": arg, "data": rows, "ts": self.now_ms()}, separators=(",", ":"))


async def main(
    port: int,
    start_ms: int,
    every_s: float,
    symbols: Sequence[str],
    make: Callable[[int, int, Sequence[str]], StampedExchange] = StampedExchange,
) -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    exchange = make(port, start_ms, [inst_id(symbol) for symbol in symbols])
    pushing = asyncio.ensure_future(exchange.push_for_ever(every_s))
    await asyncio.wait([pushing, asyncio.ensure_future(stopped.wait())], return_when=asyncio.FIRST_COMPLETED)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
