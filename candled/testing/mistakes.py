"""Mistakes of a description that a recording shows: units, columns, currencies, closed flags."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

from candled.exchange import Candles, Exchange
from candled.model import MINUTE_MS, Candle, iso_ms

from .replayed import Replay
from .recording import Recording
from .scripted_pages import list_pages

_HOUR_MS = 60 * MINUTE_MS
_TOLERANCE_MS = 5_000  # between the clocks of the recorder and of the exchange
_LATE_MS = 3 * MINUTE_MS
_FEW = Decimal("0.1")  # the share of minutes that may differ for reasons of the exchange
_MARGIN = Decimal("0.02")


def explain_time(open_ms: int, at_ms: int) -> str:
    """Return the mistake that explains an opening time in a frame that arrived at `at_ms`; empty if it is plausible."""
    for factor, unit in ((1000, "seconds"), (Decimal("0.001"), "microseconds"), (Decimal("0.000001"), "nanoseconds")):
        if -_TOLERANCE_MS <= at_ms - open_ms * factor <= 24 * _HOUR_MS:
            return f"the opening time is in {unit}, but the plugin reads it as milliseconds ({open_ms} for {iso_ms(at_ms)})"
    age_ms = at_ms - open_ms
    if -_TOLERANCE_MS <= age_ms <= _LATE_MS:
        return ""
    if -MINUTE_MS - _TOLERANCE_MS <= age_ms < 0:
        return f"the plugin's opening time is the closing time: {iso_ms(open_ms)} in a frame of {iso_ms(at_ms)}"
    hours = round(-age_ms / _HOUR_MS)
    if hours and abs(hours) <= 14 and -_TOLERANCE_MS <= at_ms - (open_ms - hours * _HOUR_MS) <= _LATE_MS:
        return f"the opening time is in another time zone, {hours:+d} hours from UTC"
    if age_ms < 0:
        return f"the opening time lies in the future: {iso_ms(open_ms)} in a frame of {iso_ms(at_ms)}"
    return f"the newest candle of a frame of {iso_ms(at_ms)} opens at {iso_ms(open_ms)}"


def judge_times(recording: Recording, replay: Replay) -> tuple[bool | None, str]:
    """Compare the opening times with those of arrival, in frames and pages."""
    problems: Counter[str] = Counter()
    count = 0
    for frame in replay.frames:
        at_ms = frame.received.at_ms
        for event in frame.events:
            if not isinstance(event, Candles):
                continue
            newest = max((one.open_ms for one in event.candles), default=None)
            found = [newest] if newest is not None else [one.open_ms for one in event.invalid if one.open_ms]
            sent_ms = at_ms or max((one.as_of_ms for one in event.candles), default=0)
            if found and sent_ms:
                count += 1
                problems[_without_times(found[0], sent_ms)] += 1
    problems.pop("", None)
    if problems and (most := problems.most_common(1)[0])[1] > count * _FEW:
        return False, f"{most[0]} ({most[1]} of {count} frames)"
    if (page := _explain_pages(recording, replay)):
        return False, page
    return (True, f"{count} frames") if count else (None, "no frame has both a candle and a time")


def _without_times(open_ms: int, at_ms: int) -> str:
    return explain_time(open_ms, at_ms).split(":")[0].split(" (")[0] if explain_time(open_ms, at_ms) else ""


def _explain_pages(recording: Recording, replay: Replay) -> str:
    """Return the mistake that explains a page with rows, of which the plugin has read none."""
    for page in list_pages(recording):
        call = page.call
        assert call.start_ms is not None
        assert call.end_ms is not None
        inside = [at for at in page.times if call.start_ms <= at < call.end_ms]
        read = replay.minutes.get(call.phase, {})
        if inside and not any(at in read for at in inside):
            return (
                f"a page has {len(inside)} minutes of the range, with times in {page.unit}, "
                f"and the plugin reads none of them: does it read the times in another unit?"
            )
    return ""


def judge_versions(versions: Mapping[int, Sequence[Candle]]) -> tuple[bool | None, str]:
    """Check that a minute keeps its open while it forms, that its range only grows, and that its volume does."""
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
    """Check that volumes are in base currency: their price lies within the candle, in the stream as over REST."""
    newest = {at: found[-1] for at, found in versions.items() if found}
    traded = [one for one in [*newest.values(), *minutes.values()] if one.volume and one.quote_volume]
    wrong = [one for one in traded if not _is_within(one.quote_volume or Decimal(0), one.volume, one)]
    if traded and len(wrong) > len(traded) * _FEW:
        interchanged = [one for one in wrong if _is_within(one.volume, one.quote_volume or Decimal(0), one)]
        if len(interchanged) * 2 > len(wrong):
            return False, f"volume and quote volume are interchanged ({len(interchanged)} of {len(traded)} minutes)"
        return False, (
            f"quote volume divided by volume is no price of the minute in {len(wrong)} of {len(traded)}: "
            "is one of them in contracts, or in another currency?"
        )
    both = [(newest[at], minutes[at]) for at in newest.keys() & minutes.keys() if newest[at].volume and minutes[at].volume]
    for name, pairs in (("stream", both), ("REST", [(rest, live) for live, rest in both])):
        quoted = [one for one, other in pairs if one.volume != other.volume and _is_within(one.volume, other.volume, other)]
        if both and len(quoted) * 2 > len(both):
            return False, f"the volume of the {name} is in quote currency ({len(quoted)} of {len(both)} minutes)"
    if traded or both:
        return True, f"{len(traded) or len(both)} minutes"
    return None, "no minute has a quote volume, or a volume from both the stream and REST"


def _is_within(quote: Decimal, base: Decimal, candle: Candle) -> bool:
    return candle.low * (1 - _MARGIN) <= quote / base <= candle.high * (1 + _MARGIN)


def judge_closed_flag(exchange: Exchange, versions: Mapping[int, Sequence[Candle]], replay: Replay) -> tuple[bool | None, str]:
    """Check the mark of closed minutes against what follows it, and against the time."""
    flag = exchange.closed_flag
    over = [at for at in versions if at + MINUTE_MS in versions]
    marked = {at: found for at, found in versions.items() if any(one.final for one in found)}
    if flag == "ignored":
        return True, "the plugin ignores it"
    if not marked:
        if flag == "final" and over:
            return False, f'closed_flag is "final", but no version of {len(over)} closed minutes is marked'
        return (True, "no minute is marked") if over else (None, "no minute ends in the stream")
    early = [at for at in marked if _is_marked_early(at, replay)]
    if early:
        return False, (
            f"the closed flag lies: {len(early)} of {len(marked)} minutes are marked as closed before they end, "
            f'the first at {iso_ms(min(early))}; set closed_flag = "ignored", or do not set `final`'
        )
    changed = [at for at, found in marked.items() if _changes_after_mark(found)]
    if changed and flag == "final":
        return False, (
            f"the closed flag lies: {len(changed)} of {len(marked)} minutes change after they were marked as closed, "
            f'the first at {iso_ms(min(changed))}; set closed_flag = "advisory"'
        )
    return True, f"{len(marked)} minutes are marked, {len(changed)} of them change afterwards"


def _changes_after_mark(found: Sequence[Candle]) -> bool:
    first = next(number for number, one in enumerate(found) if one.final)
    return len({one.values for one in found[first:]}) > 1


def _is_marked_early(open_ms: int, replay: Replay) -> bool:
    """Return whether the exchange marked a minute before its end, by the time of sending or else of arrival."""
    for frame in replay.frames:
        for event in frame.events:
            for one in event.candles if isinstance(event, Candles) else ():
                sent_ms = one.as_of_ms or frame.received.at_ms
                if one.open_ms == open_ms and one.final and sent_ms:
                    return sent_ms < open_ms + MINUTE_MS - _TOLERANCE_MS
    return False
