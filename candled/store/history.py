"""Reads of stored candles for many clients. Identical concurrent reads share one query."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar, TypeVarTuple, cast

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import ALL_TIME, DAY_MS, REASONS, BarTexts, Candle, Gap, Interval, MarketKey, Range, Symbol
from candled.model.gaps import find_gaps, join_gaps

from .interface import Store
from .threads import StoreThreads

logger = logging.getLogger(__name__)

_GAPS_MS = 7 * DAY_MS  # one read of gaps covers this range

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(eq=False, slots=True)
class SharedRead:
    """A read in progress."""

    #: The task that reads, cancelled when its last caller leaves.
    task: asyncio.Task[Any]
    #: The number of callers that wait for the result.
    waiters: int = 0


class HistoryReader:
    """The reads of `Store` as coroutines. Results are shared between callers and therefore immutable.

    A call joins an identical read in progress only if no write ended in between, so a read after a flush sees its data.
    If all callers of a read are cancelled, the read is cancelled too. Every method raises `StoreUnavailable` and
    `StoreRejected` as the store does.
    """

    def __init__(self, store: Store, threads: StoreThreads) -> None:
        self._store = store
        self._threads = threads
        self._under_way: dict[object, SharedRead] = {}
        #: The error of each market or exchange whose last read failed; None stands for reads about the whole store.
        self._failing: dict[object, str] = {}
        #: Reads that have ended, by result: `ok` or `failed`. A read for several callers counts once.
        self.reads: Counter[str] = Counter()

    @property
    def problem(self) -> str | None:
        """Why the store cannot be read, or None if it can."""
        return next(iter(self._failing.values()), None)

    async def retry_failed(self) -> None:
        """Repeat a read for each market or exchange whose last one failed, to notice when the store works again."""
        for subject in list(self._failing):
            with suppress(StoreUnavailable, StoreRejected):
                if isinstance(subject, MarketKey):
                    await self.complete_from(subject)
                elif isinstance(subject, str):
                    await self.newest_minutes(subject)
                else:
                    await self.kept_from()

    async def read_bars(self, market: MarketKey, interval: Interval, before_ms: int, limit: int) -> tuple[Candle, ...]:
        """Return the newest `limit` bars with `open_ms < before_ms`, oldest first, built from final minutes only."""
        return tuple(await self._read_shared(self._read_bars, market, interval, before_ms, limit))

    async def read_bars_between(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int
    ) -> tuple[Candle, ...]:
        """Return all bars with `start_ms <= open_ms < end_ms`, oldest first, built from final minutes only."""
        return tuple(await self._read_shared(self._store.read_bars_between, market, interval, start_ms, end_ms))

    async def read_texts_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> BarTexts:
        """Return the same bars as `read_bars_between`, with texts in place of numbers."""
        return await self._read_shared(self._store.read_texts_between, market, interval, start_ms, end_ms)

    async def read_forming(self, market: MarketKey) -> tuple[Candle, ...]:
        """Return the minutes for which no final version is stored, oldest first."""
        return tuple(await self._read_shared(self._store.read_forming, market))

    async def complete_from(self, market: MarketKey) -> int | None:
        """Return the time (UTC epoch ms) since which history is complete except for known gaps; see `Store`."""
        return await self._read_shared(self._store.complete_from, market)

    async def served_from(self, market: MarketKey) -> int | None:
        """Return the start of the history to serve (UTC epoch ms); see `Store.served_from`."""
        return await self._read_shared(self._store.served_from, market)

    async def kept_from(self) -> int:
        """Return the time (UTC epoch ms) before which minutes are dropped; see `Store.kept_from`."""
        return await self._read_shared(self._store.kept_from)

    async def newest_minutes(self, exchange: str) -> Mapping[Symbol, int]:
        """Return the newest final minute of every market of `exchange` that has one, UTC epoch milliseconds."""
        return MappingProxyType(await self._read_shared(self._store.newest_minutes, exchange))

    async def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> tuple[Range, ...]:
        """Return the stored minutes of `[start_ms, end_ms)` as disjoint sorted ranges."""
        return tuple(await self._read_shared(self._store.stored_ranges, market, start_ms, end_ms))

    async def find_gaps(
        self, market: MarketKey, span: Range, *, limit: int | None = None, reasons: Container[str] = REASONS
    ) -> list[Gap]:
        """Return the gaps of a range, oldest first. If there are more than `limit`, older ones may be left out."""
        weeks: list[list[Gap]] = []
        found, end_ms = 0, span.end_ms
        # one gap more for each week that was read, because its first gap may continue in the week before
        while span.start_ms < end_ms and (limit is None or found <= limit + len(weeks)):
            week = Range(max(span.start_ms, end_ms - _GAPS_MS), end_ms)
            gaps = await self._read_shared(self._read_gaps, market, week)
            weeks.append([gap for gap in gaps if gap.reason in reasons])
            found, end_ms = found + len(weeks[-1]), week.start_ms
        return join_gaps(gap for week_gaps in reversed(weeks) for gap in week_gaps)

    async def known_gaps(self, market: MarketKey, within: Range = ALL_TIME) -> tuple[Gap, ...]:
        """Return the known gaps of a market that overlap a range, oldest first and not cut at its edges."""
        return tuple(await self._read_shared(self._store.known_gaps, market, within))

    async def changes_since(
        self, market: MarketKey, epoch: str, seq: int, *, logged_seq: int = -1
    ) -> tuple[Range, ...] | None:
        """Return the ranges of the past that changed after message `seq` of a feed; None if unknown.

        They include changes of all later feeds. `logged_seq` is the newest change that the caller knows to be logged.
        Reads with different values are not shared, because another process may have written in between.
        """
        changes = await self._read_shared(self._changes_since, market, epoch, seq, logged_seq)
        return None if changes is None else tuple(changes)

    async def _read_shared(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        key = (call, args, self._threads.writes)
        read = self._under_way.get(key)
        if read is None:
            read = self._under_way[key] = SharedRead(asyncio.create_task(self._threads.run_read(call, *args)))
            read.task.add_done_callback(lambda _: self._remove_read(key, read))
            read.task.add_done_callback(partial(self._on_read, next(iter(args), None)))
        read.waiters += 1
        try:
            # a cancelled caller must not cancel the read of the others
            return cast(T, await asyncio.shield(read.task))
        finally:
            read.waiters -= 1
            if not read.waiters and not read.task.done():
                self._remove_read(key, read)
                read.task.cancel()

    def _remove_read(self, key: object, read: SharedRead) -> None:
        """Let no further caller join the read."""
        if self._under_way.get(key) is read:
            del self._under_way[key]

    def _on_read(self, subject: object, task: asyncio.Task[Any]) -> None:
        """Record whether a read failed. Log the first failure, and that reads work again when none fails any more."""
        if task.cancelled():
            return
        error = task.exception()  # retrieved, even if every caller has left
        self.reads["ok" if error is None else "failed"] += 1
        if error is None:
            if self._failing.pop(subject, None) is not None and not self._failing:
                logger.info("the store can be read again")
        elif isinstance(error, StoreUnavailable | StoreRejected):
            if not self._failing:
                logger.error("the store cannot be read: %s", error)
            self._failing[subject] = str(error)

    def _changes_since(self, market: MarketKey, epoch: str, seq: int, _: int) -> list[Range] | None:
        return self._store.changes_since(market, epoch, seq)

    def _read_bars(self, market: MarketKey, interval: Interval, before_ms: int, limit: int) -> list[Candle]:
        return self._store.read_bars(market, interval, before_ms=before_ms, limit=limit)

    def _read_gaps(self, market: MarketKey, span: Range) -> list[Gap]:
        return read_gaps(self._store, market, span)


def read_gaps(store: Store, market: MarketKey, span: Range) -> list[Gap]:
    """Return the gaps of a range, oldest first. Minutes that the store has dropped because of their age are no gap."""
    stored = [Range(0, store.kept_from()), *store.stored_ranges(market, *span)]
    return find_gaps(stored, store.known_gaps(market, span), span)
