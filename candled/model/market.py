"""Symbols, markets and topics."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from .decimals import MAX_PLACES
from .interval import Interval

_PATTERN = re.compile(r"([^\s/:]{1,32})/([^\s/:]{1,32})")


class Symbol(NamedTuple):
    """A trading pair, written `BASE/QUOTE`; `str()` and `parse` are inverses."""

    base: str
    quote: str

    @staticmethod
    def parse(text: str) -> "Symbol":
        """Parse `BASE/QUOTE`.

        Raises:
            ValueError: the text has another form.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"expected BASE/QUOTE, for instance BTC/USDT; got {text!r}")
        return Symbol(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.base}/{self.quote}"


class MarketKey(NamedTuple):
    """The key of a market: a symbol at one configured exchange."""

    exchange: str
    symbol: Symbol

    def __str__(self) -> str:
        return f"{self.exchange}:{self.symbol}"


class Topic(NamedTuple):
    """The subject of a room: one market and one interval."""

    market: MarketKey
    interval: Interval


class Decimals(NamedTuple):
    """The number of decimal places of a market's prices and volumes, None where unknown."""

    price: int | None = None
    volume: int | None = None

    def or_else(self, other: "Decimals") -> "Decimals":
        """Return these counts, with unknown ones taken from `other`."""
        return Decimals(*(second if first is None else first for first, second in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """A market as the exchange lists it. Decimals are the number of decimal places, 0 to 49; None if unknown."""

    symbol: Symbol
    price_decimals: int | None = None
    volume_decimals: int | None = None
    active: bool = True
    #: The start of trading, UTC epoch milliseconds; None if the exchange does not publish it.
    listed_ms: int | None = None

    @property
    def decimals(self) -> Decimals:
        """The decimal places of prices and volumes, unknown if they are not credible."""
        return Decimals(_believed(self.price_decimals), _believed(self.volume_decimals))


def _believed(places: int | None) -> int | None:
    """Return a number of decimal places, or None if no candle could have so many."""
    return places if places is not None and 0 <= places <= MAX_PLACES else None
