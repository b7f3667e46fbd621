"""Keeps the bars of all markets up to date: from the bus as minutes change, from the store when the past changes."""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

from msgspec.structs import replace

from candled.bus import FeedMetadata, HistoryChanged, Message, MessagesLost, MinuteChanged, StateChanged
from candled.exchange import Clock
from candled.model import (
    MINUTE,
    MINUTE_MS,
    WEEK,
    Candle,
    Decimals,
    FeedState,
    Interval,
    MarketKey,
    Position,
    RangeSet,
    StateCounts,
    iso_ms,
)
from candled.store.history import HistoryReader
from candled.tasks import in_parallel
from candled.universe import MarketsChanged

from .market_bars import BarsListener, MarketBars
from .resume import ResumePlan, Resumer
from .store_reader import StoreReader

_LOADED_AT_ONCE = 8
_QUEUED_KEPT = 500
_VERSIONS = 2**40  # between the first versions of two markets: more versions than a market ever has


class LiveBars:
    """The newest bars of all served markets. None begins before the stored history: such a bar would be incomplete."""

    def __init__(
        self, markets: Iterable[MarketKey], intervals: Sequence[Interval], history: HistoryReader, clock: Clock
    ) -> None:
        self._clock = clock
        self._listeners: list[BarsListener] = []
        intervals = tuple(sorted(intervals))
        self._markets = _Markets(intervals, self._listeners)
        for key in markets:
            self._markets.add_market(key)
        self._is_started = False
        self._reader = StoreReader(history, clock, self._process_queued)
        self._resumer = Resumer(history, clock)

    def add_listener(self, listener: BarsListener) -> None:
        """Notify `listener` of every later change."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Load the newest bars of every market. Until then, messages from the bus wait."""
        self._is_started = True
        await in_parallel(_LOADED_AT_ONCE, tuple(self._markets.values()), self._reader.load_market)

    def on_markets_changed(self, change: MarketsChanged) -> None:
        """Drop the bars of removed markets, and load those of new ones in the background."""
        for symbol in change.removed:
            self._markets.pop(MarketKey(change.exchange, symbol), None)
        added = [self._markets.add_market(MarketKey(change.exchange, symbol)) for symbol in change.added]
        if self._is_started and added:
            self._reader.start_loading(added)

    async def add_intervals(self, intervals: Sequence[Interval]) -> None:
        """Keep bars of `intervals`, which include all former ones; return once the bars of all markets are in memory.

        The store must have their bars.
        """
        self._markets.intervals = wanted = tuple(sorted(intervals))
        known = tuple(self._markets.values())
        await in_parallel(_LOADED_AT_ONCE, known, lambda market: self._reader.add_intervals(market, wanted))

    async def stop(self) -> None:
        """Cancel all background tasks."""
        await self._reader.stop()

    # ------------------------------------------------------------ from the bus

    def on_feed_message(self, message: Message, position: Position) -> None:
        """Process a message from the bus.

        Repeated messages are ignored. Lost ones are noticed, and their changes read from the store.
        """
        market = self._markets.get(message.market)
        if market is None:
            return
        if market.is_seeded:
            self._process_message(market, message, position)
        else:
            market.queued.append((message, position))
            del market.queued[:-_QUEUED_KEPT]  # dropped messages count as lost, and are read from the store

    def _process_queued(self, market: MarketBars) -> None:
        queued, market.queued = market.queued, []
        for message, position in queued:
            self._process_message(market, message, position)

    def _process_message(self, market: MarketBars, message: Message, position: Position) -> None:
        feed_log, may_be_final = market.feed_log, False
        known, was_broken = feed_log.metadata, feed_log.is_broken
        if not market.is_behind:
            market.position_before_read = feed_log.position
        if isinstance(message, MessagesLost):
            feed_log.mark_unreliable(message.back_to, until=position)
        elif not feed_log.record_message(position):
            return
        if feed_log.is_broken and not was_broken:
            self._reader.recover_lost(market, _sure_ms(known))
        if isinstance(message, StateChanged):
            market.decimals = message.decimals.or_else(market.decimals)
            market.set_state(FeedState(message.state, message.since_ms, message.reason, message.problem))
        elif isinstance(message, HistoryChanged):
            market.found_complete_from_ms = message.complete_from_ms
            market.found_served_from_ms = min(message.start_ms, market.found_served_from_ms or message.start_ms)
            may_be_final = self._update_metadata(market, message.metadata)
            # before `notify_finality`, because minutes that are not read yet are not final
            self._reader.reread_range(market, message.start_ms, message.end_ms)
        elif isinstance(message, MinuteChanged):
            minute = message.candle
            if known.watermark_ms is not None and minute.open_ms < known.watermark_ms:
                feed_log.log_change(feed_log.change_id, minute.open_ms, minute.open_ms + MINUTE_MS)
            may_be_final = self._update_metadata(market, message.metadata)
            if not market.update_minute(minute) and minute.final:
                self._reader.read_when_stored(market, minute.open_ms)
        if may_be_final:
            self._reader.recheck_gap(market)
            market.notify_finality()

    def _update_metadata(self, market: MarketBars, metadata: FeedMetadata) -> bool:
        """Apply metadata; return whether bars may be final now. A feed that has just begun has no watermark yet."""
        known = market.feed_log.metadata
        if metadata.watermark_ms is None:
            metadata = replace(metadata, watermark_ms=known.watermark_ms, gap=known.gap)
        market.feed_log.update_metadata(metadata)
        return metadata.watermark_ms != known.watermark_ms or metadata.gap != known.gap

    def finality_count(self, key: MarketKey) -> int:
        """Return a number that changes whenever bars may have become final."""
        return self._markets[key].finality_count

    def is_behind(self, key: MarketKey) -> bool:
        """Return whether the store is being read because of messages received or lost."""
        return self._markets[key].is_behind

    # ------------------------------------------------------------ for serving

    def is_loaded(self, key: MarketKey, interval: Interval, count: int) -> bool:
        """Return whether `newest_bars` can return `count` bars, or all that exist, from memory."""
        return self._markets[key].has_bars(interval, count)

    def is_warm(self, key: MarketKey, interval: Interval, count: int) -> bool:
        """Return whether the current week is complete, or the newest `count` bars are."""
        market = self._markets[key]
        if not market.is_seeded or market.complete_from_ms is None:
            return False
        if market.complete_from_ms <= WEEK.floor(self._clock.now_ms()):
            return True
        return len(market.aggregator.series_of(interval).newest_times(count, market.complete_from_ms)) >= count

    def newest_bars(self, key: MarketKey, interval: Interval, count: int) -> list[Candle]:
        """Return the newest `count` bars in memory that are served, oldest first and with the forming one last."""
        market = self._markets[key]
        market.has_readers = True
        if market.served_from_ms is None:
            return []
        return market.aggregator.series_of(interval).newest_bars(count, market.served_from_ms)

    def newest_times(self, key: MarketKey, interval: Interval, count: int) -> Sequence[int]:
        """Return the opening times of `newest_bars`, without creating the bars."""
        market = self._markets[key]
        market.has_readers = True
        if market.served_from_ms is None:
            return ()
        return market.aggregator.series_of(interval).newest_times(count, market.served_from_ms)

    def get_bar(self, key: MarketKey, interval: Interval, open_ms: int) -> Candle | None:
        """Return one bar from memory; None if it is not in memory, or not served."""
        market = self._markets[key]
        is_shown = market.served_from_ms is not None and open_ms >= market.served_from_ms
        return market.aggregator.series_of(interval).get_bar(open_ms) if is_shown else None

    def bars_between(self, key: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        """Return the bars in memory with `start_ms <= open_ms < end_ms`, oldest first, served or not."""
        return self._markets[key].aggregator.series_of(interval).bars_between(start_ms, end_ms)

    def past_version(self, key: MarketKey) -> int:
        """Return a number that changes whenever the stored past must be read again."""
        return self._markets[key].past_version

    def revision_of(self, key: MarketKey, interval: Interval) -> int:
        """Return a number that changes whenever a bar other than the newest does, or older ones are read."""
        return self._markets[key].aggregator.series_of(interval).revision

    def revised_from(self, key: MarketKey, interval: Interval, revision: int) -> int:
        """Return the opening time of the oldest bar that changed since a revision; without one, a time after all."""
        return self._markets[key].aggregator.series_of(interval).oldest_revised(revision)

    def state_of(self, key: MarketKey, interval: Interval) -> tuple[object, ...]:
        """Return a value that is equal to a former one only if no bar, finality or position has changed since."""
        market = self._markets[key]
        series, feed_log = market.aggregator.series_of(interval), market.feed_log
        return (
            series.newest_bar, series.revision, series.since_ms, market.served_from_ms, market.complete_from_ms,
            market.finality_count, market.past_version, market.position_before_read, market.stale, market.being_reread,
            market.is_rereading, market.lost_from_ms, feed_log.is_broken, feed_log.change_id, feed_log.metadata,
        )  # fmt: skip

    def is_final(self, key: MarketKey, interval: Interval, bar: Candle) -> bool:
        """Return whether a bar is final, so that only a revision of one of its minutes can change it."""
        return self._markets[key].is_range_final(bar.open_ms, bar.open_ms + interval.ms)

    def is_range_final(self, key: MarketKey, start_ms: int, end_ms: int) -> bool:
        """Return whether every bar of `[start_ms, end_ms)` is final."""
        return self._markets[key].is_range_final(start_ms, end_ms)

    def feed_position(self, key: MarketKey) -> Position | None:
        """Return the newest position in the market's feed up to which all changes are contained in the bars."""
        return self._markets[key].position

    def feed_state(self, key: MarketKey) -> FeedState:
        """Return the state of the market's feed, as in `StateChanged`."""
        return self._markets[key].feed

    def decimals(self, key: MarketKey) -> Decimals:
        """Return the decimals of a market from the exchange's list; unknown before it was read."""
        return self._markets[key].decimals

    def seen_decimals(self, key: MarketKey) -> Decimals:
        """Return the largest number of decimals of the minutes in memory; unknown if there are none."""
        return self._markets[key].aggregator.series_of(MINUTE).decimals

    async def prepare_resume(
        self, key: MarketKey, interval: Interval, position: Position, time_ms: int
    ) -> ResumePlan | None:
        """Determine the changes since `position`, for a client whose newest bar began at `time_ms`.

        Return None if they cannot be determined, or are too many.

        Raises:
            Unavailable: the store cannot be read.
        """
        return await self._resumer.plan_resume(self._markets[key], interval, position, time_ms)

    def bars_since(self, key: MarketKey, interval: Interval, resume: ResumePlan) -> list[Candle] | None:
        """Return the changed bars in their current state, oldest first; None if they cannot be determined any more."""
        return self._resumer.finish_resume(self._markets[key], interval, resume)

    def became_final(self, key: MarketKey, resume: ResumePlan) -> RangeSet:
        """Return the ranges in which bars may have become final since the client disconnected."""
        return self._resumer.became_final(self._markets[key], resume)

    async def load_bars(self, key: MarketKey, interval: Interval, count: int, timeout_s: float) -> None:
        """Prepare `newest_bars`: wait up to `timeout_s` seconds for a market that is warming up, then read older bars.

        The wait also ends when all minutes of the week have been requested: the exchange may have none of them, as for
        a new market, and it takes minutes to confirm that.

        Raises:
            Unavailable: the store cannot be read.
        """
        market = self._markets[key]
        market.aggregator.series_of(interval).grow_capacity(count)
        deadline, week_ms = self._clock.monotonic() + timeout_s, WEEK.floor(self._clock.now_ms())
        market.waiting += 1
        try:
            while (
                not self.is_warm(key, interval, count)
                and self._clock.monotonic() < deadline
                and not await self._reader.is_requested(market, week_ms)
            ):
                await self._clock.sleep(0.05)
        finally:
            market.waiting -= 1
        await self._reader.load_older(market, interval, count)

    def describe(self) -> dict[str, Any]:
        """Return facts for `/health/ws-stats`."""
        minutes = sum(market.aggregator.cached_minute_count for market in self._markets.values())
        return {"oneMinuteCandlesCount": minutes}

    def describe_feeds(self) -> Iterator[tuple[MarketKey, dict[str, Any]]]:
        """Yield the state of each market's feed, for `/health` of a process that only serves.

        The markets may change meanwhile.
        """
        for key, market in list(self._markets.items()):
            if key not in self._markets:
                continue
            position = market.feed_log.position
            facts = {
                "state": market.feed.state,
                "reason": market.feed.reason or None,
                "since": iso_ms(market.feed.since_ms),
                "position": position and {"epoch": position.epoch, "seq": position.seq},
                "trouble": market.feed.problem or None,
            }
            yield key, facts

    def list_feeds(self) -> dict[MarketKey, FeedState]:
        """Return the state of each market's feed, as in `StateChanged`."""
        return {key: market.feed for key, market in self._markets.items()}

    def count_states(self, excluded: Container[MarketKey] = ()) -> dict[str, StateCounts]:
        """Count the markets of each exchange by the state of their feeds, without the `excluded` ones."""
        exchanges: dict[str, StateCounts] = {}
        for key, market in self._markets.items():
            if key in excluded:
                continue
            feed = market.feed
            counts = exchanges.setdefault(key.exchange, StateCounts())
            counts.count_state(feed.state, feed.reason, has_problem=bool(feed.problem))
        return exchanges

    def describe_recovery(self) -> dict[str, int]:
        """Return the numbers of recoveries from lost messages, and of markets in recovery now, for `/health`."""
        return {
            "healed": self._reader.recovered,
            "catchingUp": sum(one.feed_log.is_broken for one in self._markets.values()),
        }


class _Markets(dict[MarketKey, MarketBars]):
    """The markets in memory. A late request for a market that was removed gets one without bars."""

    def __init__(self, intervals: Sequence[Interval], listeners: Sequence[BarsListener]) -> None:
        super().__init__()
        #: The intervals of markets that are added from now on.
        self.intervals = intervals
        self._listeners = listeners
        self._versions = count(0, _VERSIONS)

    def __missing__(self, key: MarketKey) -> MarketBars:
        return MarketBars(key, self.intervals, ())

    def add_market(self, key: MarketKey) -> MarketBars:
        """Add a market without bars, and return it."""
        market = MarketBars(key, self.intervals, self._listeners, first_version=next(self._versions))
        self[key] = market
        return market


def _sure_ms(metadata: FeedMetadata) -> int | None:
    """Return the time before which every minute is final or known not to exist."""
    if metadata.watermark_ms is None or metadata.gap is None:
        return metadata.watermark_ms
    return min(metadata.watermark_ms, metadata.gap.start_ms)
