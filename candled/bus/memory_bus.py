"""The bus within one process: a call for every listener."""

import logging

from .interface import Listener, Message

logger = logging.getLogger(__name__)


class MemoryBus:
    """`memory://`: ingest and serve share a process, so a message is delivered before `publish` returns."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def publish(self, message: Message) -> None:
        for listener in self._listeners:
            try:
                listener(message)
            except Exception:  # a listener's fault must not stop ingest
                logger.exception("a listener failed on %s", message)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def describe(self) -> dict[str, object]:
        return {"kind": "memory", "connected": True}
