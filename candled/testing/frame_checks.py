"""Checks of a plugin's feed against a scripted exchange."""

from decimal import Decimal
from typing import Any

from candled.errors import ExchangeError
from candled.exchange import Candles, Event, SocketFeed
from candled.model import MINUTE_MS, Candle, Symbol

from .documents import with_value, write_document
from .scripted_frames import FrameForm, candles_in
from .stage import CheckFailed, NotShown, Stage, read_events, require

_OTHER = Symbol("KITOTHER", "KITQUOTE")
_HOUR_MS = 60 * MINUTE_MS
_BAD_NUMBERS: tuple[Any, ...] = (None, "", "x", "NaN", "Infinity", "-1", [], {}, "1" * 400)
_HTML = "<html><head><title>429 Too Many Requests</title></head><body><center>nginx</center></body></html>"
_LATE_MS = 1_500
_MORE = Decimal(7)


def check_duplicates(stage: Stage) -> str:
    """Read each frame twice: the second reading must give the same candle again."""
    feed, form = stage.open_feed(), stage.form
    for minute in range(3):
        frame = form.write(form.candle.open_ms + minute * MINUTE_MS)
        first, second = (candles_in(read_events(feed, frame), form.symbol) for _ in range(2))
        require(first, f"the plugin reads no candle in {frame[:200]}")
        require(first == second, f"a frame that arrives twice is read as {first} and then as {second}")
    return "3 frames"


def check_disorder(stage: Stage) -> str:
    """Read the frames of minutes in any order: each must give its own minute."""
    feed, form = stage.open_feed(), stage.form
    for minute in (0, 2, 1, -1, 3):
        open_ms = form.candle.open_ms + minute * MINUTE_MS
        _require_minute(feed, form, form.write(open_ms), open_ms)
    return "5 frames"


def _require_minute(feed: SocketFeed, form: FrameForm, frame: str, open_ms: int) -> Candle:
    candles = candles_in(read_events(feed, frame), form.symbol)
    times = [candle.open_ms for candle in candles]
    require(times == [open_ms], f"expected the minute {open_ms} in a frame, got {times}: {frame[:200]}")
    return candles[0]


def check_silence(stage: Stage) -> str:
    """Be silent for an hour: the next frame must be read, with its minute alone."""
    feed, form = stage.open_feed(), stage.form
    _require_minute(feed, form, form.write(form.candle.open_ms), form.candle.open_ms)
    later_ms = form.candle.open_ms + _HOUR_MS
    _require_minute(feed, form, form.write(later_ms), later_ms)
    return "a frame after an hour"


def check_late_version(stage: Stage) -> str:
    """Send the last version of a minute after the next minute has begun: a chart must show it."""
    feed, form = stage.open_feed(), stage.form
    if form.volume is None:
        raise NotShown("the volume of the recorded frame cannot be found")
    open_ms, next_ms = form.candle.open_ms, form.candle.open_ms + MINUTE_MS
    market = stage.make_market(open_ms)
    late = form.write(open_ms, sent_ms=next_ms + 1_000, volume=form.candle.volume + _MORE)
    volume = _require_minute(stage.open_feed(), form, late, open_ms).volume
    for frame, now_ms in (
        (form.write(open_ms, sent_ms=next_ms - 5_000), next_ms - 5_000),
        (form.write(next_ms, sent_ms=next_ms + 500), next_ms + 500),
        (late, next_ms + _LATE_MS),
    ):
        for event in read_events(feed, frame):
            if isinstance(event, Candles) and event.symbol == form.symbol:
                market.on_push(event, now_ms)
    final = {one.open_ms: one for one in market.finalize_minutes(next_ms + 10_000)}
    shown = final.get(open_ms) or market.minutes.get_minute(open_ms)
    got = None if shown is None else shown.volume
    if form.sent or got == volume:
        require(got == volume, f"expected the volume {volume} of the late version on the chart, got {got}")
    return "the late version is shown" if got == volume else "a frame without a time of sending is left to REST"


def check_clock(stage: Stage) -> str:
    """Read a frame with a clock that is wrong by an hour: the candle must not depend on it."""
    form = stage.form
    frame = form.write(form.candle.open_ms)
    right, *wrong = (
        candles_in(read_events(stage.open_feed(now_ms=stage.now_ms + skew_ms), frame), form.symbol)
        for skew_ms in (0, -_HOUR_MS, _HOUR_MS)
    )
    for found in wrong:
        require(found == right, f"the candle depends on the machine's clock: {found} instead of {right}")
    return "an hour slow and fast"


def check_time_lies(stage: Stage) -> str:
    """Send frames whose time of sending is an hour off: the minute must be that of the row."""
    feed, form = stage.open_feed(), stage.form
    if not form.sent:
        return "the exchange sends no time"
    for lie_ms in (-_HOUR_MS, _HOUR_MS, 10 * 24 * _HOUR_MS):
        open_ms = form.candle.open_ms
        _require_minute(feed, form, form.write(open_ms, sent_ms=open_ms + lie_ms), open_ms)
    return "an hour early, an hour and ten days late"


def check_bad_rows(stage: Stage) -> str:
    """Replace each number of a row: the row must be invalid or the frame an error, and never a wrong candle."""
    form = stage.form
    if not form.values:
        raise NotShown("the numbers of the recorded frame cannot be found")
    for path in form.values:
        for bad in _BAD_NUMBERS:
            feed = stage.open_feed()
            frame = write_document(with_value(form.document, path, bad))
            for candle in candles_in(_read_or_refuse(feed, frame), form.symbol):
                only_quote = candle._replace(quote_volume=form.candle.quote_volume) == form.candle
                require(
                    only_quote and not candle.quote_volume,
                    f"{bad!r} instead of the number at {'.'.join(map(str, path))} is read as the candle {candle}",
                )
                require(
                    candle.quote_volume is None,
                    f"a quote volume of {bad!r} is read as 0, which clients show; expected None",
                )
    return f"{len(form.values)} numbers, {len(_BAD_NUMBERS)} values for each"


def _read_or_refuse(feed: SocketFeed, frame: str | bytes) -> list[Event]:
    try:
        return list(feed.read_frame(frame))
    except ExchangeError:
        return []
    except Exception as error:
        raise CheckFailed(
            f"the plugin raises {error!r} instead of ExchangeError, or of an InvalidRow, for {frame[:200]!r}"
        ) from error


def check_cut_frame(stage: Stage) -> str:
    """End the connection in the middle of a frame: the part must be an error, and the next frame must be read."""
    feed, form = stage.open_feed(), stage.form
    frame = form.write(form.candle.open_ms)
    _require_minute(feed, form, frame, form.candle.open_ms)
    for length in range(0, len(frame), max(1, len(frame) // 20)):
        found = candles_in(_read_or_refuse(feed, frame[:length]), form.symbol)
        require(not found, f"the plugin reads a candle in the part of a frame {frame[:length]!r}")
    _require_minute(feed, form, frame, form.candle.open_ms)
    return "20 parts"


def check_html_frame(stage: Stage) -> str:
    """Send a page of HTML, as proxies do: it must be an error, and the next frame must be read."""
    feed, form = stage.open_feed(), stage.form
    require(not candles_in(_read_or_refuse(feed, _HTML), form.symbol), "the plugin reads a candle in a page of HTML")
    _require_minute(feed, form, form.write(form.candle.open_ms), form.candle.open_ms)
    return "a page of HTML"


def check_other_symbols(stage: Stage) -> str:
    """Send the frames of a symbol to a feed that carries another one, as after a removal or a renaming."""
    form = stage.form
    frame = form.write(form.candle.open_ms)
    both = stage.open_feed(_OTHER, form.symbol)
    require(
        not candles_in(_read_or_refuse(both, frame), _OTHER),
        f"a frame of {form.symbol} is read as one of another symbol on the same connection",
    )
    _require_minute(both, form, frame, form.candle.open_ms)
    both.set_symbols([_OTHER])
    found = [event for event in _read_or_refuse(both, frame) if isinstance(event, Candles)]
    require(
        not any(event.symbol != form.symbol for event in found),
        f"after {form.symbol} was removed, its frames are read as those of {[str(one.symbol) for one in found]}",
    )
    both.set_symbols([_OTHER, form.symbol])
    _require_minute(both, form, frame, form.candle.open_ms)
    return "beside another symbol, and removed"


def check_refusal(stage: Stage) -> str:
    """Refuse one symbol: it must be a `SubscriptionRejected` of that symbol, and the others must go on."""
    refusals = stage.material.refusals
    if not refusals:
        raise NotShown("no refusal of a symbol was recorded; record a symbol that the exchange does not have")
    frame, rejected = refusals[0]
    require(rejected.symbol == stage.recording.symbol, f"{rejected.symbol} is refused, which was not subscribed")
    feed = stage.open_feed(_OTHER, rejected.symbol)
    found = [event for event in read_events(feed, frame) if getattr(event, "symbol", None) == _OTHER]
    require(not found, f"the refusal of {rejected.symbol} is read as {found}")
    return rejected.reason


def check_closed_twice(stage: Stage) -> str:
    """Send the closed version of a minute twice: both must be read alike, and a chart closes the minute once."""
    frames = [
        frame
        for frame, events in stage.material.candle_frames
        if any(candle.final for candle in candles_in(events, stage.recording.symbol))
    ]
    if not frames:
        over = [at for at in stage.versions if at + MINUTE_MS in stage.versions]
        if over and stage.kind.closed_flag != "final":
            return "no minute is marked"
        raise NotShown("no frame with a closed minute was recorded")
    feed, symbol = stage.open_feed(), stage.recording.symbol
    first, second = (read_events(feed, frames[0]) for _ in range(2))
    one, other = candles_in(first, symbol), candles_in(second, symbol)
    require(one == other and one, f"a closed minute that arrives twice is read as {one} and then as {other}")
    minute = one[-1]
    market = stage.make_market(minute.open_ms)
    end_ms = minute.open_ms + MINUTE_MS
    count = 0
    for event in [*first, *second]:
        if isinstance(event, Candles):
            live = market.on_push(event, end_ms + 500).live
            count += sum(candle.final and candle.open_ms == minute.open_ms for candle in live)
    count += sum(candle.open_ms == minute.open_ms for candle in market.finalize_minutes(end_ms + 20_000))
    require(count == 1, f"a minute that is marked as closed twice is final {count} times on a chart")
    return "one minute"
