"""The bus within one process: a call for every listener."""

import logging
from collections import Counter
from collections.abc import Mapping

from candled.model import MarketKey

from .interface import Listener, Message, Position

logger = logging.getLogger(__name__)


class MemoryBus:
    """`memory://`: ingest and serve share a process, so a message is delivered before `publish` returns.

    `epoch` names the feeds of this process; no two starts may have the same.
    """

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self._listeners: list[Listener] = []
        self._published: Counter[MarketKey] = Counter()

    def publish(self, message: Message) -> Position:
        self._published[message.market] += 1
        position = Position(self.epoch, self._published[message.market])
        for listener in self._listeners:
            try:
                listener(message, position)
            except Exception:  # a listener's fault must not stop ingest
                logger.exception("a listener failed on %s", message)
        return position

    def add_listener(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def describe(self) -> dict[str, object]:
        return {"kind": "memory", "connected": True}

    def unpublished(self) -> Mapping[MarketKey, str]:
        return {}
