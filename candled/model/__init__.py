"""Values: what a candle, a symbol, an interval and a market are. Needs nothing but `candled.errors`."""

from .candle import MINUTE_MS, Candle, decimal_text, fold
from .gaps import REASONS
from .interval import DEFAULT_INTERVALS, MINUTE, Interval, sources
from .market import Decimals, Market, MarketKey, Symbol
from .ranges import Range, RangeSet
from .times import iso_ms, parse_iso_ms

__all__ = [
    "DEFAULT_INTERVALS",
    "MINUTE",
    "MINUTE_MS",
    "REASONS",
    "Candle",
    "Decimals",
    "Interval",
    "Market",
    "MarketKey",
    "Range",
    "RangeSet",
    "Symbol",
    "decimal_text",
    "fold",
    "iso_ms",
    "parse_iso_ms",
    "sources",
]
