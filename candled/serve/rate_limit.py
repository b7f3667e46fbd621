"""Rate limits per address: a fixed window of requests, counted in this process or shared by all processes."""

import base64
import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from candled.addresses import client_of
from candled.errors import Unavailable
from candled.exchange import Clock

if TYPE_CHECKING:
    from candled.config.sections import LimitSettings

TOO_MANY = "Too many requests, please try again later."
HEADERS = (
    "RateLimit",
    "RateLimit-Limit",
    "RateLimit-Policy",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
)
GROUPS = ("api", "udf", "klines")
_MOST_KEYS = 100_000  # about 20 MB
_MOST_REFUSED = 10_000  # addresses whose refusals are kept, about 10 MB
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


class Counter(Protocol):
    """Counts requests by key in fixed windows."""

    async def count_hit(self, key: str, window_s: float) -> tuple[int, float]:
        """Count a request; return the requests in the key's window, this one included, and the seconds left in it.

        A key's window begins with its first request.

        Raises:
            Unavailable: the counter cannot be reached.
        """


class MemoryCounter:
    """Counts in this process, for a limited number of keys. Above that, the oldest window is dropped."""

    def __init__(self, clock: Clock, most: int = _MOST_KEYS) -> None:
        self._clock = clock
        self._most = most
        self._windows: dict[float, OrderedDict[str, tuple[int, float]]] = {}  # by length; oldest window first

    async def count_hit(self, key: str, window_s: float) -> tuple[int, float]:
        """Count a request, as `Counter.count_hit` does; never raises."""
        return self.count_now(key, window_s)

    def count_now(self, key: str, window_s: float) -> tuple[int, float]:
        """Count a request; the result is that of `count_hit`."""
        now = self._clock.monotonic()
        windows = self._windows.setdefault(window_s, OrderedDict())
        while windows:
            oldest, (_, ends) = next(iter(windows.items()))
            if ends > now and len(windows) <= self._most:
                break
            del windows[oldest]
        count, ends = windows.get(key, (0, now + window_s))
        windows[key] = count + 1, ends
        return count + 1, ends - now


@dataclass(slots=True)
class RateLimitResult:
    """The result for one request."""

    #: True if the request is within the limit.
    allowed: bool
    #: The counted requests of the address in this window; 0 without a limit.
    count: int
    #: The headers of the answer that report the limit, by name; empty without a limit.
    headers: Mapping[str, str]


UNLIMITED = RateLimitResult(True, 0, {})


@dataclass(slots=True)
class _Refusal:
    """An address that has used up its requests."""

    #: Monotonic time at which its window ends.
    until: float
    #: The result for its requests.
    result: RateLimitResult
    #: Monotonic time until which the result is right: its headers have whole seconds.
    result_until: float


class RateLimit:
    """The limit of one group of routes: none before `set_limits`. `styles` are `legacy`, `draft-6`, `draft-8`.

    While `counter` is unavailable, this process counts on its own: a limit that is too mild is better than no service.
    An address over its limit is refused without the counter until its window ends.
    """

    def __init__(self, group: str, counter: Counter, clock: Clock) -> None:
        self._group = group
        self._counter = counter
        self._spare = MemoryCounter(clock)
        self._clock = clock
        self._refusals: OrderedDict[str, _Refusal] = OrderedDict()  # by owner, oldest first
        self.requests, self.window_s = 0, 0.0
        self._styles: Sequence[str] = ()
        # True if answers that a client or a cache keeps are not counted
        self.exempts_cached = False

    def set_limits(
        self, requests: int, window_s: float, styles: Sequence[str], *, exempts_cached: bool = False
    ) -> None:
        """Change the limit. Windows of the former length are not counted any more."""
        if (requests, window_s) != (self.requests, self.window_s):
            self._refusals.clear()
        self.requests, self.window_s, self._styles = requests, window_s, styles
        self.exempts_cached = exempts_cached

    async def check_request(self, address: str) -> RateLimitResult:
        """Count a request of `address` and return the result."""
        result = self.check_now(address)
        if result is not None:
            return result
        owner = client_of(address)
        key = f"{self._group}:{owner}"
        try:
            count, left_s = await self._counter.count_hit(key, self.window_s)
        except Unavailable:
            count, left_s = self._spare.count_now(key, self.window_s)
        return self._decide(owner, count, left_s)

    def check_now(self, address: str) -> RateLimitResult | None:
        """Count a request and return the result; None, without counting it, if only a remote counter has the result."""
        if not self.requests:
            return UNLIMITED
        owner = client_of(address)
        refused = self._refused(owner)
        if refused is not None or not isinstance(self._counter, MemoryCounter):
            return refused
        return self._decide(owner, *self._counter.count_now(f"{self._group}:{owner}", self.window_s))

    def refuse_now(self, address: str) -> RateLimitResult | None:
        """Return the result for an address that is over its limit, else None."""
        return self._refused(client_of(address)) if self.requests else None

    def _decide(self, owner: str, count: int, left_s: float) -> RateLimitResult:
        result = self._result(owner, count, left_s)
        if not result.allowed and left_s > 0:
            until = self._clock.monotonic() + left_s
            self._refusals[owner] = _Refusal(until, result, until - math.ceil(left_s) + 1)
            if len(self._refusals) > _MOST_REFUSED:
                self._refusals.popitem(last=False)
        return result

    def _refused(self, owner: str) -> RateLimitResult | None:
        """Return the result for an address that has used up the requests of its window, else None."""
        found = self._refusals.get(owner)
        if found is None:
            return None
        now = self._clock.monotonic()
        if now >= found.until:
            del self._refusals[owner]
            return None
        if now >= found.result_until:
            left_s = found.until - now
            found.result = self._result(owner, found.result.count, left_s)
            found.result_until = found.until - math.ceil(left_s) + 1
        return found.result

    def _result(self, owner: str, count: int, left_s: float) -> RateLimitResult:
        allowed = count <= self.requests
        headers = self._limit_headers(max(self.requests - count, 0), left_s, owner)
        if not allowed:
            headers["Retry-After"] = str(math.ceil(left_s))
        return RateLimitResult(allowed, count, headers)

    def _limit_headers(self, remaining: int, left_s: float, owner: str) -> dict[str, str]:
        limit, window_s, reset_s = self.requests, math.ceil(self.window_s), math.ceil(left_s)
        headers = {}
        if "legacy" in self._styles:
            headers["X-RateLimit-Limit"] = str(limit)
            headers["X-RateLimit-Remaining"] = str(remaining)
            headers["X-RateLimit-Reset"] = str(math.ceil(self._clock.now_ms() / 1000 + left_s))
        if "draft-6" in self._styles:
            headers["RateLimit-Policy"] = f"{limit};w={window_s}"
            headers["RateLimit-Limit"] = str(limit)
            headers["RateLimit-Remaining"] = str(remaining)
            headers["RateLimit-Reset"] = str(reset_s)
        if "draft-8" in self._styles:
            name = f'"{limit}-in-{_span(window_s)}"'
            partition = base64.b64encode(hashlib.sha256(owner.encode()).hexdigest()[:12].encode()).decode()
            headers["RateLimit-Policy"] = f"{name}; q={limit}; w={window_s}; pk=:{partition}:"
            headers["RateLimit"] = f"{name}; r={remaining}; t={reset_s}"
        return headers


class RateLimits:
    """The limits of all groups of routes. `counter` counts the requests of each address."""

    def __init__(self, settings: "LimitSettings", counter: Counter, clock: Clock) -> None:
        #: By the name of the group, as the settings have it.
        self.groups = {group: RateLimit(group, counter, clock) for group in GROUPS}
        self.set_limits(settings)

    def set_limits(self, settings: "LimitSettings") -> None:
        """Take the limits of new settings."""
        for group, limit in self.groups.items():
            requests, window = getattr(settings, f"{group}_requests"), getattr(settings, f"{group}_window")
            limit.set_limits(requests, window.total_seconds(), settings.headers, exempts_cached=settings.exempt_cached)


def _span(seconds: int) -> str:
    """Return a duration in the largest unit that divides it, such as `15min` or `1h`."""
    size, unit = next(one for one in _UNITS if seconds % one[0] == 0)
    return f"{seconds // size}{unit}"
