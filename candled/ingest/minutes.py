"""The minutes of one market at the live edge: versions, order and finality."""

from collections.abc import Collection, Sequence

from candled.model import MINUTE_MS, Candle

# Changes of older minutes go through the store first.
WINDOW_MS = 60 * MINUTE_MS
RECENT_MS = 2 * WINDOW_MS  # minutes that every chart shows


class Minutes:
    """The newest hour of one market. Decides which candles are changes and when a minute is final.

    This class is pure: the time is an argument. All times are UTC epoch milliseconds on the exchange's clock.
    `grace_period_ms` is the grace period: how long after the next minute opened, late versions of a minute are still
    accepted. `known` are minutes known from before, oldest first. Those that are not final are treated as after an
    interruption, because their end may not have been seen.
    """

    def __init__(self, grace_period_ms: int, known: Sequence[Candle] = ()) -> None:
        self._grace_period_ms = grace_period_ms
        self._minutes = {candle.open_ms: candle for candle in known}
        self._open: dict[int, int | None] = {}  # minutes not final → when a newer minute was first seen
        self.newest_ms: int | None = known[-1].open_ms if known else None

    def get_minute(self, open_ms: int) -> Candle | None:
        """Return the current version of a minute, or None if it is not in memory."""
        return self._minutes.get(open_ms)

    def get_minutes(self, times: Collection[int]) -> dict[int, Candle]:
        """Return the current versions of those of some minutes that are in memory."""
        return {open_ms: version for open_ms, version in self._minutes.items() if open_ms in times}

    @property
    def forming(self) -> list[Candle]:
        """The minutes that are not final, oldest first."""
        return sorted(candle for candle in self._minutes.values() if not candle.final)

    @property
    def watermark_ms(self) -> int | None:
        """The time before which every minute is final or missing; None before the first minute.

        A minute is missing if its end was not seen, because the stream was interrupted or jumped.
        """
        if self.newest_ms is None:
            return None
        newest_end_ms = self.newest_ms if not self._minutes[self.newest_ms].final else self.newest_ms + MINUTE_MS
        return min(newest_end_ms, min(self._open, default=newest_end_ms))

    @property
    def awaits_late_versions(self) -> bool:
        """True if a minute is in its grace period."""
        return any(seen_ms is not None for seen_ms in self._open.values())

    def is_live_edge(self, open_ms: int, now_ms: int) -> bool:
        """Return whether a minute belongs to the live edge. Older ones must go through the store."""
        return open_ms > self.past_until(now_ms)

    def past_until(self, now_ms: int) -> int:
        """Return the time up to which minutes are too old for the live edge."""
        return (now_ms if self.newest_ms is None else self.newest_ms) - WINDOW_MS

    def mark_interrupted(self) -> None:
        """Record that the stream was interrupted.

        Forming minutes may now end unseen, so a newer minute no longer proves that they are final. They stay in memory
        and become final when the stream or REST sends them again.
        """
        self._open.clear()

    def mark_unproven(self, open_ms: int) -> None:
        """Record that a version of a minute was unreadable, so a newer minute does not prove that it is final.

        The minute becomes final as after an interruption.
        """
        self._open.pop(open_ms, None)

    def mark_closed(self, open_ms: int, now_ms: int) -> None:
        """Record that the exchange marked a minute as closed: its grace period begins without the next minute."""
        if open_ms in self._open and self._open[open_ms] is None:
            self._open[open_ms] = now_ms

    def drop_minute(self, open_ms: int) -> None:
        """Record that the last version of a minute went directly to the store."""
        if open_ms != self.newest_ms:
            self._minutes.pop(open_ms, None)
            self._open.pop(open_ms, None)

    def apply_version(self, candle: Candle, now_ms: int) -> Candle | None:
        """Apply a version of a minute of the live edge; return its new version if something changed, else None.

        `final` of the candle means that it is proven to be the last version. A push alone never proves this.
        """
        known = self._minutes.get(candle.open_ms)
        candle = candle.merged_with(known)
        if candle is known:
            return None
        self._minutes[candle.open_ms] = candle
        self._track_minute(candle, now_ms)
        if known is not None and known.final is candle.final and known[1:7] == candle[1:7]:
            return None
        return candle

    def finalize_minutes(self, now_ms: int) -> list[Candle]:
        """Return the minutes that became final because the next minute opened long enough ago, oldest first.

        Both the next minute and the exchange's clock must show this: a single frame, which may be about a future
        minute, ends no minute.

        A minute that left the live edge, because the stream jumped by an hour or more, does not become final. It would
        not be compared with REST any more, so it stays missing and is fetched.
        """
        due = [
            open_ms
            for open_ms, seen_ms in self._open.items()
            if seen_ms is not None and max(seen_ms, open_ms + MINUTE_MS) + self._grace_period_ms <= now_ms
        ]
        result = []
        for open_ms in sorted(due):
            del self._open[open_ms]
            if self.is_live_edge(open_ms, now_ms):
                self._minutes[open_ms] = self._minutes[open_ms]._replace(final=True)
                result.append(self._minutes[open_ms])
        return result

    def _track_minute(self, candle: Candle, now_ms: int) -> None:
        newest_ms = self.newest_ms
        if candle.final:
            self._open.pop(candle.open_ms, None)
        else:
            overtaken = newest_ms is not None and candle.open_ms < newest_ms
            self._open.setdefault(candle.open_ms, now_ms if overtaken else None)
        if newest_ms is not None and candle.open_ms <= newest_ms:
            return
        self.newest_ms = candle.open_ms
        for open_ms, seen_ms in self._open.items():
            if open_ms < candle.open_ms and seen_ms is None:
                self._open[open_ms] = now_ms
        old = [at for at in self._minutes if not self.is_live_edge(at, now_ms) and self._minutes[at].final]
        for open_ms in old:
            del self._minutes[open_ms]
