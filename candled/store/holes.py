"""Arithmetic on known holes, which every store and the coverage of a market share."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from candled.model import Range, RangeSet

from .interface import KnownGap


def outside(hole: KnownGap, start_ms: int, end_ms: int) -> list[KnownGap]:
    """What is left of a hole without `[start_ms, end_ms)`, UTC epoch milliseconds."""
    rest = RangeSet([(hole.start_ms, hole.end_ms)])
    rest.remove(start_ms, end_ms)
    return [replace(hole, start_ms=left_ms, end_ms=right_ms) for left_ms, right_ms in rest]


def inside(hole: KnownGap, start_ms: int, end_ms: int) -> list[KnownGap]:
    """What of a hole lies in `[start_ms, end_ms)`: one piece, or none."""
    start_ms, end_ms = max(hole.start_ms, start_ms), min(hole.end_ms, end_ms)
    return [replace(hole, start_ms=start_ms, end_ms=end_ms)] if start_ms < end_ms else []


def joined(holes: Iterable[KnownGap]) -> list[KnownGap]:
    """The same holes, sorted; neighbours that differ in nothing but their times become one."""
    result: list[KnownGap] = []
    for hole in sorted(holes, key=lambda hole: hole.start_ms):
        last = result[-1] if result else None
        if last is not None and last.end_ms == hole.start_ms and _facts(last) == _facts(hole):
            result[-1] = replace(last, end_ms=hole.end_ms)
        else:
            result.append(hole)
    return result


def replaced(stored: Iterable[KnownGap], holes: Sequence[KnownGap], within: Range) -> list[KnownGap]:
    """`stored` with what lies `within` a range replaced by `holes`; what lies outside of it stays."""
    kept = [piece for hole in stored for piece in outside(hole, *within)]
    new = [piece for hole in holes for piece in inside(hole, *within)]
    return joined(kept + new)


def _facts(hole: KnownGap) -> tuple[str, int, int | None]:
    return hole.reason, hole.attempts, hole.retry_ms
