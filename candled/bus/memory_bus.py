"""The bus within one process: each listener is called directly."""

import logging
import secrets
from collections import Counter
from collections.abc import Mapping

from candled.bus import FeedListener, Message
from candled.model import MarketKey, Position

logger = logging.getLogger(__name__)


class MemoryBus:
    """`memory://`: ingest and serving share a process, so a message is delivered before `publish` returns.

    `epoch` is the name of this process's feeds. It must differ between starts, as it does by default.
    """

    def __init__(self, epoch: str = "") -> None:
        self.epoch = epoch or secrets.token_hex(6)
        self._listeners: list[FeedListener] = []
        self._published: Counter[MarketKey] = Counter()

    def publish(self, message: Message) -> Position:
        """See `Bus.publish`."""
        self._published[message.market] += 1
        position = Position(self.epoch, self._published[message.market])
        for listener in self._listeners:
            try:
                listener.on_feed_message(message, position)
            except Exception:  # an error in a listener must not stop ingest
                logger.exception("a listener failed on %s", message)
        return position

    def add_listener(self, listener: FeedListener) -> None:
        """See `Bus.add_listener`."""
        self._listeners.append(listener)

    def describe(self) -> dict[str, object]:
        """See `Bus.describe`."""
        return {"kind": "memory", "connected": True}

    def unpublished_markets(self) -> Mapping[MarketKey, str]:
        """See `Bus.unpublished_markets`. A message within the process always arrives."""
        return {}
