"""Intervals, and the function that maps a time to the start of its bar."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

_UNIT_MS = {"m": 60_000, "h": 3_600_000, "D": 86_400_000, "W": 604_800_000}
MINUTE_MS, DAY_MS, _WEEK_MS = _UNIT_MS["m"], _UNIT_MS["D"], _UNIT_MS["W"]
_FIRST_MONDAY_MS = 4 * DAY_MS  # the epoch was a Thursday
_PATTERN = re.compile(r"([1-9][0-9]{0,5})([a-zA-Z])")


class Interval(NamedTuple):
    """The length of a bar: `1m`, `5m`, `4h`, `1D`, `1W`. Ordered by length; `str()` and `parse` are inverses.

    Bars are aligned to UTC: an interval that divides a day starts at 00:00 UTC, a week on Monday at 00:00 UTC.
    """

    ms: int
    text: str

    @staticmethod
    def parse(text: str) -> "Interval":
        """Parse `<number><m|h|D|W>`.

        Raises:
            ValueError: the text has another form, is not the standard spelling of its length, or has no bar boundary
                that all charts agree on. The message gives the reason.
        """
        return _parse(text)

    @staticmethod
    def of_ms(ms: int) -> "Interval":
        """Return the interval with a length of `ms` milliseconds.

        Raises:
            ValueError: no interval has that length.
        """
        if ms <= 0 or ms % _UNIT_MS["m"]:
            raise ValueError(f"no interval is {ms} ms long")
        return _parse(_spelling(ms))

    def __str__(self) -> str:
        return self.text

    def floor(self, at_ms: int) -> int:
        """Return the start of the bar that contains `at_ms`, both in UTC epoch milliseconds."""
        if self.ms == _WEEK_MS:
            return at_ms - (at_ms - _FIRST_MONDAY_MS) % _WEEK_MS
        return at_ms - at_ms % self.ms

    def nests_in(self, longer: "Interval") -> bool:
        """Return whether every bar of `longer` is made up of complete bars of this interval."""
        return longer.ms % self.ms == 0


@lru_cache(maxsize=256)
def _parse(text: str) -> Interval:
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a number and one of m, h, D, W, for instance 5m or 1D; got {text!r}")
    count, unit = int(match[1]), match[2]
    if unit not in _UNIT_MS:
        swapped = unit.swapcase()
        hint = f"; did you mean {count}{swapped}?" if swapped in _UNIT_MS else ""
        raise ValueError(f"unknown unit {unit!r} in {text!r}: expected m, h, D or W{hint}")
    ms = count * _UNIT_MS[unit]
    shortest = _spelling(ms)
    if ms not in (DAY_MS, _WEEK_MS) and ms >= DAY_MS:
        raise ValueError(
            f"{text} cannot be aligned: above a day only 1W (from Monday 00:00 UTC) has a first bar all charts agree on"
        )
    if ms < DAY_MS and DAY_MS % ms:
        raise ValueError(
            f"{text} cannot be aligned: it does not divide a day, so bars would start at other times each day"
        )
    if shortest != text:
        raise ValueError(f"write {shortest} instead of {text}")
    return Interval(ms, text)


def _spelling(ms: int) -> str:
    """Return the standard spelling of a length: in the largest unit that divides it."""
    unit = next(unit for unit in ("W", "D", "h", "m") if ms % _UNIT_MS[unit] == 0)
    return f"{ms // _UNIT_MS[unit]}{unit}"


def sources(intervals: Iterable[Interval]) -> dict[Interval, Interval]:
    """Map each interval above 1m to the longest other interval it can be folded from, shortest first.

    Folding 1W from seven days gives the same digits as folding it from 10,080 minutes, because sums are exact.
    """
    result: dict[Interval, Interval] = {}
    shorter: Sequence[Interval] = [MINUTE]
    for interval in sorted(set(intervals) - {MINUTE}):
        result[interval] = max(candidate for candidate in shorter if candidate.nests_in(interval))
        shorter = [*shorter, interval]
    return result


MINUTE = Interval.parse("1m")
DAY = Interval.parse("1D")
WEEK = Interval.parse("1W")
DEFAULT_INTERVALS = tuple(Interval.parse(text) for text in ("1m", "5m", "15m", "1h", "4h", "1D", "1W"))
