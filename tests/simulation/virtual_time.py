"""An event loop whose time passes as soon as nothing is left to do, and the clock of a machine on it."""

import asyncio
import random
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.DefaultSelector):
    """Waits for nothing: the time moves to where the loop would have waited until."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits for something that never comes")
        self.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """No thread and no socket may be used on it."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


def run(work: Coroutine[Any, Any, T], seed: int) -> T:
    """Run `work` in virtual time, the same way each time: `random` begins at `seed`."""
    random.seed(seed)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class Machine:
    """The clock of the machine that candled runs on.

    Attributes:
        asleep_ms: how long it slept in all: its steady clock stands still meanwhile.
        wrong_ms: how far its wall clock is from the true time.
    """

    def __init__(self, start_ms: int) -> None:
        self._start_ms = start_ms
        self._loop = asyncio.get_running_loop()
        self.asleep_ms = 0
        self.wrong_ms = 0

    @property
    def true_ms(self) -> int:
        """The true time, UTC epoch milliseconds."""
        return self._start_ms + self.asleep_ms + round(self._loop.time() * 1000)

    def now_ms(self) -> int:
        return self.true_ms + self.wrong_ms

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
