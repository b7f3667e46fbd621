"""Send the states of feeds to the connections that subscribed to them."""

from collections.abc import Callable

from candled.model import FeedState, Interval, MarketKey, Topic
from candled.protocol import messages
from candled.protocol.frames import Frame

from .recipients import RecipientConnection, Recipients, RecipientSlot

# All `status` messages of a market count as one bar of one topic: for a slow client only the newest is queued.
_NO_INTERVAL = Interval(0, "status")
_NO_BAR_MS = 1


class Watcher(RecipientSlot):
    """A connection's subscription to the state of one market."""

    __slots__ = ("market",)

    def __init__(self, connection: RecipientConnection, market: MarketKey) -> None:
        super().__init__(connection)
        self.market = market


class Statuses:
    """Subscriptions to feed states. `head` returns a market's part of the message, `state` the state of its feed."""

    def __init__(
        self,
        head: Callable[[MarketKey], str],
        state: Callable[[MarketKey], FeedState],
        publish: Callable[[Recipients, Frame], None],
    ) -> None:
        self._head = head
        self._state = state
        self._publish = publish
        self._watchers: dict[MarketKey, Recipients] = {}

    def watch_state(self, connection: RecipientConnection, market: MarketKey) -> Watcher:
        """Send a connection the current state, and every change from now on."""
        watcher = Watcher(connection, market)
        self._watchers.setdefault(market, Recipients()).add_slot(watcher)
        connection.send_reply(self._state_frame(market, self._state(market)))
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
        text = messages.status(self._head(market), feed)
        return Frame.from_text(text, Topic(market, _NO_INTERVAL), _NO_BAR_MS)
