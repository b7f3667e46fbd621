"""Minutes to ask an exchange for again: gaps on its side, and final minutes that it has not confirmed yet."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from candled.model import DAY_MS, MINUTE_MS, Gap, Range, RangeSet

Absence = Literal["exchange_outage", "no_trades"]

# The waits before the exchange is asked again for missing minutes, one per unsuccessful answer, and the wait after
# those. Requests never stop, because an exchange that returns nothing may be wrong. If it does not publish minutes
# without trades, every thin market has hundreds of missing minutes a day: they are requested a few times at first, and
# later many of them in one request.
_RETRY_MS: dict[str, tuple[int, ...]] = {
    "exchange_outage": (60_000, 600_000, 3_600_000, 21_600_000, 43_200_000, *[DAY_MS] * 7),
    "no_trades": (600_000, 21_600_000, *[DAY_MS] * 7),
    "invalid": (60_000, 300_000, 1_800_000, 7_200_000, 21_600_000),
    "unconfirmed": (60_000, 600_000, 3_600_000),
    "beyond_history": (DAY_MS, 7 * DAY_MS),
}
_ENDLESS_MS = {
    "exchange_outage": 30 * DAY_MS,
    "no_trades": 30 * DAY_MS,
    "invalid": DAY_MS,
    "unconfirmed": 21_600_000,
    "beyond_history": 30 * DAY_MS,
}
# A final minute that REST does not confirm is requested again for this long; then the stream's version is kept.
_DEFERRED_MS = DAY_MS


def absence_reason(*, publishes_empty_candles: bool) -> Absence:
    """Return the reason for minutes that an exchange does not have."""
    return "exchange_outage" if publishes_empty_candles else "no_trades"


def make_gap(start_ms: int, end_ms: int, reason: str, attempts: int, now_ms: int) -> Gap:
    """Return a gap after `attempts` answers without its minutes."""
    retry_ms = retry_time(reason, attempts, now_ms)
    return Gap(start_ms=start_ms, end_ms=end_ms, reason=reason, attempts=attempts, retry_ms=retry_ms)


def retry_time(reason: str, attempts: int, now_ms: int) -> int:
    """Return when to ask again after `attempts` answers without a minute."""
    waits_ms = _RETRY_MS[reason]
    return _shared_time(now_ms, waits_ms[attempts - 1] if attempts <= len(waits_ms) else _ENDLESS_MS[reason])


def postpone(known_gap: Gap, now_ms: int) -> Gap:
    """Return a gap with a new retry time after an answer that is no evidence. The wait stays as long as before."""
    if known_gap.retry_ms is None or known_gap.retry_ms > now_ms:
        return known_gap
    return replace(known_gap, retry_ms=retry_time(known_gap.reason, known_gap.attempts, now_ms))


def _shared_time(now_ms: int, wait_ms: int) -> int:
    """Return a time one to one and a half waits from now.

    It is rounded, so that minutes missed at different times come due together and need only one request.
    """
    step_ms = wait_ms // 2
    return -(-(now_ms + wait_ms) // step_ms) * step_ms


@dataclass(frozen=True, slots=True)
class _Deferred:
    """A final minute that REST did not confirm, and the time of the next request."""

    #: The time of the first answer that did not confirm it, UTC epoch milliseconds.
    since_ms: int
    #: The number of such answers so far. An answer with an older version of the minute begins the count again at 1.
    attempts: int
    #: The time of the next request, UTC epoch milliseconds.
    retry_ms: int


class UnconfirmedMinutes:
    """The final minutes of one market that REST has not confirmed, as a set of opening times.

    Pure; all times are UTC epoch milliseconds on the exchange's clock.

    A minute leaves the set when REST has answered without confirming it, and comes back when it is due again.
    """

    def __init__(self, absence: Absence) -> None:
        self._absence: Absence = absence
        self._due = RangeSet()
        self._deferred: dict[int, _Deferred] = {}  # keys are opening times
        self._resume_ms: int | None = None  # when the first of them is due

    def __contains__(self, open_ms: int) -> bool:
        return open_ms in self._due

    @property
    def minute_count(self) -> int:
        """The number of minutes, including those that are not due."""
        return self._due.total_ms // MINUTE_MS + sum(open_ms not in self._due for open_ms in self._deferred)

    @property
    def oldest(self) -> Range | None:
        """The oldest range of minutes; None if there are none."""
        return next(iter(self._due), None)

    def minutes_within(self, start_ms: int, end_ms: int) -> Iterator[int]:
        """Yield the opening times in `[start_ms, end_ms)`."""
        for first_ms, stop_ms in self._due.common(RangeSet([(start_ms, end_ms)])):
            yield from range(first_ms, stop_ms, MINUTE_MS)

    def end_within(self, start_ms: int, end_ms: int) -> int:
        """Return the end of the newest minutes in `[start_ms, end_ms)`; 0 if there are none."""
        last = self._due.common(RangeSet([(start_ms, end_ms)])).last
        return 0 if last is None else last.end_ms

    def was_deferred(self, open_ms: int) -> bool:
        """Return whether REST has already answered without confirming this minute."""
        return open_ms in self._deferred

    def add_range(self, start_ms: int, end_ms: int) -> None:
        """Add the minutes of `[start_ms, end_ms)`."""
        self._due.add(start_ms, end_ms)

    def remove_range(self, start_ms: int, end_ms: int) -> None:
        """Remove the minutes of `[start_ms, end_ms)`: confirmed, or not stored any more."""
        self._due.remove(start_ms, end_ms)
        if end_ms - start_ms == MINUTE_MS:
            self._deferred.pop(start_ms, None)
            return
        for open_ms in [known for known in self._deferred if start_ms <= known < end_ms]:
            del self._deferred[open_ms]

    def defer_range(self, start_ms: int, end_ms: int, unreadable: RangeSet, outdated: RangeSet, now_ms: int) -> None:
        """Schedule another request for the minutes for which an answer had no row, or no readable one."""
        for open_ms in self.minutes_within(start_ms, end_ms):
            known = self._deferred.get(open_ms)
            attempts = 1 if known is None else known.attempts + 1
            since_ms = now_ms if known is None else known.since_ms
            reason = "invalid" if open_ms in unreadable else self._absence
            if open_ms in outdated:
                attempts, reason = 1, "invalid"
            self._deferred[open_ms] = _Deferred(since_ms, attempts, retry_time(reason, attempts, now_ms))
        self._due.remove(start_ms, end_ms)
        for open_ms in [old for old, one in self._deferred.items() if now_ms - one.since_ms > _DEFERRED_MS]:
            del self._deferred[open_ms]
        self._resume_ms = min((one.retry_ms for one in self._deferred.values()), default=None)

    def resume_due(self, now_ms: int) -> None:
        """Add the deferred minutes that are due again."""
        if self._resume_ms is None or now_ms < self._resume_ms:
            return
        for open_ms, one in self._deferred.items():
            if one.retry_ms <= now_ms:
                self._due.add(open_ms, open_ms + MINUTE_MS)
        self._resume_ms = None  # until the next answer
