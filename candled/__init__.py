"""candled, a self-hosted candle server. What plugins may import is here."""

from .errors import CandledError, ConfigError, ExchangeError, HttpRefused, InvalidCandle, Unavailable
from .exchange import (
    Candles,
    Clock,
    Event,
    Exchange,
    Feed,
    Http,
    InvalidRow,
    Pong,
    Refused,
    SocketFeed,
    StreamFeed,
    Subscribed,
    Trouble,
    read_rows,
)
from .hookspecs import hookimpl
from .model import MINUTE_MS, Candle, Interval, Market, Symbol
from .settings import setting

__version__ = "0.1.0"

__all__ = [
    "MINUTE_MS",
    "Candle",
    "CandledError",
    "Candles",
    "Clock",
    "ConfigError",
    "Event",
    "Exchange",
    "ExchangeError",
    "Feed",
    "Http",
    "HttpRefused",
    "Interval",
    "InvalidCandle",
    "InvalidRow",
    "Market",
    "Pong",
    "Refused",
    "SocketFeed",
    "StreamFeed",
    "Subscribed",
    "Symbol",
    "Trouble",
    "Unavailable",
    "hookimpl",
    "read_rows",
    "setting",
]
