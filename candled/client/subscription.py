"""The common parts of subscriptions, and of the streams that follow them."""

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from .values import RequestRejected, Status

S = TypeVar("S", bound="Stream[Any]")
T = TypeVar("T")


class Subscription(ABC, Generic[S]):
    """A subscription, shared by all streams of the client that follow it.

    `named` are the fields that name it in messages: `symbol`, which may be a pattern, `interval`, and `exchange` unless
    it is the default.
    """

    def __init__(self, named: dict[str, str]) -> None:
        self.named = named
        # id of the last `subscribe` message
        self.asked: int | None = None
        # True once the server itself repeats what that message asks for, after a temporary error
        self.is_repeated_by_server = False
        # set while the server refuses the subscription
        self.refusal: RequestRejected | None = None
        self.status = Status("connecting")
        self.followers: weakref.WeakSet[S] = weakref.WeakSet()

    @abstractmethod
    def subscribe_message(self, number: int) -> dict[str, Any]:
        """Return the message that subscribes."""

    @abstractmethod
    def on_acknowledged(self) -> None:
        """Apply `subscribed`."""

    def on_refused(self, error: RequestRejected) -> None:
        """Record that the subscription was permanently refused."""
        self.refusal = error
        self.set_status(Status("refused", message=str(error)))

    def on_connection_lost(self, status: Status) -> None:
        """Record that the connection is lost."""
        self.set_status(status)

    def set_status(self, status: Status) -> None:
        """Set the status, and notify the streams if it changed."""
        if status != self.status:
            self.status = status
            for follower in list(self.followers):
                follower.status_changed(status)


class Stream(ABC, Generic[T]):
    """An iterator over what arrives for a subscription, until it is closed or no longer referenced."""

    def __init__(
        self, topic: Subscription[Any], on_status: Callable[[Status], None] | None, ended: Callable[[Any], None]
    ) -> None:
        # Also called when the stream is no longer referenced, as after `break`.
        self._ended = weakref.finalize(self, ended, topic)
        self._ended.atexit = False
        self._topic = topic
        self._on_status = on_status
        # set when this stream, unlike others of the subscription, cannot continue
        self._error: RequestRejected | None = None
        self._changed = asyncio.Event()
        self._closed = False
        topic.followers.add(self)

    @property
    def status(self) -> Status:
        """The current status of the stream."""
        return Status("closed") if self._closed else self._topic.status

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next item.

        Raises:
            RequestRejected: the server refuses this subscription, or too many closed bars were not read.
            StopAsyncIteration: the stream was closed.
        """
        while (item := self._take_next()) is None:
            if self._closed:
                raise StopAsyncIteration
            if error := self._error or self._topic.refusal:
                raise error
            self._changed.clear()
            await self._changed.wait()
        return item

    @abstractmethod
    def _take_next(self) -> T | None:
        """Remove the next item from the queue and return it; return None if the queue is empty."""

    def status_changed(self, status: Status) -> None:
        """Pass a new status on."""
        self._changed.set()
        if self._on_status is not None:
            self._on_status(status)

    def close(self) -> None:
        """End the loop after the bars that are already queued."""
        self._closed = True
        self._topic.followers.discard(self)
        self._changed.set()
        self._ended()

    async def aclose(self) -> None:
        """Close the stream, as `close` does, for `contextlib.aclosing`."""
        self.close()
