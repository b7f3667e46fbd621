"""One line on the terminal that says how far a long command has come."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

_EVERY_S = 0.2
_CLEAR = "\r\033[K"


class Progress:
    """Count, rate and the time still to go, on one line that is written over and over.

    Without `total` there is no share and no time to go. `enabled` is by default whether `out` is a terminal; pass
    False for `--quiet` and `--json`. Nothing is ever written while it is disabled, so that no caller has to ask. `now`
    is in seconds that never go back.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        out: TextIO | None = None,
        enabled: bool | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._total = total
        self._out = sys.stderr if out is None else out
        self._enabled = self._out.isatty() if enabled is None else enabled
        self._now = now
        self._begun = now()
        self._shown: float | None = None
        self._count = 0

    def advance(self, count: int) -> None:
        """Note that `count` more are done; the line is written at most five times a second."""
        self._count += count
        if not self._enabled:
            return
        now = self._now()
        if self._shown is None or now - self._shown >= _EVERY_S:
            self._shown = now
            self._write_text(f"{_CLEAR}{self._make_line(now)}")

    def clear_line(self) -> None:
        """Take the line away, so that something else can be printed; the next `advance` may show it again."""
        if self._enabled and self._shown is not None:
            self._shown = None
            self._write_text(_CLEAR)

    def finish_line(self) -> None:
        """Leave the last state on its line."""
        if self._enabled:
            self._write_text(f"{_CLEAR}{self._make_line(self._now())}\n")

    def _make_line(self, now: float) -> str:
        elapsed_s = now - self._begun
        rate = self._count / elapsed_s if elapsed_s > 0 else 0.0
        parts = [f"{self._label}: {self._count:,}"]
        if self._total:
            parts = [f"{parts[0]} of {self._total:,} ({100 * self._count // self._total}%)"]
        if rate:
            parts.append(f"{rate:,.0f}/s")
        left = 0 if self._total is None else self._total - self._count
        if rate and left > 0:
            parts.append(f"{_duration(left / rate)} left")
        else:
            parts.append(_duration(elapsed_s))
        return ", ".join(parts)

    def _write_text(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _duration(seconds: float) -> str:
    """`7 s`, `3:05` or `2:03:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
