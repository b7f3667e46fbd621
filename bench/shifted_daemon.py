"""The daemon on a clock that was set: a run on any day of the week begins with the same amount of history.

    python -m bench.shifted_daemon FILE START_MS [BLOCKS]

With BLOCKS, a file, the longest time that the event loop was blocked is written there every second, as a line
`wall cpu` in milliseconds: by the clock, and of processor time, which leaves out what other processes took.
"""

import asyncio
import contextlib
import os
import selectors
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from candled import config
from candled.app import run
from candled.plugins import discover
from tests.clocks import ScaledClock


class WatchedSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Between two calls of `select` the loop is blocked."""

    def __init__(self, report: TextIO) -> None:
        super().__init__()
        self._report = report
        self._since = self._reported = time.monotonic()
        self._cpu_since = time.thread_time()
        self._wall_s = self._cpu_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        now = time.monotonic()
        self._wall_s = max(self._wall_s, now - self._since)
        self._cpu_s = max(self._cpu_s, time.thread_time() - self._cpu_since)
        if now - self._reported >= 1.0:
            print(f"{1000 * self._wall_s:.2f} {1000 * self._cpu_s:.2f}", file=self._report, flush=True)
            self._wall_s = self._cpu_s = 0.0
            self._reported = now
        ready = super().select(timeout)
        self._since, self._cpu_since = time.monotonic(), time.thread_time()
        return ready


class WatchedPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes loops that are watched."""

    def __init__(self, report: TextIO) -> None:
        super().__init__()
        self._report = report

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(WatchedSelector(self._report))


def main(path: Path, start_ms: int) -> int:
    """Run until SIGTERM; return the exit status."""
    plugins = discover()
    return run(lambda: config.load(path, os.environ, plugins), plugins, ScaledClock(start_ms=start_ms))


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        if len(sys.argv) > 3:
            asyncio.set_event_loop_policy(WatchedPolicy(stack.enter_context(Path(sys.argv[3]).open("a"))))
        status = main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.exit(status)
