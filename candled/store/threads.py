"""The threads a blocking store works on, so that the event loop never waits for a disk or a database."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

from candled.errors import StoreUnavailable

from .interface import Store

P = ParamSpec("P")
T = TypeVar("T")


class _Read:
    """A read on its way: which thread is at it, None before and after."""

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

    `writes` counts the writes that have ended, well or not: a read begun after it moved sees what they wrote.
    """

    def __init__(self, store: Store, *, readers: int = 2) -> None:
        self._store = store
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reading = ThreadPoolExecutor(readers, thread_name_prefix="store-read")
        self._left: SimpleQueue[_Read | None] = SimpleQueue()
        # Ending a read may mean talking to a server that does not answer: nothing waits for this thread.
        threading.Thread(target=self._end_reads, name="store-cancel", daemon=True).start()
        self._is_closed = False
        self.writes = 0

    async def write(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the store that changes it, after all writes asked for before.

        Raises:
            StoreUnavailable: the threads are closed; otherwise whatever the method raises.
        """
        job = self._submit(self._writing, call, *args, **kwargs)
        job.add_done_callback(self._count)
        return await asyncio.wrap_future(job)

    async def read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the store that only reads. Raises as `write` does.

        Cancelled, a read that has not begun never does, and one under way is ended in the store: its thread is free
        for the others.
        """
        read = _Read()
        job = self._submit(self._reading, read.run, partial(call, *args, **kwargs))
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.cancel() and not job.done():
                self._left.put(read)
            raise

    async def close(self) -> None:
        """Let everything asked for end, then close the store and the threads."""
        if self._is_closed:
            return
        self._is_closed = True
        await asyncio.wrap_future(self._writing.submit(self._finish))
        self._writing.shutdown()

    def _submit(
        self, threads: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        if self._is_closed:
            raise StoreUnavailable("the store is being closed")
        return threads.submit(call, *args, **kwargs)

    def _end_reads(self) -> None:
        while (read := self._left.get()) is not None:
            thread = read.thread
            if thread is not None:
                self._store.cancel(thread)

    def _count(self, _: Future[T]) -> None:
        self.writes += 1

    def _finish(self) -> None:
        self._reading.shutdown()
        self._left.put(None)
        self._store.close()
