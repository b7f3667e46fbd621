"""The wait before the next attempt."""

import random


class Backoff:
    """Exponential backoff with jitter: each failure doubles the limit, and the wait is drawn below it.

    The wait is at least half of the limit. This spreads out a storm of reconnects and never becomes a busy loop.
    """

    def __init__(self, first_s: float = 1.0, most_s: float = 60.0, draw: random.Random | None = None) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0
        self._draw = draw or random.Random(random.getrandbits(64))  # reproducible after `random.seed`

    @property
    def failure_count(self) -> int:
        """The number of failures since the last success."""
        return self._failures

    def on_failure(self) -> float:
        """Record a failure; return the seconds to wait before the next attempt."""
        limit = min(self._most_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return limit * (0.5 + 0.5 * self._draw.random())

    def on_success(self) -> None:
        """Record a success: the next failure starts with the first wait again."""
        self._failures = 0
