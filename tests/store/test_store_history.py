"""Shared reads and the store's threads, on a real SQLite store."""

import asyncio
import logging
import threading
import time
from contextlib import asynccontextmanager

import pytest

from candled.clock import SystemClock
from candled.errors import StoreRejected, StoreUnavailable
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Gap, Interval, Range
from candled.store.history import HistoryReader
from candled.store.ingest_store import IngestStore
from candled.store.sqlite.store import SqliteStore
from candled.store.threads import StoreThreads
from candled.store.writer import Writer
from tests import deadlines
from tests.store.contract import ALWAYS_MS, M5, sums
from tests.store.rows import BTC, ETH, MONDAY_MS, minute


class BlockingStore(SqliteStore):
    """A store whose reads of bars wait for a gate and are counted."""

    def __init__(self, path, intervals):
        super().__init__(path, intervals)
        self.barrier = threading.Event()
        self.barrier.set()
        self.reads = 0

    def read_bars(self, market, interval, *, before_ms, limit):
        self.reads += 1
        assert self.barrier.wait(5)
        return super().read_bars(market, interval, before_ms=before_ms, limit=limit)


@pytest.fixture
async def store(tmp_path):
    store = BlockingStore(tmp_path / "candled.db", DEFAULT_INTERVALS)
    store.open()
    store.write_minutes([(BTC, minute(at)) for at in range(10)])
    yield store
    store.barrier.set()
    store.close()


@pytest.fixture
async def threads(store):
    threads = StoreThreads(store)
    yield threads
    store.barrier.set()
    await threads.close()


@pytest.fixture
def history(store, threads):
    return HistoryReader(store, threads)


async def test_history_answers_as_the_store_does(history, store):
    gap = Gap(start_ms=0, end_ms=60_000, reason="beyond_history", attempts=1, retry_ms=None)
    store.save_known_gaps(BTC, [gap])
    store.set_complete_from(BTC, MONDAY_MS)
    store.write_minutes([(BTC, minute(10, final=False))])
    minutes = [minute(at) for at in range(10)]
    assert await history.read_bars(BTC, MINUTE, ALWAYS_MS, 3) == tuple(minutes[-3:])
    assert await history.read_bars_between(BTC, M5, 0, ALWAYS_MS) == tuple(sums(minutes, M5))
    assert await history.read_forming(BTC) == (minute(10, final=False),)
    assert await history.complete_from(BTC) == MONDAY_MS
    assert await history.newest_minutes("bitget") == {BTC.symbol: MONDAY_MS + 9 * MINUTE_MS}
    assert await history.stored_ranges(BTC, 0, ALWAYS_MS) == (Range(MONDAY_MS, MONDAY_MS + 10 * MINUTE_MS),)
    assert await history.known_gaps(BTC) == (gap,)


async def test_a_thousand_identical_questions_cost_one_query(history, store):
    answers = await asyncio.gather(*(history.read_bars(BTC, M5, ALWAYS_MS, 100) for _ in range(1000)))
    assert store.reads == 1
    assert {len(answer) for answer in answers} == {2}


async def test_different_questions_are_asked_apart(history, store):
    answers = await asyncio.gather(*(history.read_bars(BTC, MINUTE, ALWAYS_MS, limit) for limit in (1, 2, 3)))
    assert [len(answer) for answer in answers] == [1, 2, 3]
    assert store.reads == 3


async def test_the_same_question_later_is_asked_again(history, store):
    await history.read_bars(BTC, M5, ALWAYS_MS, 100)
    await history.read_bars(BTC, M5, ALWAYS_MS, 100)
    assert store.reads == 2


async def test_a_read_after_a_write_does_not_get_an_answer_from_before(history, store, threads):
    store.barrier.clear()
    early = asyncio.create_task(history.read_bars(BTC, MINUTE, ALWAYS_MS, 100))
    await asyncio.sleep(0)
    await threads.run_write(store.write_minutes, [(BTC, minute(10))])
    late = asyncio.create_task(history.read_bars(BTC, MINUTE, ALWAYS_MS, 100))
    await asyncio.sleep(0)
    store.barrier.set()
    await early
    assert len(await late) == 11
    assert store.reads == 2


async def test_one_caller_that_leaves_does_not_take_the_answer_from_the_others(history, store):
    store.barrier.clear()
    leaver = asyncio.create_task(history.read_bars(BTC, MINUTE, ALWAYS_MS, 100))
    stayer = asyncio.create_task(history.read_bars(BTC, MINUTE, ALWAYS_MS, 100))
    await asyncio.sleep(0)
    leaver.cancel()
    store.barrier.set()
    assert len(await stayer) == 10
    assert leaver.cancelled()
    assert store.reads == 1


async def test_an_error_reaches_every_caller_and_is_not_remembered(history, store):
    unknown = Interval.parse("3m")
    answers = await asyncio.gather(
        *(history.read_bars(BTC, unknown, ALWAYS_MS, 100) for _ in range(3)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [StoreRejected] * 3
    assert store.reads == 1
    with pytest.raises(StoreRejected):
        await history.read_bars(BTC, unknown, ALWAYS_MS, 100)
    assert store.reads == 2


async def test_two_reads_and_a_write_run_beside_each_other_and_beside_the_loop(threads):
    together, freed = threading.Barrier(3), threading.Event()

    def work() -> bool:
        together.wait(5)
        return freed.wait(5)

    calls = asyncio.gather(threads.run_read(work), threads.run_read(work), threads.run_write(work))
    await asyncio.sleep(0.01)
    freed.set()  # only a loop that is not held up comes here in time
    assert await calls == [True, True, True]


async def test_writes_happen_one_at_a_time_in_the_order_of_the_calls(threads):
    seen: list[int] = []

    def note(number: int) -> None:
        time.sleep(0.002)
        seen.append(number)

    await asyncio.gather(*(threads.run_write(note, number) for number in range(20)))
    assert seen == list(range(20))


async def test_closing_lets_what_was_asked_for_end(store, threads):
    store.barrier.clear()
    read = asyncio.create_task(threads.run_read(store.read_bars, BTC, MINUTE, before_ms=ALWAYS_MS, limit=5))
    write = asyncio.create_task(threads.run_write(store.write_minutes, [(BTC, minute(10))]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(threads.close())
    await asyncio.sleep(0)
    store.barrier.set()
    await closing
    assert len(await read) == 5
    await write
    store.open()
    assert store.newest_minutes("bitget") == {BTC.symbol: MONDAY_MS + 10 * MINUTE_MS}


@pytest.mark.parametrize("kind", ["a read", "a write", "a write that waits behind one"])
async def test_a_call_that_does_not_end_cannot_delay_the_end(store, kind, caplog):
    """Neither the closing, nor the end of the process: the threads are no others that it waits for."""
    threads = StoreThreads(store, readers=2)
    stall = threading.Event()
    begin = threads.run_read if kind == "a read" else threads.run_write
    calls = [asyncio.create_task(begin(stall.wait)) for _ in range(2 if kind.endswith("one") else 1)]
    try:
        await asyncio.sleep(0.05)
        began = deadlines.now()
        await threads.close(within_s=0.1)
        assert deadlines.now() - began < 2.0
        assert "the store does not answer" in caplog.text
        assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("store-"))
    finally:
        stall.set()
        await asyncio.gather(*calls)


async def test_closed_threads_refuse_work(store, threads):
    await threads.close()
    with pytest.raises(StoreUnavailable):
        await threads.run_read(store.read_forming, BTC)


async def test_changes_are_read_again_for_a_caller_that_knows_of_more(history, store, threads):
    store.register_feed([BTC], "a")
    assert await history.changes_since(BTC, "b", 0) is None
    asked, read = asyncio.Event(), store.changes_since

    def slow(*args):
        answer = read(*args)
        loop.call_soon_threadsafe(asked.set)
        assert store.barrier.wait(5)
        return answer

    loop = asyncio.get_running_loop()
    store.changes_since = slow
    store.barrier.clear()
    early = asyncio.create_task(history.changes_since(BTC, "a", 0, logged_seq=0))
    await asked.wait()
    store.log_changes(BTC, "a", [(1, Range(0, 60_000))])  # by another process
    late = asyncio.create_task(history.changes_since(BTC, "a", 0, logged_seq=1))
    await asyncio.sleep(0.01)
    store.barrier.set()
    assert (await early, await late) == ((), (Range(0, 60_000),))


async def test_the_keeper_writes_the_log_of_changes_in_order(history, store, threads):
    keeper = IngestStore(store, threads, Writer(store, threads, SystemClock(), flush_interval_s=1), history)
    await asyncio.gather(
        keeper.register_feed([BTC], "a"),
        keeper.log_changes(BTC, "a", [(1, Range(0, 60_000))]),
        keeper.register_feed([BTC], "b"),
        keeper.log_changes(BTC, "b", [(1, Range(0, 120_000))]),
    )
    assert await history.changes_since(BTC, "a", 1) == (Range(0, 120_000),)


# ---------------------------------------------------------------- coverage


class CoverageStore(SqliteStore):
    """A store that remembers saves of gaps, and fails for the markets of `trouble`."""

    def __init__(self, path):
        super().__init__(path, DEFAULT_INTERVALS)
        self.failure = {}
        self.saves = []

    def save_known_gaps(self, market, known_gaps, within):
        self.saves.append(market)
        if market in self.failure:
            raise self.failure[market]
        super().save_known_gaps(market, known_gaps, within)


@pytest.fixture
async def saving(tmp_path):
    """A store, its threads, and what ingest uses."""
    store = CoverageStore(tmp_path / "coverage.db")
    store.open()
    threads = StoreThreads(store)
    writer = Writer(store, threads, SystemClock(), flush_interval_s=1)
    yield store, threads, IngestStore(store, threads, writer, HistoryReader(store, threads))
    await threads.close()


def span(first, end):
    return Range(MONDAY_MS + first * MINUTE_MS, MONDAY_MS + end * MINUTE_MS)


def gap(first, end):
    start_ms, end_ms = span(first, end)
    return Gap(start_ms=start_ms, end_ms=end_ms, reason="no_trades", attempts=1, retry_ms=None)


@asynccontextmanager
async def behind_a_hung_write(threads):
    """Calls of the body queue behind a write that does not return."""
    goes_on = threading.Event()
    hanging = asyncio.create_task(threads.run_write(goes_on.wait, 10))
    await asyncio.sleep(0.01)
    try:
        yield
        await asyncio.sleep(0.01)
        assert len(threads._jobs) <= 2  # the hung one, and one save
    finally:
        goes_on.set()
        await hanging


async def test_the_newest_minute_of_a_market_is_read_alone(saving):
    store, _, ingest_store = saving
    store.write_minutes([(BTC, minute(number)) for number in range(3)])
    assert await ingest_store.newest_minute(BTC) == minute(2).open_ms
    assert await ingest_store.newest_minute(ETH) is None


async def test_saves_of_coverage_that_wait_are_one_call_and_the_newest_of_a_market_wins(saving):
    store, threads, ingest_store = saving
    async with asyncio.TaskGroup() as tasks, behind_a_hung_write(threads):
        tasks.create_task(ingest_store.save_coverage(ETH, None, [gap(5, 6)], span(0, 9)))
        await asyncio.sleep(0.01)  # this one has its turn, and waits for the thread
        for number in range(50):
            since_ms = MONDAY_MS - number * MINUTE_MS
            tasks.create_task(ingest_store.save_coverage(BTC, since_ms, [gap(number, 60)], span(0, 90)))
        tasks.create_task(ingest_store.save_coverage(BTC, None, [gap(200, 201)], span(200, 210)))
        tasks.create_task(ingest_store.save_coverage(BTC, None, [], None))
    assert store.saves == [ETH, BTC, BTC]
    assert store.known_gaps(BTC) == [gap(49, 60), gap(200, 201)]
    assert store.complete_from(BTC) == MONDAY_MS - 49 * MINUTE_MS
    assert store.known_gaps(ETH) == [gap(5, 6)]


@pytest.mark.parametrize(
    ("failure", "failing"), [(StoreRejected("no"), {BTC}), (StoreUnavailable("the database hangs"), {BTC, ETH})]
)
async def test_every_call_gets_the_error_of_its_market_and_an_absent_store_is_asked_once(saving, failure, failing):
    store, threads, ingest_store = saving
    store.failure = {BTC: failure}
    async with behind_a_hung_write(threads):
        first = asyncio.create_task(ingest_store.save_coverage(BTC, None, [], span(0, 1)))
        await asyncio.sleep(0.01)
        calls = [
            asyncio.create_task(ingest_store.save_coverage(market, None, [gap(at, at + 1)], span(at, at + 1)))
            for at in range(5)
            for market in (BTC, ETH)
        ]
    assert await asyncio.gather(first, return_exceptions=True) == [failure]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers == [failure if market in failing else None for _ in range(5) for market in (BTC, ETH)]
    assert store.saves.count(BTC) == 2
    store.failure = {}
    await ingest_store.save_coverage(BTC, None, [gap(3, 4)], span(0, 9))
    assert store.known_gaps(BTC) == [gap(3, 4)]


async def test_failing_reads_are_a_state_and_two_log_lines(history, store, caplog):
    caplog.set_level(logging.INFO, "candled")
    read, failing = store.complete_from, True

    def complete_from(market):
        if failing:
            raise StoreRejected(f"disk image is malformed: {market}")
        return read(market)

    store.complete_from = complete_from
    assert history.problem is None
    for market in (BTC, ETH, BTC, ETH):
        with pytest.raises(StoreRejected):
            await history.complete_from(market)
    await history.retry_failed()
    assert "malformed" in history.problem
    await history.newest_minutes("bitget")  # another read
    assert "malformed" in history.problem
    failing = False
    await history.retry_failed()
    assert history.problem is None
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"the store cannot be read: disk image is malformed: {BTC}", "the store can be read again"]


@pytest.mark.parametrize(("name", "arguments"), [("newest_minutes", ("bitget",)), ("kept_from", ())])
async def test_a_failed_read_about_an_exchange_or_the_store_is_repeated_too(history, store, name, arguments):
    """A process may never read it again by itself."""
    read, failing = getattr(store, name), True

    def fails_first(*given):
        if failing:
            raise StoreUnavailable("timeout expired")
        return read(*given)

    setattr(store, name, fails_first)
    with pytest.raises(StoreUnavailable):
        await getattr(history, name)(*arguments)
    await history.retry_failed()
    assert history.problem == "timeout expired"
    failing = False
    await history.retry_failed()
    assert history.problem is None
