"""The writer on a real SQLite store that fails when told to, with a clock that moves when told to."""

import asyncio
import gc
import logging
import resource
import threading
from decimal import Decimal

import pytest

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import DEFAULT_INTERVALS, MINUTE
from candled.store import journal_spill
from candled.store import writer as writer_module
from candled.store.journal import Journal
from candled.store.journal_lines import encode, find_lines
from candled.store.threads import StoreThreads
from candled.store.writer import Writer
from tests import deadlines, tiers
from tests.clocks import START_MS, ManualClock
from tests.loop_watch import LoopWatch
from tests.store.contract import everything
from tests.store.faults import FailingStore
from tests.store.rows import BTC, ETH, minute

UNAVAILABLE = StoreUnavailable("no room on the disk")


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
    task = asyncio.create_task(writer.run_flushes())
    await clock.settle()
    yield task
    task.cancel()
    await asyncio.wait([task])


async def advance(clock, seconds, *, task=None):
    """Move the clock; then wait until the writer, back from its threads, waits for the clock again, or `task` ended."""
    await clock.advance(seconds)
    async with deadlines.timeout(5):
        while not clock.sleepers and not (task and task.done()):
            await asyncio.sleep(0.001)


async def test_after_a_flush_everything_is_stored(writer, store, threads):
    writer.enqueue_row(BTC, minute(0))
    writer.enqueue_row(ETH, minute(1, final=False))
    await writer.flush()
    assert everything(store, BTC, MINUTE) == [minute(0)]
    assert store.read_forming(ETH) == [minute(1, final=False)]
    assert (writer.describe()["waiting"], writer.describe()["written"]) == (0, 2)
    assert threads.writes == 1


async def test_many_rows_go_in_pages(writer, store, monkeypatch):
    monkeypatch.setattr(writer_module, "PAGE_ROWS", 40)
    for at in range(100):
        writer.enqueue_row(BTC, minute(at))
    await writer.flush()
    assert store.batches == [40, 40, 20]
    assert len(everything(store, BTC, MINUTE)) == 100


async def test_a_flush_asked_for_during_another_covers_what_was_put_meanwhile(writer, store):
    writer.enqueue_row(BTC, minute(0))
    first = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    writer.enqueue_row(BTC, minute(1))
    await writer.flush()
    assert len(everything(store, BTC, MINUTE)) == 2
    await first


async def test_a_market_that_is_waited_for_does_not_wait_for_the_rows_of_others(writer, store, monkeypatch):
    monkeypatch.setattr(writer_module, "PAGE_ROWS", 10)
    for at in range(200):
        writer.enqueue_row(BTC, minute(at))
    everything_flushed = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    for at in range(15):
        writer.enqueue_row(ETH, minute(at))
    await asyncio.gather(writer.flush_market(ETH), writer.flush_market(ETH))
    assert everything(store, ETH, MINUTE) == [minute(at) for at in range(15)]
    assert len(everything(store, BTC, MINUTE)) < 60
    assert len(store.batches) < 8
    await everything_flushed
    assert len(everything(store, BTC, MINUTE)) == 200


async def test_an_urgent_market_is_written_before_the_pages_of_all_others(writer, store, monkeypatch):
    monkeypatch.setattr(writer_module, "PAGE_ROWS", 10)
    writer.is_urgent = ETH.__eq__
    for at in range(200):
        writer.enqueue_row(BTC, minute(at))
    others = [asyncio.create_task(writer.flush()) for _ in range(3)]
    await asyncio.sleep(0)
    for at in range(50):
        writer.enqueue_row(ETH, minute(at))
    await writer.flush_market(ETH)
    assert len(everything(store, ETH, MINUTE)) == 50
    assert len(everything(store, BTC, MINUTE)) <= 30  # each of the three had begun to wait for its turn
    await asyncio.gather(*others)
    assert len(everything(store, BTC, MINUTE)) == 200


async def test_an_urgent_market_is_written_before_others_that_are_waited_for(writer, store, monkeypatch):
    monkeypatch.setattr(writer_module, "PAGE_ROWS", 10)
    writer.is_urgent = ETH.__eq__
    for at in range(200):
        writer.enqueue_row(BTC, minute(at))
    other = asyncio.create_task(writer.flush_market(BTC))
    await asyncio.sleep(0)
    writer.enqueue_row(ETH, minute(0))
    await writer.flush_market(ETH)
    assert everything(store, ETH, MINUTE) == [minute(0)]
    assert len(everything(store, BTC, MINUTE)) <= 30
    await other
    assert len(everything(store, BTC, MINUTE)) == 200


async def test_it_is_behind_while_many_rows_wait_for_a_store_that_accepts_them(writer, store, monkeypatch):
    monkeypatch.setattr(writer_module, "_BEHIND_ROWS", 10)
    for at in range(10):
        writer.enqueue_row(BTC, minute(at))
    assert not writer.is_behind
    writer.enqueue_row(BTC, minute(10))
    assert writer.is_behind
    store.failure = UNAVAILABLE
    with pytest.raises(StoreUnavailable):
        await writer.flush()
    assert not writer.is_behind  # snapshots do not wait for the end of an outage
    store.failure = None
    await writer.flush()
    assert not writer.is_behind


async def test_a_market_with_no_rows_waits_for_no_other(writer, store):
    writer.enqueue_row(BTC, minute(0))
    await writer.flush_market(ETH)
    assert not store.batches


async def test_markets_that_are_waited_for_are_written_together_and_hear_of_their_own_rows_only(writer, store):
    writer.enqueue_row(BTC, impossible(0))
    writer.enqueue_row(ETH, minute(0))
    writer.enqueue_row(ETH, minute(1, final=False))
    results = await asyncio.gather(*map(writer.flush_market, (BTC, ETH)), return_exceptions=True)
    assert [type(one) for one in results] == [StoreRejected, type(None)]
    assert store.batches[0] == 3
    assert (everything(store, ETH, MINUTE), store.read_forming(ETH)) == ([minute(0)], [minute(1, final=False)])
    writer.enqueue_row(ETH, minute(2))
    store.failure = UNAVAILABLE
    with pytest.raises(StoreUnavailable):
        await writer.flush_market(ETH)
    store.failure = None
    await writer.flush_market(ETH)
    assert len(everything(store, ETH, MINUTE)) == 2


async def test_a_flush_that_fails_keeps_the_rows_for_the_next(writer, store):
    store.failure = UNAVAILABLE
    writer.enqueue_row(BTC, minute(0))
    with pytest.raises(StoreUnavailable):
        await writer.flush()
    writer.enqueue_row(BTC, minute(0, volume="2"))
    store.failure = None
    await writer.flush()
    assert everything(store, BTC, MINUTE) == [minute(0, volume="2", rev=1)]


async def test_a_cancelled_flush_keeps_the_rows(writer, store):
    writer.enqueue_row(BTC, minute(0))
    flush = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    flush.cancel()
    await asyncio.wait([flush])
    assert writer.describe()["waiting"] == 1
    await writer.flush()
    assert everything(store, BTC, MINUTE) == [minute(0)]


async def test_it_writes_at_each_interval(writer, store, clock, running):
    for at in range(3):
        writer.enqueue_row(BTC, minute(at))
        await advance(clock, 1)
    assert store.batches == [1, 1, 1]
    assert writer.describe()["lastFlushMs"] == START_MS + 3000


async def test_nothing_to_write_is_not_written(store, clock, running):
    await advance(clock, 5)
    assert store.batches == []


async def test_while_the_store_is_unavailable_attempts_come_with_doubling_pauses(writer, store, clock, running):
    store.failure = UNAVAILABLE
    writer.enqueue_row(BTC, minute(0))
    tried_at = []
    for second in range(1, 101):
        await advance(clock, 1)
        if len(store.batches) > len(tried_at):
            tried_at.append(second)
    assert tried_at == [1, 3, 7, 15, 31, 61, 91]
    store.failure = None
    await advance(clock, 30)
    assert writer.describe()["waiting"] == 0
    writer.enqueue_row(BTC, minute(1))
    await advance(clock, 1)
    assert len(everything(store, BTC, MINUTE)) == 2


async def test_an_outage_and_its_end_are_one_log_line_each(writer, store, clock, running, caplog):
    caplog.set_level(logging.INFO, "candled.store")
    store.failure = UNAVAILABLE
    writer.enqueue_row(BTC, minute(0))
    for _ in range(10):
        await advance(clock, 1)
    assert (writer.describe()["state"], writer.describe()["lastError"]) == ("unavailable", "no room on the disk")
    store.failure = None
    for _ in range(10):
        writer.enqueue_row(BTC, minute(1))
        await advance(clock, 1)
    assert caplog.messages == [
        "the store is unavailable, 1 rows queued: no room on the disk",
        "the store is available again after 14.0 s: writing 2 queued rows, 0 were refused",
    ]
    assert writer.describe()["state"] == "ok"


async def test_a_batch_refused_for_good_is_dropped_and_the_next_is_written(writer, store, clock, running, caplog):
    store.failure = StoreRejected("the file is damaged")
    writer.enqueue_row(BTC, minute(0))
    await advance(clock, 1)
    status = writer.describe()
    assert (status["state"], status["rejected"], status["waiting"]) == ("rejecting", 1, 0)
    assert caplog.messages == ["the store refused 1 rows, they are dropped: the file is damaged"]
    store.failure = None
    writer.enqueue_row(BTC, minute(1))
    await advance(clock, 1)
    assert (writer.describe()["state"], everything(store, BTC, MINUTE)) == ("ok", [minute(1)])


@pytest.mark.slow
@pytest.mark.parametrize("bad", [[0], [2999], [7, 1500, 1501, 2998], list(range(100, 110))])
async def test_of_a_page_only_the_rows_that_the_store_refuses_are_dropped(writer, store, bad, caplog, monkeypatch):
    monkeypatch.setattr(writer_module, "PAGE_ROWS", 3000)
    for at in range(3000):
        writer.enqueue_row(BTC, impossible(at) if at in bad else minute(at))
    with pytest.raises(StoreRejected):
        await writer.flush()
    assert everything(store, BTC, MINUTE) == [minute(at) for at in range(3000) if at not in bad]
    status = writer.describe()
    assert (status["rejected"], status["written"], status["waiting"]) == (len(bad), 3000 - len(bad), 0)
    assert status["state"] == "rejecting"
    assert len(store.batches) <= 26 * len(bad)
    assert len(caplog.messages) == 1


@pytest.mark.slow
async def test_a_store_that_refuses_everything_is_not_asked_row_by_row(writer, store, monkeypatch):
    monkeypatch.setattr(writer_module, "PAGE_ROWS", 3000)
    for at in range(3000):
        writer.enqueue_row(BTC, minute(at))
    store.failure = StoreRejected("the file is damaged")
    with pytest.raises(StoreRejected):
        await writer.flush()
    assert len(store.batches) < 70
    assert (writer.describe()["rejected"], writer.describe()["waiting"]) == (3000, 0)


async def test_a_store_that_fails_while_a_page_is_split_gets_the_rest_later(writer, store):
    for at in range(100):
        writer.enqueue_row(BTC, impossible(at) if at == 70 else minute(at))
    write, calls = store.write_minutes, []

    def write_twice(rows):
        calls.append(rows)
        if len(calls) == 4:
            raise UNAVAILABLE
        write(rows)

    store.write_minutes = write_twice
    with pytest.raises(StoreUnavailable):
        await writer.flush()
    assert writer.describe()["waiting"] == 50  # the first half is stored
    with pytest.raises(StoreRejected):
        await writer.flush()
    assert len(everything(store, BTC, MINUTE)) == 99
    assert (writer.describe()["waiting"], writer.describe()["rejected"], writer.describe()["written"]) == (0, 1, 99)


def impossible(at):
    """A minute that no store can hold."""
    return minute(at)._replace(high=Decimal("1E+999999"))


async def test_a_flush_reports_that_rows_were_refused_for_good(writer, store):
    store.failure = StoreRejected("the file is damaged")
    writer.enqueue_row(BTC, minute(0))
    with pytest.raises(StoreRejected):
        await writer.flush()


async def test_an_unforeseen_error_is_logged_and_loses_nothing(writer, store, clock, running, caplog):
    store.failure = ZeroDivisionError("a mistake of ours")
    writer.enqueue_row(BTC, minute(0))
    await advance(clock, 1)
    assert caplog.records[0].exc_info
    store.failure = None
    await advance(clock, 2)
    assert everything(store, BTC, MINUTE) == [minute(0)]


async def test_beyond_its_bound_puts_are_refused_and_counted(store, threads, clock):
    writer = Writer(store, threads, clock, flush_interval_s=1, max_waiting=2)
    assert [writer.enqueue_row(BTC, minute(at)) for at in range(4)] == [True, True, False, False]
    assert (writer.describe()["waiting"], writer.describe()["refused"]) == (2, 2)


async def test_closing_writes_what_waits_and_takes_no_more(writer, store):
    writer.enqueue_row(BTC, minute(0))
    assert await writer.close() == 0
    assert everything(store, BTC, MINUTE) == [minute(0)]
    assert not writer.enqueue_row(BTC, minute(1))


async def test_closing_waits_for_a_store_that_is_unavailable_but_not_forever(writer, store, clock, caplog):
    store.failure = UNAVAILABLE
    writer.enqueue_row(BTC, minute(0))
    closing = asyncio.create_task(writer.close(within_s=10))
    await advance(clock, 0)
    while not closing.done():
        await advance(clock, 1, task=closing)
    assert await closing == 1
    assert clock.monotonic() <= 10
    assert len(store.batches) == 3  # at 0, 2 and 6 seconds
    assert caplog.messages[-1] == "1 rows could not be stored before shutdown: no room on the disk"


# ---------------------------------------------------------------- with a journal


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "candled.journal"


@pytest.fixture
def journaling(store, threads, clock, directory):
    """Makes a running writer with a journal. Each one made ends the one before, as a killed process would."""
    made = []

    def end():
        for task, journal in made:
            task.cancel()
            journal.close()

    def make(*, limit_bytes=1_000_000, max_waiting=1000):
        end()
        journal = Journal(directory, limit_bytes=limit_bytes)
        writer = Writer(store, threads, clock, flush_interval_s=1.0, max_waiting=max_waiting, journal=journal)
        made.append((asyncio.create_task(writer.run_flushes()), journal))
        return writer

    yield make
    end()


async def passing(clock, seconds):
    """Move the clock second by second; after each one the writer flushes and journals what it then does."""
    await clock.settle()
    for _ in range(seconds):
        await clock.advance(1)
        async with deadlines.timeout(60):  # the journal of an outage may go to the store in one second of the clock
            while clock.sleepers < 2:
                await asyncio.sleep(0.001)


def rows_left(writer):
    """In memory and in the journal."""
    return writer.describe()["waiting"], writer.describe()["journal"]["rows"]


async def test_what_waits_for_some_seconds_goes_to_the_journal(journaling, store, clock, caplog):
    writer = journaling()
    store.failure = UNAVAILABLE
    for at in range(3):
        writer.enqueue_row(BTC, minute(at))
    await passing(clock, 5)
    assert rows_left(writer) == (3, 0)
    await passing(clock, 2)
    assert rows_left(writer) == (0, 3)
    writer.enqueue_row(BTC, minute(3))
    await passing(clock, 1)
    assert rows_left(writer) == (0, 4)
    assert caplog.messages == [
        "the store is unavailable, 3 rows queued: no room on the disk",
        "the store does not accept the queued rows; moving them to the journal on disk",
    ]


async def test_a_full_half_of_the_room_goes_to_the_journal_immediately(journaling, store, clock):
    writer = journaling(max_waiting=10)
    store.failure = UNAVAILABLE
    for at in range(5):
        writer.enqueue_row(BTC, minute(at))
    await passing(clock, 2)
    assert rows_left(writer) == (0, 5)


async def test_running_minutes_wait_in_memory(journaling, store, clock):
    writer = journaling()
    store.failure = UNAVAILABLE
    writer.enqueue_row(BTC, minute(0))
    writer.enqueue_row(BTC, minute(1, final=False))
    await passing(clock, 10)
    assert rows_left(writer) == (1, 1)


async def test_a_store_that_works_has_nothing_journaled(journaling, store, clock):
    writer = journaling()
    for at in range(20):
        writer.enqueue_row(BTC, minute(at))
        await passing(clock, 1)
    assert rows_left(writer) == (0, 0)
    assert len(everything(store, BTC, MINUTE)) == 20


async def test_when_the_store_is_back_the_journal_goes_to_it_and_is_empty(journaling, store, clock, directory, caplog):
    caplog.set_level(logging.INFO, "candled.store")
    writer = journaling()
    store.failure = UNAVAILABLE
    for at in range(20):
        writer.enqueue_row(BTC, minute(at))
        await passing(clock, 1)
    writer.enqueue_row(BTC, minute(3, volume="7", as_of_ms=9))  # a correction of a minute that is in the journal
    store.failure = None
    await passing(clock, 31)
    expected = [minute(at) for at in range(20)]
    expected[3] = minute(3, volume="7", as_of_ms=9, rev=1)
    assert everything(store, BTC, MINUTE) == expected
    assert rows_left(writer) == (0, 0)
    assert sum(path.stat().st_size for path in directory.iterdir()) < 64 * 1024
    assert caplog.messages[-2:] == [
        "the store is available again after 30.0 s: writing 21 queued rows, 0 were refused",
        "all rows of the journal are stored",
    ]


async def test_a_restart_in_between_loses_nothing(journaling, store, clock):
    store.failure = UNAVAILABLE
    for start in range(0, 30, 10):
        writer = journaling()
        for at in range(start, start + 10):
            writer.enqueue_row(BTC, minute(at))
        await passing(clock, 7)
        assert rows_left(writer) == (0, start + 10)
    store.failure = None
    await journaling().flush()
    assert everything(store, BTC, MINUTE) == [minute(at) for at in range(30)]


async def test_a_flush_covers_what_went_to_the_journal_meanwhile(journaling, store, clock, monkeypatch):
    for module in (writer_module, journal_spill):
        monkeypatch.setattr(module, "PAGE_ROWS", 4)
    writer = journaling()
    store.failure = UNAVAILABLE
    for at in range(20):
        writer.enqueue_row(BTC, minute(at))
    await passing(clock, 7)
    for at in range(20, 30):
        writer.enqueue_row(BTC, minute(at))
    with pytest.raises(StoreUnavailable):
        await writer.flush()
    store.failure = None
    await writer.flush()
    assert everything(store, BTC, MINUTE) == [minute(at) for at in range(30)]


async def test_a_store_that_hangs_does_not_keep_minutes_from_the_journal(journaling, store, threads, clock):
    writer = journaling()
    goes_on = threading.Event()
    hanging = asyncio.create_task(threads.run_write(goes_on.wait, 10))
    await clock.settle()
    writer.enqueue_row(BTC, minute(0))
    async with deadlines.timeout(5):
        while rows_left(writer) != (0, 1):
            await clock.advance(1)
            await asyncio.sleep(0.001)
    assert not hanging.done()
    goes_on.set()
    assert await hanging
    await writer.flush()
    assert everything(store, BTC, MINUTE) == [minute(0)]


@pytest.mark.parametrize("has_journal", [True, False])
async def test_a_store_is_unavailable_while_another_call_hangs_before_the_write(
    journaling, store, threads, clock, has_journal
):
    """No call has failed then: the ones before the write end by their own timeouts, one after the other."""
    writer = journaling() if has_journal else Writer(store, threads, clock, flush_interval_s=1.0)
    hangs = threading.Event()
    hanging = asyncio.ensure_future(threads.run_write(hangs.wait))
    writer.enqueue_row(BTC, minute(0))
    assert writer.describe()["state"] == "ok"
    for _ in range(8):
        await clock.advance(1)
        await asyncio.sleep(0.01)
    async with deadlines.timeout(5):
        while writer.describe()["state"] != "unavailable":
            await asyncio.sleep(0.01)
    hangs.set()
    await hanging
    await writer.flush()
    assert (writer.describe()["state"], everything(store, BTC, MINUTE)) == ("ok", [minute(0)])


async def test_a_full_journal_keeps_the_oldest_then_memory_fills_then_minutes_are_refused(journaling, store, clock):
    writer = journaling(limit_bytes=2000, max_waiting=10)
    store.failure = UNAVAILABLE
    taken = []
    for at in range(100):
        if writer.enqueue_row(BTC, minute(at)):
            taken.append(at)
        await passing(clock, 1)
    assert taken == list(range(len(taken)))
    assert rows_left(writer) == (10, len(taken) - 10)
    assert "is full" in writer.describe()["journal"]["lastError"]
    assert writer.describe()["refused"] == 100 - len(taken) > 0
    store.failure = None
    await passing(clock, 31)
    assert everything(store, BTC, MINUTE) == [minute(at) for at in taken]


async def test_closing_while_the_store_is_unavailable_leaves_all_to_the_next_start(journaling, store, clock, caplog):
    writer = journaling()
    store.failure = UNAVAILABLE
    writer.enqueue_row(BTC, minute(0))
    writer.enqueue_row(BTC, minute(1, final=False))
    assert await writer.close() == 0
    assert clock.monotonic() == 0
    assert caplog.messages[-1] == "2 rows remain in the journal for the next start"
    store.failure = None
    await journaling().flush()
    assert everything(store, BTC, MINUTE) == [minute(0)]
    assert store.read_forming(BTC) == [minute(1, final=False)]


async def test_closing_does_not_wait_for_a_store_that_does_not_answer(journaling, store, threads, clock):
    """What it was given and has not taken may be stored twice, and is not lost."""
    writer = journaling()
    stall = threading.Event()
    write = asyncio.create_task(threads.run_write(stall.wait))
    writer.enqueue_row(BTC, minute(0))
    writer.enqueue_row(BTC, minute(1, final=False))
    try:
        async with deadlines.timeout(5):
            assert await writer.close(within_s=0.1) == 0
    finally:
        stall.set()
        await write
    await journaling().flush()
    assert everything(store, BTC, MINUTE) == [minute(0)]
    assert store.read_forming(BTC) == [minute(1, final=False)]


async def test_closing_does_not_wait_for_a_long_journal(journaling, store, clock):
    writer = journaling()
    store.failure = UNAVAILABLE
    writer.enqueue_row(BTC, minute(0))
    await passing(clock, 7)
    store.failure = None
    batches = len(store.batches)
    writer.enqueue_row(BTC, minute(1))
    assert await writer.close() == 0
    assert len(store.batches) == batches
    await journaling().flush()
    assert everything(store, BTC, MINUTE) == [minute(0), minute(1)]


async def test_a_journal_that_cannot_be_used_is_named_once_and_tried_again(journaling, store, clock, directory, caplog):
    caplog.set_level(logging.INFO, "candled.store")
    directory.write_text("something else")
    writer = journaling()
    await passing(clock, 20)
    assert caplog.messages == [f"the journal {directory} cannot be used: Not a directory; 0 rows queued in memory only"]
    assert writer.describe()["journal"]["lastError"] == f"the journal {directory} cannot be used: Not a directory"
    writer.enqueue_row(BTC, minute(0))
    await passing(clock, 1)
    assert everything(store, BTC, MINUTE) == [minute(0)]
    directory.unlink()
    await passing(clock, 30)
    assert caplog.messages[1:] == ["the journal can be used again"]


async def test_without_room_on_the_disk_minutes_stay_in_memory(journaling, store, clock, caplog):
    writer = journaling()
    await passing(clock, 2)
    store.failure = UNAVAILABLE
    for at in range(5):
        writer.enqueue_row(BTC, minute(at))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        await passing(clock, 20)
        assert rows_left(writer) == (5, 0)
        assert len([message for message in caplog.messages if "5 rows queued in memory only" in message]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await passing(clock, 30)
    assert rows_left(writer) == (0, 5)
    store.failure = None
    await passing(clock, 31)
    assert everything(store, BTC, MINUTE) == [minute(at) for at in range(5)]


async def test_rows_of_the_journal_that_the_store_refuses_are_put_aside(journaling, store, clock, directory):
    writer = journaling()
    store.failure = UNAVAILABLE
    writer.enqueue_row(BTC, minute(0))
    await passing(clock, 7)
    store.failure = StoreRejected("the file is damaged")
    with pytest.raises(StoreRejected):
        await writer.flush()
    assert list(find_lines(directory / "rejected")) == [encode((BTC, minute(0)))]
    assert writer.describe()["rejected"] == 1


async def test_a_bad_row_of_the_journal_takes_no_other_with_it(journaling, store, clock, directory):
    writer = journaling()
    store.failure = UNAVAILABLE
    for at in range(50):
        writer.enqueue_row(BTC, impossible(at) if at == 20 else minute(at))
    await passing(clock, 7)
    store.failure = None
    with pytest.raises(StoreRejected):
        await writer.flush()
    assert list(find_lines(directory / "rejected")) == [encode((BTC, impossible(20)))]
    assert everything(store, BTC, MINUTE) == [minute(at) for at in range(50) if at != 20]


@pytest.mark.usefixtures("daemon")
async def test_the_loop_goes_on_while_the_journal_works(journaling, store, clock):
    """As in the outage of a database while history is fetched: to the journal, and from there to the store."""
    rows = 60_000 if tiers.LONG else 20_000
    writer = journaling(limit_bytes=100_000_000, max_waiting=200_000)
    store.failure = UNAVAILABLE
    gc.collect()
    gc.freeze()  # the rows are to be looked through, as in the daemon; not what the test tools have in memory
    async with LoopWatch() as watch:
        for start in range(0, rows, 20_000):
            for at in range(start, start + 20_000):
                writer.enqueue_row(BTC, minute(at))
                if at % 100 == 0:
                    await asyncio.sleep(0)
            await passing(clock, 2)
            assert rows_left(writer) == (0, start + 20_000)
        store.failure = None
        await passing(clock, 31)
    gc.unfreeze()
    print(f"{rows:,} rows to the journal and to the store: {watch}")
    assert rows_left(writer) == (0, 0)
    assert len(everything(store, BTC, MINUTE)) == rows
    assert watch.blocked_s < 0.1, watch


async def test_a_writer_moves_while_its_attempts_end_and_no_longer_once_one_hangs(
    writer, running, store, threads, clock
):
    assert writer.idle_s() == 0
    store.failure = UNAVAILABLE
    writer.enqueue_row(BTC, minute(0))
    for _ in range(120):  # a pause is at most 30 s
        await advance(clock, 1)
        assert writer.idle_s() <= 31
    store.failure = None
    hangs = threading.Event()
    hanging = asyncio.ensure_future(threads.run_write(hangs.wait))
    await clock.advance(200)
    assert writer.idle_s() >= 150
    hangs.set()
    await hanging
    async with deadlines.timeout(5):
        while writer.idle_s() > 31:
            await clock.advance(1)
            await asyncio.sleep(0.001)
    assert everything(store, BTC, MINUTE) == [minute(0)]
