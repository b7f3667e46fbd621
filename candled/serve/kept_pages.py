"""Answers that many clients request: each is made at most once a second, and encoded once."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from math import inf

from candled.exchange import Clock
from candled.tasks import TaskSet

from .content_coding import PLAIN, ContentCoding

_MOST = 256  # answers


class KeptPage:
    """A body and its encoded forms, each made when a client first accepts it."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self._encoded: dict[str, bytes] = {}

    def encoded(self, coding: ContentCoding) -> tuple[bytes, ContentCoding]:
        """Return the body for a client, and its coding."""
        if not coding.applies_to(self.body):
            return self.body, PLAIN
        found = self._encoded.get(coding.name)
        if found is None:
            found = self._encoded[coding.name] = coding.encode(self.body)
        return found, coding


class KeptPages:
    """The last answers, by name or query. Making one may take several passes of the loop."""

    def __init__(self, clock: Clock, most: int = _MOST) -> None:
        self._clock = clock
        self._most = most
        #: Each with the monotonic time until which it lasts.
        self._pages: OrderedDict[Hashable, tuple[float, KeptPage]] = OrderedDict()
        self._tasks = TaskSet()
        #: The tasks that make answers now.
        self._making: dict[Hashable, asyncio.Task[KeptPage]] = {}

    async def find(self, key: Hashable, make: Callable[[], Awaitable[bytes]], lasts_s: float = 1.0) -> KeptPage:
        """Return an answer. If it is older than `lasts_s`, make it again, once for all who wait for it."""
        until, page = self._pages.get(key, (-inf, None))
        if page is not None and self._clock.monotonic() < until:
            self._pages.move_to_end(key)
            return page
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = self._tasks.start(self._make_page(key, make, lasts_s))
        return await asyncio.shield(making)  # others wait for it too

    async def _make_page(self, key: Hashable, make: Callable[[], Awaitable[bytes]], lasts_s: float) -> KeptPage:
        until = self._clock.monotonic() + lasts_s
        try:
            body = await make()
        finally:
            del self._making[key]
        _, page = self._pages.get(key, (-inf, None))
        if page is None or page.body != body:
            page = KeptPage(body)
        self._pages[key] = until, page
        self._pages.move_to_end(key)
        if len(self._pages) > self._most:
            self._pages.popitem(last=False)
        return page
