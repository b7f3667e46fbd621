"""The history of renamed markets: minutes that are stored under a former symbol are copied to the new one."""

import logging

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import DAY_MS, WEEK, MarketKey, Range, RangeSet, Symbol
from candled.store.interface import SEQ_UNPUBLISHED
from candled.tasks import Backoff, retry

from .context import IngestContext

logger = logging.getLogger(__name__)

_TICK_S = 0.5  # between two attempts to queue a row
_AGAIN_MS = DAY_MS  # the newest minutes of the former symbol may be stored or repaired late, so they are compared again


class RenamedHistory:
    """Copies the stored minutes of one exchange's renamed markets.

    It logs them as changes of the past before it stores them, as a command does. `StoredPast` then finds and publishes
    them.
    """

    def __init__(self, context: IngestContext) -> None:
        self._exchange = context.name
        self._store = context.store
        self._clock = context.clock
        #: Until when the history of each new symbol was copied, UTC epoch milliseconds.
        self._copied_ms: dict[Symbol, int] = {}
        #: The new symbols whose history is being copied.
        self._copying: set[Symbol] = set()

    async def copy_history(self, former: Symbol, symbol: Symbol) -> None:
        """Copy the minutes of `former` that `symbol` does not have. The former symbol keeps its own."""
        if symbol in self._copying:
            return
        self._copying.add(symbol)
        source, target = MarketKey(self._exchange, former), MarketKey(self._exchange, symbol)
        try:
            count = await retry(lambda: self._copy_missing(source, target), self._clock, Backoff(), on=StoreUnavailable)
        except StoreRejected as error:  # logged by the writer
            logger.error("%s: the history of %s is not complete: %s", target, former, error)
            return
        finally:
            self._copying.discard(symbol)
        if count:
            logger.info("%s: copied %d minutes of the former symbol %s", target, count, former)

    async def _copy_missing(self, source: MarketKey, target: MarketKey) -> int:
        """Copy the missing minutes; return their number."""
        span = Range(max(0, self._copied_ms.get(target.symbol, 0) - _AGAIN_MS), self._clock.now_ms())
        known, count = RangeSet(await self._store.stored_ranges(target, *span)), 0
        stored = RangeSet(await self._store.stored_ranges(source, *span))
        for start_ms, end_ms in stored.without(known):
            for week_ms in range(WEEK.floor(start_ms), end_ms, WEEK.ms):
                part = Range(max(week_ms, start_ms), min(week_ms + WEEK.ms, end_ms))
                count += await self._copy_range(source, target, part)
        self._copied_ms[target.symbol] = span.end_ms
        return count

    async def _copy_range(self, source: MarketKey, target: MarketKey, span: Range) -> int:
        rows = await self._store.read_minutes(source, *span)
        await self._store.log_changes(target, None, [(SEQ_UNPUBLISHED, span)])
        for row in rows:
            while not self._store.enqueue_row(target, row):
                await self._clock.sleep(_TICK_S)
        await self._store.flush()
        return len(rows)
