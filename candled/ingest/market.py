"""One market's path from the exchange's messages to the bus and the store."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from candled.bus import FeedMetadata
from candled.exchange import Candles, InvalidRow
from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS, Candle, Decimals, Gap, Market, MarketKey, Range, RangeSet

from .coverage import Coverage, Urgency, Window
from .evidence import Evidence
from .market_status import MarketStatus, Rules
from .minutes import RECENT_MS, WINDOW_MS, Minutes
from .presence import Presence
from .rest_comparison import RestComparison, changed_during_request
from .retention import kept_since
from .rows import RowFilter, sift

logger = logging.getLogger(__name__)

# If the stream does not deliver the forming minute, REST is polled for it every three seconds, budget permitting.
POLL_MS = 3_000
# When REST is credible again, `unconfirmed` gaps are requested again, at most this often.
_REOPEN_MS = 600_000
# If the stream changes the past more often than this within a minute, REST decides about the rest, once a minute.
_MOST_REVISIONS = 60
_ON_THEIR_WAY_MS = 2 * MINUTE_MS  # newer minutes do not count as missing yet


@dataclass(slots=True)
class Outcome:
    """The actions that follow from some candles."""

    #: Publish these now, in this order, and store the final ones.
    live: list[Candle] = field(default_factory=list)
    #: Store these first, then publish that the range `repaired` changed.
    past: list[Candle] = field(default_factory=list)
    #: The range whose stored history changed, or None.
    repaired: Range | None = None
    #: True if REST shows trades that the stream did not deliver: renew the subscription.
    is_subscription_dead: bool = False
    #: The number of final minutes compared with REST for the first time, or found to differ.
    checked: int = 0
    #: The number of those that differed.
    mismatched: int = 0
    #: The number of minutes that were missing until now.
    repaired_minutes: int = 0
    #: A range that another process has stored and that is not published yet.
    foreign: Range | None = None

    @property
    def past_range(self) -> Range | None:
        """The range from the first to the last candle of `past`; None if there are none."""
        return Range(self.past[0].open_ms, self.past[-1].open_ms + MINUTE_MS) if self.past else None

    def store_together(self) -> Range | None:
        """If there are past minutes, move the final ones of the live edge to `past`, to store and publish all together.

        Published one by one, they would take most of the time of a market's start. Return the new `past_range`.
        """
        if self.past:
            self.past += [candle for candle in self.live if candle.final]
            self.live = [candle for candle in self.live if not candle.final]
        return self.past_range


class MarketIngest:
    """The order, finality, coverage and state of one market.

    This class is pure: the time is an argument, on the exchange's clock. `recent` are the newest stored minutes, oldest
    first, including forming ones. Receiving them unchanged is not a change.
    """

    def __init__(self, key: MarketKey, coverage: Coverage, rules: Rules, recent: Sequence[Candle] = ()) -> None:
        self.key = key
        self.coverage = coverage
        #: From the exchange's list of markets.
        self.decimals = Decimals()
        #: The number of final minutes that were revised.
        self.revisions = 0
        self.rows = RowFilter(key)
        self._rules = rules
        self.minutes = Minutes(rules.grace_period_ms, recent)
        #: The forming minutes that were restored at startup.
        self._restored = self.minutes.forming
        #: A range of stored history before the start of `coverage`, while it is being examined.
        self.older: Coverage | None = None
        self._older_until_ms = 0
        self.comparison = RestComparison(rules, coverage, self.minutes)
        self.presence = Presence(rules.quiet_after_ms, publishes_empty_candles=rules.publishes_empty_candles)
        self.status = MarketStatus(rules, coverage, self.presence)
        #: The end of trading, while the market is delisted. Nothing is requested for later minutes.
        self.ended_ms: int | None = None
        self._reopened_ms = 0
        #: The range of REST's newest response, and when it came.
        self._answered = Range(0, 0), 0
        #: The minute of the clock in which the stream's revisions are counted, and their number.
        self._revising_ms, self._revising = 0, 0
        #: Minutes with revisions beyond the limit, which REST is asked for after that minute.
        self._postponed = RangeSet()
        #: Minutes that were reported as lost once; they are not reported again.
        self._reported_missing = RangeSet()
        self._gap: Range | None = None
        self._gap_of: tuple[int, int] | None = None
        #: `coverage` needs no request until minutes up to here should have arrived.
        self._idle_until_ms = 0

    # ------------------------------------------------------------ messages from the exchange

    def on_push(self, event: Candles, now_ms: int) -> Outcome:
        """Process candles from the live stream."""
        for row in event.invalid:
            self.rows.drop_row(row, now_ms)
            if row.open_ms is not None:
                self.minutes.mark_unproven(MINUTE.floor(row.open_ms))
        src = "trades" if event.from_trades else "live"
        candles = self.rows.valid_candles(event.candles, src, now_ms, now_ms, is_update=not event.snapshot)
        if candles:
            self.presence.record_push(now_ms)
            self.status.rejection = None
        outcome = Outcome()
        newest_ms = candles[-1].open_ms if candles else 0
        flag = self._rules.closed_flag
        for pushed in candles:
            is_flagged = pushed.final and flag != "ignored"
            candle = pushed.with_finality(False) if pushed.final and flag != "final" else pushed
            # A row of a snapshot is the last version of its minute if the snapshot contains the next minute too.
            if event.snapshot and candle.open_ms < newest_ms and self._rules.has_ended(candle) and not candle.final:
                candle = candle.with_finality(True)
            if self._is_live_edge(candle, newest_ms, now_ms):
                self._apply_pushed(candle, now_ms, outcome)
                if is_flagged:
                    self.minutes.mark_closed(candle.open_ms, now_ms)
            elif (candle.final or is_flagged) and self.coverage.has_minute(candle.open_ms):
                # this may differ from the stored version, unless REST has answered a moment ago
                if not event.snapshot or not self._has_just_answered(candle.open_ms, now_ms):
                    self.coverage.mark_unconfirmed(candle.open_ms)
            elif (
                candle.final
                and candle.open_ms >= self.coverage.from_ms
                and (outcome.past or self._admits_revision(candle.open_ms, now_ms))
            ):
                self._apply_past(candle, outcome)
        if outcome.past:
            self._cover_minutes([one.open_ms for one in outcome.past], confirmed=False)
        outcome.repaired = outcome.store_together()
        return outcome

    def stored_span(self, window: Window, now_ms: int) -> Range | None:
        """Return the part of a window that is no longer in memory, or None if none of its minutes are stored.

        `on_history` needs these minutes for comparison.
        """
        newest_ms = now_ms if self.minutes.newest_ms is None else self.minutes.newest_ms
        span = Range(window.start_ms, min(window.end_ms, MINUTE.floor(newest_ms - WINDOW_MS) + MINUTE_MS))
        return span if span.start_ms < span.end_ms and self.coverage.covered_within(*span) else None

    def on_history(
        self,
        window: Window,
        rows: Sequence[Candle | InvalidRow],
        now_ms: int,
        *,
        asked_ms: int | None = None,
        stored: Sequence[Candle] = (),
    ) -> Outcome:
        """Process REST's response for a window that was requested at `asked_ms`.

        `stored` are the minutes of `stored_span`. REST has priority, unless a push has a newer version of the minute.
        """
        self.status.problem, self.status.has_answer = None, True
        if window.start_ms < self._coverage_of(window.start_ms).from_ms:
            return Outcome()  # another process has stored this part of older history
        asked_ms = now_ms if asked_ms is None else asked_ms
        span = Range(window.start_ms, window.end_ms)
        answer, self._answered = sift(rows, span), (span, now_ms)
        self.rows.drop_rows(answer.invalid, now_ms)
        unreadable = answer.unreadable_within(span)
        src = "backfill" if window.urgency is Urgency.HISTORY else "rest"
        self._update_credibility(window, bool(rows), now_ms)
        candles = self.rows.stamped_candles(answer.candles, src, asked_ms, now_ms)
        missing, unstored = self._count_repairable(window, now_ms), self._unstored_within(window)
        times = {candle.open_ms for candle in candles}
        known = {candle.open_ms: candle for candle in stored} | self.minutes.get_minutes(times)
        outcome, outdated = Outcome(), self.comparison.find_outdated(candles, known, now_ms)
        outcome.checked, outcome.mismatched = self.comparison.count_differences(
            window, candles, known, RangeSet([*unreadable, *outdated]), asked_ms, now_ms
        )
        outcome.is_subscription_dead = self._check_silence(window, candles, now_ms)
        current = [candle for candle in candles if candle.open_ms not in outdated] if outdated else candles
        confirmed = self._apply_current(current, known, asked_ms, now_ms, outcome)
        self._cover_minutes(confirmed, confirmed=True)
        if not self.presence.is_moving(now_ms):  # the stream will not show how the forming minute ends
            self.minutes.mark_interrupted()
        gaps_changed = self._coverage_of(window.start_ms).on_answer(
            window,
            self._expected_until(now_ms),
            now_ms,
            unreadable,
            outdated=outdated,
            seen=RangeSet((one.open_ms, one.open_ms + MINUTE_MS) for one in self.minutes.forming),
            is_credible=self.status.is_credible is True,
            kept_ms=kept_since(self._rules.history_minutes, asked_ms),
        )
        outcome.repaired_minutes = missing - self._count_repairable(window, now_ms)
        outcome.repaired = outcome.store_together()
        if gaps_changed or window.urgency not in (Urgency.CONFIRM, Urgency.PRESENT):
            changed = span if gaps_changed else unstored.hull(outcome.past_range)
            outcome.repaired = changed.hull(self._join_older())
        return outcome

    def _count_repairable(self, window: Window, now_ms: int) -> int:
        """Count the minutes that are not stored in a window requested to fill gaps; 0 for other windows."""
        if window.urgency in (Urgency.PRESENT, Urgency.CONFIRM):
            return 0
        end_ms = min(window.end_ms, self._rules.expected_until(now_ms))
        return self._coverage_of(window.start_ms).count_missing(window.start_ms, end_ms)

    def _unstored_within(self, window: Window) -> Range:
        """Return the range from the first to the last minute of a window that is not stored; all of it if none is."""
        span = Range(window.start_ms, window.end_ms)
        unstored = self._coverage_of(window.start_ms).unstored_within(*span)
        return unstored.extent or span

    def _update_credibility(self, window: Window, has_rows: bool, now_ms: int) -> None:
        """Judge whether an empty response is evidence. It is not if REST denies minutes that it must have."""
        if has_rows:
            if not self.status.is_credible and now_ms - self._reopened_ms >= _REOPEN_MS:
                self._reopened_ms = now_ms
                for coverage in self.coverages:
                    coverage.reopen_unconfirmed()
                self._idle_until_ms = 0
            self.status.is_credible = True
        elif self.coverage.covered_within(max(window.start_ms, now_ms - RECENT_MS), window.end_ms):
            self.status.is_credible = False

    def apply_evidence(self, evidence: Evidence, now_ms: int) -> Range | None:
        """Apply evidence from other sources about the time before the first minute.

        Returns:
            The range in which the known gaps changed, or None.
        """
        stretch = self.coverage.beginning
        if stretch is None or not self.coverage.apply_evidence(evidence, now_ms):
            return None
        self._idle_until_ms = 0
        return Range(stretch.start_ms, stretch.end_ms)

    def examine_older(self, older: Coverage, until_ms: int) -> Range | None:
        """Add a range of stored history before `coverage`, ending at `until_ms`, to be examined.

        Its missing minutes are requested when nothing else is due. Return the range by which history is now complete
        further back, or None.
        """
        self.older, self._older_until_ms = older, until_ms
        return self._join_older()

    @property
    def coverages(self) -> list[Coverage]:
        """All coverage of this market, the newest first."""
        return [self.coverage] if self.older is None else [self.coverage, self.older]

    def on_history_failed(self, reason: str) -> None:
        """Record that REST was unavailable, or that its response was invalid."""
        self.status.problem = reason
        self.presence.on_failure()

    def follow_listing(self, facts: Market | None, unlisted: str | None) -> None:
        """Take the market's facts from the exchange's list, or None and the reason `unlisted` if it never had them."""
        self.status.listing, self.status.unlisted = "unlisted" if facts is None else facts.status, unlisted
        self.decimals = self.decimals if facts is None else facts.decimals
        self.ended_ms = facts.delisted_ms if facts is not None and facts.status == "delisted" else None

    def on_interrupted(self, *, is_flooded: bool = False) -> None:
        """Record that the stream was interrupted."""
        self.presence.on_interruption(is_flooded=is_flooded)
        self._idle_until_ms = 0
        self.minutes.mark_interrupted()

    def finalize_minutes(self, now_ms: int) -> list[Candle]:
        """Return the minutes that became final because their grace period is over."""
        finalized = self.minutes.finalize_minutes(now_ms)
        for candle in finalized:
            self._cover_minute(candle.open_ms, confirmed=False)
        return finalized

    # ------------------------------------------------------------ next requests

    def next_request(self, now_ms: int, pace_ms: int = POLL_MS) -> Window | None:
        """Return the next request for history, or None. The present is requested at most every `pace_ms`."""
        self._resume_postponed(now_ms)
        window = self._request_missing(now_ms)
        if window is not None and window.urgency is Urgency.RECENT:
            return window
        if self.ended_ms is not None or not self.presence.is_due(now_ms, pace_ms):
            return window
        end_ms = MINUTE.floor(now_ms) + MINUTE_MS
        start_ms = end_ms - 2 * MINUTE_MS if self.minutes.newest_ms is None else self.minutes.newest_ms
        if not self.coverage.has_minute(start_ms - MINUTE_MS):  # REST knows how it ended
            start_ms -= MINUTE_MS
        first_ms = max(start_ms, end_ms - self._rules.max_history_minutes * MINUTE_MS)
        return Window(Urgency.PRESENT, min(first_ms, end_ms - MINUTE_MS), end_ms)

    def is_polled(self, now_ms: int) -> bool:
        """Return whether REST is polled for the present in place of the stream."""
        return self.ended_ms is None and self.presence.is_polled(now_ms)

    def _expected_until(self, now_ms: int) -> int:
        """Return the time before which all minutes should have arrived by now."""
        until_ms = self._rules.expected_until(now_ms)
        return until_ms if self.ended_ms is None else min(until_ms, MINUTE.floor(self.ended_ms))

    def _request_missing(self, now_ms: int) -> Window | None:
        until_ms = self._expected_until(now_ms)
        # a later time comes from a clock that was ahead
        if until_ms < self._idle_until_ms <= until_ms + MINUTE_MS:
            return self._request_older(now_ms)
        confirm_until_ms = until_ms if self._rules.confirm else 0
        window = self.coverage.next_window(until_ms, now_ms, self._rules.max_history_minutes, confirm_until_ms)
        if window is None:
            self._idle_until_ms = until_ms + MINUTE_MS
            return self._request_older(now_ms)
        return window

    def _request_older(self, now_ms: int) -> Window | None:
        if self.older is None:
            return None
        return self.older.next_window(self._older_until_ms, now_ms, self._rules.max_history_minutes, 0)

    def missing_minutes(self, now_ms: int) -> int:
        """Count the minutes of `find_missing`."""
        return self.find_missing(now_ms).total_ms // MINUTE_MS

    def find_missing(self, now_ms: int) -> RangeSet:
        """Return the minutes, up to two minutes ago, that are neither stored nor known not to exist.

        Minutes before a forming minute that was restored at startup count immediately: they were missed before the
        start.
        """
        until_ms = now_ms - _ON_THEIR_WAY_MS
        if self.ended_ms is not None:
            until_ms = min(until_ms, MINUTE.floor(self.ended_ms))
        missing = self.coverage.missing_within(self.coverage.from_ms, until_ms)
        if self.older is not None:
            missing = RangeSet([*self.older.missing_within(self.older.from_ms, self._older_until_ms), *missing])
        if self._restored:
            missing = RangeSet([*missing, *self.coverage.missing_within(until_ms, self._restored[-1].open_ms)])
            for candle in self._restored:
                if candle.open_ms >= until_ms:
                    missing.remove(candle.open_ms, candle.open_ms + MINUTE_MS)
        return missing

    def feed_metadata(self, logged_seq: int) -> FeedMetadata:
        """Return the metadata to publish with the market's next message."""
        watermark_ms = self.minutes.watermark_ms
        if watermark_ms is None:
            return FeedMetadata(logged_seq=logged_seq)
        known = self.coverage.version, watermark_ms
        if known != self._gap_of:
            since_ms = self.coverage.from_ms if self.coverage.since_ms is None else self.coverage.since_ms
            missing = self.coverage.missing_within(since_ms, watermark_ms)
            for candle in self.minutes.forming:  # regardless of REST: their end was not seen
                if candle.open_ms < watermark_ms:
                    missing.add(candle.open_ms, candle.open_ms + MINUTE_MS)
            self._gap = missing.extent
            self._gap_of = known
        return FeedMetadata(watermark_ms, self._gap, logged_seq)

    def mark_missing(self, open_ms: int) -> None:
        """Record that the store had no room for a final minute, so that it is requested again."""
        self.coverage.mark_not_stored(open_ms, open_ms + MINUTE_MS)
        self._idle_until_ms = 0

    def compare_with_store(self, expected: RangeSet, stored: RangeSet, span: Range) -> tuple[RangeSet, RangeSet]:
        """Compare the minutes of `span` in the store with those that should be there.

        `expected` is the result of `coverage.covered_within` from before the store was read. Lost minutes are requested
        again, once: if the store does not keep them then, they are older than its retention, or it refuses them. New
        minutes were stored by another process.

        Returns:
            The lost minutes and the new ones.
        """
        self._reported_missing.remove(0, span.start_ms)
        not_stored = expected.without(stored).without(self._reported_missing)
        for start_ms, end_ms in not_stored:
            self.coverage.mark_not_stored(start_ms, end_ms)
            self._reported_missing.add(start_ms, end_ms)
        new = stored.without(self.coverage.covered_within(*span))
        for start_ms, end_ms in new:
            self.coverage.add_stored(start_ms, end_ms)
        if not_stored:
            self._idle_until_ms = 0
        return not_stored, new

    @property
    def known_gaps(self) -> list[Gap]:
        """The gaps on the exchange's side, except the time before its history begins."""
        found = [known_gap for coverage in reversed(self.coverages) for known_gap in coverage.known_gaps]
        return [known_gap for known_gap in found if known_gap.reason != "beyond_history"]

    # ------------------------------------------------------------ inside

    def _coverage_of(self, open_ms: int) -> Coverage:
        """Return the coverage that contains a minute."""
        return self.older if self.older is not None and open_ms < self._older_until_ms else self.coverage

    def _join_older(self) -> Range | None:
        """Extend complete history back to where the older range is complete.

        Returns:
            The range that this adds, or None.
        """
        since_ms, older = self.coverage.since_ms, self.older
        if older is None or older.since_ms is None or since_ms is None or older.since_ms >= since_ms:
            return None
        self.coverage.extend_since(older.since_ms)
        return Range(older.since_ms, since_ms)

    def _apply_pushed(self, candle: Candle, now_ms: int, outcome: Outcome) -> None:
        """Process a live-edge minute from the stream. Only REST can change a minute that REST has confirmed."""
        known_version = self.minutes.get_minute(candle.open_ms)
        is_final = known_version is not None and known_version.final
        if known_version is not None and is_final and known_version.values != candle.values:
            if not candle.supersedes(known_version) or not self._admits_revision(candle.open_ms, now_ms):
                return
            if self._is_confirmed(candle.open_ms):
                self.coverage.mark_unconfirmed(candle.open_ms)
                self._idle_until_ms = 0
                return
        elif is_final and self._is_confirmed(candle.open_ms):
            return
        self._apply_version(candle, now_ms, outcome, confirmed=False)

    def _admits_revision(self, open_ms: int, now_ms: int) -> bool:
        """Count a change of the past; return whether it is within the limit. If not, REST decides about it later."""
        if MINUTE.floor(now_ms) != self._revising_ms:
            self._revising_ms, self._revising = MINUTE.floor(now_ms), 0
        self._revising += 1
        if self._revising > _MOST_REVISIONS:
            self._postponed.add(open_ms, open_ms + MINUTE_MS)
        return self._revising <= _MOST_REVISIONS

    def _resume_postponed(self, now_ms: int) -> None:
        """Have REST decide about the revisions beyond the limit, once the minute in which they came is over."""
        if self._postponed and MINUTE.floor(now_ms) != self._revising_ms:
            for start_ms, end_ms in self._postponed:
                for open_ms in range(start_ms, end_ms, MINUTE_MS):
                    self.coverage.mark_unconfirmed(open_ms)
            self._postponed, self._idle_until_ms = RangeSet(), 0

    def _apply_current(
        self, candles: Sequence[Candle], known: Mapping[int, Candle], asked_ms: int, now_ms: int, outcome: Outcome
    ) -> list[int]:
        """Process the minutes of a response that are not outdated; return those for `_cover_minutes`."""
        newest_ms = candles[-1].open_ms if candles else 0
        past_until_ms = max(self.minutes.past_until(now_ms), newest_ms - WINDOW_MS)
        blank = self.comparison.count_blank(candles, known, self._coverage_of(newest_ms), past_until_ms)
        outcome.past += [candle.with_finality(True) for candle in candles[:blank]]
        return [candle.open_ms for candle in candles[:blank]] + [
            candle.open_ms
            for candle in candles[blank:]
            if self._apply_answered(candle, known.get(candle.open_ms), newest_ms, asked_ms, now_ms, outcome)
        ]

    def _apply_answered(
        self, candle: Candle, known: Candle | None, newest_ms: int, asked_ms: int, now_ms: int, outcome: Outcome
    ) -> bool:
        """Process a minute from REST. `known` is the version in memory or in the store.

        Returns:
            True if the minute is older than the live edge, and stored or in `outcome.past`: `_cover_minutes` must
            follow.
        """
        has_ended, is_live = self._rules.has_ended(candle), self._is_live_edge(candle, newest_ms, now_ms)
        if known is not None and has_ended:
            if not is_live and known.final and known[1:7] == candle[1:7]:
                return True
            if changed_during_request(known, candle, asked_ms, now_ms):
                return False  # it stays unconfirmed and is requested once more
            candle = candle.confirmed_over(known)
        if is_live:
            self._apply_version(candle.with_finality(has_ended), now_ms, outcome, confirmed=has_ended)
            return False
        if not has_ended:
            return False
        if known is None and not self._is_wanted(candle.open_ms):
            return False
        self.revisions += known is not None and known.final
        self._apply_past(candle.with_finality(True), outcome)
        return True

    def _apply_past(self, candle: Candle, outcome: Outcome) -> None:
        """Process a final minute that is older than the live edge. `_cover_minutes` must follow."""
        rev = self._revision_of_missing(candle)
        outcome.past.append(candle if candle.rev == rev else candle._replace(rev=rev))
        self.minutes.drop_minute(candle.open_ms)

    def _cover_minute(self, open_ms: int, *, confirmed: bool) -> None:
        """Record that a minute of the live edge is stored, which may extend the wanted history over `older`."""
        self.coverage.add_minute(open_ms, confirmed=confirmed)
        if self.older is not None and self.coverage.from_ms < self._older_until_ms:
            self.older = None  # examined again, from the new start of the wanted history

    def _cover_minutes(self, times: Sequence[int], *, confirmed: bool) -> None:
        """Record that minutes are stored: range by range, which takes a third of the time."""
        covered = RangeSet.of_parts(times, MINUTE_MS)
        for half in (Range(0, self._older_until_ms), Range(self._older_until_ms, END_OF_TIME_MS)):
            for start_ms, end_ms in covered.common(RangeSet([half])):
                self._coverage_of(start_ms).add_minutes(start_ms, end_ms, confirmed=confirmed)

    def _is_live_edge(self, candle: Candle, newest_ms: int, now_ms: int) -> bool:
        """Return whether a candle belongs to the live edge.

        It must also belong to it once `newest_ms`, the newest minute of the same message, is in memory.
        """
        return self.minutes.is_live_edge(candle.open_ms, now_ms) and newest_ms - candle.open_ms < WINDOW_MS

    def _is_wanted(self, open_ms: int) -> bool:
        """Return whether the store needs REST's version of a minute that is no longer in memory."""
        coverage = self._coverage_of(open_ms)
        return not coverage.has_minute(open_ms) or open_ms in coverage.unconfirmed

    def _has_just_answered(self, open_ms: int, now_ms: int) -> bool:
        """Return whether the newest response of REST was about a minute, and came less than a minute ago."""
        span, answered_ms = self._answered
        return span.start_ms <= open_ms < span.end_ms and now_ms < answered_ms + MINUTE_MS

    def _is_confirmed(self, open_ms: int) -> bool:
        """Return whether REST has confirmed a final minute and can be asked again."""
        coverage = self.coverage
        is_open = open_ms in coverage.unconfirmed or coverage.unconfirmed.was_deferred(open_ms)
        return self._rules.confirm and coverage.has_minute(open_ms) and not is_open

    def _apply_version(self, candle: Candle, now_ms: int, outcome: Outcome, *, confirmed: bool) -> None:
        """Process a version of a minute of the live edge."""
        known_version = self.minutes.get_minute(candle.open_ms)
        if known_version is None and self._revision_of_missing(candle):
            candle = candle._replace(rev=1)
        changed = self.minutes.apply_version(candle, now_ms)
        current = changed or self.minutes.get_minute(candle.open_ms)
        if current is not None and current.final and (confirmed or changed is not None):
            if changed is None and not self.coverage.has_minute(candle.open_ms):
                changed = current  # lost by the store, so it is stored again
            self._cover_minute(candle.open_ms, confirmed=confirmed)
        if changed is None:
            return
        if known_version is not None and known_version.final and known_version.values != changed.values:
            self.revisions += 1
        self._compare_with_previous(changed, known_version)
        outcome.live.append(changed)

    def _revision_of_missing(self, candle: Candle) -> int:
        """Return 1 for a minute that was believed not to exist, else 0.

        Bars were final without this minute, so it is a revision of them.
        """
        return int(self._coverage_of(candle.open_ms).was_missing(candle.open_ms))

    def _compare_with_previous(self, candle: Candle, known_version: Candle | None) -> None:
        """Mark the previous minute as unconfirmed if this candle does not open at its close.

        This applies to exchanges whose candles open at the previous close: a difference reveals a missed push.
        """
        if known_version is not None or not self._rules.opens_at_previous_close:
            return
        previous = self.minutes.get_minute(candle.open_ms - MINUTE_MS)
        if previous is not None and previous.close != candle.open:
            self.coverage.mark_unconfirmed(previous.open_ms)
            self._idle_until_ms = 0

    def _check_silence(self, window: Window, rows: list[Candle], now_ms: int) -> bool:
        """Process a response about the present; return whether it shows that the subscription is dead."""
        if window.urgency is not Urgency.PRESENT:
            return False
        activity = self.presence.classify_answer(rows, window.start_ms, self.minutes.get_minute, now_ms)
        if activity == "nothing":
            self.status.problem = "the exchange's REST API does not answer for the present"
            # the response contains not even a minute that must exist, final or not
            if not rows and self.minutes.newest_ms is not None:
                self.status.is_credible = False
        last_ms = self.presence.pushed_ms
        is_certain = any(
            row.volume > 0 and self._rules.has_ended(row) and (last_ms is None or row.open_ms >= last_ms)
            for row in rows
        )
        return activity == "traded" and self.presence.connected and is_certain
