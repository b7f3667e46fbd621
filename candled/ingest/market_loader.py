"""The start of one exchange's markets: each is read from the store."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from candled.errors import StoreUnavailable
from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS, WEEK, Gap, MarketKey, Range, Symbol
from candled.model.gaps import clip_gap
from candled.tasks import Backoff, in_parallel, retry

from .context import IngestContext
from .coverage import RECHECK_MS, Coverage
from .gap_retry import absence_reason
from .market import MarketIngest
from .market_status import Rules
from .minutes import WINDOW_MS

logger = logging.getLogger(__name__)

T = TypeVar("T")

_READ_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestOptions:
    """The operator's settings for ingest. Times are in milliseconds."""

    #: How far back history is wanted.
    backfill_ms: int
    #: How long after the next minute opened the late versions of a minute are awaited.
    grace_period_ms: int
    #: How long the stream may be silent before REST is asked whether the market is quiet.
    quiet_after_ms: int
    #: The minimum time between two writes of forming minutes to the store.
    checkpoint_ms: int
    #: True if final minutes of the stream are compared with REST.
    confirm: bool


class MarketLoader:
    """Reads markets from the store, with retries while it is unavailable."""

    def __init__(self, context: IngestContext, options: IngestOptions) -> None:
        exchange = context.exchange
        self._name = context.name
        self._store = context.store
        self._clock = context.clock
        self._backfill_ms = options.backfill_ms
        self._rules = Rules(
            grace_period_ms=options.grace_period_ms,
            quiet_after_ms=options.quiet_after_ms,
            confirm=options.confirm,
            max_history_minutes=exchange.max_history_minutes,
            opens_at_previous_close=exchange.opens_at_previous_close,
            publishes_empty_candles=exchange.publishes_empty_candles,
            closed_flag=exchange.closed_flag,
            history_minutes=exchange.history_minutes,
        )
        self.absence = absence_reason(publishes_empty_candles=exchange.publishes_empty_candles)
        self._is_store_away = False

    async def load_newest_minutes(self) -> Mapping[Symbol, int]:
        """Return the newest final minute of each stored market."""
        return await self._retry_read(lambda: self._store.newest_minutes(self._name))

    async def load_newest_of(self, symbols: Sequence[Symbol]) -> Mapping[Symbol, int]:
        """Return the newest final minute of those of some markets that are stored; each is read by itself."""
        newest: dict[Symbol, int] = {}

        async def add_newest(symbol: Symbol) -> None:
            found = await self._retry_read(lambda: self._store.newest_minute(MarketKey(self._name, symbol)))
            if found is not None:
                newest[symbol] = found

        await in_parallel(_READ_AT_ONCE, symbols, add_newest)
        return newest

    async def newest_completed(self, final: Mapping[Symbol, int], symbols: Sequence[Symbol]) -> int | None:
        """Return the newest completed minute in the store: a final one, or the one before a forming one."""

        async def read() -> int | None:
            newest = list(final.values())

            async def add_forming(symbol: Symbol) -> None:
                forming = await self._store.read_forming(MarketKey(self._name, symbol))
                newest.extend(one.open_ms - MINUTE_MS for one in forming)

            await in_parallel(_READ_AT_ONCE, symbols, add_forming)
            return max(newest, default=None)

        return await self._retry_read(read)

    async def load_market(self, symbol: Symbol, newest_ms: int | None, now_ms: Callable[[], int]) -> MarketIngest:
        """Read a market from the store, and return it. `newest_ms` is its newest stored minute."""
        return await self._retry_read(lambda: self._read_market(symbol, newest_ms, now_ms()))

    async def _read_market(self, symbol: Symbol, newest_ms: int | None, now_ms: int) -> MarketIngest:
        key = MarketKey(self._name, symbol)
        # Begin with a complete week, so that the first bar of every interval is complete. Begin earlier after a long
        # pause, so that no week since then is left out.
        wanted_ms = now_ms - self._backfill_ms
        from_ms = WEEK.floor(wanted_ms if newest_ms is None else min(wanted_ms, newest_ms))
        from_ms = max(from_ms, await self._store.kept_from())
        coverage = Coverage(
            present=() if newest_ms is None else await self._store.stored_ranges(key, from_ms, now_ms),
            known_gaps=[_examined(gap) for gap in await self._known_gaps(key, from_ms, MINUTE.floor(now_ms))],
            since_ms=await self._store.complete_from(key),
            from_ms=from_ms,
            absence=self.absence,
            older=newest_ms is not None and await self._store.has_before(key, from_ms),
        )
        coverage.recheck_since(now_ms - RECHECK_MS)
        recent = () if newest_ms is None else await self._store.read_minutes(key, newest_ms - WINDOW_MS, END_OF_TIME_MS)
        return MarketIngest(key, coverage, self._rules, sorted([*recent, *await self._store.read_forming(key)]))

    async def _known_gaps(self, key: MarketKey, from_ms: int, now_ms: int) -> list[Gap]:
        """Return the stored gaps of a market and delete those in the future, which come from a wrong clock."""
        known_gaps = await self._store.known_gaps(key, Range(from_ms, END_OF_TIME_MS))
        if any(gap.end_ms > now_ms for gap in known_gaps):
            await self._store.save_coverage(key, None, [], Range(now_ms, END_OF_TIME_MS))
        return [piece for gap in known_gaps for piece in clip_gap(gap, from_ms, now_ms)]

    async def _retry_read(self, read: Callable[[], Awaitable[T]]) -> T:
        def report(error: Exception, wait_s: float) -> None:
            if not self._is_store_away:
                logger.warning("%s: the store cannot be read yet: %s", self._name, error)
            self._is_store_away = True

        result = await retry(read, self._clock, Backoff(), on=StoreUnavailable, report=report)
        self._is_store_away = False
        return result


def _examined(gap: Gap) -> Gap:
    """Return a stored gap with a retry time if it has none, so that even a permanent one is examined again."""
    return replace(gap, retry_ms=0) if gap.retry_ms is None else gap
