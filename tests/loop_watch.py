"""For how long an event loop was held, without the time in which the machine let its process wait."""

import asyncio
import gc
import sys
import time
from pathlib import Path

from tests import deadlines

STEP_S = 0.01
_IDLE = f"""
import select, sys, time
worst = 0.0
while True:
    before = time.monotonic()
    ended, _, _ = select.select([sys.stdin], [], [], {STEP_S})
    worst = max(worst, time.monotonic() - before - {STEP_S})
    if ended:
        print(worst)
        break
"""


class LoopWatch:
    """Measures for how long the running loop was held in one piece, at most: `held_s`, after the `async with` block.

    Seconds are those of tests/deadlines.py. Not counted are the time in which a thread of this process could have run
    and had no processor, and twice the time that an idle process beside it had to wait too.
    """

    def __init__(self) -> None:
        self.worst_s = 0.0
        self.idle_s = 0.0

    def __str__(self) -> str:
        return f"the loop was held {self.worst_s * 1000:.0f} ms, an idle process {self.idle_s * 1000:.0f} ms"

    async def __aenter__(self) -> "LoopWatch":
        pipe = asyncio.subprocess.PIPE
        self._idle = await asyncio.create_subprocess_exec(sys.executable, "-c", _IDLE, stdin=pipe, stdout=pipe)
        gc.collect()
        gc.freeze()
        self._task = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        gc.unfreeze()
        await asyncio.gather(self._task, return_exceptions=True)
        output, _ = await self._idle.communicate(b"")
        self.idle_s = float(output)

    @property
    def blocked_s(self) -> float:
        """Seconds that the loop was held, as far as that was not the machine."""
        return max(0.0, self.worst_s - 2 * self.idle_s)

    async def _watch(self) -> None:
        while True:
            before, fair, waited_s = time.monotonic(), deadlines.now(), _waited_s()
            await asyncio.sleep(STEP_S)
            passed_s = time.monotonic() - before
            if passed_s - STEP_S > self.worst_s:
                passed_s = min(passed_s - (_waited_s() - waited_s), deadlines.now() - fair)
                self.worst_s = max(self.worst_s, passed_s - STEP_S)


def _waited_s() -> float:
    """Return the seconds that threads of this process could have run and had no processor; 0.0 if that is not known.

    The loop waits too if the thread that has the interpreter's lock gets no processor. See proc(5), schedstat.
    """
    total_ns = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total_ns += int(thread.read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return total_ns / 1e9
