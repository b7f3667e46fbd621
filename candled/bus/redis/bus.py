"""The bus over Redis: publishes this process's feeds, receives the others, and recovers from missed messages."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from candled.bus import FeedListener, Message, MessagesLost, MinuteChanged, StateChanged
from candled.bus.codec import (
    MAX_BYTES,
    BadMessage,
    FutureMessage,
    Newest,
    decode_heartbeat,
    decode_message,
    decode_newest,
    excerpt,
    parse_fence,
)
from candled.bus.shards import shard_of
from candled.model import YEAR_10000_MS, Decimals, MarketKey, Position
from candled.tasks import TaskSet
from candled.universe import MarketsChanged

from .connections import Call, Caller, reason_of
from .context import RedisContext
from .feed_tracker import NOT_ARRIVING, FeedTracker, MessageOrder, order_of
from .leases import Lease, Leases
from .market_lists import MarketLists
from .publisher import HEARTBEAT_S, RedisPublisher
from .subscriber import Subscriber

logger = logging.getLogger(__name__)

_CHECK_S = 0.5
_READ_BATCH = 200
_MAX_QUEUED = 64  # queued messages of a market while it is read again; the read covers older ones
_RETRY_S = 0.5
_MAX_AHEAD_MS = 10_000  # a minute may be this far ahead of this machine's clock and of the leader's


class _QueuedMessage(NamedTuple):
    """A message that waits until its market was read; `is_early` is True if it arrived before the read began."""

    message: Message
    position: Position
    is_early: bool


class RedisBus:
    """The bus for `redis://` and the other Redis addresses, which begins with `markets`.

    Messages published here are delivered to the local listeners immediately, even if Redis cannot be reached. They are
    ignored when they come back from Redis. Feeds of other leaders are received if there was a listener at the start.
    `leases` is None in a process that only serves. `timeless` are the exchanges whose minutes may lie in the future,
    such as those of a recording that is played fast.
    """

    def __init__(
        self,
        context: RedisContext,
        markets: Iterable[MarketKey],
        leases: Leases | None,
        lists: MarketLists,
        timeless: Collection[str],
    ) -> None:
        self.leases = leases
        self.lists = lists
        #: The exchanges by the channels about changes of their lists.
        self._list_channels = lists.channels
        self._context = context
        self._names = names = context.names
        self._clock = context.clock
        self._failures = failures = context.failures
        self._timeless = frozenset(timeless)
        shards = context.shards
        self._shard_of = {market: shard_of(market, shards) for market in markets}
        self._channels = {names.candles_channel(market): market for market in self._shard_of}
        self._heartbeats = {names.heartbeat_channel(shard): shard for shard in range(shards)}
        self._listeners: list[FeedListener] = []
        #: The markets of each shard. The publisher reads them too.
        self._markets_of: dict[int, dict[MarketKey, None]] = {shard: {} for shard in range(shards)}
        for market, shard in self._shard_of.items():
            self._markets_of[shard][market] = None
        self._tracker = FeedTracker(self._markets_of, self._clock.monotonic())
        self._publisher = None if leases is None else RedisPublisher(context, leases, self._markets_of)
        self._reader = Caller(context.servers)
        self._read_failures = failures.record_of("reading missed messages")
        self._receive_failures = failures.record_of("receiving")
        self._subscriber: Subscriber | None = None
        self._queued: dict[MarketKey, list[_QueuedMessage]] = {}
        self._from_future: set[MarketKey] = set()  # markets with a refused time, which the next heartbeat may allow
        self._published_states: dict[MarketKey, StateChanged] = {}  # the last state from the feed
        self._delivered_states: dict[MarketKey, StateChanged] = {}  # the last state delivered to listeners
        self._overridden: set[MarketKey] = set()  # markets whose delivered state is `stale` in place of the feed's
        self._delivered_positions: dict[MarketKey, Position] = {}
        self._feedless_seqs: Counter[MarketKey] = Counter()  # numbers messages that belong to no feed
        self._has_missed = asyncio.Event()
        self._tasks = TaskSet()
        self.ignored: Counter[str] = Counter()
        if leases is not None:
            leases.add_listener(self._on_lease_change)

    # ------------------------------------------------------------ the interface

    def publish(self, message: Message) -> Position:
        """See `Bus.publish`."""
        if self._publisher is None:
            raise RuntimeError("a process that only serves publishes nothing")
        if message.market not in self._shard_of:
            self.ignored["removed"] += 1  # from work that began before the market was removed
            return self._unnumbered_position(message.market)
        position = self._publisher.enqueue(message)
        self._tracker.set_position(message.market, position)
        if isinstance(message, StateChanged):
            self._published_states[message.market] = message
        self._notify_listeners(message, position)
        return position

    def add_listener(self, listener: FeedListener) -> None:
        """See `Bus.add_listener`."""
        self._listeners.append(listener)

    def describe(self) -> dict[str, object]:
        """See `Bus.describe`."""
        now = self._clock.monotonic()
        subscriber, publisher, problem = self._subscriber, self._publisher, self._failures.summary
        facts: dict[str, object] = {
            "kind": "redis",
            "connected": (subscriber is None or subscriber.is_connected) and not self._failures.is_vital,
            "servers": str(self._context.servers.address),
            "process": self._context.process,
        }
        if subscriber is not None:
            lag_s = subscriber.lag_s
            facts |= {
                "generation": subscriber.generation,
                "linkEnds": dict(subscriber.end_counts),
                "lagMs": None if lag_s is None else round(lag_s * 1000, 1),
                "healed": dict(self._tracker.missed_counts),
                "ignored": dict(self.ignored),
                "heartbeatAgeMs": {
                    str(shard): round(1000 * age_s)
                    for shard, age_s in self._tracker.heartbeat_ages(now)
                    if self._listeners  # others do not receive heartbeats
                },
            }
        if publisher is not None and self.leases is not None:
            facts |= {
                **publisher.describe(),
                "leases": self.leases.describe(),
                "leaseChanges": self.leases.transitions,
                "processes": self.leases.processes,
            }
        return {**facts, "trouble": problem} if problem else facts

    def unpublished_markets(self) -> Mapping[MarketKey, str]:
        """See `Bus.unpublished_markets`."""
        return {} if self._publisher is None else self._publisher.unsent_markets()

    def on_markets_changed(self, change: MarketsChanged) -> None:
        """Begin to publish and receive added markets, and stop for removed ones. The others are not interrupted."""
        for symbol in change.removed:
            self._remove_market(MarketKey(change.exchange, symbol))
        for symbol in change.added:
            self._add_market(MarketKey(change.exchange, symbol))
        if self._subscriber is not None and (change.added or change.removed):
            self._subscriber.set_channels(self._all_channels())

    def _add_market(self, market: MarketKey) -> None:
        shard = shard_of(market, len(self._heartbeats))
        self._shard_of[market] = shard
        self._channels[self._names.candles_channel(market)] = market
        self._markets_of[shard][market] = None
        self._tracker.add_market(market, shard)
        if self._publisher is not None:
            self._publisher.add_market(market, shard)

    def _remove_market(self, market: MarketKey) -> None:
        del self._markets_of[self._shard_of.pop(market)][market]
        del self._channels[self._names.candles_channel(market)]
        self._tracker.remove_market(market)
        if self._publisher is not None:
            self._publisher.remove_market(market)
        for states in (self._published_states, self._delivered_states):
            states.pop(market, None)
        self._delivered_positions.pop(market, None)
        self._queued.pop(market, None)
        self._overridden.discard(market)
        self._from_future.discard(market)
        self._receive_failures.record_success(market)
        self._read_failures.record_success(market)

    def _all_channels(self) -> list[str]:
        channels = [*self._channels, *self._heartbeats] if self._listeners else []
        return [*channels, *self._list_channels]

    # ------------------------------------------------------------ lifecycle

    def start(self) -> None:
        """Begin to receive and to publish. Connections that fail are retried without limit."""
        self._tasks.start_periodic(self._failures.retry_failed, self._clock, 1.0)
        if self._publisher is not None:
            self._tasks.start_endless(self._publisher.run_pumps, self._clock)
            self._tasks.start_periodic(self._publisher.schedule_heartbeats, self._clock, HEARTBEAT_S)
        if not (channels := self._all_channels()):
            return
        self._tracker.expect_heartbeats(self._clock.monotonic())
        self._subscriber = Subscriber(
            self._context, channels, on_message=self._receive, on_ready=self._on_connection_ready
        )
        self._tasks.start_endless(self._subscriber.run, self._clock)
        if not self._listeners:
            return
        self._tasks.start_endless(self._repair_missed, self._clock)
        self._tasks.start_periodic(self._check_states, self._clock, _CHECK_S)

    async def stop(self) -> None:
        """Try once to publish queued messages, and close the connections."""
        if self._publisher is not None:
            await self._publisher.send_pending()
        await self._tasks.cancel()
        if self._subscriber is not None:
            await self._subscriber.stop()
        if self._publisher is not None:
            await self._publisher.close()
        await self._reader.close()

    # ------------------------------------------------------------ receiving

    def _receive(self, channel: str, data: bytes) -> None:
        market = self._channels.get(channel)
        try:
            if market is not None:
                self._receive_message(market, data)
            elif channel in self._heartbeats:
                self._receive_heartbeat(self._heartbeats[channel], data)
            elif channel in self._list_channels:
                self.lists.on_notice(self._list_channels[channel], data)
        except BadMessage as error:
            self._reject(error, f"a message on {channel}", market, data)

    def _receive_message(self, market: MarketKey, data: bytes) -> None:
        message, position = decode_message(market, data, self._latest_ms(market))
        if position is None:
            self._receive_external(market, message)
        elif self._is_own(market):
            if self._publisher is not None and not self._publisher.is_own_epoch(position.epoch):
                self.ignored["of another leader"] += 1  # the lease decides which of the two leads
        elif self._publisher is not None and self._publisher.is_own_epoch(position.epoch):
            self.ignored["own"] += 1
        else:
            self._process_message(message, position)

    def _receive_external(self, market: MarketKey, message: Message) -> None:
        if self._is_own(market) or not self._tracker.on_external_minute(market, self._clock.monotonic()):
            self._count_ignored(
                "outside", f"{market} is led by an ingest process: minutes of other programs are ignored"
            )
            return
        published = self._published_states.get(market)
        if published is None or published.state != "live":
            self._published_states[market] = StateChanged(market, "live", self._clock.now_ms())
        self._deliver_state(market)
        self._notify_listeners(message, self._unnumbered_position(market))

    def _receive_heartbeat(self, shard: int, data: bytes) -> None:
        beat = decode_heartbeat(data)
        if beat.shard != shard:
            raise BadMessage(f"belongs to another shard, {beat.shard}")
        if self._is_ingested_here(shard):
            return
        if not self._tracker.on_heartbeat(beat, self._channels, self._clock.monotonic()):
            self.ignored["of another leader"] += 1
        refused = {market for market in self._from_future if self._shard_of[market] == shard}
        self._from_future -= refused
        self._tracker.mark_missed(refused, "future")
        self._has_missed.set()

    def _on_connection_ready(self, channels: Sequence[str]) -> None:
        self._reader.renew_connections()
        self.lists.read_later(self._list_channels[one] for one in channels if one in self._list_channels)
        markets = [self._channels[channel] for channel in channels if channel in self._channels]
        self._tracker.mark_missed((market for market in markets if not self._is_own(market)), "connected")
        self._has_missed.set()

    def _process_message(self, message: Message, position: Position) -> None:
        """Deliver a message, or queue it while its market is being read again."""
        market = message.market
        if not self._tracker.is_missed(market):
            order = self._tracker.on_message(market, position)
            if order is MessageOrder.NEXT:
                self._deliver(message, position)
                return
            if order is MessageOrder.REPEATED:
                self.ignored["repeated"] += 1
                return
            self._has_missed.set()
        waiting = self._queued.setdefault(market, [])
        waiting.append(_QueuedMessage(message, position, not self._tracker.is_reading(market)))
        del waiting[:-_MAX_QUEUED]

    def _deliver(self, message: Message, position: Position) -> None:
        """Deliver a message of another process's feed. If the market's state is in doubt, deliver `stale` instead."""
        if isinstance(message, StateChanged):
            self._published_states[message.market] = message
            self._deliver_state(message.market, position)
        else:
            self._notify_listeners(message, position)

    def _notify_listeners(self, message: Message, position: Position) -> None:
        self._delivered_positions[message.market] = position
        if isinstance(message, StateChanged):
            self._delivered_states[message.market] = message
        for listener in self._listeners:
            try:
                listener.on_feed_message(message, position)
            except Exception:  # an error in a listener must stop neither ingest nor receiving
                logger.exception("a listener failed on %s", message)

    def _count_ignored(self, reason: str, line: str) -> None:
        """Count an ignored message. Only the first one with the same reason is logged."""
        if not self.ignored[reason]:
            logger.warning("%s", line)
        self.ignored[reason] += 1

    def _reject(self, error: BadMessage, source: str, market: MarketKey | None, data: bytes) -> None:
        is_future = isinstance(error, FutureMessage)
        if is_future and market is not None:
            self._from_future.add(market)
        reason = "future" if is_future else "unreadable"
        self._count_ignored(reason, f"{source} cannot be read: {error}: {excerpt(data)}")

    def _latest_ms(self, market: MarketKey) -> int:
        """Return the time up to which minutes of a market are credible."""
        if market.exchange in self._timeless:
            return YEAR_10000_MS
        leader_ms = self._tracker.leader_ms(self._shard_of[market], self._clock.monotonic())
        return max(self._clock.now_ms(), leader_ms) + _MAX_AHEAD_MS

    # ------------------------------------------------------------ recovery of missed messages

    async def _repair_missed(self) -> None:
        """Read the newest state of markets with missed messages, and notify the listeners to read the rest."""
        while True:
            markets = self._tracker.take_missed(_READ_BATCH)
            if not markets:
                self._has_missed.clear()
                await self._has_missed.wait()
                continue
            keys = [
                key for market in markets for key in (self._names.newest_key(market), self._names.fence_key(market))
            ]
            answers = await self._reader.call_all([Call(key, ("GETRANGE", key, 0, MAX_BYTES)) for key in keys])
            failed: dict[str, list[MarketKey]] = {}
            for market, newest, fence in zip(markets, answers[::2], answers[1::2], strict=True):
                error = next((one for one in (newest, fence) if isinstance(one, Exception)), None)
                if error is None:
                    self._deliver_newest(market, newest, fence)
                else:
                    failed.setdefault(reason_of(error), []).append(market)
            for reason, markets in failed.items():
                unread = [market for market in markets if market in self._shard_of]
                self._read_failures.record_failure(reason, *unread)
                self._tracker.mark_not_repaired(unread, reason, self._clock.monotonic())
            if failed:
                await self._clock.sleep(_RETRY_S)

    def _deliver_newest(self, market: MarketKey, newest_data: bytes, fence_data: bytes) -> None:
        """Deliver the contents of the market's keys and queued messages; notify the listeners to read the rest."""
        if market not in self._shard_of:  # removed while it was read
            return
        self._read_failures.record_success(market)
        self._tracker.mark_repaired(market)
        queued = self._queued.pop(market, [])
        if self._is_own(market):  # this process has become its leader
            return
        fence = parse_fence(fence_data)
        self._from_future.discard(market)
        newest = self._read_newest(market, newest_data)
        is_refused = market in self._from_future  # then the messages up to the fence were not read
        known = self._tracker.on_newest_read(
            market, None if newest is None else newest.position, None if is_refused else fence
        )
        delivered = self._delivered_positions.get(market)
        if known is not None and delivered is not None and order_of(known) < order_of(delivered):
            self._notify_listeners(MessagesLost(market, back_to=known), known)
        position = known or self._last_position(market)
        # Deliver this before the newest state, which has the same position. After it, the listeners would take the
        # message at that position for received, but that one may be lost.
        self._notify_listeners(MessagesLost(market), position)
        if newest is not None:
            for candle in newest.candles:
                self._notify_listeners(MinuteChanged(market, candle, newest.metadata), position)
            if newest.state is not None:
                self._published_states[market] = newest.state
        self._deliver_state(market, position)
        for one in queued:
            self._process_queued(one, fence)

    def _process_queued(self, one: _QueuedMessage, fence: tuple[int, int] | None) -> None:
        """Process a message that was queued while its market was read, unless the read contained it."""
        market, at = one.message.market, self._tracker.position_of(one.message.market)
        if at is not None and order_of(one.position) <= order_of(at):
            return
        if not one.is_early or self._tracker.is_missed(market):
            self._process_message(one.message, one.position)
        elif self._tracker.confirm_jump(market, one.position, fence):
            self._deliver(one.message, one.position)
        else:
            number = f"{one.position.seq} of the feed {one.position.epoch}"
            self._count_ignored(
                "unproved", f"{market}: ignored a message, because its leader has not published number {number}"
            )

    def _read_newest(self, market: MarketKey, data: bytes) -> Newest | None:
        if not data:
            return None
        try:
            return decode_newest(market, data, self._latest_ms(market))
        except BadMessage as error:
            self._reject(error, f"the newest state of {market}", market, data)
            return None

    # ------------------------------------------------------------ states

    def _check_states(self) -> None:
        """Deliver `stale` for markets whose state is in doubt, and the feed's state once it is not."""
        now = self._clock.monotonic()
        for shard in self._heartbeats.values():
            if self._is_ingested_here(shard):
                self._tracker.keep_alive(shard, now)
        self._tracker.update_lateness(now)
        for market in self._tracker.stale_markets() | self._overridden:
            if not self._is_own(market):
                self._deliver_state(market)

    def _deliver_state(self, market: MarketKey, position: Position | None = None) -> None:
        """Deliver a market's state from its feed, or `stale` if that is in doubt.

        Without a `position` it is delivered only if it has changed.
        """
        published, delivered = self._published_states.get(market), self._delivered_states.get(market)
        cause = self._tracker.find_stale_cause(market, self._clock.monotonic())
        if cause:
            is_stale = delivered is not None and delivered.state == "stale"
            since_ms = delivered.since_ms if delivered is not None and is_stale else self._clock.now_ms()
            decimals = Decimals() if published is None else published.decimals
            published = StateChanged(market, "stale", since_ms, *cause, decimals)
        if cause != NOT_ARRIVING:
            self._receive_failures.record_success(market)
        elif market not in self._receive_failures.parts:
            self._receive_failures.record_failure("published messages do not arrive", market)
        if cause:
            self._overridden.add(market)
        elif position is None and self._tracker.is_missed(market):
            return
        else:
            self._overridden.discard(market)
        if published is not None and (position is not None or published != delivered):
            self._notify_listeners(published, position or self._last_position(market))

    def _last_position(self, market: MarketKey) -> Position:
        """Return the position of the last message delivered to listeners."""
        return self._delivered_positions.get(market) or self._unnumbered_position(market)

    def _unnumbered_position(self, market: MarketKey) -> Position:
        """Return the next position for a message that belongs to no feed."""
        self._feedless_seqs[market] += 1
        return Position(f"here.{self._context.process}", self._feedless_seqs[market])

    # ------------------------------------------------------------ leadership of this process

    def _on_lease_change(self, lease: Lease) -> None:
        now = self._clock.monotonic()
        if lease.must_ingest:
            self._tracker.keep_alive(lease.shard, now)
            markets = self._markets_of[lease.shard]
            self._overridden.difference_update(markets)
            self._receive_failures.record_success(*markets)
            self._read_failures.record_success(*markets)
        else:
            self._tracker.on_shard_lost(lease.shard, now)
            self._has_missed.set()

    def _is_own(self, market: MarketKey) -> bool:
        return self._is_ingested_here(self._shard_of[market])

    def _is_ingested_here(self, shard: int) -> bool:
        return self.leases is not None and shard < len(self.leases.all) and self.leases.all[shard].must_ingest
