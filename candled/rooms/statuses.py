"""The states of the feeds, told to those who asked for them."""

from collections.abc import Callable

from candled.model import FeedState, Interval, MarketKey

from . import messages
from .frames import Frame
from .links import Link, Links, Place
from .messages import Topic

# Of a slow client's `status` messages only the newest of a market waits, as if all were about one bar of a topic.
_NO_INTERVAL = Interval(0, "status")
_NO_BAR_MS = 1


class Watcher(Place):
    """A link that is told the state of one market."""

    __slots__ = ("market",)

    def __init__(self, link: Link, market: MarketKey) -> None:
        super().__init__(link)
        self.market = market


class Statuses:
    """Who is told the state of which market. `head` names a market in messages, `state` knows how its feed is doing."""

    def __init__(
        self,
        head: Callable[[MarketKey], str],
        state: Callable[[MarketKey], FeedState],
        publish: Callable[[Links, Frame], None],
    ) -> None:
        self._head = head
        self._state = state
        self._publish = publish
        self._watchers: dict[MarketKey, Links] = {}

    def watch(self, link: Link, market: MarketKey) -> Watcher:
        """Tell a link the state now, and whenever it changes."""
        watcher = Watcher(link, market)
        self._watchers.setdefault(market, Links()).add(watcher)
        link.reply(self._frame(market, self._state(market)))
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Tell it no more."""
        links = self._watchers[watcher.market]
        links.drop(watcher)
        if not links.present and not links.sending:
            del self._watchers[watcher.market]

    def changed(self, market: MarketKey, feed: FeedState) -> None:
        """The state of a market's feed is another one, or the reason for it."""
        links = self._watchers.get(market)
        if links:
            links.tidy()
            self._publish(links, self._frame(market, feed))

    def _frame(self, market: MarketKey, feed: FeedState) -> Frame:
        text = messages.status(self._head(market), feed)
        return Frame.of(text, Topic(market, _NO_INTERVAL), _NO_BAR_MS)
