"""Counts of connections and HTTP requests since the start of the process, for metrics."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeVar

from candled.histogram import SECONDS, Histogram

T = TypeVar("T")

_PATHS_KEPT = 1024
_LITERAL = re.compile(r"(?:[\w/-]|\.(?!\*))*")  # the beginning of a pattern that is the path itself
# Close codes with a series of their own. A client may send any of 3000 to 4999.
_CODES = {1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011, 3005, 3008, 3012, 3013, 3500, 3502, 3504}
OTHER = "other"


def route_name(pattern: str) -> str:
    """Return the name of a route: its path, with `*` in place of the part that is not fixed."""
    literal = _LITERAL.match(pattern)
    path = "" if literal is None else literal[0]
    if path == pattern:
        return path
    return f"{path.rstrip('/')}/*" if path else OTHER


class ServerCounts:
    """The counts of one port, whose routes have these `patterns`. A path's route is the first one that matches."""

    def __init__(self, patterns: Iterable[str]) -> None:
        #: Clients that connected, and ends of their connections by close code, 1006 without one.
        self.connects = 0
        self.closes: Counter[str] = Counter()
        #: Handshakes, and requests for events, that a limit or the origin policy refused, by status.
        self.refusals: Counter[str] = Counter()
        #: Answers by route and status, and the seconds that those of handlers took, by route.
        self.requests: Counter[tuple[str, int]] = Counter()
        self.request_s: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._find_route = make_finder(((pattern, route_name(pattern)) for pattern in patterns), OTHER)

    def count_close(self, code: int) -> None:
        """Count the end of a client's connection."""
        self.closes[str(code) if code in _CODES else OTHER] += 1

    def count_answer(self, path: str, status: int) -> None:
        """Count an answer from memory."""
        self.requests[self._find_route(path), status] += 1

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count the answer of a handler."""
        route = self._find_route(path)
        self.requests[route, status] += 1
        self.request_s[route].observe(seconds)


def make_finder(routes: Iterable[tuple[str, T]], otherwise: T) -> Callable[[str], T]:
    """Return a function that finds the value of a path: that of the first pattern that matches it."""
    compiled = [(re.compile(pattern), value) for pattern, value in routes]

    @lru_cache(maxsize=_PATHS_KEPT)
    def find(path: str) -> T:
        return next((value for pattern, value in compiled if pattern.fullmatch(path)), otherwise)

    return find
