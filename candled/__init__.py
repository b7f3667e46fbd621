"""candled, a self-hosted candle server. Plugins import their names from here.

Nothing is imported before it is used, because the daemon must react to signals before it imports the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        CandledError,
        ConfigError,
        ExchangeError,
        HttpRejected,
        InvalidCandle,
        StoreRejected,
        StoreUnavailable,
        Unavailable,
    )
    from .evidence import Evidence, Parity, skip_without
    from .exchange import (
        Candles,
        Clock,
        ClosedFlag,
        ClosingSoon,
        Compression,
        ConnectionLimits,
        Event,
        Exchange,
        Feed,
        FeedError,
        Http,
        HttpAnswer,
        InvalidRow,
        Pong,
        Ready,
        Reply,
        RequestBudget,
        Row,
        SocketFeed,
        StreamFeed,
        Subscribed,
        SubscriptionRejected,
        read_rows,
        read_rows_in_slices,
        rows_within,
    )
    from .frames import (
        CommandFeed,
        SubscribeRequests,
        base_volume,
        check_code,
        find_symbol,
        parse_object,
        read_candles,
        reading,
        reject_symbol,
        take_cells,
        take_list,
        write_object,
    )
    from .hookspecs import RouteContext, hookimpl
    from .market_table import MarketTable
    from .model import (
        MINUTE_MS,
        BarTexts,
        Candle,
        Gap,
        Interval,
        Market,
        MarketKey,
        MarketState,
        Range,
        Symbol,
        parse_iso_ms,
    )
    from .polling import PollingFeed
    from .settings import Distinct, Duration, HttpUrl, Settings, WebSocketUrl, setting
    from .store.interface import BadRow, Store
    from .stored_minutes import StoredMinutes
    from .tasks import merge_iterators
    from .trade_bars import TradeBars

__version__ = "0.1.0"

__all__ = [
    "MINUTE_MS",
    "BadRow",
    "BarTexts",
    "Candle",
    "CandledError",
    "Candles",
    "Clock",
    "ClosedFlag",
    "ClosingSoon",
    "CommandFeed",
    "Compression",
    "ConfigError",
    "ConnectionLimits",
    "Distinct",
    "Duration",
    "Event",
    "Evidence",
    "Exchange",
    "ExchangeError",
    "Feed",
    "FeedError",
    "Gap",
    "Http",
    "HttpAnswer",
    "HttpRejected",
    "HttpUrl",
    "Interval",
    "InvalidCandle",
    "InvalidRow",
    "Market",
    "MarketKey",
    "MarketState",
    "MarketTable",
    "Parity",
    "PollingFeed",
    "Pong",
    "Range",
    "Ready",
    "Reply",
    "RequestBudget",
    "RouteContext",
    "Row",
    "Settings",
    "SocketFeed",
    "Store",
    "StoreRejected",
    "StoreUnavailable",
    "StoredMinutes",
    "StreamFeed",
    "SubscribeRequests",
    "Subscribed",
    "SubscriptionRejected",
    "Symbol",
    "TradeBars",
    "Unavailable",
    "WebSocketUrl",
    "base_volume",
    "check_code",
    "find_symbol",
    "hookimpl",
    "merge_iterators",
    "parse_iso_ms",
    "parse_object",
    "read_candles",
    "read_rows",
    "read_rows_in_slices",
    "reading",
    "reject_symbol",
    "rows_within",
    "setting",
    "skip_without",
    "take_cells",
    "take_list",
    "write_object",
]

_SOURCES = (
    "errors",
    "evidence",
    "exchange",
    "frames",
    "hookspecs",
    "market_table",
    "model",
    "settings",
    "polling",
    "tasks",
    "trade_bars",
    "stored_minutes",
    "store.interface",
)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Return a name of `__all__` from the module that defines it."""
        if name in __all__:
            for source in _SOURCES:
                module = import_module(f"{__name__}.{source}")
                if hasattr(module, name):
                    globals()[name] = value = getattr(module, name)
                    return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
