"""Decompression of frames that an exchange has compressed itself, with a limit on the size of the result."""

import zlib
from typing import TYPE_CHECKING

from candled.errors import ExchangeError

if TYPE_CHECKING:
    from candled.exchange import Compression

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "zlib": zlib.MAX_WBITS, "deflate": -zlib.MAX_WBITS}


class TooLarge(Exception):
    """A frame has more bytes after decompression than allowed."""


def decompress(frame: bytes, compression: "Compression", most: int) -> bytes:
    """Return the content of a compressed frame.

    No more than `most` bytes are decompressed.

    Raises:
        TooLarge: the content is longer.
        ExchangeError: the frame is not compressed in this way, is cut off, or has more bytes after its end.
    """
    stream = zlib.decompressobj(_WINDOWS[compression])
    try:
        content = stream.decompress(frame, most + 1)
    except zlib.error as error:
        raise ExchangeError(f"expected a frame compressed with {compression}, got {frame[:40]!r}") from error
    if len(content) > most:
        raise TooLarge
    if not stream.eof:
        raise ExchangeError(f"expected a complete frame compressed with {compression}, got {len(frame)} bytes of it")
    if stream.unused_data:
        raise ExchangeError(
            f"expected one frame compressed with {compression}, got {len(stream.unused_data)} bytes more"
        )
    return content
