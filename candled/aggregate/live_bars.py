"""Keeps the bars of all markets up to date: from the bus as minutes change, from the store when the past changes."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from candled.bus import FeedMetadata, HistoryChanged, Message, MessagesLost, MinuteChanged, Position, StateChanged
from candled.errors import StoreRejected, StoreUnavailable, Unavailable
from candled.exchange import Clock
from candled.model import MINUTE, MINUTE_MS, Candle, Decimals, FeedState, Interval, MarketKey, Range, RangeSet, iso_ms
from candled.parallel import in_parallel
from candled.tasks import TaskSet

from .aggregator import Change
from .market_bars import AT_FIRST, MarketBars
from .resume import FOREVER_MS, Resume, Resumer
from .resume import ChangeHistory as ResumeHistory

logger = logging.getLogger(__name__)

_WEEK = Interval.parse("1W")
_RETRY_S = 1.0
_LOADED_AT_ONCE = 8
_EARLY_KEPT = 500
_STORED_AFTER_S = 2.0
_PATIENT_LOOKS = 3  # how often to wait for the log of changes; after that, everything in memory is read again
# pauses between attempts to recover lost messages; the last one repeats
_CATCH_UP_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


class AbsentRange(Protocol):
    """Minutes that the exchange does not have; implemented by `candled.store.interface.Gap`."""

    @property
    def start_ms(self) -> int:
        """The start of the range, UTC epoch milliseconds."""

    @property
    def end_ms(self) -> int:
        """The end of the range, UTC epoch milliseconds."""


class StoredHistory(ResumeHistory, Protocol):
    """The store reads that this module needs; implemented by `candled.store.history.HistoryReader`."""

    async def read_bars(self, market: MarketKey, interval: Interval, before_ms: int, limit: int) -> Sequence[Candle]:
        """See `Store.read_bars`."""

    async def read_forming(self, market: MarketKey) -> Sequence[Candle]:
        """See `Store.read_forming`."""

    async def complete_from(self, market: MarketKey) -> int | None:
        """See `Store.complete_from`."""

    async def served_from(self, market: MarketKey) -> int | None:
        """See `Store.served_from`."""

    async def known_gaps(self, market: MarketKey, within: Range) -> Sequence[AbsentRange]:
        """See `Store.known_gaps`."""


class BarsListener(Protocol):
    """A receiver of changes of bars."""

    def on_bars_changed(self, market: MarketKey, changes: Sequence[Change]) -> None:
        """Handle bars that changed with one minute, shortest interval first. They may be older bars."""

    def on_history_changed(
        self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int, bars: Sequence[Candle]
    ) -> None:
        """Handle changed bars of `[start_ms, end_ms)`, or a longer history.

        `bars` are the new versions of the changed bars that are in memory.
        """

    def on_finality(self, market: MarketKey) -> None:
        """Handle bars that may have become final."""

    def on_state_changed(self, market: MarketKey, feed: FeedState) -> None:
        """Handle a change of the feed's state, or of the reason for it."""


class LiveBars:
    """All bars of the served markets, from the start of stored history. Earlier bars would be incomplete."""

    def __init__(
        self, markets: Iterable[MarketKey], intervals: Sequence[Interval], history: StoredHistory, clock: Clock
    ) -> None:
        self._history = history
        self._clock = clock
        self._intervals = tuple(sorted(intervals))
        self._listeners: list[BarsListener] = []
        self._markets = {key: MarketBars(self._intervals) for key in markets}
        self._resumer = Resumer(history, clock)
        self._tasks = TaskSet()
        self._healed = 0

    def add_listener(self, listener: BarsListener) -> None:
        """Notify `listener` of every later change."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Load the newest bars of every market. Until then, messages from the bus wait."""
        await in_parallel(_LOADED_AT_ONCE, self._markets, self._seed_level)

    async def stop(self) -> None:
        """Cancel all background tasks."""
        await self._tasks.cancel()

    # ------------------------------------------------------------ from the bus

    def on_message(self, message: Message, position: Position) -> None:
        """Process a message from the bus.

        Repeated messages are ignored. Lost ones are noticed, and their changes read from the store.
        """
        market = self._markets.get(message.market)
        if market is None:
            return
        if market.seeded:
            self._on_minute(message.market, market, message, position)
        else:
            market.early.append((message, position))
            del market.early[:-_EARLY_KEPT]  # dropped messages count as lost, and are read from the store

    def _on_minute(self, key: MarketKey, market: MarketBars, message: Message, position: Position) -> None:
        track, settled_ms, sure_ms = market.track, market.track.metadata.watermark_ms, _sure_ms(market.track.metadata)
        was_broken = track.is_broken
        if not market.is_behind:
            market.shown = track.position
        if isinstance(message, MessagesLost):
            track.mark_unreliable(message.back_to, until=position)
        elif not track.on_message(position):
            return
        if track.is_broken and not was_broken:
            self._on_messages_lost(key, market, sure_ms)
        if isinstance(message, StateChanged):
            self._take_state(key, market, message)
        elif isinstance(message, HistoryChanged):
            market.found_complete_from_ms = message.complete_from_ms
            market.found_served_from_ms = min(message.start_ms, market.found_served_from_ms or message.start_ms)
            is_news = self._note_facts(market, message.metadata)
            # first, because minutes that are not read yet are not final
            self._read_again(key, message.start_ms, message.end_ms)
            if is_news:
                self._tell_settled(key)
        elif isinstance(message, MinuteChanged):
            if settled_ms is not None and message.candle.open_ms < settled_ms:
                track.log_change(track.change_id, message.candle.open_ms, message.candle.open_ms + MINUTE_MS)
            is_news = self._note_facts(market, message.metadata)
            self._apply_minute(key, market, message.candle)
            if is_news:
                self._tell_settled(key)

    def _take_state(self, key: MarketKey, market: MarketBars, message: StateChanged) -> None:
        known = market.feed
        market.decimals = message.decimals.or_else(market.decimals)
        market.feed = FeedState(message.state, message.since_ms, message.reason, message.trouble)
        if market.feed[:3] == known[:3]:  # the wording of a problem may differ each time
            return
        for listener in self._listeners:
            listener.on_state_changed(key, market.feed)

    def _note_facts(self, market: MarketBars, facts: FeedMetadata) -> bool:
        """Apply metadata; return whether bars may be final now. A feed that has only begun has no watermark yet."""
        known = market.track.metadata
        if facts.watermark_ms is None:
            facts = replace(facts, watermark_ms=known.watermark_ms, gap=known.gap)
        market.track.update_metadata(facts)
        return facts.watermark_ms != known.watermark_ms or facts.gap != known.gap

    def settlements(self, key: MarketKey) -> int:
        """Return a number that changes whenever bars may have become final."""
        return self._markets[key].settlements

    def is_behind(self, key: MarketKey) -> bool:
        """Return whether the store is being read because of messages received or lost."""
        return self._markets[key].is_behind

    def _tell_settled(self, key: MarketKey) -> None:
        self._markets[key].settlements += 1
        for listener in self._listeners:
            listener.on_finality(key)

    # ------------------------------------------------------------ for serving

    def is_loaded(self, key: MarketKey, interval: Interval, count: int) -> bool:
        """Return whether `newest_bars` can return `count` bars, or all that exist, from memory."""
        market = self._markets[key]
        if not market.seeded:
            return False
        series = market.ladder.series_of(interval)
        if series.capacity < count:  # a bar that is in memory now could be dropped before `newest_bars`
            return False
        shown_from_ms = market.served_from_ms or 0
        return series.since_ms <= shown_from_ms or len(series.newest_times(count, shown_from_ms)) >= count

    def is_warm(self, key: MarketKey, interval: Interval, count: int) -> bool:
        """Return whether the current week is complete, or the newest `count` bars are."""
        market = self._markets[key]
        if not market.seeded or market.complete_from_ms is None:
            return False
        if market.complete_from_ms <= _WEEK.floor(self._clock.now_ms()):
            return True
        return len(market.ladder.series_of(interval).newest_times(count, market.complete_from_ms)) >= count

    def newest_bars(self, key: MarketKey, interval: Interval, count: int) -> list[Candle]:
        """Return the newest `count` complete bars in memory, oldest first, ending with the forming one."""
        market = self._markets[key]
        if market.served_from_ms is None:
            return []
        return market.ladder.series_of(interval).newest_bars(count, market.served_from_ms)

    def newest_times(self, key: MarketKey, interval: Interval, count: int) -> Sequence[int]:
        """Return the opening times of `newest_bars`, without creating the bars."""
        market = self._markets[key]
        if market.served_from_ms is None:
            return ()
        return market.ladder.series_of(interval).newest_times(count, market.served_from_ms)

    def get_bar(self, key: MarketKey, interval: Interval, open_ms: int) -> Candle | None:
        """Return one bar from memory; None if it is not in memory, or not shown."""
        market = self._markets[key]
        is_shown = market.served_from_ms is not None and open_ms >= market.served_from_ms
        return market.ladder.series_of(interval).get_bar(open_ms) if is_shown else None

    def between(self, key: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        """Return the bars in memory with `start_ms <= open_ms < end_ms`, oldest first. Use it for shown ranges only."""
        return self._markets[key].ladder.series_of(interval).bars_between(start_ms, end_ms)

    def generation(self, key: MarketKey) -> int:
        """Return a number that changes whenever the stored past must be read again."""
        return self._markets[key].generation

    def revision_of(self, key: MarketKey, interval: Interval) -> int:
        """Return a number that changes whenever a bar other than the newest does, or older ones are read."""
        return self._markets[key].ladder.series_of(interval).revision

    def revised_from(self, key: MarketKey, interval: Interval, revision: int) -> int:
        """Return the opening time of the oldest bar that changed since a revision, or a time after all bars."""
        return self._markets[key].ladder.series_of(interval).revised_from(revision)

    def state_of(self, key: MarketKey, interval: Interval) -> tuple[object, ...]:
        """Return a value that is equal to a former one only if no bar, finality or position has changed since."""
        market = self._markets[key]
        series, track = market.ladder.series_of(interval), market.track
        return (
            series.newest_bar, series.revision, series.since_ms, market.served_from_ms, market.complete_from_ms,
            market.settlements, market.generation, market.shown, market.stale, market.under_way, market.reading,
            market.lost_from_ms, track.is_broken, track.position, track.metadata,
        )  # fmt: skip

    def is_final(self, key: MarketKey, interval: Interval, bar: Candle) -> bool:
        """Return whether a bar is final, so that only a revision of one of its minutes can change it."""
        return self._markets[key].is_settled(bar.open_ms, bar.open_ms + interval.ms)

    def settles(self, key: MarketKey, start_ms: int, end_ms: int) -> bool:
        """Return whether every bar of `[start_ms, end_ms)` is final."""
        return self._markets[key].is_settled(start_ms, end_ms)

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
        return self._markets[key].ladder.series_of(MINUTE).decimals

    async def prepare_resume(
        self, key: MarketKey, interval: Interval, position: Position, time_ms: int
    ) -> Resume | None:
        """Determine the changes since `position`, for a client whose newest bar began at `time_ms`.

        Return None if they cannot be determined, or are too many.

        Raises:
            Unavailable: the store cannot be read.
        """
        return await self._resumer.plan_resume(self._markets[key], key, interval, position, time_ms)

    def bars_since(self, key: MarketKey, interval: Interval, resume: Resume) -> list[Candle] | None:
        """Return the bars that changed since, oldest first, as of now; None if they cannot be determined any more."""
        return self._resumer.finish_resume(self._markets[key], interval, resume)

    def became_final(self, key: MarketKey, resume: Resume) -> RangeSet:
        """Return the ranges in which bars may be final now that the client has not received as final."""
        return self._resumer.became_final(self._markets[key], resume)

    async def load_bars(self, key: MarketKey, interval: Interval, count: int, patience_s: float) -> None:
        """Prepare `newest_bars`: wait up to `patience_s` seconds for a market that is warming up, then read older bars.

        Raises:
            Unavailable: the store cannot be read.
        """
        market = self._markets[key]
        market.ladder.series_of(interval).grow_capacity(count)
        deadline = self._clock.monotonic() + patience_s
        while not self.is_warm(key, interval, count) and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.05)
        while not self.is_loaded(key, interval, count):
            if not market.seeded:
                raise Unavailable("the store cannot be read yet")
            series = market.ladder.series_of(interval)
            generation, since_ms = market.generation, series.since_ms
            missing = count - len(series)
            older = await self._history.read_bars(key, interval, since_ms, missing)
            if (generation, since_ms) == (market.generation, series.since_ms):
                series.prepend_bars(older, older[0].open_ms if len(older) >= missing else 0)

    def describe(self) -> dict[str, Any]:
        """Return facts for `/health/ws-stats`."""
        return {"oneMinuteCandlesCount": sum(market.ladder.minutes_held for market in self._markets.values())}

    def describe_feeds(self) -> dict[str, dict[str, Any]]:
        """Return for `/health` of a process that only serves: by exchange, the state of each symbol's feed."""
        exchanges: dict[str, dict[str, Any]] = {}
        for key, market in self._markets.items():
            position = market.track.position
            exchanges.setdefault(key.exchange, {"symbols": {}})["symbols"][str(key.symbol)] = {
                "state": market.feed.state,
                "reason": market.feed.reason or None,
                "since": iso_ms(market.feed.since_ms),
                "position": position and {"epoch": position.epoch, "seq": position.seq},
                "trouble": market.feed.trouble or None,
            }
        return exchanges

    def describe_healing(self) -> dict[str, int]:
        """Return for `/health` how often lost messages were recovered, and for how many markets this is in progress."""
        return {"healed": self._healed, "catchingUp": sum(one.track.is_broken for one in self._markets.values())}

    # ------------------------------------------------------------ inside

    async def _seed_level(self, key: MarketKey, level: int = logging.WARNING) -> None:
        market = self._markets[key]
        try:
            complete_from_ms = await self._history.complete_from(key)
            served_from_ms = await self._history.served_from(key)
            loaded = {}
            for interval in market.ladder.levels:
                count = market.ladder.parts_needed(interval, AT_FIRST)
                loaded[interval] = (count, await self._history.read_bars(key, interval, 2**62, count))
            forming = await self._adjoining(key, loaded[MINUTE][1], await self._history.read_forming(key))
            gap = await self._gap(key, loaded[MINUTE][1])
        except (StoreUnavailable, StoreRejected) as error:
            logger.log(level, "%s: bars cannot be loaded: %s; trying again", key, error)
            self._tasks.start(self._seed_later(key))
            return
        for interval, (count, bars) in loaded.items():
            market.ladder.seed_bars(interval, bars, bars[0].open_ms if len(bars) >= count else 0)
        if market.complete_from_ms is None:
            market.complete_from_ms = complete_from_ms
        if market.served_from_ms is None:
            market.served_from_ms = served_from_ms
        newest = market.ladder.series_of(MINUTE).newest_bar
        if newest is not None:  # until the feed provides more
            settled_ms = newest.open_ms + MINUTE_MS
            overtaken = [minute.open_ms for minute in forming if minute.open_ms < settled_ms]
            if overtaken:
                gap = Range(overtaken[0], overtaken[-1] + MINUTE_MS).hull(gap)
            market.track.update_metadata(FeedMetadata(watermark_ms=settled_ms, gap=gap))
        market.seeded = True
        for minute in forming:
            self._apply_minute(key, market, minute)
        early, market.early = market.early, []
        for message, position in early:
            self._on_minute(key, market, message, position)

    async def _gap(self, key: MarketKey, final: Sequence[Candle]) -> Range | None:
        """Return the range from the first to the last unexplained missing minute among the stored ones, or None."""
        missing = RangeSet([(final[0].open_ms, final[-1].open_ms)] if final else ())
        for minute in final:
            missing.remove(minute.open_ms, minute.open_ms + MINUTE_MS)
        for absent in (
            await self._history.known_gaps(key, Range(final[0].open_ms, final[-1].open_ms)) if missing else ()
        ):
            missing.remove(absent.start_ms, absent.end_ms)
        spans = list(missing)
        return Range(spans[0].start_ms, spans[-1].end_ms) if spans else None

    async def _adjoining(self, key: MarketKey, final: Sequence[Candle], forming: Sequence[Candle]) -> list[Candle]:
        """Return the forming minutes with no missing minute before them, so that no bar is shown without a part.

        The others are added when the feed sends them.
        """
        result: list[Candle] = []
        end_ms = final[-1].open_ms + MINUTE_MS if final else None
        for minute in forming:
            if end_ms is not None and minute.open_ms > end_ms:
                missing = RangeSet([(end_ms, minute.open_ms)])
                for absent in await self._history.known_gaps(key, Range(end_ms, minute.open_ms)):
                    missing.remove(absent.start_ms, absent.end_ms)
                if missing:
                    break
            result.append(minute)
            end_ms = max(minute.open_ms + MINUTE_MS, end_ms or 0)
        return result

    async def _seed_later(self, key: MarketKey) -> None:
        await self._clock.sleep(_RETRY_S)
        await self._seed_level(key, logging.DEBUG)

    def _apply_minute(self, key: MarketKey, market: MarketBars, minute: Candle) -> None:
        changes = market.ladder.apply_minute(minute, market.track.change_id)
        if changes is None:
            if minute.final:
                self._tasks.start(self._read_later(key, minute.open_ms))
            return
        if market.served_from_ms is None:
            return
        shown = [change for change in changes if change.bar.open_ms >= market.served_from_ms]
        for listener in self._listeners:
            listener.on_bars_changed(key, shown)

    async def _read_later(self, key: MarketKey, open_ms: int) -> None:
        """Read a minute older than memory from the store, once it is stored."""
        await self._clock.sleep(_STORED_AFTER_S)
        self._read_again(key, open_ms, open_ms + MINUTE_MS)

    def _read_again(self, key: MarketKey, start_ms: int, end_ms: int) -> None:
        market = self._markets[key]
        market.generation += 1
        market.stale = Range(start_ms, end_ms).hull(market.stale)
        if not market.reading:
            market.reading = True
            self._tasks.start(self._reread_changes(key, market))

    async def _reread_changes(self, key: MarketKey, market: MarketBars) -> None:
        """Read changed ranges from the store until none is left. There is one reader per market."""
        level = logging.WARNING  # of the first failure: an outage does not deserve a line every second
        try:
            while market.stale is not None:
                if not market.seeded:
                    await self._clock.sleep(_RETRY_S)
                    continue
                stale, market.stale = market.stale, None
                market.under_way = stale
                try:
                    await self._reread_range(key, market, stale)
                except (StoreUnavailable, StoreRejected) as error:
                    logger.log(level, "%s: a repaired range cannot be read yet: %s", key, error)
                    level = logging.DEBUG
                    market.stale = stale.hull(market.stale)
                    await self._clock.sleep(_RETRY_S)
                else:
                    level, market.under_way = logging.WARNING, None
                    market.track.log_change(market.track.change_id + 1, *stale, only_final=True)
                    self._tell_settled(key)
        finally:
            market.reading = False

    async def _reread_range(self, key: MarketKey, market: MarketBars, stale: Range) -> None:
        rows, complete_from_ms, served_from_ms = {}, market.found_complete_from_ms, market.found_served_from_ms
        for interval in market.ladder.levels:
            series = market.ladder.series_of(interval)
            keep_ms = interval.floor(stale.end_ms - 1) - series.capacity * interval.ms
            if interval.floor(stale.start_ms) < keep_ms and series.since_ms < keep_ms:
                series.forget_before(keep_ms)  # read no more than can be kept, however long the range is
            start_ms = max(interval.floor(stale.start_ms), series.since_ms)
            if start_ms < stale.end_ms:
                rows[interval] = await self._history.read_bars_between(key, interval, start_ms, stale.end_ms)
        stamp = market.track.change_id + 1
        changes = market.ladder.merge_stored(rows, stale.start_ms, stale.end_ms, stamp)
        if complete_from_ms is not None:  # only now: before, bars would be shown without the missing minutes
            market.complete_from_ms = complete_from_ms
        known = (market.served_from_ms, served_from_ms, complete_from_ms)
        market.served_from_ms = min((one for one in known if one is not None), default=None)
        changed = [change.bar.open_ms for change in changes if change.interval == MINUTE]
        if changed:
            market.track.log_change(stamp, changed[0], changed[-1] + MINUTE_MS)
        held_ms = market.ladder.series_of(MINUTE).since_ms
        if stale.start_ms < held_ms:  # its changes are unknown, because it is not in memory
            market.track.log_change(stamp, stale.start_ms, min(stale.end_ms, held_ms))
        shown = [one for one in changes if one.bar.open_ms >= (market.served_from_ms or 0)]
        for interval in market.ladder.shown:
            self._tell_healed(key, market, interval, stale, [one.bar for one in shown if one.interval == interval])

    def _tell_healed(
        self, key: MarketKey, market: MarketBars, interval: Interval, stale: Range, bars: Sequence[Candle]
    ) -> None:
        since_ms = market.ladder.series_of(interval).since_ms
        start_ms = bars[0].open_ms if bars else stale.start_ms
        end_ms = bars[-1].open_ms + interval.ms if bars else min(stale.end_ms, since_ms)
        for listener in self._listeners:
            listener.on_history_changed(key, interval, start_ms, end_ms, bars)

    # ------------------------------------------------------------ lost messages

    def _on_messages_lost(self, key: MarketKey, market: MarketBars, sure_ms: int | None) -> None:
        """Start recovery from lost messages. Everything before `sure_ms` was final before they were lost."""
        newest = market.ladder.series_of(MINUTE).newest_bar
        held_ms = 0 if newest is None else newest.open_ms
        market.lost_from_ms = max(0, (held_ms if sure_ms is None else sure_ms) - 2 * MINUTE_MS)
        if not market.catching_up:
            market.catching_up = True
            self._tasks.start(self._catch_up(key, market))

    async def _catch_up(self, key: MarketKey, market: MarketBars) -> None:
        """Recover from lost messages: read the ranges that they may have changed from the store.

        This ends when every completed minute is in memory in its final version.
        """
        try:
            for attempt, pause_s in enumerate(_pauses()):
                since, lost_from_ms = market.track.lost_since, market.lost_from_ms
                is_known, is_last = market.track.is_lost_logged, attempt >= _PATIENT_LOOKS
                try:
                    for stale in await self._lost_ranges(key, since, lost_from_ms, all_held=is_last and not is_known):
                        await self._reread_range(key, market, stale)
                    is_whole = (is_known or is_last) and await self._is_whole(key, market, lost_from_ms)
                except (StoreUnavailable, StoreRejected) as error:
                    logger.debug("%s: lost changes cannot be read yet: %s", key, error)
                    is_whole = False
                if is_whole and (since, lost_from_ms) == (market.track.lost_since, market.lost_from_ms):
                    market.track.mark_repaired()
                    market.track.log_change(market.track.change_id + 1, lost_from_ms, FOREVER_MS, only_final=True)
                    self._healed += 1
                    self._tell_settled(key)
                    return
                await self._clock.sleep(pause_s)
        finally:
            market.catching_up = False

    async def _lost_ranges(
        self, key: MarketKey, since: Position | None, lost_from_ms: int, *, all_held: bool
    ) -> RangeSet:
        """Return the ranges that may have changed: everything with `all_held`, or if nothing better is known."""
        market = self._markets[key]
        complete_from_ms = await self._history.complete_from(key)
        if complete_from_ms is not None:
            market.found_complete_from_ms = min(complete_from_ms, market.found_complete_from_ms or complete_from_ms)
        served_from_ms = await self._history.served_from(key)
        if served_from_ms is not None:
            market.found_served_from_ms = min(served_from_ms, market.found_served_from_ms or served_from_ms)
        changes: Sequence[Range] | None = None if all_held else ()
        for position in () if all_held or since is None else market.track.repaired_since(since):
            changes = await self._history.changes_since(key, position.epoch, position.seq)
            if changes is not None:
                break
        if changes is None:
            lost_from_ms, changes = 0, ()
        newest = market.ladder.series_of(MINUTE).newest_bar
        # Use the feed's time, not this machine's: reading a later range would drop much older bars.
        told_ms = max(market.track.metadata.watermark_ms or 0, 0 if newest is None else newest.open_ms)
        return RangeSet([*changes, (lost_from_ms, (told_ms or self._clock.now_ms()) + 2 * MINUTE_MS)])

    async def _is_whole(self, key: MarketKey, market: MarketBars, from_ms: int) -> bool:
        """Return whether every completed minute from `from_ms` on is final in memory or known not to exist.

        Before history is complete, this applies only to minutes after the gap. Later messages announce the others.
        """
        series, facts = market.ladder.series_of(MINUTE), market.track.metadata
        if facts.watermark_ms is None:
            return True
        known_ms = market.complete_from_ms
        if known_ms is None:
            if facts.gap is None:
                return False
            known_ms = facts.gap.end_ms
        from_ms, settled_ms = max(from_ms, series.since_ms, known_ms), facts.watermark_ms
        missing = RangeSet([(from_ms, settled_ms)])
        for minute in series.bars_between(from_ms, settled_ms):
            if minute.final:
                missing.remove(minute.open_ms, minute.open_ms + MINUTE_MS)
        if facts.gap is not None:
            missing.remove(*facts.gap)
        for absent in await self._history.known_gaps(key, Range(from_ms, settled_ms)) if missing else ():
            missing.remove(absent.start_ms, absent.end_ms)
        return not missing


def _sure_ms(facts: FeedMetadata) -> int | None:
    """Return the time before which every minute is final or known not to exist."""
    if facts.watermark_ms is None or facts.gap is None:
        return facts.watermark_ms
    return min(facts.watermark_ms, facts.gap.start_ms)


def _pauses() -> Iterator[float]:
    yield from _CATCH_UP_S
    while True:
        yield _CATCH_UP_S[-1]
