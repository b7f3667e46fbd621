"""One market's bars of all intervals, each folded from the next shorter one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from candled.model import MINUTE, Candle, Interval, fold, sources

from .series import Series


@dataclass(frozen=True, slots=True)
class Change:
    """A bar that now has other values than before."""

    interval: Interval
    bar: Candle


class Ladder:
    """Pure and exact: the latest version of every minute counts, in whatever order minutes and versions arrive.

    A bar above 1m is folded from its parts in memory where they are all held; older bars come from the store, and
    stay as they came until they are read again.
    """

    def __init__(self, intervals: Sequence[Interval], capacity: int) -> None:
        self._sources = sources(intervals)
        self.levels = (MINUTE, *self._sources)
        parents: dict[Interval, Interval | None] = dict.fromkeys(self.levels)
        for interval, source in self._sources.items():
            longest = parents[source]
            parents[source] = interval if longest is None or interval > longest else longest
        self._series = {interval: Series(interval, parents[interval], capacity) for interval in self.levels}
        self.shown = tuple(sorted(intervals))

    def series(self, interval: Interval) -> Series:
        """The bars of one interval."""
        return self._series[interval]

    @property
    def minutes_held(self) -> int:
        """How many 1-minute candles are in memory."""
        return len(self._series[MINUTE])

    def parts_needed(self, interval: Interval, at_least: int) -> int:
        """How many bars to load so that every running bar can be folded from memory."""
        longest = max((longer.ms for longer, source in self._sources.items() if source == interval), default=0)
        return max(at_least, longest // interval.ms + 1)

    def seed(self, interval: Interval, bars: Sequence[Candle], since_ms: int) -> None:
        """Take the newest bars of one interval from the store; `since_ms` as in `Series`."""
        for bar in bars:
            self._series[interval].put(bar)
        self._series[interval].since_ms = since_ms

    def feed(self, minute: Candle, stamp: int = 0) -> list[Change] | None:
        """Take a version of a minute; return the bars it changed, shortest interval first.

        None: the minute is older than what is held, so its bars must be read from the store again.
        """
        base = self._series[MINUTE]
        if minute.open_ms < base.since_ms or self._cut_off(minute.open_ms):
            return None
        held = base.get(minute.open_ms)
        if held is not None:
            if not minute.supersedes(held):
                return []
            if minute.rev < held.rev:  # whoever begins to read the exchange does not know of earlier revisions
                minute = minute._replace(rev=held.rev)
        base.put(minute, stamp)
        if held is not None and held.values == minute.values:
            return []
        return [Change(MINUTE, minute), *self._fold_upwards(minute.open_ms, stamp)]

    def merge(
        self, rows: Mapping[Interval, Sequence[Candle]], start_ms: int, end_ms: int, stamp: int = 0
    ) -> list[Change]:
        """Take what the store holds of `[start_ms, end_ms)`, bars of every interval that touch it; return what changed.

        A minute in memory that is newer than the stored one stays.
        """
        changes: list[Change] = []
        touched: set[int] = set()
        for row in rows.get(MINUTE, ()):
            base = self._series[MINUTE]
            held = base.get(row.open_ms)
            if row.open_ms < base.since_ms or (held is not None and not row.supersedes(held)):
                continue
            is_news = held is None or held.values != row.values
            base.put(row, stamp if is_news else 0)
            if is_news:
                changes.append(Change(MINUTE, row))
                touched.add(row.open_ms)
        for interval, source in self._sources.items():
            changes += self._merge_level(interval, source, rows.get(interval, ()), start_ms, end_ms, stamp)
        return changes

    def _merge_level(
        self, interval: Interval, source: Interval, rows: Sequence[Candle], start_ms: int, end_ms: int, stamp: int
    ) -> list[Change]:
        series, parts = self._series[interval], self._series[source]
        changes = []
        stored = {row.open_ms: row for row in rows}
        buckets = set(stored) | {
            interval.floor(part.open_ms) for part in parts.between(interval.floor(start_ms), end_ms)
        }
        for open_ms in sorted(buckets):
            bar = self._fold_one(interval, source, open_ms) if open_ms >= parts.since_ms else stored.get(open_ms)
            held = series.get(open_ms)
            if bar is None or open_ms < series.since_ms or (held is not None and held.values == bar.values):
                continue
            series.put(bar, stamp)
            changes.append(Change(interval, bar))
        return changes

    def _fold_upwards(self, open_ms: int, stamp: int) -> list[Change]:
        changes = []
        unchanged: set[Interval] = set()
        for interval, source in self._sources.items():
            bucket_ms = interval.floor(open_ms)
            series = self._series[interval]
            if source in unchanged or bucket_ms < series.since_ms:
                unchanged.add(interval)
                continue
            bar = self._fold_one(interval, source, bucket_ms)
            held = series.get(bucket_ms)
            is_same = held is not None and held.values == bar.values
            series.put(bar, 0 if is_same else stamp)
            if is_same:
                unchanged.add(interval)
                continue
            changes.append(Change(interval, bar))
        return changes

    def _cut_off(self, open_ms: int) -> bool:
        """Whether some bar of this minute is held without all its parts."""
        return any(
            self._series[interval].since_ms <= interval.floor(open_ms) < self._series[source].since_ms
            for interval, source in self._sources.items()
        )

    def _fold_one(self, interval: Interval, source: Interval, open_ms: int) -> Candle:
        end_ms = open_ms + interval.ms
        parts = self._series[source].between(open_ms, end_ms)
        last = parts[-1]
        return fold(parts, open_ms, final=last.final and last.open_ms + source.ms == end_ms)
