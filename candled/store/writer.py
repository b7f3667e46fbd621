"""Writes candles to the store in batches, and keeps them while it is unavailable."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from candled.errors import StoreRejected, StoreUnavailable
from candled.exchange import Clock
from candled.histogram import Histogram
from candled.model import Candle, MarketKey, Position
from candled.tasks import TaskSet

from .interface import Store
from .journal import Journal
from .journal_spill import JournalSpill
from .pending_changes import Log, PendingChangeLog, unpublished_changes
from .pending_rows import PendingRows, Row
from .threads import StoreThreads

logger = logging.getLogger(__name__)

PAGE_ROWS = 500  # a page takes long while the event loop is busy, and all other work of the thread waits for it
RETRY_AT_MOST_S = 30.0
JOURNAL_AFTER_S = 5.0
JOURNAL_LOOK_S = 1.0
# More rows than this move to the journal early: Python's garbage collector scans all rows in memory now and then, which
# blocks the process.
JOURNAL_FROM_ROWS = 20_000
_BEHIND_ROWS = 10_000
_OVERDUE = "queued rows have not been written in time"
SPLITS_IN_VAIN = 32  # this many refused halves and none accepted: the rows are not the cause
SPLITS_AT_MOST = 400
BATCH_ROWS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)


class Writer:
    """The queue of candles for the store, written every `flush_interval_s` seconds on the store's threads.

    While the store is unavailable, the newest version of each minute stays queued, and attempts are repeated after
    doubling pauses. Final minutes that have waited for `JOURNAL_AFTER_S` seconds, or are many, move to the `journal` on
    disk. A separate thread writes the journal. Its rows go to the store once that is available again, even after a
    restart. Beyond `max_waiting` final minutes, new ones are refused: the queued minutes stay, and the refused ones are
    missing in the store until the repair of gaps finds and fetches them.
    """

    def __init__(
        self,
        store: Store,
        threads: StoreThreads,
        clock: Clock,
        *,
        flush_interval_s: float,
        max_waiting: int = 200_000,
        journal: Journal | None = None,
    ) -> None:
        self._store = store
        self._threads = threads
        self._clock = clock
        self._flush_interval_s = flush_interval_s
        self._max_waiting = max_waiting
        self._waiting = PendingRows(max_waiting)
        self._changes = PendingChangeLog()
        #: When rows began to wait without progress, monotonic seconds.
        self._waiting_since = 0.0
        #: Only one page is written at a time.
        self._turn = asyncio.Lock()
        #: Returns True if clients wait for a market, so that it is written before others.
        self.is_urgent: Callable[[MarketKey], bool] = lambda market: False
        #: The markets for which `flush_market` waits, in order, and the task that writes them.
        self._awaited: dict[MarketKey, asyncio.Future[None]] = {}
        self._flushing = TaskSet()
        #: Those of `_awaited` for which clients wait, until they are written. Pages of `flush` go after them.
        self._urgent: set[asyncio.Future[None]] = set()
        self._is_closed = False
        #: When the last attempt to write ended, successful or not, monotonic seconds; None before `run_flushes`.
        self._attempt_ended_at: float | None = None
        self._state: Literal["ok", "unavailable", "rejecting"] = "ok"
        #: When the store became unavailable, monotonic seconds.
        self._unavailable_since = 0.0
        self._written = 0
        self._refused = 0
        #: The value of `_refused` when the store became unavailable.
        self._refused_before = 0
        self._rejected = 0
        self._last_error: str | None = None
        self._last_flush_ms: int | None = None
        self._spill = JournalSpill(journal, self._waiting) if journal else None
        #: Of each write: the seconds that it took, and its rows. Failed ones count too.
        self.write_s, self.batch_rows = Histogram(), Histogram(BATCH_ROWS)
        #: Writes that failed: `unavailable`, or `rejected` if the store refused the rows.
        self.errors: Counter[str] = Counter()

    def enqueue_row(self, market: MarketKey, candle: Candle, *, changes: Position | None = None) -> bool:
        """Queue a candle for the store; return whether it was accepted. Call this on the event loop.

        A final candle becomes part of history. Any other is kept until a final version of its minute arrives. A candle
        is not accepted if the queue is full or the writer is closed. If the candle changes the past, pass as `changes`
        the position of the message that published it.
        """
        if not self._waiting and self._state != "unavailable":
            self._waiting_since = self._clock.monotonic()
        taken = not self._is_closed and self._waiting.put_row(market, candle)
        self._refused += not taken
        if taken and changes is not None:
            self._changes.add_change(market, candle.open_ms, changes)
        return taken

    async def flush(self) -> None:
        """Write all rows in memory and in the journal. On return, everything queued before the call is durable.

        Raises:
            StoreUnavailable: not everything could be written; the rest is kept for the next attempt.
            StoreRejected: the store refused some rows, which will not be retried. They were dropped; all others are
                written.
        """
        rejection: StoreRejected | None = None
        is_over = False
        while not is_over:
            await self._take_turn()
            try:
                if self._spill and not self._spill.was_tried:
                    await self._spill.open()
                waited = self._waiting.next_rows(PAGE_ROWS)
                _, refusal = await self._write_page(waited)
                rejection = refusal or rejection
                if self._spill and not self._spill.journal.is_empty:
                    write = partial(self._write_page, from_journal=True)
                    rejection = await self._spill.store_page(write) or rejection
                else:
                    is_over = len(waited) < PAGE_ROWS  # the page contained all rows at that time
            finally:
                self._turn.release()
        if rejection:
            raise rejection

    async def flush_market(self, market: MarketKey) -> None:
        """Write the rows of one market. On return, those queued before the call are durable.

        Markets that are waited for are written together and before other markets: urgent ones first, then first come,
        first served.

        Raises:
            StoreUnavailable, StoreRejected: as `flush`, but only about rows of this market.
        """
        if self._spill and not (self._spill.was_tried and self._spill.journal.is_empty):
            await self.flush()
            return
        if market not in self._waiting:
            return
        waiting = self._awaited.get(market)
        if waiting is None:
            waiting = asyncio.get_running_loop().create_future()
            if self.is_urgent(market):
                self._awaited = {market: waiting} | self._awaited
                self._urgent.add(waiting)
                waiting.add_done_callback(self._urgent.discard)
            else:
                self._awaited[market] = waiting
            waiting.add_done_callback(lambda done: done.exception())  # retrieved, even if the caller has left
            if not self._flushing:
                self._flushing.start(self._flush_awaited())
        await asyncio.shield(waiting)

    async def run_flushes(self) -> None:
        """Flush and journal rows until cancelled. Cancellation loses no rows."""
        self._attempt_ended_at = self._clock.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._try_flush, self._flush_interval_s))
            if self._spill:
                tasks.create_task(self._repeat(partial(self._try_journal, self._spill), JOURNAL_LOOK_S))

    async def close(self, *, within_s: float = 10.0) -> int:
        """Accept no more candles and write the queued ones; return the number of rows that could not be written.

        Attempts are repeated while the store is unavailable. The last one begins within `within_s` seconds and takes no
        longer than that. If there is a journal, the queued rows go there instead, including forming minutes, so nothing
        is lost.
        """
        self._is_closed = True
        deadline = self._clock.monotonic() + within_s
        pause_s = self._flush_interval_s
        while not await self._empty_memory(within_s):
            pause_s = self._longer_pause(pause_s)
            if self._clock.monotonic() + pause_s > deadline:
                break
            await self._clock.sleep(pause_s)
        if self._waiting:
            logger.error("%s rows could not be stored before shutdown: %s", len(self._waiting), self._last_error)
        if self._spill:
            await self._spill.close()
        return len(self._waiting)

    def describe(self) -> dict[str, Any]:
        """Return facts for `/health`. Counts are since the start.

        `state` is `ok`, `unavailable` (rows are queued and retried) or `rejecting` (the last write was refused and is
        not retried). `waiting` (in memory), `written`, `refused` (no room) and `rejected` (dropped) count rows.
        `lastFlushMs` is the time of the last successful write, UTC epoch milliseconds. `lastError` is the last error,
        also after it has ended. `journal` is `Journal.describe`, or None without a journal.
        """
        return {
            "state": "unavailable" if self._state == "ok" and self._is_overdue() else self._state,
            "waiting": len(self._waiting),
            "written": self._written,
            "refused": self._refused,
            "rejected": self._rejected,
            "lastError": self._last_error,
            "lastFlushMs": self._last_flush_ms,
            "journal": self._spill.journal.describe() if self._spill else None,
        }

    @property
    def is_behind(self) -> bool:
        """True while the store accepts rows, but more are queued than it writes in about a second."""
        return self._waiting.minute_count > _BEHIND_ROWS and self._state == "ok" and not self._is_overdue()

    def idle_s(self) -> float:
        """Return the seconds since an attempt to write ended, which grow while the store hangs; 0 before the first."""
        return 0.0 if self._attempt_ended_at is None else self._clock.monotonic() - self._attempt_ended_at

    # ------------------------------------------------------------ writing to the store

    async def _take_turn(self) -> None:
        """Wait for a turn to write a page. A market for which clients wait is written before it."""
        await self._turn.acquire()
        if urgent := set(self._urgent):
            self._turn.release()
            await asyncio.wait(urgent, return_when=asyncio.FIRST_COMPLETED)  # the others wait for the next page
            await self._turn.acquire()

    async def _flush_awaited(self) -> None:
        """Write the rows of the markets for which `flush_market` waits."""
        affected: dict[MarketKey, StoreRejected] = {}
        while self._awaited:
            async with self._turn:
                page, complete = self._waiting.rows_of(self._awaited, PAGE_ROWS)
                # a caller that comes from now on may have queued further rows
                waiting = {market: self._awaited.pop(market) for market in complete}
                try:
                    refused, refusal = await self._write_page(page)
                except Exception as error:
                    for future in (*waiting.values(), *self._awaited.values()):
                        future.set_exception(error)
                    self._awaited.clear()
                    continue
            if refusal is not None:
                affected |= {market: refusal for market, _ in refused}
            for market, future in waiting.items():
                if market in affected:
                    future.set_exception(affected.pop(market))
                else:
                    future.set_result(None)

    async def _repeat(self, attempt: Callable[[], Awaitable[bool]], every_s: float) -> None:
        """Repeat an attempt every `every_s` seconds. While it returns False, each pause is twice the one before."""
        pause_s = every_s
        while True:
            await self._clock.sleep(pause_s)
            pause_s = every_s if await attempt() else self._longer_pause(pause_s)

    async def _try_flush(self) -> bool:
        """Flush, and return False if a retry is needed."""
        try:
            with suppress(StoreRejected):  # the refused rows are not retried
                await self.flush()
            return True
        except StoreUnavailable:
            return False
        except Exception as error:
            self._last_error = repr(error)
            logger.exception("writing to the store failed; %s rows queued", len(self._waiting))
            return False
        finally:
            self._attempt_ended_at = self._clock.monotonic()

    async def _write_page(
        self, page: list[Row], *, from_journal: bool = False
    ) -> tuple[list[Row], StoreRejected | None]:
        """Write a page; return the refused rows, and the last error if there are any.

        If the page is refused, its halves are written, then the halves of those that are refused, until the bad rows
        are isolated. So they affect no other rows. If the store refuses everything, this ends early.
        """
        parts = deque([page] if page else [])
        refused: list[Row] = []
        refusal: StoreRejected | None = None
        refusals = taken = 0
        while parts:
            part = parts.popleft()
            try:
                await self._write_part(part, from_journal=from_journal)
            except StoreRejected as error:
                refusal = error
                refusals += 1
                if len(part) > 1 and refusals < (SPLITS_AT_MOST if taken else SPLITS_IN_VAIN):
                    parts += part[: len(part) // 2], part[len(part) // 2 :]
                else:
                    refused += part
            else:
                taken += len(part)
        if refusal is not None:
            self._on_rejected(refused, refusal, "kept aside" if from_journal else "dropped")
            if not from_journal:
                self._drop_rows(refused, self._changes.changes_of(refused))
        return refused, refusal

    async def _write_part(self, part: list[Row], *, from_journal: bool) -> None:
        log = unpublished_changes(part) if from_journal else self._changes.changes_of(part)
        began = self._clock.monotonic()
        try:
            await self._threads.run_write(self._write_logged, part, log)
        except StoreUnavailable as error:
            self.errors["unavailable"] += 1
            self._on_unavailable(error)
            raise
        except StoreRejected:
            self.errors["rejected"] += 1
            raise
        finally:
            self.write_s.observe(self._clock.monotonic() - began)
            self.batch_rows.observe(len(part))
        self._on_written(part)
        if not from_journal:
            self._drop_rows(part, log)

    def _drop_rows(self, rows: list[Row], log: Log) -> None:
        self._waiting.drop_rows(rows)
        self._changes.drop_log(log)

    def _write_logged(self, page: list[Row], log: Log) -> None:
        """Log changes and write rows, on the writing thread.

        Log before storing: logging early causes a duplicate notification, logging late loses it.
        """
        for (market, epoch), changes in log.items():
            if epoch is not None:
                self._store.register_feed([market], epoch)
            self._store.log_changes(market, epoch, changes)
        self._store.write_minutes(page)

    def _longer_pause(self, pause_s: float) -> float:
        return min(pause_s * 2, RETRY_AT_MOST_S)

    def _on_unavailable(self, error: StoreUnavailable) -> None:
        self._last_error = str(error)
        if self._state == "unavailable":
            return
        self._state = "unavailable"
        self._unavailable_since = self._clock.monotonic()
        self._refused_before = self._refused
        logger.warning("the store is unavailable, %s rows queued: %s", self._row_count(), error)

    def _on_written(self, page: list[Row]) -> None:
        self._on_available()
        self._state = "ok"
        self._written += len(page)
        self._last_flush_ms = self._clock.now_ms()

    def _on_rejected(self, page: list[Row], error: StoreRejected, outcome: str) -> None:
        self._on_available()
        self._state = "rejecting"
        self._rejected += len(page)
        self._last_error = str(error)
        logger.error("the store refused %s rows, they are %s: %s", len(page), outcome, error)

    def _on_available(self) -> None:
        self._waiting_since = self._clock.monotonic()
        if self._state != "unavailable":
            return
        logger.info(
            "the store is available again after %.1f s: writing %s queued rows, %s were refused",
            self._clock.monotonic() - self._unavailable_since,
            self._row_count(),
            self._refused - self._refused_before,
        )

    def _row_count(self) -> int:
        """Return the number of rows not stored, in memory and in the journal."""
        return len(self._waiting) + (self._spill.journal.row_count if self._spill else 0)

    # ------------------------------------------------------------ writing to the journal

    async def _try_journal(self, spill: JournalSpill) -> bool:
        """Journal rows if due; return whether the journal is ready and contains all rows that it should."""
        try:
            if self._is_journal_due():
                if self._is_overdue():
                    self._on_unavailable(StoreUnavailable(_OVERDUE))
                return await spill.move_rows()
            return await spill.open()
        except Exception:
            logger.exception("writing to the journal failed; %s rows queued in memory", len(self._waiting))
            return False

    def _is_journal_due(self) -> bool:
        are_many = self._waiting.minute_count >= max(1, min(JOURNAL_FROM_ROWS, self._max_waiting // 2))
        return (self._state == "unavailable" and are_many) or self._is_overdue()

    def _is_overdue(self) -> bool:
        """Return True if rows have waited long enough to doubt the store, even if no call has failed yet.

        Calls run one after the other. If the store hangs, each call before the write ends only by its own timeout.
        """
        waits_s = self._clock.monotonic() - self._waiting_since
        return self._waiting.minute_count > 0 and waits_s >= self._flush_interval_s + JOURNAL_AFTER_S

    async def _empty_memory(self, within_s: float) -> bool:
        """Try to write all rows in memory to the store or the journal; return whether none is left."""
        if self._spill is None:
            return await self._try_flush_within(within_s)
        is_behind = self._state == "unavailable" or self._is_journal_due() or not self._spill.journal.is_empty
        if is_behind and await self._spill.move_rows(forming=True):
            return True
        return await self._try_flush_within(within_s) or await self._spill.move_rows(forming=True)

    async def _try_flush_within(self, within_s: float) -> bool:
        """Flush with a time limit. Rows that were not written by then stay queued and may be stored twice."""
        try:
            async with asyncio.timeout(within_s):
                return await self._try_flush()
        except TimeoutError:
            self._last_error = f"the store did not answer within {within_s:g} s"
            return False
