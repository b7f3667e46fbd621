"""One market's path from the exchange's messages to the bus and the store."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from candled.bus import FeedMetadata
from candled.errors import InvalidCandle
from candled.exchange import Candles, InvalidRow
from candled.model import MINUTE, MINUTE_MS, Candle, Decimals, Interval, MarketKey, Range, RangeSet, State, StateReason
from candled.store.interface import KnownGap

from .complaints import Complaints
from .coverage import RECENT_MS, Coverage, Urgency, Window
from .evidence import Evidence
from .exchange_clock import TOLERANCE_MS
from .minutes import WINDOW_MS, Minutes
from .presence import Presence
from .rows import check, sift

logger = logging.getLogger(__name__)

_WEEK = Interval.parse("1W")
# If the stream does not deliver the forming minute, REST is polled for it every three seconds, budget permitting.
POLL_MS = 3_000
# Answers without evidence are requested again once REST is credible again, at most this often.
_REOPEN_MS = 600_000
_ON_THEIR_WAY_MS = 2 * MINUTE_MS  # newer minutes do not count as missing yet
# REST is asked for a missing minute only this long after its end: until then it may still arrive.
_PATIENCE_MS = 10_000
# For this long after the end of a minute, a REST response may come from a cache. A response with less volume than the
# stream had is accepted only if it is repeated after `_REPEATED_MS`.
_CACHED_MS = 300_000
_REPEATED_MS = 120_000
# If the prices of this many minutes are disjoint from the stream's, or of fewer minutes but by this factor, the rows
# belong to another market.
_FOREIGN_MINUTES, _FOREIGN_FACTOR = 3, 2


class Condition(NamedTuple):
    """The state of a market and the reason for it.

    `reason` is one of `candled.model.STATE_REASONS`, or empty if the state is `live`.
    """

    state: State
    reason: StateReason | Literal[""] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The parameters for judging one exchange's minutes; see `candled.exchange.Exchange` and the settings."""

    #: How long after the next minute opened the late versions of a minute are awaited.
    grace_period_ms: int
    #: How long the stream may be silent before REST is asked whether the market is quiet.
    quiet_after_ms: int
    #: True if final minutes of the stream are compared with REST.
    confirm: bool
    #: The longest range of one request, in minutes.
    max_history_minutes: int
    opens_at_previous_close: bool
    publishes_empty_candles: bool


@dataclass(slots=True)
class Outcome:
    """The actions that follow from some candles."""

    #: Publish these now, in this order, and store the final ones.
    live: list[Candle] = field(default_factory=list)
    #: Store these first, then publish that the range `healed` changed.
    past: list[Candle] = field(default_factory=list)
    #: The range whose stored history changed, or None.
    healed: Range | None = None
    #: True if REST shows trades that the stream did not deliver: renew the subscription.
    dead: bool = False
    #: The number of final minutes compared with REST for the first time.
    checked: int = 0
    #: The number of those that differed.
    mismatched: int = 0
    #: A range that another process has stored and that is not published yet.
    foreign: Range | None = None

    @property
    def past_range(self) -> Range | None:
        """The range from the first to the last candle of `past`; None if there are none."""
        return Range(self.past[0].open_ms, self.past[-1].open_ms + MINUTE_MS) if self.past else None


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
        #: The exchange's reason for rejecting the subscription, until the stream delivers candles.
        self.refused: str | None = None
        #: An error text if the exchange's list does not contain the symbol. Candles from the stream or REST outweigh
        #: it.
        self.unlisted: str | None = None
        #: Why REST cannot be used for this market, in words; None if it can.
        self.trouble: str | None = None
        #: The number of final minutes that were revised.
        self.revisions = 0
        #: Counts the exchange's rows that were dropped because they are not valid candles.
        self.complaints = Complaints()
        #: The number of timestamps that were implausible; the time of receipt replaced them.
        self.unbelieved_stamps = 0
        self._rules = rules
        self._minutes = Minutes(rules.grace_period_ms, recent)
        #: The forming minutes that were restored at startup.
        self._restored = self._minutes.forming
        #: A range of stored history before the start of `coverage`, while it is being examined.
        self.older: Coverage | None = None
        self._older_until_ms = 0
        self._recent_known: tuple[int, int] | None = None
        self._recent_lacks = False
        self._presence = Presence(rules.quiet_after_ms, publishes_empty_candles=rules.publishes_empty_candles)
        #: True once REST has answered for this market.
        self._was_answered = False
        #: Whether REST has data of this market: None until it responds, False once it denies a known minute.
        self._is_credible: bool | None = None
        self._reopened_ms = 0
        #: Minutes with less volume in REST than in the stream → the time of the first such response, and its values.
        self._lesser: dict[int, tuple[int, tuple[object, ...]]] = {}
        #: Minutes that were reported as lost once; they are not reported again.
        self._lost_before = RangeSet()
        self._gap: Range | None = None
        self._gap_of: tuple[int, int] | None = None
        #: No requests are due until minutes up to here should have arrived.
        self._idle_until_ms = 0

    # ------------------------------------------------------------ messages from the exchange

    def on_push(self, event: Candles, now_ms: int) -> Outcome:
        """Process candles from the live stream."""
        for row in event.invalid:
            self._drop(row, now_ms)
            if row.open_ms is not None:
                self._minutes.doubt(MINUTE.floor(row.open_ms))
        candles = self._valid_candles(event.candles, "live", now_ms, now_ms, is_update=not event.snapshot)
        if candles:
            self._presence.on_push(now_ms)
            self.refused = None
        outcome = Outcome()
        newest_ms = candles[-1].open_ms if candles else 0
        for candle in candles:
            # A row of a snapshot is the last version of its minute if the snapshot contains the next minute too.
            if event.snapshot and candle.open_ms < newest_ms and self._is_over(candle) and not candle.final:
                candle = candle._replace(final=True)
            if self._reaches(candle, newest_ms, now_ms):
                self._take_pushed(candle, now_ms, outcome)
            elif candle.final and self.coverage.has_minute(candle.open_ms):
                # this may differ from the stored version
                self.coverage.mark_doubtful(candle.open_ms)
            elif candle.final and candle.open_ms >= self.coverage.from_ms:
                self._take_past(candle, outcome, confirmed=False)
        outcome.healed = outcome.past_range
        return outcome

    def stored_span(self, window: Window, now_ms: int) -> Range | None:
        """Return the part of a window whose minutes are stored and no longer in memory, or None if there is none.

        `on_history` needs these minutes for comparison.
        """
        newest_ms = now_ms if self.newest_ms is None else self.newest_ms
        span = Range(window.start_ms, min(window.end_ms, MINUTE.floor(newest_ms - WINDOW_MS) + MINUTE_MS))
        return span if span.start_ms < span.end_ms and self.coverage.covered_within(*span) else None

    def find_foreign(self, rows: Sequence[Candle | InvalidRow], now_ms: int) -> str | None:
        """Return an error text if a response is about another market, and count it; otherwise return None.

        The response is rejected if its prices are disjoint from the stream's in all minutes that both have: in at least
        three minutes, or by a factor of two.
        """
        pairs = [
            (row, ours)
            for row in rows
            if isinstance(row, Candle)
            and (ours := self._minutes.get_minute(row.open_ms)) is not None
            and ours.src == "live"
        ]
        most = 1 if len(pairs) >= _FOREIGN_MINUTES else _FOREIGN_FACTOR
        if not pairs or not all(row.low > most * ours.high or most * row.high < ours.low for row, ours in pairs):
            return None
        row, ours = pairs[-1]
        foreign = f"rows of another market: {row.low} to {row.high}, where the stream had {ours.low} to {ours.high}"
        self._drop(InvalidRow(row.open_ms, foreign), now_ms)
        return "the exchange's REST API answers with rows of another market"

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

        `stored` are the minutes of `stored_span`. For completed minutes REST has priority over the stream, regardless
        of timestamps.
        """
        self.trouble, self._was_answered = None, True
        asked_ms = now_ms if asked_ms is None else asked_ms
        span = Range(window.start_ms, window.end_ms)
        answer = sift(rows, span)
        for row in answer.invalid:
            self._drop(row, now_ms)
        unreadable = answer.unreadable(span)
        src = "backfill" if window.urgency is Urgency.HISTORY else "rest"
        self._weigh(window, bool(rows), now_ms)
        candles = self._valid_candles(answer.candles, src, asked_ms, now_ms)
        known = {candle.open_ms: candle for candle in stored} | {
            candle.open_ms: held for candle in candles if (held := self._minutes.get_minute(candle.open_ms)) is not None
        }
        outcome, behind = Outcome(), self._behind(candles, known, now_ms)
        self._count_differences(window, candles, known, RangeSet([*unreadable, *behind]), asked_ms, now_ms, outcome)
        is_dead = window.urgency is Urgency.PRESENT and self._judge_silence(window, candles, now_ms)
        newest_ms = candles[-1].open_ms if candles else 0
        for candle in candles:
            if candle.open_ms not in behind:  # otherwise it stays unconfirmed and is requested once more
                self._take_answered(candle, known.get(candle.open_ms), newest_ms, asked_ms, now_ms, outcome)
        if not self._presence.is_moving(now_ms):  # the stream will not show how the forming minute ends
            self._minutes.on_interrupted()
        outcome.dead, outcome.healed = is_dead, outcome.past_range
        gaps_changed = self._coverage_of(window.start_ms).on_answer(
            window,
            self._expected_until(now_ms),
            now_ms,
            unreadable,
            behind=behind,
            seen=RangeSet((one.open_ms, one.open_ms + MINUTE_MS) for one in self._minutes.forming),
            is_believed=self._is_credible is True,
        )
        if gaps_changed or window.urgency not in (Urgency.CONFIRM, Urgency.PRESENT):
            outcome.healed = Range(window.start_ms, window.end_ms).hull(self._take_older())
        return outcome

    def _weigh(self, window: Window, has_rows: bool, now_ms: int) -> None:
        """Judge whether an empty response is evidence. It is not if REST denies minutes that it must have."""
        if has_rows:
            if not self._is_credible and now_ms - self._reopened_ms >= _REOPEN_MS:
                self._reopened_ms = now_ms
                for coverage in self.coverages:
                    coverage.reopen()
                self._idle_until_ms = 0
            self._is_credible = True
        elif self.coverage.covered_within(max(window.start_ms, now_ms - RECENT_MS), window.end_ms):
            self._is_credible = False

    def _behind(self, candles: Sequence[Candle], known: Mapping[int, Candle], now_ms: int) -> RangeSet:
        """Return the minutes whose response is older than the stream's version: volume only grows within a minute."""
        behind = RangeSet()
        for open_ms in [old for old in self._lesser if now_ms - old > 2 * _CACHED_MS]:
            del self._lesser[open_ms]
        for candle in candles:
            open_ms, ours = candle.open_ms, known.get(candle.open_ms)
            is_less = ours is not None and ours.src == "live" and candle.volume < ours.volume
            if not is_less or not self._is_over(candle) or now_ms - open_ms - MINUTE_MS > _CACHED_MS:
                continue
            since_ms, values = self._lesser.get(open_ms, (now_ms, candle.values))
            if values != candle.values:
                since_ms = now_ms
            self._lesser[open_ms] = since_ms, candle.values
            if now_ms - since_ms < _REPEATED_MS:
                behind.add(open_ms, open_ms + MINUTE_MS)
        return behind

    def settle_beginning(self, evidence: Evidence, now_ms: int) -> Range | None:
        """Apply evidence from other sources about the time before the first minute.

        Returns:
            The range in which the known gaps changed, or None.
        """
        stretch = self.coverage.beginning
        if stretch is None or not self.coverage.settle_beginning(evidence, now_ms):
            return None
        self._idle_until_ms = 0
        return Range(stretch.start_ms, stretch.end_ms)

    def look_at(self, older: Coverage, until_ms: int) -> Range | None:
        """Add a range of stored history before `coverage`, ending at `until_ms`, to be examined.

        Its missing minutes are requested when nothing else is due. Return the range by which history is now complete
        further back, or None.
        """
        self.older, self._older_until_ms = older, until_ms
        return self._take_older()

    @property
    def coverages(self) -> list[Coverage]:
        """All coverage of this market, the newest first."""
        return [self.coverage] if self.older is None else [self.coverage, self.older]

    def on_history_failed(self, reason: str) -> None:
        """Record that REST was unavailable, or that its response was invalid."""
        self.trouble = reason
        self._presence.on_failure()

    def on_interrupted(self) -> None:
        """Record that the stream was interrupted."""
        self._presence.on_interruption()
        self._idle_until_ms = 0
        self._minutes.on_interrupted()

    @property
    def awaits_late_versions(self) -> bool:
        """True if some minutes are in their grace period, so that `finalize_minutes` will soon return them."""
        return self._minutes.awaits_late_versions

    def finalize_minutes(self, now_ms: int) -> list[Candle]:
        """Return the minutes that became final because their grace period is over."""
        settled = self._minutes.finalize_minutes(now_ms)
        for candle in settled:
            self.coverage.add_minute(candle.open_ms, confirmed=False)
        return settled

    # ------------------------------------------------------------ next requests

    def next_request(self, now_ms: int, pace_ms: int = POLL_MS) -> Window | None:
        """Return the next request for history, or None. The present is requested at most every `pace_ms`."""
        window = self._want_missing(now_ms)
        if (window is not None and window.urgency is Urgency.RECENT) or not self._presence.is_due(now_ms, pace_ms):
            return window
        end_ms = MINUTE.floor(now_ms) + MINUTE_MS
        start_ms = end_ms - 2 * MINUTE_MS if self.newest_ms is None else self.newest_ms
        if not self.coverage.has_minute(start_ms - MINUTE_MS):  # REST knows how it ended
            start_ms -= MINUTE_MS
        first_ms = max(start_ms, end_ms - self._rules.max_history_minutes * MINUTE_MS)
        return Window(Urgency.PRESENT, min(first_ms, end_ms - MINUTE_MS), end_ms)

    def _want_missing(self, now_ms: int) -> Window | None:
        until_ms = self._expected_until(now_ms)
        # a later time comes from a clock that was ahead
        if until_ms < self._idle_until_ms <= until_ms + MINUTE_MS:
            return self._want_older(now_ms)
        confirm_until_ms = until_ms if self._rules.confirm else 0
        window = self.coverage.next_window(until_ms, now_ms, self._rules.max_history_minutes, confirm_until_ms)
        if window is None:
            self._idle_until_ms = until_ms + MINUTE_MS
            return self._want_older(now_ms)
        return window

    def _want_older(self, now_ms: int) -> Window | None:
        if self.older is None:
            return None
        return self.older.next_window(self._older_until_ms, now_ms, self._rules.max_history_minutes, 0)

    def forming(self) -> list[Candle]:
        """Return the minutes that are not final, oldest first, in their current version."""
        return self._minutes.forming

    def missing_minutes(self, now_ms: int) -> int:
        """Count the minutes, up to two minutes ago, that are neither stored nor known not to exist.

        Minutes before a forming minute that was restored at startup count immediately: they were missed before the
        start.
        """
        until_ms = now_ms - _ON_THEIR_WAY_MS
        missing = self.coverage.missing_within(self.coverage.from_ms, until_ms)
        if self.older is not None:
            for start_ms, end_ms in self.older.missing_within(self.older.from_ms, self._older_until_ms):
                missing.add(start_ms, end_ms)
        if self._restored:
            for start_ms, end_ms in self.coverage.missing_within(until_ms, self._restored[-1].open_ms):
                missing.add(start_ms, end_ms)
            for candle in self._restored:
                if candle.open_ms >= until_ms:
                    missing.remove(candle.open_ms, candle.open_ms + MINUTE_MS)
        return missing.total_ms // MINUTE_MS

    def feed_metadata(self, logged_seq: int) -> FeedMetadata:
        """Return the metadata to publish with the market's next message."""
        settled_ms = self._minutes.watermark_ms
        if settled_ms is None:
            return FeedMetadata(logged_seq=logged_seq)
        known = self.coverage.version, settled_ms
        if known != self._gap_of:
            since_ms = self.coverage.from_ms if self.coverage.since_ms is None else self.coverage.since_ms
            missing = self.coverage.missing_within(since_ms, settled_ms)
            for candle in self._minutes.forming:  # regardless of REST: their end was not seen
                if candle.open_ms < settled_ms:
                    missing.add(candle.open_ms, candle.open_ms + MINUTE_MS)
            self._gap = next(iter(missing)).hull(missing.last) if missing else None
            self._gap_of = known
        return FeedMetadata(settled_ms, self._gap, logged_seq)

    def mark_missing(self, open_ms: int) -> None:
        """Record that the store had no room for a final minute, so that it is requested again."""
        self.coverage.mark_lost(open_ms, open_ms + MINUTE_MS)
        self._idle_until_ms = 0

    def compare_with_store(self, held: RangeSet, stored: RangeSet, span: Range) -> tuple[RangeSet, RangeSet]:
        """Compare the minutes that should be in the store with those that are, within `span`.

        `held` is the result of `coverage.covered_within` from before the store was read. Lost minutes are requested
        again, once: if the store does not keep them then, they are older than its retention, or it refuses them. New
        minutes were stored by another process.

        Returns:
            The lost minutes and the new ones.
        """
        lost, new = RangeSet(), RangeSet()
        self._lost_before.remove(0, span.start_ms)
        for gap in (gap for stretch in held for gap in stored.missing(*stretch)):
            for start_ms, end_ms in self._lost_before.missing(*gap):
                lost.add(start_ms, end_ms)
                self.coverage.mark_lost(start_ms, end_ms)
        for start_ms, end_ms in lost:
            self._lost_before.add(start_ms, end_ms)
        known = self.coverage.covered_within(*span)
        for start_ms, end_ms in stored:
            for find in known.missing(start_ms, end_ms):
                new.add(*find)
                self.coverage.add_stored(*find)
        if lost:
            self._idle_until_ms = 0
        return lost, new

    def condition(self, now_ms: int) -> Condition:
        """Return the market's state, one of `candled.model.STATES`, and the reason for it."""
        standing = self._presence.standing(now_ms)
        if standing == "unknown":
            return self._unknown(now_ms)
        if self._lacks_week(now_ms):
            return Condition("warming", self._why_missing(now_ms))
        if self._lacks_recent(self._expected_until(now_ms)):
            return Condition("recovering", "fetching" if self._rest_works else "rest_unavailable")
        if standing == "moving":
            return Condition("live")
        reason = self._stream_trouble
        if standing == "quiet" and reason is None:
            return Condition("quiet", "no_trades")
        return Condition("polling", reason or "stream_silent")

    def _unknown(self, now_ms: int) -> Condition:
        """Return the condition of a market for which neither the stream nor REST provides evidence."""
        is_refused = self.refused is not None or self.unlisted is not None
        if not is_refused and self.trouble is None and self._lacks_week(now_ms):
            return Condition("warming", self._why_missing(now_ms) if self._was_answered else "starting")
        if self._stream_trouble is not None:
            return Condition("stale", self._stream_trouble)
        if self.trouble is not None:
            return Condition("stale", "rest_unavailable")
        is_fresh = self.pushed_ms is None and not self._was_answered
        return Condition("stale", "starting" if is_fresh else "unconfirmed_silence")

    def _lacks_week(self, now_ms: int) -> bool:
        """Return whether the current week is not complete yet."""
        since_ms, beginning = self.coverage.since_ms, self.coverage.beginning
        from_ms = max(_WEEK.floor(now_ms), self.coverage.from_ms)
        is_doubtful = beginning is not None and beginning.reason == "unconfirmed" and beginning.end_ms > from_ms
        return since_ms is None or since_ms > from_ms or is_doubtful

    def _why_missing(self, now_ms: int) -> StateReason:
        """Return why the current week is not complete."""
        if not self._rest_works:
            return "rest_unavailable"
        is_asked = not self.coverage.unasked(_WEEK.floor(now_ms), self._expected_until(now_ms))
        return "unconfirmed_beginning" if is_asked and self.coverage.beginning is not None else "fetching"

    @property
    def _rest_works(self) -> bool:
        return self.trouble is None and self._is_credible is not False

    @property
    def newest_ms(self) -> int | None:
        """The opening time of the newest minute seen, UTC epoch milliseconds; None if there is none."""
        return self._minutes.newest_ms

    @property
    def connected(self) -> bool:
        """True if the stream is connected."""
        return self._presence.connected

    @connected.setter
    def connected(self, is_connected: bool) -> None:
        self._presence.connected = is_connected

    @property
    def pushed_ms(self) -> int | None:
        """When the stream last delivered a candle, on the exchange's clock; None if it has not."""
        return self._presence.pushed_ms

    def is_polled(self, now_ms: int) -> bool:
        """Return whether REST is polled for the present in place of the stream."""
        return not self.connected or self._presence.standing(now_ms) == "polled"

    @property
    def known_gaps(self) -> list[KnownGap]:
        """The gaps on the exchange's side, except the time before its history begins."""
        found = [known_gap for coverage in reversed(self.coverages) for known_gap in coverage.known_gaps]
        return [known_gap for known_gap in found if known_gap.reason != "beyond_history"]

    @property
    def trouble_text(self) -> str | None:
        """All current problems in words, or None."""
        denies = "the exchange's REST API returns nothing for minutes that it had"
        trouble = denies if self._is_credible is False else self.trouble
        return "; ".join(text for text in (self.refused, self.unlisted, trouble) if text) or None

    # ------------------------------------------------------------ inside

    def _coverage_of(self, open_ms: int) -> Coverage:
        """Return the coverage that contains a minute."""
        return self.older if self.older is not None and open_ms < self._older_until_ms else self.coverage

    def _take_older(self) -> Range | None:
        """Extend complete history back to where the older range is complete.

        Returns:
            The range that this adds, or None.
        """
        since_ms, older = self.coverage.since_ms, self.older
        if older is None or older.since_ms is None or since_ms is None or older.since_ms >= since_ms:
            return None
        self.coverage.known_since(older.since_ms)
        return Range(older.since_ms, since_ms)

    @property
    def _stream_trouble(self) -> StateReason | None:
        """The reason why the stream delivers nothing, as far as it is known without REST."""
        if self.refused is not None:
            return "subscription_refused"
        if self.unlisted is not None:
            return "not_listed"
        return None if self.connected else "stream_down"

    def _lacks_recent(self, until_ms: int) -> bool:
        """Return whether minutes of the last two hours are missing.

        The result is cached: it is needed every second but changes once a minute.
        """
        known = self.coverage.version, until_ms
        if known != self._recent_known:
            self._recent_known = known
            self._recent_lacks = bool(self.coverage.missing_within(until_ms - RECENT_MS, until_ms - MINUTE_MS))
        return self._recent_lacks

    def _expected_until(self, now_ms: int) -> int:
        """Return the time before which all minutes should have arrived by now."""
        return MINUTE.floor(now_ms - self._rules.grace_period_ms - _PATIENCE_MS)

    def _drop(self, row: InvalidRow, now_ms: int) -> None:
        """Count a row that is not a valid candle."""
        if self.complaints.note(row.reason, now_ms):
            logger.warning("%s: dropped an invalid row, counting further ones: %s", self.key, row.reason)

    def log_recovery(self, now_ms: int) -> None:
        """Log the end of a series of invalid rows."""
        dropped = self.complaints.ended(now_ms)
        if dropped > 1:
            logger.info("%s: no more invalid rows; dropped %d", self.key, dropped)

    def _valid_candles(
        self, candles: Sequence[Candle], src: str, received_ms: int, now_ms: int, *, is_update: bool = False
    ) -> list[Candle]:
        """Return the valid candles, oldest first, each with a plausible timestamp.

        If a candle has no timestamp, or an implausible one, it gets `received_ms`. If it is an update from the stream,
        its timestamp then lies before the end of the minute, so that it replaces no version from after the end.
        """
        valid = []
        for candle in candles:
            end_ms = candle.open_ms + MINUTE_MS
            try:
                check(candle)
                if candle.open_ms > now_ms + TOLERANCE_MS:
                    raise InvalidCandle(f"expected a minute that has begun by {now_ms}, got {candle}")
            except InvalidCandle as error:
                self._drop(InvalidRow(candle.open_ms, str(error)), now_ms)
                continue
            as_of_ms = candle.as_of_ms
            if candle.open_ms - TOLERANCE_MS <= as_of_ms <= now_ms + TOLERANCE_MS:
                as_of_ms = min(as_of_ms, now_ms)
            else:
                self.unbelieved_stamps += as_of_ms != 0
                as_of_ms = min(received_ms, end_ms - 1) if is_update else received_ms
            final = candle.final and now_ms >= end_ms  # a single frame cannot end a minute early
            valid.append(Candle(*candle[:7], as_of_ms, final, candle.rev, src))
        return sorted(valid) if len(valid) > 1 else valid

    def _take_pushed(self, candle: Candle, now_ms: int, outcome: Outcome) -> None:
        """Process a live-edge minute from the stream. Only REST can change a minute that REST has confirmed."""
        held = self._minutes.get_minute(candle.open_ms)
        if held is not None and held.final and self._is_confirmed(candle.open_ms):
            if held.values != candle.values and candle.supersedes(held):
                self.coverage.mark_doubtful(candle.open_ms)
                self._idle_until_ms = 0
            return
        self._hold(candle, now_ms, outcome, confirmed=False)

    def _take_answered(
        self, candle: Candle, known: Candle | None, newest_ms: int, asked_ms: int, now_ms: int, outcome: Outcome
    ) -> None:
        """Process a minute from REST. `known` is the version in memory or in the store."""
        is_over = self._is_over(candle)
        if known is not None and is_over:
            if _came_meanwhile(known, candle, asked_ms, now_ms):
                return  # it stays unconfirmed and is requested once more
            candle = candle.confirmed_over(known)
        proven = candle if candle.final is is_over else candle._replace(final=is_over)
        if self._reaches(candle, newest_ms, now_ms):
            self._hold(proven, now_ms, outcome, confirmed=is_over)
        elif is_over and known is not None and known.final and known.values == candle.values:
            self._coverage_of(candle.open_ms).add_minute(candle.open_ms, confirmed=True)
        elif is_over and (known is not None or self._is_wanted(candle.open_ms)):
            self.revisions += known is not None and known.final
            self._take_past(proven, outcome, confirmed=True)

    def _take_past(self, candle: Candle, outcome: Outcome, *, confirmed: bool) -> None:
        """Process a final minute that is older than the live edge."""
        outcome.past.append(candle._replace(rev=self._revision_of_absent(candle)))
        self._minutes.forget(candle.open_ms)
        self._coverage_of(candle.open_ms).add_minute(candle.open_ms, confirmed=confirmed)

    def _reaches(self, candle: Candle, newest_ms: int, now_ms: int) -> bool:
        """Return whether a candle belongs to the live edge.

        It must also belong to it once `newest_ms`, the newest minute of the same message, is in memory.
        """
        return self._minutes.is_live_edge(candle.open_ms, now_ms) and newest_ms - candle.open_ms < WINDOW_MS

    def _is_wanted(self, open_ms: int) -> bool:
        """Return whether the store needs REST's version of a minute that is no longer in memory."""
        coverage = self._coverage_of(open_ms)
        return not coverage.has_minute(open_ms) or coverage.awaits_confirmation(open_ms)

    def _is_confirmed(self, open_ms: int) -> bool:
        """Return whether REST has confirmed a final minute and can be asked again."""
        coverage = self.coverage
        is_open = coverage.awaits_confirmation(open_ms) or coverage.was_deferred(open_ms)
        return self._rules.confirm and coverage.has_minute(open_ms) and not is_open

    def _hold(self, candle: Candle, now_ms: int, outcome: Outcome, *, confirmed: bool) -> None:
        """Process a version of a minute of the live edge."""
        held = self._minutes.get_minute(candle.open_ms)
        if held is None and self._revision_of_absent(candle):
            candle = candle._replace(rev=1)
        news = self._minutes.apply_version(candle, now_ms)
        current = news or self._minutes.get_minute(candle.open_ms)
        if current is not None and current.final and (confirmed or news is not None):
            if news is None and not self.coverage.has_minute(candle.open_ms):
                news = current  # lost by the store, so it is stored again
            self.coverage.add_minute(candle.open_ms, confirmed=confirmed)
        if news is None:
            return
        if held is not None and held.final and held.values != news.values:
            self.revisions += 1
        self._compare_with_previous(news, held)
        outcome.live.append(news)

    def _revision_of_absent(self, candle: Candle) -> int:
        """Return 1 for a minute that was believed not to exist, else 0.

        Bars were final without this minute, so it is a revision of them.
        """
        return int(self._coverage_of(candle.open_ms).was_absent(candle.open_ms))

    def _compare_with_previous(self, candle: Candle, held: Candle | None) -> None:
        """Mark the previous minute as doubtful if this candle does not open at its close.

        This applies to exchanges whose candles open at the previous close: a difference reveals a missed push.
        """
        previous = self._minutes.get_minute(candle.open_ms - MINUTE_MS)
        if (
            self._rules.opens_at_previous_close
            and held is None
            and previous is not None
            and previous.close != candle.open
        ):
            self.coverage.mark_doubtful(previous.open_ms)
            self._idle_until_ms = 0

    def _is_over(self, candle: Candle) -> bool:
        return candle.final or candle.as_of_ms >= candle.open_ms + MINUTE_MS + self._rules.grace_period_ms

    def _count_differences(
        self,
        window: Window,
        candles: Sequence[Candle],
        known: Mapping[int, Candle],
        unreadable: RangeSet,
        asked_ms: int,
        now_ms: int,
        outcome: Outcome,
    ) -> None:
        """Count the final minutes compared with REST for the first time, and all minutes that differ from it."""
        theirs = {candle.open_ms: candle for candle in candles if self._is_over(candle)}
        awaiting = set(
            self.coverage.unconfirmed_within(window.start_ms, min(window.end_ms, self._expected_until(now_ms)))
        )
        for open_ms in awaiting | theirs.keys():
            ours, row = known.get(open_ms) or self._minutes.get_minute(open_ms), theirs.get(open_ms)
            if ours is None or not ours.final or open_ms in unreadable:
                continue
            if self.coverage.was_deferred(open_ms) and open_ms not in self._lesser:  # already counted
                continue
            if row is not None and _came_meanwhile(ours, row, asked_ms, now_ms):
                continue
            differs = row is None or row.values != ours.values
            outcome.checked += differs or open_ms in awaiting
            outcome.mismatched += differs

    def _judge_silence(self, window: Window, rows: list[Candle], now_ms: int) -> bool:
        """Process REST's response about the present; return whether it shows that the subscription is dead."""
        verdict = self._presence.judge(rows, window.start_ms, self._minutes.get_minute, now_ms)
        if verdict == "nothing":
            self.trouble = "the exchange's REST API does not answer for the present"
            # the response contains not even a minute that must exist, final or not
            if not rows and self.newest_ms is not None:
                self._is_credible = False
        last_ms = self.pushed_ms
        is_certain = any(
            row.volume > 0 and self._is_over(row) and (last_ms is None or row.open_ms >= last_ms) for row in rows
        )
        return verdict == "traded" and self.connected and is_certain


def _came_meanwhile(known: Candle, candle: Candle, asked_ms: int, now_ms: int) -> bool:
    """Return whether another version of a minute was pushed during the REST request and may therefore be newer."""
    return known.values != candle.values and asked_ms < known.as_of_ms <= now_ms
