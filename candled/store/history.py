"""Reads of stored candles for many clients at once: identical questions asked together cost one query."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar, TypeVarTuple, cast

from candled.model import Candle, Interval, MarketKey, Range, Symbol

from .interface import ALL_TIME, KnownGap, Store
from .threads import StoreThreads

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(eq=False, slots=True)
class SharedRead:
    """A read under way, and how many wait for its answer."""

    task: asyncio.Task[Any]
    asking: int = 0


class HistoryReader:
    """`Store`'s reads, awaitable on the event loop. Results are shared between callers, hence immutable.

    A question joins an identical one under way only if no write ended in between: whoever asks after a flush sees it.
    When the last one who waits for an answer is cancelled, so is the read.
    Every method raises `StoreUnavailable` and `StoreRejected` as the store does.
    """

    def __init__(self, store: Store, threads: StoreThreads) -> None:
        self._store = store
        self._threads = threads
        self._under_way: dict[object, SharedRead] = {}

    async def read_bars(self, market: MarketKey, interval: Interval, before_ms: int, limit: int) -> tuple[Candle, ...]:
        """The newest `limit` bars with `open_ms < before_ms`, oldest first, built from final minutes only."""
        return await self._read_shared(self._read_bars, market, interval, before_ms, limit)

    async def read_bars_between(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int
    ) -> tuple[Candle, ...]:
        """All bars with `start_ms <= open_ms < end_ms`, oldest first, built from final minutes only."""
        return await self._read_shared(self._bars_between, market, interval, start_ms, end_ms)

    async def read_forming(self, market: MarketKey) -> tuple[Candle, ...]:
        """Return the minutes of which no final version is stored, oldest first."""
        return await self._read_shared(self._forming, market)

    async def complete_from(self, market: MarketKey) -> int | None:
        """Since when (UTC epoch ms) history is complete but for known holes; None before the first answer."""
        return await self._read_shared(self._store.complete_from, market)

    async def served_from(self, market: MarketKey) -> int | None:
        """Return where what may be served begins (UTC epoch ms); see `Store.served_from`."""
        return await self._read_shared(self._store.served_from, market)

    async def newest_minutes(self, exchange: str) -> Mapping[Symbol, int]:
        """The newest final minute of every market of `exchange` that has one, UTC epoch milliseconds."""
        return await self._read_shared(self._read_newest, exchange)

    async def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> tuple[Range, ...]:
        """Which minutes of `[start_ms, end_ms)` are there, as disjoint sorted ranges."""
        return await self._read_shared(self._read_stored_ranges, market, start_ms, end_ms)

    async def known_gaps(self, market: MarketKey, within: Range = ALL_TIME) -> tuple[KnownGap, ...]:
        """The known holes of a market that reach into a range, oldest first and whole."""
        return await self._read_shared(self._read_known_gaps, market, within)

    async def changes_since(
        self, market: MarketKey, epoch: str, seq: int, *, logged_seq: int = -1
    ) -> tuple[Range, ...] | None:
        """What of the past changed after message `seq` of a feed, in it and all later ones; None: it cannot be told.

        `logged_seq` is the newest change that the caller knows to be in the log: an answer is never shared with one
        who asked when less was known, which matters where another process writes.
        """
        return await self._read_shared(self._changes_since, market, epoch, seq, logged_seq)

    async def _read_shared(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        key = (call, args, self._threads.writes)
        question = self._under_way.get(key)
        if question is None:
            question = self._under_way[key] = SharedRead(asyncio.create_task(self._threads.run_read(call, *args)))
            question.task.add_done_callback(lambda _: self._forget_read(key, question))
        question.asking += 1
        try:
            # one caller that leaves must not take the answer from the others
            return cast(T, await asyncio.shield(question.task))
        finally:
            question.asking -= 1
            if not question.asking and not question.task.done():
                self._forget_read(key, question)
                question.task.cancel()

    def _forget_read(self, key: object, question: "SharedRead") -> None:
        """Let nobody join any more."""
        if self._under_way.get(key) is question:
            del self._under_way[key]
        if question.task.done() and not question.task.cancelled():
            question.task.exception()  # seen, even if every caller has left

    # On the reading threads:

    def _read_bars(self, market: MarketKey, interval: Interval, before_ms: int, limit: int) -> tuple[Candle, ...]:
        return tuple(self._store.read_bars(market, interval, before_ms=before_ms, limit=limit))

    def _bars_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> tuple[Candle, ...]:
        return tuple(self._store.read_bars_between(market, interval, start_ms, end_ms))

    def _changes_since(self, market: MarketKey, epoch: str, seq: int, _: int) -> tuple[Range, ...] | None:
        changes = self._store.changes_since(market, epoch, seq)
        return None if changes is None else tuple(changes)

    def _read_newest(self, exchange: str) -> Mapping[Symbol, int]:
        return MappingProxyType(self._store.newest_minutes(exchange))

    def _read_stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> tuple[Range, ...]:
        return tuple(self._store.stored_ranges(market, start_ms, end_ms))

    def _forming(self, market: MarketKey) -> tuple[Candle, ...]:
        return tuple(self._store.read_forming(market))

    def _read_known_gaps(self, market: MarketKey, within: Range) -> tuple[KnownGap, ...]:
        return tuple(self._store.known_gaps(market, within))
