"""The bus over Redis: publishes this process's feeds, receives the others, and recovers from missed messages."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from candled.bus.codec import (
    MAX_BYTES,
    YEAR_10000_MS,
    BadMessage,
    FutureMessage,
    Names,
    Newest,
    decode_heartbeat,
    decode_message,
    decode_newest,
    excerpt,
    parse_fence,
)
from candled.bus.interface import Listener, Message, MessagesLost, MinuteChanged, Position, StateChanged
from candled.bus.shards import shard_of
from candled.bus.troubles import Troubles
from candled.exchange import Clock
from candled.model import Decimals, MarketKey
from candled.tasks import TaskSet

from .connections import Call, Caller, Servers, reason_of
from .feed_tracker import NOT_ARRIVING, FeedTracker, MessageOrder, order_of
from .leases import Lease, Leases
from .publisher import RedisPublisher
from .subscriber import Subscriber

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_READ_AT_ONCE = 200
_HELD_BACK = 64  # queued messages of a market while it is read again; the read covers older ones
_AGAIN_S = 0.5
_AHEAD_MS = 10_000  # this machine's clock may be this far behind the exchange's, beyond the leader's own knowledge


class _HeldBack(NamedTuple):
    """A queued message of a market that is to be read; `is_early` if it arrived before that read began."""

    message: Message
    position: Position
    is_early: bool


class RedisBus:
    """`redis://` and its variants, for `markets`. `leases` is None in a process that only serves.

    Messages published here are delivered to the local listeners immediately, whether or not Redis can be reached, and
    are ignored when they come back. Feeds of other leaders are received once there is a listener. `timeless` are the
    exchanges whose minutes may lie in the future, such as those of a recording that is played fast.
    """

    def __init__(
        self,
        servers: Servers,
        names: Names,
        clock: Clock,
        markets: Iterable[MarketKey],
        *,
        shards: int,
        process: str,
        leases: Leases | None,
        troubles: Troubles,
        timeless: Collection[str] = (),
    ) -> None:
        self.leases = leases
        self._servers = servers
        self._names = names
        self._clock = clock
        self._process = process
        self._troubles = troubles
        self._timeless = frozenset(timeless)
        self._shard_of = {market: shard_of(market, shards) for market in markets}
        self._channels = {names.candles_channel(market): market for market in self._shard_of}
        self._heartbeats = {names.heartbeat_channel(shard): shard for shard in range(shards)}
        self._listeners: list[Listener] = []
        by_shard = {shard: [one for one in self._shard_of if self._shard_of[one] == shard] for shard in range(shards)}
        self._tracker = FeedTracker(by_shard, clock.monotonic())
        self._publisher = (
            None if leases is None else RedisPublisher(servers, names, clock, leases, self._shard_of, troubles)
        )
        self._reader = Caller(servers)
        self._reading = troubles.of("reading what was missed")
        self._receiving = troubles.of("receiving")
        self._subscriber: Subscriber | None = None
        self._held_back: dict[MarketKey, list[_HeldBack]] = {}
        self._from_future: set[MarketKey] = set()  # markets to read again once the leader's clock is known better
        self._said: dict[MarketKey, StateChanged] = {}  # the last state from the feed
        self._shown: dict[MarketKey, StateChanged] = {}  # the last state delivered to listeners
        self._doubted: set[MarketKey] = set()  # markets whose delivered state is another, because the feed is in doubt
        self._handed: dict[MarketKey, Position] = {}
        self._unfed: Counter[MarketKey] = Counter()  # numbers messages that belong to no feed
        self._to_read = asyncio.Event()
        self._tasks = TaskSet()
        self.ignored: Counter[str] = Counter()
        if leases is not None:
            leases.add_listener(self._lease_changed)

    # ------------------------------------------------------------ the interface

    def publish(self, message: Message) -> Position:
        """See `Bus.publish`."""
        if self._publisher is None:
            raise RuntimeError("a process that only serves publishes nothing")
        position = self._publisher.enqueue(message)
        self._tracker.on_own_message(message.market, position)
        if isinstance(message, StateChanged):
            self._said[message.market] = message
        self._notify_listeners(message, position)
        return position

    def add_listener(self, listener: Listener) -> None:
        """See `Bus.add_listener`."""
        self._listeners.append(listener)

    def describe(self) -> dict[str, object]:
        """See `Bus.describe`."""
        now = self._clock.monotonic()
        heard, sent, trouble = self._subscriber, self._publisher, self._troubles.text
        facts: dict[str, object] = {
            "kind": "redis",
            "connected": (heard is None or heard.is_connected) and not self._troubles.is_vital,
            "servers": str(self._servers.address),
        }
        if heard is not None:
            lag_s = heard.lag_s
            facts |= {
                "generation": heard.generation,
                "linkEnds": dict(heard.ends),
                "lagMs": None if lag_s is None else round(lag_s * 1000, 1),
                "healed": dict(self._tracker.reasons),
                "ignored": dict(self.ignored),
                "heartbeatAgeMs": {
                    str(shard): round(self._tracker.age_s(shard, now) * 1000) for shard in self._heartbeats.values()
                },
            }
        if sent is not None and self.leases is not None:
            facts |= {**sent.describe(), "leases": self.leases.describe(), "processes": self.leases.processes}
        return {**facts, "trouble": trouble} if trouble else facts

    def unpublished(self) -> Mapping[MarketKey, str]:
        """See `Bus.unpublished`."""
        return {} if self._publisher is None else self._publisher.unpublished()

    # ------------------------------------------------------------ lifecycle

    def start(self) -> None:
        """Begin to receive and to publish. Connections that fail are retried without limit."""
        self._tasks.start_endless(self._settle, self._clock)
        if self._publisher is not None:
            self._tasks.start_endless(self._publisher.run_pumps, self._clock)
            self._tasks.start_endless(self._publisher.send_heartbeats, self._clock)
        if not self._listeners:
            return
        self._tracker.begin(self._clock.monotonic())
        self._subscriber = Subscriber(
            self._servers,
            [*self._channels, *self._heartbeats],
            self._clock,
            self._troubles.of("subscribing"),
            process=self._process,
            heard=self._receive,
            ready=self._link_is_ready,
        )
        self._tasks.start_endless(self._subscriber.run, self._clock)
        self._tasks.start_endless(self._repair_missed, self._clock)
        self._tasks.start_endless(self._mark_late, self._clock)

    async def stop(self) -> None:
        """Publish queued messages if possible now, and close the connections."""
        if self._publisher is not None:
            await self._publisher.flush()
        await self._tasks.cancel()
        if self._subscriber is not None:
            await self._subscriber.stop()
        if self._publisher is not None:
            await self._publisher.close()
        await self._reader.close()

    async def _settle(self) -> None:
        """Retry failing work and log when it succeeds again, in an endless loop."""
        while True:
            await self._clock.sleep(1.0)
            await self._troubles.settle()

    # ------------------------------------------------------------ receiving

    def _receive(self, channel: str, data: bytes) -> None:
        market = self._channels.get(channel)
        try:
            if market is not None:
                self._receive_message(market, data)
            elif channel in self._heartbeats:
                self._receive_heartbeat(self._heartbeats[channel], data)
        except FutureMessage as error:
            if market is not None:
                self._from_future.add(market)
            self._count_ignored("future", f"rejected a message on {channel}: {error}: {excerpt(data)}")
        except BadMessage as error:
            self._count_ignored("unreadable", f"a message on {channel} cannot be read: {error}: {excerpt(data)}")

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
            self._accept(message, position)

    def _receive_external(self, market: MarketKey, message: Message) -> None:
        if self._is_own(market) or not self._tracker.on_external_minute(market, self._clock.monotonic()):
            self._count_ignored(
                "outside", f"{market} is led by an ingest process: minutes of other programs are ignored"
            )
            return
        said = self._said.get(market)
        if said is None or said.state != "live":
            self._said[market] = StateChanged(market, "live", self._clock.now_ms())
        self._show(market)
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
        self._to_read.set()

    def _link_is_ready(self, channels: Sequence[str]) -> None:
        self._reader.renew_connections()
        markets = [self._channels[channel] for channel in channels if channel in self._channels]
        self._tracker.mark_missed((market for market in markets if not self._is_own(market)), "connected")
        self._to_read.set()

    def _accept(self, message: Message, position: Position) -> None:
        """Deliver a message, or queue it while its market is being read again."""
        market = message.market
        if not self._tracker.is_missed(market):
            verdict = self._tracker.on_message(market, position)
            if verdict is MessageOrder.NEXT:
                self._deliver(message, position)
                return
            if verdict is MessageOrder.REPEATED:
                self.ignored["repeated"] += 1
                return
            self._to_read.set()
        waiting = self._held_back.setdefault(market, [])
        waiting.append(_HeldBack(message, position, not self._tracker.is_reading(market)))
        del waiting[:-_HELD_BACK]

    def _deliver(self, message: Message, position: Position) -> None:
        """Deliver a message of another process's feed. A state is delivered only if it is not in doubt."""
        if isinstance(message, StateChanged):
            self._said[message.market] = message
            self._show(message.market, position)
        else:
            self._notify_listeners(message, position)

    def _notify_listeners(self, message: Message, position: Position) -> None:
        self._handed[message.market] = position
        if isinstance(message, StateChanged):
            self._shown[message.market] = message
        for listener in self._listeners:
            try:
                listener(message, position)
            except Exception:  # an error in a listener must stop neither ingest nor receiving
                logger.exception("a listener failed on %s", message)

    def _count_ignored(self, reason: str, line: str) -> None:
        """Count an ignored message. Only the first one is logged."""
        if not self.ignored[reason]:
            logger.warning("%s", line)
        self.ignored[reason] += 1

    def _latest_ms(self, market: MarketKey) -> int:
        """Return the time up to which minutes of a market are credible."""
        if market.exchange in self._timeless:
            return YEAR_10000_MS
        leader_ms = self._tracker.leader_ms(self._shard_of[market], self._clock.monotonic())
        return max(self._clock.now_ms(), leader_ms) + _AHEAD_MS

    # ------------------------------------------------------------ recovery of missed messages

    async def _repair_missed(self) -> None:
        """Read the newest state of markets with missed messages, and notify the listeners to read the rest."""
        while True:
            markets = self._tracker.take_missed(_READ_AT_ONCE)
            if not markets:
                self._to_read.clear()
                await self._to_read.wait()
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
            for reason, unread in failed.items():
                self._reading.fails(reason, *unread)
                self._tracker.mark_not_repaired(unread, reason, self._clock.monotonic())
            if failed:
                await self._clock.sleep(_AGAIN_S)

    def _deliver_newest(self, market: MarketKey, newest_data: bytes, fence_data: bytes) -> None:
        """Deliver the contents of the market's keys and queued messages; notify the listeners to read the rest."""
        self._reading.works(market)
        self._tracker.mark_repaired(market)
        held_back = self._held_back.pop(market, [])
        if self._is_own(market):  # this process has become its leader
            return
        fence = parse_fence(fence_data)
        self._from_future.discard(market)
        newest = self._read_newest(market, newest_data)
        is_refused = market in self._from_future  # then the state up to there is not available
        known = self._tracker.on_newest_read(
            market, None if newest is None else newest.position, None if is_refused else fence
        )
        handed = self._handed.get(market)
        if known is not None and handed is not None and order_of(known) < order_of(handed):
            self._notify_listeners(MessagesLost(market, back_to=known), known)
        position = known or self._last(market)
        # Send this before the newest state, which has the number of the last message: that message may be the lost one.
        self._notify_listeners(MessagesLost(market), position)
        if newest is not None:
            for candle in newest.candles:
                self._notify_listeners(MinuteChanged(market, candle, newest.metadata), position)
            if newest.state is not None:
                self._said[market] = newest.state
        self._show(market, position)
        for one in held_back:
            self._take_later(one, fence)

    def _take_later(self, one: _HeldBack, fence: tuple[int, int] | None) -> None:
        """Process a message that was queued while its market was read, unless the read contained it."""
        market, at = one.message.market, self._tracker.position_of(one.message.market)
        if at is not None and order_of(one.position) <= order_of(at):
            return
        if not one.is_early or self._tracker.is_missed(market):
            self._accept(one.message, one.position)
        elif self._tracker.prove(market, one.position, fence):
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
        except FutureMessage as error:
            self._from_future.add(market)
            self._count_ignored("future", f"rejected the newest state of {market}: {error}: {excerpt(data)}")
        except BadMessage as error:
            self._count_ignored("unreadable", f"the newest state of {market} cannot be read: {error}: {excerpt(data)}")
        return None

    # ------------------------------------------------------------ states

    async def _mark_late(self) -> None:
        """Publish `stale` for markets in doubt, and their own state once they are not, in an endless loop."""
        while True:
            await self._clock.sleep(_LOOK_S)
            now = self._clock.monotonic()
            for shard in self._heartbeats.values():
                if self._is_ingested_here(shard):
                    self._tracker.keep_alive(shard, now)
            self._tracker.look(now)
            for market in self._tracker.doubtful() | self._doubted:
                if not self._is_own(market):
                    self._show(market)

    def _show(self, market: MarketKey, position: Position | None = None) -> None:
        """Deliver a market's state from its feed, or `stale` if that is in doubt.

        Without a `position` it is delivered only if it has changed.
        """
        said, shown_ = self._said.get(market), self._shown.get(market)
        doubt = self._tracker.doubt(market, self._clock.monotonic())
        if doubt:
            is_stale = shown_ is not None and shown_.state == "stale"
            since_ms = shown_.since_ms if shown_ is not None and is_stale else self._clock.now_ms()
            decimals = Decimals() if said is None else said.decimals
            said = StateChanged(market, "stale", since_ms, *doubt, decimals)
        if doubt != NOT_ARRIVING:
            self._receiving.works(market)
        elif market not in self._receiving.parts:
            self._receiving.fails("published messages do not arrive", market)
        if doubt:
            self._doubted.add(market)
        elif position is None and self._tracker.is_missed(market):
            return
        else:
            self._doubted.discard(market)
        if said is not None and (position is not None or said != shown_):
            self._notify_listeners(said, position or self._last(market))

    def _last(self, market: MarketKey) -> Position:
        """Return the position of the last message delivered to listeners."""
        return self._handed.get(market) or self._unnumbered_position(market)

    def _unnumbered_position(self, market: MarketKey) -> Position:
        """Return the next position for a message that belongs to no feed."""
        self._unfed[market] += 1
        return Position(f"here.{self._process}", self._unfed[market])

    # ------------------------------------------------------------ leadership of this process

    def _lease_changed(self, lease: Lease) -> None:
        now = self._clock.monotonic()
        if lease.is_ours_to_ingest:
            self._tracker.keep_alive(lease.shard, now)
            markets = [market for market, shard in self._shard_of.items() if shard == lease.shard]
            self._doubted.difference_update(markets)
            self._receiving.works(*markets)
            self._reading.works(*markets)
        else:
            self._tracker.on_shard_lost(lease.shard, now)
            self._to_read.set()

    def _is_own(self, market: MarketKey) -> bool:
        return self._is_ingested_here(self._shard_of[market])

    def _is_ingested_here(self, shard: int) -> bool:
        return self.leases is not None and shard < len(self.leases.all) and self.leases.all[shard].is_ours_to_ingest
