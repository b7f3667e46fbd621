"""The Python client of a candled server: `async for bar in client.bars("BTC/USDT", "5m")`."""

from .client import Client
from .closed_bars import ClosedBarStream
from .stream import BarStream
from .values import Bar, Bars, ConnectionEnded, MarketBar, RequestRejected, Status

__all__ = [
    "Bar",
    "BarStream",
    "Bars",
    "Client",
    "ClosedBarStream",
    "ConnectionEnded",
    "MarketBar",
    "RequestRejected",
    "Status",
]
