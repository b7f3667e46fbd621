"""The bus: carries candles and changes of history from ingest to the serving processes."""

from .interface import Bus, FeedMetadata, HistoryChanged, Message, MessagesLost, MinuteChanged, Position, StateChanged

__all__ = [
    "Bus",
    "FeedMetadata",
    "HistoryChanged",
    "Message",
    "MessagesLost",
    "MinuteChanged",
    "Position",
    "StateChanged",
]
