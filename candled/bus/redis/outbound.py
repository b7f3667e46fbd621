"""What one market has yet to send to other processes: what was said last, and its newest state; both bounded."""

from collections.abc import Sequence
from typing import NamedTuple

from candled.bus.codec import Newest
from candled.bus.interface import FeedMetadata, HistoryChanged, Message, MinuteChanged, Position, StateChanged
from candled.model import Candle, Decimals

_MOST_WAITING = 16  # messages that wait; whoever misses older ones reads them in the store
_MINUTES_KEPT = 3


class Numbered(NamedTuple):
    """A message and its number."""

    message: Message
    seq: int


class OutboundQueue:
    """Numbers the messages of one market, and keeps them until they are sent.

    While Redis is away (`is_away`) only the newest version of the running minute waits, and of the rest the last
    few: what is sent afterwards is no flood, and the jump in the numbers tells that something is missing.
    """

    __slots__ = (
        "_candles",
        "_complete_from_ms",
        "_facts",
        "_state",
        "_waiting",
        "as_of_ms",
        "ignores_number",
        "is_away",
        "sent",
        "seq",
    )

    def __init__(self) -> None:
        self.seq = 0  # of the last message
        self.sent = 0  # of the last message that was sent
        self.as_of_ms = 0  # the exchange's newest time in a message
        self.is_away = False
        self.ignores_number = False  # whether Redis has a number that this process never gave, to be overwritten
        self._waiting: list[Numbered] = []
        self._candles: list[Candle] = []
        self._facts = FeedMetadata()
        self._complete_from_ms: int | None = None
        self._state: StateChanged | None = None

    @property
    def has_pending(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._waiting)

    @property
    def promised(self) -> int:
        """The number up to which others should have got everything by now."""
        return self.seq if self.is_away else self.sent

    def enqueue(self, message: Message) -> int:
        """Number a message and keep it; return its number."""
        self.seq += 1
        if isinstance(message, MinuteChanged):
            self._candles = _with(self._candles, message.candle)
            self.as_of_ms = max(self.as_of_ms, message.candle.as_of_ms)
        if isinstance(message, MinuteChanged | HistoryChanged):
            self._facts = message.facts
        if isinstance(message, HistoryChanged):
            self._complete_from_ms = message.complete_from_ms
        elif isinstance(message, StateChanged):
            self._state = message
        if self.is_away:
            self._waiting = [one for one in self._waiting if not _replaces(message, one.message)]
        self._waiting.append(Numbered(message, self.seq))
        del self._waiting[:-_MOST_WAITING]
        return self.seq

    def begin_feed(self) -> None:
        """Another epoch begins: numbers start again. What was not sent is left to the newest state and the store."""
        self.seq = self.sent = 0
        self.ignores_number = False
        self._waiting.clear()

    def next_batch(self) -> Sequence[Numbered]:
        """What is to be sent now, oldest first; it stays until `sent_up_to`."""
        return tuple(self._waiting)

    def sent_up_to(self, seq: int) -> None:
        """Forget what was sent."""
        self.sent = max(self.sent, seq)
        self.is_away = self.ignores_number = False
        self._waiting = [one for one in self._waiting if one.seq > seq]

    def newest_state(self, epoch: str, seq: int) -> Newest | None:
        """What is kept beside the channel once the message `seq` is sent; None before the first minute."""
        if not self._candles:
            return None
        state = self._state
        return Newest(
            position=Position(epoch, seq),
            candles=tuple(self._candles),
            facts=self._facts,
            complete_from_ms=self._complete_from_ms,
            state=None if state is None else state.state,
            since_ms=0 if state is None else state.since_ms,
            reason="" if state is None else state.reason,
            trouble="" if state is None else state.trouble,
            decimals=Decimals() if state is None else state.decimals,
        )


def _with(candles: Sequence[Candle], candle: Candle) -> list[Candle]:
    """The newest minutes with one more version among them, oldest first."""
    kept = [one for one in candles if one.open_ms != candle.open_ms]
    return sorted([*kept, candle], key=lambda one: one.open_ms)[-_MINUTES_KEPT:]


def _replaces(message: Message, older: Message) -> bool:
    """Whether nobody needs the older one: a version of the running minute, or a state, that this one follows."""
    if isinstance(message, StateChanged):
        return isinstance(older, StateChanged)
    if not isinstance(message, MinuteChanged) or not isinstance(older, MinuteChanged):
        return False
    return older.candle.open_ms == message.candle.open_ms and not older.candle.final
