"""Topics, their members, and what each of them is sent when."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from candled.aggregate.ladder import Change
from candled.exchange import Clock
from candled.model import Candle, Interval, MarketKey

from . import protocol
from .protocol import Topic
from .room import Pace


class Member(Protocol):
    """A client in a room."""

    def send_update(self, topic: Topic, open_ms: int, text: str) -> None:
        """Deliver an `update`; one of the same bar that still waits may be replaced by it."""

    def want_initial(self, topic: Topic) -> None:
        """Ask the hub for `initial` as soon as it can be sent."""


class Bars(Protocol):
    """The bars in memory; `candled.aggregate.live_bars.LiveBars` has them."""

    def tail(self, key: MarketKey, interval: Interval, count: int) -> list[Candle]: ...


@dataclass(slots=True)
class _Membership:
    """What one member has of a room: the bars it asked for, the first one it was shown, and whether those were fewer.

    `ahead_ms`: its `initial` ended with this bar, while older ones still wait for their turn.
    """

    bars: int
    shown_from_ms: int | None = None
    short: bool = False
    told: bool = False
    ahead_ms: int | None = None


class _Room:
    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.pace = Pace()
        self.active: dict[Member, _Membership] = {}  # get every update
        self.waiting: dict[Member, _Membership] = {}  # get none before their `initial`, or until the room caught up
        self.stale: set[Member] = set()  # need a fresh `initial`
        self.last_broadcast_ms = 0
        self.most_bars = 1  # that a member asked for
        self.texts: dict[int, tuple[Candle, str]] = {}
        self.scheduled_at: float | None = None

    def membership(self, member: Member) -> _Membership | None:
        return self.active.get(member) or self.waiting.get(member)

    def members(self) -> Iterable[tuple[Member, _Membership]]:
        return [*self.active.items(), *self.waiting.items()]

    def text(self, bar: Candle) -> str:
        """The encoded bar; closed bars are encoded once."""
        known = self.texts.get(bar.open_ms)
        if known is not None and known[0] is bar:
            return known[1]
        if len(self.texts) > 2 * self.most_bars:
            self.texts.clear()
        text = protocol.bar_text(bar)
        self.texts[bar.open_ms] = (bar, text)
        return text


class Hub:
    """All rooms of a process. Owns no socket and waits for nothing; whoever drives it calls `run_due`."""

    def __init__(self, wire: protocol.Protocol, bars: Bars, clock: Clock) -> None:
        self._wire = wire
        self._bars = bars
        self._clock = clock
        self._rooms: dict[Topic, _Room] = {}
        self._due: list[tuple[float, Topic]] = []

    # ------------------------------------------------------------ members

    def join(self, member: Member, topic: Topic, bars: int) -> None:
        """Make `member` a member, or start it afresh with another number of bars; then ask for `initial`."""
        room = self._rooms.setdefault(topic, _Room(topic))
        room.most_bars = max(room.most_bars, bars)
        self._await_initial(room, member, _Membership(bars))
        member.want_initial(topic)

    def leave(self, member: Member, topic: Topic) -> None:
        """End a membership; a room without members is closed."""
        room = self._rooms.get(topic)
        if room is None:
            return
        room.active.pop(member, None)
        room.waiting.pop(member, None)
        room.stale.discard(member)
        if not room.active and not room.waiting:
            del self._rooms[topic]

    def wanted(self, member: Member, topic: Topic) -> int | None:
        """How many bars a member asked for; None if it is no member."""
        room = self._rooms.get(topic)
        membership = room.membership(member) if room else None
        return membership.bars if membership else None

    def told(self, member: Member, topic: Topic) -> bool:
        """Whether a member has had an `initial` of this topic."""
        room = self._rooms.get(topic)
        membership = room.membership(member) if room else None
        return membership is not None and membership.told

    def fell_behind(self, member: Member, topic: Topic) -> None:
        """A member cannot keep up: it gets no more updates before its next `initial`."""
        room = self._rooms.get(topic)
        membership = room.active.get(member) if room else None
        if room is not None and membership is not None:
            self._await_initial(room, member, membership)

    def initial(self, member: Member, topic: Topic) -> str | None:
        """The `initial` message for a member, as of now; the updates that follow are newer. None if it is no member."""
        room = self._rooms.get(topic)
        membership = room.membership(member) if room else None
        if room is None or membership is None:
            return None
        newest = next(iter(self._bars.tail(*topic, 1)), None)
        bars = self._bars.tail(*topic, membership.bars)
        first = not any(one.told and other is not member for other, one in room.members())
        if first:
            room.pace.start(newest, self._clock.monotonic())
        membership.told = True
        membership.shown_from_ms = bars[0].open_ms if bars else None
        membership.short = len(bars) < membership.bars
        room.stale.discard(member)
        self._admit(room, member, membership, newest)
        return self._wire.initial(topic, [room.text(bar) for bar in bars])

    # ------------------------------------------------------------ BarsListener

    def changed(self, market: MarketKey, change: Change) -> None:
        """A bar changed: send it now if the room's second is over, else when it is."""
        room = self._rooms.get(Topic(market, change.interval))
        if room is None:
            return
        bar = change.bar
        if not room.pace.offer(bar):
            self._make_stale(room, bar.open_ms, bar.open_ms + 1)
        for member, membership in room.waiting.items():
            if membership.ahead_ms is not None and bar.open_ms < membership.ahead_ms:
                room.stale.add(member)
                room.pace.ask_resync()
        self._run(room, self._clock.monotonic())

    def settled(self, market: MarketKey) -> None:
        """Bars may have become final: nothing on the wire says so."""

    def state_changed(self, market: MarketKey, state: str, since_ms: int) -> None:
        """The feed's state changed: nothing on the wire says so."""

    def healed(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, bars: Sequence[Candle]) -> None:
        """The past changed: whoever was shown it gets a fresh `initial`, each with its own number of bars."""
        room = self._rooms.get(Topic(market, interval))
        if room is not None:
            self._make_stale(room, start_ms, end_ms)
            self._run(room, self._clock.monotonic())

    # ------------------------------------------------------------ time

    def run_due(self) -> None:
        """Send everything whose time has come. Call it many times a second."""
        now = self._clock.monotonic()
        while self._due and self._due[0][0] <= now:
            at, topic = heapq.heappop(self._due)
            room = self._rooms.get(topic)
            if room is not None and room.scheduled_at == at:
                room.scheduled_at = None
                self._run(room, now)

    def describe(self) -> dict[str, Any]:
        """The `broadcaster` part of `/health/ws-stats`."""
        return {
            "totalRooms": len(self._rooms),
            "totalClients": len({member for room in self._rooms.values() for member, _ in room.members()}),
            "rooms": [
                {
                    "key": self._wire.room_name(topic),
                    "clientCount": len(room.active) + len(room.waiting),
                    "hasCandle": bool(self._bars.tail(*topic, 1)),
                    "lastBroadcast": room.last_broadcast_ms,
                }
                for topic, room in self._rooms.items()
            ],
        }

    # ------------------------------------------------------------ inside

    def _run(self, room: _Room, now: float) -> None:
        if room.pace.take_resync(now):
            self._resync(room)
        bar = room.pace.take(now)
        if bar is not None:
            self._broadcast(room, bar)
        due_at = room.pace.due_at
        if due_at is not None and (room.scheduled_at is None or due_at < room.scheduled_at):
            room.scheduled_at = due_at
            heapq.heappush(self._due, (due_at, room.topic))

    def _broadcast(self, room: _Room, bar: Candle) -> None:
        for member, membership in list(room.waiting.items()):
            if membership.ahead_ms is not None and membership.ahead_ms <= bar.open_ms:
                self._admit(room, member, membership, None)
        if not room.active:
            return
        room.last_broadcast_ms = self._clock.now_ms()
        text = self._wire.update(room.topic, room.text(bar))
        for member in list(room.active):
            member.send_update(room.topic, bar.open_ms, text)

    def _resync(self, room: _Room) -> None:
        stale = [member for member, _ in room.members()] if room.pace.overrun else list(room.stale)
        room.stale.clear()
        for member in stale:
            membership = room.membership(member)
            if membership is not None and membership.told:
                self._await_initial(room, member, membership)
        for member in stale:
            member.want_initial(room.topic)

    def _make_stale(self, room: _Room, start_ms: int, end_ms: int) -> None:
        """Find the members to whom a change within `[start_ms, end_ms)` makes a difference."""
        for member, membership in room.members():
            if membership.told and self._concerns(room, membership, start_ms, end_ms):
                room.stale.add(member)
        if room.stale:
            room.pace.ask_resync()

    def _concerns(self, room: _Room, membership: _Membership, start_ms: int, end_ms: int) -> bool:
        from_ms = membership.shown_from_ms
        if from_ms is not None and max(from_ms, start_ms) < end_ms:
            return True
        if not membership.short:
            return False
        first = next(iter(self._bars.tail(*room.topic, membership.bars)), None)
        return first is not None and (from_ms is None or first.open_ms < from_ms)

    def _await_initial(self, room: _Room, member: Member, membership: _Membership) -> None:
        room.active.pop(member, None)
        membership.told = False
        membership.ahead_ms = None
        room.waiting[member] = membership

    def _admit(self, room: _Room, member: Member, membership: _Membership, newest: Candle | None) -> None:
        """Let a member have the room's updates, unless bars older than the last it was told still wait."""
        waiting_ms = room.pace.oldest_waiting
        if newest is not None and waiting_ms is not None and waiting_ms < newest.open_ms:
            membership.ahead_ms = newest.open_ms
            room.waiting[member] = membership
            room.active.pop(member, None)
            return
        membership.ahead_ms = None
        room.waiting.pop(member, None)
        room.active[member] = membership
