"""One market's way from what the exchange said to what is published and stored."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from candled.bus import Facts
from candled.errors import InvalidCandle
from candled.exchange import Candles, InvalidRow
from candled.model import MINUTE, MINUTE_MS, Candle, Decimals, Interval, MarketKey, Range, RangeSet, State, StateReason
from candled.store.interface import Hole

from .complaints import Complaints
from .coverage import RECENT_MS, Coverage, Urgency, Window
from .minutes import WINDOW_MS, Minutes
from .presence import Presence
from .rows import check, sift

logger = logging.getLogger(__name__)

_WEEK = Interval.parse("1W")
_FUTURE_MS = 2 * MINUTE_MS
# Where the stream does not bring the forming minute REST is asked for it every three seconds, if the budget allows.
POLL_MS = 3_000
_ON_THEIR_WAY_MS = 2 * MINUTE_MS  # newer minutes are not counted as missing yet
# A missing minute is asked for by REST only this long after its end: before, it is on its way.
_PATIENCE_MS = 10_000


class Condition(NamedTuple):
    """How a market is doing, and why: one of `candled.model.STATE_REASONS`, empty where it is `live`."""

    state: State
    reason: StateReason | Literal[""] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one exchange's minutes are judged, in milliseconds; see `candled.exchange.Exchange` and the settings."""

    settle_ms: int
    quiet_after_ms: int
    confirm: bool
    history_minutes: int
    opens_at_close: bool
    publishes_empty_candles: bool


@dataclass(slots=True)
class Outcome:
    """What follows from some candles.

    `live`: publish now, in this order, and store the final ones. `past`: store first, then tell that the range
    `healed` changed. `dead`: REST shows trades that the stream did not bring, so renew the subscription. `checked`
    final minutes were compared with REST for the first time, `mismatched` of them differed.
    """

    live: list[Candle] = field(default_factory=list)
    past: list[Candle] = field(default_factory=list)
    healed: Range | None = None
    dead: bool = False
    checked: int = 0
    mismatched: int = 0

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
        self._rules = rules
        self._minutes = Minutes(rules.settle_ms, recent)
        self._restored = self._minutes.forming
        self._recent_known: tuple[int, int] | None = None
        self._recent_lacks = False
        self._presence = Presence(rules.quiet_after_ms, publishes_empty_candles=rules.publishes_empty_candles)
        self._was_answered = False
        self._lost_before = RangeSet()
        self._gap: Range | None = None
        self._gap_of: tuple[int, int] | None = None
        self._idle_until_ms = 0  # nothing to ask for before minutes up to here should be there

    # ------------------------------------------------------------ what the exchange said

    def pushed(self, event: Candles, now_ms: int) -> Outcome:
        """Take candles of the live stream."""
        self._presence.on_push(now_ms)
        self.refused = None
        for row in event.invalid:
            self._drop(row, now_ms)
            if row.open_ms is not None:
                self._minutes.doubt(MINUTE.floor(row.open_ms))
        return self._take(self._valid(event.candles, now_ms, "live"), now_ms, confirmed=event.snapshot)

    def answered(self, window: Window, rows: Sequence[Candle | InvalidRow], now_ms: int) -> Outcome:
        """Take REST's answer for a window it was asked for."""
        self.trouble, self._was_answered = None, True
        span = Range(window.start_ms, window.end_ms)
        answer = sift(rows, span)
        for row in answer.invalid:
            self._drop(row, now_ms)
        unreadable = answer.unreadable(span)
        src = "backfill" if window.urgency is Urgency.HISTORY else "rest"
        candles = self._valid(answer.candles, now_ms, src)
        checked, mismatched = self._compare(window, candles, unreadable, now_ms)
        is_dead = window.urgency is Urgency.PRESENT and self._judge_silence(window, candles, now_ms)
        outcome = self._take(candles, now_ms, confirmed=True)
        if not self._presence.is_moving(now_ms):  # nobody sees how the forming minute ends
            self._minutes.interrupted()
        outcome.dead = is_dead
        outcome.checked, outcome.mismatched = checked, mismatched
        holes_changed = self.coverage.answered(window, self._until(now_ms), now_ms, unreadable)
        if holes_changed or window.urgency not in (Urgency.CONFIRM, Urgency.PRESENT):
            outcome.healed = Range(window.start_ms, window.end_ms)
        return outcome

    def failed(self, reason: str) -> None:
        """Note that REST could not be asked, or did not answer as documented."""
        self.trouble = reason
        self._presence.on_failure()

    def interrupted(self) -> None:
        """Note that the stream broke."""
        self._presence.on_interruption()
        self._idle_until_ms = 0
        self._minutes.interrupted()

    @property
    def awaits_late_versions(self) -> bool:
        """Whether `settle` will have something to say before long."""
        return self._minutes.awaits_late_versions

    def settle(self, now_ms: int) -> list[Candle]:
        """The minutes that became final because their late versions had their chance."""
        settled = self._minutes.settle(now_ms)
        for candle in settled:
            self.coverage.add(candle.open_ms, confirmed=False)
        return settled

    # ------------------------------------------------------------ what to do next

    def want(self, now_ms: int, pace_ms: int = POLL_MS) -> Window | None:
        """The next request for history, if there is one to make; for the present at most every `pace_ms`."""
        window = self._want_missing(now_ms)
        if (window is not None and window.urgency is Urgency.RECENT) or not self._presence.is_due(now_ms, pace_ms):
            return window
        end_ms = MINUTE.floor(now_ms) + MINUTE_MS
        start_ms = end_ms - 2 * MINUTE_MS if self.newest_ms is None else self.newest_ms
        if not self.coverage.has(start_ms - MINUTE_MS):  # REST says how it ended
            start_ms -= MINUTE_MS
        first_ms = max(start_ms, end_ms - self._rules.history_minutes * MINUTE_MS)
        return Window(Urgency.PRESENT, min(first_ms, end_ms - MINUTE_MS), end_ms)

    def _want_missing(self, now_ms: int) -> Window | None:
        until_ms = self._until(now_ms)
        if until_ms < self._idle_until_ms:
            return None
        confirm_until_ms = until_ms if self._rules.confirm else 0
        window = self.coverage.want(until_ms, now_ms, self._rules.history_minutes, confirm_until_ms)
        if window is None:
            self._idle_until_ms = until_ms + MINUTE_MS
        return window

    def forming(self) -> list[Candle]:
        """Return the minutes that are not final as they stand, oldest first."""
        return self._minutes.forming

    def missing_minutes(self, now_ms: int) -> int:
        """Count the minutes that are neither there nor known not to exist, up to two minutes ago.

        What lies before a minute that was restored at the start is counted without delay: it was lost then.
        """
        until_ms = now_ms - _ON_THEIR_WAY_MS
        missing = self.coverage.missing(self.coverage.from_ms, until_ms)
        if self._restored:
            for start_ms, end_ms in self.coverage.missing(until_ms, self._restored[-1].open_ms):
                missing.add(start_ms, end_ms)
            for candle in self._restored:
                if candle.open_ms >= until_ms:
                    missing.remove(candle.open_ms, candle.open_ms + MINUTE_MS)
        return missing.total_ms // MINUTE_MS

    def facts(self, logged_seq: int) -> Facts:
        """What can be said of the market with its next message."""
        settled_ms = self._minutes.settled_ms
        if settled_ms is None:
            return Facts(logged_seq=logged_seq)
        known = self.coverage.version, settled_ms
        if known != self._gap_of:
            since_ms = self.coverage.from_ms if self.coverage.since_ms is None else self.coverage.since_ms
            missing = self.coverage.missing(since_ms, settled_ms)
            self._gap = next(iter(missing)).hull(missing.last) if missing else None
            self._gap_of = known
        return Facts(settled_ms, self._gap, logged_seq)

    def lost(self, open_ms: int) -> None:
        """Note that the store had no room for a final minute: it will be asked for again."""
        self.coverage.lost(open_ms, open_ms + MINUTE_MS)
        self._idle_until_ms = 0

    def compare(self, held: RangeSet, stored: RangeSet, span: Range) -> tuple[RangeSet, RangeSet]:
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
                self.coverage.lost(start_ms, end_ms)
        for start_ms, end_ms in lost:
            self._lost_before.add(start_ms, end_ms)
        known = self.coverage.held(*span)
        for start_ms, end_ms in stored:
            for find in known.missing(start_ms, end_ms):
                new.add(*find)
                self.coverage.found(*find)
        if lost:
            self._idle_until_ms = 0
        return lost, new

    def condition(self, now_ms: int) -> Condition:
        """Return the state of the market, one of `candled.model.STATES`, and the reason for it."""
        standing = self._presence.standing(now_ms)
        if standing == "unknown":
            return self._unknown(now_ms)
        if self._lacks_week(now_ms):
            return Condition("warming", "fetching")
        if self._lacks_recent(self._until(now_ms)):
            return Condition("recovering", "fetching")
        if standing == "moving":
            return Condition("live")
        reason = self._stream_trouble
        if standing == "quiet" and reason is None:
            return Condition("quiet", "no_trades")
        return Condition("polling", reason or "stream_silent")

    def _unknown(self, now_ms: int) -> Condition:
        """Return the condition of a market that neither the stream nor REST vouches for."""
        if self.trouble is None and self._lacks_week(now_ms):
            return Condition("warming", "fetching" if self._was_answered else "starting")
        if self._stream_trouble is not None:
            return Condition("stale", self._stream_trouble)
        if self.trouble is not None:
            return Condition("stale", "rest_unavailable")
        is_fresh = self.pushed_ms is None and not self._was_answered
        return Condition("stale", "starting" if is_fresh else "unconfirmed_silence")

    def _lacks_week(self, now_ms: int) -> bool:
        """Return whether the running week is not complete yet."""
        since_ms = self.coverage.since_ms
        return since_ms is None or since_ms > max(_WEEK.floor(now_ms), self.coverage.from_ms)

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
    def holes(self) -> list[Hole]:
        """The minutes the exchange itself does not have, but for the time before its history begins."""
        return [hole for hole in self.coverage.holes if hole.reason != "beyond_history"]

    @property
    def trouble_text(self) -> str | None:
        """Everything that is wrong, in words; None where nothing is."""
        return "; ".join(text for text in (self.refused, self.unlisted, self.trouble) if text) or None

    # ------------------------------------------------------------ inside

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
            self._recent_lacks = bool(self.coverage.missing(until_ms - RECENT_MS, until_ms - MINUTE_MS))
        return self._recent_lacks

    def _until(self, now_ms: int) -> int:
        """Minutes before this should be here by now."""
        return MINUTE.floor(now_ms - self._rules.settle_ms - _PATIENCE_MS)

    def _drop(self, row: InvalidRow, now_ms: int) -> None:
        """Count a row that cannot be a candle."""
        if self.complaints.note(row.reason, now_ms):
            logger.warning("%s: dropped a row that cannot be a candle, counting more: %s", self.key, row.reason)

    def log_recovery(self, now_ms: int) -> None:
        """Log the end of a series of rows that could not be read."""
        dropped = self.complaints.ended(now_ms)
        if dropped > 1:
            logger.info("%s: no more rows that cannot be candles; %d were dropped", self.key, dropped)

    def _valid(self, candles: Sequence[Candle], now_ms: int, src: str) -> list[Candle]:
        valid = []
        for candle in candles:
            try:
                stamped = Candle(*candle[:7], candle.as_of_ms or now_ms, candle.final, candle.rev, src)
                check(stamped)
                if stamped.open_ms > now_ms + _FUTURE_MS:
                    raise InvalidCandle(f"expected a minute that has begun by {now_ms}, got {stamped}")
            except InvalidCandle as error:
                self._drop(InvalidRow(candle.open_ms, str(error)), now_ms)
                continue
            valid.append(stamped)
        return sorted(valid) if len(valid) > 1 else valid

    def _take(self, candles: list[Candle], now_ms: int, *, confirmed: bool) -> Outcome:
        """Take candles, oldest first."""
        outcome = Outcome()
        newest_ms = candles[-1].open_ms if candles else 0
        for candle in candles:
            if self._minutes.reaches(candle.open_ms, now_ms) and newest_ms - candle.open_ms < WINDOW_MS:
                self._take_live(candle, now_ms, outcome, confirmed=confirmed)
            elif self._is_over(candle) and self._is_wanted(candle.open_ms):
                outcome.past.append(candle._replace(final=True, rev=self._missed(candle)))
                self.coverage.add(candle.open_ms, confirmed=True)
        outcome.healed = outcome.past_range
        return outcome

    def _is_wanted(self, open_ms: int) -> bool:
        """Whether the store should get the exchange's word on a minute that is no longer held here."""
        return not self.coverage.has(open_ms) or self.coverage.awaits_confirmation(open_ms)

    def _take_live(self, candle: Candle, now_ms: int, outcome: Outcome, *, confirmed: bool) -> None:
        held = self._minutes.get(candle.open_ms)
        if held is None and self._missed(candle):
            candle = candle._replace(rev=1)
        news = self._minutes.offer(candle, now_ms)
        if self._is_over(candle) and (confirmed or news is not None):
            if news is None and not self.coverage.has(candle.open_ms):
                news = self._minutes.get(candle.open_ms)  # the store has lost it, and gets it once more
            self.coverage.add(candle.open_ms, confirmed=confirmed)
        if news is None:
            return
        if held is not None and held.final and held.values != news.values:
            self.revisions += 1
        self._compare_with_previous(news, held)
        outcome.live.append(news)

    def _missed(self, candle: Candle) -> int:
        """1 for a minute that was taken not to exist: bars were final without it, so that it revises them."""
        return int(self.coverage.was_absent(candle.open_ms))

    def _compare_with_previous(self, candle: Candle, held: Candle | None) -> None:
        """Where candles open at the close of the one before, a difference betrays a missed push."""
        previous = self._minutes.get(candle.open_ms - MINUTE_MS)
        if self._rules.opens_at_close and held is None and previous is not None and previous.close != candle.open:
            self.coverage.doubt(previous.open_ms)
            self._idle_until_ms = 0

    def _is_over(self, candle: Candle) -> bool:
        return candle.final or candle.as_of_ms >= candle.open_ms + MINUTE_MS + self._rules.settle_ms

    def _compare(self, window: Window, rows: list[Candle], unreadable: RangeSet, now_ms: int) -> tuple[int, int]:
        """How many final minutes REST speaks of for the first time, and of how many it has another version."""
        theirs = {row.open_ms: row for row in rows}
        checked = mismatched = 0
        for open_ms in self.coverage.unconfirmed(window.start_ms, min(window.end_ms, self._until(now_ms))):
            ours = self._minutes.get(open_ms)
            if ours is None or not ours.final or open_ms in unreadable or self.coverage.was_deferred(open_ms):
                continue
            row = theirs.get(open_ms)
            checked += 1
            mismatched += row is None or (row.values != ours.values and row.supersedes(ours))
        return checked, mismatched

    def _judge_silence(self, window: Window, rows: list[Candle], now_ms: int) -> bool:
        """Take REST's answer about the present; return whether it shows a subscription that is dead."""
        verdict = self._presence.judge(rows, window.start_ms, self._minutes.get, now_ms)
        if verdict == "nothing":
            self.trouble = "the exchange's REST API answers with nothing for minutes that it had"
        last_ms = self.pushed_ms
        is_certain = any(
            row.volume > 0 and self._is_over(row) and (last_ms is None or row.open_ms >= last_ms) for row in rows
        )
        return verdict == "traded" and self.connected and is_certain
