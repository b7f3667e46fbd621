"""The order in which groups are due."""

import heapq
from itertools import count

from .room import SubscriberGroup


class GroupSchedule:
    """Groups by the time at which they are due. Pure: times are monotonic seconds."""

    def __init__(self) -> None:
        self._turns = count()  # groups that are due at the same time keep their order
        self._due: list[tuple[float, int, SubscriberGroup]] = []

    def add_group(self, group: SubscriberGroup, at: float) -> None:
        """Run a group at `at`, unless it is due earlier anyway."""
        if group.scheduled_at is None or at < group.scheduled_at:
            group.scheduled_at = at
            heapq.heappush(self._due, (at, next(self._turns), group))

    def pop_due(self, now: float) -> SubscriberGroup | None:
        """Remove and return the next group that is due; None if there is none."""
        while self._due and self._due[0][0] <= now:
            at, _, group = heapq.heappop(self._due)
            if group.scheduled_at == at:
                group.scheduled_at = None
                return group
        return None
