"""One WebSocket connection to an exchange as a state machine, without a socket or a clock.

Frames and times go in; frames to send and events come out.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from candled.exchange import (
    Candles,
    ConnectionLimits,
    Event,
    FeedError,
    Pong,
    Ready,
    Reply,
    SocketFeed,
    Subscribed,
    SubscriptionRejected,
)
from candled.model import Symbol
from candled.token_bucket import TokenBucket

from .rejected_symbols import RejectedSymbols
from .snapshot_places import SNAPSHOT_WITHIN_S, SnapshotPlaces

# A subscription without acknowledgement or data is renewed, first after 10 s, then less and less often.
_ANSWER_WITHIN_S = 10.0
_MOST_RENEWAL_S = 600.0
_RENEW_UNSURE_S = 30.0
_MOST_DOUBLINGS = 9
_HOUR_S = 3600.0
_MOST_REPLIES = 100  # replies and pings that wait to be sent
_SNAPSHOTS_PER_FRAME = 2  # after the start: snapshots that come together delay the updates behind them
_LATE_S = 0.3  # a late call may send the frames of this much time together


@dataclass(slots=True)
class _Subscription:
    #: When it was requested last, monotonic seconds; infinite until its frame is sent.
    asked_at: float = float("inf")
    #: True once the exchange acknowledged the last request, or sent candles.
    acknowledged: bool = False
    #: True once candles arrived since the last request.
    alive: bool = False
    #: The number of renewals since the last candles, which lengthens the pause before the next one.
    renewals: int = 0


class _QueuedFrame(NamedTuple):
    text: str
    #: The symbols that it subscribes to.
    subscribed: Sequence[Symbol] = ()
    #: The symbols that it unsubscribes from.
    unsubscribed: Sequence[Symbol] = ()
    #: True if clients wait for these symbols.
    is_urgent: bool = False


class FeedConnection:
    """The driver of one `SocketFeed`. Pure: owns no socket and no clock; `now` is monotonic seconds.

    After each call, send the `frames_to_send`, and close the connection if there is a `close_reason`.
    """

    def __init__(
        self,
        feed: SocketFeed,
        symbols: Iterable[Symbol],
        now: float,
        rejected: RejectedSymbols | None = None,
        limits: ConnectionLimits | None = None,
        places: SnapshotPlaces | None = None,
    ) -> None:
        self._feed = feed
        self._places = places or SnapshotPlaces()
        self._limits = limits or ConnectionLimits()
        per_hour = self._limits.subscribes_per_hour
        #: The frames of `subscribe` and `unsubscribe` that may be sent.
        self._subscribes = None if per_hour is None else TokenBucket(per_hour / _HOUR_S, per_hour)
        self._carried = frozenset(feed.symbols)
        self._opened_at = now
        self._ping_at = now + feed.ping_every_s
        self._pong_due: float | None = None
        self._send_at = now
        #: Frames of `subscribe` and `unsubscribe` that wait.
        self._frames: deque[_QueuedFrame] = deque()
        #: Pings and replies that wait. They go first.
        self._urgent: deque[str] = deque()
        self._subscriptions: dict[Symbol, _Subscription] = {}
        self._broken: str | None = None
        #: Subscriptions that the exchange rejected, on this connection and on earlier ones.
        self._rejected = RejectedSymbols() if rejected is None else rejected
        self._is_ready = not feed.awaits_ready
        self._is_greeted = False  # from the greeting until the next call of `frames_to_send`
        if self._is_ready:
            self._request_symbols(self._rejected.select_allowed(symbols, now), now)

    def on_frame(self, frame: str | bytes, now: float) -> list[Event]:
        """Read a frame; return its events for the caller: candles, rejections and errors.

        Events about symbols that the feed does not carry are returned without being applied.

        Raises:
            ExchangeError: the frame does not have the documented form. The connection stays usable.
        """
        # every frame proves that the exchange is alive, and a pong may wait behind other frames
        if self._pong_due is not None:
            self._pong_due = now + self._feed.pong_within_s
        if self._feed.pings_when_idle:
            self._ping_at = now + self._feed.ping_every_s
        events: list[Event] = []
        for event in self._feed.read_frame(frame):
            if isinstance(event, Candles | SubscriptionRejected) and event.symbol not in self._carried:
                events.append(event)
            elif isinstance(event, Pong):
                self._pong_due = None
            elif isinstance(event, Subscribed):
                if event.symbol in self._subscriptions:
                    self._subscriptions[event.symbol].acknowledged = True
            elif isinstance(event, Reply):
                self._urgent.append(event.text)
                if len(self._urgent) > _MOST_REPLIES:
                    self._broken = "the exchange asks for more replies than may be sent"
            elif isinstance(event, Ready):
                self._on_ready(now)
            else:
                if isinstance(event, Candles):
                    self._on_sign_of_life(event.symbol)
                elif isinstance(event, SubscriptionRejected):
                    self._subscriptions.pop(event.symbol, None)
                    self._places.free(event.symbol)
                    self._rejected.add_rejection(event.symbol, now)
                elif isinstance(event, FeedError) and event.reconnect:
                    self._broken = event.reason
                events.append(event)
        return events

    def add_symbols(self, symbols: Iterable[Symbol], now: float, *, is_urgent: bool = False) -> None:
        """Subscribe to symbols that the feed carries from now on. Urgent ones go first, and take no places."""
        self._carried = frozenset(self._feed.symbols)
        if self._is_ready:
            self._request_symbols(self._rejected.select_allowed(symbols, now), now, is_urgent=is_urgent)

    def remove_symbols(self, symbols: Iterable[Symbol]) -> None:
        """Unsubscribe from symbols that the feed does not carry any more."""
        self._carried = frozenset(self._feed.symbols)
        subscribed = [symbol for symbol in symbols if self._subscriptions.pop(symbol, None) is not None]
        if subscribed:
            self._queue_unsubscribe(subscribed)

    def frames_to_send(self, now: float) -> list[str]:
        """Return the frames that the exchange allows to be sent now. Pings go first."""
        if self._is_ready:
            self._request_symbols(self._rejected.take_due(now), now)
            self._renew_silent(now)
        if now >= self._ping_at and self._is_ready and (ping := self._feed.make_ping()) is not None:
            self._urgent.append(ping)
            self._ping_at = now + self._feed.ping_every_s
            if self._pong_due is None:
                self._pong_due = now + self._feed.pong_within_s
        due, self._is_greeted = [], False
        while now >= self._send_at and (frame := self._next_frame(now)) is not None:
            due.append(frame)
            self._send_at = max(self._send_at, now - _LATE_S) + 1.0 / self._limits.frames_per_s
        return due

    def _next_frame(self, now: float) -> str | None:
        if self._urgent:
            return self._urgent.popleft()
        if not self._frames:
            return None
        first = self._frames[0]
        awaits_snapshot = self._feed.snapshot and bool(first.subscribed) and not first.is_urgent
        if awaits_snapshot and not self._places.has_room(now):
            return None
        if self._subscribes is not None and self._subscribes.try_take(now):
            return None
        for symbol in self._frames.popleft().subscribed:
            if symbol in self._subscriptions:
                self._subscriptions[symbol].asked_at = now
        if awaits_snapshot:
            self._places.take(first.subscribed, now)
        return first.text

    @property
    def has_more(self) -> bool:
        """True if frames are waiting until the exchange allows them."""
        return bool(self._frames or self._urgent)

    @property
    def has_urgent(self) -> bool:
        """True if a ping, a reply, or the first subscription after a greeting is waiting."""
        return bool(self._urgent) or self._is_greeted

    def close_reason(self, now: float) -> str | None:
        """Return why the connection must be replaced, or None."""
        if self._broken is not None:
            return self._broken
        if not self._is_ready and now > self._opened_at + self._feed.ready_within_s:
            return f"the exchange is not ready after {self._feed.ready_within_s:g} s"
        if self._pong_due is not None and now > self._pong_due:
            return f"no pong or other frame within {self._feed.pong_within_s:g} s after a ping"
        if self._feed.lifetime_s is not None and now > self._opened_at + self._feed.lifetime_s:
            return f"replaced on schedule after {self._feed.lifetime_s:g} s"
        return None

    def renew_subscription(self, symbol: Symbol, now: float) -> None:
        """Renew a subscription that missed trades, or to get another snapshot, unless it was requested recently."""
        subscription = self._subscriptions.get(symbol)
        if subscription is None:
            return
        if now - subscription.asked_at >= _pause_of(_RENEW_UNSURE_S, subscription):
            subscription.alive = False
            self._renew_symbol(symbol, subscription)

    def awaits_snapshot(self, symbol: Symbol, now: float) -> bool:
        """Return whether a subscription waits for its place, or for a snapshot for less than `SNAPSHOT_WITHIN_S`."""
        subscription = self._subscriptions.get(symbol)
        if subscription is None or subscription.alive or not self._feed.snapshot:
            return False
        return now - subscription.asked_at < SNAPSHOT_WITHIN_S

    @property
    def silent_symbols(self) -> list[Symbol]:
        """The symbols that were requested more than once and still deliver nothing."""
        return [symbol for symbol, one in self._subscriptions.items() if one.renewals and not one.alive]

    def _on_ready(self, now: float) -> None:
        if not self._is_ready:
            self._is_ready = self._is_greeted = True
            self._ping_at = now + self._feed.ping_every_s
            self._request_symbols(self._rejected.select_allowed(self._feed.symbols, now), now)

    def _request_symbols(self, symbols: Sequence[Symbol], now: float, *, is_urgent: bool = False) -> None:
        is_paced = self._feed.snapshot and not self._places.is_starting(now)
        most = _SNAPSHOTS_PER_FRAME if is_paced else max(1, len(symbols))
        for first in range(0, len(symbols), most):
            self._queue_subscribe(symbols[first : first + most], is_urgent=is_urgent)
        for symbol in symbols:
            self._subscriptions[symbol] = _Subscription()

    def _queue_subscribe(self, symbols: Sequence[Symbol], *, is_urgent: bool = False) -> None:
        frames = [
            _QueuedFrame(text, share, is_urgent=is_urgent)
            for text, share in _with_shares(self._feed.subscribe(symbols), symbols)
        ]
        if not is_urgent:
            self._frames.extend(frames)
            return
        before = list(self._frames)
        ends = [number + 1 for number, one in enumerate(before) if not set(symbols).isdisjoint(one.unsubscribed)]
        at = max(ends, default=0)  # the symbols may have been removed a moment ago
        self._frames = deque([*before[:at], *frames, *before[at:]])

    def _queue_unsubscribe(self, symbols: Sequence[Symbol]) -> None:
        shares = _with_shares(self._feed.unsubscribe(symbols), symbols)
        self._frames.extend(_QueuedFrame(text, unsubscribed=share) for text, share in shares)

    def _on_sign_of_life(self, symbol: Symbol) -> None:
        self._rejected.remove_symbol(symbol)
        self._places.free(symbol)
        if symbol in self._subscriptions:
            subscription = self._subscriptions[symbol]
            subscription.acknowledged = subscription.alive = True
            subscription.renewals = 0

    def _renew_silent(self, now: float) -> None:
        for symbol, subscription in self._subscriptions.items():
            if subscription.alive or (subscription.acknowledged and not self._feed.snapshot):
                continue
            within_s = self._feed.snapshot_within_s if subscription.acknowledged else _ANSWER_WITHIN_S
            if now - subscription.asked_at > _pause_of(within_s, subscription):
                self._renew_symbol(symbol, subscription)

    def _renew_symbol(self, symbol: Symbol, subscription: _Subscription) -> None:
        self._queue_unsubscribe([symbol])
        self._queue_subscribe([symbol])
        subscription.asked_at = float("inf")
        subscription.acknowledged = False
        subscription.renewals += 1


def _with_shares(texts: Sequence[str], symbols: Sequence[Symbol]) -> Iterator[tuple[str, Sequence[Symbol]]]:
    """Yield each frame with its share of the symbols: plugins keep their order."""
    for number, text in enumerate(texts):
        first, end = (at * len(symbols) // len(texts) for at in (number, number + 1))
        yield text, symbols[first:end]


def _pause_of(first_s: float, subscription: _Subscription) -> float:
    """Return how long to wait for a subscription before it is renewed again: `first_s`, doubled by each renewal."""
    return min(_MOST_RENEWAL_S, first_s * 2.0 ** min(subscription.renewals, _MOST_DOUBLINGS))
