"""Missing minutes and their reasons, for the stores, `/api/gaps`, `/udf/marks`, `candled gaps` and the page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .interval import DAY_MS, MINUTE_MS
from .ranges import Range, RangeSet

# Each reason with a description for all readers. A store records gaps of every reason except the first.
REASONS: Mapping[str, str] = {
    "missing": "not fetched yet",
    "unconfirmed": "the exchange returns nothing for them, and nothing else confirms it; it is asked again",
    "invalid": "the exchange's rows for them are not valid candles; it is asked again",
    "exchange_outage": "the exchange does not have them",
    "no_trades": "nothing was traded",
    "beyond_history": "older than the exchange's history",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Missing minutes `[start_ms, end_ms)`."""

    #: Opening time of the first missing minute, UTC epoch milliseconds.
    start_ms: int
    #: The end of the last missing minute, UTC epoch milliseconds.
    end_ms: int
    #: One of `REASONS`.
    reason: str
    #: The number of the exchange's answers without these minutes.
    attempts: int = 0
    #: When to ask again, UTC epoch milliseconds; None for never.
    retry_ms: int | None = None

    @property
    def minute_count(self) -> int:
        """The number of missing minutes."""
        return (self.end_ms - self.start_ms) // MINUTE_MS


def find_gaps(stored: Iterable[Range], known_gaps: Iterable[Gap], span: Range) -> list[Gap]:
    """Return all gaps within a range, oldest first and cut at its ends. `stored` are the stored minutes.

    Minutes without a known gap are `missing`. The known gaps must be sorted and disjoint, as in a store. Minutes of a
    known gap that are stored after all are no gap.
    """
    gaps: list[Gap] = []
    known = iter(known_gaps)
    known_gap = next(known, None)
    for left_ms, right_ms in RangeSet(stored).missing(*span):
        while left_ms < right_ms:
            while known_gap is not None and known_gap.end_ms <= left_ms:
                known_gap = next(known, None)
            if known_gap is None or left_ms < known_gap.start_ms:
                until_ms = right_ms if known_gap is None else min(known_gap.start_ms, right_ms)
                gaps.append(Gap(start_ms=left_ms, end_ms=until_ms, reason="missing"))
            else:
                until_ms = min(known_gap.end_ms, right_ms)
                gaps.append(replace(known_gap, start_ms=left_ms, end_ms=until_ms))
            left_ms = until_ms
    return gaps


def join_neighbours(gaps: Iterable[Gap]) -> Iterator[Gap]:
    """Yield sorted gaps, with adjacent ones joined if they differ only in their times."""
    last: Gap | None = None
    for gap in gaps:
        if last is not None and last.end_ms == gap.start_ms and _facts(last) == _facts(gap):
            last = replace(last, end_ms=gap.end_ms)
            continue
        if last is not None:
            yield last
        last = gap
    if last is not None:
        yield last


def join_gaps(gaps: Iterable[Gap]) -> list[Gap]:
    """Return the gaps, sorted, with adjacent ones joined if they differ only in their times."""
    return list(join_neighbours(sorted(gaps, key=lambda gap: gap.start_ms)))


def cut_gap(gap: Gap, start_ms: int, end_ms: int) -> list[Gap]:
    """Return the parts of a gap outside `[start_ms, end_ms)`."""
    rest = RangeSet([(gap.start_ms, gap.end_ms)])
    rest.remove(start_ms, end_ms)
    return [replace(gap, start_ms=left_ms, end_ms=right_ms) for left_ms, right_ms in rest]


def clip_gap(gap: Gap, start_ms: int, end_ms: int) -> list[Gap]:
    """Return the part of a gap inside `[start_ms, end_ms)`: one piece, or none."""
    start_ms, end_ms = max(gap.start_ms, start_ms), min(gap.end_ms, end_ms)
    return [replace(gap, start_ms=start_ms, end_ms=end_ms)] if start_ms < end_ms else []


def replace_gaps(stored: Iterable[Gap], gaps: Sequence[Gap], within: Range) -> list[Gap]:
    """Return `stored` with the parts inside `within` replaced by `gaps`. Parts outside are kept."""
    kept = [piece for gap in stored for piece in cut_gap(gap, *within)]
    return join_gaps(kept + [piece for gap in gaps for piece in clip_gap(gap, *within)])


def split_by_day(gaps: Iterable[Gap], span: Range) -> Iterator[tuple[Range, list[Gap]]]:
    """Yield the days that `span` touches, oldest first, each with its part of the span and of the sorted gaps."""
    waiting = list(gaps)[::-1]
    for day_ms in range(span.start_ms - span.start_ms % DAY_MS, span.end_ms, DAY_MS):
        day = Range(max(day_ms, span.start_ms), min(day_ms + DAY_MS, span.end_ms))
        found: list[Gap] = []
        while waiting and waiting[-1].start_ms < day.end_ms:
            found += clip_gap(waiting[-1], *day)
            if waiting[-1].end_ms > day.end_ms:  # it continues on the next day
                break
            waiting.pop()
        yield day, found


def _facts(gap: Gap) -> tuple[str, int, int | None]:
    return gap.reason, gap.attempts, gap.retry_ms
