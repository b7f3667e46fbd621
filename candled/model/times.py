"""Times: UTC epoch milliseconds internally, ISO 8601 with milliseconds and `Z` externally."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH, _MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
YEAR_10000_MS = 253_402_300_800_000
"""The first time that ISO 8601 cannot express."""

_MINUTES = tuple(f"{hour:02}:{minute:02}:00.000Z" for hour in range(24) for minute in range(60))


@lru_cache(maxsize=4096)
def _day(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%dT")


def iso_ms(at_ms: int) -> str:
    """Format UTC epoch milliseconds as `2024-10-24T10:00:00.000Z`."""
    day, rest = divmod(at_ms, 86_400_000)
    if rest % 60_000 == 0:  # the start of every bar
        return _day(day) + _MINUTES[rest // 60_000]
    seconds, ms = divmod(rest, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{_day(day)}{hour:02}:{minute:02}:{second:02}.{ms:03}Z"


def parse_iso_ms(text: str) -> int:
    """Parse an ISO 8601 time as UTC epoch milliseconds. A time without an offset is UTC.

    Raises:
        ValueError: the text is not an ISO 8601 time.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MS
