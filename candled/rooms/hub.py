"""Topics, their members, and what each of them is sent when."""

import heapq
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Protocol

from candled.aggregate.ladder import Change
from candled.exchange import Clock
from candled.model import Candle, FeedState, Interval, MarketKey, RangeSet

from .frames import Frame
from .links import Link, Links
from .messages import Options, Topic
from .pace import MIN_GAP_S
from .protocol import Protocol as Codec
from .room import Lane, Member, Membership, Room
from .statuses import Statuses
from .telling import Bars as ToldBars
from .telling import Shown, Telling
from .texts import Texts

__all__ = ["Hub", "Link", "Links", "Member", "Membership"]

_SPREAD_S = 0.0002  # by which rooms that would be due together are kept apart, so many times as there are rooms
_MOST_SPREAD_S = 0.2
_AGAIN_S = 0.02
_MOST_LANES = 100  # served in one go, before others have their turn
_MOST_WANTED = 500
_LOOKED_AT = 64  # newest bars among which the newest final one is looked for first


class Bars(ToldBars, Protocol):
    """The bars in memory; `candled.aggregate.live_bars.LiveBars` has them."""

    def resumed(self, key: MarketKey, interval: Interval, resume: Any) -> list[Candle] | None: ...
    def became_final(self, key: MarketKey, resume: Any) -> RangeSet: ...


class Hub:
    """All rooms of a process. Owns no socket and waits for nothing; whoever drives it calls `run_due`.

    `publish` sends a frame to a list of links, perhaps in slices, as `Links` says.
    """

    def __init__(
        self,
        codec: Codec,
        bars: Bars,
        clock: Clock,
        publish: Callable[[Links, Frame], None],
        *,
        texts: Texts | None = None,
    ) -> None:
        self._codec = codec
        self._bars = bars
        self._clock = clock
        self._publish = publish
        self._telling = Telling(bars, texts or Texts())
        self._statuses = Statuses(codec.market_head, bars.state, publish)
        self._rooms: dict[MarketKey, dict[int, Room]] = {}
        self._count = 0
        self._links: Counter[Link] = Counter()  # in how many rooms each is
        self._versions = count(1)
        self._turns = count()
        self._due: list[tuple[float, int, Lane]] = []
        self._wanting: deque[Membership] = deque()

    # ------------------------------------------------------------ members

    def join(self, client: Member, link: Link, topic: Topic, bars: int, options: Options) -> Membership:
        """Make a client a member of a room; it gets nothing before its `initial`."""
        room = self._room(topic)
        if room is None:
            room = Room(topic, self._codec.room_name(topic), self._codec.head(topic))
            room.version = next(self._versions)
            self._rooms.setdefault(topic.market, {})[topic.interval.ms] = room
            self._count += 1
        lane = room.lane(options)
        membership = Membership(client, link, lane, bars, options)
        lane.enter(membership)
        self._links[link] += 1
        return membership

    def leave(self, membership: Membership) -> None:
        """End a membership; a lane and a room without members are closed."""
        lane, room = membership.lane, membership.lane.room
        lane.leave(membership)
        self._links[membership.link] -= 1
        if not self._links[membership.link]:
            del self._links[membership.link]
        if lane.members:
            return
        lane.scheduled_at = None
        del room.lanes[lane.key]
        if not room.lanes:
            rooms = self._rooms[room.topic.market]
            del rooms[room.topic.interval.ms]
            self._count -= 1
            if not rooms:
                del self._rooms[room.topic.market]

    def fell_behind(self, membership: Membership) -> None:
        """A member cannot keep up: it gets no more updates before its next `initial`."""
        membership.lane.await_initial(membership)

    def initial(self, membership: Membership) -> Frame:
        """The `initial` for a member, or the `resumed`, as of now; what it gets after it is newer."""
        lane, now = membership.lane, self._clock.monotonic()
        lane.await_initial(membership)
        if not lane.told:
            self._start(lane, membership.bars, now, resumes=membership.found is not None)
        shown = self._resumed(membership) or self._telling.initial(membership)
        membership.resume = membership.found = None
        membership.fresh = False
        membership.shown_from_ms = shown.first_ms
        membership.short = shown.bars < membership.bars
        if lane.mode != "live":
            lane.unsaid.update(shown.open)
        lane.admit(membership, shown.last_ms)
        if lane.due_at is not None:
            self._schedule(lane, lane.due_at)
        self._note(lane)
        return shown.frame

    def watch(self, link: Link, market: MarketKey) -> Any:
        """Tell a link the state of a market's feed, now and whenever it changes; for `unwatch`."""
        return self._statuses.watch(link, market)

    def unwatch(self, watcher: Any) -> None:
        """Tell it no more."""
        self._statuses.unwatch(watcher)

    # ------------------------------------------------------------ BarsListener

    def changed(self, market: MarketKey, changes: Sequence[Change]) -> None:
        """Bars changed: send each now if its lane's second is over, else when it is."""
        rooms = self._rooms.get(market)
        if not rooms:
            return
        now, now_ms, position = self._clock.monotonic(), self._clock.now_ms(), self._bars.position(market)
        most_spread_s = self._most_spread_s
        for interval, bar in changes:
            room = rooms.get(interval.ms)
            if room is None:
                continue
            room.version = next(self._versions)
            for lane in list(room.lanes.values()):
                if not lane.is_simple(bar):
                    self._take(lane, (bar,), now)
                elif not lane.is_sending and lane.pace.take_at_once(bar, now):
                    self._tell(lane, bar, now_ms)
                    lane.said = position
                elif not lane.pace.hold(bar, now, room.phase * most_spread_s):
                    self._take(lane, (bar,), now)
                elif lane.scheduled_at is None or lane.scheduled_at > lane.pace.next_at:
                    self._schedule(lane, lane.pace.next_at)

    def healed(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, bars: Sequence[Candle]) -> None:
        """The past changed: whoever was shown it is told, and whoever was shown less than it asked for gets more."""
        room = self._room(Topic(market, interval))
        if room is not None:
            room.version, now = next(self._versions), self._clock.monotonic()
            for lane in list(room.lanes.values()):
                self._take(lane, bars, now, fill_up=True)

    def settled(self, market: MarketKey) -> None:
        """Bars may have become final: say so where that was asked for."""
        self._telling.settled(market)
        now = self._clock.monotonic()
        for room in list(self._rooms.get(market, {}).values()):
            for lane in [one for one in room.lanes.values() if one.mode != "live" and one.told]:
                self._offer_final(lane, now)
                self._run(lane, now)

    def state_changed(self, market: MarketKey, feed: FeedState) -> None:
        """The state of a market's feed changed: tell those who want to know."""
        self._statuses.changed(market, feed)

    # ------------------------------------------------------------ time

    def run_due(self) -> bool:
        """Send everything whose time has come, as much as others can wait for; whether more is due now.

        Call it many times a second.
        """
        now = self._clock.monotonic()
        self._ask_wanting()
        for _ in range(_MOST_LANES):
            if not self._due or self._due[0][0] > now:
                return bool(self._wanting)
            at, _, lane = heapq.heappop(self._due)
            if lane.scheduled_at == at:
                lane.scheduled_at = None
                self._run(lane, now)
        return True

    def describe(self) -> dict[str, Any]:
        """The `broadcaster` part of `/health/ws-stats`."""
        return {
            "totalRooms": self._count,
            "totalClients": len(self._links),
            "rooms": [
                {
                    "key": room.name,
                    "clientCount": room.members,
                    "hasCandle": bool(self._bars.times(*room.topic, 1)),
                    "lastBroadcast": room.last_broadcast_ms,
                }
                for room in self._all()
            ],
        }

    # ------------------------------------------------------------ inside: what changed

    def _room(self, topic: Topic) -> Room | None:
        rooms = self._rooms.get(topic.market)
        return rooms.get(topic.interval.ms) if rooms else None

    def _all(self) -> Iterator[Room]:
        for rooms in self._rooms.values():
            yield from rooms.values()

    def _take(self, lane: Lane, bars: Sequence[Candle], now: float, *, fill_up: bool = False) -> None:
        """Let a lane have bars that changed, oldest first."""
        if lane.told:
            news = self._telling.news(lane, bars)
            self._past(lane, [bar.open_ms for bar in news if not self._offer(lane, bar, now)])
            if lane.mode != "live":
                self._offer_final(lane, now)
            if fill_up:
                self._fill_up(lane)
        self._run(lane, now)

    def _offer(self, lane: Lane, bar: Candle, now: float) -> bool:
        """Let the lane's pace have a bar that changed; False if no update can show it any more."""
        for membership in lane.ahead:
            if membership.ahead_ms is not None and bar.open_ms < membership.ahead_ms:
                self._make_stale(lane, [membership])
        is_final = lane.mode != "live" and self._bars.is_final(*lane.room.topic, bar)
        if lane.mode == "closed" and not is_final:
            if lane.pace.sent is not None and bar.open_ms <= lane.pace.sent.open_ms:
                lane.unsaid.add(bar.open_ms)
            return True
        can_show = lane.pace.offer(bar, now, final=is_final, spread_s=lane.room.phase * self._most_spread_s)
        sent = lane.pace.sent
        if lane.early and sent is not None and sent.open_ms == bar.open_ms and bar.open_ms not in lane.pace.waiting:
            self._make_stale(lane, list(lane.early))  # it is again as it was sent, but they were told otherwise
        return can_show

    def _offer_final(self, lane: Lane, now: float) -> None:
        """Offer the bars that are final now and were not when they were offered or left out."""
        topic, sent = lane.room.topic, lane.pace.sent
        from_ms = -1 if sent is None else sent.open_ms
        times = self._bars.times(*topic, _LOOKED_AT)
        for open_ms in times[bisect_left(times, from_ms) :]:
            if open_ms == from_ms:
                is_news = not lane.pace.sent_final
            else:
                is_news = lane.mode == "closed" or open_ms in lane.pace.waiting
            bar = self._bars.bar(*topic, open_ms)
            if is_news and bar is not None and self._bars.is_final(*topic, bar):
                self._offer(lane, bar, now)
        final = [open_ms for open_ms in lane.unsaid if not self._is_open(topic, open_ms)]
        lane.unsaid.difference_update(final)
        self._past(lane, final)

    def _past(self, lane: Lane, times: Sequence[int]) -> None:
        """Bars that no update can show changed: correct them, or tell those who were shown them everything afresh."""
        if not times:
            return
        if lane.is_correcting:
            lane.corrections.update(times)
        newest_ms = max(times)
        stale = []
        for one in lane.told_members():
            corrected = one.options.corrections and one.ahead_ms is None
            if not corrected and one.shown_from_ms is not None and one.shown_from_ms <= newest_ms:
                stale.append(one)
        self._make_stale(lane, stale)

    def _fill_up(self, lane: Lane) -> None:
        """Whoever was shown less than it asked for, and could be shown more now, is told everything afresh."""
        firsts: dict[int, int | None] = {}
        stale = []
        for one in lane.told_members():
            if not one.short:
                continue
            if one.bars not in firsts:
                firsts[one.bars] = next(iter(self._bars.times(*lane.room.topic, one.bars)), None)
            first_ms = firsts[one.bars]
            if first_ms is not None and (one.shown_from_ms is None or first_ms < one.shown_from_ms):
                stale.append(one)
        self._make_stale(lane, stale)

    def _make_stale(self, lane: Lane, members: Sequence[Membership]) -> None:
        lane.stale.update(dict.fromkeys(members))
        if members:
            lane.pace.ask_resync()

    @property
    def _most_spread_s(self) -> float:
        """How far rooms that would be due together are kept apart."""
        return min(_MOST_SPREAD_S, self._count * _SPREAD_S)

    def _is_open(self, topic: Topic, open_ms: int) -> bool:
        """Whether a bar is there and not final."""
        bar = self._bars.bar(*topic, open_ms)
        return bar is not None and not self._bars.is_final(*topic, bar)

    # ------------------------------------------------------------ inside: what is sent

    def _start(self, lane: Lane, count: int, now: float, *, resumes: bool) -> None:
        """Find the newest bar of the snapshot that the lane's first member is about to receive.

        A member that `resumes` may have received that bar already: nothing is kept back.
        """
        topic = lane.room.topic
        lane.unsaid.clear()
        lane.corrections.clear()
        times = self._bars.times(*topic, _LOOKED_AT if lane.mode == "closed" else 2)
        if lane.mode == "closed":
            times = [at for at in times if not self._is_open(topic, at)] or [
                at for at in self._bars.times(*topic, count) if not self._is_open(topic, at)
            ]
        newest = self._bars.bar(*topic, times[-1]) if times else None
        if lane.mode != "final" or newest is None:
            lane.pace.start(newest, now, final=lane.mode == "closed")
            return
        held_s = lane.hold_s if resumes else (max(self._clock.now_ms(), newest.as_of_ms) - newest.open_ms) / 1000
        previous = self._bars.bar(*topic, times[0]) if len(times) > 1 and held_s < lane.hold_s else None
        if previous is None or self._bars.is_final(*topic, previous):
            lane.pace.start(newest, now, final=self._bars.is_final(*topic, newest))
            return
        lane.pace.start(previous, now)
        lane.pace.offer(newest, now - max(0.0, held_s), final=self._bars.is_final(*topic, newest))

    def _resumed(self, membership: Membership) -> Shown | None:
        """What a member that was here before missed; None if that is unknown or cannot be proved."""
        resume, found = membership.resume, membership.found
        if resume is None or found is None:
            return None
        changed = self._bars.resumed(*membership.topic, found)
        if changed is None:
            return None
        became_final = self._bars.became_final(membership.topic.market, found)
        return self._telling.resumed(membership, resume.time_ms, became_final, changed)

    def _run(self, lane: Lane, now: float) -> None:
        """Send what is due in a lane, unless an earlier broadcast to it is not through: then only the newest waits."""
        if lane.is_sending:
            self._schedule(lane, now + _AGAIN_S)
            return
        if lane.told and lane.pace.take_resync(now):
            self._resync(lane)
        if not lane.told:
            return
        if lane.corrections and now >= lane.corrected_at + MIN_GAP_S:
            self._correct(lane, now)
        sent = lane.pace.sent
        bar = lane.pace.take(now)
        if bar is not None:
            self._left_open(lane, sent, bar)
            lane.catch_up(bar.open_ms)
            self._tell(lane, bar, self._clock.now_ms())
        if lane.due_at is not None:
            self._schedule(lane, lane.due_at)
        self._note(lane)

    def _schedule(self, lane: Lane, at: float) -> None:
        if lane.scheduled_at is None or at < lane.scheduled_at:
            lane.scheduled_at = at
            heapq.heappush(self._due, (at, next(self._turns), lane))

    def _note(self, lane: Lane) -> None:
        """Remember up to where everything was told."""
        if lane.is_clean:
            lane.said = self._bars.position(lane.room.topic.market)

    def _left_open(self, lane: Lane, sent: Candle | None, bar: Candle) -> None:
        """Remember the bars that are passed over with `bar` and are not final yet."""
        if lane.pace.passed_over is not None:
            lane.unsaid.add(lane.pace.passed_over)
        if lane.mode == "closed":
            from_ms = -1 if sent is None else sent.open_ms
            times = self._bars.times(*lane.room.topic, _LOOKED_AT)
            passed = times[bisect_left(times, from_ms) : bisect_left(times, bar.open_ms)]
            lane.unsaid.update(at for at in passed if self._is_open(lane.room.topic, at))

    def _tell(self, lane: Lane, bar: Candle, now_ms: int) -> None:
        """Send the bar that the lane's pace has just taken."""
        frames: dict[int, Frame] = {}
        for options, links in lane.filled():
            fields = options.fields
            frame = frames.get(fields)
            if frame is None:
                frame = frames[fields] = self._telling.update(lane, bar, fields, final=lane.pace.sent_final)
            self._publish(links, frame)
            lane.room.last_broadcast_ms = now_ms

    def _correct(self, lane: Lane, now: float) -> None:
        """Send the bars that wait to be corrected; if they are too many, everything afresh."""
        lane.corrected_at = now
        if lane.is_beyond_correcting:
            lane.corrections.clear()
            self._make_stale(lane, [one for one in lane.told_members() if one.options.corrections])
            return
        for open_ms in sorted(lane.corrections):
            lane.corrections.discard(open_ms)  # one by one: with the last of them everything has been told
            bar = self._bars.bar(*lane.room.topic, open_ms)
            if bar is not None and self._may_correct(lane, bar):
                self._send_correction(lane, bar)

    def _may_correct(self, lane: Lane, bar: Candle) -> bool:
        """Whether a bar may be told; one that is told as not final, or not told for that, is told again when it is."""
        if lane.mode == "live" or self._telling.is_final(lane, bar):
            return True
        lane.unsaid.add(bar.open_ms)
        return lane.mode == "final"

    def _send_correction(self, lane: Lane, bar: Candle) -> None:
        frames = dict[int, Frame]()
        for options, links in lane.filled():
            if not options.corrections:
                continue
            if options.fields not in frames:
                frames[options.fields] = self._telling.correction(lane, bar, options.fields)
            self._publish(links, frames[options.fields])

    def _resync(self, lane: Lane) -> None:
        stale = lane.told_members() if lane.pace.overrun else list(lane.stale)
        for membership in stale:
            lane.await_initial(membership)
        lane.stale.clear()
        self._wanting.extend(stale)  # not now: what is final may be known already, and not be offered yet

    def _ask_wanting(self) -> None:
        for _ in range(min(len(self._wanting), _MOST_WANTED)):
            membership = self._wanting.popleft()
            if not membership.told:
                membership.client.want_initial(membership)
