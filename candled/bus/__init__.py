"""Candles and news of history, from ingest to whoever serves them."""

from .interface import Bus, Facts, Healed, Message, MinuteChanged, Missed, Position, StateChanged

__all__ = ["Bus", "Facts", "Healed", "Message", "MinuteChanged", "Missed", "Position", "StateChanged"]
