"""A message as it leaves the server: one complete WebSocket frame, made once however many clients get it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from candled.bus import Position

    from .messages import Topic

_TEXT = 0x81  # FIN and opcode 1 (RFC 6455, section 5.2)


class Contents(NamedTuple):
    """The bars of a message and its place in the feed, for readers in this process."""

    #: When bars open, oldest first, and whether each was sent as final. Final ones before the last may be absent.
    bars: tuple[tuple[int, bool], ...]
    #: The room has received every change up to here. None where nobody asked for it.
    position: "Position | None" = None
    #: Whether the bars replace everything that was sent before.
    replaces: bool = False


class Frame(bytes):
    """One complete, unmasked text frame of a server.

    `topic` and `open_ms` say which bar of which topic it shows, so that a newer state of the same bar may take its
    place while a slow client lets it wait; `open_ms` 0 means that it shows no bar and must not be replaced. What
    `corrects` a bar does not take the place of what showed it first.
    """

    topic: "Topic | None" = None
    open_ms = 0
    corrects = False
    contents: Contents | None = None
    refusal = ""  # the text of an error message

    @classmethod
    def from_text(cls, text: str | bytes, topic: "Topic | None" = None, open_ms: int = 0) -> Self:
        """Frame a message; `text` is UTF-8 if it is bytes."""
        payload = text.encode() if isinstance(text, str) else text
        frame = cls(header(len(payload)) + payload)
        if topic is not None:
            frame.topic = topic
            frame.open_ms = open_ms
        return frame

    @classmethod
    def from_parts(cls, parts: Sequence[bytes | memoryview], topic: "Topic | None" = None) -> Self:
        """Frame a message that consists of these parts, without copying it more than needed."""
        frame = cls(b"".join((header(sum(map(len, parts))), *parts)))
        frame.topic = topic
        return frame

    @property
    def payload(self) -> bytes:
        """The message without the frame's header."""
        return self[len(header_of(self)) :]


def header(length: int) -> bytes:
    """The header of an unmasked text frame whose payload has so many bytes."""
    if length < 126:
        return bytes((_TEXT, length))
    if length < 65_536:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")


def header_of(frame: bytes) -> bytes:
    """The header that a frame begins with."""
    return frame[: {126: 4, 127: 10}.get(frame[1], 2)]
