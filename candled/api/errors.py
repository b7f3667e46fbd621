"""Errors that are answers to a client."""

from collections.abc import Mapping
from typing import Literal

from candled.errors import ClientError

_SHOWN = 64  # characters of a client's own text that an answer repeats


class ApiError(ClientError):
    """A request that cannot be answered, for a reason that the client can act on.

    It has an HTTP status, a code for programs, a message for people, and headers for the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class UnknownSymbol(ApiError):
    """A request for a market that is not served.

    Its `name` is a symbol as candled writes it, a ticker, or Binance's name. `exchange` is None for a ticker.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: Literal["symbol", "ticker", "binance"],
        name: str,
        exchange: str | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.kind = kind
        self.name = name
        self.exchange = exchange


def shown(text: str) -> str:
    """Return a client's own text for use in a message: quoted, shortened, without control characters."""
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return repr(short)
