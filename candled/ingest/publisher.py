"""The output of ingest: messages on the bus, rows for the store, and the store's log of past changes."""

import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from candled.bus import Bus, FeedMetadata, HistoryChanged, MinuteChanged, StateChanged
from candled.errors import StoreRejected, StoreUnavailable
from candled.exchange import Clock
from candled.model import MINUTE_MS, Candle, Decimals, MarketKey, Position, Range, Symbol
from candled.store.interface import SEQ_UNPUBLISHED
from candled.tasks import Backoff, repeat, retry

if TYPE_CHECKING:
    from candled.store.ingest_store import IngestStore

    from .market import MarketIngest, Outcome
    from .market_status import Condition


logger = logging.getLogger(__name__)

_TICK_S = 0.5
_STATE_AGAIN_MS = 10_000  # new subscribers receive the state within this time


@dataclass(slots=True)
class _Published:
    """The state of one market as published. Times are UTC epoch milliseconds."""

    #: The watermark of the newest message.
    watermark_ms: int | None
    #: The time since which history is complete, in the newest `HistoryChanged`.
    complete_from_ms: int | None
    #: The number of repairs that are being saved.
    saving: int = 0
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
    condition: "Condition | None" = None
    #: The forming minutes as queued at the last checkpoint.
    checkpointed: dict[int, Candle] = field(default_factory=dict)
    #: Since when the market is in the published state.
    state_since_ms: int = 0
    #: When the state was published last.
    state_published_ms: int = 0
    #: The decimals published last.
    decimals: Decimals = Decimals()
    #: Ranges that ingest is repairing, not published yet.
    repairing: list[Range] = field(default_factory=list)
    #: Ranges that are published, but logged without the number of their message.
    unnumbered: list[Range] = field(default_factory=list)


class IngestPublisher:
    """The output of one exchange's ingest, to the bus and the store.

    A change of a final minute is logged before it is stored, so the log is never behind the store.
    """

    def __init__(self, bus: Bus, store: "IngestStore", clock: Clock, *, checkpoint_ms: int) -> None:
        self._bus = bus
        self._store = store
        self._clock = clock
        self._checkpoint_ms = checkpoint_ms
        self._published: dict[Symbol, _Published] = {}
        self._markets: dict[Symbol, MarketIngest] = {}

    def open_market(self, market: "MarketIngest", newest_ms: int | None, now_ms: int) -> None:
        """Begin to publish a market whose newest stored minute is `newest_ms`."""
        symbol = market.key.symbol
        self._markets[symbol] = market
        watermark_ms = None if newest_ms is None else newest_ms + MINUTE_MS
        self._published[symbol] = _Published(watermark_ms, market.coverage.given_since_ms)
        self.publish_state(market, now_ms)

    def close_market(self, market: "MarketIngest") -> None:
        """Stop publishing a market. Unfinished work on it has no effect."""
        del self._markets[market.key.symbol], self._published[market.key.symbol]

    def is_open(self, market: "MarketIngest") -> bool:
        """Return whether a market is published; False after `close_market`."""
        return self._markets.get(market.key.symbol) is market

    def has_published(self, market: "MarketIngest") -> bool:
        """Return whether the time from which the market's history is complete has been published, or soon will be."""
        if not self.is_open(market):
            return True
        published = self._published[market.key.symbol]
        return published.saving > 0 or market.coverage.since_ms == published.complete_from_ms

    def publish_live(self, market: "MarketIngest", candles: Sequence[Candle], repairing: Range | None = None) -> None:
        """Publish minutes of the live edge, and queue the final ones for the store.

        `repairing` is the range that `publish_repair` will publish next. Until then, it counts as missing for
        subscribers.
        """
        if not self.is_open(market):
            return
        published = self._published[market.key.symbol]
        if repairing is not None:
            published.repairing.append(repairing)
        for candle, following in zip(candles, _following(market, candles), strict=True):
            is_past = published.watermark_ms is not None and candle.open_ms < published.watermark_ms
            metadata = _metadata(market, published, following)
            position = self._record_position(published, self._bus.publish(MinuteChanged(market.key, candle, metadata)))
            if metadata.watermark_ms is not None:
                published.watermark_ms = metadata.watermark_ms
            if is_past:
                published.first_unlogged = published.first_unlogged or position.seq
                published.last_unlogged = position.seq
            if candle.final:
                if not self._store.enqueue_row(market.key, candle, changes=position if is_past else None):
                    market.mark_missing(candle.open_ms)
            elif (
                candle.as_of_ms - published.checkpoint_ms >= self._checkpoint_ms
                or candle.open_ms not in published.checkpointed
            ):
                published.checkpoint_ms = candle.as_of_ms
                self._write_checkpoint(market, published)

    def _write_checkpoint(self, market: "MarketIngest", published: _Published) -> None:
        """Queue for the store every minute that is not final yet and changed since the last checkpoint."""
        forming = {candle.open_ms: candle for candle in market.minutes.forming}
        for open_ms, candle in forming.items():
            if published.checkpointed.get(open_ms) is not candle:
                self._store.enqueue_row(market.key, candle)
        published.checkpointed = forming

    def publish_repair(self, market: "MarketIngest", outcome: "Outcome") -> Coroutine[Any, Any, None]:
        """Store past minutes and their coverage, then publish that they changed.

        `has_published` counts the repair from the call on, not from the await on: the next event may come before.
        """
        published = self._published[market.key.symbol] if self.is_open(market) else None
        if published is not None:
            published.saving += 1
        return self._save_counted(market, outcome, published)

    async def _save_counted(self, market: "MarketIngest", outcome: "Outcome", published: _Published | None) -> None:
        if published is None:
            return
        try:
            if self.is_open(market):  # it may have been closed since
                await self._save_repair(market, outcome, published)
        finally:
            published.saving -= 1

    async def _save_repair(self, market: "MarketIngest", outcome: "Outcome", published: _Published) -> None:
        for candle in outcome.past:
            while not self._store.enqueue_row(market.key, candle, changes=Position(published.epoch, SEQ_UNPUBLISHED)):
                await self._clock.sleep(_TICK_S)
        since_ms = market.coverage.since_ms
        changes = [(coverage, coverage.take_changes()) for coverage in market.coverages]

        async def save() -> None:
            await self._store.flush_market(market.key)
            for coverage, changed in changes:
                known_gaps = [] if changed is None else coverage.known_gaps_within(*changed)
                await self._store.save_coverage(market.key, since_ms, known_gaps, changed)

        try:
            await retry(save, self._clock, Backoff(), on=StoreUnavailable)
        except StoreRejected as error:  # logged by the writer; rejected rows are missing, not wrong
            logger.error("%s: not stored: %s", market.key, error)
        repaired = outcome.repaired or (None if since_ms is None else Range(since_ms, since_ms + MINUTE_MS))
        if repaired is None or not self.is_open(market):
            return
        published.complete_from_ms = since_ms
        if outcome.past_range is not None:
            published.repairing.remove(outcome.past_range)
            published.unnumbered.append(outcome.past_range)
        message = HistoryChanged(market.key, repaired.start_ms, repaired.end_ms, since_ms, _metadata(market, published))
        position = self._record_position(published, self._bus.publish(message))
        for changed in (outcome.past_range, outcome.foreign):
            if changed is not None:
                await self._log_change(market.key, position, changed)
        if outcome.past_range is not None:
            published.unnumbered.remove(outcome.past_range)

    def unfinished_repairs(self, market: "MarketIngest") -> Sequence[Range]:
        """Return the ranges of the past that `publish_repair` is working on."""
        if not self.is_open(market):
            return ()
        published = self._published[market.key.symbol]
        return *published.repairing, *published.unnumbered

    def publish_state(self, market: "MarketIngest", now_ms: int) -> None:
        """Publish the market's state and decimals if they changed, and repeat them regularly for new subscribers."""
        published, now = self._published[market.key.symbol], market.status.condition(now_ms)
        is_same = now == published.condition and market.decimals == published.decimals
        if is_same and 0 <= now_ms - published.state_published_ms < _STATE_AGAIN_MS:
            return
        if published.condition is None or now.state != published.condition.state:
            published.state_since_ms = now_ms
        published.condition, published.state_published_ms, published.decimals = now, now_ms, market.decimals
        problem = "" if now.state in ("live", "quiet") else market.status.describe_problems(now) or ""
        message = StateChanged(market.key, now.state, published.state_since_ms, now.reason, problem, market.decimals)
        self._record_position(published, self._bus.publish(message))

    def state_since_ms(self, market: "MarketIngest") -> int:
        """Return the time since which the market has been in the state published last."""
        return self._published[market.key.symbol].state_since_ms

    async def run(self) -> None:
        """Register feeds and log past changes until cancelled."""
        await repeat(self._save_feeds, self._clock, _TICK_S)

    async def _save_feeds(self) -> None:
        with suppress(StoreUnavailable, StoreRejected):  # logged by the writer; tried again
            await self._register_feeds()
            await self._flush_log()

    async def _register_feeds(self) -> None:
        fresh: dict[str, list[Symbol]] = {}
        for symbol, published in self._published.items():
            if published.epoch and not published.is_registered:
                fresh.setdefault(published.epoch, []).append(symbol)
        for epoch, symbols in fresh.items():
            await self._store.register_feed([self._markets[symbol].key for symbol in symbols], epoch)
            for symbol in symbols:
                if (registered := self._published.get(symbol)) is not None:
                    registered.is_registered = registered.epoch == epoch

    async def _flush_log(self) -> None:
        """Flush the store, so that the changes queued before are logged and stored."""
        waiting = {
            symbol: published.last_unlogged
            for symbol, published in self._published.items()
            if published.first_unlogged is not None
        }
        if not waiting:
            return
        await self._store.flush()
        for symbol, seq in waiting.items():
            if (published := self._published.get(symbol)) is not None:
                published.first_unlogged = None if published.last_unlogged == seq else seq + 1

    async def _log_change(self, market: MarketKey, position: Position, changed: Range) -> None:
        """Log the message number of a published change. Until then, resuming clients may receive it twice."""
        with suppress(StoreUnavailable, StoreRejected):
            await self._store.log_changes(market, position.epoch, [(position.seq, changed)])

    def _record_position(self, published: _Published, position: Position) -> Position:
        if position.epoch != published.epoch:
            published.epoch, published.is_registered, published.first_unlogged = position.epoch, False, None
        published.seq = position.seq
        return position


def _metadata(market: "MarketIngest", published: _Published, following: Range | None = None) -> FeedMetadata:
    """Return the metadata for the market's next message. Minutes that only later messages contain count as missing."""
    metadata = market.feed_metadata(_logged_seq(published))
    gap = metadata.gap if following is None else following.hull(metadata.gap)
    for span in published.repairing:
        if metadata.watermark_ms is not None and span.start_ms < metadata.watermark_ms:
            gap = span.hull(gap)
    return metadata if gap == metadata.gap else replace(metadata, gap=gap)


def _following(market: "MarketIngest", candles: Sequence[Candle]) -> list[Range | None]:
    """Return, for each candle, the range that spans the later ones before the watermark; None if there are none."""
    watermark_ms, following = market.minutes.watermark_ms, None
    spans: list[Range | None] = []
    for candle in reversed(candles):
        spans.append(following)
        if watermark_ms is not None and candle.open_ms < watermark_ms:
            following = Range(candle.open_ms, candle.open_ms + MINUTE_MS).hull(following)
    return spans[::-1]


def _logged_seq(published: _Published) -> int:
    """Return the number of the message up to which the log has all past changes."""
    if not published.is_registered:
        return -1
    return published.seq if published.first_unlogged is None else published.first_unlogged - 1
