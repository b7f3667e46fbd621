"""A budget in time: so many a second, so many at once, and closed for a while if need be."""


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

    def take(self, now: float) -> float:
        """Take a token if there is one: 0.0. Else the seconds after which to try again."""
        if now < self._closed_until:
            return self._closed_until - now
        self._refill(now)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self.rate

    def close_until(self, at: float) -> None:
        """Give out nothing before `at`, and start from an empty bucket then."""
        if at > self._closed_until:
            self._closed_until = at
            self._tokens = 0.0
            self._at = at

    def closed_for(self, now: float) -> float:
        """Seconds until the host may be asked again; 0.0 when it may be asked now."""
        return max(0.0, self._closed_until - now)

    def left(self, now: float) -> float:
        """The share of the burst that is left, 0 to 1."""
        self._refill(now)
        return 0.0 if now < self._closed_until else min(1.0, self._tokens / self.burst)

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
