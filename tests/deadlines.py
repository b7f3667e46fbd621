"""Deadlines that scale with the machine: a clock that passes only as fast as the machine had a core for this process.

`now` passes like the wall on a quiet machine. With twice as many runnable threads as cores it passes half as fast, so
that a deadline of 10 s ends after 20 s there: a busy machine is slow, and no test turns red for it. A process that was
not run at all, because its machine was paused, sees no time pass. Where the system does not tell, `now` is the wall's.
"""

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_STEP_S = 0.02  # of waiting
_SAMPLE_S = 0.05
_LINE_BYTES = 256
_MOST_A_SAMPLE_S = 0.2  # a sample that comes later than this is itself the proof that the machine had no time for it
_SAMPLES_A_TICK_READ = 5  # how much was stolen changes slowly, and the text that has it is long
_LOAD, _STAT = Path("/proc/loadavg"), Path("/proc/stat")


class FairClock:
    """A monotonic clock of seconds in which this process could run. Its thread samples the run queue."""

    def __init__(self) -> None:
        self._cores = _usable_cores()
        self._sample = 0.0, time.monotonic(), 1.0  # seconds passed at a time of the machine, and how fast they pass
        self._busy_ticks, self._stolen_ticks = 0, 0
        self._thread: threading.Thread | None = None

    def now(self) -> float:
        """Return the seconds passed since the first call."""
        if self._thread is None:
            if not (_LOAD.exists() and _STAT.exists()):
                return time.monotonic()
            self._sample = 0.0, time.monotonic(), 1.0
            self._thread = threading.Thread(target=self._run, name="fair clock", daemon=True)
            self._thread.start()
        return _passed_s(self._sample, time.monotonic())

    def rate(self) -> float:
        """Return how fast seconds pass, 0 to 1, by the last sample."""
        return max(self._sample[2], 0.01)

    def _run(self) -> None:
        left = 1.0
        with _LOAD.open("rb") as load, _STAT.open("rb") as stat:
            for step in count():
                time.sleep(_SAMPLE_S)
                if step % _SAMPLES_A_TICK_READ == 0:
                    left = self._share_left(os.pread(stat.fileno(), _LINE_BYTES, 0))
                runnable = int(os.pread(load.fileno(), _LINE_BYTES, 0).split()[3].partition(b"/")[0])
                at = time.monotonic()
                share = left * min(1.0, self._cores / max(runnable - 1, 1))  # one is the thread that reads this
                self._sample = _passed_s(self._sample, at), at, share

    def _share_left(self, stat: bytes) -> float:
        """Return the part of the busy time that no other machine took, 0 to 1, from the first line of /proc/stat."""
        ticks = [int(word) for word in stat.partition(b"\n")[0].split()[1:]]
        busy, stolen = sum(ticks[:3]) + sum(ticks[5:7]), ticks[7]
        new_busy, new_stolen = busy - self._busy_ticks, stolen - self._stolen_ticks
        self._busy_ticks, self._stolen_ticks = busy, stolen
        return new_busy / (new_busy + new_stolen) if new_busy > 0 and new_stolen > 0 else 1.0


def _passed_s(sample: tuple[float, float, float], at: float) -> float:
    passed_s, sampled_at, rate = sample
    return passed_s + min(at - sampled_at, _MOST_A_SAMPLE_S) * rate


def _usable_cores() -> float:
    """Return the cores this process may use: those of its affinity, or its control group's share if less."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.exists():
        quota, period = limit.read_text().split()
        if quota != "max":
            return min(cores, int(quota) / int(period))
    return cores


_clock = FairClock()
now, rate = _clock.now, _clock.rate


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError after `seconds` of `now`; otherwise as `asyncio.timeout`."""
    async with asyncio.timeout(None) as limit:
        watching = asyncio.create_task(_expire(limit, now() + seconds))
        try:
            yield
        finally:
            watching.cancel()


async def _expire(limit: asyncio.Timeout, at: float) -> None:
    while (left_s := at - now()) > 0:
        await asyncio.sleep(max(left_s, _STEP_S))
    limit.reschedule(asyncio.get_running_loop().time())


async def wait_for(awaitable: Awaitable[T], seconds: float) -> T:
    """Return the result of `awaitable`; raise TimeoutError after `seconds` of `now`."""
    async with timeout(seconds):
        return await awaitable


def wait_for_end(process: subprocess.Popen[Any], seconds: float) -> int:
    """Return the exit status of a process; raise subprocess.TimeoutExpired after `seconds` of `now`."""
    at = now() + seconds
    while (status := process.poll()) is None:
        if now() > at:
            raise subprocess.TimeoutExpired(process.args, seconds)
        time.sleep(_STEP_S / 2)
    return status
