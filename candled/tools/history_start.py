"""Finds where an exchange's history of a market begins, by halving."""

from collections.abc import Awaitable, Callable

from candled.model import DAY_MS, MINUTE, MINUTE_MS, Range

# The oldest time that is searched: no exchange has older candles by the minute.
EARLIEST_MS = 946_684_800_000  # 2000-01-01T00:00Z
# An outage of the exchange can look like the time before its history. So minutes at these distances before the found
# beginning are asked for too.
_SECOND_LOOKS_MS = tuple(days * DAY_MS for days in (1, 7, 30, 180, 720))

Ask = Callable[[Range], Awaitable[int | None]]


async def find_beginning(ask: Ask, earliest_ms: int, known_ms: int, width_ms: int) -> int:
    """Return the opening time of the oldest candle since `earliest_ms`, given that there is one at `known_ms`.

    `ask` returns the oldest minute that the exchange has in a range of at most `width_ms`. All times are UTC epoch
    milliseconds. 25 years take about 25 requests.
    """
    while True:
        known_ms = await _halve(ask, earliest_ms, known_ms, width_ms)
        older_ms = await _older(ask, earliest_ms, known_ms, width_ms)
        if older_ms is None:
            return known_ms
        known_ms = older_ms


async def find_any(ask: Ask, earliest_ms: int, until_ms: int, width_ms: int) -> int | None:
    """Return any minute that the exchange has, searched in growing steps back from `until_ms`; None if it has none."""
    step_ms = width_ms
    end_ms = until_ms
    while end_ms > earliest_ms:
        found_ms = await ask(Range(max(earliest_ms, end_ms - width_ms), end_ms))
        if found_ms is not None:
            return found_ms
        end_ms -= step_ms
        step_ms *= 2
    return None


async def _halve(ask: Ask, empty_ms: int, known_ms: int, width_ms: int) -> int:
    """Return the opening time of the oldest candle that halving finds between `empty_ms` and `known_ms`."""
    while empty_ms < known_ms:
        is_last = known_ms - empty_ms <= width_ms
        start_ms = empty_ms if is_last else MINUTE.floor((empty_ms + known_ms) // 2)
        end_ms = min(known_ms, start_ms + width_ms)
        found_ms = await ask(Range(start_ms, end_ms))
        if found_ms is None:
            empty_ms = end_ms
        elif is_last:
            return found_ms
        else:
            known_ms = found_ms
    return known_ms


async def _older(ask: Ask, earliest_ms: int, known_ms: int, width_ms: int) -> int | None:
    for back_ms in _SECOND_LOOKS_MS:
        end_ms = known_ms - back_ms
        start_ms = max(earliest_ms, end_ms - max(MINUTE_MS, width_ms))
        if start_ms >= end_ms:
            return None
        found_ms = await ask(Range(start_ms, end_ms))
        if found_ms is not None:
            return found_ms
    return None
