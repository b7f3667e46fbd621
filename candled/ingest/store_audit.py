"""The regular comparison of markets with the store, and with REST."""

import contextlib
import logging
from collections.abc import Callable, Mapping

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import MINUTE, MINUTE_MS, Range, RangeSet, Symbol

from .context import IngestContext
from .coverage import RECHECK_MS
from .market import MarketIngest, Outcome
from .publisher import IngestPublisher

logger = logging.getLogger(__name__)

# The stored history of `RECHECK_MS` is compared with REST again this often: exchanges revise minutes.
_RECHECK_EVERY_MS = 6 * 60 * MINUTE_MS
# Every five minutes, the minutes that each market should have of the last days are compared with the store. The newest
# minutes are excluded, because their late versions may still arrive.
_AUDIT_S = 300.0
_AUDIT_MS = 3 * 1440 * MINUTE_MS
_AUDIT_MARGIN_MS = 10 * MINUTE_MS


class StoreAudit:
    """Finds minutes that the store has lost, and minutes that other processes have stored."""

    def __init__(
        self, context: IngestContext, publisher: IngestPublisher, examine_again: Callable[[Symbol], None]
    ) -> None:
        self._store = context.store
        self._publisher = publisher
        self._examine_again = examine_again
        self._clock = context.clock
        self._time = context.time
        self._counts = context.counts

    async def run(self, markets: Mapping[Symbol, MarketIngest]) -> None:
        """Compare the markets with the store in an endless loop, one at a time, and have some rechecked with REST."""
        rechecked_ms = dict.fromkeys(markets.values(), self._time.steady_ms())  # when opened, on the steady clock
        while True:
            opened = list(markets.values())
            rechecked_ms = {market: rechecked_ms.get(market, self._time.steady_ms()) for market in opened}
            if not opened:
                await self._clock.sleep(_AUDIT_S)
            for market in opened:
                await self._clock.sleep(_AUDIT_S / len(opened))
                if not self._publisher.is_open(market):
                    continue
                if self._time.steady_ms() - rechecked_ms[market] >= _RECHECK_EVERY_MS:
                    rechecked_ms[market] = self._time.steady_ms()
                    market.coverage.recheck_since(self._time.now_ms() - RECHECK_MS)
                # logged by the writer; tried again in the next round
                with contextlib.suppress(StoreUnavailable, StoreRejected):
                    await self._compare_with_store(market)

    async def _compare_with_store(self, market: MarketIngest) -> None:
        until_ms = MINUTE.floor(self._time.now_ms()) - _AUDIT_MARGIN_MS
        start_ms = max(market.coverage.from_ms, until_ms - _AUDIT_MS, await self._store.kept_from())
        span = Range(min(start_ms, until_ms), until_ms)
        expected = market.coverage.covered_within(*span)
        with contextlib.suppress(StoreRejected):  # the comparison finds the minutes that the store refused
            await self._store.flush()
        stored = RangeSet(await self._store.stored_ranges(market.key, *span))
        since_ms = await self._store.complete_from(market.key)
        not_stored, new = market.compare_with_store(expected, stored, span)
        self._counts.store_audits += 1
        if not_stored:
            minutes = not_stored.total_ms // MINUTE_MS
            self._counts.lost_minutes += minutes
            logger.warning("%s: %d minutes missing from the store, refetching", market.key, minutes)
        before_ms = market.coverage.since_ms
        if since_ms is not None and market.coverage.extend_since(since_ms):
            new.add(since_ms, before_ms or until_ms)
        if self._publisher.is_open(market):
            self._examine_again(market.key.symbol)
        if new:
            await self._publisher.publish_repair(market, Outcome(repaired=new.extent))
