"""Encoded bars, kept so that an `initial` or an HTTP answer copies bytes instead of encoding a thousand bars again."""

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, Protocol

from candled.model import Candle, Interval, MarketKey
from candled.protocol.messages import FINAL, Topic, bar_text

MOST_BYTES = 64 * 2**20
_MESSAGES_KEPT = 4  # whole messages of one form of one room
_MOST_HELD = 2500  # bars; more than anybody asks for
_READ_SINGLY = 8  # bars; more are quicker read together
_PER_BAR = 16  # bytes beside a bar's text


_numbers = count(1)


class BarSource(Protocol):
    """The bars in memory; `candled.aggregate.live_bars.LiveBars` has them."""

    def newest_times(self, key: MarketKey, interval: Interval, count: int) -> Sequence[int]: ...
    def get_bar(self, key: MarketKey, interval: Interval, open_ms: int) -> Candle | None: ...
    def newest_bars(self, key: MarketKey, interval: Interval, count: int) -> Sequence[Candle]: ...
    def revision_of(self, key: MarketKey, interval: Interval) -> int: ...
    def revised_from(self, key: MarketKey, interval: Interval, revision: int) -> int: ...
    def is_final(self, key: MarketKey, interval: Interval, bar: Candle) -> bool: ...


@dataclass(frozen=True, slots=True)
class Printer:
    """How bars are printed: each as one text for each column. Printers with one `name` print the same."""

    name: Hashable
    print: Callable[[Candle, bool], Sequence[str]]  # a bar, and whether it is final
    columns: int = 1
    cares: bool = False  # whether it matters that a bar is final
    fields: int = 0  # of members' bars, what `bar_text` is given
    positioned: bool = False  # whether the position of the feed stands beside the bars


@lru_cache(maxsize=64)
def fields_printer(fields: int) -> Printer:
    """Return the printer of bars as members are sent them."""

    def text(bar: Candle, final: bool) -> tuple[str]:
        return (bar_text(bar, fields, final=final),)

    return Printer(fields, text, cares=bool(fields & FINAL), fields=fields)


class EncodedBars:
    """The bars of one topic as one printer prints them, but for the last, which still changes.

    They stay as they are until the series has another revision. With `closed` only final bars are among them.
    """

    __slots__ = (
        "_blobs",
        "_closed",
        "_ends",
        "_first_ms",
        "_kept",
        "_newest",
        "_newest_texts",
        "_print",
        "_printer",
        "_revision",
        "_settled",
        "_times",
        "_versions",
        "cares",
        "counted",
        "last_ms",
        "open",
        "topic",
    )

    def __init__(self, topic: Topic, printer: Printer, closed: bool = False) -> None:
        self.topic = topic
        self.open: list[int] = []  # bars that are not final: told as such, or left out with `closed`
        self.counted = 0  # bytes of it in the sum of all forms
        self._closed = closed
        self._printer = printer
        self._print = printer.print
        self.cares = closed or printer.cares  # whether it matters that a bar is final
        self._first_ms = self.last_ms = -1  # the first and the last bar that was looked at
        self._times = array("q")
        # for each column the texts, and where each ends, with its comma
        self._ends = [array("L") for _ in range(printer.columns)]
        self._blobs = [bytearray() for _ in range(printer.columns)]
        # the last bar as it was printed last, and the number of that version
        self._newest: tuple[Candle, bool, int] | None = None
        self._newest_texts: Sequence[bytes] = ()
        # from which bar on texts became others, and the number of that version: both grow
        self._versions: list[tuple[int, int]] = [(0, next(_numbers))]
        self._revision = -1
        self._settled = -1
        self._kept: dict[object, tuple[object, Sequence[Any]]] = {}

    @property
    def fields(self) -> int:
        """What members' bars show beside the documented keys."""
        return self._printer.fields

    @property
    def form_key(self) -> tuple[Topic, Hashable, bool]:
        """What tells it from other forms."""
        return self.topic, self._printer.name, self._closed

    @property
    def size_bytes(self) -> int:
        """Bytes in use, about."""
        texts = sum(map(len, self._blobs)) + _PER_BAR * self._printer.columns * len(self._times)
        return texts + sum(len(kept[0]) for _, kept in self._kept.values())

    def load_bars(self, bars: BarSource, times: Sequence[int], stop: int, settled: int) -> None:
        """Make sure that the bars that begin at `times[:stop]` are held as they are now.

        `times` are those of the newest bars, to the very newest, oldest first. `settled` is a number that changes
        whenever bars may have become final.
        """
        self.refresh(bars, settled)
        if not stop:
            return
        if not self._first_ms <= times[0] <= self.last_ms or len(self._times) > _MOST_HELD:
            self._forget_from(0)
            self._first_ms = times[0]
        start = bisect_right(times, self.last_ms)
        if stop - start > _READ_SINGLY:
            missing: Iterable[Candle | None] = bars.newest_bars(*self.topic, len(times) - start)[: stop - start]
        else:
            missing = (bars.get_bar(*self.topic, open_ms) for open_ms in times[start:stop])
        for bar in missing:
            if bar is not None:
                self._append_bar(bar, self.cares and bars.is_final(*self.topic, bar))
                self.last_ms = bar.open_ms

    def refresh(self, bars: BarSource, settled: int) -> None:
        """Drop the texts of bars that are not as they were."""
        revision = bars.revision_of(*self.topic)
        if revision != self._revision:
            self._forget_from(bars.revised_from(*self.topic, self._revision))
            self._revision = revision
        if settled != self._settled:
            self._check_open(bars)
            self._settled = settled

    def has_from(self, open_ms: int) -> bool:
        """Whether a bar that begins at `open_ms`, or a newer one, is held."""
        return self.last_ms >= open_ms

    def is_current(self, bar: Candle) -> bool:
        """Whether the bar is told as it is now, but perhaps for whether it is final."""
        text = self.bar_text(bar.open_ms)
        return text is not None and any(text == self._print(bar, final)[0].encode() for final in (True, False))

    def drop_from(self, open_ms: int, revision: int) -> None:
        """Bars from this one on have changed, and with that the revision."""
        self._forget_from(open_ms)
        if self._revision + 1 == revision:  # nothing else has
            self._revision = revision

    def count_bars(self, since_ms: int, before_ms: int) -> int:
        """How many bars of `[since_ms, before_ms)` are held."""
        return bisect_left(self._times, before_ms) - bisect_left(self._times, since_ms)

    def newest_text(self, count: int, since_ms: int, before_ms: int) -> tuple[int | None, int, memoryview]:
        """The newest bars of `[since_ms, before_ms)`, at most `count`: when the first begins, how many, their texts.

        The texts are a view, with a comma behind each: release it before anything else is asked of the form.
        """
        stop = bisect_left(self._times, before_ms)
        start = max(bisect_left(self._times, since_ms), stop - count)
        if start >= stop:
            return None, 0, memoryview(b"")
        return (
            self._times[start],
            stop - start,
            memoryview(self._blobs[0])[self._begin_of(start) : self._ends[0][stop - 1]],
        )

    def columns(self, start_ms: int, end_ms: int) -> list[bytes]:
        """Return each column's texts of the bars of `[start_ms, end_ms)`, with a comma behind each."""
        start, stop = bisect_left(self._times, start_ms), bisect_left(self._times, end_ms)
        if start >= stop:
            return [b""] * self._printer.columns
        return [
            bytes(memoryview(blob)[ends[start - 1] if start else 0 : ends[stop - 1]])
            for blob, ends in zip(self._blobs, self._ends, strict=True)
        ]

    def version(self, open_ms: int) -> int:
        """Return a number that no other version of the texts up to this bar has, in this process."""
        return next(number for from_ms, number in reversed(self._versions) if from_ms <= open_ms)

    def newest_version(self, bar: Candle, final: bool) -> int:
        """Return a number that no other version of the last bar has, in this process."""
        newest = self._newest
        if newest is None or newest[0] is not bar or newest[1] is not final:
            newest = self._newest = bar, final, next(_numbers)
            self._newest_texts = ()
        return newest[2]

    def newest_columns(self, bar: Candle, final: bool) -> Sequence[bytes]:
        """Return each column's text of the last bar."""
        self.newest_version(bar, final)
        if not self._newest_texts:
            self._newest_texts = [text.encode() for text in self._print(bar, final)]
        return self._newest_texts

    def bar_text(self, open_ms: int) -> bytes | None:
        """The text of one bar; None if it is not held."""
        at = bisect_left(self._times, open_ms)
        if at == len(self._times) or self._times[at] != open_ms:
            return None
        return bytes(self._blobs[0][self._begin_of(at) : self._ends[0][at] - 1])

    def kept_message(self, key: object, state: object) -> Any:
        """What was kept for `key` while the room was in the same `state`; None if nothing was."""
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] == state else None

    def keep_message(self, key: object, state: object, message: Sequence[Any]) -> None:
        """Keep a message, its frame first, while the room is in this state."""
        self._kept.pop(key, None)
        if len(self._kept) >= _MESSAGES_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = state, message

    def _append_bar(self, bar: Candle, final: bool) -> None:
        if self.cares and not final:
            self.open.append(bar.open_ms)
            if self._closed:
                return
        for text, blob, ends in zip(self._print(bar, final), self._blobs, self._ends, strict=True):
            blob += text.encode() + b","
            ends.append(len(blob))
        self._times.append(bar.open_ms)

    def _check_open(self, bars: BarSource) -> None:
        """Bars that were not final may be so now."""
        for open_ms in self.open:
            bar = bars.get_bar(*self.topic, open_ms)
            if bar is None or bars.is_final(*self.topic, bar):
                self._forget_from(open_ms)
                return

    def _forget_from(self, open_ms: int) -> None:
        start = bisect_left(self._times, open_ms)
        if start < len(self._times):
            for blob, ends in zip(self._blobs, self._ends, strict=True):
                del blob[ends[start - 1] if start else 0 :]
                del ends[start:]
            del self._times[start:]
            while self._versions and self._versions[-1][0] >= open_ms:
                self._versions.pop()
            self._versions.append((open_ms, next(_numbers)))
        del self.open[bisect_left(self.open, open_ms) :]
        self.last_ms = min(self.last_ms, open_ms - 1)

    def _begin_of(self, at: int) -> int:
        return self._ends[0][at - 1] if at else 0


class EncodedBarCache:
    """All forms of all rooms within `most_bytes`; those not used for longest go first."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._forms: OrderedDict[tuple[Topic, Hashable, bool], EncodedBars] = OrderedDict()
        self.bytes = 0

    def get_form(self, topic: Topic, printer: Printer, closed: bool = False) -> EncodedBars:
        """The bars of a topic in one form; tell `used` when they were read."""
        key = (topic, printer.name, closed)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = EncodedBars(topic, printer, closed)
        else:
            self._forms.move_to_end(key)
        return form

    def find_form(self, topic: Topic, fields: int, closed: bool) -> EncodedBars | None:
        """A form if there is one."""
        return self._forms.get((topic, fields, closed))

    def mark_used(self, form: EncodedBars) -> None:
        """Count what a form needs now, and let others go if it is too much."""
        size = form.size_bytes
        self.bytes += size - form.counted
        form.counted = size
        while self.bytes > self._most_bytes and len(self._forms) > 1:
            _, oldest = self._forms.popitem(last=False)
            self.bytes -= oldest.counted
