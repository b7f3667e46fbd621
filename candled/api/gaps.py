"""A market's stored minutes by day, and its gaps with their reasons."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from candled.model import MINUTE_MS, MarketKey, Range, RangeSet, iso_ms
from candled.store.interface import KnownGap

from .operations import CoveredDay, Hole

DAY_MS = 86_400_000
CHUNK_MS = 7 * DAY_MS  # read from the store at a time
MOST_LISTED = 50  # gaps of one day


class GapStore(Protocol):
    """The store reads this module needs. `candled.store.history.HistoryReader` implements it."""

    async def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> Sequence[Range]:
        """Return the ranges of stored minutes in `[start_ms, end_ms)`."""

    async def known_gaps(self, market: MarketKey, within: Range) -> Sequence[KnownGap]:
        """Return the gaps with a known reason within a range."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Missing minutes `[start_ms, end_ms)`.

    `reason` is that of the known gap, or `missing` if the minutes have not been fetched yet.
    """

    start_ms: int
    end_ms: int
    reason: str
    attempts: int = 0
    retry_ms: int | None = None

    @property
    def minute_count(self) -> int:
        """The number of missing minutes."""
        return (self.end_ms - self.start_ms) // MINUTE_MS

    @property
    def values(self) -> tuple[str, str, int, str]:
        """The times, the number of minutes and the reason, as in answers."""
        return iso_ms(self.start_ms), iso_ms(self.end_ms), self.minute_count, self.reason


async def read_gaps(stored: GapStore, market: MarketKey, start_ms: int, end_ms: int) -> AsyncIterator[list[Gap]]:
    """Yield the gaps within `[start_ms, end_ms)` week by week, the newest week first; in a week, the oldest gap first.

    A gap that spans two weeks is split.
    """
    while start_ms < end_ms:
        first_ms = max(start_ms, end_ms - CHUNK_MS)
        present = await stored.stored_ranges(market, first_ms, end_ms)
        known_gaps = await stored.known_gaps(market, Range(first_ms, end_ms))
        yield find_gaps(present, known_gaps, first_ms, end_ms)
        end_ms = first_ms


def find_gaps(present: Iterable[Range], known_gaps: Iterable[KnownGap], start_ms: int, end_ms: int) -> list[Gap]:
    """Return all gaps within `[start_ms, end_ms)`, oldest first and cut at the ends. `present` are the stored minutes.

    The known gaps must be sorted and disjoint, as in a store. Minutes of a known gap that are stored after all are not
    a gap.
    """
    gaps: list[Gap] = []
    waiting = iter(known_gaps)
    known_gap = next(waiting, None)
    for left_ms, right_ms in RangeSet(present).missing(start_ms, end_ms):
        while left_ms < right_ms:
            while known_gap is not None and known_gap.end_ms <= left_ms:
                known_gap = next(waiting, None)
            if known_gap is None or known_gap.start_ms >= right_ms:
                gaps.append(Gap(left_ms, right_ms, "missing"))
                break
            if left_ms < known_gap.start_ms:
                gaps.append(Gap(left_ms, known_gap.start_ms, "missing"))
                left_ms = known_gap.start_ms
            until_ms = min(known_gap.end_ms, right_ms)
            gaps.append(Gap(left_ms, until_ms, known_gap.reason, known_gap.attempts, known_gap.retry_ms))
            left_ms = until_ms
    return gaps


def joined(gaps: Iterable[Gap]) -> list[Gap]:
    """Return the gaps sorted, with adjacent ones merged if only their times differ."""
    result: list[Gap] = []
    for gap in sorted(gaps, key=lambda gap: gap.start_ms):
        last = result[-1] if result else None
        if (
            last is not None
            and replace(last, start_ms=gap.start_ms, end_ms=gap.end_ms) == gap
            and (last.end_ms == gap.start_ms)
        ):
            result[-1] = replace(last, end_ms=gap.end_ms)
        else:
            result.append(gap)
    return result


def by_day(gaps: Sequence[Gap], start_ms: int, end_ms: int) -> Iterator[CoveredDay]:
    """Yield the days that `[start_ms, end_ms)` touches, oldest first, with minutes stored and expected and the gaps.

    Only the first gaps of a day are listed; `holeCount` is their total number.
    """
    index = 0
    for day_ms in range(start_ms - start_ms % DAY_MS, end_ms, DAY_MS):
        first_ms, last_ms = max(day_ms, start_ms), min(day_ms + DAY_MS, end_ms)
        while index < len(gaps) and gaps[index].end_ms <= first_ms:
            index += 1
        found = []
        for number in range(index, len(gaps)):
            if gaps[number].start_ms >= last_ms:
                break
            gap = gaps[number]
            found.append(replace(gap, start_ms=max(gap.start_ms, first_ms), end_ms=min(gap.end_ms, last_ms)))
        expected = (last_ms - first_ms) // MINUTE_MS
        stored = expected - sum(gap.minute_count for gap in found)
        holes = [Hole(*gap.values) for gap in found[:MOST_LISTED]]
        yield CoveredDay(iso_ms(day_ms)[:10], stored, expected, len(found), holes)
