"""Sends the messages of this process's feeds to Redis, without ever making ingest wait."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from candled.bus import Message
from candled.bus.codec import encode_heartbeat, encode_message, encode_newest
from candled.bus.shards import shard_of
from candled.errors import Unavailable
from candled.model import MarketKey, Position
from candled.tasks import TaskSet

from .connections import Call, Caller, Node, Topology, reason_of
from .context import RedisContext
from .leases import Lease, Leases, LeaseState
from .lua import HEARTBEAT, PUBLISH
from .outbound import OutboundQueue

logger = logging.getLogger(__name__)

_PIPELINE_MARKETS = 100  # markets in one pipeline, which limits how long the loop is blocked
HEARTBEAT_S = 1.0
_KEY_TTL_S = 7 * 86_400  # how long the keys of a market live after its last message


class RedisPublisher:
    """The sender of this process's messages: `enqueue` numbers them immediately, `run_pumps` sends them in tasks.

    Each server has a pump, so a server that does not respond delays only its own messages.
    """

    def __init__(
        self, context: RedisContext, leases: Leases, markets_of: Mapping[int, Mapping[MarketKey, None]]
    ) -> None:
        self._servers = context.servers
        self._caller = Caller(context.servers)
        self._names = context.names
        self._leases = leases
        self._markets_of = markets_of
        self._shard_of = {market: shard for shard, markets in markets_of.items() for market in markets}
        self._markets = {market: OutboundQueue() for market in self._shard_of}
        self._ended_seqs: dict[MarketKey, int] = {}  # last numbers of removed markets, which continue if they return
        self._epochs: dict[int, str] = {}
        self._known_epochs: set[str] = set()
        self._due: dict[MarketKey, None] = {}  # the markets to send, in order
        self._to_retry: dict[MarketKey, None] = {}  # the markets that failed; they are sent with the next heartbeat
        self._beats_due: set[int] = set()
        self._wake = asyncio.Event()
        self._pumps: dict[Node, _Pump] = {}
        # its parts are markets, and shards for their heartbeats
        self._failures = context.failures.record_of("publishing")
        self.published = 0
        self.refused = 0
        self._sending = TaskSet()  # a task per pump that has something to send
        leases.add_listener(self.on_lease_change)

    def add_market(self, market: MarketKey, shard: int) -> None:
        """Begin to publish a market, which is in `markets_of` already."""
        self._shard_of[market] = shard
        self._markets[market] = OutboundQueue(self._ended_seqs.pop(market, 0))
        if self._lease_of(market).may_publish():
            self._due[market] = None  # raise its fence
            self._wake.set()

    def remove_market(self, market: MarketKey) -> None:
        """Stop publishing a market. Its unsent messages are dropped."""
        self._ended_seqs[market] = self._markets.pop(market).seq
        self._due.pop(market, None)
        self._to_retry.pop(market, None)
        for pump in self._pumps.values():
            pump.due.pop(market, None)
        self._failures.record_success(market)
        del self._shard_of[market]

    def enqueue(self, message: Message) -> Position:
        """Number a message, and send it later if this process leads its market's shard."""
        lease = self._lease_of(message.market)
        self._begin_feed(lease)
        seq = self._markets[message.market].enqueue(message)
        if message.market not in self._to_retry:
            self._due[message.market] = None
            self._wake.set()
        return Position(lease.epoch, seq)

    def is_own_epoch(self, epoch: str) -> bool:
        """Return whether a feed is or was this process's own."""
        return epoch in self._known_epochs

    def on_lease_change(self, lease: Lease) -> None:
        """Begin the shard's feed. A new leader raises the fence of each market, which rejects the previous leader."""
        self._begin_feed(lease)
        if not lease.must_ingest:  # nothing of it is published any more
            self._failures.record_success(lease.shard, *self._markets_of[lease.shard])
        if lease.may_publish():
            self._due |= dict.fromkeys(self._markets_of[lease.shard])
            self._beats_due.add(lease.shard)
            self._wake.set()

    def unsent_markets(self) -> Mapping[MarketKey, str]:
        """Return the markets that are read here but whose messages are not sent, each with the reason."""
        found: dict[MarketKey, str] = {}
        for lease in self._leases.all:
            reason = self._failures.parts.get(lease.shard)
            if lease.state is LeaseState.UNSURE:
                reason = self._leases.problem or "the leader is not known"
            if reason is not None:
                found |= dict.fromkeys(self._markets_of[lease.shard], reason)
        for part, reason in self._failures.parts.items():
            if isinstance(part, MarketKey):
                found[part] = reason
        return found

    def describe(self) -> dict[str, Any]:
        """Return facts for `/health`."""
        waiting = sum(one.has_pending for market, one in self._markets.items() if self._lease_of(market).must_ingest)
        return {"published": self.published, "refused": self.refused, "waitingMarkets": waiting}

    async def run_pumps(self) -> None:
        """Send due messages, with retries, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._distribute_due()

    def schedule_heartbeats(self) -> None:
        """Schedule a heartbeat of each shard and a retry of failed messages."""
        self._due |= self._to_retry
        self._to_retry.clear()
        self._beats_due |= {lease.shard for lease in self._leases.all if lease.may_publish()}
        self._wake.set()

    async def send_pending(self) -> None:
        """Try once to send due messages."""
        await self._distribute_due()
        await self._sending.wait()

    async def close(self) -> None:
        """Close the connections. Call this after `run_pumps` has ended."""
        await self._sending.cancel()
        await self._caller.close()

    # ------------------------------------------------------------ inside

    def _lease_of(self, market: MarketKey) -> Lease:
        return self._leases.all[self._shard_of[market]]

    def _begin_feed(self, lease: Lease) -> None:
        if self._epochs.get(lease.shard) == lease.epoch:
            return
        self._epochs[lease.shard] = lease.epoch
        self._known_epochs.add(lease.epoch)
        for market in self._markets_of[lease.shard]:
            self._markets[market].begin_feed()
        shards, ended = len(self._leases.all), self._ended_seqs
        self._ended_seqs = {market: seq for market, seq in ended.items() if shard_of(market, shards) != lease.shard}

    async def _distribute_due(self) -> None:
        """Give due markets and heartbeats to the pumps of their servers."""
        try:
            topology = await self._servers.find_topology() if self._due or self._beats_due else None
        except Unavailable as error:
            topology = None
            self._servers.suspect_topology()
            self._on_failed([*self._publishable(self._due), *self._beats_due], error)
            self._due.clear()
            self._beats_due.clear()
        if topology is None:
            return
        due, self._due = self._due, {}
        for market in due:
            self._assign_to_pump(market, topology, self._names.fence_key(market))
        beats, self._beats_due = self._beats_due, set()
        for shard in beats:
            self._assign_to_pump(shard, topology, self._names.lease_key(shard))

    def _assign_to_pump(self, one: MarketKey | int, topology: Topology, key: str) -> None:
        """Give a market, or the heartbeat of a shard, to the pump of the server that has its key."""
        try:
            node = topology.owner_of(key)
        except Unavailable as error:
            self._servers.suspect_topology()
            self._on_failed([one], error)
            return
        pump = self._pumps.setdefault(node, _Pump())
        if isinstance(one, MarketKey):
            pump.due[one] = None
        else:
            pump.beats.add(one)
        if pump.task is None or pump.task.done():
            pump.task = self._sending.start(self._drain_pump(node, pump))

    async def _drain_pump(self, node: Node, pump: "_Pump") -> None:
        """Send everything in a pump to its server, part by part."""
        try:
            while pump.due or pump.beats:
                await self._send_part(pump)
        except Exception:
            logger.exception("publishing to %s failed; starting again", node)

    async def _send_part(self, pump: "_Pump") -> None:
        """Send one part of the contents of a pump."""
        chosen = list(islice(pump.due, _PIPELINE_MARKETS))
        for market in chosen:
            del pump.due[market]
        shards, pump.beats = pump.beats, set()
        try:
            word = "SPUBLISH" if (await self._servers.find_topology()).sharded else "PUBLISH"
        except Unavailable as error:
            self._on_failed([*self._publishable(chosen), *shards], error)
            return
        batches = [self._make_batch(market, word) for market in self._publishable(chosen)]
        beats = self._make_heartbeats(shards, word)
        if calls := [*(batch.call for batch in batches), *(call for _, call in beats)]:
            self._on_sent(batches, beats, await self._caller.call_all(calls))

    def _publishable(self, markets: Iterable[MarketKey]) -> list[MarketKey]:
        """Return the markets that may be published now. The others wait for their leases."""
        led = []
        for market in markets:
            if market not in self._markets:  # removed meanwhile
                continue
            if self._lease_of(market).may_publish():
                led.append(market)
            else:
                self._markets[market].is_blocked = True
        return led

    def _make_batch(self, market: MarketKey, word: str) -> "_Batch":
        outgoing, lease, names = self._markets[market], self._lease_of(market), self._names
        messages = outgoing.next_batch()
        seq = messages[-1].seq if messages else outgoing.sent_seq
        newest = outgoing.newest_state(lease.epoch, seq)
        keys = [names.fence_key(market), names.newest_key(market)]
        number = seq, int(outgoing.ignores_number)
        target = names.candles_channel(market), word, _KEY_TTL_S
        state = b"" if newest is None else encode_newest(newest)
        texts = [encode_message(one.message, Position(lease.epoch, one.seq)) for one in messages]
        call = Call.of_script(PUBLISH, keys, lease.token, *number, *target, state, *texts)
        return _Batch(market, lease.epoch, seq, len(messages), call)

    def _make_heartbeats(self, shards: Iterable[int], word: str) -> list[tuple[Lease, Call]]:
        """Return a heartbeat for each shard, with the numbers that other processes should have received."""
        beats = []
        for shard in sorted(shards):
            lease = self._leases.all[shard]
            if not lease.may_publish():
                continue
            markets = {market: self._markets[market] for market in self._markets_of[shard]}
            seqs = {self._names.candles_channel(market): one.announced_seq for market, one in markets.items()}
            as_of_ms = max((one.as_of_ms for one in markets.values()), default=0)
            text = encode_heartbeat(shard, lease.epoch, seqs, as_of_ms)
            arguments = lease.token, self._names.heartbeat_channel(shard), word, text
            beats.append((lease, Call.of_script(HEARTBEAT, [self._names.lease_key(shard)], *arguments)))
        return beats

    def _on_sent(
        self, batches: Sequence["_Batch"], beats: Sequence[tuple[Lease, Call]], answers: Sequence[Any]
    ) -> None:
        """Process the replies to batches and heartbeats."""
        for batch, answer in zip(batches, answers, strict=False):
            self._on_batch_sent(batch, answer)
        for (lease, _), answer in zip(beats, answers[len(batches) :], strict=True):
            if isinstance(answer, Exception):
                self._on_failed([lease.shard], answer)
                continue
            self._failures.record_success(lease.shard)
            if isinstance(answer, bytes):
                self._leases.on_fenced(lease, int(answer))

    def _on_batch_sent(self, batch: "_Batch", answer: Any) -> None:
        if batch.market not in self._markets:  # removed meanwhile
            return
        outgoing, lease = self._markets[batch.market], self._lease_of(batch.market)
        if isinstance(answer, Exception):
            self.refused += not isinstance(answer, Unavailable)
            self._on_failed([batch.market], answer)
            return
        if isinstance(answer, bytes) and answer.startswith(b"late"):
            self._on_overtaken(batch, int(answer[4:]))
            return
        self._failures.record_success(batch.market)
        if answer is not None:
            self.refused += 1
            self._leases.on_fenced(lease, int(answer))
        elif lease.epoch == batch.epoch:
            self.published += batch.messages
            outgoing.forget_sent(batch.seq)

    def _on_overtaken(self, batch: "_Batch", number: int) -> None:
        """Handle a batch that Redis ignored because it knows a higher number.

        If this process has used that number, a later batch has arrived first. Otherwise another program wrote the
        number, and the next batch overwrites it.
        """
        outgoing = self._markets[batch.market]
        if self._lease_of(batch.market).epoch != batch.epoch:
            return
        if number > outgoing.seq:
            outgoing.ignores_number = True
            self._on_failed([batch.market], Unavailable("another program has written its fence"))
        else:
            self._failures.record_success(batch.market)
            outgoing.forget_sent(batch.seq)

    def _on_failed(self, parts: Sequence[MarketKey | int], error: Exception) -> None:
        """Record that markets, or heartbeats of shards, could not be sent."""
        what = [one for one in parts if not isinstance(one, MarketKey) or one in self._markets]
        if what:
            self._failures.record_failure(reason_of(error), *what)
        for one in what:
            if isinstance(one, MarketKey):
                self._markets[one].is_blocked = True
                self._to_retry[one] = None


class _Pump:
    """The data to send to one server, and the task that sends it: None while there is nothing to send."""

    def __init__(self) -> None:
        self.due: dict[MarketKey, None] = {}
        self.beats: set[int] = set()
        self.task: asyncio.Task[None] | None = None


class _Batch(NamedTuple):
    market: MarketKey
    epoch: str
    seq: int
    messages: int
    call: Call
