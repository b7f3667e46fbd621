"""Send the states of feeds to the connections that subscribed to them."""

from collections.abc import Callable
from dataclasses import dataclass

from candled.model import FeedState, Interval, MarketKey, Topic
from candled.protocol import messages
from candled.protocol.frames import Frame
from candled.protocol.requests import RequestCodec

from .encoded_bars import BarSource
from .recipients import RecipientConnection, Recipients, RecipientSlot

# All `status` messages of a market count as one bar of one topic: for a slow client only the newest is queued.
_NO_INTERVAL = Interval(0, "status")
_NO_BAR_MS = 1


@dataclass(eq=False, repr=False, slots=True)
class Watcher(RecipientSlot):
    """A connection's subscription to the state of one market."""

    #: The market whose state the connection receives.
    market: MarketKey


class Statuses:
    """The subscriptions to feed states."""

    def __init__(self, codec: RequestCodec, bars: BarSource, publish: Callable[[Recipients, Frame], None]) -> None:
        self._codec = codec
        self._bars = bars
        self._publish = publish
        self._watchers: dict[MarketKey, Recipients] = {}

    def watch_state(self, connection: RecipientConnection, market: MarketKey) -> Watcher:
        """Send a connection the current state, and every change from now on."""
        watcher = Watcher(connection, market)
        self._watchers.setdefault(market, Recipients()).add_slot(watcher)
        connection.send_reply(self._state_frame(market, self._bars.feed_state(market)))
        return watcher

    def unwatch_state(self, watcher: Watcher) -> None:
        """Remove a watcher."""
        recipients = self._watchers[watcher.market]
        recipients.remove_slot(watcher)
        if not recipients.member_count and not recipients.sending:
            del self._watchers[watcher.market]

    def on_state_changed(self, market: MarketKey, feed: FeedState) -> None:
        """Send a market's new state, or the new reason for it, to its watchers."""
        recipients = self._watchers.get(market)
        if recipients:
            recipients.compact()
            self._publish(recipients, self._state_frame(market, feed))

    def _state_frame(self, market: MarketKey, feed: FeedState) -> Frame:
        text = messages.status(self._codec.market_head(market), feed)
        return Frame.from_text(text, Topic(market, _NO_INTERVAL), _NO_BAR_MS)
