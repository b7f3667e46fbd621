"""The writer in a process of its own that is killed: during an outage, and while the journal goes to the store."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import candled
from candled.errors import StoreUnavailable
from candled.model import DEFAULT_INTERVALS, MINUTE
from candled.store.journal import Journal
from candled.store.sqlite.store import SqliteStore
from candled.store.threads import StoreThreads
from candled.store.writer import Writer
from tests import tiers
from tests.clocks import ScaledClock
from tests.store import load
from tests.store.contract import LONGER, everything, sums
from tests.store.faults import FailingStore
from tests.store.rows import BTC

pytestmark = pytest.mark.usefixtures("daemon")

BATCH = 40


async def write_on(folder: Path, start: int, *, is_away: bool) -> None:
    """Put minutes from `start` on for ever; print how many are safe, in the journal or in the store."""
    store = FailingStore(folder / "candled.db", DEFAULT_INTERVALS)
    threads = StoreThreads(store)
    await threads.run_write(store.open)
    store.failure = StoreUnavailable("switched off") if is_away else None
    clock = ScaledClock(speed=200)
    writer = Writer(store, threads, clock, flush_interval_s=1, journal=Journal(folder / "candled.journal"))
    writing = asyncio.create_task(writer.run_flushes())
    print(start, flush=True)
    while not writing.done():
        for candle in load.minutes(start, start + BATCH):
            writer.enqueue_row(BTC, candle)
        while writer.describe()["waiting"]:
            await clock.sleep(1)
        start += BATCH
        print(start, flush=True)


async def test_kill_9_loses_nothing_that_was_safe(tmp_path):
    dice = random.Random(20261122)
    safe, journaled = 0, 0
    for is_away in [True, True, False] * (2 if tiers.LONG else 1):
        before = safe
        safe = write_and_kill(tmp_path, safe, is_away=is_away, after_s=dice.uniform(0.1, 0.5))
        if is_away:
            journaled += safe - before
    store = SqliteStore(tmp_path / "candled.db", DEFAULT_INTERVALS)
    threads = StoreThreads(store)
    await threads.run_write(store.open)
    journal = Journal(tmp_path / "candled.journal")
    writer = Writer(store, threads, ScaledClock(), flush_interval_s=1, journal=journal)
    await writer.flush()
    stored = everything(store, BTC, MINUTE)
    assert len(stored) >= safe
    assert stored == load.minutes(0, len(stored))
    for interval in LONGER:
        assert everything(store, BTC, interval) == sums(stored, interval)
    assert journaled > 10 * BATCH  # or there was no outage
    assert writer.describe()["journal"]["rows"] == 0
    await writer.close()
    await threads.close()


def write_and_kill(folder: Path, start: int, *, is_away: bool, after_s: float) -> int:
    """Let a process write on from minute `start`; kill it `after_s` after its first word; return its last word."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.store.test_journal_crash", str(folder), str(start), str(is_away)],
        cwd=Path(candled.__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        words = [child.stdout.readline()]
        time.sleep(after_s)
        os.kill(child.pid, signal.SIGKILL)
        words += child.stdout.read().splitlines(keepends=True)
    assert child.returncode == -signal.SIGKILL
    return max(int(word) for word in words if word.endswith("\n"))


if __name__ == "__main__":
    asyncio.run(write_on(Path(sys.argv[1]), int(sys.argv[2]), is_away=sys.argv[3] == "True"))
