"""Pattern rooms: the subscribers of the closed bars of all markets that a pattern selects."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from candled.exchange import Clock
from candled.model import BarChange, Candle, Interval, MarketKey, PatternTopic, Symbol, Topic
from candled.protocol import messages
from candled.protocol.frames import Frame
from candled.protocol.messages import SEQ, Options, RequestId, bar_text, position_text
from candled.protocol.requests import RequestCodec
from candled.symbol_pattern import SymbolPattern
from candled.universe import MarketsChanged

from .encoded_bars import BarSource
from .recipients import RecipientConnection, Recipients, RecipientSlot, filled

MOST_PATTERNS = 1000  # rooms of a process; each has a list of its markets
MOST_TOGETHER = 20  # most bars of a market sent at one moment, and most queued for a slow client
_LOOKED_AT = 128  # newest bars of a market in which closed ones are searched


@dataclass(eq=False, repr=False, slots=True)
class PatternMembership(RecipientSlot):
    """The subscription of one client to a pattern room. It is in the list of the members with equal options."""

    #: The room that the client has subscribed to.
    room: "PatternRoom"
    #: The delivery options of the subscription.
    options: Options
    #: The `id` of the last request to subscribe, for error messages; None without one.
    request_id: RequestId = None
    #: The place in the list of those that receive `markets`; None if the client did not ask for it.
    watcher: RecipientSlot | None = None


class PatternRoom:
    """The subscribers of one pattern, exchange and interval."""

    __slots__ = ("_pattern", "groups", "last_broadcast_ms", "list_frame", "name", "slot_interval", "symbols", "topic",
                 "watchers")  # fmt: skip

    def __init__(self, topic: PatternTopic, name: str) -> None:
        """Create a room without markets.

        Raises:
            ValueError: the text is no pattern.
        """
        self._pattern = SymbolPattern.parse(topic.pattern)
        self.topic = topic
        self.name = name
        # The interval in the topics of frames. In a slow client's queue it separates them from frames of other rooms.
        self.slot_interval = Interval(topic.interval.ms, name)
        # the selected markets, in the order in which they were added
        self.symbols: dict[Symbol, None] = {}
        self.groups: dict[Options, Recipients] = {}
        # the subscribers of `markets`
        self.watchers = Recipients()
        # the `markets` message with all markets; None until it is needed
        self.list_frame: Frame | None = None
        self.last_broadcast_ms = 0

    def selects(self, symbol: Symbol) -> bool:
        """Return True if bars of a market are sent to this room."""
        return self._pattern.matches(symbol) is not self._pattern.is_exclusion

    def frame_topic(self, market: MarketKey) -> Topic:
        """Return the topic of the frames about a market."""
        return Topic(market, self.slot_interval)

    @property
    def member_count(self) -> int:
        """The number of members."""
        return sum(recipients.member_count for recipients in self.groups.values())


class _ClosedBars:
    """The closed bars of one market and interval, as sent to the rooms that select the market."""

    __slots__ = ("followed_since_ms", "pending", "rooms", "sent_ms")

    def __init__(self, followed_since_ms: int, sent_ms: int | None) -> None:
        self.rooms: list[PatternRoom] = []
        self.followed_since_ms = followed_since_ms
        # opening time of the newest bar that counts as sent; None until the first bars are loaded
        self.sent_ms = sent_ms
        # opening times of older bars that were not final when a newer one was sent, or changed and are not final yet
        self.pending: set[int] = set()


class PatternRooms:
    """All pattern rooms of a process. Each bar is encoded once per room and set of optional fields.

    A room is sent each closed bar once, as an `update`. The bars of a market are in the order of time. A bar that
    changes after that, or becomes final after a newer one was sent, is a `correction` for the members that asked for
    it.
    """

    def __init__(
        self, codec: RequestCodec, bars: BarSource, clock: Clock, publish: Callable[[Recipients, Frame], None]
    ) -> None:
        self._codec = codec
        self._bars = bars
        self._clock = clock
        self._publish = publish
        self._rooms: dict[PatternTopic, PatternRoom] = {}
        self._followed: dict[MarketKey, dict[Interval, _ClosedBars]] = {}

    def __len__(self) -> int:
        return len(self._rooms)

    def has_room(self, topic: PatternTopic) -> bool:
        """Return True if a pattern has members. One more costs little."""
        return topic in self._rooms

    def join_pattern(self, connection: RecipientConnection, topic: PatternTopic, options: Options) -> PatternMembership:
        """Add a client to a room. It receives the bars that close from now on.

        Raises:
            ValueError: the text is no pattern.
        """
        room = self._rooms.get(topic)
        if room is None:
            room = PatternRoom(topic, self._codec.pattern_name(topic))
            self._rooms[topic] = room
            self._add_markets(room, self._codec.symbols(topic.exchange), are_new=False)
        membership = PatternMembership(connection, room, options)
        room.groups.setdefault(options, Recipients()).add_slot(membership)
        return membership

    def leave_room(self, membership: PatternMembership) -> None:
        """Remove a member, then its room if that is empty."""
        room = membership.room
        room.groups[membership.options].remove_slot(membership)
        if membership.watcher is not None:
            room.watchers.remove_slot(membership.watcher)
            membership.watcher = None
        if room.groups[membership.options].member_count:
            return
        del room.groups[membership.options]
        if not room.groups:
            del self._rooms[room.topic]
            for symbol in room.symbols:
                self._unfollow(MarketKey(room.topic.exchange, symbol), room)

    def watch_markets(self, membership: PatternMembership) -> None:
        """Send a member the markets of its room, and every change from now on."""
        room = membership.room
        if room.list_frame is None:
            head = self._codec.pattern_head(room.topic)
            room.list_frame = Frame.from_text(messages.markets(head, room.symbols))
        membership.connection.send_reply(room.list_frame)
        membership.watcher = RecipientSlot(membership.connection)
        room.watchers.add_slot(membership.watcher)

    def on_markets_changed(self, change: MarketsChanged) -> None:
        """Add new markets to the rooms that select them, forget removed ones, and notify those that asked for it."""
        removed = {MarketKey(change.exchange, symbol) for symbol in change.removed}
        for market in removed:
            self._followed.pop(market, None)
        for room in list(self._rooms.values()):  # any `_publish` may remove a client that does not read
            if room.topic.exchange != change.exchange:
                continue
            gone = [symbol for symbol in change.removed if symbol in room.symbols]
            for symbol in gone:
                del room.symbols[symbol]
            new = self._add_markets(room, change.added, are_new=True)
            if gone or new:
                room.list_frame = None
                room.watchers.compact()
                if room.watchers:
                    text = messages.markets_changed(self._codec.pattern_head(room.topic), new, gone)
                    self._publish(room.watchers, Frame.from_text(text))

    # ------------------------------------------------------------ changes in the aggregate

    def offer_bars(self, market: MarketKey, changes: Sequence[BarChange]) -> None:
        """Correct bars that were sent and have changed. New ones are sent once they are final."""
        followed = self._followed.get(market)
        if followed:
            for interval, bar in changes:
                closed = followed.get(interval)
                if closed is not None and closed.sent_ms is not None and bar.open_ms <= closed.sent_ms:
                    self._take_revised(Topic(market, interval), closed, (bar,))

    def on_history_changed(self, market: MarketKey, interval: Interval, bars: Sequence[Candle]) -> None:
        """Correct bars of the past that have changed."""
        closed = self._followed.get(market, {}).get(interval)
        if closed is not None and closed.sent_ms is not None:
            sent = [bar for bar in bars if bar.open_ms <= closed.sent_ms]
            self._take_revised(Topic(market, interval), closed, sent[-MOST_TOGETHER:])

    def on_finality(self, market: MarketKey) -> None:
        """Send the bars of a market that have become final."""
        for interval, closed in list(self._followed.get(market, {}).items()):
            self._send_closed(Topic(market, interval), closed)

    def describe_rooms(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of `/health/ws-stats`. The rooms may change meanwhile."""
        for room in list(self._rooms.values()):
            if self._rooms.get(room.topic) is not room:
                continue
            exchange, _, interval = room.topic
            yield {
                "key": room.name,
                "clientCount": room.member_count,
                "hasCandle": any(
                    self._bars.newest_times(MarketKey(exchange, symbol), interval, 1) for symbol in room.symbols
                ),
                "lastBroadcast": room.last_broadcast_ms,
            }

    # ------------------------------------------------------------ inside

    def _add_markets(self, room: PatternRoom, symbols: Iterable[Symbol], *, are_new: bool) -> list[Symbol]:
        """Follow the markets that a room selects; return them. Those that `are_new` have no bars yet."""
        selected = [symbol for symbol in symbols if room.selects(symbol)]
        exchange, _, interval = room.topic
        for symbol in selected:
            room.symbols[symbol] = None
            followed = self._followed.setdefault(MarketKey(exchange, symbol), {})
            closed = followed.get(interval)
            if closed is None:
                sent_ms = None if are_new else self._newest_past(Topic(MarketKey(exchange, symbol), interval), None)
                closed = followed[interval] = _ClosedBars(self._clock.now_ms(), sent_ms)
            closed.rooms.append(room)
        return selected

    def _unfollow(self, market: MarketKey, room: PatternRoom) -> None:
        followed = self._followed[market]
        closed = followed[room.topic.interval]
        closed.rooms.remove(room)
        if not closed.rooms:
            del followed[room.topic.interval]
            if not followed:
                del self._followed[market]

    def _newest_past(self, topic: Topic, until_ms: int | None) -> int | None:
        """Return the opening time of the newest bar that closed before the market was followed; None if none is loaded.

        If the bars were loaded later, pass the time at which it was followed as `until_ms`.
        """
        times = self._bars.newest_times(*topic, _LOOKED_AT)
        if not times:
            return None
        ms, now_ms = topic.interval.ms, self._clock.now_ms() if until_ms is None else until_ms
        for open_ms in reversed(times):
            if (until_ms is None or open_ms + ms <= until_ms) and self._final_bar(topic, open_ms) is not None:
                return open_ms
        return max((open_ms for open_ms in times if open_ms + ms <= now_ms), default=times[0] - 1)

    def _final_bar(self, topic: Topic, open_ms: int) -> Candle | None:
        bar = self._bars.get_bar(*topic, open_ms)
        return bar if bar is not None and self._bars.is_final(*topic, bar) else None

    def _send_closed(self, topic: Topic, closed: _ClosedBars) -> None:
        """Send the bars that have become final, oldest first."""
        if closed.sent_ms is None:
            closed.sent_ms = self._newest_past(topic, closed.followed_since_ms)
            if closed.sent_ms is None:
                return
        times = self._bars.newest_times(*topic, _LOOKED_AT)
        newer = times[bisect_right(times, closed.sent_ms) :]
        found = [self._final_bar(topic, open_ms) for open_ms in newer]
        final = [bar for bar in found if bar is not None]
        if final:
            closed.sent_ms = final[-1].open_ms
            passed = {open_ms for open_ms in newer if open_ms < closed.sent_ms}
            closed.pending |= passed - {bar.open_ms for bar in final}
            for bar in final[-MOST_TOGETHER:]:
                self._broadcast("update", topic, closed, bar)
        if closed.pending:
            late = {open_ms: self._final_bar(topic, open_ms) for open_ms in sorted(closed.pending)}
            closed.pending = {open_ms for open_ms, bar in late.items() if bar is None and times and open_ms >= times[0]}
            for late_bar in [bar for bar in late.values() if bar is not None][-MOST_TOGETHER:]:
                self._broadcast("correction", topic, closed, late_bar)

    def _take_revised(self, topic: Topic, closed: _ClosedBars, bars: Sequence[Candle]) -> None:
        """Correct bars that were sent, now or as soon as they are final again."""
        for bar in bars:
            if self._bars.is_final(*topic, bar):
                closed.pending.discard(bar.open_ms)
                self._broadcast("correction", topic, closed, bar)
            else:
                closed.pending.add(bar.open_ms)

    def _broadcast(self, kind: str, topic: Topic, closed: _ClosedBars, bar: Candle) -> None:
        """Send one final bar to every room that selects its market."""
        texts: dict[int, str] = {}
        for room in list(closed.rooms):
            frames: dict[int, Frame] = {}
            for options, recipients in filled(room.groups):
                if kind == "correction" and not options.corrections:
                    continue
                fields = options.fields
                if fields not in texts:
                    texts[fields] = bar_text(bar, fields, final=True)
                if fields not in frames:
                    frames[fields] = self._make_frame(kind, room, topic.market, bar, texts[fields], fields)
                self._publish(recipients, frames[fields])
                room.last_broadcast_ms = self._clock.now_ms()

    def _make_frame(
        self, kind: str, room: PatternRoom, market: MarketKey, bar: Candle, text: str, fields: int
    ) -> Frame:
        position = self._bars.feed_position(market) if fields & SEQ else None
        head = self._codec.pattern_bar_head(room.topic, market.symbol)
        message = messages.bar_message(kind, head, text, position_text(position))
        frame = Frame.from_text(message, room.frame_topic(market), bar.open_ms)
        frame.corrects = kind == "correction"
        frame.most_waiting = MOST_TOGETHER
        return frame
