"""Every error candled raises on purpose, grouped by who can act on it."""

from collections.abc import Sequence
from typing import Any


class CandledError(Exception):
    """Base of all errors below; its text is meant to be read by a person."""


class ConfigError(CandledError):
    """The operator can act: settings, command line, files and ports. Ends the program with status 2.

    `problems` holds one line per mistake, so that one run reports them all.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ClientError(CandledError):
    """The client can act: its message is answered with this text and the socket stays open."""


class ExchangeError(CandledError):
    """The exchange or its plugin said something that its documentation does not allow."""


class HttpRejected(ExchangeError):
    """The exchange answered with a status that asking again will not change.

    `status` is the HTTP status and `body` the parsed JSON body.
    """

    def __init__(self, message: str, *, status: int, body: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class InvalidCandle(ExchangeError):
    """A candle off the minute grid, with low and high not enclosing open and close, or with a negative volume."""


class Unavailable(CandledError):
    """Nobody can act yet: try again later, with backoff.

    `retry_after_s` is how long the other side asked us to wait, in seconds, if it said so.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailable(Unavailable):
    """The store cannot be reached or is full; what was to be written must be kept and tried again."""


class StoreRejected(CandledError):
    """The store refused for good: a newer schema, a damaged file, a value it cannot hold."""
