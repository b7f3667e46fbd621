"""Recordings of an exchange: raw frames and answers over REST, one JSON object per line.

The format is documented in docs/reference/recordings.md.
"""

import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import msgspec

from candled.errors import ConfigError
from candled.exchange import Compression
from candled.ingest.decompression import decompress
from candled.model import Symbol

from .redaction import redact_binary, redact_text

VERSION = 1
"""The version of the format that this module writes. It reads no other."""

_MOST_FRAME_BYTES = 1024 * 1024

COMPLETE = "the recording is complete"
"""The reason for the end of the connection that the recorder closes."""

Phase = Literal["before", "after", "later"]
"""The time of a call: before the stream, directly after it, or at least an hour later."""
Method = Literal["fetch_markets", "fetch_history", "fetch_bars"]
"""The methods of a plugin that read REST."""

T = TypeVar("T")


class RecordingError(ConfigError):
    """A file is no recording, or one of another version."""


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"):
    """A line of a recording. Times are UTC epoch milliseconds of the recorder's clock, None if they are unknown."""


class Header(Line, tag="header", frozen=True, kw_only=True):
    """The first line."""

    #: The version of the format.
    version: int
    #: The name of the exchange, as in `Exchange.name`.
    exchange: str
    #: The only symbol of the recording, as `Symbol.parse` reads it.
    symbol: str
    #: The module that has the plugin. Empty in converted files.
    module: str = ""
    #: The compression of binary frames, as in `SocketFeed.compression`.
    compression: Compression | None = None
    #: The program that wrote the file, and its version; in converted files also the name of the source.
    source: str = ""


class Opened(Line, tag="opened", frozen=True, kw_only=True):
    """A connection was opened."""

    at_ms: int | None = None
    #: The number of the connection within the recording, from 1.
    connection: int
    url: str


class Sent(Line, tag="sent", frozen=True, kw_only=True):
    """A text frame was sent to the exchange."""

    at_ms: int | None = None
    connection: int
    text: str


class Received(Line, tag="received", frozen=True, kw_only=True):
    """A frame arrived from the exchange, with either `text` or `data`."""

    at_ms: int | None = None
    connection: int
    #: The content of a text frame, as it arrived.
    text: str | None = None
    #: The bytes of a binary frame before decompression; in the file as base64.
    data: bytes | None = None

    @property
    def content(self) -> str | bytes:
        """The frame: text, or bytes before decompression."""
        return self.text if self.data is None else self.data  # type: ignore[return-value]  # of the reader's check

    def read_content(self, compression: Compression | None) -> str | bytes:
        """Return the frame as the daemon passes it to the plugin.

        Raises:
            TooLarge, ExchangeError: it cannot be decompressed.
        """
        content = self.content
        if isinstance(content, str) or compression is None:
            return content
        return decompress(content, compression, _MOST_FRAME_BYTES)


class Closed(Line, tag="closed", frozen=True, kw_only=True):
    """A connection ended."""

    at_ms: int | None = None
    connection: int
    #: The reason, in words.
    reason: str = ""


class Call(Line, tag="call", frozen=True, kw_only=True):
    """A method of the plugin was called. The requests that name its number are those it made."""

    at_ms: int | None = None
    #: The number of the call within the recording, from 1.
    number: int
    method: Method
    phase: Phase = "before"
    #: The range of `fetch_history` and `fetch_bars`.
    start_ms: int | None = None
    end_ms: int | None = None
    #: The interval of `fetch_bars`.
    interval: str | None = None

    @property
    def span(self) -> tuple[int, int]:
        """The range of `fetch_history` and `fetch_bars`."""
        assert self.start_ms is not None
        assert self.end_ms is not None
        return self.start_ms, self.end_ms


class Request(Line, tag="request", frozen=True, kw_only=True):
    """A request over REST and its answer."""

    #: The time before the request was sent.
    at_ms: int | None = None
    #: The time when the answer was complete.
    answered_ms: int | None = None
    #: The number of the call that made it; 0 for a request of a feed.
    call: int = 0
    method: Literal["GET", "POST"] = "GET"
    #: The address with its query.
    url: str
    #: The body of the request, as it was sent.
    body: str = ""
    #: The status of the answer; 0 if there is no answer.
    status: int
    #: The headers of the answer that a plugin or the daemon reads; their names are in lower case.
    headers: Mapping[str, str] = {}
    #: The body of the answer, as it arrived; without an answer, the problem in words.
    answer: str


Event = Opened | Sent | Received | Closed | Call | Request


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording in memory."""

    #: The first line, which describes the file.
    header: Header
    #: All other lines, in order.
    events: tuple[Event, ...]

    @property
    def symbol(self) -> Symbol:
        """The only symbol of the recording."""
        return Symbol.parse(self.header.symbol)

    def select(self, kind: type[T]) -> list[T]:
        """Return the lines of a kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def requests_of(self, call: Call) -> list[Request]:
        """Return the requests that a call made, in order."""
        return [request for request in self.select(Request) if request.call == call.number]


_decode_header = msgspec.json.Decoder(Header).decode
_decode_event = msgspec.json.Decoder(Event).decode
_encode = msgspec.json.Encoder().encode


def read_recording(path: Path) -> Recording:
    """Read a recording; `.gz` in the name of the file means that it is compressed.

    A last line without an end, of a recorder that was killed, is left out.

    Raises:
        RecordingError: the file cannot be read, or has a line that is not in the format.
    """
    try:
        with _open_file(path, "rb") as file:
            lines = file.read().split(b"\n")
    except (OSError, EOFError) as error:
        raise RecordingError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return _parse_lines(str(path), lines[:-1])


def _parse_lines(name: str, lines: Iterable[bytes]) -> Recording:
    numbered = iter(enumerate(lines, 1))
    number, first = next(numbered, (1, b""))
    header = _decode(_decode_header, first, f"{name}:1: expected the header of a recording")
    if header.version != VERSION:
        raise RecordingError(f"{name}: expected version {VERSION} of the format, got {header.version}")
    try:
        Symbol.parse(header.symbol)
    except ValueError as error:
        raise RecordingError(f"{name}:1: {error}") from None
    events: list[Event] = []
    for number, line in numbered:
        event = _decode(_decode_event, line, f"{name}:{number}: expected a line of a recording")
        if isinstance(event, Received) and (event.text is None) == (event.data is None):
            raise RecordingError(f"{name}:{number}: expected a received frame with text or data")
        events.append(event)
    return Recording(header, tuple(events))


def _decode(decode: Any, line: bytes, expected: str) -> Any:
    try:
        return decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordingError(f"{expected}, got {line[:80].decode('utf-8', 'replace')!r}: {error}") from None


class RecordingWriter:
    """Writes a recording line by line, without personal details: `candled.testing.redaction` removes them.

    Each line is in the file when `write` returns. `mode` is `xb` to create the file, or `ab` to add to it.
    `compression` is that of binary frames.

    Raises:
        RecordingError: the file exists already, or cannot be written.
    """

    def __init__(self, path: Path, mode: Literal["xb", "ab"] = "xb", compression: Compression | None = None) -> None:
        self._compression = compression
        try:
            self._file = _open_file(path, mode)
        except OSError as error:
            raise RecordingError(f"{path}: cannot be written: {error.strerror or error}") from error

    def __enter__(self) -> "RecordingWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, line: Line) -> None:
        """Write a line."""
        self._file.write(_encode(redacted_line(line, self._compression)) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def redacted_line(line: Line, compression: Compression | None = None) -> Line:
    """Return a line without personal details."""
    changed: dict[str, Any] = {}
    for name in ("url", "text", "body", "answer", "reason"):
        if text := getattr(line, name, None):
            changed[name] = redact_text(text)
    if isinstance(line, Received) and line.data is not None:
        changed["data"] = redact_binary(line.data, compression)
    if isinstance(line, Request):
        changed["headers"] = {name: redact_text(value) for name, value in line.headers.items()}
    return msgspec.structs.replace(line, **changed)


def _open_file(path: Path, mode: Literal["rb", "xb", "ab"]) -> IO[bytes]:
    return gzip.open(path, mode) if path.suffix == ".gz" else path.open(mode)  # type: ignore[return-value]
