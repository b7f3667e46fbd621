"""An estimate of the exchange's clock from several sources of time."""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

Source = Literal["answers", "dates", "stream", "machine"]

#: Sources agree, and a timestamp is plausible, within this difference.
TOLERANCE_MS = 10_000
# Only timestamps in this range are times. Seconds and microseconds are far outside.
_EARLIEST_MS, _LATEST_MS = 1_230_768_000_000, 4_102_444_800_000  # 2009, 2100
_FRESHEST_ROW_MS = 600_000  # the newest row of a frame begins at most this long before the frame is sent
_FEW_FRAMES = 3  # fewer prove nothing against the estimate so far
# This many measurements of a source are trusted alone if nothing else is known.
_ENOUGH: Mapping[Source, int] = {"answers": 3, "dates": 3, "stream": 8}
# At startup, wait this long for a second source, and longer if sources disagree.
_WAIT_MS, _WAIT_UNSURE_MS = 3_000, 15_000
_LOOK_MS = 400
_FRAME_MS = 50


class _Measurements:
    """The newest measurements of one source: exchange clock minus steady clock, in milliseconds.

    Each measurement is too low by its travel time. Some may be wrong in either direction.
    """

    def __init__(self, size: int, quarters: int) -> None:
        self._newest: deque[int] = deque(maxlen=size)
        self._sorted: list[int] = []
        self._quarters = quarters

    def __len__(self) -> int:
        return len(self._newest)

    def add_measurement(self, offset_ms: int) -> None:
        if len(self._newest) == self._newest.maxlen:
            self.drop_oldest()
        self._newest.append(offset_ms)
        insort(self._sorted, offset_ms)

    @property
    def offset_ms(self) -> int | None:
        count = len(self._sorted)
        return self._sorted[(count - 1) * self._quarters // 4] if count else None

    def fastest_ms(self, near_ms: int) -> int:
        """Return the third largest measurement that agrees with an offset. The largest may be slightly wrong."""
        first = bisect_left(self._sorted, near_ms - TOLERANCE_MS)
        last = bisect_right(self._sorted, near_ms + TOLERANCE_MS)
        return self._sorted[max((first + last) // 2, last - 3)]

    def drop_oldest(self) -> None:
        if self._newest:
            del self._sorted[bisect_left(self._sorted, self._newest.popleft())]

    def clear(self) -> None:
        self._newest.clear()
        self._sorted.clear()


class ExchangeClock:
    """An estimate of the exchange's clock from its stream, its REST answers, their `Date`, and this machine's clock.

    The time on which most sources agree wins; the current estimate has a vote too. Therefore no single frame or
    response, and no change of this machine's clock alone, moves the estimate. After the machine slept, one other source
    is enough to correct it. This class is pure: `steady_ms`, a clock that never goes back, and `machine_ms`, UTC epoch
    milliseconds, are arguments.
    """

    def __init__(self) -> None:
        #: True once two sources agreed, or the wait for them is over. Until then nothing should depend on the time.
        self.is_reliable = False
        self._stream = _Measurements(64, 3)
        self._measured: dict[Source, _Measurements] = {
            "answers": _Measurements(5, 2),
            "dates": _Measurements(5, 2),
            "stream": self._stream,
        }
        self._machine_ms: int | None = None  # this machine's clock minus the steady one, at the last `update_estimate`
        self._offset_ms: int | None = None  # the estimate; None before the first call of `update_estimate`
        self._is_known = False  # True if the estimate is based on more than this machine's clock
        self._agreed: frozenset[Source] = frozenset()
        self._updated_ms = self._observed_ms = 0
        self._began_ms: int | None = None

    def now_ms(self, steady_ms: int, machine_ms: int) -> int:
        """Return the estimate of the exchange's clock, UTC epoch milliseconds."""
        return machine_ms if self._offset_ms is None else steady_ms + self._offset_ms

    def observe_frame(self, as_of_ms: int, newest_open_ms: int, steady_ms: int) -> None:
        """Use the send time of a frame of the stream, whose newest row opens at `newest_open_ms`."""
        # with many markets, some of the frames are enough
        if self.is_reliable and 0 <= steady_ms - self._observed_ms < _FRAME_MS:
            return
        self._observed_ms = steady_ms
        fits = newest_open_ms - TOLERANCE_MS <= as_of_ms <= newest_open_ms + _FRESHEST_ROW_MS
        if fits and _is_time(as_of_ms):
            self._stream.add_measurement(as_of_ms - steady_ms)
        else:
            self._stream.drop_oldest()

    def observe_answer(self, as_of_ms: int, asked_ms: int, answered_ms: int) -> None:
        """Use the time in the body of a REST response. `asked_ms` and `answered_ms` are on the steady clock."""
        if _is_time(as_of_ms) and answered_ms - asked_ms < TOLERANCE_MS:
            self._measured["answers"].add_measurement(as_of_ms - (asked_ms + answered_ms) // 2)

    def observe_date(self, date_ms: int, asked_ms: int, answered_ms: int) -> None:
        """Use the `Date` of a REST response, a whole second. `asked_ms` and `answered_ms` are on the steady clock."""
        if _is_time(date_ms) and answered_ms - asked_ms < TOLERANCE_MS:
            self._measured["dates"].add_measurement(date_ms + 500 - (asked_ms + answered_ms) // 2)

    def update_estimate(self, steady_ms: int, machine_ms: int) -> bool:
        """Update the estimate; return whether this machine's clock was set, or the machine slept, since the last call.

        Call this often; most calls do nothing.
        """
        if self.is_reliable and 0 <= steady_ms - self._updated_ms < _LOOK_MS:
            return False
        self._updated_ms = steady_ms
        offset_ms = machine_ms - steady_ms
        is_step = self._machine_ms is not None and abs(offset_ms - self._machine_ms) > TOLERANCE_MS
        # the steady clock may have stopped, so earlier measurements prove nothing
        if is_step:
            for source in self._measured.values():
                source.clear()
        self._machine_ms = offset_ms
        self._choose_estimate()
        if self._began_ms is None:
            self._began_ms = steady_ms
        enough = len(self._agreed) > 1 or len(self._stream) >= _ENOUGH["stream"]
        wait_ms = _WAIT_UNSURE_MS if self.ignored else _WAIT_MS
        if enough or steady_ms - self._began_ms >= wait_ms:
            self.is_reliable = True
            self._is_known = self._is_known or self._agreed != {"machine"}
        return is_step

    @property
    def ignored(self) -> Mapping[Source, int]:
        """The difference from the estimate, in milliseconds, of each source that does not agree with it."""
        return {source: ms for source, ms in self._differences().items() if not _agree(ms, 0)}

    def describe(self) -> dict[str, Any]:
        """Return for `/health` each source's difference from the estimate, in milliseconds, and the ignored sources."""
        return {"sources": dict(self._differences()), "notBelieved": sorted(self.ignored)}

    def _offsets(self) -> dict[Source, int]:
        offsets: dict[Source, int | None] = {source: one.offset_ms for source, one in self._measured.items()}
        offsets["machine"] = self._machine_ms
        return {source: ms for source, ms in offsets.items() if ms is not None}

    def _differences(self) -> dict[Source, int]:
        estimate_ms = self._offset_ms or 0
        return {source: ms - estimate_ms for source, ms in self._offsets().items()}

    def _choose_estimate(self) -> None:
        offsets, known = self._offsets(), self._known_estimate
        if known and len(self._stream) < _FEW_FRAMES:
            offsets.pop("stream", None)
        votes = [*offsets.values(), *known]
        best = max(self._candidates(offsets), key=lambda ms: sum(_agree(ms, other) for other in votes))
        self._agreed = frozenset(source for source, ms in self._offsets().items() if _agree(ms, best))
        if len(self._stream) >= _FEW_FRAMES and "stream" in self._agreed:
            self._offset_ms = self._stream.fastest_ms(best)
            return
        others = [offsets.get("answers"), offsets.get("dates"), *self._known_estimate, self._machine_ms]
        self._offset_ms = next(ms for ms in others if ms is not None and _agree(ms, best))

    @property
    def _known_estimate(self) -> list[int]:
        """The estimate so far, if it is based on more than this machine's clock; otherwise empty."""
        return [self._offset_ms] if self._offset_ms is not None and self._is_known else []

    def _candidates(self, offsets: Mapping[Source, int]) -> list[int]:
        """Return the times to vote on. Of those with the same number of votes, the first one wins."""
        enough = [source for source, least in _ENOUGH.items() if len(self._measured[source]) >= least]
        few: tuple[Source, ...] = ("answers", "dates", "machine")  # a few frames may only support others
        return [
            *(offsets[source] for source in enough),
            *self._known_estimate,
            *(offsets[source] for source in few if source in offsets),
        ]


def _is_time(at_ms: int) -> bool:
    return _EARLIEST_MS < at_ms < _LATEST_MS


def _agree(one_ms: int, other_ms: int) -> bool:
    return abs(one_ms - other_ms) <= TOLERANCE_MS
