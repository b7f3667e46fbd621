"""Tracks the feeds of other processes: received and missed messages, and doubts about the state of markets."""

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from candled.bus.codec import Heartbeat, epoch_of, token_of
from candled.model import MarketKey, Position, StateReason

LATE_S = 3.0  # a feed without a heartbeat for this long may have ended
EXTERNAL_LATE_S = 90.0  # the same for minutes of other programs, which send no heartbeats
_UNREADABLE_S = 3.0  # a market that cannot be read again for this long is in doubt
_TWICE = 2  # a single heartbeat may be late or forged
_READ_EVERY = 32  # heartbeats between two reads of a market whose messages do not arrive


class StaleCause(NamedTuple):
    """The reason why a market's last published state may not be true any more."""

    reason: StateReason
    problem: str


NO_HEARTBEAT = StaleCause("leader_silent", "no heartbeat of a process that reads the exchange arrives over Redis")
NOT_ARRIVING = StaleCause("messages_lost", "published messages do not arrive: Redis rejects or loses them")
NOT_LISTED = StaleCause("leader_differs", "exchanges and ingest.shards have to be the same in all processes")


class MessageOrder(Enum):
    """The decision about a message. NEXT: deliver it. REPEATED: ignore it. GAP: read its market first."""

    NEXT = "next"
    REPEATED = "repeated"
    GAP = "gap"


class FeedTracker:
    """The received state of the feeds of all shards. Pure: `now` is an argument, in monotonic seconds.

    A market is read again (`take_missed`) when a number is skipped, when another feed begins, and when a heartbeat
    reports messages that did not arrive. Reported messages have until the next heartbeat to arrive, because channels of
    a cluster use different connections.

    A single message moves the position of a feed by one at most. A jump counts only if the market's fence confirms it
    (`confirm_jump`): only the leader writes that key. In the end, the leader's heartbeats decide. If two in a row
    announce less than the known position, the known position was wrong.
    """

    def __init__(self, shards: Mapping[int, Iterable[MarketKey]], now: float) -> None:
        self._shards = {shard: _Shard(dict.fromkeys(markets), now) for shard, markets in shards.items()}
        self._shard_of = {market: shard for shard, one in self._shards.items() for market in one.markets}
        self._positions: dict[MarketKey, Position] = {}
        self._undelivered: dict[MarketKey, _Undelivered] = {}
        self._missed: dict[MarketKey, str] = {}
        self._being_read: dict[MarketKey, str] = {}
        self._unreadable: dict[MarketKey, tuple[float, str]] = {}  # since when it cannot be read, and why
        self.missed_counts: Counter[str] = Counter()

    def add_market(self, market: MarketKey, shard: int) -> None:
        """Track another market of a shard."""
        self._shards[shard].markets[market] = None
        self._shard_of[market] = shard

    def remove_market(self, market: MarketKey) -> None:
        """Forget a market."""
        shard = self._shards[self._shard_of.pop(market)]
        shard.remove_market(market)
        self._positions.pop(market, None)
        self._undelivered.pop(market, None)
        self._missed.pop(market, None)
        self._being_read.pop(market, None)
        self._unreadable.pop(market, None)

    def position_of(self, market: MarketKey) -> Position | None:
        """Return the position of the newest message received of a market's feed."""
        return self._positions.get(market)

    def set_position(self, market: MarketKey, position: Position) -> None:
        """Record the newest message of a market's feed that was received, or that this process published itself."""
        self._positions[market] = position
        undelivered = self._undelivered.get(market)
        if undelivered is not None and order_of(position) >= order_of(undelivered.announced):
            del self._undelivered[market]

    # ------------------------------------------------------------ messages

    def on_message(self, market: MarketKey, position: Position) -> MessageOrder:
        """Return the decision about a message, and record the message if it is the next one.

        If it leaves a gap, its market is read first, and the message is recorded only after that.
        """
        known = self._positions.get(market)
        if known is None:  # messages from before the connection are read anyway
            reason = "hole" if position.seq > 1 else ""
        elif position.epoch == known.epoch:
            if position.seq <= known.seq:
                return MessageOrder.REPEATED
            reason = "hole" if position.seq > known.seq + 1 else ""
        elif self._is_overtaken(market, position.epoch, known.epoch):
            return MessageOrder.REPEATED
        else:
            reason = "epoch"
        if reason:
            self.mark_missed([market], reason)
            return MessageOrder.GAP
        self.set_position(market, position)
        return MessageOrder.NEXT

    def confirm_jump(self, market: MarketKey, position: Position, fence: tuple[int, int] | None) -> bool:
        """Record a message that left a gap, if it was published before its market's `fence` was read.

        If Redis has lost the fence, record the message too: the next heartbeats decide.

        Returns:
            Whether the message was recorded.
        """
        if fence is not None and order_of(position) > fence:
            return False
        self.set_position(market, position)
        return True

    def on_newest_read(
        self, market: MarketKey, newest: Position | None, fence: tuple[int, int] | None = None
    ) -> Position | None:
        """Record that a market was read: its newest state as of `newest`, and the token and number of its fence.

        Returns:
            The position up to which the market's feed is now received.
        """
        known = self._positions.get(market)
        if known is not None and known.seq == 0 and fence is not None and token_of(known.epoch) > fence[0]:
            known = None  # a heartbeat announced a feed that has published nothing
        if newest is None and fence is not None:
            newest = Position(self._epoch_named(market, fence[0]), fence[1])
        if newest is not None and (known is None or order_of(known) < order_of(newest)):
            known = newest
        if known is not None:
            self.set_position(market, known)
        return known

    def on_external_minute(self, market: MarketKey, now: float) -> bool:
        """Record a minute from another program; return whether it counts: it does if the market has no leader."""
        shard = self._shards[self._shard_of[market]]
        if not shard.is_late:
            return False
        shard.external_at[market] = now
        return True

    # ------------------------------------------------------------ heartbeats

    def on_heartbeat(self, beat: Heartbeat, channels: Mapping[str, MarketKey], now: float) -> bool:
        """Record a heartbeat; return whether it counts. The heartbeat of a replaced leader does not."""
        shard = self._shards.get(beat.shard)
        if shard is None or not shard.accepts_epoch(beat.epoch):
            return False
        shard.heartbeat_at = now
        if shard.is_late:
            shard.is_late = False
            self.mark_missed(shard.markets, "late heartbeat")
        replaced = shard.epoch if token_of(shard.epoch) > token_of(beat.epoch) else ""
        announced = shard.announced if shard.epoch == beat.epoch else {}
        shard.announced = {}
        shard.epoch = beat.epoch
        shard.beats = [*shard.beats[-1:], (now, beat.as_of_ms)]
        for channel, seq in beat.seqs.items():
            market = channels.get(channel)
            if market is None or self._shard_of.get(market) != beat.shard:
                continue
            known = self._positions.get(market)
            if known is not None and replaced and known.epoch == replaced:  # that feed does not exist
                known = self._positions[market] = Position(beat.epoch, 0)
                shard.known_positions.pop(market, None)
                self.mark_missed([market], "reset")
            shard.announced[market] = seq
            if known is not None and known == (beat.epoch, seq) and market not in self._undelivered:
                shard.lower_counts.pop(market, None)  # the usual case
            else:
                known = self._compare(shard, market, Position(beat.epoch, seq), announced.get(market))
            shard.known_positions[market] = known
        unlisted = [market for market in shard.markets if market not in shard.announced]
        shard.unlisted_counts = {market: shard.unlisted_counts.get(market, 0) + 1 for market in unlisted}
        return True

    def leader_ms(self, shard: int, now: float) -> int:
        """Return the exchange's time now, as far as the last two heartbeats confirm it; 0 before the second one."""
        beats = self._shards[shard].beats
        return min(as_of_ms + round((now - at) * 1000) for at, as_of_ms in beats) if len(beats) == _TWICE else 0

    def _compare(self, shard: "_Shard", market: MarketKey, announced: Position, before: int | None) -> Position:
        """Compare the message number announced by the leader with the received ones.

        `before` is the number in the previous heartbeat.

        Returns:
            The position up to which the feed is received.
        """
        known = self._positions.get(market)
        if known is None or token_of(known.epoch) < token_of(announced.epoch):
            self.mark_missed([market], "epoch")
            known = Position(announced.epoch, 0)
        elif market in shard.known_positions and order_of(announced) < order_of(shard.known_positions[market]):
            shard.lower_counts[market] = shard.lower_counts.get(market, 0) + 1
            if shard.lower_counts[market] == _TWICE:
                del shard.lower_counts[market]  # the next two count again
                self.mark_missed([market], "reset")
                known = Position(announced.epoch, 0)
        else:
            shard.lower_counts.pop(market, None)
        self.set_position(market, known)
        # The announced number never decreases, so of two different heartbeats the smaller number is certainly true.
        least = 0 if before is None or known.epoch != announced.epoch else min(before, announced.seq)
        if least > known.seq:
            undelivered = self._undelivered.setdefault(market, _Undelivered())
            undelivered.announced = Position(announced.epoch, least)
            if undelivered.heartbeats.bit_count() < 2 or undelivered.heartbeats % _READ_EVERY == 0:
                self.mark_missed([market], "heartbeat")
            undelivered.heartbeats += 1
        else:
            self._undelivered.pop(market, None)
        return known

    # ------------------------------------------------------------ doubts

    def update_lateness(self, now: float) -> None:
        """Find the shards whose heartbeats are late, and forget the markets that other programs stopped publishing."""
        for shard in self._shards.values():
            shard.is_late = shard.is_late or now - shard.heartbeat_at > LATE_S
            is_late, times = shard.is_late, shard.external_at.items()
            shard.external_at = {market: at for market, at in times if is_late and now - at <= EXTERNAL_LATE_S}

    def stale_markets(self) -> set[MarketKey]:
        """Return the markets whose last published state may be outdated."""
        found = {*self._unreadable, *self._undelivered}
        for shard in self._shards.values():
            found.update(shard.markets if shard.is_late else shard.unlisted_counts)
        return found

    def find_stale_cause(self, market: MarketKey, now: float) -> StaleCause | None:
        """Return why a market's last published state may not be true any more, or None."""
        shard = self._shards[self._shard_of[market]]
        if shard.is_late:
            return None if market in shard.external_at else NO_HEARTBEAT
        since, reason = self._unreadable.get(market, (now, ""))
        if now - since >= _UNREADABLE_S:
            return StaleCause("bus_unreadable", reason)
        undelivered = self._undelivered.get(market)
        if undelivered is not None and undelivered.heartbeats >= _TWICE:
            return NOT_ARRIVING
        return NOT_LISTED if shard.unlisted_counts.get(market, 0) >= _TWICE else None

    def expect_heartbeats(self, now: float) -> None:
        """Begin to wait for heartbeats."""
        for shard in self._shards:
            self.keep_alive(shard, now)

    def on_shard_lost(self, shard: int, now: float) -> None:
        """Reset a shard that this process does not lead any more: nothing is known about its new feed yet."""
        fresh = self._shards[shard] = _Shard(self._shards[shard].markets, now)
        for market in fresh.markets:
            self._undelivered.pop(market, None)
        self.mark_missed(fresh.markets, "handover")

    def keep_alive(self, shard: int, now: float) -> None:
        """Record that this process leads a shard, so its heartbeat cannot be late."""
        self._shards[shard].heartbeat_at = now
        self._shards[shard].is_late = False

    def heartbeat_ages(self, now: float) -> Iterable[tuple[int, float]]:
        """Return the seconds since the last heartbeat of each shard."""
        return [(shard, now - one.heartbeat_at) for shard, one in self._shards.items()]

    # ------------------------------------------------------------ reading again

    def mark_missed(self, markets: Iterable[MarketKey], reason: str) -> None:
        """Mark markets with missed messages, so that they are read again."""
        for market in markets:
            if market not in self._missed:
                self._missed[market] = reason
                self.missed_counts[reason] += 1

    def take_missed(self, most: int) -> list[MarketKey]:
        """Return some markets to read again. Call `mark_repaired` or `mark_not_repaired` for each afterwards."""
        taken = list(self._missed)[:most]
        for market in taken:
            self._being_read[market] = self._missed.pop(market)
        return taken

    def is_missed(self, market: MarketKey) -> bool:
        """Return whether a market is to be read again, or is being read."""
        return market in self._missed or market in self._being_read

    def is_reading(self, market: MarketKey) -> bool:
        """Return whether a market is being read."""
        return market in self._being_read

    def mark_repaired(self, market: MarketKey) -> None:
        """Record that a market was read."""
        self._being_read.pop(market, None)
        self._unreadable.pop(market, None)

    def mark_not_repaired(self, markets: Iterable[MarketKey], reason: str, now: float) -> None:
        """Record that markets could not be read; they are to be read again."""
        for market in markets:
            if market not in self._shard_of:  # removed meanwhile
                continue
            self._missed.setdefault(market, self._being_read.pop(market, "connected"))
            since, _ = self._unreadable.get(market, (now, ""))
            self._unreadable[market] = since, reason

    # ------------------------------------------------------------ inside

    def _is_overtaken(self, market: MarketKey, epoch: str, known: str) -> bool:
        """Return whether a feed is that of a replaced leader: one with a lower token, while heartbeats arrive.

        Without heartbeats, Redis may have lost its tokens, and a new leader begins with a lower one.
        """
        return token_of(epoch) < token_of(known) and not self._shards[self._shard_of[market]].is_late

    def _epoch_named(self, market: MarketKey, token: int) -> str:
        """Return the name of the feed with a token."""
        known, shard = self._positions.get(market), self._shard_of[market]
        return known.epoch if known is not None and token_of(known.epoch) == token else epoch_of(shard, token)


def order_of(position: Position) -> tuple[int, int]:
    """Return a sort key: the later of two positions has the greater key."""
    return token_of(position.epoch), position.seq


class _Undelivered:
    """A position that the leader announced but that was not received, and the number of heartbeats since."""

    def __init__(self) -> None:
        self.announced = Position("", 0)
        self.heartbeats = 0


class _Shard:
    def __init__(self, markets: dict[MarketKey, None], now: float) -> None:
        self.markets = markets
        self.heartbeat_at = now
        self.is_late = False
        self.epoch = ""
        self.beats: list[tuple[float, int]] = []  # when the last two arrived, and the exchange's time in them
        self.announced: dict[MarketKey, int] = {}  # the number in the last heartbeat
        self.known_positions: dict[MarketKey, Position] = {}  # the known position when the last heartbeat arrived
        self.lower_counts: dict[MarketKey, int] = {}  # the heartbeats in a row that were below the known position
        self.unlisted_counts: dict[MarketKey, int] = {}  # the heartbeats in a row that did not contain the market
        self.external_at: dict[MarketKey, float] = {}
        self._replaced = ""  # the feed of the last heartbeat that did not count

    def remove_market(self, market: MarketKey) -> None:
        """Forget a market."""
        self.markets.pop(market, None)
        self.announced.pop(market, None)
        self.known_positions.pop(market, None)
        self.lower_counts.pop(market, None)
        self.unlisted_counts.pop(market, None)
        self.external_at.pop(market, None)

    def accepts_epoch(self, epoch: str) -> bool:
        """Return whether a feed's heartbeat counts. One with a lower token counts only if it comes twice in a row."""
        if token_of(epoch) >= token_of(self.epoch) or self.is_late or epoch == self._replaced:
            self._replaced = ""
            return True
        self._replaced = epoch
        return False
