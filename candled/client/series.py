"""The bars of one stream, oldest first and each once. Pure: messages in, the bars that changed out."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import datetime

from .values import Bar


class Series:
    """Holds at most about `keep` bars. Every method returns the bars that are new or differ, oldest first."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.bars: list[Bar] = []

    @property
    def last_bar(self) -> Bar | None:
        return self.bars[-1] if self.bars else None

    def replace_all(self, bars: Sequence[Bar]) -> list[Bar]:
        """Take an `initial`: it replaces everything."""
        before = {bar.time: bar for bar in self.bars}
        self.bars = _ascending(bars)
        return [bar for bar in self.bars if before.get(bar.time) != bar]

    def merge_bars(self, bars: Iterable[Bar]) -> list[Bar]:
        """Take the bars of `resumed`, or a `correction`: each goes where its time says."""
        return [bar for bar in bars if self._put_bar(bar)]

    def apply_update(self, bar: Bar) -> list[Bar]:
        """Take an `update`. A bar older than the newest is not taken: time does not run backwards."""
        return [] if self.last_bar and bar.time < self.last_bar.time else self.merge_bars([bar])

    def over_after(self, time: datetime | None) -> list[Bar]:
        """The bars after `time` that are over, up to the first that is not.

        Without a time: all that are over. A server that does not say `final` has ended a bar when it opens the next.
        """
        if time is None:
            return [bar for bar in self.bars if self._is_over(bar)]
        found = []
        for bar in self.bars[self._index_of(time) :]:
            if bar.time > time:
                if not self._is_over(bar):
                    break
                found.append(bar)
        return found

    def _is_over(self, bar: Bar) -> bool:
        return bar is not self.bars[-1] if bar.final is None else bar.final

    def _put_bar(self, bar: Bar) -> bool:
        at = self._index_of(bar.time)
        if at < len(self.bars) and self.bars[at].time == bar.time:
            changed = self.bars[at] != bar
            self.bars[at] = bar
            return changed
        if at == 0 and self.bars:
            return False  # older than what is held
        self.bars.insert(at, bar)
        if len(self.bars) > self.keep * 1.1 + 1:  # in strides, not with every bar
            del self.bars[: -self.keep]
        return True

    def _index_of(self, time: datetime) -> int:
        if self.bars and self.bars[-1].time < time:
            return len(self.bars)
        return bisect_left(self.bars, time, key=lambda bar: bar.time)


def _ascending(bars: Iterable[Bar]) -> list[Bar]:
    """The bars without those that would run backwards, which no server should send."""
    kept: list[Bar] = []
    for bar in bars:
        if not kept or bar.time > kept[-1].time:
            kept.append(bar)
    return kept
