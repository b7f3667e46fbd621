"""The coverage of one market: stored minutes, minutes the exchange does not have, and the next request."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from operator import attrgetter

from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS, WEEK, Gap, Range, RangeSet
from candled.model.gaps import clip_gap, cut_gap, join_gaps

from .evidence import Evidence
from .gap_retry import Absence, UnconfirmedMinutes, make_gap, postpone
from .minutes import RECENT_MS

#: This much of the stored history is compared with REST again, because exchanges revise minutes.
RECHECK_MS = 24 * 60 * MINUTE_MS
# If no other source has evidence of the beginning of history, this many answers, over at least eleven minutes, are
# believed.
_LOOKS = 3
_EXPLAINED = {"exchange_outage", "no_trades", "invalid"}
_NOTHING = RangeSet()
_START = attrgetter("start_ms")


class Urgency(IntEnum):
    """The purpose of a request. Lower values go first."""

    RECENT = 0  # missing minutes of the last two hours, which every chart shows
    PRESENT = 1  # the forming minute, if the stream does not deliver it
    WEEK = 2  # missing minutes of the current week, needed for forming bars
    CONFIRM = 3  # final minutes that REST has not confirmed yet
    HISTORY = 4  # older history, newest first, and minutes that the exchange did not have before


@dataclass(frozen=True, slots=True)
class Window:
    """One request for history: the minutes `[start_ms, end_ms)`."""

    #: The purpose of the request.
    urgency: Urgency
    #: The opening time of the first minute, UTC epoch milliseconds.
    start_ms: int
    #: The end of the last minute, UTC epoch milliseconds.
    end_ms: int


class Coverage:
    """Arithmetic on the minutes of one market. Pure; all times are UTC epoch milliseconds on the exchange's clock.

    `from_ms` is the start of the wanted history. `since_ms` is the time from which history is complete except for known
    gaps. It only moves back, because gaps that appear later are repaired in place. `given_since_ms` is its initial
    value. `older` is True if candles exist before `from_ms`. A gap at the beginning is then no sign that the exchange's
    history begins after it.
    """

    def __init__(
        self,
        *,
        present: Iterable[Range],
        known_gaps: Sequence[Gap],
        since_ms: int | None,
        from_ms: int,
        absence: Absence,
        older: bool = False,
    ) -> None:
        self.from_ms = from_ms
        self.since_ms = self.given_since_ms = since_ms
        self._absence = absence
        self._older = older
        self._have = RangeSet(sorted(present))  # in order, so each range is appended
        # sorted, disjoint, and disjoint from stored minutes
        self._known_gaps = [
            replace(known_gap, start_ms=start_ms, end_ms=end_ms)
            for known_gap in join_gaps(known_gaps)
            for start_ms, end_ms in self._have.missing(known_gap.start_ms, known_gap.end_ms)
        ]
        # stored, or known not to exist
        known = ((gap.start_ms, gap.end_ms) for gap in known_gaps if gap.reason != "unconfirmed")
        self._covered = RangeSet(sorted([*self._have, *known]))
        self._begins_ms: int | None = None  # the beginning of history according to another source
        self._is_contradicted = False  # True if another source has data that the exchange denies
        # minutes that exist, because some version of them is known, but not the last one
        self._seen = RangeSet()
        # the oldest minute that the exchange keeps; older ones that are missing may have had trades
        self._kept_ms = 0
        #: The final minutes that REST has not confirmed yet.
        self.unconfirmed = UnconfirmedMinutes(absence)
        self._changed: Range | None = None
        self.version = 0  # incremented with every change
        # The number of known gaps and of their minutes, by reason. They are updated with every change, because counting
        # is slow: a thin market has tens of thousands of gaps.
        self._gap_numbers: Counter[str] = Counter()
        self._gap_minutes: Counter[str] = Counter()
        self._count_gaps(self._known_gaps, 1)
        self._beginning: Gap | None = None  # the value at version `_beginning_of`
        self._beginning_of = -1
        self._lower_since()

    # ------------------------------------------------------------ queries

    @property
    def known_gaps(self) -> list[Gap]:
        """The known gaps, oldest first: missing minutes that the exchange was asked for."""
        return list(self._known_gaps)

    @property
    def gap_counts(self) -> Mapping[str, tuple[int, int]]:
        """The number of known gaps and of their minutes, by reason."""
        return {reason: (count, self._gap_minutes[reason]) for reason, count in self._gap_numbers.items() if count}

    def known_gaps_within(self, start_ms: int, end_ms: int) -> list[Gap]:
        """Return the parts of known gaps that lie in `[start_ms, end_ms)`, oldest first."""
        first, last = self._gap_indexes(start_ms, end_ms)
        return [piece for known_gap in self._known_gaps[first:last] for piece in clip_gap(known_gap, start_ms, end_ms)]

    def count_known(self, start_ms: int, end_ms: int) -> Counter[str]:
        """Count the minutes of known gaps in `[start_ms, end_ms)` by reason."""
        first, last = self._gap_indexes(start_ms, end_ms)
        minutes: Counter[str] = Counter()
        for gap in self._known_gaps[first:last]:
            minutes[gap.reason] += (min(gap.end_ms, end_ms) - max(gap.start_ms, start_ms)) // MINUTE_MS
        return minutes

    def take_changes(self) -> Range | None:
        """Return the range in which the known gaps changed since the last call, or None."""
        changed, self._changed = self._changed, None
        return changed

    def has_minute(self, open_ms: int) -> bool:
        """Return whether the final candle of a minute is stored."""
        return open_ms in self._have

    def is_stored(self, start_ms: int, end_ms: int) -> bool:
        """Return whether all final candles of `[start_ms, end_ms)` are stored."""
        return self._have.start_of(end_ms) <= start_ms

    def is_blank(self, start_ms: int, end_ms: int) -> bool:
        """Return whether no minute of `[start_ms, end_ms)` is stored or belongs to a known gap."""
        first, last = self._gap_indexes(start_ms, end_ms)
        return first == last and not self._have.total_within(start_ms, end_ms)

    def was_missing(self, open_ms: int) -> bool:
        """Return whether the exchange did not have a minute when it was asked."""
        return bool(self._known_gaps) and open_ms in self._covered and open_ms not in self._have

    def covered_within(self, start_ms: int, end_ms: int) -> RangeSet:
        """Return the final minutes of `[start_ms, end_ms)` that are stored."""
        return self._have.common(RangeSet([(start_ms, end_ms)]))

    def missing_within(self, start_ms: int, end_ms: int) -> RangeSet:
        """Return the minutes of `[start_ms, end_ms)` that may exist but are not stored, within the wanted history."""
        return self._covered.missing(max(start_ms, self.from_ms), end_ms)

    def unstored_within(self, start_ms: int, end_ms: int) -> RangeSet:
        """Return the minutes of `[start_ms, end_ms)` that are not stored, for any reason."""
        return self._have.missing(start_ms, end_ms)

    def unasked_within(self, start_ms: int, end_ms: int) -> RangeSet:
        """Return the minutes of `missing_within` that have not been requested from the exchange yet."""
        gaps = self.missing_within(start_ms, end_ms)
        first, last = self._gap_indexes(start_ms, end_ms)
        for known_gap in self._known_gaps[first:last]:
            gaps.remove(known_gap.start_ms, known_gap.end_ms)
        return gaps

    @property
    def first_ms(self) -> int | None:
        """The opening time of the oldest stored minute; None if there is none."""
        return next((start_ms for start_ms, _ in self._have), None)

    @property
    def beginning(self) -> Gap | None:
        """The gap before the oldest minute, within the wanted history; None if there is none.

        Its reason is `unconfirmed` or `beyond_history`.
        """
        if self._beginning_of != self.version:
            self._beginning_of, self._beginning = self.version, self._find_beginning()
        return self._beginning

    def _find_beginning(self) -> Gap | None:
        first_ms, named = self.first_ms, []
        for known_gap in self._known_gaps:
            if first_ms is not None and known_gap.start_ms >= first_ms:
                break
            if known_gap.end_ms > self.from_ms and known_gap.reason in ("unconfirmed", "beyond_history"):
                named.append(known_gap)
        unconfirmed = [known_gap for known_gap in named if known_gap.reason == "unconfirmed"] or named
        if not unconfirmed:
            return None
        return replace(unconfirmed[-1], start_ms=max(unconfirmed[0].start_ms, self.from_ms))

    def count_missing(self, start_ms: int, end_ms: int) -> int:
        """Count the minutes of `[start_ms, end_ms)` that are not stored, for any reason."""
        return max(0, end_ms - start_ms - self._have.total_within(start_ms, end_ms)) // MINUTE_MS

    # ------------------------------------------------------------ updates

    def extend_since(self, since_ms: int) -> bool:
        """Record that history is complete from `since_ms`, as another process found; return whether this is new."""
        self.version += 1
        is_new = self.since_ms is None or since_ms < self.since_ms
        if is_new:
            self.since_ms = since_ms
        return is_new

    def add_minute(self, open_ms: int, *, confirmed: bool) -> None:
        """Record that a final minute is stored."""
        self.add_minutes(open_ms, open_ms + MINUTE_MS, confirmed=confirmed)

    def add_minutes(self, start_ms: int, end_ms: int, *, confirmed: bool) -> None:
        """Record that the final minutes of `[start_ms, end_ms)` are stored."""
        if confirmed:
            self.unconfirmed.remove_range(start_ms, end_ms)
        else:
            self.unconfirmed.add_range(start_ms, end_ms)
        self.add_stored(start_ms, end_ms)

    def add_stored(self, start_ms: int, end_ms: int) -> None:
        """Record that the final minutes of `[start_ms, end_ms)` are in the store.

        If they begin before the wanted history, as the live edge does early in a week, their week is wanted too.
        """
        self.version += 1
        if start_ms < self.from_ms:
            self.from_ms = WEEK.floor(start_ms)
        first, last = self._gap_indexes(start_ms, end_ms)
        if self._begins_ms is not None and start_ms < self._begins_ms:  # the source of that beginning was wrong
            self._begins_ms, last = None, max(last, self._gap_indexes(start_ms, END_OF_TIME_MS)[1])
        elif (first_ms := self.first_ms) is None or start_ms < first_ms:
            last = max(last, self._gap_indexes(start_ms, END_OF_TIME_MS if first_ms is None else first_ms)[1])
        if first < last:
            reached = self._known_gaps[first:last]
            # History begins earlier than it seemed, so the minutes before its supposed beginning may exist.
            disproved = [known_gap for known_gap in reached if known_gap.reason == "beyond_history"]
            kept = [known_gap for known_gap in reached if known_gap.reason != "beyond_history"]
            self._put_slice(first, last, [piece for gap in kept for piece in cut_gap(gap, start_ms, end_ms)])
            self._record_change(start_ms, end_ms)
            for known_gap in disproved:
                self._covered.remove(known_gap.start_ms, known_gap.end_ms)
                self._record_change(known_gap.start_ms, known_gap.end_ms)
        self._have.add(start_ms, end_ms)
        self._covered.add(start_ms, end_ms)
        self._seen.remove(start_ms, end_ms)
        self._lower_since()

    def on_answer(
        self,
        window: Window,
        until_ms: int,
        now_ms: int,
        unreadable: RangeSet = _NOTHING,
        *,
        outdated: RangeSet = _NOTHING,
        seen: RangeSet = _NOTHING,
        is_credible: bool = True,
        kept_ms: int = 0,
    ) -> bool:
        """Record the exchange's answer for a window. Call `add_minute` for every minute in the answer before this.

        Minutes before `until_ms` that are missing after that count as minutes that the exchange does not have.

        `unreadable` are minutes whose rows are not valid candles. `outdated` are minutes whose row is older than the
        known version: they are requested again soon. `seen` are minutes with a known version that is not the last one:
        they exist, even if the answer does not contain them. `kept_ms` is the oldest minute that the exchange keeps.
        Without `is_credible`, the answer is no evidence for missing minutes and is not counted. A known gap that was
        not due does not count as requested again.

        Returns:
            Whether the known gaps changed.
        """
        self.version += 1
        self._kept_ms = max(self._kept_ms, kept_ms)
        start_ms, end_ms = window.start_ms, min(window.end_ms, until_ms)
        self.unconfirmed.defer_range(start_ms, end_ms, unreadable, outdated, now_ms)
        for first_ms, stop_ms in seen.common(RangeSet([Range(start_ms, max(start_ms, end_ms))])):
            self._seen.add(first_ms, stop_ms)
        fresh = self._have.missing(start_ms, end_ms)
        if not fresh:
            return False
        first, last = self._gap_indexes(start_ms, end_ms)
        before = self._known_gaps[first:last]
        known = [self._mark_examined(known_gap, is_credible, now_ms) for known_gap in before]
        now_known = [piece for known_gap in known for piece in cut_gap(known_gap, start_ms, end_ms)]
        for known_gap in known:
            for piece in clip_gap(known_gap, start_ms, end_ms):
                now_known += self._asked_again(piece, unreadable, now_ms) if is_credible else [postpone(piece, now_ms)]
            fresh.remove(known_gap.start_ms, known_gap.end_ms)
        for gap in fresh:
            for first_ms, stop_ms, reason in self._split_by_reason(gap, unreadable):
                why = reason if is_credible or reason == "invalid" else "unconfirmed"
                now_known.append(make_gap(first_ms, stop_ms, why, 1, now_ms))
                if why != "unconfirmed":
                    self._covered.add(first_ms, stop_ms)
        if changed := join_gaps(now_known) != before:
            self._put_gaps(first, last, now_known)
            self._record_change(start_ms, end_ms)
            for known_gap in now_known:
                self._record_change(known_gap.start_ms, known_gap.end_ms)
        if is_credible:
            changed |= self._name_the_beginning(now_ms)
        self._lower_since()
        return changed

    def apply_evidence(self, evidence: Evidence, now_ms: int) -> bool:
        """Apply evidence from other sources about the minutes before the first one.

        Returns:
            Whether the known gaps changed.
        """
        self.version += 1
        self._older |= evidence.has_before
        self._is_contradicted = evidence.is_contradicted
        self._begins_ms = evidence.begins_ms
        changed = self._name_the_beginning(now_ms)
        self._lower_since()
        return changed

    def reopen_unconfirmed(self) -> None:
        """Forget the `unconfirmed` gaps, so that they are requested again: the answers so far are no evidence."""
        self.version += 1
        self._replace_gaps([known_gap for known_gap in self._known_gaps if known_gap.reason != "unconfirmed"])

    def mark_not_stored(self, start_ms: int, end_ms: int) -> None:
        """Record that the store could not keep final minutes, none of them in a known gap: they are missing again."""
        self.version += 1
        for ranges in (self._have, self._covered):
            ranges.remove(start_ms, end_ms)
        self.unconfirmed.remove_range(start_ms, end_ms)

    def drop_after(self, at_ms: int) -> None:
        """Record that the minutes from `at_ms` on lie in the future: the clock was ahead."""
        self.version += 1
        future = Range(at_ms, END_OF_TIME_MS)
        first, last = self._gap_indexes(*future)
        self._put_slice(first, last, [piece for gap in self._known_gaps[first:last] for piece in cut_gap(gap, *future)])
        self._covered.remove(*future)
        for start_ms, end_ms in self._have.common(RangeSet([future])):
            self._covered.add(start_ms, end_ms)
        self._record_change(*future)

    def mark_unconfirmed(self, open_ms: int) -> None:
        """Have a stored minute requested again, because its last version may have been missed."""
        if open_ms in self._have:
            self.unconfirmed.add_range(open_ms, open_ms + MINUTE_MS)

    def recheck_since(self, since_ms: int) -> None:
        """Have REST confirm the stored minutes from `since_ms` on.

        The process that stored them may have ended before it asked REST.
        """
        # the answer to a request for part of a minute may not contain that minute
        since_ms = MINUTE.floor(since_ms)
        if self._have.last is not None and since_ms < self._have.last.end_ms:
            for start_ms, end_ms in self.covered_within(since_ms, self._have.last.end_ms):
                self.unconfirmed.add_range(start_ms, end_ms)

    def next_window(self, until_ms: int, now_ms: int, most_minutes: int, confirm_until_ms: int) -> Window | None:
        """Return the most urgent request, of at most `most_minutes`, or None if none is due.

        Minutes before `until_ms` should have arrived. REST may confirm final ones before `confirm_until_ms` (0: none).
        A window never contains a known gap that is not due yet, so no gap is requested too often.
        """
        self.unconfirmed.resume_due(now_ms)
        most_ms = most_minutes * MINUTE_MS
        week_ms = WEEK.floor(now_ms)
        recent_ms = MINUTE.floor(now_ms - RECENT_MS)
        missing = self.unasked_within(min(recent_ms, week_ms), until_ms)
        gaps = self._newest_gaps(missing, most_ms)
        if gaps:
            urgency = Urgency.RECENT if gaps.end_ms > recent_ms else Urgency.WEEK
            return Window(urgency, gaps.start_ms, self._reach_unconfirmed(gaps, confirm_until_ms, most_ms))
        due = self._oldest_unconfirmed(confirm_until_ms, most_ms)
        if due:
            return Window(Urgency.CONFIRM, *due)
        gaps = self._newest_gaps(self.unasked_within(self.from_ms, until_ms), most_ms)
        gaps = gaps or self._due_gaps(now_ms, most_ms)
        return Window(Urgency.HISTORY, *gaps) if gaps else None

    def _newest_gaps(self, gaps: RangeSet, most_ms: int) -> Range | None:
        """Return a window that ends with the newest gap and extends back over all gaps that fit completely.

        One request then covers many gaps.
        """
        newest = gaps.last
        if newest is None:
            return None
        index = bisect_left(self._known_gaps, newest.start_ms, key=_START) - 1
        reach_ms = max(newest.end_ms - most_ms, self._known_gaps[index].end_ms if index >= 0 else 0)
        first_ms = next(start_ms for start_ms, _ in gaps if start_ms >= reach_ms or start_ms == newest.start_ms)
        return Range(max(first_ms, newest.end_ms - most_ms), newest.end_ms)

    def _reach_unconfirmed(self, gaps: Range, before_ms: int, most_ms: int) -> int:
        """Return the end of a window for some gaps, with the unconfirmed minutes after them that fit into it.

        One request then fills the gaps and confirms what follows them, as after the first answer of a stream.
        """
        reach_ms = min(before_ms, gaps.start_ms + most_ms, self._next_gap_ms(gaps.end_ms))
        return max(gaps.end_ms, self.unconfirmed.end_within(gaps.end_ms, reach_ms))

    def _oldest_unconfirmed(self, before_ms: int, most_ms: int) -> Range | None:
        """Return a window from the oldest unconfirmed minute up to the next known gap.

        It may also contain minutes that REST has confirmed.
        """
        oldest = self.unconfirmed.oldest
        # a minute that is not stored is requested as a missing one or as a known gap, not for confirmation
        while oldest is not None and oldest.start_ms not in self._have:
            self.unconfirmed.remove_range(oldest.start_ms, oldest.start_ms + MINUTE_MS)
            oldest = self.unconfirmed.oldest
        if oldest is None or oldest.start_ms >= before_ms:
            return None
        end_ms = min(before_ms, oldest.start_ms + most_ms, self._next_gap_ms(oldest.start_ms))
        return Range(oldest.start_ms, end_ms)

    def _next_gap_ms(self, at_ms: int) -> int:
        """Return the start of the first known gap from a time on; END_OF_TIME_MS if there is none."""
        index = bisect_left(self._known_gaps, at_ms, key=_START)
        return self._known_gaps[index].start_ms if index < len(self._known_gaps) else END_OF_TIME_MS

    def _due_gaps(self, now_ms: int, most_ms: int) -> Range | None:
        """Return a window that ends with the newest due gap and extends back over due gaps that fit completely."""
        window: Range | None = None
        for known_gap in reversed(self._known_gaps):
            if known_gap.end_ms <= self.from_ms:
                break
            is_due = known_gap.retry_ms is not None and known_gap.retry_ms <= now_ms
            if window is None and is_due:
                window = Range(max(known_gap.start_ms, self.from_ms, known_gap.end_ms - most_ms), known_gap.end_ms)
            elif window is not None:
                if not is_due or max(known_gap.start_ms, self.from_ms) < window.end_ms - most_ms:
                    break
                window = Range(max(known_gap.start_ms, self.from_ms), window.end_ms)
        return window

    # ------------------------------------------------------------ known gaps

    def _asked_again(self, known_gap: Gap, unreadable: RangeSet, now_ms: int) -> Iterator[Gap]:
        is_due = known_gap.retry_ms is not None and known_gap.retry_ms <= now_ms
        for start_ms, end_ms, reason in self._split_by_reason(Range(known_gap.start_ms, known_gap.end_ms), unreadable):
            is_doubted = reason == "unconfirmed" != known_gap.reason
            if is_doubted:
                self._covered.remove(start_ms, end_ms)
            if is_doubted or (reason == "invalid") is not (known_gap.reason == "invalid"):
                yield make_gap(start_ms, end_ms, reason, 1, now_ms)
            elif is_due:
                yield make_gap(start_ms, end_ms, known_gap.reason, known_gap.attempts + 1, now_ms)
            else:
                yield replace(known_gap, start_ms=start_ms, end_ms=end_ms)

    def _split_by_reason(self, gap: Range, unreadable: RangeSet) -> Iterator[tuple[int, int, str]]:
        """Yield the parts of a gap that remain after an answer, each with its reason."""
        for readable in unreadable.missing(*gap):
            for start_ms, end_ms in self._seen.missing(*readable):
                yield from self._split_by_absence(start_ms, end_ms)
            for start_ms, end_ms in self._seen.common(RangeSet([readable])):
                yield start_ms, end_ms, "unconfirmed"
        for start_ms, end_ms in unreadable.common(RangeSet([gap])):
            yield start_ms, end_ms, "invalid"

    def _split_by_absence(self, start_ms: int, end_ms: int) -> Iterator[tuple[int, int, str]]:
        """Yield the parts of a gap that the exchange does not have: those that it dropped, and others."""
        kept_ms = min(max(self._kept_ms, start_ms), end_ms)
        if start_ms < kept_ms:
            yield start_ms, kept_ms, "exchange_outage"
        if kept_ms < end_ms:
            yield kept_ms, end_ms, self._absence

    def _gap_indexes(self, start_ms: int, end_ms: int) -> tuple[int, int]:
        """Return the indexes of the known gaps that overlap a range: the first one, and the one after the last."""
        last = bisect_left(self._known_gaps, end_ms, key=_START)
        first = bisect_right(self._known_gaps, start_ms, hi=last, key=attrgetter("end_ms"))
        return first, last

    def _put_gaps(self, first: int, last: int, known_gaps: Iterable[Gap]) -> None:
        """Replace a slice of the known gaps, joining the new ones with their neighbours."""
        before = max(0, first - 1)
        neighbours = [*self._known_gaps[before:first], *self._known_gaps[last : last + 1]]
        self._put_slice(before, last + 1, join_gaps([*neighbours, *known_gaps]))

    def _put_slice(self, first: int, last: int, known_gaps: list[Gap]) -> None:
        """Replace a slice of the known gaps."""
        self._count_gaps(self._known_gaps[first:last], -1)
        self._count_gaps(known_gaps, 1)
        self._known_gaps[first:last] = known_gaps

    def _count_gaps(self, known_gaps: Iterable[Gap], factor: int) -> None:
        """Add gaps to the counts, or subtract them with the factor -1."""
        for gap in known_gaps:
            self._gap_numbers[gap.reason] += factor
            self._gap_minutes[gap.reason] += factor * gap.minute_count

    def _mark_examined(self, known_gap: Gap, is_credible: bool, now_ms: int) -> Gap:
        """Return a gap as it is after a request for its newest part.

        If the gap is before the beginning of history, all of it counts as requested.
        """
        is_due = known_gap.retry_ms is not None and known_gap.retry_ms <= now_ms
        if known_gap.reason != "beyond_history" or not is_due or not is_credible:
            return known_gap
        return make_gap(known_gap.start_ms, known_gap.end_ms, known_gap.reason, known_gap.attempts + 1, now_ms)

    def _name_the_beginning(self, now_ms: int) -> bool:
        """Give the gaps before the first candle their reason; return whether some changed.

        History begins after them if another source confirms it, or if the exchange repeated its answer often enough.
        """
        first_ms, known_gaps = self.first_ms, []
        if not self._known_gaps:
            return False
        is_after = first_ms is not None and self._known_gaps[0].start_ms > first_ms
        if is_after and self.gap_counts.keys() <= _EXPLAINED:
            return False
        for known_gap in self._known_gaps:
            if known_gap.reason == "invalid":  # the exchange has data there
                first_ms = known_gap.start_ms if first_ms is None else min(first_ms, known_gap.start_ms)
            is_before = not self._older and (first_ms is None or known_gap.end_ms <= first_ms)
            if known_gap.reason == "invalid" or (not is_before and known_gap.reason in _EXPLAINED):
                known_gaps.append(known_gap)
            elif is_before:
                known_gaps += self._before_history(known_gap, now_ms)
            elif known_gap.reason == "unconfirmed":
                for span in self._seen.missing(known_gap.start_ms, known_gap.end_ms):
                    for start_ms, end_ms, reason in self._split_by_absence(*span):
                        known_gaps.append(make_gap(start_ms, end_ms, reason, known_gap.attempts, now_ms))
                for start_ms, end_ms in self._seen.common(RangeSet([Range(known_gap.start_ms, known_gap.end_ms)])):
                    known_gaps.append(replace(known_gap, start_ms=start_ms, end_ms=end_ms))
            # Otherwise drop it: an older minute was found, so the exchange may have these minutes after all.
        return self._replace_gaps(join_gaps(known_gaps))

    def _before_history(self, known_gap: Gap, now_ms: int) -> Iterator[Gap]:
        begins_ms = known_gap.start_ms if self._begins_ms is None else self._begins_ms
        is_repeated = known_gap.reason == "unconfirmed" and known_gap.attempts >= _LOOKS
        is_confirmed = known_gap.reason == "beyond_history" or is_repeated
        if is_confirmed and not self._is_contradicted and self.first_ms is not None:
            begins_ms = known_gap.end_ms
        for piece in clip_gap(known_gap, known_gap.start_ms, begins_ms):
            is_new = piece.reason != "beyond_history"
            yield make_gap(piece.start_ms, piece.end_ms, "beyond_history", 1, now_ms) if is_new else piece
        for piece in clip_gap(known_gap, begins_ms, known_gap.end_ms):
            is_new = piece.reason != "unconfirmed"
            yield make_gap(piece.start_ms, piece.end_ms, "unconfirmed", 1, now_ms) if is_new else piece

    def _replace_gaps(self, known_gaps: list[Gap]) -> bool:
        """Replace all known gaps by others that cover the same minutes or fewer."""
        changed, before, after = RangeSet(), set(self._known_gaps), set(known_gaps)
        for known_gap in before ^ after:
            changed.add(known_gap.start_ms, known_gap.end_ms)
        self._count_gaps(before - after, -1)
        self._count_gaps(after - before, 1)
        self._known_gaps = known_gaps
        for start_ms, end_ms in changed:
            self._covered.remove(start_ms, end_ms)
            for stored_ms, stop_ms in self._have.common(RangeSet([(start_ms, end_ms)])):
                self._covered.add(stored_ms, stop_ms)
            self._record_change(start_ms, end_ms)
        for known_gap in known_gaps:
            if known_gap.reason != "unconfirmed":
                self._covered.add(known_gap.start_ms, known_gap.end_ms)
        return bool(changed)

    def _record_change(self, start_ms: int, end_ms: int) -> None:
        self._changed = Range(start_ms, end_ms).hull(self._changed)

    def _lower_since(self) -> None:
        """Move `since_ms` back over everything that is covered without interruption, but not beyond `from_ms`."""
        at_ms = self.since_ms
        if at_ms is None:
            at_ms = self._have.last.end_ms if self._have.last else None
        if at_ms is not None:
            self.since_ms = min(at_ms, max(self.from_ms, self._covered.start_of(at_ms)))
