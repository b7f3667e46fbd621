"""All rooms of a process: their subscribers, and the sending of changed bars to them."""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

from candled.exchange import Clock
from candled.model import BarChange, Candle, FeedState, Interval, MarketKey, PatternTopic, Topic
from candled.protocol.frames import Frame
from candled.protocol.messages import Options
from candled.protocol.requests import RequestCodec as Codec
from candled.universe import MarketsChanged

from .corrections import Corrections
from .counts import MessageCounts
from .encoded_bars import BarSource, EncodedBarCache
from .pattern_rooms import MOST_PATTERNS, PatternMembership, PatternRooms
from .recipients import FrameSender, RecipientConnection, Recipients, filled
from .renderer import MessageRenderer, Snapshot
from .room import Member, Membership, Room, SubscriberGroup
from .schedule import GroupSchedule
from .statuses import Statuses
from .throttle import MIN_GAP_S

__all__ = ["Hub", "Member", "Membership", "PatternMembership", "RecipientConnection", "Recipients"]

_SPREAD_S = 0.0002  # per room: the stretch over which rooms that are due together are staggered
_MOST_SPREAD_S = 0.2
_AGAIN_S = 0.02  # until a group whose earlier broadcast is unfinished is tried again
_MOST_GROUPS = 100  # groups per call of `run_due`, so that the loop gets other work done
_MOST_SNAPSHOTS = 500  # snapshots requested per call of `run_due`
_MOST_REMOVED = 200  # members of removed markets notified per call of `run_due`
_LOOKED_AT = 64  # newest bars searched first for the newest final one


class Hub:
    """All rooms of a process. It owns no socket and never blocks; its owner calls `run_due` many times a second."""

    def __init__(
        self,
        codec: Codec,
        bars: BarSource,
        clock: Clock,
        sender: FrameSender,
        *,
        texts: EncodedBarCache | None = None,
    ) -> None:
        self._codec = codec
        self._bars = bars
        self._clock = clock
        self._sender = sender
        #: The messages of all clients.
        self.counts = MessageCounts()
        self._renderer = MessageRenderer(bars, texts or EncodedBarCache())
        self._corrections = Corrections(bars, self._renderer, partial(self._publish_counted, "correction"))
        self._statuses = Statuses(codec, bars, partial(self._publish_counted, "status"))
        self._patterns = PatternRooms(codec, bars, clock, partial(self._publish_counted, "pattern"))
        self._rooms: dict[MarketKey, dict[int, Room]] = {}
        self._count = 0
        self._room_counts: Counter[RecipientConnection] = Counter()  # number of rooms per connection
        self._versions = count(1)
        self._schedule = GroupSchedule()
        self._snapshot_queue: deque[Membership] = deque()
        self._removed: deque[Membership] = deque()  # members of rooms whose market was removed

    # ------------------------------------------------------------ members

    def join_room(
        self, client: Member, connection: RecipientConnection, topic: Topic, bars: int, options: Options
    ) -> Membership:
        """Add a client to a room. It receives nothing before its `initial`."""
        room = self._find_room(topic)
        if room is None:
            room = Room(topic, self._codec.room_name(topic), self._codec.topic_head(topic))
            room.version = next(self._versions)
            self._rooms.setdefault(topic.market, {})[topic.interval.ms] = room
            self._count += 1
        group = room.group_for(options)
        membership = Membership(connection, client, group, bars, options)
        group.members += 1  # it waits for its `initial`
        room.memberships.add(membership)
        self._room_counts[connection] += 1
        return membership

    def has_room(self, topic: Topic | PatternTopic) -> bool:
        """Return True if a topic has members."""
        return self._patterns.has_room(topic) if isinstance(topic, PatternTopic) else self._find_room(topic) is not None

    def join_pattern(self, connection: RecipientConnection, topic: PatternTopic, options: Options) -> PatternMembership:
        """Add a client to a pattern room. It receives the bars that close from now on.

        Raises:
            ValueError: the text is no pattern.
        """
        membership = self._patterns.join_pattern(connection, topic, options)
        self._room_counts[connection] += 1
        return membership

    def leave_pattern(self, membership: PatternMembership) -> None:
        """Remove a member of a pattern room."""
        self._patterns.leave_room(membership)
        self._forget_room_of(membership.connection)

    def watch_markets(self, membership: PatternMembership) -> None:
        """Send a member of a pattern room its markets, and every change of them."""
        self._patterns.watch_markets(membership)

    @property
    def has_space_for_patterns(self) -> bool:
        """True if another pattern room may be created."""
        return len(self._patterns) < MOST_PATTERNS

    def has_members(self, market: MarketKey) -> bool:
        """Return True if any room of a market has members."""
        return market in self._rooms

    def leave_room(self, membership: Membership) -> None:
        """Remove a member, then its group and its room if they are empty."""
        group, room = membership.group, membership.group.room
        group.remove_member(membership)
        room.memberships.discard(membership)
        self._forget_room_of(membership.connection)
        if group.members:
            return
        group.scheduled_at = None
        del room.groups[group.key]
        if not room.groups:
            rooms = self._rooms[room.topic.market]
            del rooms[room.topic.interval.ms]
            self._count -= 1
            if not rooms:
                del self._rooms[room.topic.market]

    def _forget_room_of(self, connection: RecipientConnection) -> None:
        self._room_counts[connection] -= 1
        if not self._room_counts[connection]:
            del self._room_counts[connection]

    def on_markets_changed(self, change: MarketsChanged) -> None:
        """Close the rooms of removed markets. Their members are notified by `run_due`, and stay connected."""
        self._patterns.on_markets_changed(change)
        for symbol in change.removed:
            for room in self._rooms.get(MarketKey(change.exchange, symbol), {}).values():
                self._removed.extend(room.memberships)

    def on_fell_behind(self, membership: Membership) -> None:
        """Stop the updates of a member that cannot keep up, until its next `initial`."""
        membership.group.await_initial(membership)

    def prepare_snapshot(self, membership: Membership) -> bool:
        """Do part of the work of `render_snapshot`; return True if the rest takes little time."""
        return self._renderer.encode_some(membership)

    def render_snapshot(self, membership: Membership) -> Frame:
        """Return the `initial` or `resumed` for a member as of now. Everything it receives afterwards is newer."""
        group, now = membership.group, self._clock.monotonic()
        group.await_initial(membership)
        if not group.initialized:
            self._start_group(group, membership.bars, now, resumes=membership.prepared is not None)
        resumed = self._render_resumed(membership)
        snapshot = resumed or self._renderer.render_initial(membership)
        self.counts.sent["resumed" if resumed else "initial"] += 1
        if membership.resume is not None:
            self.counts.resumes["recovered" if resumed else "full"] += 1
        membership.resume = membership.prepared = None
        membership.is_new = False
        membership.sent_from_ms = snapshot.first_ms
        membership.is_short = snapshot.bars < membership.bars
        if group.mode != "live":
            group.pending_final.update(snapshot.open)
        group.admit_member(membership, snapshot.last_ms)
        if group.due_at is not None:
            self._schedule.add_group(group, group.due_at)
        self._update_delivered(group)
        return snapshot.frame

    def watch_state(self, connection: RecipientConnection, market: MarketKey) -> Any:
        """Send a connection the state of a market's feed, now and on every change.

        Returns:
            A handle for `unwatch_state`.
        """
        self.counts.sent["status"] += 1
        return self._statuses.watch_state(connection, market)

    def unwatch_state(self, watcher: Any) -> None:
        """Stop sending the state."""
        self._statuses.unwatch_state(watcher)

    # ------------------------------------------------------------ changes in the aggregate (BarsListener)

    def on_bars_changed(self, market: MarketKey, changes: Sequence[BarChange]) -> None:
        """Send each changed bar now if the last update was at least a second ago; otherwise queue it until then."""
        self._patterns.offer_bars(market, changes)
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
            for group in list(room.groups.values()):
                if not group.is_simple(bar):
                    self._take_changes(group, (bar,), now)
                elif not group.is_sending and group.throttle.try_send_now(bar, now):
                    self._send_update(group, bar, now_ms)
                    group.delivered_position = position
                elif not group.throttle.queue_pending(bar, now, room.phase * most_spread_s):
                    self._take_changes(group, (bar,), now)
                else:
                    self._schedule.add_group(group, group.throttle.next_at)

    def on_history_changed(self, market: MarketKey, interval: Interval, bars: Sequence[Candle]) -> None:
        """Send a change of the past to the members whose snapshot it concerns.

        Members whose snapshot was shorter than requested get a new one if there are more bars now.
        """
        self._patterns.on_history_changed(market, interval, bars)
        room = self._find_room(Topic(market, interval))
        if room is not None:
            room.version, now = next(self._versions), self._clock.monotonic()
            for group in list(room.groups.values()):
                self._take_changes(group, bars, now, fill_up=True)

    def on_finality(self, market: MarketKey) -> None:
        """Send bars that may have become final to the members that asked for finality."""
        self._renderer.note_finality(market)
        self._patterns.on_finality(market)
        now = self._clock.monotonic()
        for room in list(self._rooms.get(market, {}).values()):
            for group in [one for one in room.groups.values() if one.mode != "live" and one.initialized]:
                self._offer_final(group, now)
                self._run_group(group, now)

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
        self._request_next_snapshots()
        for _ in range(min(len(self._removed), _MOST_REMOVED)):
            membership = self._removed.popleft()
            membership.client.on_market_removed(membership)
        for _ in range(_MOST_GROUPS):
            group = self._schedule.pop_due(now)
            if group is None:
                return bool(self._snapshot_queue or self._removed)
            self._run_group(group, now)
        return True

    @property
    def room_count(self) -> int:
        """The number of rooms."""
        return self._count + len(self._patterns)

    @property
    def subscription_count(self) -> int:
        """The number of subscriptions of all clients."""
        return self._room_counts.total()

    def describe(self) -> dict[str, Any]:
        """Return the `broadcaster` part of `/health/ws-stats`, without the rooms."""
        return {"totalRooms": self.room_count, "totalClients": len(self._room_counts)}

    def describe_rooms(self) -> Iterator[dict[str, Any]]:
        """Yield the part of each room. The rooms may change meanwhile."""
        for room in [room for rooms in self._rooms.values() for room in rooms.values()]:
            if self._find_room(room.topic) is room:
                yield {
                    "key": room.name,
                    "clientCount": room.member_count,
                    "hasCandle": bool(self._bars.newest_times(*room.topic, 1)),
                    "lastBroadcast": room.last_broadcast_ms,
                }
        yield from self._patterns.describe_rooms()

    # ------------------------------------------------------------ inside: changes

    def _find_room(self, topic: Topic) -> Room | None:
        return self._rooms.get(topic.market, {}).get(topic.interval.ms)

    def _take_changes(
        self, group: SubscriberGroup, bars: Sequence[Candle], now: float, *, fill_up: bool = False
    ) -> None:
        """Queue changed bars, oldest first, for a group, and send the messages that are due."""
        if group.initialized:
            changed = self._renderer.changed_bars(group, bars)
            too_late = [bar.open_ms for bar in changed if not self._offer_bar(group, bar, now)]
            self._corrections.on_past_changed(group, too_late)
            if group.mode != "live":
                self._offer_final(group, now)
            if fill_up:
                self._corrections.fill_up(group)
        self._run_group(group, now)

    def _offer_bar(self, group: SubscriberGroup, bar: Candle, now: float) -> bool:
        """Queue a changed bar in the group's throttle; return False if no `update` can show the change any more."""
        for membership in group.ahead_of_queue:
            if membership.ahead_ms is not None and bar.open_ms < membership.ahead_ms:
                group.request_snapshots([membership])
        is_final = group.mode != "live" and self._bars.is_final(*group.room.topic, bar)
        if group.mode == "closed" and not is_final:
            if group.throttle.sent is not None and bar.open_ms <= group.throttle.sent.open_ms:
                group.pending_final.add(bar.open_ms)
            return True
        can_show = group.throttle.queue_bar(bar, now, final=is_final, spread_s=group.room.phase * self._most_spread_s)
        sent = group.throttle.sent
        is_last = sent is not None and sent.open_ms == bar.open_ms
        if group.saw_queued_state and is_last and bar.open_ms not in group.throttle.queued_bars:
            # The bar is back to the values last sent, but the snapshots of these members have others.
            group.request_snapshots(list(group.saw_queued_state))
        return can_show

    def _offer_final(self, group: SubscriberGroup, now: float) -> None:
        """Queue the bars that have become final since they were queued or left out."""
        topic, sent = group.room.topic, group.throttle.sent
        from_ms = -1 if sent is None else sent.open_ms
        times = self._bars.newest_times(*topic, _LOOKED_AT)
        for open_ms in times[bisect_left(times, from_ms) :]:
            if open_ms == from_ms:
                is_change = not group.throttle.sent_final
            else:
                is_change = group.mode == "closed" or open_ms in group.throttle.queued_bars
            bar = self._bars.get_bar(*topic, open_ms)
            if is_change and bar is not None and self._bars.is_final(*topic, bar):
                self._offer_bar(group, bar, now)
        final = [open_ms for open_ms in group.pending_final if not self._is_open(topic, open_ms)]
        group.pending_final.difference_update(final)
        self._corrections.on_past_changed(group, final)

    @property
    def _most_spread_s(self) -> float:
        """The stretch, in seconds, over which rooms that are due together are staggered."""
        return min(_MOST_SPREAD_S, self._count * _SPREAD_S)

    def _is_open(self, topic: Topic, open_ms: int) -> bool:
        """Return True if a bar exists and is not final."""
        bar = self._bars.get_bar(*topic, open_ms)
        return bar is not None and not self._bars.is_final(*topic, bar)

    # ------------------------------------------------------------ inside: sending

    def _start_group(self, group: SubscriberGroup, count: int, now: float, *, resumes: bool) -> None:
        """Choose the last bar of the snapshot that the group's first member is about to receive.

        In mode `final`, the newest bar may have to wait until the one before it is final. If the member `resumes`, it
        does not wait: the member may have received it already.
        """
        topic = group.room.topic
        group.pending_final.clear()
        group.corrections.clear()
        times = self._bars.newest_times(*topic, _LOOKED_AT if group.mode == "closed" else 2)
        if group.mode == "closed":
            times = [at for at in times if not self._is_open(topic, at)] or [
                at for at in self._bars.newest_times(*topic, count) if not self._is_open(topic, at)
            ]
        newest = self._bars.get_bar(*topic, times[-1]) if times else None
        if group.mode != "final" or newest is None:
            group.throttle.start_after(newest, now, final=group.mode == "closed")
            return
        waited_s = (
            group.final_wait_s if resumes else (max(self._clock.now_ms(), newest.as_of_ms) - newest.open_ms) / 1000
        )
        previous = self._bars.get_bar(*topic, times[0]) if len(times) > 1 and waited_s < group.final_wait_s else None
        if previous is None or self._bars.is_final(*topic, previous):
            group.throttle.start_after(newest, now, final=self._bars.is_final(*topic, newest))
            return
        # right without the newest bar too: a resume always contains the bars that are newer than the client's last
        group.delivered_position = self._bars.feed_position(topic.market)
        group.throttle.start_after(previous, now)
        group.throttle.queue_bar(newest, now - max(0.0, waited_s), final=self._bars.is_final(*topic, newest))

    def _render_resumed(self, membership: Membership) -> Snapshot | None:
        """Return the `resumed` with the changes that a returning member missed; None if it needs an `initial`."""
        resume, prepared = membership.resume, membership.prepared
        if resume is None or prepared is None:
            return None
        changed = self._bars.bars_since(*membership.topic, prepared)
        if changed is None:
            return None
        became_final = self._bars.became_final(membership.topic.market, prepared)
        return self._renderer.render_resumed(membership, resume.time_ms, became_final, changed)

    def _run_group(self, group: SubscriberGroup, now: float) -> None:
        """Send the messages that are due in a group. If an earlier broadcast to it is unfinished, try again shortly."""
        if group.is_sending:
            self._schedule.add_group(group, now + _AGAIN_S)
            return
        if group.initialized and group.throttle.take_resync(now):
            # queued, not requested now: bars may be final that have not been offered to the group yet
            self._snapshot_queue.extend(group.take_stale())
        if not group.initialized:
            return
        if group.corrections and now >= group.corrected_at + MIN_GAP_S:
            self._corrections.send_due(group, now)
        sent = group.throttle.sent
        bar = group.throttle.take_due(now)
        if bar is not None:
            self._record_skipped(group, sent, bar)
            group.catch_up(bar.open_ms)
            self._send_update(group, bar, self._clock.now_ms())
        if group.due_at is not None:
            self._schedule.add_group(group, group.due_at)
        self._update_delivered(group)

    def _update_delivered(self, group: SubscriberGroup) -> None:
        """Store the feed's position if the group has been sent everything up to it."""
        if group.is_clean:
            group.delivered_position = self._bars.feed_position(group.room.topic.market)

    def _record_skipped(self, group: SubscriberGroup, sent: Candle | None, bar: Candle) -> None:
        """Note the forming bars that sending `bar` passes over, to send them once they are final."""
        if group.throttle.skipped_open_ms is not None:
            group.pending_final.add(group.throttle.skipped_open_ms)
        if group.mode == "closed":
            from_ms = -1 if sent is None else sent.open_ms
            times = self._bars.newest_times(*group.room.topic, _LOOKED_AT)
            skipped = times[bisect_left(times, from_ms) : bisect_left(times, bar.open_ms)]
            group.pending_final.update(at for at in skipped if self._is_open(group.room.topic, at))

    def _send_update(self, group: SubscriberGroup, bar: Candle, now_ms: int) -> None:
        """Send the bar that the group's throttle has just released."""
        frames: dict[int, Frame] = {}
        for options, recipients in filled(group.groups):
            fields = options.fields
            frame = frames.get(fields)
            if frame is None:
                final = group.throttle.sent_final
                frame = frames[fields] = self._renderer.render_bar("update", group, bar, fields, final=final)
            self._sender.broadcast(recipients, frame)
            self.counts.updates += len(recipients)
            group.room.last_broadcast_ms = now_ms

    def _publish_counted(self, kind: str, recipients: Recipients, frame: Frame) -> None:
        self.counts.sent[kind] += len(recipients)
        self._sender.broadcast(recipients, frame)

    def _request_next_snapshots(self) -> None:
        for _ in range(min(len(self._snapshot_queue), _MOST_SNAPSHOTS)):
            membership = self._snapshot_queue.popleft()
            if not membership.is_initialized:
                membership.client.request_initial(membership)
