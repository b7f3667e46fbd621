"""Symbols, markets and topics."""

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal, NamedTuple

from .decimals import MAX_PLACES, is_bounded
from .interval import Interval
from .times import YEAR_10000_MS

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
    def is_well_formed(self) -> bool:
        """True if `parse` returns this symbol from its text, and the text has only printable characters."""
        return _is_well_formed(self)

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


@lru_cache(maxsize=10_000)  # patterns check this for every listed market at each reload
def _is_well_formed(symbol: Symbol) -> bool:
    text = str(symbol)
    return text.isprintable() and _SYMBOL.fullmatch(text) is not None and Symbol.parse(text) == symbol


class MarketKey(NamedTuple):
    """The key of a market: a symbol at one configured exchange."""

    exchange: str
    symbol: Symbol

    def __str__(self) -> str:
        return f"{self.exchange}:{self.symbol}"

    def describe(self) -> dict[str, str]:
        """Return the key as JSON values."""
        return {"exchange": self.exchange, "symbol": str(self.symbol)}


class Topic(NamedTuple):
    """The subject of a room: one market and one interval."""

    market: MarketKey
    interval: Interval


class PatternTopic(NamedTuple):
    """The subject of a pattern room: the markets of one exchange that a pattern selects, and one interval.

    `pattern` is a text that `candled.symbol_pattern` reads. With `!` it selects the markets that it does not match.
    """

    exchange: str
    pattern: str
    interval: Interval


class Decimals(NamedTuple):
    """The number of decimal places of a market's prices and volumes, None where unknown."""

    price: int | None = None
    volume: int | None = None

    def or_else(self, other: "Decimals") -> "Decimals":
        """Return these counts, with unknown ones taken from `other`."""
        return Decimals(*(second if first is None else first for first, second in zip(self, other, strict=True)))


MarketState = Literal["upcoming", "trading", "suspended", "delisted"]
"""The life of a market: listed but not open yet, open, halted for a while, or closed for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """A market as the exchange lists it. A fact that the exchange does not publish is None.

    A step, `quote_volume_24h`, `listed_ms` or `delisted_ms` beyond the bounds of candles becomes None too.
    """

    #: The market's symbol in candled's form.
    symbol: Symbol
    #: The number of decimal places of prices, 0 to 49. Without it, that of `tick_size` applies.
    price_decimals: int | None = None
    #: The number of decimal places of volumes, 0 to 49. Without it, that of `volume_step` applies.
    volume_decimals: int | None = None
    #: The smallest step of prices, which may be 0.5 or 25.
    tick_size: Decimal | None = None
    #: The smallest step of volumes.
    volume_step: Decimal | None = None
    #: The state of trading. A market that the exchange leaves out of its list, after it was listed, is delisted.
    status: MarketState = "trading"
    #: The start of trading, UTC epoch milliseconds.
    listed_ms: int | None = None
    #: The end of trading, UTC epoch milliseconds. Without it, the time at which the daemon noticed it applies.
    delisted_ms: int | None = None
    #: Its former symbol, if the exchange has renamed the market and its prices and volumes go on unchanged.
    former: Symbol | None = None
    #: The volume of the last 24 hours in quote currency.
    quote_volume_24h: Decimal | None = None

    def __post_init__(self) -> None:
        """Replace facts that are not credible with None. Printing 1e999999999 would take all memory."""
        for name in ("tick_size", "volume_step", "quote_volume_24h"):
            number = getattr(self, name)
            if number is not None and not (is_bounded(number) and number >= 0):
                object.__setattr__(self, name, None)
        for name in ("listed_ms", "delisted_ms"):
            at_ms = getattr(self, name)
            if at_ms is not None and not 0 <= at_ms < YEAR_10000_MS:
                object.__setattr__(self, name, None)

    @property
    def active(self) -> bool:
        """True if the market trades now."""
        return self.status == "trading"

    @property
    def decimals(self) -> Decimals:
        """The decimal places of prices and volumes, unknown if they are not credible."""
        return Decimals(_believed(self.price_decimals), _believed(self.volume_decimals)).or_else(
            Decimals(_places_of(self.tick_size), _places_of(self.volume_step))
        )


def _places_of(step: Decimal | None) -> int | None:
    """Return the decimal places of the multiples of a step; None if there is no credible step."""
    if not step:
        return None
    exponent = step.normalize().as_tuple().exponent
    return _believed(max(0, -int(exponent)))


def _believed(places: int | None) -> int | None:
    """Return a number of decimal places, or None if no candle could have so many."""
    return places if places is not None and 0 <= places <= MAX_PLACES else None
