"""Arithmetic on known gaps, shared by all stores and the coverage of a market."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from candled.model import Range, RangeSet

from .interface import KnownGap


def cut_gap(gap: KnownGap, start_ms: int, end_ms: int) -> list[KnownGap]:
    """Return the parts of a gap outside `[start_ms, end_ms)`, UTC epoch milliseconds."""
    rest = RangeSet([(gap.start_ms, gap.end_ms)])
    rest.remove(start_ms, end_ms)
    return [replace(gap, start_ms=left_ms, end_ms=right_ms) for left_ms, right_ms in rest]


def clip_gap(gap: KnownGap, start_ms: int, end_ms: int) -> list[KnownGap]:
    """Return the part of a gap inside `[start_ms, end_ms)`: one piece, or none."""
    start_ms, end_ms = max(gap.start_ms, start_ms), min(gap.end_ms, end_ms)
    return [replace(gap, start_ms=start_ms, end_ms=end_ms)] if start_ms < end_ms else []


def join_gaps(known_gaps: Iterable[KnownGap]) -> list[KnownGap]:
    """Return the gaps, sorted, with adjacent ones joined if they differ only in their times."""
    result: list[KnownGap] = []
    for gap in sorted(known_gaps, key=lambda gap: gap.start_ms):
        last = result[-1] if result else None
        if last is not None and last.end_ms == gap.start_ms and _facts(last) == _facts(gap):
            result[-1] = replace(last, end_ms=gap.end_ms)
        else:
            result.append(gap)
    return result


def replace_gaps(stored: Iterable[KnownGap], known_gaps: Sequence[KnownGap], within: Range) -> list[KnownGap]:
    """Return `stored` with the parts inside `within` replaced by `known_gaps`. Parts outside are kept."""
    kept = [piece for gap in stored for piece in cut_gap(gap, *within)]
    new = [piece for gap in known_gaps for piece in clip_gap(gap, *within)]
    return join_gaps(kept + new)


def _facts(gap: KnownGap) -> tuple[str, int, int | None]:
    return gap.reason, gap.attempts, gap.retry_ms
