"""What a process has heard of the feeds of other processes, and where it must have missed something."""

from collections import Counter
from collections.abc import Iterable, Mapping

from candled.model import MarketKey

from .codec import Heartbeat, token_of
from .interface import Position

LATE_S = 3.0  # a feed without a heartbeat for so long is not known to go on
OUTSIDE_LATE_S = 90.0  # the same of minutes from other programs, which send none


class Reception:
    """Judges messages and heartbeats of the markets of all shards. Pure: `now` is an argument, in monotonic seconds.

    A market is read again (`take_missed`) when a number was left out, when another feed begins, and when a heartbeat
    tells of messages that did not come. What a heartbeat tells is given until the next one to arrive: channels of a
    cluster come over different connections.
    """

    def __init__(self, shards: Mapping[int, Iterable[MarketKey]], now: float) -> None:
        self._shards = {shard: _Shard(tuple(markets), now) for shard, markets in shards.items()}
        self._shard_of = {market: shard for shard, one in self._shards.items() for market in one.markets}
        self._at: dict[MarketKey, Position] = {}
        self._missed: dict[MarketKey, str] = {}
        self._reading: dict[MarketKey, str] = {}
        self.reasons: Counter[str] = Counter()

    def position(self, market: MarketKey) -> Position | None:
        """The newest message heard of a market's feed."""
        return self._at.get(market)

    def message(self, market: MarketKey, position: Position) -> bool:
        """Note a message; return whether it is news, which a repeated or overtaken one is not."""
        known = self._at.get(market)
        if known is None:  # what was published before the link was made is read anyway
            if position.seq > 1:
                self.miss([market], "hole")
        elif position.epoch == known.epoch:
            if position.seq <= known.seq:
                return False
            if position.seq > known.seq + 1:
                self.miss([market], "hole")
        elif self._is_overtaken(market, position.epoch, known.epoch):
            return False
        else:
            self.miss([market], "epoch")
        self._at[market] = position
        return True

    def heartbeat(self, beat: Heartbeat, channels: Mapping[str, MarketKey], now: float) -> bool:
        """Note a heartbeat; return whether the shard was late before it."""
        shard = self._shards.get(beat.shard)
        if shard is None or (token_of(beat.epoch) < token_of(shard.epoch) and not shard.is_late):
            return False
        was_late, shard.is_late = shard.is_late, False
        shard.heard_at = now
        if was_late:
            self.miss(shard.markets, "late heartbeat")
        told, shard.told = shard.told if shard.epoch == beat.epoch else {}, {}
        shard.epoch = beat.epoch
        for channel, seq in beat.seqs.items():
            market = channels.get(channel)
            if market is None:
                continue
            known = self._at.get(market)
            if known is None or known.epoch != beat.epoch:
                self.miss([market], "epoch")
                self._at[market] = Position(beat.epoch, seq)
            elif told.get(market, 0) > known.seq:
                self.miss([market], "heartbeat")
                self._at[market] = Position(beat.epoch, told[market])
            shard.told[market] = seq
        return was_late

    def read(self, market: MarketKey, position: Position) -> Position:
        """Note that the newest state was read as of `position`; return where the market's feed is heard up to now."""
        known = self._at.get(market)
        if known is None or _order(known) < _order(position):
            known = self._at[market] = position
        return known

    def outside(self, market: MarketKey, now: float) -> bool:
        """Note a minute from another program; return whether it counts, which it does where nobody leads."""
        shard = self._shards[self._shard_of[market]]
        if not shard.is_late:
            return False
        shard.outside[market] = now
        return True

    def own(self, market: MarketKey, position: Position) -> None:
        """Note what this process published itself."""
        self._at[market] = position

    def is_late(self, market: MarketKey) -> bool:
        """Whether nobody is known to lead a market."""
        return self._shards[self._shard_of[market]].is_late

    def late(self, now: float) -> list[MarketKey]:
        """The markets of which nothing is known from now on: their shard's heartbeat is late, and no program speaks."""
        fallen: list[MarketKey] = []
        for shard in self._shards.values():
            if not shard.is_late and now - shard.heard_at > LATE_S:
                shard.is_late = True
                fallen += shard.markets
            silent = [market for market, at in shard.outside.items() if now - at > OUTSIDE_LATE_S or not shard.is_late]
            for market in silent:
                del shard.outside[market]
            fallen += silent if shard.is_late else []
        return fallen

    def forget(self, shard: int, now: float) -> None:
        """The shard was this process's own, and is another's now: nothing is known of the feed that follows."""
        one = self._shards[shard]
        one.heard_at, one.is_late, one.epoch, one.told = now, False, "", {}
        self.miss(one.markets, "handover")

    def keep_alive(self, shard: int, now: float) -> None:
        """The shard is this process's own: its heartbeat is not listened for."""
        self._shards[shard].heard_at = now
        self._shards[shard].is_late = False

    def age_s(self, shard: int, now: float) -> float:
        """Seconds since the shard's last heartbeat."""
        return now - self._shards[shard].heard_at

    def miss(self, markets: Iterable[MarketKey], reason: str) -> None:
        """Have markets read again."""
        for market in markets:
            if market not in self._missed:
                self._missed[market] = reason
                self.reasons[reason] += 1

    def take_missed(self, most: int) -> list[MarketKey]:
        """Some of the markets that are to be read again; each is followed by `healed` or `not_healed`."""
        taken = list(self._missed)[:most]
        for market in taken:
            self._reading[market] = self._missed.pop(market)
        return taken

    def is_missed(self, market: MarketKey) -> bool:
        """Whether a market is to be read again, or is just being read."""
        return market in self._missed or market in self._reading

    def healed(self, market: MarketKey) -> None:
        """A market was read."""
        self._reading.pop(market, None)

    def not_healed(self, markets: Iterable[MarketKey]) -> None:
        """Markets could not be read: they are to be read again."""
        for market in markets:
            self._missed.setdefault(market, self._reading.pop(market))

    def _is_overtaken(self, market: MarketKey, epoch: str, known: str) -> bool:
        """Whether a feed is that of a leader who was replaced. Tokens grow, unless Redis lost them and its clock."""
        return token_of(epoch) < token_of(known) and not self._shards[self._shard_of[market]].is_late


def _order(position: Position) -> tuple[int, int]:
    return token_of(position.epoch), position.seq


class _Shard:
    def __init__(self, markets: tuple[MarketKey, ...], now: float) -> None:
        self.markets = markets
        self.heard_at = now
        self.is_late = False
        self.epoch = ""
        self.told: dict[MarketKey, int] = {}
        self.outside: dict[MarketKey, float] = {}
