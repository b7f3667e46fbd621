"""The stored history that this ingest did not fetch itself, of any age and from any writer."""

from collections.abc import Mapping
from contextlib import suppress

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import MINUTE_MS, WEEK, Range, RangeSet, Symbol
from candled.tasks import repeat

from .context import IngestContext
from .coverage import Coverage
from .gap_retry import Absence
from .market import MarketIngest, Outcome
from .publisher import IngestPublisher

_SEGMENT_MS = 4 * WEEK.ms  # limits memory: a longer history is examined in parts
_TICK_S = 1.0
_TICKS_PER_SEARCH = 5


class StoredPast:
    """The stored history before the range that ingest has fetched, for all markets of one exchange.

    For each market it goes back range by range. Stored minutes count as complete, missing ones are requested. Minutes
    that other processes store are noticed within ten seconds and published.
    """

    def __init__(self, context: IngestContext, absence: Absence, publisher: IngestPublisher) -> None:
        self._exchange = context.name
        self._absence: Absence = absence
        self._store = context.store
        self._publisher = publisher
        self._clock = context.clock
        self._markets: Mapping[Symbol, MarketIngest] = {}
        self._unexamined: dict[Symbol, None] = {}  # markets for which the store may have more; an ordered set
        self._found_before: dict[Symbol, RangeSet] = {}
        self._ticks = 0

    async def run(self, markets: Mapping[Symbol, MarketIngest]) -> None:
        """Examine the markets until cancelled."""
        self._markets = markets
        self._unexamined = dict.fromkeys(markets)
        await repeat(self._examine_markets, self._clock, _TICK_S)

    async def _examine_markets(self) -> None:
        self._ticks += 1
        with suppress(StoreUnavailable, StoreRejected):  # logged by the writer; tried again in the next round
            if self._ticks % _TICKS_PER_SEARCH == 0:
                await self._find_foreign_changes()
            for symbol in list(self._unexamined):
                if symbol in self._markets:
                    await self._examine_market(self._markets[symbol])

    def examine_again(self, symbol: Symbol) -> None:
        """Check again whether the store has more of a market than is known."""
        self._unexamined[symbol] = None

    def forget_market(self, symbol: Symbol) -> None:
        """Forget a market that is closed."""
        self._unexamined.pop(symbol, None)
        self._found_before.pop(symbol, None)

    # ------------------------------------------------------------ older history

    async def _examine_market(self, market: MarketIngest) -> None:
        """Go back by one range, if everything after it is complete."""
        if not self._publisher.has_published(market):
            await self._publisher.publish_repair(market, Outcome())
        since_ms = market.coverage.since_ms
        if since_ms is None or since_ms > market.coverage.from_ms:
            return
        older = market.older
        if older is not None and older.since_ms is not None and older.since_ms > older.from_ms:
            return  # requested when nothing else is due
        market.older = None
        served_ms = await self._store.served_from(market.key)
        kept_ms = await self._store.kept_from()
        begins_ms = None if served_ms is None else max(WEEK.floor(served_ms), kept_ms)  # the first bars are complete
        if begins_ms is None or begins_ms >= since_ms:
            await self._extend_before_beginning(market, since_ms)
            self._unexamined.pop(market.key.symbol, None)
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
        added = market.examine_older(stretch, since_ms)
        if added is not None:
            await self._publisher.publish_repair(market, Outcome(repaired=added))

    async def _extend_before_beginning(self, market: MarketIngest, since_ms: int) -> None:
        """Extend complete history to the start of the week in which it begins.

        Nothing exists before the beginning of history, so the bars that contain it are complete.
        """
        for gap in await self._store.known_gaps(market.key, Range(since_ms - MINUTE_MS, since_ms)):
            begins_ms = max(gap.start_ms, WEEK.floor(since_ms))
            if gap.reason == "beyond_history" and gap.end_ms >= since_ms and begins_ms < since_ms:
                market.coverage.extend_since(begins_ms)
                await self._publisher.publish_repair(market, Outcome(repaired=Range(begins_ms, since_ms)))

    # ------------------------------------------------------------ minutes stored by other processes

    async def _find_foreign_changes(self) -> None:
        """Read the ranges that other processes have logged, and use those that the last read found too.

        Another process logs a range a moment before it stores the minutes.
        """
        found = {
            symbol: RangeSet(spans)
            for symbol, spans in (await self._store.unpublished(self._exchange)).items()
            if symbol in self._markets
        }
        before, self._found_before = self._found_before, found
        for symbol, spans in found.items():
            market = self._markets.get(symbol)
            if market is None:  # closed while another one was read
                continue
            for start_ms, end_ms in self._publisher.unfinished_repairs(market):
                spans.remove(start_ms, end_ms)
            for span in before.get(symbol, RangeSet()).common(spans):
                await self._adopt_range(market, span)

    async def _adopt_range(self, market: MarketIngest, span: Range) -> None:
        for week_ms in range(WEEK.floor(max(span.start_ms, market.coverage.from_ms)), span.end_ms, WEEK.ms):
            part = Range(max(week_ms, span.start_ms), min(week_ms + WEEK.ms, span.end_ms))
            market.compare_with_store(RangeSet(), RangeSet(await self._store.stored_ranges(market.key, *part)), part)
        since_ms = await self._store.complete_from(market.key)
        if since_ms is not None:
            market.coverage.extend_since(since_ms)
        market.older = None
        if self._publisher.is_open(market):
            self.examine_again(market.key.symbol)
        await self._publisher.publish_repair(market, Outcome(repaired=span, foreign=span))
