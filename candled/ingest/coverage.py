"""Which minutes of one market are there, which the exchange does not have, and which to ask for next."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from candled.model import MINUTE, MINUTE_MS, Interval, Range, RangeSet
from candled.store.interface import Hole

_WEEK = Interval.parse("1W")
RECENT_MS = 2 * 60 * MINUTE_MS
# How long after each answer without the minutes the exchange is asked for them again; then never.
_RETRY_MS = (60_000, 600_000, 3_600_000, 21_600_000)
MOST_ATTEMPTS = len(_RETRY_MS) + 1


class Urgency(IntEnum):
    """What a request is for; the lower goes first."""

    RECENT = 0  # missing minutes of the last hours: every chart shows them
    WEEK = 1  # missing minutes of the running week: running bars need them
    CONFIRM = 2  # final minutes that REST has not confirmed yet
    HISTORY = 3  # older history, newest first, and minutes the exchange did not have when asked before


@dataclass(frozen=True, slots=True)
class Window:
    """One request for history: minutes `[start_ms, end_ms)`."""

    urgency: Urgency
    start_ms: int
    end_ms: int


class Coverage:
    """Pure arithmetic on minutes; all times are UTC epoch milliseconds on the exchange's clock.

    `from_ms` is how far back history is wanted. `since_ms` is since when it is complete but for known holes; it only
    moves back, since holes that appear later are repaired in place.
    """

    def __init__(
        self,
        *,
        present: Iterable[Range],
        holes: Sequence[Hole],
        since_ms: int | None,
        from_ms: int,
        absence: str,
    ) -> None:
        self.from_ms = from_ms
        self.since_ms = since_ms
        self._absence = absence
        self._have = RangeSet(present)
        self._holes = list(holes)
        # what is there or known not to exist; a hole that is filled stays in it, so it only grows
        self._covered = RangeSet([*self._have, *((hole.start_ms, hole.end_ms) for hole in holes)])
        self._unconfirmed = RangeSet()

    @property
    def holes(self) -> list[Hole]:
        """What the exchange does not have, oldest first."""
        return list(self._holes)

    def has(self, open_ms: int) -> bool:
        """Whether the final candle of a minute is there."""
        return open_ms in self._have

    def add(self, open_ms: int, *, confirmed: bool) -> None:
        """Note that a final minute is there."""
        end_ms = open_ms + MINUTE_MS
        known_hole = open_ms in self._covered and open_ms not in self._have
        self._have.add(open_ms, end_ms)
        self._covered.add(open_ms, end_ms)
        if confirmed:
            self._unconfirmed.remove(open_ms, end_ms)
        else:
            self._unconfirmed.add(open_ms, end_ms)
        if known_hole:
            self._holes = [piece for hole in self._holes for piece in _outside(hole, open_ms, end_ms)]
        self._lower()

    def answered(self, window: Window, until_ms: int, now_ms: int) -> bool:
        """Note that the exchange answered for a window, after `add` for all it sent: what is still missing before
        `until_ms` it does not have. Return whether the known holes changed."""
        start_ms, end_ms = window.start_ms, min(window.end_ms, until_ms)
        self._unconfirmed.remove(start_ms, end_ms)
        absent = self._have.missing(start_ms, end_ms)
        if not absent:
            return False
        asked = [hole for hole in self._holes if hole.start_ms < end_ms and start_ms < hole.end_ms]
        kept = [hole for hole in self._holes if not (hole.start_ms < end_ms and start_ms < hole.end_ms)]
        kept += [piece for hole in asked for piece in _outside(hole, start_ms, end_ms)]
        for first_ms, stop_ms in absent:
            attempts = 1 + max(
                (hole.attempts for hole in asked if hole.start_ms < stop_ms and first_ms < hole.end_ms), default=0
            )
            retry_ms = now_ms + _RETRY_MS[attempts - 1] if attempts < MOST_ATTEMPTS else None
            kept.append(
                Hole(start_ms=first_ms, end_ms=stop_ms, reason=self._absence, attempts=attempts, retry_ms=retry_ms)
            )
            self._covered.add(first_ms, stop_ms)
        self._holes = sorted(kept, key=lambda hole: hole.start_ms)
        self._name_the_beginning()
        self._lower()
        return True

    def missing(self, start_ms: int, end_ms: int) -> RangeSet:
        """Minutes that are neither there nor known holes."""
        return self._covered.missing(max(start_ms, self.from_ms), end_ms)

    def want(self, until_ms: int, now_ms: int, most_minutes: int, confirm_until_ms: int) -> Window | None:
        """The most urgent request, of at most `most_minutes`; None when there is nothing to ask.

        Minutes before `until_ms` should be there; final ones before `confirm_until_ms` may be confirmed (0: never).
        """
        most_ms = most_minutes * MINUTE_MS
        week_ms = _WEEK.floor(now_ms)
        recent_ms = MINUTE.floor(now_ms - RECENT_MS)
        gap = _newest(self.missing(recent_ms, until_ms), most_ms)
        if gap:
            return Window(Urgency.RECENT, *gap)
        gap = _newest(self.missing(week_ms, until_ms), most_ms)
        if gap:
            return Window(Urgency.WEEK, *gap)
        due = _oldest(self._unconfirmed, confirm_until_ms, most_ms)
        if due:
            return Window(Urgency.CONFIRM, *due)
        gap = _newest(self.missing(self.from_ms, until_ms), most_ms) or self._due_hole(now_ms, most_ms)
        return Window(Urgency.HISTORY, *gap) if gap else None

    def lost(self, open_ms: int) -> None:
        """Note that a final minute could not be kept: it is missing again."""
        for ranges in (self._have, self._covered, self._unconfirmed):
            ranges.remove(open_ms, open_ms + MINUTE_MS)

    def doubt(self, open_ms: int) -> None:
        """Ask again for a minute that is there: a sign says that its last version was missed."""
        self._unconfirmed.add(open_ms, open_ms + MINUTE_MS)

    def forget_unconfirmed(self, before_ms: int) -> None:
        """Give up confirming minutes that are too old to be compared."""
        self._unconfirmed.remove(0, before_ms)

    def _due_hole(self, now_ms: int, most_ms: int) -> Range | None:
        """A window that ends with the newest hole to ask again for; its other holes are asked for as well."""
        for hole in reversed(self._holes):
            if hole.retry_ms is not None and hole.retry_ms <= now_ms and hole.end_ms > self.from_ms:
                return Range(max(self.from_ms, hole.end_ms - most_ms), hole.end_ms)
        return None

    def _name_the_beginning(self) -> None:
        """Holes before the first candle there is are not holes: the exchange's history begins after them."""
        first_ms = next((start_ms for start_ms, _ in self._have), None)
        for index, hole in enumerate(self._holes):
            before = first_ms is None or hole.end_ms <= first_ms
            reason = "beyond_history" if before else self._absence
            if hole.reason != reason:
                self._holes[index] = replace(hole, reason=reason)

    def _lower(self) -> None:
        """Move `since_ms` back over all that is covered without a break."""
        at_ms = self.since_ms
        if at_ms is None:
            at_ms = self._have.last.end_ms if self._have.last else None
        if at_ms is not None:
            self.since_ms = self._covered.start_of(at_ms)


def _outside(hole: Hole, start_ms: int, end_ms: int) -> list[Hole]:
    """What is left of a hole without `[start_ms, end_ms)`."""
    rest = RangeSet([(hole.start_ms, hole.end_ms)])
    rest.remove(start_ms, end_ms)
    return [replace(hole, start_ms=left_ms, end_ms=right_ms) for left_ms, right_ms in rest]


def _newest(ranges: RangeSet, most_ms: int) -> Range | None:
    newest = ranges.last
    return Range(max(newest.start_ms, newest.end_ms - most_ms), newest.end_ms) if newest else None


def _oldest(ranges: RangeSet, before_ms: int, most_ms: int) -> Range | None:
    """From the oldest minute on, up to `before_ms`, holes included: one request confirms many minutes."""
    first = next(iter(ranges), None)
    if first is None or first.start_ms >= before_ms:
        return None
    return Range(first.start_ms, min(before_ms, first.start_ms + most_ms))
