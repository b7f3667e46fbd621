"""All rooms of a process: their subscribers, and the sending of changed bars to them."""

import heapq
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Protocol

from candled.aggregate.aggregator import Change
from candled.exchange import Clock
from candled.model import Candle, FeedState, Interval, MarketKey, RangeSet
from candled.protocol.frames import Frame
from candled.protocol.messages import Options, Topic
from candled.protocol.requests import RequestCodec as Codec

from .encoded_bars import EncodedBarCache
from .recipients import RecipientConnection, Recipients
from .renderer import FeedSource as ToldBars
from .renderer import MessageRenderer, Snapshot
from .room import Member, Membership, Room, SubscriberGroup
from .statuses import Statuses
from .throttle import MIN_GAP_S

__all__ = ["Hub", "Member", "Membership", "RecipientConnection", "Recipients"]

_SPREAD_S = 0.0002  # per room: the stretch over which rooms that are due together are staggered
_MOST_SPREAD_S = 0.2
_AGAIN_S = 0.02  # until a group whose earlier broadcast is unfinished is tried again
_MOST_LANES = 100  # groups per call of `run_due`, so that the loop gets other work done
_MOST_WANTED = 500  # snapshots requested per call of `run_due`
_LOOKED_AT = 64  # newest bars searched first for the newest final one


class ResumeSource(ToldBars, Protocol):
    """Bars in memory, and their changes since a position. `candled.aggregate.live_bars.LiveBars` implements it."""

    def bars_since(self, key: MarketKey, interval: Interval, resume: Any) -> list[Candle] | None:
        """Return the bars that changed after a position; None if that is unknown."""

    def became_final(self, key: MarketKey, resume: Any) -> RangeSet:
        """Return the time ranges, in ms, that may have become final after a position."""


class Hub:
    """All rooms of a process. It owns no socket and never blocks; its owner calls `run_due` many times a second.

    `publish` sends a frame to a list of connections, possibly in slices; see `Recipients`.
    """

    def __init__(
        self,
        codec: Codec,
        bars: ResumeSource,
        clock: Clock,
        publish: Callable[[Recipients, Frame], None],
        *,
        texts: EncodedBarCache | None = None,
    ) -> None:
        self._codec = codec
        self._bars = bars
        self._clock = clock
        self._publish = publish
        self._telling = MessageRenderer(bars, texts or EncodedBarCache())
        self._statuses = Statuses(codec.market_head, bars.feed_state, publish)
        self._rooms: dict[MarketKey, dict[int, Room]] = {}
        self._count = 0
        self._links: Counter[RecipientConnection] = Counter()  # number of rooms per connection
        self._versions = count(1)
        self._turns = count()
        self._due: list[tuple[float, int, SubscriberGroup]] = []
        self._wanting: deque[Membership] = deque()

    # ------------------------------------------------------------ members

    def join_room(
        self, client: Member, link: RecipientConnection, topic: Topic, bars: int, options: Options
    ) -> Membership:
        """Add a client to a room. It receives nothing before its `initial`."""
        room = self._find_room(topic)
        if room is None:
            room = Room(topic, self._codec.room_name(topic), self._codec.topic_head(topic))
            room.version = next(self._versions)
            self._rooms.setdefault(topic.market, {})[topic.interval.ms] = room
            self._count += 1
        lane = room.group_for(options)
        membership = Membership(client, link, lane, bars, options)
        lane.add_member(membership)
        self._links[link] += 1
        return membership

    def leave_room(self, membership: Membership) -> None:
        """Remove a member, then its group and its room if they are empty."""
        lane, room = membership.lane, membership.lane.room
        lane.remove_member(membership)
        self._links[membership.link] -= 1
        if not self._links[membership.link]:
            del self._links[membership.link]
        if lane.members:
            return
        lane.scheduled_at = None
        del room.groups[lane.key]
        if not room.groups:
            rooms = self._rooms[room.topic.market]
            del rooms[room.topic.interval.ms]
            self._count -= 1
            if not rooms:
                del self._rooms[room.topic.market]

    def on_fell_behind(self, membership: Membership) -> None:
        """Stop the updates of a member that cannot keep up, until its next `initial`."""
        membership.lane.await_initial(membership)

    def render_initial(self, membership: Membership) -> Frame:
        """Return the `initial` or `resumed` for a member as of now. Everything it receives afterwards is newer."""
        lane, now = membership.lane, self._clock.monotonic()
        lane.await_initial(membership)
        if not lane.initialized:
            self._start_group(lane, membership.bars, now, resumes=membership.found is not None)
        shown = self._render_resumed(membership) or self._telling.render_initial(membership)
        membership.resume = membership.found = None
        membership.fresh = False
        membership.shown_from_ms = shown.first_ms
        membership.short = shown.bars < membership.bars
        if lane.mode != "live":
            lane.pending_final.update(shown.open)
        lane.admit_member(membership, shown.last_ms)
        if lane.due_at is not None:
            self._schedule_group(lane, lane.due_at)
        self._note_delivered(lane)
        return shown.frame

    def watch_state(self, link: RecipientConnection, market: MarketKey) -> Any:
        """Send a connection the state of a market's feed, now and on every change.

        Returns:
            A handle for `unwatch_state`.
        """
        return self._statuses.watch_state(link, market)

    def unwatch_state(self, watcher: Any) -> None:
        """Stop sending the state."""
        self._statuses.unwatch_state(watcher)

    # ------------------------------------------------------------ changes in the aggregate (BarsListener)

    def on_bars_changed(self, market: MarketKey, changes: Sequence[Change]) -> None:
        """Send changed bars now where the last update is a second ago, or queue them until then."""
        rooms = self._rooms.get(market)
        if not rooms:
            return
        now, now_ms, position = self._clock.monotonic(), self._clock.now_ms(), self._bars.feed_position(market)
        most_spread_s = self._most_spread_s
        for interval, bar in changes:
            room = rooms.get(interval.ms)
            if room is None:
                continue
            room.version = next(self._versions)
            for lane in list(room.groups.values()):
                if not lane.is_simple(bar):
                    self._take_changes(lane, (bar,), now)
                elif not lane.is_sending and lane.pace.try_send_now(bar, now):
                    self._send_taken(lane, bar, now_ms)
                    lane.delivered_position = position
                elif not lane.pace.enqueue_pending(bar, now, room.phase * most_spread_s):
                    self._take_changes(lane, (bar,), now)
                elif lane.scheduled_at is None or lane.scheduled_at > lane.pace.next_at:
                    self._schedule_group(lane, lane.pace.next_at)

    def on_history_changed(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, bars: Sequence[Candle]
    ) -> None:
        """Send a change of the past to the members whose snapshot it concerns.

        Members whose snapshot was shorter than requested get a new one if there are more bars now.
        """
        room = self._find_room(Topic(market, interval))
        if room is not None:
            room.version, now = next(self._versions), self._clock.monotonic()
            for lane in list(room.groups.values()):
                self._take_changes(lane, bars, now, fill_up=True)

    def on_finality(self, market: MarketKey) -> None:
        """Send bars that may have become final to the members that asked for finality."""
        self._telling.on_finality(market)
        now = self._clock.monotonic()
        for room in list(self._rooms.get(market, {}).values()):
            for lane in [one for one in room.groups.values() if one.mode != "live" and one.initialized]:
                self._offer_final(lane, now)
                self._run_group(lane, now)

    def on_state_changed(self, market: MarketKey, feed: FeedState) -> None:
        """Send the new state of a market's feed to its watchers."""
        self._statuses.on_state_changed(market, feed)

    # ------------------------------------------------------------ time

    def run_due(self) -> bool:
        """Send the messages that are due, up to a limit that keeps the loop responsive.

        Call it many times a second.

        Returns:
            True if more messages are due now.
        """
        now = self._clock.monotonic()
        self._ask_wanting()
        for _ in range(_MOST_LANES):
            if not self._due or self._due[0][0] > now:
                return bool(self._wanting)
            at, _, lane = heapq.heappop(self._due)
            if lane.scheduled_at == at:
                lane.scheduled_at = None
                self._run_group(lane, now)
        return True

    def describe(self) -> dict[str, Any]:
        """Return the `broadcaster` part of `/health/ws-stats`."""
        return {
            "totalRooms": self._count,
            "totalClients": len(self._links),
            "rooms": [
                {
                    "key": room.name,
                    "clientCount": room.member_count,
                    "hasCandle": bool(self._bars.newest_times(*room.topic, 1)),
                    "lastBroadcast": room.last_broadcast_ms,
                }
                for room in self._all_rooms()
            ],
        }

    # ------------------------------------------------------------ inside: changes

    def _find_room(self, topic: Topic) -> Room | None:
        rooms = self._rooms.get(topic.market)
        return rooms.get(topic.interval.ms) if rooms else None

    def _all_rooms(self) -> Iterator[Room]:
        for rooms in self._rooms.values():
            yield from rooms.values()

    def _take_changes(
        self, lane: SubscriberGroup, bars: Sequence[Candle], now: float, *, fill_up: bool = False
    ) -> None:
        """Queue changed bars, oldest first, for a group, and send the messages that are due."""
        if lane.initialized:
            news = self._telling.changed_bars(lane, bars)
            self._on_past_changed(lane, [bar.open_ms for bar in news if not self._offer_bar(lane, bar, now)])
            if lane.mode != "live":
                self._offer_final(lane, now)
            if fill_up:
                self._fill_up(lane)
        self._run_group(lane, now)

    def _offer_bar(self, lane: SubscriberGroup, bar: Candle, now: float) -> bool:
        """Queue a changed bar in the group's throttle; return False if no `update` can show the change any more."""
        for membership in lane.ahead_of_queue:
            if membership.ahead_ms is not None and bar.open_ms < membership.ahead_ms:
                self._make_stale(lane, [membership])
        is_final = lane.mode != "live" and self._bars.is_final(*lane.room.topic, bar)
        if lane.mode == "closed" and not is_final:
            if lane.pace.sent is not None and bar.open_ms <= lane.pace.sent.open_ms:
                lane.pending_final.add(bar.open_ms)
            return True
        can_show = lane.pace.enqueue(bar, now, final=is_final, spread_s=lane.room.phase * self._most_spread_s)
        sent = lane.pace.sent
        if (
            lane.saw_queued_state
            and sent is not None
            and sent.open_ms == bar.open_ms
            and bar.open_ms not in lane.pace.queued_bars
        ):
            # The bar is back to the values last sent, but the snapshots of these members have others.
            self._make_stale(lane, list(lane.saw_queued_state))
        return can_show

    def _offer_final(self, lane: SubscriberGroup, now: float) -> None:
        """Queue the bars that have become final since they were queued or left out."""
        topic, sent = lane.room.topic, lane.pace.sent
        from_ms = -1 if sent is None else sent.open_ms
        times = self._bars.newest_times(*topic, _LOOKED_AT)
        for open_ms in times[bisect_left(times, from_ms) :]:
            if open_ms == from_ms:
                is_news = not lane.pace.sent_final
            else:
                is_news = lane.mode == "closed" or open_ms in lane.pace.queued_bars
            bar = self._bars.get_bar(*topic, open_ms)
            if is_news and bar is not None and self._bars.is_final(*topic, bar):
                self._offer_bar(lane, bar, now)
        final = [open_ms for open_ms in lane.pending_final if not self._is_open(topic, open_ms)]
        lane.pending_final.difference_update(final)
        self._on_past_changed(lane, final)

    def _on_past_changed(self, lane: SubscriberGroup, times: Sequence[int]) -> None:
        """Correct bars that no `update` can show, or request new snapshots for members without corrections."""
        if not times:
            return
        if lane.is_correcting:
            lane.corrections.update(times)
        newest_ms = max(times)
        stale = []
        for one in lane.initialized_members():
            corrected = one.options.corrections and one.ahead_ms is None
            if not corrected and one.shown_from_ms is not None and one.shown_from_ms <= newest_ms:
                stale.append(one)
        self._make_stale(lane, stale)

    def _fill_up(self, lane: SubscriberGroup) -> None:
        """Request new snapshots for members whose snapshot was shorter than requested, if there are more bars now."""
        firsts: dict[int, int | None] = {}
        stale = []
        for one in lane.initialized_members():
            if not one.short:
                continue
            if one.bars not in firsts:
                firsts[one.bars] = next(iter(self._bars.newest_times(*lane.room.topic, one.bars)), None)
            first_ms = firsts[one.bars]
            if first_ms is not None and (one.shown_from_ms is None or first_ms < one.shown_from_ms):
                stale.append(one)
        self._make_stale(lane, stale)

    def _make_stale(self, lane: SubscriberGroup, members: Sequence[Membership]) -> None:
        lane.needs_snapshot.update(dict.fromkeys(members))
        if members:
            lane.pace.ask_resync()

    @property
    def _most_spread_s(self) -> float:
        """The stretch, in seconds, over which rooms that are due together are staggered."""
        return min(_MOST_SPREAD_S, self._count * _SPREAD_S)

    def _is_open(self, topic: Topic, open_ms: int) -> bool:
        """Return True if a bar exists and is not final."""
        bar = self._bars.get_bar(*topic, open_ms)
        return bar is not None and not self._bars.is_final(*topic, bar)

    # ------------------------------------------------------------ inside: sending

    def _start_group(self, lane: SubscriberGroup, count: int, now: float, *, resumes: bool) -> None:
        """Find the newest bar of the snapshot that the group's first member is about to receive.

        A member that `resumes` may have received that bar already, so its bar isn't kept back.
        """
        topic = lane.room.topic
        lane.pending_final.clear()
        lane.corrections.clear()
        times = self._bars.newest_times(*topic, _LOOKED_AT if lane.mode == "closed" else 2)
        if lane.mode == "closed":
            times = [at for at in times if not self._is_open(topic, at)] or [
                at for at in self._bars.newest_times(*topic, count) if not self._is_open(topic, at)
            ]
        newest = self._bars.get_bar(*topic, times[-1]) if times else None
        if lane.mode != "final" or newest is None:
            lane.pace.start_after(newest, now, final=lane.mode == "closed")
            return
        held_s = lane.hold_s if resumes else (max(self._clock.now_ms(), newest.as_of_ms) - newest.open_ms) / 1000
        previous = self._bars.get_bar(*topic, times[0]) if len(times) > 1 and held_s < lane.hold_s else None
        if previous is None or self._bars.is_final(*topic, previous):
            lane.pace.start_after(newest, now, final=self._bars.is_final(*topic, newest))
            return
        lane.pace.start_after(previous, now)
        lane.pace.enqueue(newest, now - max(0.0, held_s), final=self._bars.is_final(*topic, newest))

    def _render_resumed(self, membership: Membership) -> Snapshot | None:
        """Return the changes that a returning member missed; None if they are unknown or cannot be proved."""
        resume, found = membership.resume, membership.found
        if resume is None or found is None:
            return None
        changed = self._bars.bars_since(*membership.topic, found)
        if changed is None:
            return None
        became_final = self._bars.became_final(membership.topic.market, found)
        return self._telling.render_resumed(membership, resume.time_ms, became_final, changed)

    def _run_group(self, lane: SubscriberGroup, now: float) -> None:
        """Send the messages that are due in a group. If an earlier broadcast to it is unfinished, try again shortly."""
        if lane.is_sending:
            self._schedule_group(lane, now + _AGAIN_S)
            return
        if lane.initialized and lane.pace.take_resync(now):
            self._resync_group(lane)
        if not lane.initialized:
            return
        if lane.corrections and now >= lane.corrected_at + MIN_GAP_S:
            self._send_corrections(lane, now)
        sent = lane.pace.sent
        bar = lane.pace.take_due(now)
        if bar is not None:
            self._left_open(lane, sent, bar)
            lane.catch_up(bar.open_ms)
            self._send_taken(lane, bar, self._clock.now_ms())
        if lane.due_at is not None:
            self._schedule_group(lane, lane.due_at)
        self._note_delivered(lane)

    def _schedule_group(self, lane: SubscriberGroup, at: float) -> None:
        if lane.scheduled_at is None or at < lane.scheduled_at:
            lane.scheduled_at = at
            heapq.heappush(self._due, (at, next(self._turns), lane))

    def _note_delivered(self, lane: SubscriberGroup) -> None:
        """Store the feed's position if the group has been sent everything up to it."""
        if lane.is_clean:
            lane.delivered_position = self._bars.feed_position(lane.room.topic.market)

    def _left_open(self, lane: SubscriberGroup, sent: Candle | None, bar: Candle) -> None:
        """Note the forming bars that sending `bar` passes over, to send them once they are final."""
        if lane.pace.passed_over is not None:
            lane.pending_final.add(lane.pace.passed_over)
        if lane.mode == "closed":
            from_ms = -1 if sent is None else sent.open_ms
            times = self._bars.newest_times(*lane.room.topic, _LOOKED_AT)
            passed = times[bisect_left(times, from_ms) : bisect_left(times, bar.open_ms)]
            lane.pending_final.update(at for at in passed if self._is_open(lane.room.topic, at))

    def _send_taken(self, lane: SubscriberGroup, bar: Candle, now_ms: int) -> None:
        """Send the bar that the group's throttle has just released."""
        frames: dict[int, Frame] = {}
        for options, links in lane.filled_groups():
            fields = options.fields
            frame = frames.get(fields)
            if frame is None:
                frame = frames[fields] = self._telling.render_update(lane, bar, fields, final=lane.pace.sent_final)
            self._publish(links, frame)
            lane.room.last_broadcast_ms = now_ms

    def _send_corrections(self, lane: SubscriberGroup, now: float) -> None:
        """Send the queued corrections, or request new snapshots if there are too many."""
        lane.corrected_at = now
        if lane.is_beyond_correcting:
            lane.corrections.clear()
            self._make_stale(lane, [one for one in lane.initialized_members() if one.options.corrections])
            return
        for open_ms in sorted(lane.corrections):
            lane.corrections.discard(open_ms)  # one by one: only the last one's position may cover all of them
            bar = self._bars.get_bar(*lane.room.topic, open_ms)
            if bar is not None and self._may_correct(lane, bar):
                self._send_correction(lane, bar)

    def _may_correct(self, lane: SubscriberGroup, bar: Candle) -> bool:
        """Return True if a correction may be sent now. A bar that is not final is corrected again when it is."""
        if lane.mode == "live" or self._telling.is_final(lane, bar):
            return True
        lane.pending_final.add(bar.open_ms)
        return lane.mode == "final"

    def _send_correction(self, lane: SubscriberGroup, bar: Candle) -> None:
        frames = dict[int, Frame]()
        for options, links in lane.filled_groups():
            if not options.corrections:
                continue
            if options.fields not in frames:
                frames[options.fields] = self._telling.render_correction(lane, bar, options.fields)
            self._publish(links, frames[options.fields])

    def _resync_group(self, lane: SubscriberGroup) -> None:
        stale = lane.initialized_members() if lane.pace.is_overrun else list(lane.needs_snapshot)
        for membership in stale:
            lane.await_initial(membership)
        lane.needs_snapshot.clear()
        self._wanting.extend(stale)  # not now: bars may be final already without having been offered

    def _ask_wanting(self) -> None:
        for _ in range(min(len(self._wanting), _MOST_WANTED)):
            membership = self._wanting.popleft()
            if not membership.told:
                membership.client.want_initial(membership)
