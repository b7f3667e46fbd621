"""The bars of one stream, oldest first and each once. Pure: messages in, changed bars out."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import takewhile

from .values import Bar


class Series:
    """Keeps about `keep` bars. The methods for messages return new and changed bars, oldest first."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.bars: list[Bar] = []

    @property
    def last_bar(self) -> Bar | None:
        """The newest bar; None if there is none."""
        return self.bars[-1] if self.bars else None

    def replace_all(self, bars: Sequence[Bar]) -> list[Bar]:
        """Apply an `initial`, which replaces all bars."""
        before = {bar.time: bar for bar in self.bars}
        self.bars = _ascending(bars)
        return [bar for bar in self.bars if before.get(bar.time) != bar]

    def merge_bars(self, bars: Iterable[Bar]) -> list[Bar]:
        """Apply the bars of `resumed` or `correction`, each at its time."""
        return [bar for bar in bars if self._put_bar(bar)]

    def apply_update(self, bar: Bar) -> list[Bar]:
        """Apply an `update`. A bar older than the newest is ignored, because time does not run backwards."""
        return [] if self.last_bar and bar.time < self.last_bar.time else self.merge_bars([bar])

    def over_after(self, time: datetime | None) -> list[Bar]:
        """Return the bars after `time` that are over, up to the first that is not.

        Without a time, return all bars that are over. If the server does not send `final`, a bar is over when the next
        one exists.
        """
        if time is None:
            return [bar for bar in self.bars if self._is_over(bar)]
        newer = (bar for bar in self.bars[self._index_of(time) :] if bar.time > time)
        return list(takewhile(self._is_over, newer))

    def _is_over(self, bar: Bar) -> bool:
        return bar is not self.bars[-1] if bar.final is None else bar.final

    def _put_bar(self, bar: Bar) -> bool:
        at = self._index_of(bar.time)
        if at < len(self.bars) and self.bars[at].time == bar.time:
            changed = self.bars[at] != bar
            self.bars[at] = bar
            return changed
        if at == 0 and self.bars:
            return False  # older than all bars in memory
        self.bars.insert(at, bar)
        if len(self.bars) > self.keep * 1.1 + 1:  # many at a time, instead of one with every bar
            del self.bars[: -self.keep]
        return True

    def _index_of(self, time: datetime) -> int:
        if self.bars and self.bars[-1].time < time:
            return len(self.bars)
        return bisect_left(self.bars, time, key=lambda bar: bar.time)


def _ascending(bars: Iterable[Bar]) -> list[Bar]:
    """Return the bars without those that run backwards, which no server should send."""
    kept: list[Bar] = []
    for bar in bars:
        if not kept or bar.time > kept[-1].time:
            kept.append(bar)
    return kept
