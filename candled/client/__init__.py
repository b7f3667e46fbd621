"""The Python client of a candled server: `async for bar in client.bars("BTC/USDT", "5m")`."""

from .client import Client
from .stream import BarStream
from .values import Bar, Bars, ConnectionEnded, RequestRejected, Status

__all__ = ["Bar", "BarStream", "Bars", "Client", "ConnectionEnded", "RequestRejected", "Status"]
