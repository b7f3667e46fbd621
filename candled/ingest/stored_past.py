"""Stored history of any age and from any writer that this ingest did not fetch."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from candled.errors import StoreRejected, StoreUnavailable
from candled.exchange import Clock
from candled.model import MINUTE_MS, Interval, MarketKey, Range, RangeSet, Symbol
from candled.store.interface import KnownGap

from .coverage import Absence, Coverage
from .market import MarketIngest, Outcome
from .publisher import IngestPublisher

_WEEK = Interval.parse("1W")
_SEGMENT_MS = 4 * _WEEK.ms  # limits memory: a longer history is examined in parts
_TICK_S = 1.0
_TICKS_A_NOTICE = 5


class PastStore(Protocol):
    """The store reads that this module needs; implemented by `candled.store.ingest_store.IngestStore`."""

    async def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> Sequence[Range]:
        """See `Store.stored_ranges`."""

    async def known_gaps(self, market: MarketKey, within: Range) -> Sequence[KnownGap]:
        """See `Store.known_gaps`."""

    async def complete_from(self, market: MarketKey) -> int | None:
        """See `Store.complete_from`."""

    async def served_from(self, market: MarketKey) -> int | None:
        """See `Store.served_from`."""

    async def unpublished(self, exchange: str) -> Mapping[Symbol, Sequence[Range]]:
        """See `Store.unpublished`."""

    async def has_before(self, market: MarketKey, at_ms: int) -> bool:
        """See `IngestStore.has_before`."""


class StoredPast:
    """The stored history before the range that ingest has fetched, for all markets of one exchange.

    For each market it goes back range by range. Stored minutes count as complete, missing ones are requested. Minutes
    that other processes store are noticed within ten seconds and published.
    """

    def __init__(
        self, exchange: str, absence: Absence, store: PastStore, outlet: IngestPublisher, clock: Clock
    ) -> None:
        self._exchange = exchange
        self._absence: Absence = absence
        self._store = store
        self._outlet = outlet
        self._clock = clock
        self._markets: Mapping[Symbol, MarketIngest] = {}
        self._doubtful: dict[Symbol, None] = {}  # markets for which the store may have more; an ordered set
        self._noticed: dict[Symbol, RangeSet] = {}

    async def run(self, markets: Mapping[Symbol, MarketIngest]) -> None:
        """Examine the markets until cancelled."""
        self._markets = markets
        self._doubtful = dict.fromkeys(markets)
        ticks = 0
        while True:
            await self._clock.sleep(_TICK_S)
            ticks += 1
            # logged by the writer; tried again in the next round
            with contextlib.suppress(StoreUnavailable, StoreRejected):
                if ticks % _TICKS_A_NOTICE == 0:
                    await self._notice()
                for symbol in list(self._doubtful):
                    await self._look(markets[symbol])

    def doubt(self, symbol: Symbol) -> None:
        """Check again whether the store has more of a market than is known."""
        self._doubtful[symbol] = None

    # ------------------------------------------------------------ older history

    async def _look(self, market: MarketIngest) -> None:
        """Go back one range, once everything after it is complete."""
        if not self._outlet.has_published(market):
            await self._outlet.publish_repair(market, Outcome())
        since_ms = market.coverage.since_ms
        if since_ms is None or since_ms > market.coverage.from_ms:
            return
        older = market.older
        if older is not None and older.since_ms is not None and older.since_ms > older.from_ms:
            return  # requested when nothing else is due
        market.older = None
        served_ms = await self._store.served_from(market.key)
        begins_ms = None if served_ms is None else _WEEK.floor(served_ms)  # so that the first bars are complete
        if begins_ms is None or begins_ms >= since_ms:
            await self._pass_the_beginning(market, since_ms)
            self._doubtful.pop(market.key.symbol, None)
            return
        span = Range(max(begins_ms, since_ms - _SEGMENT_MS), since_ms)
        stretch = Coverage(
            present=await self._store.stored_ranges(market.key, *span),
            known_gaps=await self._store.known_gaps(market.key, span),
            since_ms=since_ms,
            from_ms=span.start_ms,
            absence=self._absence,
            older=await self._store.has_before(market.key, span.start_ms),
        )
        added = market.look_at(stretch, since_ms)
        if added is not None:
            await self._outlet.publish_repair(market, Outcome(healed=added))

    async def _pass_the_beginning(self, market: MarketIngest, since_ms: int) -> None:
        """Extend complete history to the start of the week in which it begins.

        Nothing exists before the beginning of history, so the bars that contain it are complete.
        """
        for gap in await self._store.known_gaps(market.key, Range(since_ms - MINUTE_MS, since_ms)):
            begins_ms = max(gap.start_ms, _WEEK.floor(since_ms))
            if gap.reason == "beyond_history" and gap.end_ms >= since_ms and begins_ms < since_ms:
                market.coverage.known_since(begins_ms)
                await self._outlet.publish_repair(market, Outcome(healed=Range(begins_ms, since_ms)))

    # ------------------------------------------------------------ minutes stored by other processes

    async def _notice(self) -> None:
        """Read the ranges that others have logged, and use those seen twice.

        Another process logs a range a moment before it stores the minutes.
        """
        found = {
            symbol: RangeSet(spans)
            for symbol, spans in (await self._store.unpublished(self._exchange)).items()
            if symbol in self._markets
        }
        before, self._noticed = self._noticed, found
        for symbol, spans in found.items():
            market = self._markets[symbol]
            for start_ms, end_ms in self._outlet.healing(market):
                spans.remove(start_ms, end_ms)
            for span in before.get(symbol, RangeSet()).common(spans):
                await self._take_in(market, span)

    async def _take_in(self, market: MarketIngest, span: Range) -> None:
        for week_ms in range(_WEEK.floor(max(span.start_ms, market.coverage.from_ms)), span.end_ms, _WEEK.ms):
            part = Range(max(week_ms, span.start_ms), min(week_ms + _WEEK.ms, span.end_ms))
            market.compare_with_store(RangeSet(), RangeSet(await self._store.stored_ranges(market.key, *part)), part)
        since_ms = await self._store.complete_from(market.key)
        if since_ms is not None:
            market.coverage.known_since(since_ms)
        market.older = None
        self.doubt(market.key.symbol)
        await self._outlet.publish_repair(market, Outcome(healed=span, foreign=span))
