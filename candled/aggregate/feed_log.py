"""The received part of a market's feed, used to find the changes since a position."""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from candled.bus import FeedMetadata
from candled.model import Position, Range, RangeSet

_EPOCHS_KEPT = 8
_CHANGES_KEPT = 2000


@dataclass(slots=True)
class _Epoch:
    """A feed as far as it was received. Its message numbers are converted to change ids."""

    #: The name of the feed, as in `Position.epoch`.
    name: str
    #: The number that is added to a message number; twice the sum is the change id.
    offset: int
    #: The number of the first message.
    first_seq: int
    #: The number of the newest message; before `first_seq` if there is none yet.
    last_seq: int


class FeedLog:
    """The changes of a market, each with a change id. Change ids only grow, even from one feed to the next. Pure.

    The change id of a message is even. Changes that were found by reading the store again get the next odd number. So
    they count as later than the message: a client that has received every message up to it may lack them.
    """

    def __init__(self) -> None:
        self.metadata = FeedMetadata()
        self.lost_since: Position | None = None  # with `is_broken`: the last message before some were lost
        self.is_broken = False
        self._lost_until: Position | None = None  # the last message that may have been lost
        self._epochs: deque[_Epoch] = deque(maxlen=_EPOCHS_KEPT)
        # change id, range, and whether bars there only became final
        self._changes: deque[tuple[int, Range, bool]] = deque()
        self._changes_from = 0  # changes up to this one may have been dropped
        # change ids, and the watermarks that apply from each on; packed, because they grow every minute
        self._watermark_ids, self._watermarks = array("q"), array("q")

    @property
    def position(self) -> Position | None:
        """The position of the newest received message; None before the first."""
        return Position(self._epochs[-1].name, self._epochs[-1].last_seq) if self._epochs else None

    @property
    def change_id(self) -> int:
        """The change id of the newest message; 0 before the first."""
        return _change_id_at(self._epochs[-1], self._epochs[-1].last_seq) if self._epochs else 0

    @property
    def is_logged(self) -> bool:
        """True if the store's log has the changes from before this process began to receive the feed."""
        return bool(self._epochs) and self.metadata.logged_seq >= self._epochs[-1].first_seq

    @property
    def is_lost_logged(self) -> bool:
        """True if the store's log has the changes of the lost messages."""
        until = self._lost_until
        if until is None:
            return True
        # messages may be lost before the first one
        is_of_this_feed = bool(self._epochs) and until.epoch == self._epochs[-1].name
        return is_of_this_feed and self.metadata.logged_seq >= until.seq

    def record_message(self, position: Position) -> bool:
        """Record a message; return False if it is older than the last one.

        If messages before it are missing, `is_broken` becomes True. Several messages may have the same position: a
        message that the bus adds has the newest position that the bus knows.
        """
        current = self._epochs[-1] if self._epochs else None
        if current is None or position.epoch != current.name:
            if any(known.name == position.epoch and position.seq <= known.last_seq for known in self._epochs):
                return False  # a late message of a feed that another one has replaced
            if current is not None or position.seq != 1:
                self._break_until(Position(position.epoch, position.seq - 1))
            offset = 0 if current is None else current.offset + current.last_seq + 1 - position.seq
            self._epochs.append(_Epoch(position.epoch, offset, position.seq, position.seq))
            self.metadata = replace(self.metadata, logged_seq=-1)  # that number belonged to the previous feed
            return True
        if position.seq < current.last_seq:
            return False
        if position.seq > current.last_seq + 1:
            self._break_until(Position(position.epoch, position.seq - 1))
        current.last_seq = position.seq
        return True

    def mark_unreliable(self, back_to: Position | None = None, *, until: Position | None = None) -> None:
        """Record the bus's report that messages may have been lost: those up to `until`, or those before the newest.

        If `back_to` is set, the received numbers did not belong to the feed, which continues after that position.
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
            self.metadata = replace(self.metadata, logged_seq=-1)

    def mark_incomplete(self) -> None:
        """Record that minutes of earlier messages turned out to be missing."""
        self._break_until(None)

    def mark_repaired(self) -> None:
        """Record that everything that may have been lost was read again."""
        self.is_broken = False
        self.lost_since = self._lost_until = None

    def repaired_since(self, position: Position) -> Iterator[Position]:
        """Yield a position, then the last positions of earlier feeds, newest first.

        An earlier one is of use while the store's log does not have the feed of the later one yet.
        """
        yield position
        names = [epoch.name for epoch in self._epochs]
        earlier = list(self._epochs)[: names.index(position.epoch)] if position.epoch in names else []
        for epoch in reversed(earlier):
            yield Position(epoch.name, epoch.last_seq)

    def log_change(self, change_id: int, start_ms: int, end_ms: int, *, only_final: bool = False) -> None:
        """Record that a range changed after it was final.

        With `only_final`, its bars became final again with the same values.
        """
        if len(self._changes) >= _CHANGES_KEPT:
            self._changes_from = self._changes.popleft()[0]
        self._changes.append((change_id, Range(start_ms, end_ms), only_final))

    def update_metadata(self, metadata: FeedMetadata) -> None:
        """Apply the metadata of the newest message."""
        known, self.metadata = self.metadata, metadata
        if metadata.watermark_ms is not None and metadata.watermark_ms != known.watermark_ms:
            self._watermark_ids.append(self.change_id)
            self._watermarks.append(metadata.watermark_ms)
            if len(self._watermark_ids) >= 2 * _CHANGES_KEPT:
                del self._watermark_ids[:_CHANGES_KEPT], self._watermarks[:_CHANGES_KEPT]
        if known.gap is not None and metadata.gap != known.gap:  # its minutes may be final now
            self.log_change(self.change_id, *known.gap)

    def watermark_at(self, change_id: int) -> int | None:
        """Return the time before which everything except gaps was final at a change id; None if it is unknown now."""
        if change_id < self._changes_from:
            return None
        index = bisect_right(self._watermark_ids, change_id) - 1
        return self._watermarks[index] if index >= 0 else None

    def change_id_of(self, position: Position) -> int | None:
        """Return the change id up to which a client at `position` has received everything; None if it is not known."""
        for epoch in self._epochs:  # if a feed went back, use its first part: sending a bar twice does no harm
            if epoch.name == position.epoch and epoch.first_seq - 1 <= position.seq <= epoch.last_seq:
                change_id = _change_id_at(epoch, position.seq)
                return change_id if change_id >= self._changes_from else None
        return None

    def ranges_since(self, change_id: int) -> RangeSet:
        """Return the ranges that changed after they were final, since a change id."""
        return RangeSet(change for at, change, only_final in self._changes if at > change_id and not only_final)

    def finals_since(self, change_id: int) -> RangeSet:
        """Return the ranges that were read from the store again since a change id, so that they became final again."""
        return RangeSet(change for at, change, only_final in self._changes if at > change_id and only_final)

    def _break_until(self, until: Position | None) -> None:
        if not self.is_broken:
            self.is_broken = True
            self.lost_since = self.position
        elif until is not None and self._lost_until is not None and until.epoch == self._lost_until.epoch:
            until = max(until, self._lost_until)
        self._lost_until = until


def _change_id_at(epoch: _Epoch, seq: int) -> int:
    return 2 * (epoch.offset + seq)
