"""One market's bars of all intervals, each folded from the next shorter one."""

from collections.abc import Mapping, Sequence

from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS, BarChange, Candle, Interval, Range, sources

from .rollup import Rollup
from .series import Series


class Aggregator:
    """One market's bars, pure and exact: the order in which minutes and their versions arrive does not matter.

    A bar above 1m is folded from its parts if all of them are in memory. Older bars come from the store, and stay
    unchanged until they are read again. Bars that look different after a change get its `change_id`, as in `Series`.
    """

    def __init__(
        self, intervals: Sequence[Interval], capacity: int, known: Mapping[Interval, Series] | None = None
    ) -> None:
        """Create an aggregator without bars, or with the series in `known`."""
        self._sources = sources(intervals)
        self.levels = (MINUTE, *self._sources)
        parents: dict[Interval, Interval | None] = dict.fromkeys(self.levels)
        for interval, source in self._sources.items():
            longest = parents[source]
            parents[source] = interval if longest is None or interval > longest else longest
        self._series = dict(known or {})
        for interval in self.levels:
            self._series.setdefault(interval, Series(interval, None, capacity)).set_parent(parents[interval])
        self._minutes = self._series[MINUTE]
        self._rollups = {
            interval: Rollup(self._series[interval], self._series[source]) for interval, source in self._sources.items()
        }
        self._steps = [
            (self._rollups[interval], self.levels.index(source)) for interval, source in self._sources.items()
        ]
        self._whole_ms = -1  # a forming minute whose bars have all their parts
        self.intervals = tuple(sorted(intervals))

    def with_intervals(
        self, intervals: Sequence[Interval], capacity: int, stored: Mapping[Interval, tuple[int, Sequence[Candle]]]
    ) -> "Aggregator":
        """Return an aggregator of more intervals with the bars of this one, which must not be used any more.

        `stored` has, for each new interval, the arguments `since_ms` and `bars` of `seed_bars`. Bars whose parts are
        all in memory are folded from them, because the stored ones may be older.
        """
        new = Aggregator(intervals, capacity, self._series)
        for interval, (since_ms, bars) in stored.items():
            new.seed_bars(interval, bars, since_ms)
        newest = self._minutes.newest_bar
        if newest is not None:
            for interval, source in new._sources.items():
                if interval in stored:
                    span = Range(new._series[source].since_ms, newest.open_ms + 1)
                    new._merge_level(interval, (), (), span, 0)
            new._reset_rollups()
        return new

    def series_of(self, interval: Interval) -> Series:
        """Return the bars of one interval."""
        return self._series[interval]

    @property
    def cached_minute_count(self) -> int:
        """The number of 1-minute candles in memory."""
        return len(self._minutes)

    def parts_needed(self, interval: Interval, at_least: int) -> int:
        """Return the number of bars to load so that every forming bar can be folded from memory."""
        longest = max((longer.ms for longer, source in self._sources.items() if source == interval), default=0)
        return max(at_least, longest // interval.ms + 1)

    def folded_from(self, interval: Interval) -> int:
        """Return the time from which bars of an interval are folded from bars in memory, which `merge_stored` prefers.

        For 1m, this is END_OF_TIME_MS.
        """
        return END_OF_TIME_MS if interval == MINUTE else self._series[self._sources[interval]].since_ms

    def seed_bars(self, interval: Interval, bars: Sequence[Candle], since_ms: int) -> None:
        """Add the newest bars of one interval from the store. `since_ms` is as in `Series`."""
        self._series[interval].put_bars(bars)
        self._series[interval].since_ms = since_ms
        self._reset_rollups()

    def apply_minute(self, minute: Candle, change_id: int = 0) -> list[BarChange] | None:
        """Apply a version of a minute; return the bars it changed, shortest interval first.

        Return None if a part of one of its bars is not in memory: its bars must then be read from the store again.
        """
        open_ms = minute.open_ms
        if open_ms != self._whole_ms and not self._is_whole(open_ms):
            return None
        cached = self._minutes.get_bar(open_ms)
        if cached is not None:
            minute = minute.copied_over(cached)
            if minute is cached:
                return []
        changes = []
        if cached is None or not _looks_equal(cached, minute):
            changes.append(BarChange(MINUTE, minute))
        self._minutes.put_bar(minute, change_id if changes else 0)
        bars: list[Candle | None] = [minute]
        for rollup, source in self._steps:
            part = bars[source]
            bars.append(None if part is None else rollup.add_part(part, change_id, changes))
        return changes

    def merge_stored(
        self, rows: Mapping[Interval, Sequence[Candle]], start_ms: int, end_ms: int, change_id: int = 0
    ) -> list[BarChange]:
        """Merge the stored bars of all intervals that overlap `[start_ms, end_ms)`; return the changed ones.

        A minute in memory that is newer than the stored one is kept. The same version may be stored with a larger `rev`
        than its writer sent: see `unknown_revisions` in candled/store/batch.py.
        """
        minutes, changed = self._minutes, []
        stored = rows.get(MINUTE, ())
        known = minutes.bars_by_time(stored[0].open_ms, stored[-1].open_ms + MINUTE_MS) if stored else {}
        for row in stored:
            cached = known.get(row.open_ms)
            if row.open_ms < minutes.since_ms:
                continue
            if cached is not None and not row.replaces_shown(cached) and not _has_more_revisions(row, cached):
                continue
            if cached is None or not _looks_equal(cached, row):
                changed.append(row)
            else:
                minutes.put_bar(row.copied_over(cached))
        minutes.put_bars(changed, change_id)
        levels: dict[Interval, list[Candle]] = {MINUTE: changed}
        for interval, source in self._sources.items():
            span = Range(start_ms, end_ms)
            levels[interval] = self._merge_level(interval, rows.get(interval, ()), levels[source], span, change_id)
        self._reset_rollups()
        return [BarChange(interval, bar) for interval, bars in levels.items() for bar in bars]

    def _merge_level(
        self, interval: Interval, stored: Sequence[Candle], fresh: Sequence[Candle], span: Range, change_id: int
    ) -> list[Candle]:
        """Merge the bars of one interval, and return the changed ones. `fresh` are the changed bars of its source."""
        series = self._series[interval]
        first_ms, end_ms = interval.floor(span.start_ms), interval.floor(span.end_ms - 1) + interval.ms
        bars = {row.open_ms: row for row in stored}
        bars |= self._rollups[interval].fold_bars(first_ms, end_ms, fresh)
        known, changed = series.bars_by_time(first_ms, end_ms), []
        for open_ms in sorted(bars):
            bar, cached = bars[open_ms], known.get(open_ms)
            if open_ms < series.since_ms or bar == cached:
                continue
            if cached is None or not _looks_equal(cached, bar):
                changed.append(bar)
            else:
                series.put_bar(bar)
        series.put_bars(changed, change_id)
        return changed

    def _is_whole(self, open_ms: int) -> bool:
        """Return whether the minute lies in the range in memory and all of its bars have all their parts."""
        if open_ms < self._minutes.since_ms or any(rollup.is_cut_off(open_ms) for rollup in self._rollups.values()):
            return False
        newest = self._minutes.newest_bar
        if newest is None or open_ms >= newest.open_ms:
            self._whole_ms = open_ms
        return True

    def _reset_rollups(self) -> None:
        """Reset cached state of forming bars, because minutes changed without `apply_minute`."""
        self._whole_ms = -1
        for rollup in self._rollups.values():
            rollup.reset()


def _has_more_revisions(row: Candle, cached: Candle) -> bool:
    """Return whether a stored minute is the version in memory, with more revisions."""
    return row.rev > cached.rev and not cached.replaces_shown(row)


def _looks_equal(one: Candle, other: Candle) -> bool:
    """Return whether a client sees the same bar in both."""
    return one[1:7] == other[1:7] and (one.rev, one.src) == (other.rev, other.src)
