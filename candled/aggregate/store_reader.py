"""Reads bars from the store into memory: at startup, after changes of the past, and after lost messages."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, groupby, repeat
from operator import attrgetter

from candled.bus import FeedMetadata
from candled.errors import StoreRejected, StoreUnavailable, Unavailable
from candled.exchange import Clock
from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS, Candle, Interval, Position, Range, RangeSet
from candled.store.history import HistoryReader
from candled.tasks import LoopTurns, TaskSet, in_parallel

from .aggregator import Aggregator
from .market_bars import AT_FIRST, MarketBars, new_aggregator

logger = logging.getLogger(__name__)

_LOADED_AT_ONCE = 8
_RETRY_S = 1.0
_ADD_RETRY_S = 0.25  # while minutes of the past change
_STORED_AFTER_S = 2.0
_CHECK_S = 0.5
_ON_THEIR_WAY_MS = 2 * MINUTE_MS
_MAX_LOG_WAITS = 3  # how often to wait for the log of changes; after that, everything in memory is read again
# pauses between attempts to recover lost messages; the last one repeats
_RECOVERY_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


class StoreReader:
    """Keeps markets in memory in step with the store. `on_loaded` is called once the newest bars are in memory."""

    def __init__(self, history: HistoryReader, clock: Clock, on_loaded: Callable[[MarketBars], None]) -> None:
        self._history = history
        self._clock = clock
        self._on_loaded = on_loaded
        self._tasks = TaskSet()
        #: For work with many bars.
        self._turns = LoopTurns(clock)
        #: How often lost messages were recovered.
        self.recovered = 0

    async def stop(self) -> None:
        """Cancel all background tasks."""
        await self._tasks.cancel()

    def start_loading(self, markets: Sequence[MarketBars]) -> None:
        """Load the newest bars of markets in the background."""
        self._tasks.start(in_parallel(_LOADED_AT_ONCE, markets, self.load_market))

    async def load_market(self, market: MarketBars, level: int = logging.WARNING) -> None:
        """Load the newest bars of a market; if that fails, try again in the background."""
        try:
            complete_from_ms = await self._history.complete_from(market.key)
            served_from_ms = await self._history.served_from(market.key)
            loaded: dict[Interval, tuple[int, Sequence[Candle]]] = {}
            for interval in market.aggregator.levels:
                count = market.aggregator.parts_needed(interval, AT_FIRST)
                if interval == MINUTE or served_from_ms is not None or loaded[MINUTE][1]:
                    loaded[interval] = count, await self._history.read_bars(market.key, interval, END_OF_TIME_MS, count)
                else:  # a new market
                    loaded[interval] = count, ()
            minutes = loaded[MINUTE][1]
            forming = await self._select_adjoining(market, minutes, await self._history.read_forming(market.key))
            gap = await self._find_gap(market, minutes)
        except (StoreUnavailable, StoreRejected) as error:
            logger.log(level, "%s: bars cannot be loaded: %s; trying again", market.key, error)
            self._tasks.start(self._load_later(market))
            return
        async with self._turns.take(is_urgent=market.waiting > 0):
            self._seed_market(market, loaded, forming, gap, complete_from_ms, served_from_ms)

    def _seed_market(
        self,
        market: MarketBars,
        loaded: Mapping[Interval, tuple[int, Sequence[Candle]]],
        forming: Sequence[Candle],
        gap: Range | None,
        complete_from_ms: int | None,
        served_from_ms: int | None,
    ) -> None:
        """Add the loaded bars: by interval, the number requested, and the bars."""
        for interval, (count, bars) in loaded.items():
            market.aggregator.seed_bars(interval, bars, bars[0].open_ms if len(bars) >= count else 0)
        if market.complete_from_ms is None:
            market.complete_from_ms = complete_from_ms
        if market.served_from_ms is None:
            market.served_from_ms = served_from_ms
        newest = market.aggregator.series_of(MINUTE).newest_bar
        if newest is not None:  # until the feed provides more
            watermark_ms = newest.open_ms + MINUTE_MS
            overtaken = [minute.open_ms for minute in forming if minute.open_ms < watermark_ms]
            if overtaken:
                gap = Range(overtaken[0], overtaken[-1] + MINUTE_MS).hull(gap)
            market.feed_log.update_metadata(FeedMetadata(watermark_ms=watermark_ms, gap=gap))
        market.is_seeded = True
        for minute in forming:
            market.update_minute(minute)
        self._on_loaded(market)

    async def add_intervals(self, market: MarketBars, intervals: Sequence[Interval]) -> None:
        """Load the newest bars of intervals that are new to a market. From then on, they follow the minutes.

        This waits until the market's bars are in memory, and while the store cannot be read.
        """
        planned = new_aggregator(intervals)
        new = [interval for interval in planned.levels if interval not in market.aggregator.levels]
        while True:
            past_version = market.past_version
            try:
                if market.is_seeded and not market.is_behind:
                    stored = await self._read_levels(market, planned, new)
                    if past_version == market.past_version and not market.is_behind:
                        break
            except (StoreUnavailable, StoreRejected, Unavailable) as error:
                logger.debug("%s: bars of new intervals cannot be read yet: %s", market.key, error)
            await self._clock.sleep(_ADD_RETRY_S)
        market.aggregator = market.aggregator.with_intervals(intervals, AT_FIRST, stored)

    async def _read_levels(
        self, market: MarketBars, planned: Aggregator, new: Sequence[Interval]
    ) -> dict[Interval, tuple[int, Sequence[Candle]]]:
        """Return `since_ms` and `bars` of `seed_bars` for each new interval, and load the parts of its bars."""
        stored: dict[Interval, tuple[int, Sequence[Candle]]] = {}
        for interval in planned.levels:
            count = planned.parts_needed(interval, AT_FIRST)
            if interval in new:
                bars = await self._history.read_bars(market.key, interval, END_OF_TIME_MS, count)
                stored[interval] = bars[0].open_ms if len(bars) >= count else 0, bars
            else:
                market.aggregator.series_of(interval).grow_capacity(count)
                await self.load_older(market, interval, count)
        return stored

    async def load_older(self, market: MarketBars, interval: Interval, count: int) -> None:
        """Read older bars until the newest `count` are in memory.

        Raises:
            Unavailable: the store cannot be read.
        """
        while not market.has_bars(interval, count):
            if not market.is_seeded:
                raise Unavailable("the store cannot be read yet")
            series = market.aggregator.series_of(interval)
            past_version, since_ms = market.past_version, series.since_ms
            missing = count - len(series)
            older = await self._history.read_bars(market.key, interval, since_ms, missing)
            if (past_version, since_ms) == (market.past_version, series.since_ms):
                series.prepend_bars(older, older[0].open_ms if len(older) >= missing else 0)

    async def is_requested(self, market: MarketBars, from_ms: int) -> bool:
        """Return whether every minute from `from_ms` on is stored, or the exchange was asked for it in vain.

        The newest minutes may be on their way. The store is read at most twice a second, for all clients that wait.
        """
        final_ms = market.feed_log.metadata.watermark_ms
        if final_ms is None or market.served_from_ms is None or market.is_behind:
            return False
        if self._clock.monotonic() < market.requests_checked_at + _CHECK_S:
            return market.is_requested
        market.requests_checked_at, market.is_requested = self._clock.monotonic(), False
        span = Range(from_ms, max(from_ms, final_ms - _ON_THEIR_WAY_MS))
        try:
            missing = await self._history.find_gaps(market.key, span, limit=1, reasons=("missing",))
        except (StoreUnavailable, StoreRejected):
            return False
        market.is_requested = not missing
        return market.is_requested

    async def _find_gap(self, market: MarketBars, final: Sequence[Candle]) -> Range | None:
        """Return the range from the first to the last unexplained missing minute among the stored ones, or None."""
        minutes = RangeSet.of_parts((minute.open_ms for minute in final), MINUTE_MS)
        missing = minutes.missing(*minutes.extent) if minutes.extent else RangeSet()
        await self._remove_known_gaps(market, missing)
        return missing.extent

    async def _remove_known_gaps(self, market: MarketBars, missing: RangeSet) -> None:
        """Remove the minutes that are known not to exist from a set of missing ones."""
        for known_gap in await self._history.known_gaps(market.key, missing.extent) if missing.extent else ():
            missing.remove(known_gap.start_ms, known_gap.end_ms)

    async def _select_adjoining(
        self, market: MarketBars, final: Sequence[Candle], forming: Sequence[Candle]
    ) -> list[Candle]:
        """Return the forming minutes with no missing minute before them, so that no bar is shown without a part.

        The others are added when the feed sends them.
        """
        result: list[Candle] = []
        end_ms = final[-1].open_ms + MINUTE_MS if final else None
        for minute in forming:
            if end_ms is not None and minute.open_ms > end_ms:
                missing = RangeSet([(end_ms, minute.open_ms)])
                await self._remove_known_gaps(market, missing)
                if missing:
                    break
            result.append(minute)
            end_ms = max(minute.open_ms + MINUTE_MS, end_ms or 0)
        return result

    async def _load_later(self, market: MarketBars) -> None:
        await self._clock.sleep(_RETRY_S)
        await self.load_market(market, logging.DEBUG)

    def read_when_stored(self, market: MarketBars, open_ms: int) -> None:
        """Read a minute older than memory from the store, once it is stored."""
        self._tasks.start(self._read_minute(market, open_ms))

    async def _read_minute(self, market: MarketBars, open_ms: int) -> None:
        await self._clock.sleep(_STORED_AFTER_S)
        self.reread_range(market, open_ms, open_ms + MINUTE_MS)

    def reread_range(self, market: MarketBars, start_ms: int, end_ms: int) -> None:
        """Read a changed range from the store."""
        market.past_version += 1
        market.stale = Range(start_ms, end_ms).hull(market.stale)
        if not market.is_rereading:
            market.is_rereading = True
            self._tasks.start(self._reread_changes(market))

    async def _reread_changes(self, market: MarketBars) -> None:
        """Read changed ranges from the store until none is left. There is one reader per market."""
        level = logging.WARNING  # of the first failure: an outage does not deserve a line every second
        try:
            while market.stale is not None:
                if not market.is_seeded:
                    await self._clock.sleep(_RETRY_S)
                    continue
                stale, market.stale = market.stale, None
                market.being_reread = stale
                try:
                    await self._merge_range(market, stale)
                except (StoreUnavailable, StoreRejected) as error:
                    logger.log(level, "%s: a repaired range cannot be read yet: %s", market.key, error)
                    level = logging.DEBUG
                    market.stale = stale.hull(market.stale)
                    await self._clock.sleep(_RETRY_S)
                else:
                    level, market.being_reread = logging.WARNING, None
                    market.feed_log.log_change(market.feed_log.change_id + 1, *stale, only_final=True)
                    market.notify_finality()
        finally:
            market.is_rereading = False

    async def _merge_range(self, market: MarketBars, stale: Range) -> None:
        rows, complete_from_ms, served_from_ms = {}, market.found_complete_from_ms, market.found_served_from_ms
        for interval in market.aggregator.levels:
            series = market.aggregator.series_of(interval)
            keep_ms = interval.floor(stale.end_ms - 1) - market.most_to_reread(interval) * interval.ms
            if interval.floor(stale.start_ms) < keep_ms and series.since_ms < keep_ms:
                series.drop_before(keep_ms)  # read no more than is needed, however long the range is
            start_ms = max(interval.floor(stale.start_ms), series.since_ms)
            end_ms = min(stale.end_ms, market.aggregator.folded_from(interval))
            if start_ms < end_ms:
                rows[interval] = await self._history.read_bars_between(market.key, interval, start_ms, end_ms)
        async with self._turns.take(is_urgent=market.waiting > 0):
            self._merge_rows(market, rows, stale, complete_from_ms, served_from_ms)

    def _merge_rows(
        self,
        market: MarketBars,
        rows: Mapping[Interval, Sequence[Candle]],
        stale: Range,
        complete_from_ms: int | None,
        served_from_ms: int | None,
    ) -> None:
        """Merge the stored bars of a range. History was complete and served from these times before they were read."""
        change_id = market.feed_log.change_id + 1
        changes = market.aggregator.merge_stored(rows, stale.start_ms, stale.end_ms, change_id)
        if complete_from_ms is not None:  # only now: before, bars would be shown without the missing minutes
            known_from_ms = END_OF_TIME_MS if market.complete_from_ms is None else market.complete_from_ms
            if complete_from_ms < known_from_ms:  # the bars between were shown, but were not final
                market.feed_log.log_change(change_id, complete_from_ms, known_from_ms, only_final=True)
            market.complete_from_ms = complete_from_ms
        known = (market.served_from_ms, served_from_ms, complete_from_ms)
        market.served_from_ms = min((one for one in known if one is not None), default=None)
        bars = {
            interval: [change.bar for change in group] for interval, group in groupby(changes, attrgetter("interval"))
        }
        if minutes := bars.get(MINUTE):
            market.feed_log.log_change(change_id, minutes[0].open_ms, minutes[-1].open_ms + MINUTE_MS)
        memory_from_ms = market.aggregator.series_of(MINUTE).since_ms
        if stale.start_ms < memory_from_ms:  # its changes are unknown, because it is not in memory
            market.feed_log.log_change(change_id, stale.start_ms, min(stale.end_ms, memory_from_ms))
        shown_ms = market.served_from_ms or 0
        for interval in market.aggregator.intervals:
            market.notify_history_changed(interval, [bar for bar in bars.get(interval, ()) if bar.open_ms >= shown_ms])

    # ------------------------------------------------------------ lost messages

    def recover_lost(self, market: MarketBars, sure_ms: int | None) -> None:
        """Start recovery from lost messages.

        Everything before `sure_ms` was final when messages were lost; it is None if nothing was. The bars in memory are
        no evidence: a forming minute may have been stored before the minutes that precede it.
        """
        market.lost_from_ms = max(0, (sure_ms or 0) - 2 * MINUTE_MS)
        if not market.is_recovering:
            market.is_recovering = True
            self._tasks.start(self._recover_market(market))

    async def _recover_market(self, market: MarketBars) -> None:
        """Recover from lost messages: read the ranges that they may have changed from the store.

        This ends when every completed minute is in memory in its final version.
        """
        try:
            for attempt, pause_s in enumerate(chain(_RECOVERY_PAUSES_S, repeat(_RECOVERY_PAUSES_S[-1]))):
                since, lost_from_ms = market.feed_log.lost_since, market.lost_from_ms
                is_known, is_last = market.feed_log.is_lost_logged, attempt >= _MAX_LOG_WAITS
                everything = is_last and not is_known
                try:
                    for stale in await self._lost_ranges(market, since, lost_from_ms, everything=everything):
                        await self._merge_range(market, stale)
                    unsure = await self._find_unsure(market, lost_from_ms)
                    is_complete = (is_known or is_last) and not unsure
                    if attempt == _MAX_LOG_WAITS + 1 and unsure:
                        logger.warning(
                            "%s: messages were lost, and some completed minutes are not final yet: %s",
                            market.key,
                            unsure,
                        )
                except (StoreUnavailable, StoreRejected) as error:
                    logger.debug("%s: lost changes cannot be read yet: %s", market.key, error)
                    is_complete = False
                if is_complete and (since, lost_from_ms) == (market.feed_log.lost_since, market.lost_from_ms):
                    market.feed_log.mark_repaired()
                    market.unread = _overlap(market.feed_log.metadata.gap, lost_from_ms)
                    market.feed_log.log_change(
                        market.feed_log.change_id + 1, lost_from_ms, END_OF_TIME_MS, only_final=True
                    )
                    self.recovered += 1
                    market.notify_finality()
                    return
                await self._clock.sleep(pause_s)
        finally:
            market.is_recovering = False

    def recheck_gap(self, market: MarketBars) -> None:
        """Start recovery again if minutes are missing that were in the gap when lost messages were recovered.

        The gap of a message also covers minutes that earlier messages contained, and those may be among the lost ones.
        """
        if market.unread is None:
            return
        gap, series = market.feed_log.metadata.gap, market.aggregator.series_of(MINUTE)
        left = _without_final(market.unread, series.bars_between(*market.unread))
        if gap is not None:
            left.remove(*gap)
        if left:
            market.feed_log.mark_incomplete()
            self.recover_lost(market, next(iter(left)).start_ms + 2 * MINUTE_MS)
            market.unread = None
        else:
            market.unread = _overlap(gap, market.unread.start_ms)

    async def _lost_ranges(
        self, market: MarketBars, since: Position | None, lost_from_ms: int, *, everything: bool
    ) -> RangeSet:
        """Return the ranges that may have changed: everything with `everything`, or if nothing better is known."""
        complete_from_ms = await self._history.complete_from(market.key)
        if complete_from_ms is not None:
            market.found_complete_from_ms = min(complete_from_ms, market.found_complete_from_ms or complete_from_ms)
        served_from_ms = await self._history.served_from(market.key)
        if served_from_ms is not None:
            market.found_served_from_ms = min(served_from_ms, market.found_served_from_ms or served_from_ms)
        changes: Sequence[Range] | None = None if everything else ()
        for position in () if everything or since is None else market.feed_log.repaired_since(since):
            changes = await self._history.changes_since(market.key, position.epoch, position.seq)
            if changes is not None:
                break
        if changes is None:
            lost_from_ms, changes = 0, ()
        newest = market.aggregator.series_of(MINUTE).newest_bar
        # Use the feed's time, not this machine's: reading a later range would drop much older bars.
        newest_ms = max(market.feed_log.metadata.watermark_ms or 0, 0 if newest is None else newest.open_ms)
        return RangeSet([*changes, (lost_from_ms, (newest_ms or self._clock.now_ms()) + 2 * MINUTE_MS)])

    async def _find_unsure(self, market: MarketBars, from_ms: int) -> RangeSet:
        """Return the completed minutes from `from_ms` on that are not final in memory, and not known not to exist.

        While `complete_from_ms` is unknown, only minutes after the gap count. Later messages announce the others.
        """
        series, metadata = market.aggregator.series_of(MINUTE), market.feed_log.metadata
        if metadata.watermark_ms is None:
            return RangeSet()
        known_ms = market.complete_from_ms
        if known_ms is None:
            if metadata.gap is None:
                return RangeSet([(from_ms, END_OF_TIME_MS)])
            known_ms = metadata.gap.end_ms
        span = Range(max(from_ms, series.since_ms, known_ms), metadata.watermark_ms)
        unsure = _without_final(span, series.bars_between(*span))
        if metadata.gap is not None:
            unsure.remove(*metadata.gap)
        await self._remove_known_gaps(market, unsure)
        return unsure


def _overlap(gap: Range | None, from_ms: int) -> Range | None:
    """Return the part of a gap from a time on; None if there is none."""
    return None if gap is None or gap.end_ms <= from_ms else Range(max(gap.start_ms, from_ms), gap.end_ms)


def _without_final(span: Range, minutes: Iterable[Candle]) -> RangeSet:
    """Return the minutes of a span that are not among the final ones of `minutes`."""
    return RangeSet.of_parts((minute.open_ms for minute in minutes if minute.final), MINUTE_MS).missing(*span)
