"""Mistakes of a description that a recording shows: units, columns, currencies."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from math import gcd

from candled.model import DAY_MS, MINUTE_MS, Candle

from .recording import COMPLETE, Closed, Opened, Recording

_MANY = 4  # candles that show their interval

_UNITS = ((Decimal(1000), "seconds"), (Decimal("0.001"), "microseconds"), (Decimal("0.000001"), "nanoseconds"))
_HOUR_MS = 60 * MINUTE_MS
_FARTHEST_ZONE = 14  # hours
_TOLERANCE_MS = 5_000  # between the clocks of the recorder and of the exchange
_LATE_MS = 3 * MINUTE_MS
_FEW = Decimal("0.1")  # the share of minutes that may differ for reasons of the exchange
_MARGIN = Decimal("0.02")


def explain_unit(open_ms: int, at_ms: int) -> str:
    """Return the mistake if an opening time that a plugin read as milliseconds is in another unit; else ""."""
    for factor, unit in _UNITS:
        if abs(at_ms - open_ms * factor) <= DAY_MS:
            return f"the opening time is in {unit}, but the plugin reads it as milliseconds"
    return ""


def explain_time(open_ms: int, at_ms: int) -> str:
    """Return the mistake that explains an opening time in a frame that arrived at `at_ms`."""
    if unit := explain_unit(open_ms, at_ms):
        return unit
    age_ms = at_ms - open_ms
    if -MINUTE_MS - _TOLERANCE_MS <= age_ms < 0:
        return "The plugin takes the closing time for the opening time"
    hours = round(-age_ms / _HOUR_MS)
    if hours and abs(hours) <= _FARTHEST_ZONE and 0 <= age_ms + hours * _HOUR_MS + _TOLERANCE_MS <= _LATE_MS:
        return f"The opening time is in another time zone, {hours:+d} hours from UTC"
    return "Is it another unit, or another time zone?"


def judge_connection(recording: Recording) -> tuple[bool | None, str]:
    """Check that the exchange did not end a connection."""
    opened = {one.connection: one.at_ms for one in recording.select(Opened)}
    ended = [one for one in recording.select(Closed) if one.reason != COMPLETE]
    if not ended:
        return True, f"{len(opened)} connections" if opened else "there was none"
    first = ended[0]
    began_ms = opened.get(first.connection)
    age = f" after {(first.at_ms - began_ms) / 1000:.0f} s" if first.at_ms and began_ms else ""
    return False, (
        f"{len(ended)} connections ended, the first{age}: {first.reason}. "
        "Does the exchange expect a ping, or an answer to its own?"
    )


def judge_interval(pages: Iterable[Sequence[int]], streamed: Sequence[int]) -> tuple[bool | None, str]:
    """Check that the rows of pages, and the candles of the stream, can be a minute apart."""
    longest = 0
    for name, times in [*(("rows of a page", page) for page in pages), ("candles of the stream", streamed)]:
        steps = {other - one for one, other in pairwise(times)}
        if len(times) >= _MANY and (step := gcd(*steps)) > MINUTE_MS:
            return False, f"the {name} are {step // MINUTE_MS} minutes apart: is it another interval?"
        longest = max(longest, len(times))
    return True, f"{longest} in a row"


def judge_versions(versions: Mapping[int, Sequence[Candle]]) -> tuple[bool | None, str]:
    """Check that a minute keeps its open while it forms, and that its range and its volume only grow."""
    pairs = [(one, other) for found in versions.values() for one, other in pairwise(found)]
    if not pairs:
        return None, "no minute has two versions"
    reasons = {
        "the open changes within a minute: are the columns of open and close interchanged, or is it the last price?": [
            one.open != other.open for one, other in pairs
        ],
        "the high falls within a minute: does the candle cover another interval?": [
            other.high < one.high for one, other in pairs
        ],
        "the low rises within a minute: does the candle cover another interval?": [
            other.low > one.low for one, other in pairs
        ],
        "the volume falls within a minute: is it that of one trade, or of the last 24 hours?": [
            other.volume < one.volume for one, other in pairs
        ],
    }
    for reason, wrong in reasons.items():
        if sum(wrong) > len(pairs) * _FEW:
            return False, f"{reason} ({sum(wrong)} of {len(pairs)} versions)"
    return True, f"{len(pairs)} versions"


def judge_volumes(versions: Mapping[int, Sequence[Candle]], minutes: Mapping[int, Candle]) -> tuple[bool | None, str]:
    """Check that the volumes of the stream and of REST are in the same currency."""
    both = [
        (found[-1], minutes[at])
        for at, found in versions.items()
        if at in minutes and found[-1].volume and minutes[at].volume
    ]
    if not both:
        return None, "no traded minute comes from both the stream and REST"
    for name, pairs in (("the stream", both), ("REST", [(rest, live) for live, rest in both])):
        quoted = [
            one for one, other in pairs if one.volume != other.volume and _is_within(one.volume, other.volume, other)
        ]
        if len(quoted) * 2 > len(both):
            return False, f"the volume of {name} is in quote currency ({len(quoted)} of {len(both)} minutes)"
    return True, f"{len(both)} minutes"


def _is_within(quote: Decimal, base: Decimal, candle: Candle) -> bool:
    return candle.low * (1 - _MARGIN) <= quote / base <= candle.high * (1 + _MARGIN)
