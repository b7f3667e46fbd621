"""Cache encoded bars, so that an `initial` or an HTTP answer copies bytes instead of encoding 1,000 bars again."""

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, count, islice
from typing import Any, Protocol

from candled.model import BarTexts, Candle, FeedState, Interval, MarketKey, Position, RangeSet, Topic
from candled.protocol.messages import FINAL, bar_text

MOST_BYTES = 64 * 2**20
_MESSAGES_KEPT = 4  # complete messages per `EncodedBars`
_MAX_BARS = 2500  # bars per `EncodedBars`; with more, the older half is dropped, except for requested ones
BARS_PER_TURN = 100  # encoded in one step of the event loop; on a small server they take 1 to 2 ms
_READ_SINGLY = 8  # bars; above that, one read of all of them is faster
_PER_BAR = 16  # bytes of overhead per bar and column


_numbers = count(1)


class BarSource(Protocol):
    """Bars in memory, and the feeds' positions and states. `candled.aggregate.live_bars.LiveBars` implements it."""

    def newest_times(self, key: MarketKey, interval: Interval, count: int) -> Sequence[int]:
        """Return the opening times of the newest bars, at most `count`, oldest first."""

    def get_bar(self, key: MarketKey, interval: Interval, open_ms: int) -> Candle | None:
        """Return the bar that begins at `open_ms`, or None."""

    def bars_between(self, key: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> Sequence[Candle]:
        """Return the bars with `start_ms <= open_ms < end_ms`, oldest first."""

    def revision_of(self, key: MarketKey, interval: Interval) -> int:
        """Return the series' revision. It changes if a bar other than the newest changes, or older bars are loaded."""

    def revised_from(self, key: MarketKey, interval: Interval, revision: int) -> int:
        """Return the opening time of the oldest bar changed after `revision`, or a time after all bars."""

    def is_final(self, key: MarketKey, interval: Interval, bar: Candle) -> bool:
        """Return True if the bar is final."""

    def feed_position(self, key: MarketKey) -> Position | None:
        """Return the position of a market's feed; None if it is unknown."""

    def feed_state(self, key: MarketKey) -> FeedState:
        """Return the state of a market's feed."""

    def bars_since(self, key: MarketKey, interval: Interval, resume: Any) -> list[Candle] | None:
        """Return the bars that changed after a position; None if that is unknown."""

    def became_final(self, key: MarketKey, resume: Any) -> RangeSet:
        """Return the time ranges, in ms, that may have become final after a position."""


@dataclass(frozen=True, slots=True)
class Printer:
    """A way to print bars: one text per column."""

    #: The key of the printer: printers with the same name print the same texts.
    name: Hashable
    #: Print a bar; the second argument is True for a final bar.
    print: Callable[[Candle, bool], Sequence[str]]
    #: The number of texts per bar.
    columns: int = 1
    #: True if the text of a final bar differs from the text of a forming one.
    cares: bool = False
    #: Optional fields of a WebSocket bar, as `bar_text` takes them.
    fields: int = 0
    #: True if the answer also contains the feed's position.
    positioned: bool = False
    #: Between two texts; one byte.
    separator: bytes = b","
    #: Print many final bars: the same texts as `print`, column by column, in ASCII. None if no pages of the past are
    #: printed.
    print_texts: Callable[[BarTexts], Sequence[Sequence[str]]] | None = None


@lru_cache(maxsize=64)
def fields_printer(fields: int) -> Printer:
    """Return the printer of WebSocket bars with these optional fields."""

    def text(bar: Candle, final: bool) -> tuple[str]:
        return (bar_text(bar, fields, final=final),)

    return Printer(fields, text, cares=bool(fields & FINAL), fields=fields)


@dataclass(eq=False, repr=False, slots=True)
class EncodedBars:
    """Encoded bars of one topic and printer, except for the newest bar, which still changes.

    The texts stay valid until the revision of the series changes.
    """

    #: The market and the interval of the bars.
    topic: Topic
    #: The printer of the texts.
    printer: Printer
    #: True if only final bars are encoded.
    closed: bool = False
    #: True if finality changes the texts.
    cares: bool = field(init=False)
    #: Opening times of the bars that are not final: encoded as such, or left out with `closed`.
    open: list[int] = field(default_factory=list)
    #: Bytes that `EncodedBarCache` last counted for it.
    counted: int = 0
    #: The time from which bars were read, UTC epoch milliseconds; -1 before the first.
    _first_ms: int = -1
    #: The time up to which bars were read, UTC epoch milliseconds; -1 before the first.
    last_ms: int = -1
    #: Opening times of the encoded bars, oldest first, UTC epoch milliseconds.
    _times: "array[int]" = field(default_factory=lambda: array("q"))
    #: Per column: the offsets in bytes at which the texts end, with their separators.
    _ends: list["array[int]"] = field(init=False)
    #: Per column: the texts, each with a separator behind it.
    _blobs: list[bytearray] = field(init=False)
    #: The newest bar as last printed, its finality and the number of that version.
    _newest: tuple[Candle, bool, int] | None = None
    #: The texts of that version, one per column; empty until they are needed.
    _newest_texts: Sequence[bytes] = ()
    #: Opening time of the first bar whose text changed, and the number of that version; both are ascending.
    _versions: list[tuple[int, int]] = field(default_factory=lambda: [(0, next(_numbers))])
    #: The revision of the series that the texts are of; -1 before the first `refresh`.
    _revision: int = -1
    #: The `finality_count` of the last `refresh`; -1 before the first.
    _finality_count: int = -1
    #: By key: the last state of the room for which a message was kept, and that message.
    _kept: dict[object, tuple[object, Sequence[Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cares = self.closed or self.printer.cares
        self._ends = [array("L") for _ in range(self.printer.columns)]
        self._blobs = [bytearray() for _ in range(self.printer.columns)]

    @property
    def size_bytes(self) -> int:
        """Approximate memory in use, in bytes."""
        texts = sum(map(len, self._blobs)) + _PER_BAR * self.printer.columns * len(self._times)
        return texts + sum(len(kept[0]) for _, kept in self._kept.values())

    def encode_bars(
        self, bars: BarSource, times: Sequence[int], stop: int, finality_count: int, most: int | None = None
    ) -> bool:
        """Encode the bars that begin at `times[:stop]`, unless their texts are up to date.

        Args:
            bars: the source of the bars.
            times: opening times of the newest bars, oldest first.
            stop: the number of bars needed.
            finality_count: a number that changes whenever bars may have become final.
            most: the number of bars that this call may encode; None for all of them.

        Returns:
            True if all texts are up to date now; False if another call has to encode more.
        """
        self.refresh(bars, finality_count)
        if not stop:
            return True
        if not self._first_ms <= times[0] <= self.last_ms:
            self._drop_from(0)
            self._first_ms = times[0]
        elif len(self._times) > _MAX_BARS:
            self._drop_before(min(times[0], self._times[-_MAX_BARS // 2]))
        start = bisect_right(times, self.last_ms)
        end = stop if most is None else min(stop, start + most)
        if end - start > _READ_SINGLY:
            missing: Iterable[Candle | None] = bars.bars_between(*self.topic, times[start], times[end - 1] + 1)
        else:
            missing = (bars.get_bar(*self.topic, open_ms) for open_ms in times[start:end])
        for bar in missing:
            if bar is not None:
                self._append_bar(bar, self.cares and bars.is_final(*self.topic, bar))
                self.last_ms = bar.open_ms
        return end == stop or start >= stop

    def refresh(self, bars: BarSource, finality_count: int) -> None:
        """Drop the texts of bars that have changed."""
        revision = bars.revision_of(*self.topic)
        if revision != self._revision:
            self._drop_from(bars.revised_from(*self.topic, self._revision))
            self._revision = revision
        if finality_count != self._finality_count:
            self._check_open(bars)
            self._finality_count = finality_count

    def is_current(self, bar: Candle) -> bool:
        """Return True if the text of this bar is up to date, apart from its finality."""
        text = self.bar_text(bar.open_ms)
        return text is not None and any(text == self.printer.print(bar, final)[0].encode() for final in (True, False))

    def drop_from(self, open_ms: int, revision: int) -> None:
        """Drop the texts from `open_ms` on, which changed in this revision."""
        self._drop_from(open_ms)
        if self._revision + 1 == revision:  # nothing else has changed
            self._revision = revision

    def count_bars(self, since_ms: int, before_ms: int) -> int:
        """Return the number of encoded bars in `[since_ms, before_ms)`."""
        return bisect_left(self._times, before_ms) - bisect_left(self._times, since_ms)

    def newest_text(self, count: int, since_ms: int, before_ms: int) -> tuple[int | None, int, memoryview]:
        """Return the newest bars of `[since_ms, before_ms)`, at most `count`.

        The texts are a view: release it before you call another method.

        Returns:
            The opening time of the first bar, the number of bars, and their texts, each followed by a comma.
        """
        stop = bisect_left(self._times, before_ms)
        start = max(bisect_left(self._times, since_ms), stop - count)
        if start >= stop:
            return None, 0, memoryview(b"")
        texts = memoryview(self._blobs[0])[self._begin_of(start) : self._ends[0][stop - 1]]
        return self._times[start], stop - start, texts

    def columns(self, start_ms: int, end_ms: int) -> list[bytes]:
        """Return the texts of the bars of `[start_ms, end_ms)`, one value per column, with a separator after each."""
        start, stop = bisect_left(self._times, start_ms), bisect_left(self._times, end_ms)
        if start >= stop:
            return [b""] * self.printer.columns
        return [
            bytes(memoryview(blob)[ends[start - 1] if start else 0 : ends[stop - 1]])
            for blob, ends in zip(self._blobs, self._ends, strict=True)
        ]

    def times_between(self, start_ms: int, end_ms: int) -> Sequence[int]:
        """Return the opening times of the encoded bars in `[start_ms, end_ms)`."""
        return self._times[bisect_left(self._times, start_ms) : bisect_left(self._times, end_ms)]

    def append_final(self, bars: BarTexts) -> None:
        """Append final bars all together, at a fifth of the cost of one by one."""
        assert self.printer.print_texts is not None, "a printer of pages"
        separator = self.printer.separator.decode()
        for texts, blob, ends in zip(self.printer.print_texts(bars), self._blobs, self._ends, strict=True):
            ends.extend(islice(accumulate((len(text) + 1 for text in texts), initial=len(blob)), 1, None))
            blob += separator.join((*texts, "")).encode()
        self._times.extend(bars.times)

    def version(self, open_ms: int) -> int:
        """Return the version of the texts up to this bar: a number that is unique in this process."""
        return next(number for from_ms, number in reversed(self._versions) if from_ms <= open_ms)

    def newest_version(self, bar: Candle, final: bool) -> int:
        """Return the version of the newest bar: a number that is unique in this process."""
        newest = self._newest
        if newest is None or newest[0] is not bar or newest[1] is not final:
            newest = self._newest = bar, final, next(_numbers)
            self._newest_texts = ()
        return newest[2]

    def newest_columns(self, bar: Candle, final: bool) -> Sequence[bytes]:
        """Return the texts of the newest bar, one per column."""
        self.newest_version(bar, final)
        if not self._newest_texts:
            self._newest_texts = [text.encode() for text in self.printer.print(bar, final)]
        return self._newest_texts

    def bar_text(self, open_ms: int) -> bytes | None:
        """Return the text of one bar; None if it is not encoded."""
        at = bisect_left(self._times, open_ms)
        if at == len(self._times) or self._times[at] != open_ms:
            return None
        return bytes(self._blobs[0][self._begin_of(at) : self._ends[0][at] - 1])

    def kept_message(self, key: object, state: object) -> Any:
        """Return the message kept for `key` if the room is still in the same `state`, else None."""
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] == state else None

    def keep_message(self, key: object, state: object, message: Sequence[Any]) -> None:
        """Keep a message, a sequence that begins with its frame, for as long as the room is in this state."""
        self._kept.pop(key, None)
        if len(self._kept) >= _MESSAGES_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = state, message

    def _append_bar(self, bar: Candle, final: bool) -> None:
        if self.cares and not final:
            self.open.append(bar.open_ms)
            if self.closed:
                return
        for text, blob, ends in zip(self.printer.print(bar, final), self._blobs, self._ends, strict=True):
            blob += text.encode() + self.printer.separator
            ends.append(len(blob))
        self._times.append(bar.open_ms)

    def _check_open(self, bars: BarSource) -> None:
        """Drop the texts from the first open bar that has become final or no longer exists."""
        for open_ms in self.open:
            bar = bars.get_bar(*self.topic, open_ms)
            if bar is None or bars.is_final(*self.topic, bar):
                self._drop_from(open_ms)
                return

    def _drop_from(self, open_ms: int) -> None:
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

    def _drop_before(self, open_ms: int) -> None:
        """Drop the oldest texts, so that the bars before `open_ms` have to be encoded again."""
        count = bisect_left(self._times, open_ms)
        for column, ends in enumerate(self._ends):
            size = ends[count - 1] if count else 0
            del self._blobs[column][:size]
            self._ends[column] = array("L", [end - size for end in ends[count:]])
        del self._times[:count]
        del self.open[: bisect_left(self.open, open_ms)]
        self._first_ms = open_ms

    def _begin_of(self, at: int) -> int:
        return self._ends[0][at - 1] if at else 0


class EncodedBarCache:
    """All `EncodedBars` of a process, limited to `most_bytes`. Drops the least recently used first."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        #: The limit of `bytes`.
        self.most_bytes = most_bytes
        self._forms: OrderedDict[tuple[Topic, Hashable, bool], EncodedBars] = OrderedDict()
        # encoded pages of the past, with the bytes counted for each
        self._pages: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._page_bytes = 0
        self.bytes = 0
        # requests for encoded bars and for pages: answered from the cache, and not
        self.form_hits = self.form_misses = self.page_hits = self.page_misses = 0

    def get_form(self, topic: Topic, printer: Printer, closed: bool = False) -> EncodedBars:
        """Return the encoded bars of a topic, new ones if none exist. Call `mark_used` after reading them."""
        key = (topic, printer.name, closed)
        form = self._forms.get(key)
        if form is None:
            self.form_misses += 1
            form = self._forms[key] = EncodedBars(topic, printer, closed)
        else:
            self.form_hits += 1
            self._forms.move_to_end(key)
        return form

    def find_form(self, topic: Topic, fields: int, closed: bool) -> EncodedBars | None:
        """Return the encoded bars of a topic, or None if none exist."""
        return self._forms.get((topic, fields, closed))

    def kept_body(self, topic: Topic, printer: Printer, key: object, tag: object) -> bytes | None:
        """Return the body that `keep_body` kept for `key`, if it has this tag."""
        name = (topic, printer.name, False)
        form = self._forms.get(name)
        kept = None if form is None else form.kept_message(key, tag)
        if kept is None:
            return None
        self._forms.move_to_end(name)
        return bytes(kept[0])

    def keep_body(self, topic: Topic, printer: Printer, key: object, tag: object, body: bytes) -> None:
        """Keep the body of an answer made from the bars of a topic."""
        form = self.get_form(topic, printer)
        form.keep_message(key, tag, (body,))
        self.mark_used(form)

    def mark_used(self, form: EncodedBars) -> None:
        """Update the memory counted for `form`, and drop others if the limit is exceeded."""
        size = form.size_bytes
        self.bytes += size - form.counted
        form.counted = size
        while self._pages and self.bytes > self.most_bytes:
            self._drop_page()
        while self.bytes > self.most_bytes and len(self._forms) > 1:
            _, oldest = self._forms.popitem(last=False)
            self.bytes -= oldest.counted

    def find_page(self, key: Hashable) -> Any | None:
        """Return a page of the past that `keep_page` kept, or None."""
        kept = self._pages.get(key)
        if kept is None:
            self.page_misses += 1
            return None
        self.page_hits += 1
        self._pages.move_to_end(key)
        return kept[0]

    def keep_page(self, key: Hashable, page: Any, size: int) -> None:
        """Keep an encoded page of the past, of `size` bytes.

        All pages together take at most a quarter of the memory, and never displace the newest bars: a client that reads
        years of history does not slow down the others.
        """
        if key in self._pages:
            self._pages.move_to_end(key, last=False)
            self._drop_page()
        self._pages[key] = page, size
        self._page_bytes += size
        self.bytes += size
        while self._pages and (self._page_bytes > self.most_bytes // 4 or self.bytes > self.most_bytes):
            self._drop_page()

    def _drop_page(self) -> None:
        """Drop the least recently used page."""
        _, (_, size) = self._pages.popitem(last=False)
        self._page_bytes -= size
        self.bytes -= size
