"""Judges whether a market's stream delivers all trades: by its pushes, or by REST while it is silent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from candled.model import MINUTE, MINUTE_MS, Candle

# After an interruption, a stream has this long to recover before REST is polled in its place.
_GRACE_MS = 5_000
# REST is asked this long before a silence becomes too long, and its response may arrive this much later.
_EARLY_MS = 10_000
_LATE_MS = 15_000
# A response without evidence is requested again after this long.
_AGAIN_MS = 10_000
_LONG_MS = 10**12

Standing = Literal["moving", "quiet", "polled", "unknown"]
RestActivity = Literal["traded", "silent", "nothing"]


@dataclass(frozen=True, slots=True)
class _Answer:
    """The result of a REST response about the time since the last push."""

    #: The time up to which the response applies, UTC epoch milliseconds on the exchange's clock.
    at_ms: int
    #: True if it contained trades that the stream did not deliver.
    traded: bool


class Presence:
    """The state of one market's stream. Pure: time is an argument, UTC epoch milliseconds on the exchange's clock.

    A stream is trusted while it is connected and has pushed within `quiet_after_ms`. After that only a REST response
    about the minutes since the last push counts. `publishes_empty_candles` means that the exchange has a candle for
    every minute, so a response without candles proves nothing.
    """

    def __init__(self, quiet_after_ms: int, *, publishes_empty_candles: bool) -> None:
        self._quiet_after_ms = quiet_after_ms
        self._publishes_empty_candles = publishes_empty_candles
        #: True while the stream is connected; set by the feed.
        self.connected = False
        #: True if the last interruption was because the exchange sent too many messages.
        self.is_flooded = False
        #: When the stream last delivered a candle; None before the first.
        self.pushed_ms: int | None = None
        self._down_ms: int | None = None  # since when it is known to be down
        self._answer: _Answer | None = None
        self._since_ms: int | None = None  # the first call of `is_due`
        self._asked_ms: int | None = None  # when REST last answered for the present

    def record_push(self, now_ms: int) -> None:
        """Record that the stream delivered a candle."""
        self.pushed_ms = now_ms
        self._answer = None

    def on_interruption(self, *, is_flooded: bool = False) -> None:
        """Record that the stream was interrupted."""
        self.connected, self.is_flooded = False, is_flooded

    def on_failure(self) -> None:
        """Record that REST was unavailable, so its earlier response is no evidence of the present."""
        self._answer = None

    def is_moving(self, now_ms: int) -> bool:
        """Return whether the stream is connected and has pushed recently."""
        return self.connected and self.pushed_ms is not None and now_ms - self.pushed_ms <= self._quiet_after_ms

    def standing(self, now_ms: int) -> Standing:
        """Return the state of the stream. `quiet` and `polled` require a recent REST response."""
        if self.is_moving(now_ms):
            return "moving"
        answer = self._answer
        if answer is None or now_ms - answer.at_ms > self._quiet_after_ms + _LATE_MS:
            return "unknown"
        return "quiet" if self.connected and not answer.traded else "polled"

    def is_polled(self, now_ms: int) -> bool:
        """Return whether REST is polled for the present in place of the stream."""
        return not self.connected or self.standing(now_ms) == "polled"

    def is_due(self, now_ms: int, pace_ms: int) -> bool:
        """Return whether to read the present over REST, because the stream is silent or delivers nothing."""
        if self.connected:
            self._down_ms = None
        elif self._down_ms is None:
            self._down_ms = now_ms
        if self._since_ms is None:
            self._since_ms = now_ms
        asked_ago_ms = _LONG_MS if self._asked_ms is None else now_ms - self._asked_ms
        if self._down_ms is not None:
            return now_ms - self._down_ms >= _GRACE_MS and asked_ago_ms >= pace_ms
        if self._answer is not None and self._answer.traded:
            return asked_ago_ms >= pace_ms
        check_ms = max(self._quiet_after_ms // 2, self._quiet_after_ms - _EARLY_MS)
        silent_ms = now_ms - (self._since_ms if self.pushed_ms is None else self.pushed_ms)
        if self._answer is not None:
            return asked_ago_ms >= max(check_ms, pace_ms)
        return silent_ms >= check_ms and asked_ago_ms >= max(_AGAIN_MS, pace_ms)

    def classify_answer(
        self, rows: Sequence[Candle], start_ms: int, known: Callable[[int], Candle | None], now_ms: int
    ) -> RestActivity:
        """Judge REST's rows from `start_ms` to the present. `known` returns the previous version of a minute."""
        self._asked_ms, pushed_ms = now_ms, self.pushed_ms
        pushed_in_ms = MINUTE.floor(start_ms if pushed_ms is None else pushed_ms)
        fresh = [row for row in rows if row.volume > 0 and _is_fresh(row, pushed_in_ms, known)]
        was_traded = self._answer is not None and self._answer.traded
        if fresh or was_traded:
            self._answer = _Answer(now_ms, traded=True)
        elif self._covers_silence(rows, start_ms, known, now_ms):
            # The response proves nothing about the time after its last row, no matter when it came.
            end_ms = rows[-1].open_ms + MINUTE_MS if self._publishes_empty_candles else now_ms
            self._answer = _Answer(min(now_ms, end_ms), traded=False)
        else:
            self._answer = None
            return "nothing"
        return "traded" if fresh else "silent"

    def _covers_silence(
        self, rows: Sequence[Candle], start_ms: int, known: Callable[[int], Candle | None], now_ms: int
    ) -> bool:
        """Return whether a response without trades is about this market up to the present.

        It must contain the newest known trades.
        """
        newest_ms = MINUTE.floor(now_ms)
        if self._publishes_empty_candles and (not rows or rows[-1].open_ms < newest_ms - MINUTE_MS):
            return False
        minutes = (known(open_ms) for open_ms in range(newest_ms, start_ms - 1, -MINUTE_MS))
        traded = next((minute for minute in minutes if minute is not None and minute.volume), None)
        return traded is None or any(row.open_ms == traded.open_ms and row.volume >= traded.volume for row in rows)


def _is_fresh(row: Candle, pushed_in_ms: int, known: Callable[[int], Candle | None]) -> bool:
    """Return whether a row has trades since the last push, which was in the minute `pushed_in_ms`."""
    if row.open_ms != pushed_in_ms:
        return row.open_ms > pushed_in_ms
    before = known(row.open_ms)
    return before is None or row.volume > before.volume
