"""The unsent messages of one market and its newest state, both bounded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from candled.bus import FeedMetadata, HistoryChanged, Message, MinuteChanged, StateChanged
from candled.bus.codec import Newest
from candled.model import Candle, Position

_MAX_PENDING = 16  # queued messages; a subscriber that misses older ones reads them from the store
_MAX_MINUTES = 3


class Numbered(NamedTuple):
    """A message and its number."""

    message: Message
    seq: int


@dataclass(eq=False, slots=True)
class OutboundQueue:
    """The numbered messages of one market, kept until they are sent.

    While Redis is unavailable, it keeps only the newest version of the forming minute, and the last few other messages.
    This avoids a flood afterwards. Receivers see a jump in the numbers if messages are missing.
    """

    #: The number of the last message, sent or not; 0 before the first of a feed.
    seq: int = 0
    #: The number of the last sent message.
    sent_seq: int = field(init=False)
    #: The exchange's newest time in a message.
    as_of_ms: int = 0
    #: True while Redis is unavailable.
    is_blocked: bool = False
    #: True if Redis has a number that this process never assigned, which must be overwritten.
    ignores_number: bool = False
    #: The queued messages, oldest first; at most `_MAX_PENDING`.
    _pending: list[Numbered] = field(default_factory=list)
    #: The newest version of the newest minutes, oldest first; at most `_MAX_MINUTES`.
    _candles: list[Candle] = field(default_factory=list)
    #: The metadata of the newest message with a candle or about history.
    _metadata: FeedMetadata = FeedMetadata()
    #: The time since which history is complete, UTC epoch milliseconds, from the newest `HistoryChanged`; None if
    #: unknown.
    _complete_from_ms: int | None = None
    #: The newest state of the feed; None before the first.
    _state: StateChanged | None = None

    def __post_init__(self) -> None:
        self.sent_seq = self.seq

    @property
    def has_pending(self) -> bool:
        """True if messages are queued."""
        return bool(self._pending)

    @property
    def announced_seq(self) -> int:
        """The number up to which other processes should have received everything by now."""
        return self.seq if self.is_blocked else self.sent_seq

    def enqueue(self, message: Message) -> int:
        """Number a message and queue it; return its number."""
        self.seq += 1
        if isinstance(message, MinuteChanged):
            self._candles = _add_version(self._candles, message.candle)
            self.as_of_ms = max(self.as_of_ms, message.candle.as_of_ms)
        if isinstance(message, MinuteChanged | HistoryChanged):
            self._metadata = message.metadata
        if isinstance(message, HistoryChanged):
            self._complete_from_ms = message.complete_from_ms
        elif isinstance(message, StateChanged):
            self._state = message
        if self.is_blocked:
            self._pending = [one for one in self._pending if not _replaces(message, one.message)]
        self._pending.append(Numbered(message, self.seq))
        del self._pending[:-_MAX_PENDING]
        return self.seq

    def begin_feed(self) -> None:
        """Begin another epoch: numbers start again. Unsent messages are dropped.

        The newest state and the store contain their changes.
        """
        self.seq = self.sent_seq = 0
        self.ignores_number = False
        self._pending.clear()

    def next_batch(self) -> Sequence[Numbered]:
        """Return the messages to send now, oldest first. They stay queued until `forget_sent`."""
        return tuple(self._pending)

    def forget_sent(self, seq: int) -> None:
        """Forget messages that were sent."""
        self.sent_seq = max(self.sent_seq, seq)
        self.is_blocked = self.ignores_number = False
        self._pending = [one for one in self._pending if one.seq > seq]

    def newest_state(self, epoch: str, seq: int) -> Newest | None:
        """Return the state for the market's key when the message `seq` is sent; None before the first minute."""
        if not self._candles:
            return None
        position = Position(epoch, seq)
        return Newest(position, tuple(self._candles), self._metadata, self._complete_from_ms, self._state)


def _add_version(candles: Sequence[Candle], candle: Candle) -> list[Candle]:
    """Return the newest minutes after adding one version, oldest first."""
    kept = [one for one in candles if one.open_ms != candle.open_ms]
    return sorted([*kept, candle], key=lambda one: one.open_ms)[-_MAX_MINUTES:]


def _replaces(message: Message, older: Message) -> bool:
    """Return whether a message makes an older one unnecessary: a version of the forming minute, or a state."""
    if isinstance(message, StateChanged):
        return isinstance(older, StateChanged)
    if not isinstance(message, MinuteChanged) or not isinstance(older, MinuteChanged):
        return False
    return older.candle.open_ms == message.candle.open_ms and not older.candle.final
