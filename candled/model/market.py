"""Symbols and markets."""

import re
from dataclasses import dataclass
from typing import NamedTuple

_PATTERN = re.compile(r"([^\s/:]{1,32})/([^\s/:]{1,32})")


class Symbol(NamedTuple):
    """A trading pair, written `BASE/QUOTE`; `str()` and `parse` are inverse."""

    base: str
    quote: str

    @staticmethod
    def parse(text: str) -> "Symbol":
        """Read `BASE/QUOTE`.

        Raises:
            ValueError: not of that form.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"expected BASE/QUOTE, for instance BTC/USDT; got {text!r}")
        return Symbol(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.base}/{self.quote}"


class MarketKey(NamedTuple):
    """Which market: a symbol at one configured exchange."""

    exchange: str
    symbol: Symbol

    def __str__(self) -> str:
        return f"{self.exchange}:{self.symbol}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """What an exchange says of one of its markets. Decimals are counts of digits after the point, None if unknown."""

    symbol: Symbol
    price_decimals: int | None = None
    volume_decimals: int | None = None
    active: bool = True
