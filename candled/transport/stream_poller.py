"""Watches the sockets of HTTP connections apart from all others, and reports a few of them in each pass of the loop."""

import selectors
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tornado.ioloop import IOLoop

Handler = Callable[[int, int], None]
"""Handles the events of a socket, given its descriptor and the events as Tornado numbers them."""

_MASKS = (
    (IOLoop.READ, selectors.EVENT_READ),
    (IOLoop.WRITE, selectors.EVENT_WRITE),
)  # an event in Tornado's numbers and in those of `selectors`
_EVENTS = {
    mask: sum(event for event, its_mask in _MASKS if mask & its_mask)
    for mask in range(1 + selectors.EVENT_READ + selectors.EVENT_WRITE)
}


class StreamPoller:
    """Takes the place of the loop in streams of Tornado. `has_time` returns True if a pass has time for another socket.

    The loop watches all these sockets as one. When hundreds of them are ready in the same moment, a pass handles as
    many as it has time for, at least one, and the others wait in order. The sockets of clients wait for none of them.
    """

    READ, WRITE, ERROR = IOLoop.READ, IOLoop.WRITE, IOLoop.ERROR

    def __init__(self, loop: AbstractEventLoop, has_time: Callable[[], bool]) -> None:
        self._loop = loop
        self._has_time = has_time
        self._selector = selectors.DefaultSelector()
        self._handlers: dict[int, tuple[Handler, Callable[[], bool] | None]] = {}
        # sockets that were ready, the next one first
        self._ready: deque[tuple[selectors.SelectorKey, int]] = deque()
        # True while the events of a socket are handled
        self.is_handling = False
        self._io_loop = IOLoop.current()
        loop.add_reader(self._selector, self._handle_ready)

    def __getattr__(self, name: str) -> Any:
        """Return another method of Tornado's loop."""
        return getattr(self._io_loop, name)

    def close(self) -> None:
        """Watch no more sockets."""
        if self._selector.get_map() is not None:
            self._loop.remove_reader(self._selector)
            self._selector.close()

    def add_handler(self, descriptor: int, handler: Handler, events: int) -> None:
        """Call a handler whenever one of the events occurs.

        If its object has a method `answer_readable`, that is called first when bytes have arrived. It returns True if
        it has handled them.
        """
        answer = getattr(getattr(handler, "__self__", None), "answer_readable", None)
        self._handlers[descriptor] = handler, answer
        self.update_handler(descriptor, events)

    def update_handler(self, descriptor: int, events: int) -> None:
        """Watch a socket for other events. Errors count as the events that it is watched for."""
        wanted = sum(mask for event, mask in _MASKS if events & event)
        watched = self._selector.get_map()
        key = None if watched is None else watched.get(descriptor)
        if not wanted or watched is None:
            self._forget(descriptor)
        elif key is None:
            self._selector.register(descriptor, wanted, self._handlers[descriptor])
        elif key.events != wanted:
            self._selector.modify(descriptor, wanted, key.data)

    def remove_handler(self, descriptor: int) -> None:
        """Stop watching a socket, before it is closed."""
        self._forget(descriptor)
        self._handlers.pop(descriptor, None)

    def _forget(self, descriptor: int) -> None:
        with suppress(KeyError):
            self._selector.unregister(descriptor)

    def _handle_ready(self) -> None:
        """Handle the events of the next sockets."""
        self._has_time()  # starts the time
        if not self._ready:
            self._ready.extend(self._selector.select(0))
        watched = self._selector.get_map()
        self.is_handling = True
        try:
            while self._ready:
                key, mask = self._ready.popleft()
                if watched.get(key.fd) is not key:  # it has changed since; if it is still ready, it is reported again
                    continue
                handler, answer = key.data
                with suppress(Exception):  # the stream has logged it and closed the connection
                    if mask != selectors.EVENT_READ or answer is None or not answer():
                        handler(key.fd, _EVENTS[mask])
                if not self._has_time():
                    break
        finally:
            self.is_handling = False
