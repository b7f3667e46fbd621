"""The numbers of final minutes of the last 24 hours that were compared with REST, and of those that differed."""

from typing import Any

_HOUR_MS = 3_600_000
_HOURS = 24


class Parity:
    """A sliding count by hour: the current one and the 23 before it. Pure: time is an argument, UTC epoch ms."""

    def __init__(self) -> None:
        self._hours: dict[int, tuple[int, int]] = {}

    def count_checked(self, now_ms: int, checked: int, mismatched: int) -> None:
        """Count minutes that were compared now, and those of them that differed."""
        hour = now_ms // _HOUR_MS
        before = self._hours.get(hour, (0, 0))
        self._hours[hour] = before[0] + checked, before[1] + mismatched
        for old in [known for known in self._hours if known <= hour - _HOURS]:
            del self._hours[old]

    def totals(self, now_ms: int) -> tuple[int, int]:
        """Return the number of minutes that were compared, and of those that differed."""
        oldest = now_ms // _HOUR_MS - _HOURS
        counts = [count for hour, count in self._hours.items() if hour > oldest]
        return sum(count[0] for count in counts), sum(count[1] for count in counts)

    def describe(self, now_ms: int) -> dict[str, Any]:
        """Return the counts for `/health`. `ratio` is the share of minutes that agreed, None if none was compared."""
        checked, mismatched = self.totals(now_ms)
        ratio = round(1 - mismatched / checked, 6) if checked else None
        return {"checked24h": checked, "mismatched24h": mismatched, "ratio": ratio}
