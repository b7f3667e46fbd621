"""What changed since a client was cut off: from memory where that was followed, else from the store's log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from candled.bus import Position
from candled.exchange import Clock
from candled.model import MINUTE_MS, Candle, Interval, MarketKey, Range, RangeSet

from .market_bars import MarketBars

MOST_RESUMED = 2000
FOREVER_MS = 2**62
_LOGGED_WITHIN_S = 2.0
# How much older than a client's newest bar a minute can be that was not final yet when the client was cut off.
_UNSETTLED_MS = 10 * MINUTE_MS


class ChangeHistory(Protocol):
    """The reads this module needs; `candled.store.history.ChangeHistory` has them."""

    async def read_bars_between(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int
    ) -> Sequence[Candle]: ...
    async def changes_since(
        self, market: MarketKey, epoch: str, seq: int, *, logged_seq: int = -1
    ) -> Sequence[Range] | None: ...


@dataclass(frozen=True, slots=True)
class Resume:
    """What `LiveBars.prepare_resume` found out, for `LiveBars.resumed`.

    `stamp`: everything up to it was seen. `ranges`: where else something changed. `older`: changed bars from the
    store, older than memory, which began at `since_ms` in the `generation` of the past. `settled_ms`: before it
    everything was final then, but for gaps, which are among the ranges.
    """

    stamp: int
    ranges: RangeSet
    older: tuple[Candle, ...]
    since_ms: int
    generation: int
    settled_ms: int


class Resumer:
    """Answers clients that come back. First `prepare`, which reads; then `finish`, as of that very moment."""

    def __init__(self, history: ChangeHistory, clock: Clock) -> None:
        self._history = history
        self._clock = clock

    async def plan_resume(
        self, market: MarketBars, key: MarketKey, interval: Interval, position: Position, time_ms: int
    ) -> Resume | None:
        """Find out what changed since `position`, for a client whose newest bar began at `time_ms`.

        None: that cannot be proved, or it is more than `MOST_RESUMED` bars.

        Raises:
            Unavailable: the store cannot be read.
        """
        if market.served_from_ms is None or not market.seeded:
            return None
        stamp = None if market.track.is_broken else market.track.change_id_of(position)
        settled_ms = None if stamp is None else market.track.watermark_at(stamp)
        from_ms = time_ms if settled_ms is None else min(time_ms, settled_ms)
        if stamp is not None:
            ranges = market.track.changes_since(stamp)
        else:
            logged = await self._logged_changes(key, market, position)
            if logged is None:
                return None
            stamp, from_ms = 0, max(0, time_ms - _UNSETTLED_MS)
            ranges = RangeSet([*logged, (interval.floor(from_ms), FOREVER_MS)])
        generation, since_ms = market.generation, market.ladder.series_of(interval).since_ms
        ranges.add(interval.floor(from_ms), since_ms)
        older = RangeSet(
            (interval.floor(start_ms), min(end_ms, since_ms)) for start_ms, end_ms in ranges if start_ms < since_ms
        )
        if older.total_ms > MOST_RESUMED * interval.ms:
            return None
        read = [bar for span in older for bar in await self._history.read_bars_between(key, interval, *span)]
        shown = tuple(bar for bar in read if bar.open_ms >= market.served_from_ms)
        return Resume(
            stamp,
            ranges,
            shown,
            since_ms,
            generation,
            max(0, time_ms - _UNSETTLED_MS) if settled_ms is None else settled_ms,
        )

    def finish_resume(self, market: MarketBars, interval: Interval, resume: Resume) -> list[Candle] | None:
        """The bars that changed since, oldest first, as of now; None: that cannot be proved any more."""
        series = market.ladder.series_of(interval)
        if market.track.is_broken or (market.generation, series.since_ms) != (resume.generation, resume.since_ms):
            return None
        changed = {bar.open_ms: bar for bar in series.changed_since(resume.stamp)}
        for start_ms, end_ms in resume.ranges:
            for bar in series.bars_between(interval.floor(start_ms), end_ms):
                changed[bar.open_ms] = bar
        shown_ms = market.served_from_ms or 0
        held = [changed[open_ms] for open_ms in sorted(changed) if open_ms >= shown_ms]
        bars = [*resume.older, *held]
        return bars if len(bars) <= MOST_RESUMED else None

    def became_final(self, market: MarketBars, resume: Resume) -> RangeSet:
        """Where bars may be final now that were not told as final then."""
        return RangeSet([*market.track.finals_since(resume.stamp), (resume.settled_ms, FOREVER_MS)])

    async def _logged_changes(self, key: MarketKey, market: MarketBars, position: Position) -> Sequence[Range] | None:
        """The past changes since a position that this process did not follow, once all of them are in the log."""
        deadline = self._clock.monotonic() + _LOGGED_WITHIN_S
        while market.track.is_broken or not market.track.is_logged:
            if self._clock.monotonic() > deadline:
                return None
            await self._clock.sleep(0.05)
        logged_seq = market.track.facts.logged_seq
        changes = await self._history.changes_since(key, position.epoch, position.seq, logged_seq=logged_seq)
        return None if changes is None or market.track.is_broken else [*changes, *market.track.changes_since(0)]
