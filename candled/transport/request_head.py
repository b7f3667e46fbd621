"""Collects the bytes of a request's head until it is complete. Pure."""

LARGEST = 16 * 1024  # bytes of a head; Tornado refuses a larger one
_ENDS = (b"\n\n", b"\n\r\n")  # an empty line, as Tornado finds it
_LONGEST_END = 3
TAIL = _LONGEST_END - 1  # the most bytes of an end that is not complete yet


class RequestHead:
    """The bytes of a head that have arrived so far. Each byte is searched once.

    Tornado searches a head from its beginning after each read, so a head that arrives byte by byte would take quadratic
    time. It gets the bytes once they contain an empty line, or are too many.

    Args:
        tail: the last bytes that Tornado has already.
        size: the number of bytes that Tornado has already.
    """

    __slots__ = ("_begin", "_bytes", "_size_before")

    def __init__(self, tail: bytes = b"", size: int = 0) -> None:
        # the tail, then the bytes that Tornado does not have
        self._bytes = bytearray(tail)
        self._begin = len(tail)
        self._size_before = size

    @property
    def waiting(self) -> int:
        """The number of bytes that are kept here."""
        return len(self._bytes) - self._begin

    def add_data(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """Add received bytes; return all that are kept here if Tornado should parse them, else None."""
        searched = max(0, len(self._bytes) - TAIL)
        self._bytes += data
        is_large = self._size_before + self.waiting > LARGEST
        if not is_large and all(self._bytes.find(end, searched) < 0 for end in _ENDS):
            return None
        return bytes(self._bytes[self._begin :])
