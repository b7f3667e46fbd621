"""How far one process has followed a market's feed, so that it can say what changed since a position in it."""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from candled.bus import FeedMetadata, Position
from candled.model import Range, RangeSet

_EPOCHS_KEPT = 8
_CHANGES_KEPT = 2000


@dataclass(slots=True)
class _Epoch:
    """A feed that was followed from message `first_seq` to `last_seq`; `offset` makes stamps of its numbers."""

    name: str
    offset: int
    first_seq: int
    last_seq: int


class FeedLog:
    """Pure. Gives every change a stamp; stamps only grow, also from one feed of the market to the next.

    A message's stamp is even. What is found by reading the store again gets the odd stamp behind it: whoever has seen
    everything up to a message has not necessarily seen that.
    """

    def __init__(self) -> None:
        self.facts = FeedMetadata()
        self.lost_since: Position | None = None  # with `is_broken`: the last message before some were lost
        self.is_broken = False
        self._lost_until: Position | None = None  # the last message that may have been lost
        self._epochs: deque[_Epoch] = deque(maxlen=_EPOCHS_KEPT)
        self._changes: deque[tuple[int, Range, bool]] = deque()  # the stamp, where, and whether only in being final
        self._changes_from = 0  # changes up to this stamp may have been forgotten
        # from which stamp on everything before which time was final; packed, as it grows every minute
        self._settled_stamps, self._settled_times = array("q"), array("q")

    @property
    def position(self) -> Position | None:
        """The newest message that was seen."""
        return Position(self._epochs[-1].name, self._epochs[-1].last_seq) if self._epochs else None

    @property
    def change_id(self) -> int:
        """The stamp of the newest message; 0 before the first."""
        return _stamp(self._epochs[-1], self._epochs[-1].last_seq) if self._epochs else 0

    @property
    def is_logged(self) -> bool:
        """Whether what changed before this process began to follow can be read from the store's log of changes."""
        return bool(self._epochs) and self.facts.logged_seq >= self._epochs[-1].first_seq

    @property
    def is_lost_logged(self) -> bool:
        """Whether what was told in lost messages can be read from the store's log of changes."""
        until = self._lost_until
        if until is None:
            return True
        is_of_this_feed = bool(self._epochs) and until.epoch == self._epochs[-1].name  # messages may be lost before any
        return is_of_this_feed and self.facts.logged_seq >= until.seq

    def on_message(self, position: Position) -> bool:
        """Take note of a message; False if it is older than the last. `is_broken`: some are missing before it.

        Several may come at one position: what a bus found out by itself stands at the newest message it knows of.
        """
        current = self._epochs[-1] if self._epochs else None
        if current is None or position.epoch != current.name:
            if any(known.name == position.epoch and position.seq <= known.last_seq for known in self._epochs):
                return False  # late, from a feed that another one has replaced
            if current is not None or position.seq != 1:
                self._break_until(Position(position.epoch, position.seq - 1))
            offset = 0 if current is None else current.offset + current.last_seq + 1 - position.seq
            self._epochs.append(_Epoch(position.epoch, offset, position.seq, position.seq))
            self.facts = replace(self.facts, logged_seq=-1)  # it was a number of the feed before
            return True
        if position.seq < current.last_seq:
            return False
        if position.seq > current.last_seq + 1:
            self._break_until(Position(position.epoch, position.seq - 1))
        current.last_seq = position.seq
        return True

    def mark_unreliable(self, back_to: Position | None = None, *, until: Position | None = None) -> None:
        """Note that messages may have been lost, as the bus itself says: up to `until`, or before the present one.

        With `back_to` the numbers that were followed were not the feed's, and go on behind that position.
        """
        position = self.position
        is_later = until is not None and position is not None and until.epoch == position.epoch and until > position
        self._break_until(until if is_later or position is None else position._replace(seq=position.seq - 1))
        if back_to is not None and position is not None:
            current = self._epochs[-1]
            offset = current.offset + current.last_seq + 1 - back_to.seq
            followed = [epoch.first_seq for epoch in self._epochs if epoch.name == back_to.epoch]
            self.lost_since = back_to._replace(seq=min([*followed, back_to.seq + 1]) - 1)
            self._lost_until = back_to
            self._epochs.append(_Epoch(back_to.epoch, offset, back_to.seq + 1, back_to.seq))
            self.facts = replace(self.facts, logged_seq=-1)

    def mark_repaired(self) -> None:
        """Note that everything that may have been lost was read again."""
        self.is_broken = False
        self.lost_since = self._lost_until = None

    def repaired_since(self, position: Position) -> Iterator[Position]:
        """A position, then the last ones of the feeds before: the log may know those, but not this one yet."""
        yield position
        names = [epoch.name for epoch in self._epochs]
        earlier = list(self._epochs)[: names.index(position.epoch)] if position.epoch in names else []
        for epoch in reversed(earlier):
            yield Position(epoch.name, epoch.last_seq)

    def log_change(self, stamp: int, start_ms: int, end_ms: int, *, only_final: bool = False) -> None:
        """Remember that something in `[start_ms, end_ms)` changed after its time; `only_final`: became final again."""
        if len(self._changes) >= _CHANGES_KEPT:
            self._changes_from = self._changes.popleft()[0]
        self._changes.append((stamp, Range(start_ms, end_ms), only_final))

    def update_metadata(self, facts: FeedMetadata) -> None:
        """Take the facts that came with the newest message."""
        known, self.facts = self.facts, facts
        if facts.watermark_ms is not None and facts.watermark_ms != known.watermark_ms:
            self._settled_stamps.append(self.change_id)
            self._settled_times.append(facts.watermark_ms)
            if len(self._settled_stamps) >= 2 * _CHANGES_KEPT:
                del self._settled_stamps[:_CHANGES_KEPT], self._settled_times[:_CHANGES_KEPT]
        if known.gap is not None and facts.gap != known.gap:  # what is final there was not
            self.log_change(self.change_id, *known.gap)

    def watermark_at(self, stamp: int) -> int | None:
        """Before which time everything was final, but for gaps, at a stamp; None if that was forgotten."""
        if stamp < self._changes_from:
            return None
        index = bisect_right(self._settled_stamps, stamp) - 1
        return self._settled_times[index] if index >= 0 else None

    def change_id_of(self, position: Position) -> int | None:
        """The stamp up to which whoever is at `position` has seen everything; None if it was not followed that far."""
        for epoch in self._epochs:  # of a feed that went back the first: what is told twice does no harm
            if epoch.name == position.epoch and epoch.first_seq - 1 <= position.seq <= epoch.last_seq:
                stamp = _stamp(epoch, position.seq)
                return stamp if stamp >= self._changes_from else None
        return None

    def changes_since(self, stamp: int) -> RangeSet:
        """Where something changed after its time, since a stamp."""
        return RangeSet(change for at, change, only_final in self._changes if at > stamp and not only_final)

    def finals_since(self, stamp: int) -> RangeSet:
        """Where something was final before, was not for as long as it was read again, and is since a stamp."""
        return RangeSet(change for at, change, only_final in self._changes if at > stamp and only_final)

    def _break_until(self, until: Position | None) -> None:
        if not self.is_broken:
            self.is_broken = True
            self.lost_since = self.position
        elif until is not None and self._lost_until is not None and until.epoch == self._lost_until.epoch:
            until = max(until, self._lost_until)
        self._lost_until = until


def _stamp(epoch: _Epoch, seq: int) -> int:
    return 2 * (epoch.offset + seq)
