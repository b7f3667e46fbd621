"""A rate limit with bursts, which can be closed for a while."""

from typing import NamedTuple, Self

# The largest debt of a credible state: this many tokens, or those of this many seconds if that is more.
_MOST_DEBT, _MOST_DEBT_S = 100.0, 60.0
_ROUNDING = 1e-9  # avoids waits that are too short for any clock
MOST_CLOSED_S = 3600.0  # no host is avoided for longer, regardless of its request


class BucketState(NamedTuple):
    """The state of a bucket: its tokens at the time `at`, and when it opens again. Times are seconds of one clock."""

    tokens: float
    at: float
    closed_until: float


class TokenBucket:
    """Allows at most `rate` a second on average and `burst` in a row. Pure: the time is an argument.

    If a host asks for a pause (429, 418, `Retry-After`), close its bucket with `close_until`.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = max(1.0, rate if burst is None else burst)
        self._tokens = self.burst
        self._at = 0.0
        self._closed_until = 0.0

    @classmethod
    def restored(cls, rate: float, state: BucketState, now: float) -> Self:
        """Return a bucket that continues from a state. The state may be invalid, for example after a clock was set."""
        bucket = cls(rate)
        tokens, at, closed_until = state
        bucket._closed_until = closed_until if now < closed_until <= now + MOST_CLOSED_S else 0.0
        bucket._tokens = min(bucket.burst, tokens) if tokens >= -max(_MOST_DEBT, _MOST_DEBT_S * rate) else 0.0
        bucket._at = at if at <= max(now, bucket._closed_until) else now
        return bucket

    @property
    def state(self) -> BucketState:
        """The state for `restored`."""
        return BucketState(self._tokens, self._at, self._closed_until)

    def limit_rate(self, rate: float) -> None:
        """Allow at most `rate` a second from now on."""
        if rate < self.rate:
            self.rate, self.burst = rate, max(1.0, rate)
            self._tokens = min(self._tokens, self.burst)

    def try_take(self, now: float, weight: float = 1.0) -> float:
        """Take `weight` tokens and return 0.0, or return the seconds after which to try again.

        A weight above the burst needs a full bucket, and the next taker waits until it is paid for. A weight of 0 only
        waits while the bucket is closed.
        """
        if now < self._closed_until:
            return self._closed_until - now
        self._refill(now)
        needed = min(weight, self.burst)
        if self._tokens >= needed - _ROUNDING or not weight:
            self._tokens = max(needed - weight, self._tokens - weight)
            return 0.0
        return (needed - self._tokens) / self.rate

    def give_back(self) -> None:
        """Return a token that was not used."""
        self._tokens = min(self.burst, self._tokens + 1.0)

    def reserve(self, now: float, weight: float = 1.0) -> float:
        """Take `weight` tokens, even ones that are not available yet; return the seconds until they are.

        While the bucket is closed, nothing is taken.
        """
        if now < self._closed_until:
            return self._closed_until - now
        self._refill(now)
        self._tokens -= weight
        return 0.0 if not weight or self._tokens >= -_ROUNDING else -self._tokens / self.rate

    def close_until(self, at: float) -> None:
        """Allow nothing before `at`, and start with an empty bucket then."""
        if at > self._closed_until:
            self._closed_until = at
            self._tokens = 0.0
            self._at = at

    def closed_for(self, now: float) -> float:
        """Return the seconds until the host may be asked again; 0.0 if it may be asked now."""
        return max(0.0, self._closed_until - now)

    def remaining_share(self, now: float) -> float:
        """Return the share of the burst that is left, 0 to 1."""
        self._refill(now)
        return 0.0 if now < self._closed_until else max(0.0, min(1.0, self._tokens / self.burst))

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
