"""Arithmetic on known gaps, shared by all stores and the coverage of a market."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from candled.model import Range, RangeSet

from .interface import KnownGap


def outside(hole: KnownGap, start_ms: int, end_ms: int) -> list[KnownGap]:
    """Return the parts of a gap outside `[start_ms, end_ms)`, UTC epoch milliseconds."""
    rest = RangeSet([(hole.start_ms, hole.end_ms)])
    rest.remove(start_ms, end_ms)
    return [replace(hole, start_ms=left_ms, end_ms=right_ms) for left_ms, right_ms in rest]


def inside(hole: KnownGap, start_ms: int, end_ms: int) -> list[KnownGap]:
    """Return the part of a gap inside `[start_ms, end_ms)`: one piece, or none."""
    start_ms, end_ms = max(hole.start_ms, start_ms), min(hole.end_ms, end_ms)
    return [replace(hole, start_ms=start_ms, end_ms=end_ms)] if start_ms < end_ms else []


def joined(holes: Iterable[KnownGap]) -> list[KnownGap]:
    """Return the gaps, sorted, with adjacent ones joined if they differ only in their times."""
    result: list[KnownGap] = []
    for hole in sorted(holes, key=lambda hole: hole.start_ms):
        last = result[-1] if result else None
        if last is not None and last.end_ms == hole.start_ms and _facts(last) == _facts(hole):
            result[-1] = replace(last, end_ms=hole.end_ms)
        else:
            result.append(hole)
    return result


def replaced(stored: Iterable[KnownGap], holes: Sequence[KnownGap], within: Range) -> list[KnownGap]:
    """Return `stored` with the parts inside `within` replaced by `holes`. Parts outside are kept."""
    kept = [piece for hole in stored for piece in outside(hole, *within)]
    new = [piece for hole in holes for piece in inside(hole, *within)]
    return joined(kept + new)


def _facts(hole: KnownGap) -> tuple[str, int, int | None]:
    return hole.reason, hole.attempts, hole.retry_ms
