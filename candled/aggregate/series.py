"""The newest bars of one interval of one market."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter

from candled.model import END_OF_TIME_MS, Candle, Decimals, Interval

from .packed import PackedBars, digits_after_point

_RECENT = 2  # the forming bar, and the one before it, which may still get a last version
_CHANGES_KEPT = 16
_OPEN = attrgetter("open_ms")


@dataclass(eq=False, repr=False, slots=True)
class Series:
    """Bars in memory, oldest first: all existing ones with `open_ms >= since_ms`."""

    #: The interval of the bars.
    interval: Interval
    #: The longest interval that is folded from this one; None if there is none. Old bars are dropped up to one of its
    #: boundaries, so that a parent's bar in memory has all or none of its parts.
    parent: Interval | None
    #: The smallest number of bars to keep. Slightly more are kept.
    capacity: int
    #: The time since which all existing bars are in memory, UTC epoch milliseconds; 0 if no older bars exist.
    since_ms: int = 0
    #: The number of changes that a client can see in bars other than the newest, including bars that arrive late or are
    #: prepended. A result computed from the bars before the newest is valid while it is unchanged. Bars appended at the
    #: end or dropped at the beginning do not count.
    revision: int = 0
    #: The opening times of the bars of the newest revisions.
    _changes: "array[int]" = field(default_factory=lambda: array("q"))
    #: The opening times of all bars, UTC epoch milliseconds, oldest first.
    _times: "array[int]" = field(default_factory=lambda: array("q"))
    #: The change id of the last change of each bar, in the order of `_times`; 0 for a bar that was put without one.
    _change_ids: "array[int]" = field(default_factory=lambda: array("q"))
    #: All bars except the newest few.
    _packed: PackedBars = field(default_factory=PackedBars)
    #: The newest few bars, oldest first, as they were put.
    _recent: list[Candle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.set_parent(self.parent)

    def __len__(self) -> int:
        return len(self._times)

    def set_parent(self, parent: Interval | None) -> None:
        """Keep the parts of the newest bars of another interval, the longest one that is folded from this one."""
        self.parent = parent
        self.grow_capacity(2 * parent.ms // self.interval.ms if parent else 0)

    def grow_capacity(self, capacity: int) -> None:
        """Keep at least `capacity` bars from now on."""
        self.capacity = max(self.capacity, capacity)

    # ------------------------------------------------------------ reading

    @property
    def newest_bar(self) -> Candle | None:
        """The newest bar; None if there is none."""
        return self._recent[-1] if self._recent else None

    @property
    def decimals(self) -> Decimals:
        """The largest number of decimals of prices and volumes; unknown if there are no bars."""
        if not self._recent:
            return Decimals()
        price, volume, _ = self._packed.decimals
        for bar in self._recent:
            price = max(price, *map(digits_after_point, bar[1:5]))
            volume = max(volume, digits_after_point(bar.volume))
        return Decimals(price, volume)

    def get_bar(self, open_ms: int) -> Candle | None:
        """Return the bar that begins at `open_ms`, or None."""
        recent = self._recent
        if recent and recent[-1].open_ms == open_ms:
            return recent[-1]
        index = bisect_left(self._times, open_ms)
        if index == len(self._times) or self._times[index] != open_ms:
            return None
        return self._bar_at(index)

    def newest_bars(self, count: int, since_ms: int) -> list[Candle]:
        """Return the newest `count` bars that begin at or after `since_ms`, oldest first."""
        return self._bars_at(self._first_of(count, since_ms), len(self._times))

    def newest_times(self, count: int, since_ms: int) -> Sequence[int]:
        """Return the opening times of `newest_bars`."""
        return self._times[self._first_of(count, since_ms) :]

    def bars_between(self, start_ms: int, end_ms: int) -> list[Candle]:
        """Return the bars with `start_ms <= open_ms < end_ms`, oldest first."""
        first = bisect_left(self._times, start_ms)
        return self._bars_at(first, bisect_left(self._times, end_ms, first))

    def bars_by_time(self, start_ms: int, end_ms: int) -> dict[int, Candle]:
        """Return `bars_between` by their opening times, in a quarter of the time that `get_bar` needs for each."""
        return {bar.open_ms: bar for bar in self.bars_between(start_ms, end_ms)}

    def bars_with(self, fresh: Sequence[Candle], start_ms: int, end_ms: int) -> list[Candle]:
        """Return `bars_between`. `fresh` are bars that were just put, oldest first, so they need not be decoded."""
        first = bisect_left(self._times, fresh[0].open_ms) if fresh else 0
        last = bisect_left(self._times, fresh[-1].open_ms + 1, first) if fresh else 0
        if not fresh or last - first != len(fresh) or fresh[0].open_ms < start_ms or fresh[-1].open_ms >= end_ms:
            return self.bars_between(start_ms, end_ms)
        before = self._bars_at(bisect_left(self._times, start_ms, 0, first), first)
        return [*before, *fresh, *self._bars_at(last, bisect_left(self._times, end_ms, last))]

    def oldest_revised(self, revision: int) -> int:
        """Return the opening time of the oldest bar changed since a revision: 0 if unknown, END_OF_TIME_MS if none."""
        count = self.revision - revision
        if not 0 <= count <= len(self._changes):
            return 0
        return min(self._changes[-count:]) if count else END_OF_TIME_MS

    def changed_since(self, change_id: int) -> list[Candle]:
        """Return the bars with a later change id, oldest first."""
        return [self._bar_at(index) for index, last in enumerate(self._change_ids) if last > change_id]

    # ------------------------------------------------------------ writing

    def put_bar(self, bar: Candle, change_id: int = 0) -> None:
        """Add or replace a bar. Change ids only grow; without one, the bar keeps its own."""
        recent = self._recent
        newest_ms = recent[-1].open_ms if recent else -1
        if bar.open_ms == newest_ms:
            recent[-1] = bar
            if change_id:
                self._change_ids[-1] = change_id
        elif bar.open_ms > newest_ms:
            self._append_bars((bar,), change_id)
        else:
            # drops nothing, because it might drop the bar that it adds
            self._put_late(bar, change_id)

    def put_bars(self, bars: Sequence[Candle], change_id: int = 0) -> None:
        """Add or replace bars, oldest first, as `put_bar` does. Adjoining new bars are added in one step."""
        done = 0
        while done < len(bars):
            index = bisect_left(self._times, bars[done].open_ms)
            if index == len(self._times):
                self._append_bars(bars[done:], change_id)
                return
            if index > len(self._packed) or self._times[index] == bars[done].open_ms:
                self.put_bar(bars[done], change_id)
                done += 1
                continue
            end = bisect_left(bars, self._times[index], done, key=_OPEN)
            new = bars[done:end]
            self._times[index:index] = times = array("q", map(_OPEN, new))
            self._change_ids[index:index] = array("q", [change_id]) * len(new)
            self._packed.insert_bars(index, new)
            self.revision += len(new) - 1
            self._changes += times[:-1]
            self._revise(times[-1])
            done = end

    def prepend_bars(self, older: Iterable[Candle], since_ms: int) -> None:
        """Add the bars before the present `since_ms`: all existing ones from the new `since_ms` on."""
        older = [bar for bar in older if bar.open_ms < self.since_ms]
        if older and self._recent:
            self._times[:0] = array("q", [bar.open_ms for bar in older])
            self._change_ids[:0] = array("q", [0]) * len(older)
            self._packed.insert_bars(0, older)
        else:
            self._add_newest(older, 0)
        self.since_ms = since_ms
        self._revise(0)

    def drop_before(self, keep_ms: int) -> None:
        """Drop bars older than `keep_ms`, except the parts of a parent's bar that contains it."""
        if self.parent is not None:
            keep_ms = self.parent.floor(keep_ms)
        count = bisect_left(self._times, keep_ms)
        packed = min(count, len(self._times) - len(self._recent))
        self._packed.drop_oldest(packed, self._times[:packed])
        del self._recent[: count - packed]
        del self._times[:count]
        del self._change_ids[:count]
        self.since_ms = max(self.since_ms, keep_ms)

    # ------------------------------------------------------------ inside

    def _first_of(self, count: int, since_ms: int) -> int:
        """Return the index of the first of the newest `count` bars since `since_ms`."""
        length = len(self._times)
        return max(length - max(count, 0), bisect_left(self._times, since_ms))

    def _bar_at(self, index: int) -> Candle:
        packed = len(self._times) - len(self._recent)
        return self._packed.get_bar(index, self._times[index]) if index < packed else self._recent[index - packed]

    def _bars_at(self, first: int, last: int) -> list[Candle]:
        packed = len(self._times) - len(self._recent)
        if first >= packed:
            return self._recent[first - packed : last - packed]
        bars = self._packed.get_bars(first, self._times[first : min(last, packed)])
        return bars + self._recent[: last - packed] if last > packed else bars

    def _append_bars(self, bars: Sequence[Candle], change_id: int) -> None:
        """Add bars that are newer than all others, and drop old ones beyond the capacity."""
        self._add_newest(bars, change_id)
        if len(self._times) > self.capacity + self.capacity // 8:
            self.drop_before(self._times[-self.capacity])

    def _add_newest(self, bars: Sequence[Candle], change_id: int) -> None:
        self._times.extend(map(_OPEN, bars))
        self._change_ids.extend(repeat(change_id, len(bars)))
        self._recent += bars
        self._pack_oldest()

    def _put_late(self, bar: Candle, change_id: int) -> None:
        packed = len(self._times) - len(self._recent)
        index = bisect_left(self._times, bar.open_ms)
        if self._times[index] != bar.open_ms:
            self._times.insert(index, bar.open_ms)
            self._change_ids.insert(index, change_id)
            if index < packed:
                self._packed.insert_bars(index, (bar,))
            else:
                self._recent.insert(index - packed, bar)
                self._pack_oldest()
            self._revise(bar.open_ms)
            return
        previous = self._bar_at(index)
        if index < packed:
            self._packed.replace_bar(index, bar)
        else:
            self._recent[index - packed] = bar
        if change_id:
            self._change_ids[index] = change_id
        if (previous.values, previous.rev, previous.src) != (bar.values, bar.rev, bar.src):
            self._revise(bar.open_ms)

    def _revise(self, open_ms: int) -> None:
        self.revision += 1
        self._changes.append(open_ms)
        del self._changes[:-_CHANGES_KEPT]

    def _pack_oldest(self) -> None:
        old = self._recent[:-_RECENT]
        if old:
            self._packed.insert_bars(len(self._packed), old)
            del self._recent[:-_RECENT]
