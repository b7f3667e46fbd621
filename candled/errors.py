"""All errors that candled raises on purpose, grouped by who can act on them."""

from collections.abc import Sequence
from typing import Any


class CandledError(Exception):
    """Base of all errors below. Its text is written for people."""


class ConfigError(CandledError):
    """The operator must act: settings, command line, files and ports. Ends the program with status 2.

    `problems` contains one line per mistake, so that one run reports all of them.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ClientError(CandledError):
    """The client must act: the reply contains this text, and the socket stays open."""


class ExchangeError(CandledError):
    """The exchange or its plugin sent something that its documentation does not allow."""


class HttpRejected(ExchangeError):
    """The exchange answered with a status that another attempt will not change.

    `status` is the HTTP status and `body` the parsed JSON body.
    """

    def __init__(self, message: str, *, status: int, body: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class InvalidCandle(ExchangeError):
    """A candle with impossible values.

    For example, it is off the minute grid, low and high do not enclose open and close, or a volume is negative.
    """


class Unavailable(CandledError):
    """A temporary failure: try again later, with backoff.

    `retry_after_s` is how long the other side asked us to wait, in seconds, or None.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailable(Unavailable):
    """The store cannot be reached or is full. Keep the data and try again."""


class StoreRejected(CandledError):
    """The store refused, and another attempt will not help: a newer schema, a damaged file, an unsupported value."""


class StoreNotReady(StoreRejected):
    """The store has no tables yet, or those of an older version: `candled init-db` makes them."""
