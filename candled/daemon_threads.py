"""Threads that do not delay the end of the process."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

_SWITCH_S = 0.001

P = ParamSpec("P")
T = TypeVar("T")


def switch_often() -> None:
    """Let a thread that computes keep the interpreter for one millisecond, instead of Python's five.

    The event loop releases the interpreter's lock at each read and write of a socket. If another thread is folding
    bars, the loop would wait five milliseconds each time to get the lock again.
    """
    sys.setswitchinterval(_SWITCH_S)


class DaemonThreads(ThreadPoolExecutor):
    """At most `most` threads, which end with the process at any point of their work.

    Python's own executor makes the process wait for its threads: a thread that waits for a server without a response
    keeps the process alive. This is a `ThreadPoolExecutor` in name only, because an event loop accepts no other type.
    """

    def __init__(self, most: int, name: str) -> None:
        super().__init__(most, thread_name_prefix=name)
        self._most = most
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)
        self._made = 0
        self._is_shut = False

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a thread call `call`, after all earlier submissions."""
        job: Future[T] = Future()
        with self._lock:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._jobs.put(partial(_run, job, partial(call, *args, **kwargs)))
            if not self._idle.acquire(blocking=False) and self._made < self._most:
                self._made += 1
                threading.Thread(target=self._work, name=f"{self._name}_{self._made}", daemon=True).start()
        return job

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more work, and let the threads end after their current work. This never waits for them."""
        with self._lock:
            if not self._is_shut:
                self._is_shut = True
                for _ in range(self._made):
                    self._jobs.put(None)

    def _work(self) -> None:
        while True:
            if self._jobs.empty():
                self._idle.release()
            job = self._jobs.get()
            if job is None:
                return
            job()
            del job  # releases the objects that it worked on


def _run(job: "Future[T]", call: Callable[[], T]) -> None:
    if not job.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        job.set_exception(error)
    else:
        job.set_result(result)
