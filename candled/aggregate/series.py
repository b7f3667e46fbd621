"""The newest bars of one interval of one market."""

from bisect import bisect_left, insort
from collections.abc import Iterable

from candled.model import Candle, Interval


class Series:
    """Bars in memory, oldest first. All bars there are with `open_ms >= since_ms` are held.

    `since_ms` is 0 when nothing older exists. At most about `capacity` bars are kept; what goes is cut on a boundary
    of `parent`, the interval folded from this one, so that a held bar of the parent has all or none of its parts.
    """

    __slots__ = ("_bars", "_capacity", "_parent", "_stamps", "_times", "interval", "revision", "since_ms")

    def __init__(self, interval: Interval, parent: Interval | None, capacity: int) -> None:
        self.interval = interval
        self.since_ms = 0
        self._parent = parent
        self._capacity = max(capacity, 2 * parent.ms // interval.ms if parent else 0)
        self._times: list[int] = []
        self._bars: dict[int, Candle] = {}
        self._stamps: dict[int, int] = {}
        self.revision = 0  # counts changes of bars other than the newest, and reads of older ones

    def __len__(self) -> int:
        return len(self._times)

    @property
    def capacity(self) -> int:
        """How many bars are kept at least, once they were there."""
        return self._capacity

    def widen(self, capacity: int) -> None:
        """Keep at least so many bars from now on."""
        self._capacity = max(self._capacity, capacity)

    def get(self, open_ms: int) -> Candle | None:
        """The bar that begins at `open_ms`."""
        return self._bars.get(open_ms)

    @property
    def newest(self) -> Candle | None:
        """The newest bar."""
        return self._bars[self._times[-1]] if self._times else None

    def tail(self, count: int, since_ms: int) -> list[Candle]:
        """The newest `count` bars that begin at or after `since_ms`, oldest first."""
        if count <= 0:
            return []
        first = bisect_left(self._times, since_ms)
        return [self._bars[open_ms] for open_ms in self._times[first:][-count:]]

    def times(self, count: int, since_ms: int) -> list[int]:
        """When the bars of `tail` open."""
        return self._times[bisect_left(self._times, since_ms) :][-count:] if count > 0 else []

    def changed_since(self, stamp: int) -> list[Candle]:
        """Bars that were put with a later stamp, oldest first."""
        return [self._bars[open_ms] for open_ms in sorted(self._stamps) if self._stamps[open_ms] > stamp]

    def between(self, start_ms: int, end_ms: int) -> list[Candle]:
        """Bars with `start_ms <= open_ms < end_ms`, oldest first."""
        first = bisect_left(self._times, start_ms)
        last = bisect_left(self._times, end_ms, first)
        return [self._bars[open_ms] for open_ms in self._times[first:last]]

    def put(self, bar: Candle, stamp: int = 0) -> None:
        """Add or replace a bar. Stamps of changes only grow."""
        if self._times and bar.open_ms < self._times[-1]:
            self.revision += 1
        if stamp:
            self._stamps[bar.open_ms] = stamp
        if bar.open_ms not in self._bars:
            if not self._times or bar.open_ms > self._times[-1]:
                self._times.append(bar.open_ms)
            else:
                insort(self._times, bar.open_ms)
        self._bars[bar.open_ms] = bar
        if len(self._times) > self._capacity + self._capacity // 4:
            self.forget_before(self._times[-self._capacity])

    def prepend(self, older: Iterable[Candle], since_ms: int) -> None:
        """Add bars older than `since_ms` was; all there are from the new `since_ms` on."""
        older = [bar for bar in older if bar.open_ms < self.since_ms]
        self._bars |= {bar.open_ms: bar for bar in older}
        self._times[:0] = [bar.open_ms for bar in older]
        self.since_ms = since_ms
        self.revision += 1

    def forget_before(self, keep_ms: int) -> None:
        """Drop bars older than `keep_ms`, but not the parts of a parent's bar that holds it."""
        if self._parent is not None:
            keep_ms = self._parent.floor(keep_ms)
        first = bisect_left(self._times, keep_ms)
        for open_ms in self._times[:first]:
            del self._bars[open_ms]
            self._stamps.pop(open_ms, None)
        del self._times[:first]
        self.since_ms = max(self.since_ms, keep_ms)
