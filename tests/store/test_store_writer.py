"""The writer on a real SQLite store that fails when told to, with a clock that moves when told to."""

import asyncio
import logging

import pytest

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import DEFAULT_INTERVALS, MINUTE
from candled.store import writer as writer_module
from candled.store.threads import StoreThreads
from candled.store.writer import Writer
from tests.clocks import START_MS, ManualClock
from tests.store.contract import everything
from tests.store.faults import FailingStore
from tests.store.rows import BTC, ETH, minute

AWAY = StoreUnavailable("no room on the disk")


@pytest.fixture
async def store(tmp_path):
    store = FailingStore(tmp_path / "candled.db", DEFAULT_INTERVALS)
    store.open()
    yield store
    store.close()


@pytest.fixture
async def threads(store):
    threads = StoreThreads(store)
    yield threads
    await threads.close()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def writer(store, threads, clock):
    return Writer(store, threads, clock, flush_interval_s=1.0)


@pytest.fixture
async def running(writer, clock):
    task = asyncio.create_task(writer.run())
    await clock.settle()
    yield task
    task.cancel()
    await asyncio.wait([task])


async def advance(clock, seconds, *, task=None):
    """Move the clock; then wait until the writer, back from its threads, waits for the clock again, or `task` ended."""
    await clock.advance(seconds)
    async with asyncio.timeout(5):
        while not clock.sleepers and not (task and task.done()):  # noqa: ASYNC110 - a clock has no event to wait for
            await asyncio.sleep(0.001)


async def test_after_a_flush_everything_is_stored(writer, store, threads):
    writer.put(BTC, minute(0))
    writer.put(ETH, minute(1, final=False))
    await writer.flush()
    assert everything(store, BTC, MINUTE) == [minute(0)]
    assert store.running(ETH) == minute(1, final=False)
    assert (writer.status()["waiting"], writer.status()["written"]) == (0, 2)
    assert threads.writes == 1


async def test_many_rows_go_in_pages(writer, store, monkeypatch):
    monkeypatch.setattr(writer_module, "PAGE_ROWS", 40)
    for at in range(100):
        writer.put(BTC, minute(at))
    await writer.flush()
    assert store.batches == [40, 40, 20]
    assert len(everything(store, BTC, MINUTE)) == 100


async def test_a_flush_asked_for_during_another_covers_what_was_put_meanwhile(writer, store):
    writer.put(BTC, minute(0))
    first = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    writer.put(BTC, minute(1))
    await writer.flush()
    assert len(everything(store, BTC, MINUTE)) == 2
    await first


async def test_a_flush_that_fails_keeps_the_rows_for_the_next(writer, store):
    store.trouble = AWAY
    writer.put(BTC, minute(0))
    with pytest.raises(StoreUnavailable):
        await writer.flush()
    writer.put(BTC, minute(0, volume="2"))
    store.trouble = None
    await writer.flush()
    assert everything(store, BTC, MINUTE) == [minute(0, volume="2")]


async def test_a_cancelled_flush_keeps_the_rows(writer, store):
    writer.put(BTC, minute(0))
    flush = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    flush.cancel()
    await asyncio.wait([flush])
    assert writer.status()["waiting"] == 1
    await writer.flush()
    assert everything(store, BTC, MINUTE) == [minute(0)]


async def test_it_writes_at_each_interval(writer, store, clock, running):
    for at in range(3):
        writer.put(BTC, minute(at))
        await advance(clock, 1)
    assert store.batches == [1, 1, 1]
    assert writer.status()["lastFlushMs"] == START_MS + 3000


async def test_nothing_to_write_is_not_written(store, clock, running):
    await advance(clock, 5)
    assert store.batches == []


async def test_while_the_store_is_away_attempts_come_with_doubling_pauses(writer, store, clock, running):
    store.trouble = AWAY
    writer.put(BTC, minute(0))
    tried_at = []
    for second in range(1, 101):
        await advance(clock, 1)
        if len(store.batches) > len(tried_at):
            tried_at.append(second)
    assert tried_at == [1, 3, 7, 15, 31, 61, 91]
    store.trouble = None
    await advance(clock, 30)
    assert writer.status()["waiting"] == 0
    writer.put(BTC, minute(1))
    await advance(clock, 1)
    assert len(everything(store, BTC, MINUTE)) == 2


async def test_going_away_and_coming_back_are_one_log_line_each(writer, store, clock, running, caplog):
    caplog.set_level(logging.INFO, "candled.store")
    store.trouble = AWAY
    writer.put(BTC, minute(0))
    for _ in range(10):
        await advance(clock, 1)
    assert (writer.status()["state"], writer.status()["lastError"]) == ("away", "no room on the disk")
    store.trouble = None
    for _ in range(10):
        writer.put(BTC, minute(1))
        await advance(clock, 1)
    assert caplog.messages == [
        "the store is unavailable, 1 rows wait: no room on the disk",
        "the store is back after 14.0 s: writing 2 rows that waited, 0 were refused",
    ]
    assert writer.status()["state"] == "ok"


async def test_a_batch_refused_for_good_is_dropped_and_the_next_is_written(writer, store, clock, running, caplog):
    store.trouble = StoreRejected("the file is damaged")
    writer.put(BTC, minute(0))
    await advance(clock, 1)
    status = writer.status()
    assert (status["state"], status["rejected"], status["waiting"]) == ("rejecting", 1, 0)
    assert caplog.messages == ["the store refused 1 rows for good, they are dropped: the file is damaged"]
    store.trouble = None
    writer.put(BTC, minute(1))
    await advance(clock, 1)
    assert (writer.status()["state"], everything(store, BTC, MINUTE)) == ("ok", [minute(1)])


async def test_whoever_flushes_learns_that_rows_were_refused_for_good(writer, store):
    store.trouble = StoreRejected("the file is damaged")
    writer.put(BTC, minute(0))
    with pytest.raises(StoreRejected):
        await writer.flush()


async def test_an_unforeseen_error_is_logged_and_loses_nothing(writer, store, clock, running, caplog):
    store.trouble = ZeroDivisionError("a mistake of ours")
    writer.put(BTC, minute(0))
    await advance(clock, 1)
    assert caplog.records[0].exc_info
    store.trouble = None
    await advance(clock, 2)
    assert everything(store, BTC, MINUTE) == [minute(0)]


async def test_beyond_its_bound_puts_are_refused_and_counted(store, threads, clock):
    writer = Writer(store, threads, clock, flush_interval_s=1, max_waiting=2)
    assert [writer.put(BTC, minute(at)) for at in range(4)] == [True, True, False, False]
    assert (writer.status()["waiting"], writer.status()["refused"]) == (2, 2)


async def test_closing_writes_what_waits_and_takes_no_more(writer, store):
    writer.put(BTC, minute(0))
    assert await writer.close() == 0
    assert everything(store, BTC, MINUTE) == [minute(0)]
    assert not writer.put(BTC, minute(1))


async def test_closing_waits_for_a_store_that_is_away_but_not_for_ever(writer, store, clock, caplog):
    store.trouble = AWAY
    writer.put(BTC, minute(0))
    closing = asyncio.create_task(writer.close(within_s=10))
    await advance(clock, 0)
    while not closing.done():
        await advance(clock, 1, task=closing)
    assert await closing == 1
    assert clock.monotonic() <= 10
    assert len(store.batches) == 3  # at 0, 2 and 6 seconds
    assert caplog.messages[-1] == "1 rows could not be stored before the end: no room on the disk"
