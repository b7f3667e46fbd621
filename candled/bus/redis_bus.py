"""The bus over Redis: publishes what this process leads, hears the rest, and heals what was missed."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

from candled.exchange import Clock
from candled.model import MarketKey

from .codec import BadMessage, Names, Newest, read_heartbeat, read_message, read_newest, shown
from .interface import Listener, Message, MinuteChanged, Missed, Position, StateChanged
from .leases import Lease, Leases
from .publisher import Publisher
from .reception import Reception
from .redis_links import Call, Caller, Servers
from .redis_subscriber import Subscriber
from .shards import shard_of
from .tasks import end, keep

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_READ_AT_ONCE = 200
_HELD_BACK = 64  # messages of a market that wait while it is read again; that reading covers what is dropped
_AGAIN_S = 0.5


class RedisBus:
    """`redis://` and its kin, for `markets`. `leases` is None in a process that only serves.

    What is published here is handed to the listeners here at once, whether or not Redis can be reached, and ignored
    when it comes back. Feeds that others lead are heard once there is a listener.
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
    ) -> None:
        self.leases = leases
        self._servers = servers
        self._names = names
        self._clock = clock
        self._process = process
        self._shard_of = {market: shard_of(market, shards) for market in markets}
        self._channels = {names.channel(market): market for market in self._shard_of}
        self._heartbeats = {names.heartbeat(shard): shard for shard in range(shards)}
        self._listeners: list[Listener] = []
        by_shard = {shard: [one for one in self._shard_of if self._shard_of[one] == shard] for shard in range(shards)}
        self._reception = Reception(by_shard, clock.monotonic())
        self._publisher = None if leases is None else Publisher(servers, names, clock, leases, self._shard_of)
        self._reader = Caller(servers)
        self._subscriber: Subscriber | None = None
        self._held_back: dict[MarketKey, list[tuple[Message, Position]]] = {}
        self._states: dict[MarketKey, str] = {}
        self._unfed: Counter[MarketKey] = Counter()  # numbers what belongs to no feed
        self._to_read = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.ignored: Counter[str] = Counter()
        if leases is not None:
            leases.listen(self._lease_changed)

    # ------------------------------------------------------------ the interface

    def publish(self, message: Message) -> Position:
        if self._publisher is None:
            raise RuntimeError("a process that only serves publishes nothing")
        position = self._publisher.put(message)
        self._reception.own(message.market, position)
        self._hand(message, position)
        return position

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def describe(self) -> dict[str, object]:
        now = self._clock.monotonic()
        heard, sent = self._subscriber, self._publisher
        facts: dict[str, object] = {
            "kind": "redis",
            "connected": (heard is None or heard.is_connected) and (sent is None or sent.trouble is None),
            "servers": str(self._servers.address),
        }
        if heard is not None:
            lag_s = heard.lag_s
            facts |= {
                "generation": heard.generation,
                "linkEnds": dict(heard.ends),
                "lagMs": None if lag_s is None else round(lag_s * 1000, 1),
                "healed": dict(self._reception.reasons),
                "ignored": dict(self.ignored),
                "heartbeatAgeMs": {
                    str(shard): round(self._reception.age_s(shard, now) * 1000) for shard in self._heartbeats.values()
                },
            }
        if sent is not None and self.leases is not None:
            facts |= {**sent.describe(), "leases": self.leases.describe(), "processes": self.leases.processes}
        trouble = (heard and heard.trouble) or (sent and sent.trouble)
        return {**facts, "trouble": trouble} if trouble else facts

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to hear and to publish; what cannot be reached is tried again for ever."""
        if self._publisher is not None:
            self._spawn(self._publisher.run)
            self._spawn(self._publisher.beat)
        if not self._listeners:
            return
        self._subscriber = Subscriber(
            self._servers,
            [*self._channels, *self._heartbeats],
            self._clock,
            process=self._process,
            heard=self._heard,
            ready=self._link_is_ready,
        )
        self._spawn(self._subscriber.run)
        self._spawn(self._heal)
        self._spawn(self._look)

    async def stop(self) -> None:
        """Publish what waits, if that is possible now, and release the connections."""
        if self._publisher is not None:
            await self._publisher.flush()
        await end(self._tasks)
        if self._subscriber is not None:
            await self._subscriber.stop()
        if self._publisher is not None:
            await self._publisher.close()
        await self._reader.close()

    # ------------------------------------------------------------ hearing

    def _heard(self, channel: str, data: bytes) -> None:
        market = self._channels.get(channel)
        try:
            if market is not None:
                self._heard_message(market, data)
            elif channel in self._heartbeats:
                self._heard_heartbeat(data)
        except BadMessage as error:
            self._ignore("unreadable", f"a message on {channel} cannot be read: {error}: {shown(data)}")

    def _heard_message(self, market: MarketKey, data: bytes) -> None:
        message, position = read_message(market, data)
        if position is None:
            self._heard_outside(market, message)
        elif self._is_own(market):
            if self._publisher is not None and not self._publisher.knows(position.epoch):
                self.ignored["of another leader"] += 1  # the lease will tell which of us it is
        elif self._publisher is not None and self._publisher.knows(position.epoch):
            self.ignored["own"] += 1
        elif not self._reception.message(market, position):
            self.ignored["repeated"] += 1
        else:
            self._take(message, position)
            if self._reception.is_missed(market):
                self._to_read.set()

    def _heard_outside(self, market: MarketKey, message: Message) -> None:
        if self._is_own(market) or not self._reception.outside(market, self._clock.monotonic()):
            self._ignore("outside", f"{market} is led by an ingest process: minutes of other programs are ignored")
            return
        if self._states.get(market) != "live":
            self._hand(StateChanged(market, "live", self._clock.now_ms()), self._nowhere(market))
        self._hand(message, self._nowhere(market))

    def _heard_heartbeat(self, data: bytes) -> None:
        beat = read_heartbeat(data)
        if self._ingests(beat.shard):
            return
        self._reception.heartbeat(beat, self._channels, self._clock.monotonic())
        self._to_read.set()

    def _link_is_ready(self, channels: Sequence[str]) -> None:
        self._reader.renew()
        markets = [self._channels[channel] for channel in channels if channel in self._channels]
        self._reception.miss((market for market in markets if not self._is_own(market)), "connected")
        self._to_read.set()

    def _take(self, message: Message, position: Position) -> None:
        """Hand a message over, or keep it back while its market is being read again."""
        if not self._reception.is_missed(message.market):
            self._hand(message, position)
            return
        waiting = self._held_back.setdefault(message.market, [])
        waiting.append((message, position))
        del waiting[:-_HELD_BACK]

    def _hand(self, message: Message, position: Position) -> None:
        if isinstance(message, StateChanged):
            self._states[message.market] = message.state
        for listener in self._listeners:
            try:
                listener(message, position)
            except Exception:  # a listener's fault must not stop ingest, nor the hearing of others
                logger.exception("a listener failed on %s", message)

    def _ignore(self, reason: str, line: str) -> None:
        """Count it; only the first is worth a line."""
        if not self.ignored[reason]:
            logger.warning("%s", line)
        self.ignored[reason] += 1

    # ------------------------------------------------------------ healing

    async def _heal(self) -> None:
        """Read the newest state of markets of which something was missed, and tell the listeners to read the rest."""
        while True:
            markets = self._reception.take_missed(_READ_AT_ONCE)
            if not markets:
                self._to_read.clear()
                await self._to_read.wait()
                continue
            keys = [self._names.newest(market) for market in markets]
            answers = await self._reader.call_all([Call(key, ("GET", key)) for key in keys])
            failed = []
            for market, answer in zip(markets, answers, strict=True):
                if isinstance(answer, Exception):
                    failed.append(market)
                else:
                    self._healed(market, answer)
            if failed:
                self._reception.not_healed(failed)
                await self._clock.sleep(_AGAIN_S)

    def _healed(self, market: MarketKey, data: bytes | None) -> None:
        """Hand over what the market's key has, in the order in which it was published."""
        newest = self._newest(market, data)
        self._reception.healed(market)
        held_back = self._held_back.pop(market, [])
        if self._is_own(market):  # it became ours meanwhile
            return
        position = None if newest is None else self._reception.read(market, newest.position)
        position = position or self._reception.position(market) or self._nowhere(market)
        later = []
        if newest is not None and newest.position.epoch == position.epoch:
            later = [one for one in held_back if one[1].epoch == position.epoch and one[1].seq > newest.position.seq]
            position = newest.position
        for message, at in held_back[: len(held_back) - len(later)]:
            self._hand(message, at)
        if newest is not None:
            for candle in newest.candles:
                self._hand(MinuteChanged(market, candle, newest.facts), position)
            if newest.state not in (None, self._states.get(market)) and not self._reception.is_late(market):
                why = newest.reason, newest.trouble
                state = StateChanged(market, newest.state or "", newest.since_ms, *why, newest.decimals)
                self._hand(state, position)
        self._hand(Missed(market), position)
        for message, at in later:
            self._hand(message, at)

    def _newest(self, market: MarketKey, data: bytes | None) -> Newest | None:
        if data is None:
            return None
        try:
            return read_newest(data)
        except BadMessage as error:
            self._ignore("unreadable", f"the newest state of {market} cannot be read: {error}: {shown(data)}")
            return None

    async def _look(self) -> None:
        """Say `stale` of markets whose feed is late: whether it goes on is not known."""
        while True:
            await self._clock.sleep(_LOOK_S)
            now = self._clock.monotonic()
            for shard in self._heartbeats.values():
                if self._ingests(shard):
                    self._reception.keep_alive(shard, now)
            for market in self._reception.late(now):
                position = self._reception.position(market) or self._nowhere(market)
                self._hand(StateChanged(market, "stale", self._clock.now_ms(), "leader_silent"), position)

    def _nowhere(self, market: MarketKey) -> Position:
        """The position of what belongs to no feed."""
        self._unfed[market] += 1
        return Position(f"here.{self._process}", self._unfed[market])

    # ------------------------------------------------------------ what is this process's own

    def _lease_changed(self, lease: Lease) -> None:
        now = self._clock.monotonic()
        if lease.ingests:
            self._reception.keep_alive(lease.shard, now)
        else:
            self._reception.forget(lease.shard, now)
            self._to_read.set()

    def _is_own(self, market: MarketKey) -> bool:
        return self._ingests(self._shard_of[market])

    def _ingests(self, shard: int) -> bool:
        return self.leases is not None and shard < len(self.leases.all) and self.leases.all[shard].ingests

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.ensure_future(keep(work, self._clock)))
