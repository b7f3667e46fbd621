"""The work with Redis that fails at present: for `/health`, and for a log line whenever that changes."""

import logging
import re
from collections.abc import Awaitable, Callable, Hashable

from candled.exchange import Clock

logger = logging.getLogger(__name__)

_RECOVERED_S = 5.0  # work has recovered when it has not failed for this long
_ALL = "all"


class FailureRecord:
    """One kind of work with Redis, such as publishing, and the reasons why it or some of its parts fail.

    Each kind of failure is logged once, until the work has succeeded for a while.
    """

    def __init__(self, work: str, clock: Clock, *, vital: bool) -> None:
        self.work = work
        self.is_vital = vital  # True if clients are not served properly without this work
        self.failure_count = 0
        # Repeats the work without side effects. Set for work that may not be needed for hours.
        self.retry: Callable[[], Awaitable[None]] | None = None
        #: The parts that fail at present, each with its reason.
        self.parts: dict[Hashable, str] = {}
        self._clock = clock
        self._logged: set[str] = set()
        self._working_since = 0.0

    @property
    def reason(self) -> str | None:
        """The reason why the work fails at present; None if it does not."""
        return next(iter(self.parts.values()), None)

    def record_failure(self, reason: str, *parts: Hashable) -> None:
        """Record a failure of some parts, or of the whole if none are given."""
        self.failure_count += 1
        for part in parts or (_ALL,):
            self.parts[part] = reason
        kind = re.sub(r"\d+", "#", reason)[:100]
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning("Redis: %s: %s; trying again", self.work, reason)

    def record_success(self, *parts: Hashable) -> None:
        """Record that some parts succeeded or are not needed any more, or the whole if none are given."""
        if not self.parts:
            return
        for part in parts or (_ALL,):
            self.parts.pop(part, None)
        if not self.parts:
            self._working_since = self._clock.monotonic()

    def log_recovery(self) -> None:
        """Log that the work succeeds again, once it has done so for a while."""
        if self._logged and not self.parts and self._clock.monotonic() - self._working_since >= _RECOVERED_S:
            logger.info("Redis: %s: works again, after %d failures", self.work, self.failure_count)
            self._logged.clear()
            self.failure_count = 0


class FailureLog:
    """All kinds of work that one process does with its Redis."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: list[FailureRecord] = []

    def record_of(self, work: str, *, vital: bool = True) -> FailureRecord:
        """Add a kind of work, and return its record."""
        self._all.append(FailureRecord(work, self._clock, vital=vital))
        return self._all[-1]

    @property
    def is_vital(self) -> bool:
        """True if work fails on which clients depend."""
        return any(one.is_vital and one.reason is not None for one in self._all)

    @property
    def summary(self) -> str | None:
        """The failing work and the reasons, in words; None if nothing fails."""
        return "; ".join(f"{one.work}: {one.reason}" for one in self._all if one.reason is not None) or None

    async def retry_failed(self) -> None:
        """Retry failed work that does not retry itself, and log work that succeeds again."""
        for one in self._all:
            if one.reason is not None and one.retry is not None:
                await one.retry()
            one.log_recovery()
