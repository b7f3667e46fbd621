"""Times: UTC epoch milliseconds inside, ISO 8601 with milliseconds and `Z` outside."""

from datetime import UTC, datetime
from functools import lru_cache

_DAY_MS = 86_400_000
_MINUTES = tuple(f"{hour:02}:{minute:02}:00.000Z" for hour in range(24) for minute in range(60))


@lru_cache(maxsize=4096)
def _day(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%dT")


def iso_ms(at_ms: int) -> str:
    """Print UTC epoch milliseconds as `2024-10-24T10:00:00.000Z`."""
    day, rest = divmod(at_ms, _DAY_MS)
    if rest % 60_000 == 0:  # as every bar begins
        return _day(day) + _MINUTES[rest // 60_000]
    seconds, ms = divmod(rest, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{_day(day)}{hour:02}:{minute:02}:{second:02}.{ms:03}Z"


def parse_iso_ms(text: str) -> int:
    """Read an ISO 8601 time as UTC epoch milliseconds; a time without an offset is taken as UTC.

    Raises:
        ValueError: not an ISO 8601 time.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * 1000 + moment.microsecond // 1000
