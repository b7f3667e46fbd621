"""A server message as a complete WebSocket frame, built once for all clients that receive it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from candled.model import Candle, Position, Topic

_TEXT = 0x81  # FIN and opcode 1 (RFC 6455, section 5.2)


class BarUpdate(NamedTuple):
    """The values of a message, from which other dialects than candled's own are encoded."""

    #: An `initial` replaces everything that was sent before.
    kind: Literal["initial", "resumed", "update", "correction"]
    #: The bars, oldest first, and their finality. An `initial` may leave out final bars before the last one.
    bars: "tuple[tuple[Candle, bool], ...]"
    #: The position up to which the room has been sent every change. None unless a subscriber asked for it.
    position: "Position | None" = None


class Frame(bytes):
    """One complete, unmasked text frame of a server (RFC 6455, section 5.2).

    `topic` and `open_ms` identify its bar, so that a newer state of that bar can replace the frame while it is queued
    for a slow client. `open_ms` is 0 if the frame contains no bar and must not be replaced. A frame that `corrects` a
    bar does not replace the frame that first contained it.
    """

    topic: "Topic | None" = None
    open_ms = 0
    corrects = False
    most_waiting: int | None = None  # most frames of its topic queued for a slow client; None: the default
    update: BarUpdate | None = None  # its values, if it is about bars

    @classmethod
    def from_text(cls, text: str | bytes, topic: "Topic | None" = None, open_ms: int = 0) -> Self:
        """Return a message as a frame. Bytes must be UTF-8."""
        payload = text.encode() if isinstance(text, str) else text
        frame = cls(header(len(payload)) + payload)
        if topic is not None:
            frame.topic = topic
            frame.open_ms = open_ms
        return frame

    @classmethod
    def from_parts(cls, parts: Sequence[bytes | memoryview], topic: "Topic | None" = None) -> Self:
        """Return a message in several parts as a frame, copying it only once."""
        frame = cls(b"".join((header(sum(map(len, parts))), *parts)))
        frame.topic = topic
        return frame

    @property
    def payload(self) -> bytes:
        """The message without the frame's header."""
        return self[len(header_of(self)) :]


def header(length: int) -> bytes:
    """Return the header of an unmasked text frame with a payload of `length` bytes."""
    if length < 126:
        return bytes((_TEXT, length))
    if length < 65_536:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")


def header_of(frame: bytes) -> bytes:
    """Return the header at the start of a frame."""
    return frame[: {126: 4, 127: 10}.get(frame[1], 2)]
