"""What travels from ingest to serve, and what every bus can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from candled.model import Candle, Decimals, MarketKey, Range


class Position(NamedTuple):
    """Where in a market's feed something was said.

    `epoch` names the feed: whoever begins to read a market from its exchange begins a new one. `seq` counts the
    messages of the market within it, from 1.
    """

    epoch: str
    seq: int


class FeedMetadata(msgspec.Struct, frozen=True):
    """What ingest knows of a market beside its candles; times are UTC epoch milliseconds.

    Every minute before `settled_ms` is final or known not to exist, but for those in `gap`, which are still missing.
    Changes of minutes before `settled_ms` up to the message `logged_seq` can be read from the store's log of changes
    (-1: none yet).
    """

    watermark_ms: int | None = None
    gap: Range | None = None
    logged_seq: int = -1

    def is_settled(self, start_ms: int, end_ms: int) -> bool:
        """Whether every minute of `[start_ms, end_ms)` is final or known not to exist."""
        if self.watermark_ms is None or end_ms > self.watermark_ms:
            return False
        return self.gap is None or end_ms <= self.gap.start_ms or self.gap.end_ms <= start_ms


class MinuteChanged(msgspec.Struct, frozen=True):
    """A 1-minute candle at the live edge: new, grown, final, or revised. Sent before it is stored."""

    market: MarketKey
    candle: Candle
    facts: FeedMetadata = FeedMetadata()


@dataclass(frozen=True, slots=True)
class HistoryChanged:
    """The stored past of a market changed within `[start_ms, end_ms)`. Sent after it is stored: read it again there.

    `complete_from_ms` is since when history is now complete but for known holes.
    """

    market: MarketKey
    start_ms: int
    end_ms: int
    complete_from_ms: int | None
    facts: FeedMetadata = FeedMetadata()


@dataclass(frozen=True, slots=True)
class StateChanged:
    """How a market is doing: one of `candled.model.STATES`, since when (UTC epoch ms).

    `reason` is one of `candled.model.STATE_REASONS`, empty where it is `live`; `trouble` describes the problem, and is
    empty where there is none or it is not known.
    """

    market: MarketKey
    state: str
    since_ms: int
    reason: str = ""
    trouble: str = ""
    #: What the exchange says of the market's numbers, as soon as it was asked.
    decimals: Decimals = Decimals()


@dataclass(frozen=True, slots=True)
class MessagesLost:
    """Messages of a market may have been lost on the way. A bus says so to its listeners; nobody publishes it.

    With `back_to` what came after that position was not the feed's: its numbers go on from there.
    """

    market: MarketKey
    back_to: Position | None = None


Message = MinuteChanged | HistoryChanged | StateChanged | MessagesLost
Listener = Callable[[Message, Position], None]


class Bus(Protocol):
    """Carries messages of one market in the order they were published."""

    def publish(self, message: Message) -> Position:
        """Number a message and hand it to all listeners; never blocks and never raises for trouble on the way."""

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` for every later message. It must not block."""

    def describe(self) -> dict[str, object]:
        """Return facts for `/health`: at least `kind` and `connected`, and `trouble` where something fails."""

    def unpublished(self) -> Mapping[MarketKey, str]:
        """Return the markets that this process reads and others get nothing of, each with the reason."""
