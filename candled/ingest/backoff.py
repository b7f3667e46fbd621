"""How long to wait before the next attempt."""

import random


class Backoff:
    """Exponential backoff with full jitter: each failure doubles the limit, the wait is drawn below it.

    Half of the limit is always waited, so that a storm of reconnects thins out and never becomes a spin.
    """

    def __init__(self, first_s: float = 1.0, most_s: float = 60.0, draw: random.Random | None = None) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0
        self._draw = draw or random.Random(random.getrandbits(64))  # the same again after `random.seed`

    @property
    def failure_count(self) -> int:
        """Failures since the last success."""
        return self._failures

    def on_failure(self) -> float:
        """Note a failure; return the seconds to wait before the next attempt."""
        limit = min(self._most_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return limit * (0.5 + 0.5 * self._draw.random())

    def on_success(self) -> None:
        """Note a success: the next failure starts from the first wait again."""
        self._failures = 0
