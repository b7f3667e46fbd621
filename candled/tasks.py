"""Background tasks, concurrent work, and calls that are repeated. No other module does these by hand."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

from candled.errors import Unavailable
from candled.exchange import Clock

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CANCEL_AGAIN_S = 0.5
_RESTART_S = 1.0
_SHORT_PASS_S = 0.002  # of the event loop: hardly any data waited for it
_FREE = 2  # turns begin without waiting for so many times the wait before
_PASS_US = 3_000  # of work in one pass of the loop, on a slow machine


class Pace:
    """Lets other tasks run whenever as much work is done as fits into one pass of the loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spent = 0

    async def spend(self, work: int) -> None:
        """Add work that was done, in microseconds of a slow machine."""
        self._spent += work
        if self._spent >= _PASS_US:
            self._spent = 0
            await self._clock.sleep(0)

    async def spread(self, items: Iterable[T], work: int) -> AsyncIterator[T]:
        """Yield items, each after its `work` was added. The source of the items may change meanwhile."""
        for item in items:
            await self.spend(work)
            yield item


class LoopTurns:
    """Turns for steps of several milliseconds: in each pass of the event loop, one of all such tasks has its turn.

    Without turns, the steps of all tasks whose data came together would run in one pass, and block the loop. Each
    instance has a queue of its own, and the queues take turns. The first task of a queue waits for a short pass of the
    loop, so that updates that came together go first. After `most_busy_s` without a short pass, the tasks of the queue
    do not wait, for twice that time.
    """

    def __init__(self, clock: Clock, most_busy_s: float = 0.25) -> None:
        self._clock = clock
        self._most_busy_s = most_busy_s
        #: Locked by the first task of the queue while it waits for its turn. Urgent tasks do not need this lock.
        self._first = asyncio.Lock()
        self._turn: asyncio.Lock | None = None
        #: When to wait for a short pass again after a wait without any, monotonic seconds.
        self._next_wait_at = float("-inf")

    @contextlib.asynccontextmanager
    async def take(self, *, is_urgent: bool = False) -> AsyncIterator[None]:
        """Wait for a turn, in the order of the calls, urgent ones first. The turn ends with the pass of the loop.

        Urgent tasks do not wait for a short pass.
        """
        loop = asyncio.get_running_loop()
        turn = self._turn = self._turn or _turn_of(loop)
        async with contextlib.nullcontext() if is_urgent else self._first:
            if not is_urgent:
                await self._wait_for_short_pass()
            await turn.acquire()
        try:
            yield
        finally:
            loop.call_soon(turn.release)

    async def _wait_for_short_pass(self) -> None:
        began = ended = self._clock.monotonic()
        while began >= self._next_wait_at:
            before = ended
            await self._clock.sleep(0)
            ended = self._clock.monotonic()
            if ended - before < _SHORT_PASS_S:
                return
            if ended - began > self._most_busy_s:
                self._next_wait_at = ended + _FREE * self._most_busy_s


#: The turn of each event loop.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, ReferenceType[asyncio.Lock]] = WeakKeyDictionary()


def _turn_of(loop: asyncio.AbstractEventLoop) -> asyncio.Lock:
    known = _turns.get(loop)
    turn = None if known is None else known()
    if turn is None:
        turn = asyncio.Lock()
        _turns[loop] = ref(turn)
    return turn


class Backoff:
    """Exponential backoff with jitter: each failure doubles the limit, and the wait is drawn from its upper half.

    This spreads out a storm of reconnects and never becomes a busy loop.
    """

    def __init__(self, first_s: float = 1.0, most_s: float = 60.0, draw: random.Random | None = None) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0
        self._draw = draw or random.Random(random.getrandbits(64))  # reproducible after `random.seed`

    @property
    def failure_count(self) -> int:
        """The number of failures since the last success."""
        return self._failures

    def on_failure(self) -> float:
        """Record a failure; return the seconds to wait before the next attempt."""
        limit = min(self._most_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return limit * (0.5 + 0.5 * self._draw.random())

    def on_success(self) -> None:
        """Record a success: the next failure starts with the first wait again."""
        self._failures = 0


async def retry(
    call: Callable[[], Awaitable[T]],
    clock: Clock,
    backoff: Backoff,
    *,
    on: type[Exception] | tuple[type[Exception], ...] = Exception,
    attempts: int | None = None,
    report: Callable[[Exception, float], None] = lambda error, wait_s: None,
) -> T:
    """Repeat `call` after the errors `on` until it succeeds; return its result.

    `report` receives each error and the wait before the next attempt, which is never shorter than the error's
    `retry_after_s`. It may raise the error to give up. After `attempts` failures the last error is raised.
    """
    while True:
        try:
            return await call()
        except on as error:
            wait_s = backoff.on_failure()
            if isinstance(error, Unavailable):
                wait_s = max(wait_s, error.retry_after_s or 0.0)
            if attempts is not None and backoff.failure_count >= attempts:
                raise
            report(error, wait_s)
        await clock.sleep(wait_s)


async def repeat(work: Callable[[], Awaitable[None] | None], clock: Clock, every_s: float) -> None:
    """Call `work` without end, with a pause of `every_s` seconds after each call."""
    while True:
        running = work()
        if running is not None:
            await running
        await clock.sleep(every_s)


async def first_of(*works: Coroutine[Any, Any, T]) -> T:
    """Run coroutines until one of them ends, cancel the others, and return its result."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def at_most(seconds: float, work: Coroutine[Any, Any, None], otherwise: str) -> None:
    """Wait for work with a time limit, and log `otherwise` if it is exceeded."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        logger.warning("%s", otherwise)


async def in_parallel(most: int, items: Iterable[T], work: Callable[[T], Awaitable[object]]) -> None:
    """Run `work` for every item, at most `most` at a time. The first error cancels all work and is raised."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    workers = [asyncio.create_task(worker()) for _ in range(most)]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()


class TaskSet:
    """The background tasks of one object. Each is kept until it ends, and logged if it crashes."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __bool__(self) -> bool:
        """Return whether any task is running."""
        return any(not task.done() for task in self._tasks)

    def start(self, work: Coroutine[Any, Any, T], name: str | None = None) -> "asyncio.Task[T]":
        """Run work in the background; by default its name in the log is that of the coroutine."""
        task = asyncio.create_task(work, name=name or getattr(work, "__qualname__", None))
        self._tasks.add(task)
        task.add_done_callback(self._on_end)
        return task

    def start_periodic(self, work: Callable[[], Awaitable[None] | None], clock: Clock, every_s: float) -> None:
        """Call `work` without end, with a pause of `every_s` seconds after each call, even one that failed."""
        name, restart_s = getattr(work, "__qualname__", None), max(_RESTART_S, every_s)
        self.start_endless(partial(repeat, work, clock, every_s), clock, name, restart_s)

    def start_endless(
        self, work: Callable[[], Awaitable[None]], clock: Clock, name: str | None = None, restart_s: float = _RESTART_S
    ) -> None:
        """Run work that never ends by itself, and restart it after an unexpected error."""
        name = name or getattr(work, "__qualname__", None)

        def report(error: Exception, wait_s: float) -> None:
            logger.error("background task %s crashed; starting it again in %.1f s", name, wait_s, exc_info=error)

        self.start(retry(work, clock, Backoff(restart_s, restart_s), report=report), name)

    async def wait(self) -> None:
        """Wait until all tasks have ended, including those that they start."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended.

        One cancellation is not always enough: redis-py may turn a cancellation during connecting into an error of its
        own, and a loop that survives errors then continues.
        """
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=_CANCEL_AGAIN_S)

    def _on_end(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("background task %s crashed; restart the process", task.get_name(), exc_info=error)


async def merge_iterators(iterators: Sequence[AsyncIterator[T]], *, most_waiting: int = 1000) -> AsyncIterator[T]:
    """Yield the items of several iterators as they come, each iterator in a task of its own.

    It never ends by itself. The first iterator that raises ends all of them, and the error is raised here.
    `most_waiting` is the number of items after which the iterators wait.
    """
    items: asyncio.Queue[T | _Raised] = asyncio.Queue(most_waiting)

    async def pass_on(iterator: AsyncIterator[T]) -> None:
        try:
            async for item in iterator:
                await items.put(item)
        except Exception as error:
            await items.put(_Raised(error))
        finally:  # a generator that waits at its `yield` is not ended by the end of its task
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()

    tasks = [asyncio.create_task(pass_on(iterator)) for iterator in iterators]
    try:
        while True:
            item = await items.get()
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error
