"""The bus: messages from ingest to the serving processes, and the interface of their carriers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from candled.model import Candle, Decimals, MarketKey, Position, Range


class FeedMetadata(msgspec.Struct, frozen=True):
    """Facts about a market besides its candles. Times are UTC epoch milliseconds."""

    #: Every minute before this time is final or known not to exist, except those in `gap`. None if unknown.
    watermark_ms: int | None = None
    #: The range that contains all missing minutes before the watermark.
    gap: Range | None = None
    #: The number of a message. The store's log has the changes before the watermark that messages up to this one
    #: published; -1 if it has none yet.
    logged_seq: int = -1

    def is_range_final(self, start_ms: int, end_ms: int) -> bool:
        """Return whether every minute of `[start_ms, end_ms)` is final or known not to exist."""
        if self.watermark_ms is None or end_ms > self.watermark_ms:
            return False
        return self.gap is None or end_ms <= self.gap.start_ms or self.gap.end_ms <= start_ms


class MinuteChanged(msgspec.Struct, frozen=True):
    """A 1-minute candle at the live edge: new, updated, final, or revised. Sent before it is stored."""

    market: MarketKey
    candle: Candle
    metadata: FeedMetadata = FeedMetadata()


@dataclass(frozen=True, slots=True)
class HistoryChanged:
    """The stored past of a market changed within `[start_ms, end_ms)`. The store has the change, so read it again."""

    #: The market whose past changed.
    market: MarketKey
    #: The beginning of the changed range, UTC epoch milliseconds.
    start_ms: int
    #: The end of the changed range, UTC epoch milliseconds. It does not belong to the range.
    end_ms: int
    #: The time since which history is complete except for known gaps; None if unknown.
    complete_from_ms: int | None
    #: The market's metadata after the change.
    metadata: FeedMetadata = FeedMetadata()


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The state of a market's feed."""

    #: The market of the feed.
    market: MarketKey
    #: One of `candled.model.STATES`.
    state: str
    #: Since when the feed is in this state, UTC epoch milliseconds.
    since_ms: int
    #: One of `candled.model.STATE_REASONS`, or empty if the state is `live`.
    reason: str = ""
    #: The problem, in words; empty if there is none or it is unknown.
    problem: str = ""
    #: The decimal places of the market, known once the exchange's list was read.
    decimals: Decimals = Decimals()


@dataclass(frozen=True, slots=True)
class MessagesLost:
    """Messages of a market may have been lost. A bus sends this to its listeners; it is never published."""

    #: The market of the messages.
    market: MarketKey
    #: If set, the received messages after this position did not belong to the feed. Its numbers continue from there.
    back_to: Position | None = None


Message = MinuteChanged | HistoryChanged | StateChanged | MessagesLost


class FeedListener(Protocol):
    """A receiver of messages, such as `candled.aggregate.live_bars.LiveBars`."""

    def on_feed_message(self, message: Message, position: Position) -> None:
        """Process a message. It must not block."""


class Bus(Protocol):
    """A carrier of messages. Those of one market arrive in the order in which they were published."""

    def publish(self, message: Message) -> Position:
        """Number a message and deliver it to all listeners. Never blocks, and raises no errors of the transport."""

    def add_listener(self, listener: FeedListener) -> None:
        """Call `listener.on_feed_message` for every later message."""

    def describe(self) -> dict[str, object]:
        """Return facts for `/health`: at least `kind` and `connected`, and `trouble` if something fails."""

    def unpublished_markets(self) -> Mapping[MarketKey, str]:
        """Return the markets that this process reads but cannot publish to other processes, each with the reason."""
