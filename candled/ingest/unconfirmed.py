"""The final minutes of one market that REST has not confirmed yet."""

from collections.abc import Iterator
from dataclasses import dataclass

from candled.model import MINUTE_MS, Range, RangeSet

from .gap_retry import Absence, retry_time

# A final minute that REST does not confirm is requested again for this long; then the stream's version is kept.
_DEFERRED_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class _Deferred:
    """A final minute that REST did not confirm: since when, and when to ask again, in UTC epoch ms."""

    since_ms: int
    attempts: int
    retry_ms: int


class UnconfirmedMinutes:
    """A set of opening times. Pure; all times are UTC epoch milliseconds on the exchange's clock.

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
