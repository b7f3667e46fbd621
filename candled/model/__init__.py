"""Value types: candles, symbols, intervals, markets and ranges. This package imports only `candled.errors`."""

from .candle import BarChange, BarTexts, Candle, are_valid, fold, group_parts
from .decimals import MAX_DIGITS, decimal_text
from .gaps import REASONS, Gap
from .interval import DAY, DAY_MS, DEFAULT_INTERVALS, MINUTE, MINUTE_MS, WEEK, Interval, sources
from .market import SYMBOL_FORM, SYMBOL_PATTERN, Decimals, Market, MarketKey, MarketState, PatternTopic, Symbol, Topic
from .ranges import ALL_TIME, END_OF_TIME_MS, Range, RangeSet
from .states import (
    HEALTHY_STATES,
    NOT_TRADED,
    STATE_REASONS,
    STATES,
    FeedState,
    Position,
    State,
    StateCounts,
    StateReason,
)
from .times import YEAR_10000_MS, iso_ms, parse_iso_ms

__all__ = [
    "ALL_TIME",
    "DAY",
    "DAY_MS",
    "DEFAULT_INTERVALS",
    "END_OF_TIME_MS",
    "HEALTHY_STATES",
    "MAX_DIGITS",
    "MINUTE",
    "MINUTE_MS",
    "NOT_TRADED",
    "REASONS",
    "STATES",
    "STATE_REASONS",
    "SYMBOL_FORM",
    "SYMBOL_PATTERN",
    "WEEK",
    "YEAR_10000_MS",
    "BarChange",
    "BarTexts",
    "Candle",
    "Decimals",
    "FeedState",
    "Gap",
    "Interval",
    "Market",
    "MarketKey",
    "MarketState",
    "PatternTopic",
    "Position",
    "Range",
    "RangeSet",
    "State",
    "StateCounts",
    "StateReason",
    "Symbol",
    "Topic",
    "are_valid",
    "decimal_text",
    "fold",
    "group_parts",
    "iso_ms",
    "parse_iso_ms",
    "sources",
]
