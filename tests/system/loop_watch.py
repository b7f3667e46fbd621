"""How late an event loop comes to its callbacks, beside a process of its own that shows how late the machine is."""

import asyncio
import sys
import time

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
    """Seconds that the running loop was held in one piece, at most: `worst_s`.

    `idle_s` is the same of a process that does nothing else; what this has to wait too is the machine's doing.
    """

    def __init__(self) -> None:
        self.worst_s = 0.0
        self.idle_s = 0.0

    def __str__(self) -> str:
        return f"the loop was held {self.worst_s * 1000:.0f} ms, an idle process {self.idle_s * 1000:.0f} ms"

    async def __aenter__(self) -> "LoopWatch":
        pipe = asyncio.subprocess.PIPE
        self._idle = await asyncio.create_subprocess_exec(sys.executable, "-c", _IDLE, stdin=pipe, stdout=pipe)
        self._task = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        output, _ = await self._idle.communicate(b"")
        self.idle_s = float(output)

    @property
    def held_s(self) -> float:
        """How long the loop was held, as far as that was not the machine, twice for a process with threads and work."""
        return self.worst_s - 2 * self.idle_s

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(STEP_S)
            self.worst_s = max(self.worst_s, time.monotonic() - before - STEP_S)
