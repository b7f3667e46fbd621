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


class Decimals(NamedTuple):
    """Digits after the point of a market's prices and volumes, None where they are not known."""

    price: int | None = None
    volume: int | None = None

    def or_else(self, other: "Decimals") -> "Decimals":
        """Return these, with those of `other` in the place of unknown ones."""
        return Decimals(*(theirs if mine is None else mine for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """What an exchange says of one of its markets. Decimals are counts of digits after the point, None if unknown."""

    symbol: Symbol
    price_decimals: int | None = None
    volume_decimals: int | None = None
    active: bool = True
    #: when trading began, UTC epoch milliseconds; None where the exchange does not say
    listed_ms: int | None = None

    @property
    def decimals(self) -> Decimals:
        """Both counts of digits."""
        return Decimals(self.price_decimals, self.volume_decimals)
