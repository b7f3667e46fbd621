"""The fold of one interval's bars from the bars of a shorter one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from candled.model import BarChange, Candle, fold, group_parts
from candled.model.decimals import add_exactly

if TYPE_CHECKING:
    from .series import Series


class Rollup:
    """The bars of one interval, folded from their parts: the bars of a shorter interval.

    The fold of the forming bar without its newest part is cached, so that a new version of that part needs only a fold
    of two values. Any other change folds the bar from all its parts.
    """

    __slots__ = ("_bar", "_before", "_end_ms", "_part_ms", "_parts", "_series", "_start_ms")

    def __init__(self, series: "Series", parts: "Series") -> None:
        self._series = series
        self._parts = parts
        self.reset()

    def reset(self) -> None:
        """Clear the cache, because parts changed without `add_part`."""
        self._start_ms = self._end_ms = self._part_ms = 0
        self._bar: Candle | None = None
        self._before: Candle | None = None  # the fold of all parts of the bar except the newest

    def is_cut_off(self, open_ms: int) -> bool:
        """Return whether the bar that contains a time is in memory without all its parts."""
        return self._series.since_ms <= self._series.interval.floor(open_ms) < self._parts.since_ms

    def add_part(self, part: Candle, change_id: int, changes: list[BarChange]) -> Candle | None:
        """Fold the bar that contains `part`, which was just added, and append it to `changes` if it changed.

        Returns:
            The bar, or None if it is unchanged or not in memory.
        """
        open_ms = part.open_ms
        if self._part_ms <= open_ms < self._end_ms:
            cached = self._bar
            if open_ms > self._part_ms:
                self._before, self._part_ms = cached, open_ms
            bar = self._bar = self._with_newest(part)
        else:
            start_ms = self._series.interval.floor(open_ms)
            if start_ms < self._series.since_ms:
                return None
            cached = self._series.get_bar(start_ms)
            bar = self._fold_again(start_ms)
        if cached is None or bar[1:7] != cached[1:7] or bar.rev != cached.rev:
            changes.append(BarChange(self._series.interval, bar))
            self._series.put_bar(bar, change_id)
        elif bar != cached:
            self._series.put_bar(bar)
        else:
            return None
        return bar

    def fold_bars(self, start_ms: int, end_ms: int, fresh: Sequence[Candle]) -> dict[int, Candle]:
        """Return the bars of `[start_ms, end_ms)` with all their parts in memory, by opening time.

        `fresh` are the parts that were just put, oldest first.
        """
        interval = self._series.interval
        start_ms = max(start_ms, interval.floor(self._parts.since_ms - 1) + interval.ms)
        groups = group_parts(self._parts.bars_with(fresh, start_ms, end_ms), interval)
        return {open_ms: self._fold_parts(parts, open_ms) for open_ms, parts in groups}

    def _fold_parts(self, parts: Sequence[Candle], start_ms: int) -> Candle:
        return fold(parts, start_ms, final=parts[-1].final and self._is_last(parts[-1]))

    def _fold_again(self, start_ms: int) -> Candle:
        end_ms = start_ms + self._series.interval.ms
        parts = self._parts.bars_between(start_ms, end_ms)
        if start_ms < self._start_ms:
            return self._fold_parts(parts, start_ms)
        self._start_ms, self._end_ms = start_ms, end_ms
        *before, newest = parts
        self._before = fold(before, start_ms) if before else None
        self._part_ms = newest.open_ms
        self._bar = self._with_newest(newest)
        return self._bar

    def _with_newest(self, newest: Candle) -> Candle:
        """Return the forming bar."""
        start_ms, before = self._start_ms, self._before
        final = newest.final and self._is_last(newest)
        if before is None:
            return fold((newest,), start_ms, final=final)
        # as `fold` does it, which takes twice as long for two bars
        _, opened, high, low, _, volume, quote, as_of_ms, _, rev, _ = before
        _, _, new_high, new_low, close, new_volume, new_quote, new_as_of_ms, _, new_rev, _ = newest
        return Candle(
            start_ms,
            opened,
            new_high if new_high > high else high,
            new_low if new_low < low else low,
            close,
            add_exactly(volume, new_volume),
            None if quote is None or new_quote is None else add_exactly(quote, new_quote),
            new_as_of_ms if new_as_of_ms > as_of_ms else as_of_ms,
            final,
            rev + new_rev,
            "agg",
        )

    def _is_last(self, part: Candle) -> bool:
        """Return whether a bar of these parts ends with this part."""
        end_ms = part.open_ms + self._parts.interval.ms
        return self._series.interval.floor(end_ms) == end_ms
