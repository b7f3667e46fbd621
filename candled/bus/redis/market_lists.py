"""The lists of markets that processes share: the leader of an exchange publishes its list, and all others follow it."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping

from candled.bus.codec import (
    MAX_LIST_BYTES,
    MAX_LISTED,
    BadMessage,
    MarketList,
    decode_market_list,
    decode_notice,
    encode_market_list,
    encode_notice,
    excerpt,
)
from candled.bus.shards import shard_of_exchange
from candled.errors import Unavailable
from candled.model import Market, MarketKey, Position, Symbol
from candled.tasks import TaskSet
from candled.universe import MarketsChanged, Universe, small_steps

from .connections import Call, Caller, reason_of
from .context import RedisContext
from .leases import Lease, Leases, LeaseState
from .lua import PUBLISH

logger = logging.getLogger(__name__)

_REPEAT_S = 10.0  # the leader publishes its list this often, because Redis may lose the list or a notice
_RETRY_S = 1.0
_TURN_S = 0.1  # between two checks for lists to read or to publish
_KEY_TTL_S = 7 * 86_400
_LOAD_S = 3.0


class MarketLists:
    """Shares the lists of markets through Redis, so that all processes have the same universe.

    The leader of `shard_of_exchange` chooses an exchange's markets, and publishes them with their facts whenever its
    universe changes. Every other process applies the list to its universe. `chosen` are the exchanges whose markets are
    chosen by patterns. Their lists are not published before the first choice. `leases` is None in a process that only
    serves.
    """

    def __init__(
        self, context: RedisContext, universe: Universe, leases: Leases | None, chosen: Collection[str]
    ) -> None:
        self._servers = context.servers
        self._caller = Caller(context.servers)
        self._names = names = context.names
        self._clock = context.clock
        self._universe = universe
        self._leases = leases
        self._shards = {exchange: shard_of_exchange(exchange, context.shards) for exchange in universe.exchanges}
        #: The exchanges by the channels of their notices.
        self.channels: Mapping[str, str] = {names.markets_channel(exchange): exchange for exchange in self._shards}
        #: The position of the list that was applied or published last.
        self._positions: dict[str, Position] = {}
        #: The contents of the lists that this process has published.
        self._published: dict[str, Mapping[Symbol, Market | None]] = {}
        #: The exchanges whose markets are known: chosen from the exchange's list, or read from Redis.
        self._known = {exchange for exchange in self._shards if exchange not in chosen}
        self._to_publish: dict[str, None] = {}
        self._to_read: dict[str, None] = {}
        self._is_applying = False
        self._tasks = TaskSet()
        self._publish_failures = context.failures.record_of("sharing market lists")  # its parts are exchanges
        self._read_failures = context.failures.record_of("reading market lists")
        self._follow_failures = context.failures.record_of("following market lists")
        universe.add_listener(self._on_markets_changed)
        if leases is not None:
            leases.add_listener(self._on_lease_change)

    async def load(self) -> None:
        """Read all lists. Call it before `start`, so that a process begins with the markets of the others."""
        try:
            async with asyncio.timeout(_LOAD_S):
                await self._read_lists(list(self._shards))
        except TimeoutError:
            logger.warning("Redis: the lists of markets cannot be read yet: no answer within %g s", _LOAD_S)

    def start(self) -> None:
        """Begin to publish and to follow the lists."""
        if self._leases is None:
            for exchange in self._shards.keys() - self._known:
                self._follow_failures.record_failure(f"no process has published the list of {exchange}", exchange)
        self._tasks.start_periodic(self._process_due, self._clock, _TURN_S)
        self._tasks.start_periodic(self._repeat, self._clock, _REPEAT_S)
        self._tasks.start_periodic(self._retry_failed, self._clock, _RETRY_S)

    async def stop(self) -> None:
        """Stop, and close the connections."""
        await self._tasks.cancel()
        await self._caller.close()

    # ------------------------------------------------------------ from the bus

    def on_notice(self, exchange: str, data: bytes) -> None:
        """Handle a notice: read the list, unless this process has it.

        Raises:
            BadMessage: the notice does not have the documented form.
        """
        notice = decode_notice(data)
        if notice.exchange != exchange:
            raise BadMessage(f"belongs to another exchange, {notice.exchange[:64]}")
        if notice.position != self._positions.get(exchange):
            self.read_later([exchange])

    def read_later(self, exchanges: Iterable[str]) -> None:
        """Read lists whose notices may have been missed, unless this process chooses the markets."""
        self._to_read |= dict.fromkeys(exchange for exchange in exchanges if not self._is_led_here(exchange))

    # ------------------------------------------------------------ inside

    def _on_markets_changed(self, change: MarketsChanged) -> None:
        if not self._is_applying:
            self._known.add(change.exchange)
            self._publish_later([change.exchange])

    def _on_lease_change(self, lease: Lease) -> None:
        exchanges = [exchange for exchange, shard in self._shards.items() if shard == lease.shard]
        if not lease.must_ingest:
            self._publish_failures.record_success(*exchanges)
            self.read_later(exchanges)
            return
        self._read_failures.record_success(*exchanges)  # they need not be read now
        if lease.state is LeaseState.LEADER:
            self._publish_later(exchanges)

    def _repeat(self) -> None:
        self._publish_later(self._shards)

    def _retry_failed(self) -> None:
        self.read_later(map(str, self._read_failures.parts))
        self._publish_later(map(str, self._publish_failures.parts))

    def _publish_later(self, exchanges: Iterable[str]) -> None:
        due = [exchange for exchange in exchanges if exchange in self._known and self._is_led_here(exchange)]
        self._to_publish |= dict.fromkeys(due)

    def _lease_of(self, exchange: str) -> Lease | None:
        return None if self._leases is None else self._leases.all[self._shards[exchange]]

    def _is_led_here(self, exchange: str) -> bool:
        """Return whether this process chooses an exchange's markets, as the leader or because the leader is unknown."""
        lease = self._lease_of(exchange)
        return lease is not None and lease.must_ingest

    async def _process_due(self) -> None:
        to_read, self._to_read = list(self._to_read), {}
        if to_read:
            await self._read_lists(to_read)
        to_publish, self._to_publish = self._to_publish, {}
        for exchange in to_publish:
            await self._publish_list(exchange)

    # ------------------------------------------------------------ publishing

    async def _publish_list(self, exchange: str) -> None:
        lease = self._lease_of(exchange)
        if lease is None or not lease.may_publish():
            return
        symbols = self._universe.symbols(exchange)
        if len(symbols) > MAX_LISTED:
            self._publish_failures.record_failure(f"{exchange} has more than {MAX_LISTED} markets", exchange)
            return
        markets = {symbol: self._universe.facts(MarketKey(exchange, symbol)) for symbol in symbols}
        position = self._next_position(exchange, lease.epoch, markets)
        keys = [self._names.markets_fence_key(exchange), self._names.markets_key(exchange)]
        number = position.seq, 1  # 1, because a higher number of the same token is another program's
        target = self._names.markets_channel(exchange), await self._publish_word(), _KEY_TTL_S
        texts = encode_market_list(exchange, position, markets), encode_notice(exchange, position)
        call = Call.of_script(PUBLISH, keys, lease.token, *number, *target, *texts)
        (answer,) = await self._caller.call_all([call])
        if isinstance(answer, Exception):
            self._publish_failures.record_failure(reason_of(answer), exchange)
            return
        self._publish_failures.record_success(exchange)
        if answer is not None and self._leases is not None:
            self._leases.on_fenced(lease, int(answer))
        elif lease.epoch == position.epoch:
            self._positions[exchange], self._published[exchange] = position, markets

    def _next_position(self, exchange: str, epoch: str, markets: Mapping[Symbol, Market | None]) -> Position:
        """Return the position of a list: that of the last one if nothing has changed."""
        last = self._positions.get(exchange)
        if last is None or last.epoch != epoch:
            return Position(epoch, 1)
        is_same = self._published.get(exchange) == markets and list(self._published[exchange]) == list(markets)
        return last if is_same else Position(epoch, last.seq + 1)

    async def _publish_word(self) -> str:
        try:
            return "SPUBLISH" if (await self._servers.find_topology()).sharded else "PUBLISH"
        except Unavailable:
            return "PUBLISH"  # the call fails for the same reason

    # ------------------------------------------------------------ following

    async def _read_lists(self, exchanges: Collection[str]) -> None:
        keys = [self._names.markets_key(exchange) for exchange in exchanges]
        answers = await self._caller.call_all([Call(key, ("GETRANGE", key, 0, MAX_LIST_BYTES)) for key in keys])
        for exchange, answer in zip(exchanges, answers, strict=True):
            if isinstance(answer, Exception):
                if not self._is_led_here(exchange):
                    self._read_failures.record_failure(reason_of(answer), exchange)
                continue
            self._read_failures.record_success(exchange)
            if answer and not self._is_led_here(exchange):
                await self._apply_data(exchange, answer)

    async def _apply_data(self, exchange: str, data: bytes) -> None:
        try:
            found = decode_market_list(exchange, data)
        except BadMessage as error:
            logger.warning("Redis: the list of markets of %s cannot be read: %s: %s", exchange, error, excerpt(data))
            return
        if found.position != self._positions.get(exchange):
            await self._apply_list(exchange, found)

    async def _apply_list(self, exchange: str, found: MarketList) -> None:
        """Apply a list to the universe, in steps so small that clients of other markets do not wait."""
        facts = {symbol: market for symbol, market in found.markets.items() if market is not None}
        for step in small_steps(self._universe.symbols(exchange), tuple(found.markets)):
            self._is_applying = True
            try:
                self._universe.set_markets(exchange, step, facts)
            finally:
                self._is_applying = False
            await self._clock.sleep(0)
            if self._is_led_here(exchange):  # now this process chooses, beginning with the markets so far
                break
        self._positions[exchange] = found.position
        self._known.add(exchange)
        self._follow_failures.record_success(exchange)
