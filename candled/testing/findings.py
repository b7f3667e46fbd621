"""Judges a plugin by a recording that was played to it: each check is a property that a chart depends on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from candled.exchange import Exchange
from candled.model import MINUTE, MINUTE_MS, Candle, Market, iso_ms

from .mistakes import explain_time, explain_unit
from .recording import Call, Received, Recording
from .replayed import Replay

_MOST_SHOWN = 5
_CLOCK_MS = 10_000  # by which the clocks of the recorder and of the exchange may differ
_STAMP_MS = 60_000  # by which the time in a frame may differ from its arrival
_RARE = 0.1  # the share of candles that may be odd, for instance because volumes are rounded


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check."""

    #: The name of the check, a key of `CHECKS`.
    name: str
    #: True if the plugin has the property; None if the recording does not show it, or if the exchange decides it.
    is_right: bool | None
    #: The evidence, in words; empty if the result needs none.
    detail: str = ""


class _Evidence:
    """A recording, and the results of the plugin on it."""

    def __init__(self, recording: Recording, exchange: Exchange, replay: Replay) -> None:
        self.recording = recording
        self.exchange = exchange
        self.replay = replay
        #: The versions of each minute of the stream.
        self.versions = replay.versions(recording.symbol)

    @property
    def market(self) -> Market | None:
        """The market in the list."""
        listed = self.replay.markets or []
        return next((market for market in listed if market.symbol == self.recording.symbol), None)

    @cached_property
    def whole(self) -> dict[int, Candle]:
        """The last versions of the minutes that were recorded from their beginning to their end."""
        ranges = self.replay.ranges.get("after", [])
        return {
            open_ms: found[-1]
            for open_ms, found in self.versions.items()
            if any(start_ms <= open_ms and open_ms + MINUTE_MS <= end_ms for start_ms, end_ms in ranges)
        }

    @property
    def newest_ms(self) -> int | None:
        """The time of the newest frame, or of the newest call; None if the recording has no times."""
        times = [one.at_ms for one in self.recording.events if isinstance(one, Received | Call) and one.at_ms]
        return max(times, default=None)

    @cached_property
    def candles(self) -> list[Candle]:
        """Every candle, of the stream and of history."""
        history = [row for _, rows in self.replay.pages for row in rows]
        return [*(one for found in self.versions.values() for one in found), *history]


_Result = tuple[bool | None, str]


def _is_read(evidence: _Evidence) -> _Result:
    problems = evidence.replay.problems
    return not problems, "; ".join(problems[:_MOST_SHOWN])


def _has_candles(evidence: _Evidence) -> _Result:
    invalid = evidence.replay.invalid
    at_ms = evidence.newest_ms
    units = {explain_unit(row.open_ms, at_ms) for row in invalid if row.open_ms and at_ms} - {""}
    return not invalid, "; ".join([*units, *(row.reason for row in invalid[:_MOST_SHOWN])])


def _is_listed(evidence: _Evidence) -> _Result:
    recording, replay = evidence.recording, evidence.replay
    asked = any(recording.requests_of(call) for call in recording.select(Call) if call.method == "fetch_markets")
    if replay.markets is None or not asked:
        return None, "the list of markets was not asked for, or could not be read"
    return evidence.market is not None, f"{recording.symbol} of {len(replay.markets)} markets"


def _has_steps(evidence: _Evidence) -> _Result:
    tick_size = None if evidence.market is None else evidence.market.tick_size
    if not tick_size:
        return None, "the list of markets has no tick size"
    odd = sorted({price for one in evidence.candles for price in one[1:5] if price % tick_size})
    return not odd, f"{tick_size}, but {', '.join(map(str, odd[:_MOST_SHOWN]))}" if odd else str(tick_size)


def _delivers(evidence: _Evidence) -> _Result:
    count, frames = sum(map(len, evidence.versions.values())), len(evidence.recording.select(Received))
    return (bool(count) if frames else None), f"{count} in {frames} frames"


def _is_timely(evidence: _Evidence) -> _Result:
    """Compare the newest candle of each frame with the time at which it arrived."""
    newest = list(evidence.replay.newest_candles(evidence.recording.symbol))
    early = [candle.open_ms for at_ms, candle in newest if candle.open_ms > at_ms + _CLOCK_MS]
    late = [candle.open_ms for at_ms, candle in newest if candle.open_ms + 2 * MINUTE_MS + _CLOCK_MS < at_ms]
    if not newest:
        return None, "the recording has no frames with times"
    reasons = [explain_time(candle.open_ms, at_ms) for at_ms, candle in newest if candle.open_ms in (*early, *late)]
    if early:
        return False, f"some open after they arrived: {_list_minutes(early)}. {reasons[0]}"
    if len(late) > len(newest) / 2:
        return False, f"they are old when they arrive: {_list_minutes(late)}. {reasons[0]}"
    over = [candle.open_ms for at_ms, candle in newest if candle.open_ms + MINUTE_MS + _CLOCK_MS < at_ms]
    if len(over) > (1 - _RARE) * len(newest):
        return False, f"each is of a minute that is over: {_list_minutes(over)}. Does the plugin subtract a minute?"
    return True, ""


def _is_stamped(evidence: _Evidence) -> _Result:
    newest = [(at_ms, one) for at_ms, one in evidence.replay.newest_candles(evidence.recording.symbol) if one.as_of_ms]
    wrong = [one.as_of_ms - at_ms for at_ms, one in newest if abs(one.as_of_ms - at_ms) > _STAMP_MS]
    if not newest:
        return None, "the frames have no time"
    return not wrong, f"{wrong[0] / 1000:+.0f} s from the clock of the recorder" if wrong else ""


def _has_base_volume(evidence: _Evidence) -> _Result:
    """Compare the mean price, which is the quotient of the volumes, with the prices."""
    given = [one for one in evidence.candles if one.volume and one.quote_volume]
    if not given:
        return None, "the candles have no quote volume"
    odd = [one for one in given if not one.low <= one.quote_volume / one.volume <= one.high]  # type: ignore[operator]
    # 1 % more is right: sums of rounded amounts, and quiet minutes whose only price is not exact
    far = [one for one in odd if not one.low * 99 / 100 <= (one.quote_volume or 0) / one.volume <= one.high * 101 / 100]
    if len(far) > _RARE * len(given):
        one = far[0]
        problem = f"{one.quote_volume} / {one.volume} is no price between {one.low} and {one.high}"
        is_other = one.low <= one.volume / (one.quote_volume or 1) <= one.high
        return False, f"{problem}: the two volumes are interchanged" if is_other else problem
    return True, ""


def _keeps_final(evidence: _Evidence) -> _Result:
    marked = {at: found for at, found in evidence.versions.items() if any(one.final for one in found)}
    changed = [at for at, found in marked.items() if _has_changed_after_final(found)]
    over = [at for at in evidence.versions if at + MINUTE_MS in evidence.versions]
    if evidence.exchange.closed_flag == "final" and over and not marked:
        return False, f'closed_flag is "final", but none of {len(over)} minutes that ended is marked as closed'
    if evidence.exchange.closed_flag != "final" or not marked:
        return None, f"{len(marked)} minutes are marked, and closed_flag is {evidence.exchange.closed_flag}"
    if changed:
        lie = f"the closed flag lies: {len(changed)} of {len(marked)} changed: {_list_minutes(changed)}"
        return False, f'{lie}. Set closed_flag = "advisory"'
    return True, ""


def _has_changed_after_final(versions: list[Candle]) -> bool:
    first = next((number for number, one in enumerate(versions) if one.final), len(versions))
    return len({_values(one) for one in versions[first:]}) > 1


def _marks_the_past(evidence: _Evidence) -> _Result:
    early = [
        one.open_ms
        for at_ms, one in evidence.replay.newest_candles(evidence.recording.symbol)
        if one.final and at_ms + _CLOCK_MS < one.open_ms + MINUTE_MS
    ]
    lie = f'the closed flag lies: {_list_minutes(early)}. Set closed_flag = "ignored", or do not set `final`'
    return (False, lie) if early else (True, "")


def _opens_at_close(evidence: _Evidence) -> _Result:
    if not evidence.exchange.opens_at_previous_close:
        return None, "the plugin does not promise it"
    odd = [
        two.open_ms
        for call, rows in evidence.replay.pages
        for one, two in pairwise(sorted(rows))
        if call.phase != "later" and one.open_ms + MINUTE_MS == two.open_ms and one.close != two.open
    ]
    return not odd, _list_minutes(odd)


def _has_no_gap(evidence: _Evidence) -> _Result:
    answered = evidence.replay.minutes.get("after", {})
    if not evidence.whole:
        return None, "the recording has no whole minute with both"
    missing = [open_ms for open_ms, one in evidence.whole.items() if one.volume and open_ms not in answered]
    return not missing, f"REST lacks {_list_minutes(missing)}" if missing else ""


def _equals_history(evidence: _Evidence) -> _Result:
    answered, whole = evidence.replay.minutes.get("after", {}), evidence.whole
    both = {at: one for at, one in whole.items() if at in answered}
    if not both:
        return None, "the recording has no whole minute with both"
    differ = [at for at, one in both.items() if _values(one) != _values(answered[at])]
    equal = f"{len(both) - len(differ)} of {len(both)} minutes"
    if not differ:
        return True, equal
    one, other = both[differ[0]], answered[differ[0]]
    names = [name for name, a, b in zip(Candle._fields[1:6], _values(one), _values(other), strict=True) if a != b]
    values = ", ".join(f"{name} {getattr(one, name)} and over REST {getattr(other, name)}" for name in names)
    return False, f"{equal}, not {_list_minutes(differ)}. The first has in the stream {values}"


def _keeps_range(evidence: _Evidence) -> _Result:
    pages = evidence.replay.pages
    outside = [row.open_ms for call, rows in pages for row in rows if row.open_ms not in range(*call.span)]
    twice = [one.open_ms for _, rows in pages for one, two in pairwise(sorted(rows)) if one.open_ms == two.open_ms]
    if not any(rows for _, rows in pages):
        return None, "there are no minutes of history"
    if outside:
        return False, f"outside of the range: {_list_minutes(outside)}"
    return not twice, f"twice: {_list_minutes(twice)}" if twice else ""


def _has_whole_pages(evidence: _Evidence) -> _Result:
    """Compare the longest page with the shorter ones of the same time."""
    before = [(call, rows) for call, rows in evidence.replay.pages if call.phase == "before"]
    if len(before) < 2:
        return None, "the recording has no pages of different lengths"
    (longest, rows), *shorter = sorted(before, key=lambda one: len(range(*one[0].span)), reverse=True)
    have = {row.open_ms for row in rows}
    span = range(*longest.span)
    lacks = {row.open_ms for _, some in shorter for row in some if row.open_ms in span} - have
    total = len(span) // MINUTE_MS
    if lacks:
        return False, f"a page of {total} minutes lacks {_list_minutes(lacks)}, which shorter ones have"
    return True, f"{len(have)} of {total} minutes"


def _has_every_minute(evidence: _Evidence) -> _Result:
    is_promised = evidence.exchange.publishes_empty_candles
    pages = [(call, {row.open_ms for row in rows}) for call, rows in evidence.replay.pages if rows]
    missing = [
        at
        for call, have in pages
        for at in range(min(have), min(call.end_ms or 0, MINUTE.floor(call.at_ms or 0)), MINUTE_MS)
        if at not in have
    ]
    if not pages:
        return None, "there are no minutes of history"
    if is_promised:
        return not missing, f"missing: {_list_minutes(missing)}" if missing else ""
    empty = [row.open_ms for _, rows in evidence.replay.pages for row in rows if not row.volume]
    if empty and not missing:
        return None, f"publishes_empty_candles may be True: {len(empty)} minutes have no volume, and none is missing"
    return None, "the plugin does not promise it"


def _stays(evidence: _Evidence) -> _Result:
    after, later = evidence.replay.minutes.get("after", {}), evidence.replay.minutes.get("later")
    if later is None:
        return None, "the recording has no later answers"
    differ = [at for at in sorted(after) if at not in later or _values(after[at]) != _values(later[at])]
    if differ:
        return None, f"the exchange changed {len(differ)} of {len(after)}: {_list_minutes(differ)}"
    return True, f"{len(after)} of {len(after)}"


CHECKS: dict[str, tuple[Callable[[_Evidence], _Result], str]] = {
    "every frame and answer is read": (
        _is_read,
        "minutes are lost that the exchange has sent. The plugin must also ask for the same as when it was recorded",
    ),
    "every row is a candle": (_has_candles, "the minutes of these rows are missing"),
    "the list of markets has the symbol": (_is_listed, "no pattern chooses the market, and it counts as delisted"),
    "prices are multiples of the tick size": (_has_steps, "charts round prices, or show too many digits"),
    "the stream has candles of the symbol": (_delivers, "the bar moves only when REST is requested"),
    "candles arrive in their minute": (_is_timely, "every bar is drawn at a wrong time"),
    "the time of a frame is that of the clock": (_is_stamped, "the order of versions is decided by a wrong time"),
    "volumes fit the prices": (_has_base_volume, "the volume is in another unit: in quote currency, or in contracts"),
    "no minute is final before its end": (_marks_the_past, "a bar is closed while it is forming"),
    "no version follows the final one": (
        _keeps_final,
        "a closed bar changes. `closed_flag` promises more than the exchange does",
    ),
    "REST has each minute of the stream": (_has_no_gap, "the minute is a gap after a restart"),
    "the minutes of the stream are those of REST": (
        _equals_history,
        "bars change when REST is asked. Look for another column or unit, or for a version that comes late",
    ),
    "a page has only the minutes of its range": (_keeps_range, "the request is not what the exchange understands"),
    "a long page has the minutes of short ones": (
        _has_whole_pages,
        "history has gaps at the ends of pages. `max_history_minutes` may be too large, or an end be exclusive",
    ),
    "each minute has a candle": (
        _has_every_minute,
        "missing minutes count as an outage, because `publishes_empty_candles` promises them",
    ),
    "each minute opens at the previous close": (
        _opens_at_close,
        "candled searches for lost pushes although none was lost, because `opens_at_previous_close` promises it",
    ),
    "REST has the same minutes an hour later": (_stays, "the exchange corrects its minutes: this is a note"),
}
"""The checks by their names, each with the consequence for a chart if it fails."""


def judge(name: str, recording: Recording, exchange: Exchange, replay: Replay) -> Finding:
    """Return the finding of one of `CHECKS`."""
    return Finding(name, *CHECKS[name][0](_Evidence(recording, exchange, replay)))


def _values(candle: Candle) -> tuple[Any, ...]:
    """Return prices and volume: not every source has a quote volume."""
    return candle.open, candle.high, candle.low, candle.close, candle.volume


def _list_minutes(times: Iterable[int]) -> str:
    found = sorted(set(times))
    shown = ", ".join(iso_ms(one) for one in found[:_MOST_SHOWN])
    return shown + (f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else "")
