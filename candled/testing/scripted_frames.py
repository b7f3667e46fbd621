"""A scripted exchange over its WebSocket: frames of any minute, in the form of a recorded one."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from candled.errors import CandledError, ExchangeError
from candled.exchange import Candles, Event, Exchange, Ready, SocketFeed, SubscriptionRejected
from candled.ingest.decompression import TooLarge
from candled.model import Candle, Symbol

from .documents import Path, Time, list_values, parse_document, read_number, read_time, with_value, write_document
from .recording import Received, Recording

_TEN_S_MS = 10_000


def open_feed(exchange: Exchange, symbols: Iterable[Symbol]) -> SocketFeed | None:
    """Return a feed that has not subscribed yet; None if the plugin's feed is no `SocketFeed`."""
    exchange.resume_after(None)
    feed = exchange.make_feed(list(symbols))
    return feed if isinstance(feed, SocketFeed) else None


def candles_in(events: Iterable[Event], symbol: Symbol) -> list[Candle]:
    """Return the candles of a symbol in events."""
    found = (event for event in events if isinstance(event, Candles) and event.symbol == symbol)
    return [candle for event in found for candle in event.candles]


def read_quietly(feed: SocketFeed, frame: str | bytes) -> list[Event]:
    """Return the events of a frame; none if the plugin cannot read it."""
    try:
        return list(feed.read_frame(frame))
    except Exception:  # another check covers it
        return []


@dataclass(frozen=True, slots=True)
class Material:
    """The frames of a recording, with their events."""

    #: The content of each frame after decompression, with its events; in the order of arrival.
    frames: tuple[tuple[str | bytes, tuple[Event, ...]], ...]

    @property
    def candle_frames(self) -> list[tuple[str | bytes, tuple[Event, ...]]]:
        """The frames with candles."""
        return [one for one in self.frames if any(isinstance(event, Candles) and event.candles for event in one[1])]

    @property
    def refusals(self) -> list[tuple[str | bytes, SubscriptionRejected]]:
        """The frames that refuse a symbol."""
        found = ((frame, event) for frame, events in self.frames for event in events)
        return [(frame, event) for frame, event in found if isinstance(event, SubscriptionRejected)]


def read_material(recording: Recording, feed: SocketFeed) -> Material:
    """Return the frames of a recording that the plugin reads."""
    frames = []
    for received in recording.select(Received):
        try:
            text = received.read_content(feed.compression)
        except (TooLarge, ExchangeError):
            continue
        events = tuple(read_quietly(feed, text))
        if any(isinstance(event, Ready) for event in events):
            feed.subscribe(feed.symbols)
        frames.append((text, events))
    return Material(tuple(frames))


@dataclass(frozen=True, slots=True)
class FrameForm:
    """A recorded frame with one candle, and the places of its values."""

    #: The content of the frame, parsed.
    document: Any
    #: The symbol of the candle.
    symbol: Symbol
    #: The candle as the plugin read it.
    candle: Candle
    #: Every time of the frame.
    times: tuple[tuple[Path, Time], ...]
    #: The times that change only the time of sending.
    sent: tuple[Path, ...]
    #: The value that is the volume, if it can be found.
    volume: Path | None
    #: Every number that changes the candle, the volume included.
    values: tuple[Path, ...]

    def write(self, open_ms: int, *, sent_ms: int | None = None, volume: Decimal | None = None) -> str:
        """Return the frame of another minute. `sent_ms` is the time of sending, and `volume` the volume, if given."""
        document, delta_ms = self.document, open_ms - self.candle.open_ms
        for path, time in self.times:
            at_ms = time.at_ms + delta_ms
            if path in self.sent and sent_ms is not None:
                at_ms = sent_ms
            document = with_value(document, path, time.write(at_ms))
        if volume is not None and self.volume is not None:
            document = with_value(document, self.volume, like(_at(self.document, self.volume), volume))
        return write_document(document)


def _at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def like(example: Any, number: Decimal) -> Any:
    """Return a number as text if `example` is text, else as a number."""
    return f"{number:f}" if isinstance(example, str) else number


def find_form(material: Material, feed: SocketFeed, symbol: Symbol) -> FrameForm | None:
    """Return the form of the newest frame with one candle that can be written for other minutes."""
    frames = material.candle_frames
    for text, events in reversed(frames):
        candles = candles_in(events, symbol)
        if len(candles) == 1 and (form := _examine(text, candles[0], feed, symbol)) is not None:
            return form
    return None


def _examine(text: str | bytes, candle: Candle, feed: SocketFeed, symbol: Symbol) -> FrameForm | None:
    document = parse_document(text)
    if document is None:
        return None

    def read(changed: Any) -> Candle | None:
        try:
            found = candles_in(feed.read_frame(write_document(changed)), symbol)
        except CandledError:
            return None
        except Exception:  # another check covers it
            return None
        return found[0] if len(found) == 1 else None

    again = read(document)
    if again is None or again.values != candle.values:
        return None  # the plugin made it from more than this frame
    times: list[tuple[Path, Time]] = []
    sent: list[Path] = []
    values: list[Path] = []
    volume: Path | None = None
    for path, value in list(list_values(document)):
        if (time := read_time(value, candle.open_ms)) is not None:
            times.append((path, time))
            later = read(with_value(document, path, time.write(time.at_ms + _TEN_S_MS)))
            if later is not None and later.open_ms == candle.open_ms and later.as_of_ms != candle.as_of_ms:
                sent.append(path)
        elif (number := read_number(value)) is not None:
            changed = read(with_value(document, path, like(value, number + 1)))
            if changed is None or changed.values != candle.values:
                values.append(path)
            if (
                changed is not None
                and changed._replace(volume=candle.volume, as_of_ms=candle.as_of_ms) == candle
                and changed != candle
            ):
                volume = path
    return FrameForm(document, symbol, candle, tuple(times), tuple(sent), volume, tuple(values)) if times else None
