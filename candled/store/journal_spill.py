"""Moves queued rows to the journal on disk, and from there to the store."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from candled.daemon_threads import DaemonThreads
from candled.errors import StoreRejected, StoreUnavailable, Unavailable

from .journal import Journal
from .pending_rows import PendingRows, Row

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

PAGE_ROWS = 5_000


class JournalSpill:
    """Moves the rows in `waiting` to `journal`, and from there to the store. The journal has its own thread."""

    def __init__(self, journal: Journal, waiting: PendingRows) -> None:
        self.journal = journal
        self._waiting = waiting
        self._thread = DaemonThreads(1, "store-journal")
        #: True once opening the journal was tried, even without success.
        self.was_tried = False
        #: True if the last call of the journal failed.
        self._is_failing = False
        #: True since rows moved to the journal, until it is empty.
        self._is_used = False

    async def open(self) -> bool:
        """Open the journal if needed; return whether it is open."""
        self.was_tried = True
        if self.journal.is_open:
            return True
        try:
            await self._run_on_thread(self.journal.open)
        except Unavailable as error:
            self._on_failure(error)
            return False
        self._on_success()
        return True

    async def move_rows(self, *, forming: bool = False) -> bool:
        """Move queued rows to the journal; return whether it has taken all of them."""
        if not await self.open():
            return False
        while page := self._waiting.next_rows(PAGE_ROWS, forming=forming):
            try:
                kept = await self._run_on_thread(self.journal.append_rows, page)
            except Unavailable as error:
                self._on_failure(error)
                return False
            self._on_success(is_used=kept > 0)
            self._waiting.drop_rows(page[:kept])
            if kept < len(page):
                return False
            if kept < PAGE_ROWS:  # the page contained all rows at that time
                break
        return True

    async def store_page(
        self, write: Callable[[list[Row]], Awaitable[tuple[list[Row], StoreRejected | None]]]
    ) -> StoreRejected | None:
        """Store the oldest page of the journal; return the store's error if it refused rows.

        `write` writes rows to the store, and returns the refused ones and the error.
        """
        try:
            page = await self._run_on_thread(self.journal.next_rows, PAGE_ROWS)
        except Unavailable as error:
            self._on_failure(error)
            raise StoreUnavailable(str(error)) from error
        refused, refusal = await write(page)
        await self._run_on_thread(self.journal.mark_done, refused)
        if self.journal.is_empty:
            self._is_used = False
            logger.info("all rows of the journal are stored")
        return refusal

    async def close(self) -> None:
        """Close the journal and end its thread."""
        await self._run_on_thread(self.journal.close)
        if self.journal.row_count:
            logger.warning("%s rows remain in the journal for the next start", self.journal.row_count)
        self._thread.shutdown()

    async def _run_on_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._thread.submit(call, *args, **kwargs))

    def _on_failure(self, error: Unavailable) -> None:
        if not self._is_failing:
            logger.error("%s; %s rows queued in memory only", error, len(self._waiting))
        self._is_failing = True

    def _on_success(self, *, is_used: bool = False) -> None:
        if self._is_failing:
            logger.info("the journal can be used again")
        self._is_failing = False
        if is_used and not self._is_used:
            self._is_used = True
            logger.warning("the store does not accept the queued rows; moving them to the journal on disk")
