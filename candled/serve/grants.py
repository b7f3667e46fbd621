"""The results of checking a request's access token, as handlers see them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from candled.errors import ClientError

if TYPE_CHECKING:
    from candled.access.grant import Grant
    from candled.model import Symbol

SUBPROTOCOL = "candled"

Arguments = Mapping[str, Sequence[bytes]]


class Asked(NamedTuple):
    """The markets and intervals of a request for candles."""

    symbols: "Sequence[Symbol]"
    intervals: Sequence[str]
    #: True if a request without a symbol is one for all markets.
    needs_symbol: bool = False


class AccessRefused(ClientError):
    """A request that its token does not allow, or that has none. `reason` is its name in metrics."""

    def __init__(self, status: int, code: str, message: str, reason: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.reason = reason
        self.headers = headers


def grant_of(request: object) -> "Grant | None":
    """Return the grant of a request that was admitted; None if it needs none or has no token yet."""
    return getattr(request, "grant", None)


def refusal_of(request: object) -> AccessRefused | None:
    """Return the refusal of a request, which its handler has to answer."""
    return getattr(request, "refusal", None)


def private(name: str, value: str) -> str:
    """Return a header's value for an answer that only one client may have: no shared cache may keep it."""
    return value.replace("public,", "private,", 1) if name == "Cache-Control" else value
