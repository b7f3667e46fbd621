"""The threads for a blocking store, so that the event loop never waits for a disk or a database."""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from candled.daemon_threads import DaemonThreads
from candled.errors import StoreUnavailable

from .interface import Store

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_CLOSE_S = 5.0  # limit for closing a store that responds


class _Read:
    """A read, and the thread that runs it; the thread is None before and after."""

    def __init__(self) -> None:
        self.thread: int | None = None

    def run(self, call: Callable[[], T]) -> T:
        self.thread = threading.get_ident()
        try:
            return call()
        finally:
            self.thread = None


class StoreThreads:
    """One thread that writes to `store`, in the order of the calls, and `readers` threads that read from it.

    `writes` counts the writes that have ended, successful or not. A read that starts after the count has increased sees
    the data of those writes.
    """

    def __init__(self, store: Store, *, readers: int = 2) -> None:
        self._store = store
        self._writing = DaemonThreads(1, "store-write")
        self._reading = DaemonThreads(readers, "store-read")
        self._jobs: set[Future[Any]] = set()
        self._left: SimpleQueue[_Read | None] = SimpleQueue()
        # Ending a read may involve a server that does not respond, so nothing waits for this thread.
        threading.Thread(target=self._end_reads, name="store-cancel", daemon=True).start()
        self._is_closed = False
        self.writes = 0

    async def run_write(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method that changes the store, after all earlier writes.

        Raises:
            StoreUnavailable: the threads are closed. Errors of the method are passed on.
        """
        job = self._submit_call(self._writing, call, *args, **kwargs)
        job.add_done_callback(self._count_done)
        return await asyncio.wrap_future(job)

    async def run_read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method that only reads the store. Raises as `run_write` does.

        If the caller is cancelled, a read that has not begun is dropped, and one in progress is ended in the store, so
        that its thread becomes free.
        """
        read = _Read()
        job = self._submit_call(self._reading, read.run, partial(call, *args, **kwargs))
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.cancel() and not job.done():
                self._left.put(read)
            raise

    async def close(self, *, within_s: float = 60.0) -> None:
        """Finish all calls, then close the store and the threads.

        A call that has not ended after `within_s` seconds is abandoned. It ends with the process.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if await _ended(self._jobs, within_s):
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await asyncio.wrap_future(self._writing.submit(self._store.close))
        else:
            logger.warning("the store does not answer and is left as it is")
        self._left.put(None)
        self._reading.shutdown()
        self._writing.shutdown()

    def _submit_call(
        self, threads: DaemonThreads, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        if self._is_closed:
            raise StoreUnavailable("the store is being closed")
        job = threads.submit(call, *args, **kwargs)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    def _end_reads(self) -> None:
        while (read := self._left.get()) is not None:
            thread = read.thread
            if thread is not None:
                self._store.cancel_read(thread)

    def _count_done(self, _: Future[T]) -> None:
        self.writes += 1


async def _ended(jobs: Collection[Future[Any]], within_s: float) -> bool:
    """Wait for jobs, at most `within_s` seconds; return whether all have ended."""
    waiting = [asyncio.wrap_future(job) for job in list(jobs)]
    if not waiting:
        return True
    _, left = await asyncio.wait(waiting, timeout=within_s)
    for one in waiting:
        if one.done() and not one.cancelled():
            # the caller has received this exception
            one.exception()
    return not left
