"""Background tasks and retries, in virtual time."""

import asyncio
import gc
import logging
import random
import weakref

import pytest

from candled.errors import ExchangeError, StoreUnavailable, Unavailable
from candled.tasks import Backoff, LoopTurns, TaskSet, first_of, merge_iterators, retry
from tests import deadlines
from tests.clocks import ManualClock

CRASHED = "background task crash crashed; restart the process"


async def crash():
    raise ValueError("lost")


async def forever():
    await asyncio.Event().wait()


def test_backoff_doubles_with_jitter_up_to_its_most_and_starts_over_after_success():
    backoff = Backoff(first_s=1.0, most_s=60.0, draw=random.Random(1))
    waits = [backoff.on_failure() for _ in range(10)]
    for number, wait in enumerate(waits):
        limit = min(60.0, 2.0**number)
        assert limit / 2 <= wait <= limit
    assert len(set(waits[6:])) > 1
    backoff.on_success()
    assert backoff.on_failure() <= 1.0


# ---------------------------------------------------------------- TaskSet


async def test_a_crash_is_logged_once_with_its_error(caplog):
    tasks = TaskSet()
    tasks.start(crash())
    await tasks.wait()
    await tasks.cancel()
    (record,) = caplog.records
    assert (record.getMessage(), record.levelno) == (CRASHED, logging.CRITICAL)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


async def test_cancelling_ends_all_tasks_and_those_that_they_start_and_logs_nothing(caplog):
    tasks, ended = TaskSet(), []

    async def last_work():
        try:
            await forever()
        finally:
            ended.append("last")

    async def work():
        try:
            await forever()
        finally:
            ended.append("first")
            tasks.start(last_work())

    for _ in range(3):
        tasks.start(work())
    await asyncio.sleep(0)
    assert tasks
    await tasks.cancel()
    assert not tasks
    assert ended.count("first") == 3
    assert not caplog.records


@pytest.mark.slow
async def test_a_cancellation_that_a_library_turns_into_an_error_is_repeated(caplog):
    tasks, swallowed = TaskSet(), []

    async def connect():
        try:
            await forever()
        except asyncio.CancelledError:
            swallowed.append(1)
            raise ConnectionError("cancelled while connecting") from None

    async def work():
        while len(swallowed) < 3:
            try:
                await connect()
            except ConnectionError:
                continue
        await forever()

    tasks.start(work())
    await asyncio.sleep(0)
    await deadlines.wait_for(tasks.cancel(), 30)
    assert len(swallowed) == 3
    assert not tasks


@pytest.mark.slow
async def test_a_task_is_kept_while_it_runs_and_dropped_afterwards():
    tasks, go = TaskSet(), asyncio.Event()
    running = weakref.ref(tasks.start(go.wait()))
    gc.collect()
    assert running() is not None
    go.set()
    await tasks.wait()
    gc.collect()
    assert running() is None


async def test_endless_work_starts_again_after_an_error_and_ends_when_cancelled(caplog):
    clock, tasks, begun = ManualClock(), TaskSet(), []

    async def work():
        begun.append(clock.monotonic())
        if len(begun) < 3:
            raise ValueError("lost")
        await forever()

    tasks.start_endless(work, clock)
    await clock.advance(10)
    assert len(begun) == 3
    assert all(0.5 <= after - before <= 1.0 for before, after in zip(begun, begun[1:], strict=False))
    assert ["starting it again" in record.getMessage() for record in caplog.records] == [True, True]
    await tasks.cancel()
    assert not tasks


@pytest.mark.parametrize("is_async", [False, True])
async def test_periodic_work_goes_on_after_an_error(caplog, is_async):
    clock, tasks, begun = ManualClock(), TaskSet(), []

    def work():
        begun.append(clock.monotonic())
        if len(begun) == 2:
            raise ValueError("lost")

    async def async_work():
        work()

    tasks.start_periodic(async_work if is_async else work, clock, 4.0)
    await clock.advance(11.9)
    first, second, third, *_ = begun
    assert (second - first) == 4.0
    assert 2.0 <= third - second <= 4.0
    (record,) = caplog.records
    assert "work crashed; starting it again" in record.getMessage()
    await tasks.cancel()
    assert not tasks


# ---------------------------------------------------------------- first_of


@pytest.mark.parametrize("ends", ["result", "error", "cancelled"])
async def test_the_first_to_end_decides_and_the_others_are_cancelled(ends):
    cancelled = []

    async def other():
        try:
            await forever()
        finally:
            cancelled.append(True)

    async def first():
        await asyncio.sleep(0)
        if ends == "error":
            raise ValueError("lost")
        if ends == "cancelled":
            waiting.cancel()
            await forever()
        return "done"

    waiting = asyncio.ensure_future(first_of(other(), first()))
    (result,) = await asyncio.gather(waiting, return_exceptions=True)
    assert cancelled == [True]
    assert result == "done" if ends == "result" else isinstance(result, ValueError | asyncio.CancelledError)


# ---------------------------------------------------------------- retry


@pytest.mark.parametrize(
    ("errors", "options", "result"),
    [
        ([], {}, "done"),
        ([OSError, ValueError], {}, "done"),
        ([StoreUnavailable, StoreUnavailable], {"on": StoreUnavailable}, "done"),
        ([StoreUnavailable, ExchangeError], {"on": (StoreUnavailable, ExchangeError)}, "done"),
        ([StoreUnavailable, ExchangeError], {"on": StoreUnavailable}, ExchangeError),
        ([OSError, OSError], {"attempts": 3}, "done"),
        ([OSError, OSError, ValueError], {"attempts": 3}, ValueError),
    ],
)
async def test_a_call_is_repeated_after_the_given_errors_until_it_succeeds_or_gives_up(errors, options, result):
    clock, left, reported = ManualClock(), list(errors), []

    async def call():
        if left:
            raise left.pop(0)("no")
        return "done"

    retrying = asyncio.ensure_future(
        retry(call, clock, Backoff(), **options, report=lambda error, wait_s: reported.append(wait_s))
    )
    await clock.advance(100)
    assert retrying.done()
    assert not left
    if isinstance(result, str):
        assert retrying.result() == result
        assert len(reported) == len(errors)
    else:
        assert isinstance(retrying.exception(), result)
        assert len(reported) == len(errors) - 1
    assert reported == sorted(reported)


async def test_the_wait_is_as_long_as_the_other_side_asked_for():
    clock, waits, errors = ManualClock(), [], [Unavailable("busy", retry_after_s=40.0), Unavailable("busy")]

    async def call():
        if errors:
            raise errors.pop(0)
        return clock.monotonic()

    retrying = asyncio.ensure_future(
        retry(call, clock, Backoff(), on=Unavailable, report=lambda _, wait_s: waits.append(wait_s))
    )
    await clock.advance(39.9)
    assert not retrying.done()
    await clock.advance(2.1)
    assert waits[0] == 40.0
    assert waits[1] <= 2.0
    assert retrying.result() == pytest.approx(sum(waits))


async def test_a_report_may_give_up():
    def report(error, _):
        raise error

    with pytest.raises(ValueError, match="lost"):
        await retry(crash, ManualClock(), Backoff(), report=report)


async def test_merged_iterators_yield_as_they_come_and_end_together():
    seen, ended = asyncio.Event(), []

    async def slow():
        try:
            yield 1
            await seen.wait()
            yield 2
            await asyncio.Event().wait()
        finally:
            ended.append("slow")

    async def lost():
        yield 11
        yield 12
        raise OSError("lost")

    async def collect(found):
        async for number in merge_iterators([slow(), lost()], most_waiting=1):
            found.append(number)
            if number == 11:
                seen.set()

    found = []
    with pytest.raises(OSError, match="lost"):
        await collect(found)
    assert {1, 11, 12} <= set(found)
    assert 2 not in found or found.index(11) < found.index(2)
    assert ended == ["slow"]


# ---------------------------------------------------------------- LoopTurns


async def test_one_task_has_its_turn_in_each_pass_of_the_loop_and_urgent_ones_go_before_those_that_wait():
    one, other, order = LoopTurns(ManualClock()), LoopTurns(ManualClock()), []

    async def work(turns, name, is_urgent=False):
        async with turns.take(is_urgent=is_urgent):
            order.append(name)

    tasks = TaskSet()
    for number in range(3):
        tasks.start(work(one, f"one {number}"))
        tasks.start(work(other, f"other {number}"))
    while not order:
        await asyncio.sleep(0)
    assert order == ["one 0"]
    tasks.start(work(one, "urgent", is_urgent=True))
    before = 0
    while tasks:
        await asyncio.sleep(0)
        assert len(order) - before <= 1
        before = len(order)
    assert order.index("urgent") <= 3
    assert [name for name in order if name.startswith("one")] == ["one 0", "one 1", "one 2"]
    assert len(order) == 7


class BusyLoop:
    """A clock that measures `seconds` for each pass of the event loop."""

    def __init__(self):
        self.seconds, self.now = 0.01, 100.0

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        assert seconds == 0
        await asyncio.sleep(0)

    async def run_passes(self, count):
        for _ in range(count):
            self.now += self.seconds
            await asyncio.sleep(0)


async def test_a_turn_begins_after_a_short_pass_or_after_enough_long_ones():
    busy, begun = BusyLoop(), []
    turns = LoopTurns(busy, most_busy_s=0.5)

    async def work(name, is_urgent=False):
        async with turns.take(is_urgent=is_urgent):
            begun.append((name, round(busy.now, 2)))

    tasks = TaskSet()
    tasks.start(work("usual"))
    tasks.start(work("urgent", is_urgent=True))
    await busy.run_passes(20)
    assert [name for name, _ in begun] == ["urgent"]
    busy.seconds = 0.001
    await busy.run_passes(3)
    assert [name for name, _ in begun] == ["urgent", "usual"]
    busy.seconds, started = 0.01, busy.now
    for name in ("third", "fourth"):
        tasks.start(work(name))
    await busy.run_passes(160)  # the time without waiting is over then
    tasks.start(work("fifth"))
    await busy.run_passes(60)
    waits = [round(at - started, 2) for _, at in begun[2:]]
    assert [name for name, _ in begun[2:]] == ["third", "fourth", "fifth"]
    assert 0.5 < waits[0] < 0.53
    assert waits[1] < waits[0] + 0.05
    assert 2.1 < waits[2] < 2.13


async def test_a_task_that_is_cancelled_while_it_waits_for_its_turn_keeps_no_other_from_its_own():
    turns, order = LoopTurns(ManualClock()), []

    async def work(name):
        async with turns.take():
            order.append(name)

    async with LoopTurns(ManualClock()).take():
        running = [asyncio.create_task(work(name)) for name in "abcd"]
        for _ in range(5):
            await asyncio.sleep(0)
        running[0].cancel()  # it waits for the turn, and the others for the first place in their queue
        running[2].cancel()
    await deadlines.wait_for(running[3], 3)
    assert order == ["b", "d"]


async def test_a_task_that_is_cancelled_while_it_waits_for_a_short_pass_keeps_no_other_from_its_own():
    busy, order = BusyLoop(), []
    turns = LoopTurns(busy)

    async def work(name):
        async with turns.take():
            order.append(name)

    running = [asyncio.create_task(work(name)) for name in "ab"]
    await busy.run_passes(5)
    assert not order
    running[0].cancel()
    busy.seconds = 0.0
    await busy.run_passes(5)
    assert order == ["b"]
