"""The completeness of a market's last days, at a glance. Pure."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from candled.ingest.coverage import Coverage
from candled.model import DAY_MS, MINUTE_MS, Range

DAYS = 92
_ARRIVING_MS = 2 * MINUTE_MS  # minutes this young may not be final and confirmed yet
# The levels of a day, from the worst: most minutes are missing, some are, only minutes without trades are, or none is.
# `NONE` is a day without history: before the exchange's own, or before the time that is to be stored.
FEW, SOME, CALM, FULL, NONE = "m", "s", "q", "f", "n"


def last_days(now_ms: int) -> list[Range]:
    """Return the last `DAYS` UTC days, oldest first. The last one ends where minutes may not have arrived yet."""
    end_ms = now_ms - now_ms % MINUTE_MS - _ARRIVING_MS
    today_ms = end_ms - 1 - (end_ms - 1) % DAY_MS
    first_ms = today_ms - (DAYS - 1) * DAY_MS
    return [Range(at_ms, min(at_ms + DAY_MS, end_ms)) for at_ms in range(first_ms, end_ms, DAY_MS)]


def grade_day(coverages: Sequence[Coverage], day: Range) -> str:
    """Return the level of a day of a market. `coverages` are the market's, the newest first."""
    expected = absent = quiet = beyond = 0
    end_ms = day.end_ms
    for coverage in coverages:
        start_ms = max(day.start_ms, coverage.from_ms)
        if start_ms >= end_ms:
            continue
        expected += (end_ms - start_ms) // MINUTE_MS
        if not coverage.is_stored(start_ms, end_ms):
            absent += coverage.count_missing(start_ms, end_ms)
            known = coverage.count_known(start_ms, end_ms)
            quiet += known["no_trades"]
            beyond += known["beyond_history"]
        end_ms = start_ms
    return _grade(expected - beyond, absent - quiet - beyond, quiet)


def join_equal(levels: Iterable[str]) -> str:
    """Return levels in runs, such as `n30f62`."""
    return "".join(f"{level}{len(list(run))}" for level, run in groupby(levels))


def _grade(expected: int, missing: int, quiet: int) -> str:
    if expected <= 0:
        return NONE
    if missing <= 0:
        return CALM if quiet else FULL
    return SOME if missing * 2 < expected else FEW
