"""Opens the daemon's store, and maintains it regularly."""

import logging
from collections.abc import Collection, Iterator, Sequence

from candled.errors import ConfigError, StoreRejected, StoreUnavailable
from candled.exchange import Clock
from candled.model import Interval
from candled.tasks import Backoff, TaskSet, retry

from .history import HistoryReader
from .interface import CHECK_IN_S, Store
from .threads import StoreThreads

logger = logging.getLogger(__name__)

_REOPEN_S = 2.0
_MAINTAIN_S = 3600.0
_DONE = object()


class StoreUpkeep:
    """Opens a store, lets it tidy up, and detects other daemons that use it with other settings."""

    def __init__(self, store: Store, threads: StoreThreads, history: HistoryReader, clock: Clock) -> None:
        self._store = store
        self._threads = threads
        self._history = history
        self._clock = clock
        #: why the store could not be opened at the last attempt
        self.problem = ""
        #: differences to the settings of other daemons, a sentence each
        self.conflicts: Sequence[str] = ()

    async def open_store(self) -> None:
        """Open the store.

        Raises:
            StoreUnavailable: it may open later; `problem` is the reason.
            ConfigError: it will not open later either.
        """
        try:
            await self._threads.run_write(self._store.open)
        except StoreRejected as error:
            raise ConfigError(f"store.url: {error}") from error
        except StoreUnavailable as error:
            if not self.problem:
                logger.warning("the store cannot be opened yet, trying again: %s", error)
            self.problem = str(error)
            raise
        if self.problem:
            logger.info("the store is open")

    async def open_later(self) -> None:
        """Try to open the store until it is open."""

        def report(error: Exception, wait_s: float) -> None:
            if isinstance(error, ConfigError):
                logger.error("%s", error)

        backoff = Backoff(_REOPEN_S, _REOPEN_S)
        await retry(self.open_store, self._clock, backoff, on=(StoreUnavailable, ConfigError), report=report)

    async def add_intervals(self, intervals: Collection[Interval]) -> None:
        """Have the store keep bars of further intervals; return once their past is folded too.

        Other writes run in between. While the store is unavailable, this begins again.
        """

        async def fold() -> None:
            await self._run_steps(self._store.add_intervals(intervals))

        def report(error: Exception, wait_s: float) -> None:
            logger.warning("stored minutes cannot be folded into new intervals, trying again: %s", error)

        await retry(fold, self._clock, Backoff(_REOPEN_S), on=(StoreUnavailable, StoreRejected), report=report)

    def start(self, tasks: TaskSet) -> None:
        """Start the regular maintenance in the background."""
        tasks.start_periodic(self._tidy_up, self._clock, _MAINTAIN_S)
        tasks.start_periodic(self._check_in, self._clock, CHECK_IN_S)

    async def _tidy_up(self) -> None:
        """Let the store tidy up. After a failure, the next run does it."""
        try:
            await self._threads.run_read(self._store.tidy_up, self._clock.now_ms())
            await self._run_steps(self._store.drop_old_minutes(self._clock.now_ms()))
        except (StoreUnavailable, StoreRejected) as error:
            logger.warning("the store could not be tidied up: %s", error)

    async def _run_steps(self, steps: Iterator[None]) -> None:
        """Run the steps of a long write on the writing thread. Other writes run in between."""
        while await self._threads.run_write(lambda: next(steps, _DONE)) is not _DONE:
            pass

    async def _check_in(self) -> None:
        """Repeat failed reads, and detect other daemons that use the store with other settings."""
        await self._history.retry_failed()
        try:
            conflicts = await self._threads.run_write(self._store.check_in)
        except (StoreUnavailable, StoreRejected):
            return  # the writer logs the error
        for conflict in conflicts:
            if conflict not in self.conflicts:
                logger.warning("two daemons with different settings on one store: %s", conflict)
        self.conflicts = conflicts
