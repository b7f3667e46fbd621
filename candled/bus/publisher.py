"""Sends what this process leads to Redis, and never makes ingest wait for it."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from candled.errors import Unavailable
from candled.exchange import Clock
from candled.model import MarketKey

from .codec import Names, heartbeat_text, message_text, newest_text
from .interface import Message, Position
from .leases import Lease, Leases
from .outgoing import Outgoing
from .redis_links import Call, Caller, Servers
from .scripts import BEAT, PUBLISH

logger = logging.getLogger(__name__)

_AT_ONCE = 100  # markets in one pipeline: the loop is not held for longer than they take
_BEAT_S = 1.0
_KEPT_S = 7 * 86_400  # how long the keys of a market live that nobody publishes any more


class Publisher:
    """Numbers messages at once (`put`), and sends them from a task of its own (`run`), over a client of its own."""

    def __init__(
        self, servers: Servers, names: Names, clock: Clock, leases: Leases, shard_of: Mapping[MarketKey, int]
    ) -> None:
        self._servers = servers
        self._caller = Caller(servers)
        self._names = names
        self._clock = clock
        self._leases = leases
        self._shard_of = shard_of
        self._markets = {market: Outgoing() for market in shard_of}
        self._epochs: dict[int, str] = {}
        self._known_epochs: set[str] = set()
        self._due: dict[MarketKey, None] = {}  # in the order of their turn
        self._later: dict[MarketKey, None] = {}  # could not be sent: again with the next heartbeat
        self._beats_due: set[int] = set()
        self._wake = asyncio.Event()
        self.published = 0
        self.refused = 0
        self.trouble: str | None = None
        leases.listen(self.lease_changed)

    def put(self, message: Message) -> Position:
        """Number a message, and send it later if this process leads its market's shard."""
        lease = self._lease(message.market)
        self._begin_feed(lease)
        seq = self._markets[message.market].put(message)
        if message.market not in self._later:
            self._due[message.market] = None
            self._wake.set()
        return Position(lease.epoch, seq)

    def knows(self, epoch: str) -> bool:
        """Whether a feed is, or was, this process's own."""
        return epoch in self._known_epochs

    def lease_changed(self, lease: Lease) -> None:
        """Whoever leads raises the fence of every market at once, so that whoever led before is refused."""
        self._begin_feed(lease)
        if not any(one.ingests for one in self._leases.all):
            self.trouble = None  # there is nothing to publish any more
        if lease.may_publish():
            self._due |= dict.fromkeys(market for market, shard in self._shard_of.items() if shard == lease.shard)
            self._beats_due.add(lease.shard)
            self._wake.set()

    def describe(self) -> dict[str, Any]:
        """For `/health`."""
        waiting = sum(one.waits for market, one in self._markets.items() if self._lease(market).ingests)
        return {"published": self.published, "refused": self.refused, "waitingMarkets": waiting}

    async def run(self) -> None:
        """Send what is due, for ever; what cannot be sent is tried again."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._due or self._beats_due:
                await self._send()

    async def beat(self) -> None:
        """Have the last numbers of the shards repeated every second, and what failed tried again."""
        while True:
            await self._clock.sleep(_BEAT_S)
            self._due |= self._later
            self._later.clear()
            self._beats_due |= {lease.shard for lease in self._leases.all if lease.may_publish()}
            self._wake.set()

    async def flush(self) -> None:
        """Send what is due, if that is possible now."""
        while self._due:
            await self._send()

    async def close(self) -> None:
        """Release the connections."""
        await self._caller.close()

    # ------------------------------------------------------------ inside

    def _lease(self, market: MarketKey) -> Lease:
        return self._leases.all[self._shard_of[market]]

    def _begin_feed(self, lease: Lease) -> None:
        if self._epochs.get(lease.shard) == lease.epoch:
            return
        self._epochs[lease.shard] = lease.epoch
        self._known_epochs.add(lease.epoch)
        for market, shard in self._shard_of.items():
            if shard == lease.shard:
                self._markets[market].begin_feed()

    async def _send(self) -> None:
        """Send a part of what is due."""
        chosen = list(self._due)[:_AT_ONCE]
        led = []
        for market in chosen:
            del self._due[market]
            if self._lease(market).may_publish():
                led.append(market)
            else:  # it stays numbered and waits for the lease
                self._markets[market].is_away = True
        try:
            word = "SPUBLISH" if (await self._servers.topology()).sharded else "PUBLISH"
        except Unavailable as error:
            self._servers.forget()
            self._beats_due.clear()
            self._failed(led, error)
            return
        batches = [self._call(market, word) for market in led]
        beats = self._beats(word)
        calls = [*(batch.call for batch in batches), *(call for _, call in beats)]
        answers = await self._caller.call_all(calls)
        self._sent(batches, answers[: len(led)])
        for (lease, _), answer in zip(beats, answers[len(led) :], strict=True):
            if isinstance(answer, Unavailable):
                self._failed([], answer)
            elif isinstance(answer, bytes):
                self._leases.fenced(lease, int(answer))
        if answers and not any(isinstance(answer, Unavailable) for answer in answers):
            self._well()

    def _call(self, market: MarketKey, word: str) -> "_Batch":
        outgoing, lease, names = self._markets[market], self._lease(market), self._names
        messages = outgoing.batch()
        seq = messages[-1].seq if messages else outgoing.sent
        newest = outgoing.newest(lease.epoch, seq)
        call = Call.of(
            PUBLISH,
            [names.fence(market), names.newest(market)],
            lease.token,
            seq,
            names.channel(market),
            word,
            _KEPT_S,
            b"" if newest is None else newest_text(newest),
            *(message_text(one.message, Position(lease.epoch, one.seq)) for one in messages),
        )
        return _Batch(market, lease.epoch, seq, len(messages), call)

    def _beats(self, word: str) -> list[tuple[Lease, Call]]:
        """A heartbeat for each shard whose turn it is, with what was sent up to now."""
        due, self._beats_due = self._beats_due, set()
        beats = []
        for shard in sorted(due):
            lease = self._leases.all[shard]
            if not lease.may_publish():
                continue
            seqs = {
                self._names.channel(market): self._markets[market].sent
                for market, of in self._shard_of.items()
                if of == shard
            }
            text = heartbeat_text(shard, lease.epoch, seqs)
            arguments = lease.token, self._names.heartbeat(shard), word, text
            beats.append((lease, Call.of(BEAT, [self._names.lease(shard)], *arguments)))
        return beats

    def _sent(self, batches: Sequence["_Batch"], answers: Sequence[Any]) -> None:
        """Note what became of batches."""
        for batch, answer in zip(batches, answers, strict=True):
            outgoing, lease = self._markets[batch.market], self._lease(batch.market)
            if isinstance(answer, Unavailable):
                self._failed([batch.market], answer)
            elif isinstance(answer, Exception):
                outgoing.is_away = True  # with the next message it is tried again
                if not self.refused:
                    logger.error("Redis refuses what is published of %s: %s", batch.market, answer)
                self.refused += 1
            elif answer is not None:
                self.refused += 1
                self._leases.fenced(lease, int(answer))
            elif lease.epoch == batch.epoch:
                self.published += batch.messages
                outgoing.sent_up_to(batch.seq)

    def _failed(self, markets: Sequence[MarketKey], error: Exception) -> None:
        for market in markets:
            self._markets[market].is_away = True
            self._later[market] = None
        if self.trouble is None:
            logger.warning("nothing can be published: %s; trying again", error)
        self.trouble = str(error)

    def _well(self) -> None:
        if self.trouble is not None:
            logger.info("publishing again")
        self.trouble = None


class _Batch(NamedTuple):
    market: MarketKey
    epoch: str
    seq: int
    messages: int
    call: Call
