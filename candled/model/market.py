"""Symbols, markets and topics."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from .decimals import MAX_PLACES
from .interval import Interval

_PART = r"[^\s/:]{1,32}"
#: The form of a symbol's text, as a regular expression and in words.
SYMBOL_PATTERN = f"{_PART}/{_PART}(?::{_PART})?"
SYMBOL_FORM = "BASE/QUOTE such as BTC/USDT, or BASE/QUOTE:SETTLE such as BTC/USDT:USDT"
_SYMBOL = re.compile(SYMBOL_PATTERN)


class Symbol(NamedTuple):
    """The name of a spot pair, written `BASE/QUOTE`, or of a contract, written `BASE/QUOTE:SETTLE`.

    `str()` and `parse` are inverses. Parts may contain any characters but blanks, `/` and `:`, and case matters.
    Source: ccxt's manual, "Contract naming conventions".
    """

    base: str
    quote: str
    #: The coin in which a contract is settled, and, for one that expires, `-` and the date: `USDT`, `BTC-261225`. Empty
    #: for a spot pair.
    settle: str = ""

    @staticmethod
    def parse(text: str) -> "Symbol":
        """Parse `BASE/QUOTE` or `BASE/QUOTE:SETTLE`.

        Raises:
            ValueError: the text has another form.
        """
        if _SYMBOL.fullmatch(text) is None:
            raise ValueError(f"expected {SYMBOL_FORM}, got {text!r}")
        pair, _, settle = text.partition(":")
        base, _, quote = pair.partition("/")
        return Symbol(base, quote, settle)

    @property
    def settle_coin(self) -> str:
        """The coin in which a contract is settled; empty for a spot pair."""
        return self.settle.partition("-")[0]

    @property
    def expiry(self) -> str:
        """The date at the end of `settle`, `YYMMDD`, with the strike and type of an option; empty if there is none."""
        return self.settle.partition("-")[2]

    def __str__(self) -> str:
        return f"{self.base}/{self.quote}:{self.settle}" if self.settle else f"{self.base}/{self.quote}"


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
