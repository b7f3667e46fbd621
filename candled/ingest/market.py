"""One market's way from what the exchange said to what is published and stored."""

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
# Where the stream does not bring the forming minute REST is asked for it every three seconds, if the budget allows.
POLL_MS = 3_000
# What was answered without evidence is asked for again when REST is believed again, at most so often.
_REOPEN_MS = 600_000
_ON_THEIR_WAY_MS = 2 * MINUTE_MS  # newer minutes are not counted as missing yet
# A missing minute is asked for by REST only this long after its end: before, it is on its way.
_PATIENCE_MS = 10_000
# So long after the end of a minute an answer of REST may come from a cache: one with less volume than the stream had is
# taken only once it was repeated after the other time.
_CACHED_MS = 300_000
_REPEATED_MS = 120_000
# Prices that lie apart in so many minutes, or in fewer by this factor, are those of another market.
_FOREIGN_MINUTES, _FOREIGN_FACTOR = 3, 2


class Condition(NamedTuple):
    """How a market is doing, and why: one of `candled.model.STATE_REASONS`, empty where it is `live`."""

    state: State
    reason: StateReason | Literal[""] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one exchange's minutes are judged, in milliseconds; see `candled.exchange.Exchange` and the settings."""

    grace_period_ms: int
    quiet_after_ms: int
    confirm: bool
    max_history_minutes: int
    opens_at_previous_close: bool
    publishes_empty_candles: bool


@dataclass(slots=True)
class Outcome:
    """What follows from some candles.

    `live`: publish now, in this order, and store the final ones. `past`: store first, then tell that the range
    `healed` changed. `dead`: REST shows trades that the stream did not bring, so renew the subscription. `checked`
    final minutes were compared with REST for the first time, `mismatched` of them differed. `foreign` is a stretch that
    another process has stored and that is not published yet.
    """

    live: list[Candle] = field(default_factory=list)
    past: list[Candle] = field(default_factory=list)
    healed: Range | None = None
    dead: bool = False
    checked: int = 0
    mismatched: int = 0
    foreign: Range | None = None

    @property
    def past_range(self) -> Range | None:
        """The stretch that `past` lies in."""
        return Range(self.past[0].open_ms, self.past[-1].open_ms + MINUTE_MS) if self.past else None


class MarketIngest:
    """Order, finality, coverage and the state of one market. Pure: the time is an argument, on the exchange's clock.

    `recent` are the newest stored minutes, oldest first, forming ones too: what the exchange says of them as they are
    is no news.
    """

    def __init__(self, key: MarketKey, coverage: Coverage, rules: Rules, recent: Sequence[Candle] = ()) -> None:
        self.key = key
        self.coverage = coverage
        self.decimals = Decimals()  # what the exchange's list of markets says
        #: the exchange's words for refusing the subscription, until the stream brings candles
        self.refused: str | None = None
        #: in words, that the exchange's list lacks the symbol; candles of the stream or REST outweigh it
        self.unlisted: str | None = None
        self.trouble: str | None = None
        self.revisions = 0
        #: rows of the exchange that were dropped because they cannot be candles
        self.complaints = Complaints()
        #: stamps that cannot be right; the time of receipt took their place
        self.unbelieved_stamps = 0
        self._rules = rules
        self._minutes = Minutes(rules.grace_period_ms, recent)
        self._restored = self._minutes.forming
        #: a stretch of stored history before all that `coverage` knows, while it is looked at
        self.older: Coverage | None = None
        self._older_until_ms = 0
        self._recent_known: tuple[int, int] | None = None
        self._recent_lacks = False
        self._presence = Presence(rules.quiet_after_ms, publishes_empty_candles=rules.publishes_empty_candles)
        self._was_answered = False
        #: whether REST is known to speak of this market: None until it does, False when it denies a known minute
        self._is_credible: bool | None = None
        self._reopened_ms = 0
        #: minutes with less volume in REST than in the stream: the time of the first such answer, and its values
        self._lesser: dict[int, tuple[int, tuple[object, ...]]] = {}
        self._lost_before = RangeSet()
        self._gap: Range | None = None
        self._gap_of: tuple[int, int] | None = None
        self._idle_until_ms = 0  # nothing to ask for before minutes up to here should be there

    # ------------------------------------------------------------ what the exchange said

    def on_push(self, event: Candles, now_ms: int) -> Outcome:
        """Take candles of the live stream."""
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
            # A row of a snapshot is the last version of its minute where the next minute is there too.
            if event.snapshot and candle.open_ms < newest_ms and self._is_over(candle) and not candle.final:
                candle = candle._replace(final=True)
            if self._reaches(candle, newest_ms, now_ms):
                self._take_pushed(candle, now_ms, outcome)
            elif candle.final and self.coverage.has_minute(candle.open_ms):
                self.coverage.mark_doubtful(candle.open_ms)  # it may be another version than the stored one
            elif candle.final and candle.open_ms >= self.coverage.from_ms:
                self._take_past(candle, outcome, confirmed=False)
        outcome.healed = outcome.past_range
        return outcome

    def stored_span(self, window: Window, now_ms: int) -> Range | None:
        """Return the part of a window whose minutes are stored and no longer in memory; None where there is none.

        `answered` needs these minutes to compare.
        """
        newest_ms = now_ms if self.newest_ms is None else self.newest_ms
        span = Range(window.start_ms, min(window.end_ms, MINUTE.floor(newest_ms - WINDOW_MS) + MINUTE_MS))
        return span if span.start_ms < span.end_ms and self.coverage.covered_within(*span) else None

    def find_foreign(self, rows: Sequence[Candle | InvalidRow], now_ms: int) -> str | None:
        """Return in words that an answer is about another market, and count it; None where nothing says so.

        Its prices then lie apart from the stream's in all minutes that both have: in three or more, or by a factor.
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
        """Take REST's answer for a window it was asked for at `asked_ms`; `stored` are the minutes of `stored_span`.

        REST is the higher authority for minutes that are over, whatever stamps the stream had.
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
            if candle.open_ms not in behind:  # else it stays unconfirmed, and is asked for once more
                self._take_answered(candle, known.get(candle.open_ms), newest_ms, asked_ms, now_ms, outcome)
        if not self._presence.is_moving(now_ms):  # nobody sees how the forming minute ends
            self._minutes.on_interrupted()
        outcome.dead, outcome.healed = is_dead, outcome.past_range
        holes_changed = self._coverage_of(window.start_ms).on_answer(
            window,
            self._expected_until(now_ms),
            now_ms,
            unreadable,
            behind=behind,
            seen=RangeSet((one.open_ms, one.open_ms + MINUTE_MS) for one in self._minutes.forming),
            is_believed=self._is_credible is True,
        )
        if holes_changed or window.urgency not in (Urgency.CONFIRM, Urgency.PRESENT):
            outcome.healed = Range(window.start_ms, window.end_ms).hull(self._take_older())
        return outcome

    def _weigh(self, window: Window, has_rows: bool, now_ms: int) -> None:
        """Judge whether REST's silence about minutes means anything: not where it denies what it must have."""
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
        """Return the minutes whose answer is older than the stream's version: volume only grows within a minute."""
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
        """Take what other sources say of the time before the first minute; return where the known holes changed."""
        stretch = self.coverage.beginning
        if stretch is None or not self.coverage.settle_beginning(evidence, now_ms):
            return None
        self._idle_until_ms = 0
        return Range(stretch.start_ms, stretch.end_ms)

    def look_at(self, older: Coverage, until_ms: int) -> Range | None:
        """Take a stretch of stored history before all that is known, which ends at `until_ms`.

        What is missing there is asked for when nothing else is. Return where history is complete by this alone.
        """
        self.older, self._older_until_ms = older, until_ms
        return self._take_older()

    @property
    def coverages(self) -> list[Coverage]:
        """All that is known of minutes, the newest first."""
        return [self.coverage] if self.older is None else [self.coverage, self.older]

    def on_history_failed(self, reason: str) -> None:
        """Note that REST could not be asked, or did not answer as documented."""
        self.trouble = reason
        self._presence.on_failure()

    def on_interrupted(self) -> None:
        """Note that the stream broke."""
        self._presence.on_interruption()
        self._idle_until_ms = 0
        self._minutes.on_interrupted()

    @property
    def awaits_late_versions(self) -> bool:
        """Whether `settle` will have something to say before long."""
        return self._minutes.awaits_late_versions

    def finalize_minutes(self, now_ms: int) -> list[Candle]:
        """The minutes that became final because their late versions had their chance."""
        settled = self._minutes.finalize_minutes(now_ms)
        for candle in settled:
            self.coverage.add_minute(candle.open_ms, confirmed=False)
        return settled

    # ------------------------------------------------------------ what to do next

    def next_request(self, now_ms: int, pace_ms: int = POLL_MS) -> Window | None:
        """The next request for history, if there is one to make; for the present at most every `pace_ms`."""
        window = self._want_missing(now_ms)
        if (window is not None and window.urgency is Urgency.RECENT) or not self._presence.is_due(now_ms, pace_ms):
            return window
        end_ms = MINUTE.floor(now_ms) + MINUTE_MS
        start_ms = end_ms - 2 * MINUTE_MS if self.newest_ms is None else self.newest_ms
        if not self.coverage.has_minute(start_ms - MINUTE_MS):  # REST says how it ended
            start_ms -= MINUTE_MS
        first_ms = max(start_ms, end_ms - self._rules.max_history_minutes * MINUTE_MS)
        return Window(Urgency.PRESENT, min(first_ms, end_ms - MINUTE_MS), end_ms)

    def _want_missing(self, now_ms: int) -> Window | None:
        until_ms = self._expected_until(now_ms)
        if until_ms < self._idle_until_ms <= until_ms + MINUTE_MS:  # a later time was that of a clock that was ahead
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
        """Return the minutes that are not final as they stand, oldest first."""
        return self._minutes.forming

    def missing_minutes(self, now_ms: int) -> int:
        """Count the minutes that are neither there nor known not to exist, up to two minutes ago.

        What lies before a minute that was restored at the start is counted without delay: it was lost then.
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
        """What can be said of the market with its next message."""
        settled_ms = self._minutes.watermark_ms
        if settled_ms is None:
            return FeedMetadata(logged_seq=logged_seq)
        known = self.coverage.version, settled_ms
        if known != self._gap_of:
            since_ms = self.coverage.from_ms if self.coverage.since_ms is None else self.coverage.since_ms
            missing = self.coverage.missing_within(since_ms, settled_ms)
            for candle in self._minutes.forming:  # whatever REST answered: its end was not seen
                if candle.open_ms < settled_ms:
                    missing.add(candle.open_ms, candle.open_ms + MINUTE_MS)
            self._gap = next(iter(missing)).hull(missing.last) if missing else None
            self._gap_of = known
        return FeedMetadata(settled_ms, self._gap, logged_seq)

    def mark_missing(self, open_ms: int) -> None:
        """Note that the store had no room for a final minute: it will be asked for again."""
        self.coverage.mark_lost(open_ms, open_ms + MINUTE_MS)
        self._idle_until_ms = 0

    def compare_with_store(self, held: RangeSet, stored: RangeSet, span: Range) -> tuple[RangeSet, RangeSet]:
        """Compare what should be in the store with what is, within `span`; return what is lost and what is new there.

        `held` is what `coverage.held` said before the store was read. What is lost will be asked for again, once: what
        the store then still does not keep is older than its retention, or refused. What is new was stored by another
        process.
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
        """Return the state of the market, one of `candled.model.STATES`, and the reason for it."""
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
        """Return the condition of a market that neither the stream nor REST vouches for."""
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
        """Return whether the running week is not complete yet."""
        since_ms, beginning = self.coverage.since_ms, self.coverage.beginning
        from_ms = max(_WEEK.floor(now_ms), self.coverage.from_ms)
        is_doubtful = beginning is not None and beginning.reason == "unconfirmed" and beginning.end_ms > from_ms
        return since_ms is None or since_ms > from_ms or is_doubtful

    def _why_missing(self, now_ms: int) -> StateReason:
        """Return why the running week is not complete."""
        if not self._rest_works:
            return "rest_unavailable"
        is_asked = not self.coverage.unasked(_WEEK.floor(now_ms), self._expected_until(now_ms))
        return "unconfirmed_beginning" if is_asked and self.coverage.beginning is not None else "fetching"

    @property
    def _rest_works(self) -> bool:
        return self.trouble is None and self._is_credible is not False

    @property
    def newest_ms(self) -> int | None:
        """The newest minute seen, UTC epoch milliseconds."""
        return self._minutes.newest_ms

    @property
    def connected(self) -> bool:
        """Whether the stream is connected."""
        return self._presence.connected

    @connected.setter
    def connected(self, is_connected: bool) -> None:
        self._presence.connected = is_connected

    @property
    def pushed_ms(self) -> int | None:
        """When the stream last brought a candle, on the exchange's clock."""
        return self._presence.pushed_ms

    def is_polled(self, now_ms: int) -> bool:
        """Return whether REST is asked for the present in the stream's place."""
        return not self.connected or self._presence.standing(now_ms) == "polled"

    @property
    def known_gaps(self) -> list[KnownGap]:
        """The minutes the exchange itself does not have, but for the time before its history begins."""
        found = [hole for coverage in reversed(self.coverages) for hole in coverage.known_gaps]
        return [hole for hole in found if hole.reason != "beyond_history"]

    @property
    def trouble_text(self) -> str | None:
        """Everything that is wrong, in words; None where nothing is."""
        denies = "the exchange's REST API answers with nothing for minutes that it had"
        trouble = denies if self._is_credible is False else self.trouble
        return "; ".join(text for text in (self.refused, self.unlisted, trouble) if text) or None

    # ------------------------------------------------------------ inside

    def _coverage_of(self, open_ms: int) -> Coverage:
        """Return what is known of the time of a minute."""
        return self.older if self.older is not None and open_ms < self._older_until_ms else self.coverage

    def _take_older(self) -> Range | None:
        """Let history be complete since when the older stretch is; return what that adds."""
        since_ms, older = self.coverage.since_ms, self.older
        if older is None or older.since_ms is None or since_ms is None or older.since_ms >= since_ms:
            return None
        self.coverage.known_since(older.since_ms)
        return Range(older.since_ms, since_ms)

    @property
    def _stream_trouble(self) -> StateReason | None:
        """Why the stream brings nothing, as far as that is known without REST."""
        if self.refused is not None:
            return "subscription_refused"
        if self.unlisted is not None:
            return "not_listed"
        return None if self.connected else "stream_down"

    def _lacks_recent(self, until_ms: int) -> bool:
        """Whether minutes of the last hours are missing: asked every second, it changes once a minute."""
        known = self.coverage.version, until_ms
        if known != self._recent_known:
            self._recent_known = known
            self._recent_lacks = bool(self.coverage.missing_within(until_ms - RECENT_MS, until_ms - MINUTE_MS))
        return self._recent_lacks

    def _expected_until(self, now_ms: int) -> int:
        """Minutes before this should be here by now."""
        return MINUTE.floor(now_ms - self._rules.grace_period_ms - _PATIENCE_MS)

    def _drop(self, row: InvalidRow, now_ms: int) -> None:
        """Count a row that cannot be a candle."""
        if self.complaints.note(row.reason, now_ms):
            logger.warning("%s: dropped a row that cannot be a candle, counting more: %s", self.key, row.reason)

    def log_recovery(self, now_ms: int) -> None:
        """Log the end of a series of rows that could not be read."""
        dropped = self.complaints.ended(now_ms)
        if dropped > 1:
            logger.info("%s: no more rows that cannot be candles; %d were dropped", self.key, dropped)

    def _valid_candles(
        self, candles: Sequence[Candle], src: str, received_ms: int, now_ms: int, *, is_update: bool = False
    ) -> list[Candle]:
        """Return the possible ones of some candles, oldest first, each with a stamp that can be believed.

        The stamp is `received_ms` where the exchange states none, or one that cannot be right. An `update` of the
        stream then counts as a statement from before the end of the minute, so that it replaces none from after it.
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
            final = candle.final and now_ms >= end_ms  # one frame ends no minute early
            valid.append(Candle(*candle[:7], as_of_ms, final, candle.rev, src))
        return sorted(valid) if len(valid) > 1 else valid

    def _take_pushed(self, candle: Candle, now_ms: int, outcome: Outcome) -> None:
        """Take a minute of the live edge from the stream. One that REST has confirmed only REST changes."""
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
        """Take a minute from REST; `known` is the version in memory or in the store."""
        is_over = self._is_over(candle)
        if known is not None and is_over:
            if _came_meanwhile(known, candle, asked_ms, now_ms):
                return  # it stays unconfirmed, and is asked for once more
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
        """Take a final minute that is older than the live edge."""
        outcome.past.append(candle._replace(rev=self._revision_of_absent(candle)))
        self._minutes.forget(candle.open_ms)
        self._coverage_of(candle.open_ms).add_minute(candle.open_ms, confirmed=confirmed)

    def _reaches(self, candle: Candle, newest_ms: int, now_ms: int) -> bool:
        """Whether a candle belongs to the live edge, also once the newest one that came with it is there."""
        return self._minutes.is_live_edge(candle.open_ms, now_ms) and newest_ms - candle.open_ms < WINDOW_MS

    def _is_wanted(self, open_ms: int) -> bool:
        """Whether the store should get the exchange's word on a minute that is no longer in memory."""
        coverage = self._coverage_of(open_ms)
        return not coverage.has_minute(open_ms) or coverage.awaits_confirmation(open_ms)

    def _is_confirmed(self, open_ms: int) -> bool:
        """Whether REST has confirmed a final minute, and can be asked again."""
        coverage = self.coverage
        is_open = coverage.awaits_confirmation(open_ms) or coverage.was_deferred(open_ms)
        return self._rules.confirm and coverage.has_minute(open_ms) and not is_open

    def _hold(self, candle: Candle, now_ms: int, outcome: Outcome, *, confirmed: bool) -> None:
        """Take a version of a minute of the live edge."""
        held = self._minutes.get_minute(candle.open_ms)
        if held is None and self._revision_of_absent(candle):
            candle = candle._replace(rev=1)
        news = self._minutes.apply_version(candle, now_ms)
        current = news or self._minutes.get_minute(candle.open_ms)
        if current is not None and current.final and (confirmed or news is not None):
            if news is None and not self.coverage.has_minute(candle.open_ms):
                news = current  # the store has lost it, and gets it once more
            self.coverage.add_minute(candle.open_ms, confirmed=confirmed)
        if news is None:
            return
        if held is not None and held.final and held.values != news.values:
            self.revisions += 1
        self._compare_with_previous(news, held)
        outcome.live.append(news)

    def _revision_of_absent(self, candle: Candle) -> int:
        """1 for a minute that was taken not to exist: bars were final without it, so that it revises them."""
        return int(self._coverage_of(candle.open_ms).was_absent(candle.open_ms))

    def _compare_with_previous(self, candle: Candle, held: Candle | None) -> None:
        """Where candles open at the close of the one before, a difference betrays a missed push."""
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
        """Count the final minutes that REST is compared with for the first time, and all that differ from it."""
        theirs = {candle.open_ms: candle for candle in candles if self._is_over(candle)}
        awaiting = set(
            self.coverage.unconfirmed_within(window.start_ms, min(window.end_ms, self._expected_until(now_ms)))
        )
        for open_ms in awaiting | theirs.keys():
            ours, row = known.get(open_ms) or self._minutes.get_minute(open_ms), theirs.get(open_ms)
            if ours is None or not ours.final or open_ms in unreadable:
                continue
            if self.coverage.was_deferred(open_ms) and open_ms not in self._lesser:  # it was counted
                continue
            if row is not None and _came_meanwhile(ours, row, asked_ms, now_ms):
                continue
            differs = row is None or row.values != ours.values
            outcome.checked += differs or open_ms in awaiting
            outcome.mismatched += differs

    def _judge_silence(self, window: Window, rows: list[Candle], now_ms: int) -> bool:
        """Take REST's answer about the present; return whether it shows a subscription that is dead."""
        verdict = self._presence.judge(rows, window.start_ms, self._minutes.get_minute, now_ms)
        if verdict == "nothing":
            self.trouble = "the exchange's REST API does not answer for the present"
            if not rows and self.newest_ms is not None:  # it lacks a minute that it must have, final or not
                self._is_credible = False
        last_ms = self.pushed_ms
        is_certain = any(
            row.volume > 0 and self._is_over(row) and (last_ms is None or row.open_ms >= last_ms) for row in rows
        )
        return verdict == "traded" and self.connected and is_certain


def _came_meanwhile(known: Candle, candle: Candle, asked_ms: int, now_ms: int) -> bool:
    """Whether another version of a minute was pushed while REST was asked: then it may be the newer one."""
    return known.values != candle.values and asked_ms < known.as_of_ms <= now_ms
