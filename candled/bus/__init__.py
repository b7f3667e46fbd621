"""Candles and news of history, from ingest to whoever serves them."""

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
