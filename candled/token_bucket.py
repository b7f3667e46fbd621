"""A budget in time: so many a second, so many at once, and closed for a while if need be."""

from typing import NamedTuple, Self

_MOST_DEBT = 100.0  # tokens that are reserved and still to come
_ROUNDING = 1e-9  # or it would be waited for times too short for any clock
MOST_CLOSED_S = 3600.0  # no host is left alone for longer, whatever it asked for


class BucketState(NamedTuple):
    """What a bucket has to remember: tokens as of a time, and until when it is closed, in seconds of one clock."""

    tokens: float
    at: float
    closed_until: float


class TokenBucket:
    """At most `rate` a second on average and `burst` at once. Pure: the time is an argument.

    A host that asked for silence (429, 418, `Retry-After`) is closed with `close_until`.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = max(1.0, rate if burst is None else burst)
        self._tokens = self.burst
        self._at = 0.0
        self._closed_until = 0.0

    @classmethod
    def restored(cls, rate: float, state: BucketState, now: float) -> Self:
        """Return a bucket that goes on from a state, which a clock that was set, or somebody else, may have spoilt."""
        bucket = cls(rate)
        tokens, at, closed_until = state
        bucket._closed_until = closed_until if now < closed_until <= now + MOST_CLOSED_S else 0.0
        bucket._tokens = min(bucket.burst, tokens) if tokens >= -_MOST_DEBT else 0.0
        bucket._at = at if at <= max(now, bucket._closed_until) else now
        return bucket

    @property
    def state(self) -> BucketState:
        """What `restored` goes on from."""
        return BucketState(self._tokens, self._at, self._closed_until)

    def limit(self, rate: float) -> None:
        """Give out no more than `rate` a second from now on."""
        if rate < self.rate:
            self.rate, self.burst = rate, max(1.0, rate)
            self._tokens = min(self._tokens, self.burst)

    def try_take(self, now: float) -> float:
        """Take a token if there is one: 0.0. Else the seconds after which to try again."""
        if now < self._closed_until:
            return self._closed_until - now
        self._refill(now)
        if self._tokens >= 1.0 - _ROUNDING:
            self._tokens = max(0.0, self._tokens - 1.0)
            return 0.0
        return (1.0 - self._tokens) / self.rate

    def reserve(self, now: float) -> float:
        """Take a token, also one that is still to come; return the seconds after which it is there.

        While the bucket is closed nothing is taken.
        """
        if now < self._closed_until:
            return self._closed_until - now
        self._refill(now)
        self._tokens -= 1.0
        return 0.0 if self._tokens >= -_ROUNDING else -self._tokens / self.rate

    def close_until(self, at: float) -> None:
        """Give out nothing before `at`, and start from an empty bucket then."""
        if at > self._closed_until:
            self._closed_until = at
            self._tokens = 0.0
            self._at = at

    def closed_for(self, now: float) -> float:
        """Seconds until the host may be asked again; 0.0 when it may be asked now."""
        return max(0.0, self._closed_until - now)

    def remaining_share(self, now: float) -> float:
        """The share of the burst that is left, 0 to 1."""
        self._refill(now)
        return 0.0 if now < self._closed_until else max(0.0, min(1.0, self._tokens / self.burst))

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
