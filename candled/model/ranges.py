"""Time ranges and sets of them, for stored and missing minutes."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

END_OF_TIME_MS = 10**14  # later than any bar, and within the range of every store


class Range(NamedTuple):
    """A time range `[start_ms, end_ms)` in UTC epoch milliseconds."""

    start_ms: int
    end_ms: int

    def hull(self, other: "Range | None") -> "Range":
        """Return the shortest range that contains both."""
        if other is None:
            return self
        return Range(min(self.start_ms, other.start_ms), max(self.end_ms, other.end_ms))

    def common(self, other: "Range") -> "Range":
        """Return the times that are in both; `end_ms` is not after `start_ms` if there are none."""
        return Range(max(self.start_ms, other.start_ms), min(self.end_ms, other.end_ms))

    def split(self, length_ms: int) -> "Iterator[Range]":
        """Yield the range in parts of one length, oldest first. The last one may be shorter."""
        for start_ms in range(self.start_ms, self.end_ms, length_ms):
            yield Range(start_ms, min(self.end_ms, start_ms + length_ms))


ALL_TIME = Range(0, END_OF_TIME_MS)


class RangeSet:
    """A set of times, kept as disjoint, sorted ranges. Adjacent ranges are joined."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        last_ms = -1  # the end of the last range
        for start_ms, end_ms in ranges:
            if start_ms == last_ms and end_ms > start_ms:  # most are adjacent
                self._ends[-1] = end_ms
            else:
                self.add(start_ms, end_ms)
            last_ms = self._ends[-1] if self._ends else -1

    @classmethod
    def of_parts(cls, times: Iterable[int], length_ms: int) -> Self:
        """Return the union of ranges of one length, given their starts; quickly if each begins where the last ends."""
        times = list(times)
        if times and (times[-1] - times[0]) // length_ms == len(times) - 1:
            end_ms = times[-1] + length_ms
            if times == list(range(times[0], end_ms, length_ms)):
                return cls([(times[0], end_ms)])
        return cls((start_ms, start_ms + length_ms) for start_ms in times)

    def __iter__(self) -> Iterator[Range]:
        return map(Range, self._starts, self._ends)

    def __len__(self) -> int:
        """Return the number of disjoint ranges."""
        return len(self._starts)

    def __contains__(self, at_ms: int) -> bool:
        index = bisect_right(self._starts, at_ms) - 1
        return index >= 0 and at_ms < self._ends[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and (self._starts, self._ends) == (other._starts, other._ends)

    def __repr__(self) -> str:
        return f"RangeSet({list(map(tuple, self))})"

    @property
    def total_ms(self) -> int:
        """The total length of all ranges."""
        return sum(self._ends) - sum(self._starts)

    @property
    def last(self) -> Range | None:
        """The newest range; None if the set is empty."""
        return Range(self._starts[-1], self._ends[-1]) if self._starts else None

    @property
    def extent(self) -> Range | None:
        """The range from the first time to the last one; None if the set is empty."""
        return Range(self._starts[0], self._ends[-1]) if self._starts else None

    def start_of(self, at_ms: int) -> int:
        """Return the start of the range that contains or touches `at_ms`, or `at_ms` itself if no range does."""
        index = bisect_left(self._ends, at_ms)
        if index < len(self._starts) and self._starts[index] <= at_ms:
            return self._starts[index]
        return at_ms

    def add(self, start_ms: int, end_ms: int) -> None:
        """Add `[start_ms, end_ms)`; an empty range changes nothing."""
        if start_ms >= end_ms:
            return
        # merge the new range with every range that it overlaps or touches
        first = bisect_left(self._ends, start_ms)
        last = bisect_right(self._starts, end_ms)
        if first < last:
            start_ms = min(start_ms, self._starts[first])
            end_ms = max(end_ms, self._ends[last - 1])
        self._starts[first:last] = [start_ms]
        self._ends[first:last] = [end_ms]

    def remove(self, start_ms: int, end_ms: int) -> None:
        """Remove `[start_ms, end_ms)` from the set."""
        if start_ms >= end_ms:
            return
        first = bisect_right(self._ends, start_ms)
        last = bisect_left(self._starts, end_ms)
        if first >= last:
            return
        edges = (self._starts[first], start_ms), (end_ms, self._ends[last - 1])
        kept = [(start, end) for start, end in edges if start < end]
        self._starts[first:last] = [start for start, _ in kept]
        self._ends[first:last] = [end for _, end in kept]

    def common(self, other: "RangeSet") -> "RangeSet":
        """Return the times that are in both sets."""
        return RangeSet(part for span in other for part in self.missing(*span).missing(*span))

    def without(self, other: "RangeSet") -> "RangeSet":
        """Return the times of this set that are not in the other one."""
        return RangeSet(part for span in self for part in other.missing(*span))

    def total_within(self, start_ms: int, end_ms: int) -> int:
        """Return the length of the parts that lie in `[start_ms, end_ms)`."""
        first = bisect_right(self._ends, start_ms)
        last = bisect_left(self._starts, end_ms)
        if first >= last:
            return 0
        total_ms = sum(self._ends[first:last]) - sum(self._starts[first:last])
        return total_ms - max(0, start_ms - self._starts[first]) - max(0, self._ends[last - 1] - end_ms)

    def missing(self, start_ms: int, end_ms: int) -> "RangeSet":
        """Return the parts of `[start_ms, end_ms)` that are not in the set."""
        first = bisect_right(self._ends, start_ms)
        last = bisect_left(self._starts, end_ms)
        # each part is between two ranges; one that is empty is not added
        starts, ends = [start_ms, *self._ends[first:last]], [*self._starts[first:last], end_ms]
        return RangeSet(zip(starts, ends, strict=True))
