"""What a client is told when its request cannot be answered."""

from collections.abc import Mapping

from candled.errors import ClientError

_SHOWN = 64  # characters of a client's own text that an answer repeats


class ApiError(ClientError):
    """The client can act: an HTTP status, a code that a program can tell apart, and what was expected, for a person."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


def shown(text: str) -> str:
    """A client's own text as a message repeats it: in quotes, shortened, without control characters."""
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return repr(short)
