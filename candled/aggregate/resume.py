"""Determines the changes since a client disconnected: from memory if possible, else from the store's log."""

from collections.abc import Sequence
from dataclasses import dataclass

from candled.exchange import Clock
from candled.model import END_OF_TIME_MS, MINUTE_MS, Candle, Interval, Position, Range, RangeSet
from candled.store.history import HistoryReader

from .market_bars import MarketBars

MOST_RESUMED = 2000
_LOGGED_WITHIN_S = 2.0
# A minute that was not final when the client disconnected can be at most this much older than the client's newest bar.
_UNSETTLED_MS = 10 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """The result of `LiveBars.prepare_resume`, for `LiveBars.bars_since`."""

    #: The client has all changes up to this change id.
    change_id: int
    #: Other ranges that changed.
    ranges: RangeSet
    #: Changed bars from the store that are older than memory.
    older: tuple[Candle, ...]
    #: The start of the bars in memory when this was prepared.
    since_ms: int
    #: `MarketBars.past_version` when this was prepared.
    past_version: int
    #: Everything before this time was final when the client disconnected, except for gaps, which are in `ranges`.
    watermark_ms: int


class Resumer:
    """Finds the bars for clients that reconnect: `plan_resume` reads the store, `finish_resume` returns the bars."""

    def __init__(self, history: HistoryReader, clock: Clock) -> None:
        self._history = history
        self._clock = clock

    async def plan_resume(
        self, market: MarketBars, interval: Interval, position: Position, time_ms: int
    ) -> ResumePlan | None:
        """Determine the changes since `position`, for a client whose newest bar began at `time_ms`.

        Return None if they cannot be determined, or are more than `MOST_RESUMED` bars.

        Raises:
            Unavailable: the store cannot be read.
        """
        if market.served_from_ms is None or not market.is_seeded:
            return None
        unsettled_ms = max(0, time_ms - _UNSETTLED_MS)
        change_id = None if market.feed_log.is_broken else market.feed_log.change_id_of(position)
        watermark_ms = None if change_id is None else market.feed_log.watermark_at(change_id)
        from_ms = time_ms if watermark_ms is None else min(time_ms, watermark_ms)
        if change_id is not None:
            ranges = market.feed_log.ranges_since(change_id)
        else:
            logged = await self._logged_changes(market, position)
            if logged is None:
                return None
            change_id, from_ms = 0, unsettled_ms
            ranges = RangeSet([*logged, (interval.floor(from_ms), END_OF_TIME_MS)])
        past_version, since_ms = market.past_version, market.aggregator.series_of(interval).since_ms
        ranges.add(interval.floor(from_ms), since_ms)
        ranges.add(interval.floor(time_ms) + interval.ms, END_OF_TIME_MS)  # newer bars than the client has
        older = RangeSet(
            (interval.floor(start_ms), min(end_ms, since_ms)) for start_ms, end_ms in ranges if start_ms < since_ms
        )
        if older.total_ms > MOST_RESUMED * interval.ms:
            return None
        read = [bar for span in older for bar in await self._history.read_bars_between(market.key, interval, *span)]
        shown = tuple(bar for bar in read if bar.open_ms >= market.served_from_ms)
        final_ms = unsettled_ms if watermark_ms is None else watermark_ms
        return ResumePlan(change_id, ranges, shown, since_ms, past_version, final_ms)

    def finish_resume(self, market: MarketBars, interval: Interval, resume: ResumePlan) -> list[Candle] | None:
        """Return the changed bars in their current state, oldest first; None if they cannot be determined any more."""
        series = market.aggregator.series_of(interval)
        is_same = (market.past_version, series.since_ms) == (resume.past_version, resume.since_ms)
        if market.feed_log.is_broken or not is_same:
            return None
        changed = {bar.open_ms: bar for bar in series.changed_since(resume.change_id)}
        for start_ms, end_ms in resume.ranges:
            for bar in series.bars_between(interval.floor(start_ms), end_ms):
                changed[bar.open_ms] = bar
        served_from_ms = market.served_from_ms or 0
        in_memory = [changed[open_ms] for open_ms in sorted(changed) if open_ms >= served_from_ms]
        bars = [*resume.older, *in_memory]
        return bars if len(bars) <= MOST_RESUMED else None

    def became_final(self, market: MarketBars, resume: ResumePlan) -> RangeSet:
        """Return the ranges in which bars may have become final since the client disconnected."""
        return RangeSet([*market.feed_log.finals_since(resume.change_id), (resume.watermark_ms, END_OF_TIME_MS)])

    async def _logged_changes(self, market: MarketBars, position: Position) -> Sequence[Range] | None:
        """Return the past changes since a position, which this process did not receive, once all of them are logged.

        Return None if that takes too long, or if the store does not know the position.
        """
        deadline = self._clock.monotonic() + _LOGGED_WITHIN_S
        while market.feed_log.is_broken or not market.feed_log.is_logged:
            if self._clock.monotonic() > deadline:
                return None
            await self._clock.sleep(0.05)
        logged_seq = market.feed_log.metadata.logged_seq
        changes = await self._history.changes_since(market.key, position.epoch, position.seq, logged_seq=logged_seq)
        return None if changes is None or market.feed_log.is_broken else [*changes, *market.feed_log.ranges_since(0)]
