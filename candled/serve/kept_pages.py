"""Answers that many clients request: each is made at most once a second, and encoded once. Pure."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import inf

from candled.exchange import Clock

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
    """The last answers, by name or query."""

    def __init__(self, clock: Clock, most: int = _MOST) -> None:
        self._clock = clock
        self._most = most
        self._pages: OrderedDict[Hashable, tuple[float, KeptPage]] = OrderedDict()

    def find(self, key: Hashable, make: Callable[[], bytes], lasts_s: float = 1.0) -> KeptPage:
        """Return an answer, which is made again if it is older than `lasts_s`."""
        now = self._clock.monotonic()
        until, page = self._pages.get(key, (-inf, None))
        if page is None or now >= until:
            body = make()
            if page is None or page.body != body:
                page = KeptPage(body)
            self._pages[key] = now + lasts_s, page
            if len(self._pages) > self._most:
                self._pages.popitem(last=False)
        self._pages.move_to_end(key)
        return page
