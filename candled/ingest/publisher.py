"""What leaves ingest: to the bus at once, to the store, and to the store's log of what changed in the past."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace

from candled.bus import Bus, FeedMetadata, HistoryChanged, MinuteChanged, Position, StateChanged
from candled.errors import StoreRejected, StoreUnavailable
from candled.exchange import Clock
from candled.model import MINUTE_MS, Candle, Decimals, MarketKey, Range, Symbol
from candled.store.interface import SEQ_UNPUBLISHED, KnownGap

from .backoff import Backoff
from .market import Condition, MarketIngest, Outcome

_TICK_S = 0.5
_STATE_AGAIN_MS = 10_000  # whoever listens from now on learns the state within this time


class PublisherStore(Protocol):
    """What leaves for the store; `candled.store.ingest_store.PublisherStore` takes it."""

    def enqueue(self, market: MarketKey, candle: Candle, *, changes: Position | None = None) -> bool: ...
    async def flush(self) -> None: ...
    async def register_feed(self, markets: Sequence[MarketKey], epoch: str) -> None: ...
    async def log_changes(self, market: MarketKey, epoch: str | None, changes: Sequence[tuple[int, Range]]) -> None: ...
    async def save_coverage(
        self, market: MarketKey, since_ms: int | None, holes: Sequence[KnownGap], within: Range | None
    ) -> None: ...


@dataclass(slots=True)
class _Published:
    """What was told of one market: times are UTC epoch milliseconds, `seq` the newest message's.

    Past changes from `first_unlogged` to `last_unlogged` are on their way to the log.
    """

    watermark_ms: int | None
    complete_from_ms: int | None
    epoch: str = ""
    seq: int = 0
    is_registered: bool = False
    first_unlogged: int | None = None
    last_unlogged: int = 0
    checkpoint_ms: int = 0
    condition: Condition | None = None
    checkpointed: dict[int, Candle] = field(default_factory=dict)
    state_since_ms: int = 0
    state_published_ms: int = 0
    decimals: Decimals = Decimals()
    healing: list[Range] = field(default_factory=list)  # known to ingest, but not told yet
    logging: list[Range] = field(default_factory=list)  # published, but in the log without the number of the message


class IngestPublisher:
    """The way out of one exchange's ingest.

    `failed` is told what could not be stored for good. A change of a minute that was final before is logged before
    it is stored, so that the log never lacks what the store has.
    """

    def __init__(
        self,
        bus: Bus,
        store: PublisherStore,
        clock: Clock,
        *,
        checkpoint_ms: int,
        failed: Callable[[MarketKey, str], None],
    ) -> None:
        self._bus = bus
        self._store = store
        self._clock = clock
        self._checkpoint_ms = checkpoint_ms
        self._failed = failed
        self._published: dict[Symbol, _Published] = {}
        self._markets: dict[Symbol, MarketIngest] = {}

    def open_markets(self, market: MarketIngest, newest_ms: int | None, now_ms: int) -> None:
        """Begin to publish a market, whose newest stored minute is `newest_ms`."""
        symbol = market.key.symbol
        self._markets[symbol] = market
        settled_ms = None if newest_ms is None else newest_ms + MINUTE_MS
        self._published[symbol] = _Published(settled_ms, market.coverage.given_since_ms)
        self.publish_state(market, now_ms)

    def has_published(self, market: MarketIngest) -> bool:
        """Whether it was told since when the market's history is complete."""
        return market.coverage.since_ms == self._published[market.key.symbol].complete_from_ms

    def publish_live(self, market: MarketIngest, candles: Sequence[Candle], healing: Range | None = None) -> None:
        """Tell of minutes of the live edge, and have the final ones stored.

        What `heal` is to tell of next, `healing`, is missing for those who listen until then.
        """
        told = self._published[market.key.symbol]
        if healing is not None:
            told.healing.append(healing)
        for number, candle in enumerate(candles, 1):
            is_past = told.watermark_ms is not None and candle.open_ms < told.watermark_ms
            facts = _facts(market, told, candles[number:])
            position = self._note_position(told, self._bus.publish(MinuteChanged(market.key, candle, facts)))
            if facts.watermark_ms is not None:
                told.watermark_ms = facts.watermark_ms
            if is_past:
                told.first_unlogged = told.first_unlogged or position.seq
                told.last_unlogged = position.seq
            if candle.final:
                if not self._store.enqueue(market.key, candle, changes=position if is_past else None):
                    market.mark_missing(candle.open_ms)
            elif candle.as_of_ms - told.checkpoint_ms >= self._checkpoint_ms or candle.open_ms not in told.checkpointed:
                told.checkpoint_ms = candle.as_of_ms
                self._checkpoint(market, told)

    def _checkpoint(self, market: MarketIngest, told: _Published) -> None:
        """Have every minute stored that is not final yet, as far as it changed since the last time."""
        forming = {candle.open_ms: candle for candle in market.forming()}
        for open_ms, candle in forming.items():
            if told.checkpointed.get(open_ms) is not candle:
                self._store.enqueue(market.key, candle)
        told.checkpointed = forming

    async def publish_repair(self, market: MarketIngest, outcome: Outcome) -> None:
        """Store what belongs to the past and what is known of it, then tell that it changed."""
        told = self._published[market.key.symbol]
        for candle in outcome.past:
            while not self._store.enqueue(market.key, candle, changes=Position(told.epoch, SEQ_UNPUBLISHED)):
                await self._clock.sleep(_TICK_S)
        since_ms, backoff = market.coverage.since_ms, Backoff()
        changes = [(coverage, coverage.take_changes()) for coverage in market.coverages]
        while True:
            try:
                await self._store.flush()
                for coverage, changed in changes:
                    holes = [] if changed is None else coverage.holes_within(*changed)
                    await self._store.save_coverage(market.key, since_ms, holes, changed)
                break
            except StoreUnavailable:
                await self._clock.sleep(backoff.on_failure())
            except StoreRejected as error:  # named by the writer too; what was refused is missing, not wrong
                self._failed(market.key, str(error))
                break
        healed = outcome.healed or (None if since_ms is None else Range(since_ms, since_ms + MINUTE_MS))
        if healed is None:
            return
        told.complete_from_ms = since_ms
        if outcome.past_range is not None:
            told.healing.remove(outcome.past_range)
            told.logging.append(outcome.past_range)
        message = HistoryChanged(market.key, healed.start_ms, healed.end_ms, since_ms, _facts(market, told))
        position = self._note_position(told, self._bus.publish(message))
        for changed in (outcome.past_range, outcome.foreign):
            if changed is not None:
                await self._log_change(market.key, position, changed)
        if outcome.past_range is not None:
            told.logging.remove(outcome.past_range)

    def healing(self, market: MarketIngest) -> Sequence[Range]:
        """Return the stretches of the past that `heal` is at work on."""
        told = self._published[market.key.symbol]
        return *told.healing, *told.logging

    def publish_state(self, market: MarketIngest, now_ms: int) -> None:
        """Tell the market's state and decimals when they changed, and now and then for those who listen since."""
        told, now = self._published[market.key.symbol], market.condition(now_ms)
        is_same = now == told.condition and market.decimals == told.decimals
        if is_same and 0 <= now_ms - told.state_published_ms < _STATE_AGAIN_MS:
            return
        if told.condition is None or now.state != told.condition.state:
            told.state_since_ms = now_ms
        told.condition, told.state_published_ms, told.decimals = now, now_ms, market.decimals
        trouble = "" if now.state in ("live", "quiet") else market.trouble_text or ""
        message = StateChanged(market.key, now.state, told.state_since_ms, now.reason, trouble, market.decimals)
        self._note_position(told, self._bus.publish(message))

    def state_since_ms(self, market: MarketIngest) -> int:
        """Since when the market is in the state that was told last."""
        return self._published[market.key.symbol].state_since_ms

    async def run(self) -> None:
        """Have feeds registered and past changes logged, for ever."""
        while True:
            await self._clock.sleep(_TICK_S)
            try:
                await self._register_feeds()
                await self._settle_log()
            except (StoreUnavailable, StoreRejected):  # named by the writer; tried again
                continue

    async def _register_feeds(self) -> None:
        fresh: dict[str, list[Symbol]] = {}
        for symbol, told in self._published.items():
            if told.epoch and not told.is_registered:
                fresh.setdefault(told.epoch, []).append(symbol)
        for epoch, symbols in fresh.items():
            await self._store.register_feed([self._markets[symbol].key for symbol in symbols], epoch)
            for symbol in symbols:
                self._published[symbol].is_registered = self._published[symbol].epoch == epoch

    async def _settle_log(self) -> None:
        """What was put to the store before a flush ended well is logged and stored."""
        waiting = {
            symbol: told.last_unlogged for symbol, told in self._published.items() if told.first_unlogged is not None
        }
        if not waiting:
            return
        await self._store.flush()
        for symbol, seq in waiting.items():
            told = self._published[symbol]
            told.first_unlogged = None if told.last_unlogged == seq else seq + 1

    async def _log_change(self, market: MarketKey, position: Position, changed: Range) -> None:
        """Say in the log when a change was told. Until then whoever asks is told of it once too often."""
        try:
            await self._store.log_changes(market, position.epoch, [(position.seq, changed)])
        except (StoreUnavailable, StoreRejected):
            return

    def _note_position(self, told: _Published, position: Position) -> Position:
        if position.epoch != told.epoch:
            told.epoch, told.is_registered, told.first_unlogged = position.epoch, False, None
        told.seq = position.seq
        return position


def _facts(market: MarketIngest, told: _Published, following: Sequence[Candle] = ()) -> FeedMetadata:
    """What can be said of the market with its next message: minutes that only messages after it tell of are missing."""
    facts = market.feed_metadata(_logged(told))
    if not told.healing and not following:
        return facts
    spans = [*told.healing, *(Range(candle.open_ms, candle.open_ms + MINUTE_MS) for candle in following)]
    for span in spans:
        if facts.watermark_ms is not None and span.start_ms < facts.watermark_ms:
            facts = replace(facts, gap=span.hull(facts.gap))
    return facts


def _logged(told: _Published) -> int:
    """Up to which message the log has all past changes."""
    if not told.is_registered:
        return -1
    return told.seq if told.first_unlogged is None else told.first_unlogged - 1
