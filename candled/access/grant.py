"""The claims of an access token, and the access that it grants."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated

import msgspec

from candled.model import Interval, Symbol
from candled.symbol_pattern import SymbolPattern

_Limit = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
_Texts = Annotated[list[str], msgspec.Meta(min_length=1, max_length=1000)] | None


class Claims(msgspec.Struct, kw_only=True):
    """The claims that limit a token, as they are written in a token file or in the payload of a JWT."""

    #: Symbols and patterns as in the settings; None allows every market.
    symbols: _Texts = None
    #: Interval names; None allows all of them.
    intervals: _Texts = None
    #: Simultaneous WebSockets and event streams in one process; 0 for no limit.
    connections: _Limit = 0
    #: Subscriptions of one connection; 0 for the server's own limit.
    rooms: _Limit = 0
    #: Messages per second of one connection; 0 for the server's own limit.
    messages: _Limit = 0
    #: HTTP requests per minute in one process; 0 for no limit.
    requests: _Limit = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The access of one valid token. Two grants are equal if they have the same token and claims."""

    #: The token's name: from the file, or the subject of a JWT.
    name: str
    #: The name in metrics: all JWTs share one.
    label: str
    #: The SHA-256 hash of the token, in hexadecimal digits.
    digest: str
    #: UTC epoch ms at which it expires; None for never.
    expires_ms: int | None = None
    #: The hash of the key that verified a JWT; empty for a token of the file.
    key: str = ""
    #: The symbols and patterns that the token may read, and exclusions; empty for every market.
    symbols: tuple[SymbolPattern, ...] = ()
    #: The names of the intervals that the token may read; empty for all of them.
    intervals: frozenset[str] = frozenset()
    #: The largest number of simultaneous WebSockets and event streams in one process; 0 for no limit.
    connections: int = 0
    #: The largest number of subscriptions of one connection; 0 for the server's own limit.
    rooms: int = 0
    #: The largest number of messages per second of one connection; 0 for the server's own limit.
    messages: int = 0
    #: The largest number of HTTP requests per minute in one process; 0 for no limit.
    requests: int = 0

    @classmethod
    def of(
        cls, claims: Claims, *, name: str, label: str, digest: str, expires_ms: int | None, key: str = ""
    ) -> "Grant":
        """Return the grant that has these claims.

        Raises:
            ValueError: a symbol, pattern or interval has a wrong form.
        """
        limits = ("connections", "rooms", "messages", "requests")
        return cls(
            name=name,
            label=label,
            digest=digest,
            expires_ms=expires_ms,
            key=key,
            symbols=_patterns(claims.symbols or ()),
            intervals=frozenset(str(Interval.parse(text)) for text in claims.intervals or ()),
            **{limit: getattr(claims, limit) for limit in limits},
        )

    def allows_symbol(self, symbol: Symbol) -> bool:
        """Return True if the token may read a market's candles. The patterns apply to the symbols of all exchanges."""
        if not self.symbols:
            return True
        chosen = [one for one in self.symbols if one.matches(symbol)]
        return bool(chosen) and not any(one.is_exclusion for one in chosen)

    def allows_pattern(self, pattern: str) -> bool:
        """Return True if the token may subscribe to a pattern.

        A pattern room has the bars of all markets that its pattern selects. So the claims must have this pattern, or
        `*`, and no exclusion.
        """
        texts = {one.text for one in self.symbols}
        return not texts or (bool(texts & {pattern, "*"}) and not any(one.is_exclusion for one in self.symbols))

    def allows_interval(self, name: str) -> bool:
        """Return True if the token may read bars of an interval."""
        return not self.intervals or name in self.intervals

    def describe(self) -> list[str]:
        """Return the claims that limit the token, such as `rooms 5`."""
        shown = []
        for one in fields(self)[5:]:
            value = getattr(self, one.name)
            if value:
                text = ", ".join(sorted(map(str, value))) if isinstance(value, Iterable) else str(value)
                shown.append(f"{one.name} {text}")
        return shown


def _patterns(texts: Iterable[str]) -> tuple[SymbolPattern, ...]:
    patterns = tuple(map(SymbolPattern.parse, texts))
    if patterns and all(one.is_exclusion for one in patterns):
        raise ValueError("at least one symbol or pattern without ! is needed")
    return patterns
