"""The output of ingest: messages on the bus, rows for the store, and the store's log of past changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace

from candled.bus import Bus, FeedMetadata, HistoryChanged, MinuteChanged, Position, StateChanged
from candled.errors import StoreRejected, StoreUnavailable
from candled.exchange import Clock
from candled.model import MINUTE_MS, Candle, Decimals, MarketKey, Range, Symbol
from candled.store.interface import SEQ_UNPUBLISHED, KnownGap
from candled.tasks import Backoff, retry

from .market import Condition, MarketIngest, Outcome

_TICK_S = 0.5
_STATE_AGAIN_MS = 10_000  # new subscribers receive the state within this time


class PublisherStore(Protocol):
    """The store methods for publishing; implemented by `candled.store.ingest_store.IngestStore`."""

    def enqueue(self, market: MarketKey, candle: Candle, *, changes: Position | None = None) -> bool:
        """See `Writer.enqueue`."""

    async def flush(self) -> None:
        """See `Writer.flush`."""

    async def register_feed(self, markets: Sequence[MarketKey], epoch: str) -> None:
        """See `Store.register_feed`."""

    async def log_changes(self, market: MarketKey, epoch: str | None, changes: Sequence[tuple[int, Range]]) -> None:
        """See `Store.log_changes`."""

    async def save_coverage(
        self, market: MarketKey, since_ms: int | None, known_gaps: Sequence[KnownGap], within: Range | None
    ) -> None:
        """See `IngestStore.save_coverage`."""


@dataclass(slots=True)
class _Published:
    """The state of one market as published. Times are UTC epoch milliseconds."""

    #: The watermark of the newest message.
    watermark_ms: int | None
    #: The time since which history is complete, in the newest `HistoryChanged`.
    complete_from_ms: int | None
    #: The name of the feed; empty before the first message.
    epoch: str = ""
    #: The number of the newest message.
    seq: int = 0
    #: True once the store knows the feed.
    is_registered: bool = False
    #: The first message whose past changes are not known to be logged yet; None if all are.
    first_unlogged: int | None = None
    #: The last of these messages.
    last_unlogged: int = 0
    #: When forming minutes were last queued for the store, on the exchange's clock.
    checkpoint_ms: int = 0
    #: The state published last; None before the first.
    condition: Condition | None = None
    #: The forming minutes as queued at the last checkpoint.
    checkpointed: dict[int, Candle] = field(default_factory=dict)
    #: Since when the market is in the published state.
    state_since_ms: int = 0
    #: When the state was published last.
    state_published_ms: int = 0
    decimals: Decimals = Decimals()
    #: Ranges that ingest is repairing, not published yet.
    healing: list[Range] = field(default_factory=list)
    #: Ranges that are published, but logged without the number of their message.
    logging: list[Range] = field(default_factory=list)


class IngestPublisher:
    """The output of one exchange's ingest, to the bus and the store.

    `failed` is called for data that could not be stored and will not be retried. A change of a final minute is logged
    before it is stored, so the log is never behind the store.
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
        """Begin to publish a market whose newest stored minute is `newest_ms`."""
        symbol = market.key.symbol
        self._markets[symbol] = market
        settled_ms = None if newest_ms is None else newest_ms + MINUTE_MS
        self._published[symbol] = _Published(settled_ms, market.coverage.given_since_ms)
        self.publish_state(market, now_ms)

    def has_published(self, market: MarketIngest) -> bool:
        """Return whether the time from which the market's history is complete has been published."""
        return market.coverage.since_ms == self._published[market.key.symbol].complete_from_ms

    def publish_live(self, market: MarketIngest, candles: Sequence[Candle], healing: Range | None = None) -> None:
        """Publish minutes of the live edge, and queue the final ones for the store.

        `healing` is the range that `publish_repair` will publish next. Until then, it counts as missing for
        subscribers.
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
        """Queue every minute that is not final yet and that changed since the last checkpoint for the store."""
        forming = {candle.open_ms: candle for candle in market.forming()}
        for open_ms, candle in forming.items():
            if told.checkpointed.get(open_ms) is not candle:
                self._store.enqueue(market.key, candle)
        told.checkpointed = forming

    async def publish_repair(self, market: MarketIngest, outcome: Outcome) -> None:
        """Store past minutes and their coverage, then publish that they changed."""
        told = self._published[market.key.symbol]
        for candle in outcome.past:
            while not self._store.enqueue(market.key, candle, changes=Position(told.epoch, SEQ_UNPUBLISHED)):
                await self._clock.sleep(_TICK_S)
        since_ms = market.coverage.since_ms
        changes = [(coverage, coverage.take_changes()) for coverage in market.coverages]

        async def save() -> None:
            await self._store.flush()
            for coverage, changed in changes:
                known_gaps = [] if changed is None else coverage.known_gaps_within(*changed)
                await self._store.save_coverage(market.key, since_ms, known_gaps, changed)

        try:
            await retry(save, self._clock, Backoff(), on=StoreUnavailable)
        except StoreRejected as error:  # logged by the writer; rejected rows are missing, not wrong
            self._failed(market.key, str(error))
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
        """Return the ranges of the past that `publish_repair` is working on."""
        told = self._published[market.key.symbol]
        return *told.healing, *told.logging

    def publish_state(self, market: MarketIngest, now_ms: int) -> None:
        """Publish the market's state and decimals if they changed, and repeat them regularly for new subscribers."""
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
        """Return the time since which the market has been in the state published last."""
        return self._published[market.key.symbol].state_since_ms

    async def run(self) -> None:
        """Register feeds and log past changes until cancelled."""
        while True:
            await self._clock.sleep(_TICK_S)
            try:
                await self._register_feeds()
                await self._settle_log()
            except (StoreUnavailable, StoreRejected):  # logged by the writer; tried again
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
        """Flush the store, so that the changes queued before are logged and stored."""
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
        """Log the message number of a published change. Until then, resuming clients may receive it twice."""
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
    """Return the metadata for the market's next message. Minutes that only later messages contain count as missing."""
    facts = market.feed_metadata(_logged(told))
    if not told.healing and not following:
        return facts
    spans = [*told.healing, *(Range(candle.open_ms, candle.open_ms + MINUTE_MS) for candle in following)]
    for span in spans:
        if facts.watermark_ms is not None and span.start_ms < facts.watermark_ms:
            facts = replace(facts, gap=span.hull(facts.gap))
    return facts


def _logged(told: _Published) -> int:
    """Return the number of the message up to which the log has all past changes."""
    if not told.is_registered:
        return -1
    return told.seq if told.first_unlogged is None else told.first_unlogged - 1
