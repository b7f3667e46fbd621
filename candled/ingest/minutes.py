"""The minutes of one market at the live edge: versions, order and finality."""

from collections.abc import Sequence

from candled.model import MINUTE_MS, Candle

# Older minutes are the store's business: a change there goes through the store first.
WINDOW_MS = 60 * MINUTE_MS


class Minutes:
    """Holds the newest hour of one market and decides what of a candle is news. Pure: the time is an argument.

    All times are UTC epoch milliseconds on the exchange's clock. `settle_ms` is how long after its successor
    opened the late versions of a minute have their chance. `held` are minutes that are known from before, oldest first.
    One of them that is not final becomes final as after an interruption: its end may not have been seen.
    """

    def __init__(self, settle_ms: int, held: Sequence[Candle] = ()) -> None:
        self._grace_period_ms = settle_ms
        self._held = {candle.open_ms: candle for candle in held}
        self._open: dict[int, int | None] = {}  # minutes not final → when a successor was first seen
        self.newest_ms: int | None = held[-1].open_ms if held else None

    def get_minute(self, open_ms: int) -> Candle | None:
        """The version held of a minute, if it is one of the newest hour."""
        return self._held.get(open_ms)

    @property
    def forming(self) -> list[Candle]:
        """The minutes that are not final, oldest first."""
        return sorted(candle for candle in self._held.values() if not candle.final)

    @property
    def watermark_ms(self) -> int | None:
        """Before it no minute is held that may still become final by its successor; None before the first minute.

        Minutes that were not seen to their end, when the stream broke or jumped, are before it: they are missing.
        """
        if self.newest_ms is None:
            return None
        newest_end_ms = self.newest_ms if not self._held[self.newest_ms].final else self.newest_ms + MINUTE_MS
        return min(newest_end_ms, min(self._open, default=newest_end_ms))

    @property
    def awaits_late_versions(self) -> bool:
        """Whether some minute will be final once its successor has been open for long enough."""
        return any(seen_ms is not None for seen_ms in self._open.values())

    def is_live_edge(self, open_ms: int, now_ms: int) -> bool:
        """Whether a minute belongs to the live edge; an older one must go through the store."""
        return open_ms > (now_ms if self.newest_ms is None else self.newest_ms) - WINDOW_MS

    def on_interrupted(self) -> None:
        """The stream broke: minutes in progress may end unseen, so a successor no longer proves them final.

        They are held on, and become final when the stream or REST speaks of them again.
        """
        self._open.clear()

    def doubt(self, open_ms: int) -> None:
        """Note that a statement about a minute could not be read: its successor does not prove that it is final.

        It becomes final as after an interruption.
        """
        self._open.pop(open_ms, None)

    def forget(self, open_ms: int) -> None:
        """Note that the last version of a minute went past this to the store."""
        if open_ms != self.newest_ms:
            self._held.pop(open_ms, None)
            self._open.pop(open_ms, None)

    def apply_version(self, candle: Candle, now_ms: int) -> Candle | None:
        """Take a version of a minute of the live edge; return it as it now stands if that is a change, else None.

        `final` of the candle is whether it is proven to be the last one: a pushed one alone never is.
        """
        held = self._held.get(candle.open_ms)
        if held is not None:
            candle = candle.merged_with(held)
            if candle is held:
                return None
        self._held[candle.open_ms] = candle
        self._track_minute(candle, now_ms)
        if held is not None and held.final is candle.final and held[1:7] == candle[1:7]:
            return None
        return candle

    def finalize_minutes(self, now_ms: int) -> list[Candle]:
        """Return the minutes that became final because their successor opened long enough ago, oldest first.

        Both the successor and the exchange's clock must say so: one frame of the stream, which may be about a minute to
        come, ends none.

        One that time has left behind (the stream jumped by an hour or more) does not: nobody compares it with REST any
        more, so it stays missing and is fetched.
        """
        settled = [
            open_ms
            for open_ms, seen_ms in self._open.items()
            if seen_ms is not None and max(seen_ms, open_ms + MINUTE_MS) + self._grace_period_ms <= now_ms
        ]
        result = []
        for open_ms in sorted(settled):
            del self._open[open_ms]
            if self.is_live_edge(open_ms, now_ms):
                self._held[open_ms] = self._held[open_ms]._replace(final=True)
                result.append(self._held[open_ms])
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
        for open_ms in [old for old in self._held if not self.is_live_edge(old, now_ms) and self._held[old].final]:
            del self._held[open_ms]
