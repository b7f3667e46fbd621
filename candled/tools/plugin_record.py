"""Records an exchange, asks it again for the same minutes an hour later, and converts files of other programs."""

import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from candled import __version__
from candled.errors import ConfigError
from candled.exchange import Clock, Exchange, Feed, SocketFeed
from candled.model import MINUTE_MS, Range, Symbol
from candled.plugins import one_line
from candled.proxies import Proxies
from candled.testing.conversion import convert_files
from candled.testing.modules import choose_exchange, make_exchange
from candled.testing.recording import COMPLETE, VERSION, Call, Header, Recording, RecordingWriter, read_recording

from .recorder import Recorder
from .session import print_remark

_HOUR_MS = 60 * MINUTE_MS


async def record_exchange(
    module: str,
    symbol: Symbol,
    clock: Clock,
    *,
    minutes: int,
    path: Path | None,
    is_hour_later: bool = False,
    exchange: str | None = None,
    assignments: Iterable[str] = (),
) -> int:
    """Record one symbol of an exchange; return the exit status.

    Raises:
        ConfigError: there is no such plugin, its settings are wrong, or the file cannot be written.
    """
    made = make_exchange(choose_exchange(module, exchange), assignments, clock)
    made.resume_after(None)
    feed = _make_feed(made, symbol)
    if not isinstance(feed, SocketFeed):
        print_remark(f"{made.name} has a feed of its own: only its requests over REST are recorded")
    header = Header(
        version=VERSION,
        exchange=made.name,
        symbol=str(symbol),
        module=module,
        compression=feed.compression if isinstance(feed, SocketFeed) else None,
        source=f"candled {__version__}",
    )
    path = path or Path(_name_file(header, clock.now_ms()))
    with (
        RecordingWriter(path, compression=header.compression) as writer,
        closing(Recorder(made, symbol, writer, clock, _environment_proxies())) as recorder,
    ):
        writer.write(header)
        await recorder.call_before()
        print_remark(f"recording {symbol} of {made.name}: whole minutes to record: {minutes}")
        span = await recorder.record_stream(feed, minutes)
        if recorder.is_stopped:
            count = (span.end_ms - span.start_ms) // MINUTE_MS
            print_remark(f"stopped; whole minutes to read over REST: {count}. Press Ctrl-C again to skip")
        await recorder.read_minutes(span, "after")
        if is_hour_later and not recorder.is_stopped:
            print_remark("waiting for an hour")
            await clock.sleep(_HOUR_MS / 1000)
            await recorder.read_minutes(span, "later")
    return _report(path, recorder, isinstance(feed, SocketFeed))


def _make_feed(exchange: Exchange, symbol: Symbol) -> Feed:
    """Return a feed after checking that its first frames can be made.

    Raises:
        ConfigError: they cannot be made.
    """
    try:
        first = exchange.make_feed([symbol])
        if isinstance(first, SocketFeed):
            first.subscribe([symbol])
        return exchange.make_feed([symbol])
    except Exception as error:  # a plugin may raise anything
        raise ConfigError(f"{exchange.name}: cannot subscribe: {one_line(error)}") from error


def _name_file(header: Header, now_ms: int) -> str:
    name = header.symbol.replace("/", "-").replace(":", "-")
    return f"{header.exchange}-{name}-{datetime.fromtimestamp(now_ms / 1000, UTC):%Y%m%dT%H%M}.jsonl"


def _environment_proxies() -> Proxies:
    try:
        return Proxies.from_setting(None, os.environ)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _report(path: Path, recorder: Recorder, has_frames: bool) -> int:
    """Print the end of a recording; return the exit status."""
    problems = [f"failed: {one}" for one in recorder.failures]
    is_refusal = bool(recorder.rejections) and not recorder.candle_events
    if is_refusal:
        problems.append(
            f"the exchange refused the symbol, and the recording shows it: {'; '.join(recorder.rejections)}"
        )
    elif not recorder.candle_events and has_frames:
        reasons = "; ".join(one for one in dict.fromkeys(recorder.interruptions) if one != COMPLETE)
        problems.append("no frame with a candle arrived" + (f": {reasons}" if reasons else ""))
    for problem in problems:
        print_remark(problem)
    print(f"wrote {path}")
    return 1 if problems and not is_refusal else 0


async def reread_minutes(path: Path, clock: Clock, assignments: Iterable[str] = ()) -> int:
    """Ask the exchange of a recording again for its minutes, and add the answers; return the exit status.

    Raises:
        ConfigError: the file is no recording, has no minutes, or is not old enough; or as `record_exchange`.
    """
    recording = read_recording(path)
    header = recording.header
    made = make_exchange(choose_exchange(header.module, header.exchange), assignments, clock)
    span = _recorded_minutes(path, recording)
    if clock.now_ms() < span.end_ms + _HOUR_MS:
        ready = datetime.fromtimestamp((span.end_ms + _HOUR_MS) / 1000, UTC)
        raise ConfigError(f"{path}: expected an hour after the last minute; try again at {ready:%H:%M} UTC")
    made.resume_after(None)
    calls = max(call.number for call in recording.select(Call))
    with (
        RecordingWriter(path, "ab", header.compression) as writer,
        closing(Recorder(made, recording.symbol, writer, clock, _environment_proxies(), calls)) as recorder,
    ):
        await recorder.read_minutes(span, "later")
    return _report(path, recorder, has_frames=False)


def _recorded_minutes(path: Path, recording: Recording) -> Range:
    calls = [call for call in recording.select(Call) if call.phase == "after"]
    if not recording.header.module or not calls:
        raise ConfigError(f"{path}: has no minutes that were read after the stream")
    return Range(min(call.start_ms or 0 for call in calls), max(call.end_ms or 0 for call in calls))


def convert_recordings(
    files: Sequence[Path], output: Path, *, exchange: str = "", symbol: Symbol | None = None, match: str = ""
) -> int:
    """Convert files of other programs to a recording; return the exit status.

    Raises:
        ConfigError: a file cannot be read, is in no known form, or has nothing about the symbol.
    """
    texts = [(path.name, _read_text(path)) for path in files]
    recording = convert_files(texts, exchange=exchange, symbol=symbol, match=match)
    with RecordingWriter(output) as writer:
        for line in (recording.header, *recording.events):
            writer.write(line)
    print(f"wrote {output}: {len(recording.events)} lines")
    return 0


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
