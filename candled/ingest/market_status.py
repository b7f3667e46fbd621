"""The state of one market, and the problems that explain it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from candled.exchange import ClosedFlag
from candled.model import MINUTE, MINUTE_MS, WEEK, Candle, MarketState, State, StateReason
from candled.model.texts import printable

from .minutes import RECENT_MS

if TYPE_CHECKING:
    from .coverage import Coverage
    from .presence import Presence

# REST is asked for a missing minute only this long after its end: until then it may still arrive.
_ARRIVAL_MARGIN_MS = 10_000
MAX_PROBLEM = 300  # characters of an error text, which may contain the exchange's
# The states of trading in which no candles are expected.
_NOT_TRADED: Mapping[str | None, StateReason] = {
    "upcoming": "not_open",
    "suspended": "suspended",
    "delisted": "delisted",
}


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
    #: True if every candle opens at the close of the previous one. A difference then reveals a missed push.
    opens_at_previous_close: bool
    #: True if the exchange publishes a candle for a minute without trades.
    publishes_empty_candles: bool
    #: The meaning of `final` in candles of the stream.
    closed_flag: ClosedFlag = "advisory"
    #: How far back the exchange's minutes go, in minutes before the present; None: to the listing of each market.
    history_minutes: int | None = None

    def expected_until(self, now_ms: int) -> int:
        """Return the time before which all minutes should have arrived by now."""
        return MINUTE.floor(now_ms - self.grace_period_ms - _ARRIVAL_MARGIN_MS)

    def has_ended(self, candle: Candle) -> bool:
        """Return whether a candle is from after the end of its minute and the grace period."""
        return candle.final or candle.as_of_ms >= candle.open_ms + MINUTE_MS + self.grace_period_ms


class MarketStatus:
    """Judges a market's state by its coverage, its stream and its REST answers.

    This class is pure: the time is an argument, on the exchange's clock.
    """

    def __init__(self, rules: Rules, coverage: "Coverage", presence: "Presence") -> None:
        self._rules = rules
        self._coverage = coverage
        self._presence = presence
        #: The exchange's reason for rejecting the subscription, until the stream delivers candles.
        self.rejection: str | None = None
        #: The state of trading according to the exchange's list; None before the list was read. Candles from the stream
        #: outweigh it.
        self.listing: MarketState | Literal["unlisted"] | None = None
        #: If the list never contained the symbol, this fact in words.
        self.unlisted: str | None = None
        #: Why REST cannot be used for this market, in words; None if it can.
        self.problem: str | None = None
        #: True once REST has answered for this market.
        self.has_answer = False
        #: True if REST returned data of this market last, False if it denied a minute that exists; None before both.
        self.is_credible: bool | None = None
        self._recent_known: tuple[int, int] | None = None
        self._has_recent_gap = False

    def condition(self, now_ms: int) -> Condition:
        """Return the market's state, one of `candled.model.STATES`, and the reason for it."""
        standing, not_traded = self._presence.standing(now_ms), _NOT_TRADED.get(self.listing)
        if not_traded is not None and standing != "moving":
            return self._condition_without_trading(now_ms, not_traded)
        if standing == "unknown":
            return self._condition_without_evidence(now_ms)
        if self._is_missing_week(now_ms):
            return Condition("warming", self._missing_reason(now_ms))
        if self._is_missing_recent(self._rules.expected_until(now_ms)):
            return Condition("recovering", "fetching" if self.is_rest_usable else "rest_unavailable")
        if standing == "moving":
            return Condition("live")
        reason = self._stream_problem
        if standing == "quiet" and reason is None:
            return Condition("quiet", "no_trades")
        return Condition("polling", reason or "stream_silent")

    def _condition_without_trading(self, now_ms: int, reason: StateReason) -> Condition:
        """Return the condition of a market that is not traded now. Missing history counts only if it is suspended."""
        if reason == "suspended" and self.has_answer and self.is_rest_usable:
            if self._is_missing_week(now_ms):
                return Condition("warming", self._missing_reason(now_ms))
            if self._is_missing_recent(self._rules.expected_until(now_ms)):
                return Condition("recovering", "fetching")
        return Condition("quiet", reason)

    def _condition_without_evidence(self, now_ms: int) -> Condition:
        """Return the condition of a market for which neither the stream nor REST provides evidence."""
        is_rejected = self.rejection is not None or self.unlisted is not None
        if not is_rejected and self.problem is None and self._is_missing_week(now_ms):
            return Condition("warming", self._missing_reason(now_ms) if self.has_answer else "starting")
        if self._stream_problem is not None:
            return Condition("stale", self._stream_problem)
        if self.problem is not None:
            return Condition("stale", "rest_unavailable")
        is_fresh = self._presence.pushed_ms is None and not self.has_answer
        return Condition("stale", "starting" if is_fresh else "unconfirmed_silence")

    def _is_missing_week(self, now_ms: int) -> bool:
        """Return whether the current week is not complete yet."""
        since_ms, beginning = self._coverage.since_ms, self._coverage.beginning
        from_ms = max(WEEK.floor(now_ms), self._coverage.from_ms)
        is_unconfirmed = beginning is not None and beginning.reason == "unconfirmed" and beginning.end_ms > from_ms
        return since_ms is None or since_ms > from_ms or is_unconfirmed

    def _missing_reason(self, now_ms: int) -> StateReason:
        """Return why the current week is not complete."""
        if not self.is_rest_usable:
            return "rest_unavailable"
        is_asked = not self._coverage.unasked_within(WEEK.floor(now_ms), self._rules.expected_until(now_ms))
        return "unconfirmed_beginning" if is_asked and self._coverage.beginning is not None else "fetching"

    @property
    def is_rest_usable(self) -> bool:
        """True unless the exchange's REST API fails, or denies minutes that it must have."""
        return self.problem is None and self.is_credible is not False

    @property
    def has_problem(self) -> bool:
        """True if there is a problem besides the exchange's list."""
        return self.is_credible is False or bool(self.rejection or self.problem)

    def describe_problems(self, condition: Condition) -> str | None:
        """Return all problems in the current condition in words, or None."""
        denies = "the exchange's REST API returns nothing for minutes that it had"
        problem = denies if self.is_credible is False else self.problem
        unlisted = self.unlisted if condition.reason == "not_listed" else None
        text = "; ".join(text for text in (self.rejection, unlisted, problem) if text)
        return printable(text, MAX_PROBLEM) or None

    @property
    def _stream_problem(self) -> StateReason | None:
        """The reason why the stream delivers nothing, as far as it is known without REST."""
        if self.unlisted is not None:  # this explains a rejection
            return "not_listed"
        if self.rejection is not None:
            return "subscription_refused"
        if self._presence.connected:
            return None
        return "stream_flooded" if self._presence.is_flooded else "stream_down"

    def _is_missing_recent(self, until_ms: int) -> bool:
        """Return whether minutes of the last two hours are missing.

        The result is cached: it is needed every second but changes once a minute.
        """
        known = self._coverage.version, until_ms
        if known != self._recent_known:
            self._recent_known = known
            self._has_recent_gap = bool(self._coverage.missing_within(until_ms - RECENT_MS, until_ms - MINUTE_MS))
        return self._has_recent_gap
