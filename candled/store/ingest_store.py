"""The store as ingest uses it: writes, and the reads it needs at startup."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import END_OF_TIME_MS, MINUTE, Candle, Gap, MarketKey, Range, Symbol
from candled.tasks import TaskSet

from .history import HistoryReader
from .interface import Store
from .threads import StoreThreads
from .writer import Writer


@dataclass(slots=True)
class _Coverage:
    """The coverage of a market to be saved."""

    #: The start of complete history, UTC epoch milliseconds; None if it did not change.
    since_ms: int | None = None
    #: Ranges with their gaps, in the order of the changes.
    gaps: list[tuple[Range, Sequence[Gap]]] = field(default_factory=list)

    def add_gaps(self, known_gaps: Sequence[Gap], within: Range) -> None:
        """Add the gaps of a range, which replace those of the ranges inside it."""
        start_ms, end_ms = within
        self.gaps = [one for one in self.gaps if one[0].start_ms < start_ms or one[0].end_ms > end_ms]
        self.gaps.append((within, known_gaps))


class IngestStore:
    """The writer, the reads and the coverage of one store."""

    def __init__(self, store: Store, threads: StoreThreads, writer: Writer, history: HistoryReader) -> None:
        self._store = store
        self._threads = threads
        self._history = history
        self._writer = writer
        self.enqueue_row = writer.enqueue_row
        self.flush = writer.flush
        self.flush_market = writer.flush_market
        self.newest_minutes = history.newest_minutes
        self.stored_ranges = history.stored_ranges
        self.read_forming = history.read_forming
        self.complete_from = history.complete_from
        self.served_from = history.served_from
        self.kept_from = history.kept_from
        self.known_gaps = history.known_gaps
        self._tasks = TaskSet()
        #: The task that waits for `_turn` and then saves all of `_unsaved`; None if there is none.
        self._saving: asyncio.Task[Mapping[MarketKey, Exception]] | None = None
        self._unsaved: dict[MarketKey, _Coverage] = {}
        #: Only one save runs at a time.
        self._turn = asyncio.Lock()

    @property
    def is_behind(self) -> bool:
        """True while more rows are queued than the store writes in about a second."""
        return self._writer.is_behind

    async def read_minutes(self, market: MarketKey, start_ms: int, end_ms: int) -> Sequence[Candle]:
        """Return the final minutes of `[start_ms, end_ms)`, oldest first."""
        return await self._history.read_bars_between(market, MINUTE, start_ms, end_ms)

    async def unpublished(self, exchange: str) -> Mapping[Symbol, Sequence[Range]]:
        """See `Store.unpublished`."""
        return await self._threads.run_read(self._store.unpublished, exchange)

    async def newest_minute(self, market: MarketKey) -> int | None:
        """Return the newest final minute of a market, UTC epoch milliseconds; None if none is stored."""
        bars = await self._history.read_bars(market, MINUTE, END_OF_TIME_MS, 1)
        return bars[-1].open_ms if bars else None

    async def has_before(self, market: MarketKey, at_ms: int) -> bool:
        """Return whether a final minute before `at_ms` (UTC epoch milliseconds) is stored."""
        return bool(await self._history.read_bars(market, MINUTE, at_ms, 1))

    async def save_coverage(
        self, market: MarketKey, since_ms: int | None, known_gaps: Sequence[Gap], within: Range | None
    ) -> None:
        """Store the coverage of a market: the start of complete history, and the known gaps `within` a range.

        If `within` is None, the gaps did not change. Other processes may save their coverage at the same time. Calls
        that wait for an earlier one are saved together, so a store that hangs delays the writer at most once.
        """
        coverage = self._unsaved.setdefault(market, _Coverage())
        if since_ms is not None:
            coverage.since_ms = since_ms
        if within is not None:
            coverage.add_gaps(known_gaps, within)
        if self._saving is None:
            self._saving = self._tasks.start(self._save_unsaved())
        error = (await asyncio.shield(self._saving)).get(market)
        if error is not None:
            raise error

    async def register_feed(self, markets: Sequence[MarketKey], epoch: str) -> None:
        """See `Store.register_feed`."""
        await self._threads.run_write(self._store.register_feed, markets, epoch)

    async def log_changes(self, market: MarketKey, epoch: str | None, changes: Sequence[tuple[int, Range]]) -> None:
        """See `Store.log_changes`."""
        await self._threads.run_write(self._store.log_changes, market, epoch, changes)

    async def _save_unsaved(self) -> Mapping[MarketKey, Exception]:
        """Save the coverage of all waiting markets; return the errors."""
        async with self._turn:
            unsaved, self._unsaved, self._saving = self._unsaved, {}, None
            try:
                return await self._threads.run_write(self._save_coverages, unsaved)
            except StoreUnavailable as error:
                return dict.fromkeys(unsaved, error)

    def _save_coverages(self, coverages: Mapping[MarketKey, _Coverage]) -> Mapping[MarketKey, Exception]:
        errors: dict[MarketKey, Exception] = {}
        for market, coverage in coverages.items():
            try:
                if coverage.since_ms is not None:
                    self._store.set_complete_from(market, coverage.since_ms)
                for within, known_gaps in coverage.gaps:
                    self._store.save_known_gaps(market, known_gaps, within)
            except StoreRejected as error:
                errors[market] = error
        return errors
