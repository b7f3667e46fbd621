"""Candles and news of history, from ingest to whoever serves them."""

from .interface import Bus, Healed, Message, MinuteChanged

__all__ = ["Bus", "Healed", "Message", "MinuteChanged"]
