"""One exchange's ingest: its feeds, its history, and the repair of gaps."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from candled.bus import Bus
from candled.errors import ExchangeError, StoreRejected, StoreUnavailable, Unavailable
from candled.exchange import Candles, Clock, Event, Exchange, Feed, FeedError, SubscriptionRejected
from candled.model import MINUTE, MarketKey, Symbol
from candled.proxies import Proxies
from candled.tasks import LoopTurns, TaskSet, in_parallel

from .context import IngestContext
from .counts import IngestCounts
from .early_events import EarlyEvents
from .error_counter import ErrorCounter
from .exchange_clock import TOLERANCE_MS
from .feed_pool import FeedPool
from .feeds import FLOODED
from .http import HttpClient
from .ingest_clock import IngestClock
from .market import MarketIngest, Outcome
from .market_health import describe_market
from .market_listing import ListOptions, MarketListing
from .market_loader import IngestOptions, MarketLoader
from .measures import IngestMeasures, SymbolMeasures
from .publisher import IngestPublisher
from .renamed_history import RenamedHistory
from .repair_scheduler import WORKERS, RepairScheduler
from .short_snapshots import ShortSnapshots
from .store_audit import StoreAudit
from .stored_past import StoredPast

if TYPE_CHECKING:
    from candled.store.ingest_store import IngestStore

logger = logging.getLogger(__name__)

_OPENED_AT_ONCE = 8
_FEW = 4  # markets whose newest minutes are read one by one, such as markets on demand
_FINALITY_S = 0.5  # between two checks of a market for final minutes
_CHECK_S = 1.0  # between two other checks of a market
_MARKETS_AT_ONCE = 50
_LAG_EVERY = 8  # events; measuring the lag of each would cost a quarter of a percent of a core for 1,000 markets


class _OpeningTurns:
    """The markets that are opened at the same time."""

    def __init__(self, clock: Clock) -> None:
        #: Those that are read from the store.
        self.reading = asyncio.Semaphore(_OPENED_AT_ONCE)
        #: Turns to begin one market, whose waiting events may contain a large snapshot.
        self.beginning = LoopTurns(clock)


class _NewestMinutes:
    """Reads the newest final minute of each stored market. There is one reading at a time.

    With many markets it takes a quarter of a second, and a reload adds its markets in many steps.
    """

    def __init__(self, loader: MarketLoader, tasks: TaskSet) -> None:
        self._loader = loader
        self._tasks = tasks
        self._turn = asyncio.Lock()
        #: The next reading, until it begins.
        self._next: asyncio.Task[Mapping[Symbol, int]] | None = None

    async def read(self) -> Mapping[Symbol, int]:
        """Return the newest minutes, in a reading that begins after the call. Calls that wait share it."""
        if self._next is None:
            self._next = self._tasks.start(self._read_next())
        return await asyncio.shield(self._next)

    async def _read_next(self) -> Mapping[Symbol, int]:
        async with self._turn:
            self._next = None
            return await self._loader.load_newest_minutes()


class ExchangeIngest:
    """The ingest of one configured exchange, or of one of its `shards`.

    It follows the exchange's list of markets, so its markets may change at any time. A delisted market loses its feed
    after a day.

    `start` returns when all markets are open; everything else runs in background tasks. The feeds already run while
    markets are being opened. Their events for a market wait until it is open.
    """

    def __init__(
        self,
        name: str,
        exchange: Exchange,
        symbols: Sequence[Symbol],
        *,
        clock: Clock,
        bus: Bus,
        store: "IngestStore",
        http: HttpClient,
        options: IngestOptions,
        proxies: Proxies | None = None,
        shards: int = 1,
        lists: ListOptions | None = None,
        counts: IngestCounts | None = None,
    ) -> None:
        self.name, self._exchange = name, exchange
        self._counts = counts = counts or IngestCounts()
        #: The symbols that are wanted, in order.
        self._symbols = dict.fromkeys(symbols)
        self._clock, self._store, self._http, self._tasks = clock, store, http, TaskSet()
        self._time = IngestClock(name, exchange, clock)
        context = IngestContext(name, exchange, clock, self._time, store, http, counts)
        self._loader = MarketLoader(context, options)
        self._newest = _NewestMinutes(self._loader, self._tasks)
        self._publisher = IngestPublisher(bus, store, clock, checkpoint_ms=options.checkpoint_ms)
        self._past = StoredPast(context, self._loader.absence, self._publisher)
        self._audit = StoreAudit(context, self._publisher, self._past.examine_again)
        self._listing = listing = MarketListing(context, lists or ListOptions())
        listing.on_listed, listing.on_ended, listing.on_renamed = self._on_listed, self._on_ended, self._on_renamed
        self._renamed, self._short = RenamedHistory(context), ShortSnapshots(exchange.max_history_minutes)
        self._repair = RepairScheduler(
            context, self._publisher, listing, on_answer=self._on_answer, awaits_snapshot=self._awaits_snapshot
        )
        #: The markets that are open.
        self._markets: dict[Symbol, MarketIngest] = {}
        #: Those of them with minutes in their grace period.
        self._in_grace_period: dict[Symbol, MarketIngest] = {}
        #: The tasks that open markets, until they are open. Only some of them read the store at the same time.
        self._opening: dict[Symbol, asyncio.Task[None]] = {}
        #: By whether clients wait for a market.
        self._turns = _OpeningTurns(clock), _OpeningTurns(clock)
        self._is_reading = False  # True once feeds may be opened
        self._feeds = FeedPool(
            context,
            self,
            is_behind=lambda: store.is_behind and not self._short.is_shortening,
            proxies=proxies,
            shards=shards,
        )
        #: The symbols whose feeds are connected.
        self._connected: set[Symbol] = set()
        #: Events of markets that are not open yet, since the last interruption; candles received before the exchange's
        #: clock was known.
        self._early, self._untimed = EarlyEvents(), EarlyEvents()
        #: Counts errors that the exchange reported about whole connections.
        self._errors = ErrorCounter()

    # ------------------------------------------------------------ lifecycle

    async def start(self) -> None:
        """Start the feeds and the repair as soon as the store answers, and open the markets."""
        self._http.on_date = self._time.estimate.observe_date
        newest = await self._newest.read()
        if type(self._exchange).resume_after is not Exchange.resume_after:
            known = list(self._symbols.keys() | newest.keys())  # patterns may choose further stored markets
            self._exchange.resume_after(await self._loader.newest_completed(newest, known))
        self._is_reading = True
        self._feeds.add_symbols(list(self._symbols))
        self._tasks.start(self._listing.run(self._symbols, self._markets))
        self._tasks.start(self._run_maintenance())
        self._tasks.start(self._run_finality())
        self._tasks.start(self._publisher.run())
        for _ in range(WORKERS):
            self._tasks.start(self._repair.run())
        for symbol in self._symbols:
            self._opening[symbol] = self._tasks.start(self._open_market(symbol, newest.get(symbol)))
        if self._opening:
            await asyncio.wait(self._opening.values())
        self._tasks.start(self._audit.run(self._markets))
        self._tasks.start(self._past.run(self._markets))

    def add_markets(self, symbols: Iterable[Symbol]) -> None:
        """Begin to read more markets: subscribe to them, and open them as `start` does."""
        added = [symbol for symbol in symbols if symbol not in self._symbols]
        self._symbols |= dict.fromkeys(added)
        if not self._is_reading or not added:  # `start` opens them
            return
        for is_urgent in (True, False):
            keys = [MarketKey(self.name, symbol) for symbol in added]
            symbols = [key.symbol for key in keys if self._listing.is_urgent(key) is is_urgent]
            if symbols:
                self._feeds.add_symbols(symbols, is_urgent=is_urgent)
        self._connected.update(symbol for symbol in added if self._has_connection(symbol))
        reading = self._tasks.start(self._read_newest(added))
        for symbol in added:
            self._opening[symbol] = self._tasks.start(self._reopen_market(symbol, reading))

    def remove_markets(self, symbols: Iterable[Symbol]) -> None:
        """Stop reading some markets, and forget them. Minutes that are not final yet are queued for the store."""
        removed = [symbol for symbol in symbols if symbol in self._symbols]
        for symbol in removed:
            del self._symbols[symbol]
            if (opening := self._opening.pop(symbol, None)) is not None:
                opening.cancel()
            if (market := self._markets.pop(symbol, None)) is not None:
                self._close_market(market)
        self._early.forget_markets(removed)
        self._untimed.forget_markets(removed)
        self._short.forget_markets(removed)
        self._leave_feeds(removed)

    def _leave_feeds(self, symbols: Collection[Symbol]) -> None:
        """Unsubscribe from some symbols, and give their places to others for which no connection was left."""
        self._connected.difference_update(symbols)
        surplus = self._feeds.surplus
        self._feeds.remove_symbols(symbols)
        for symbol in set(surplus) - set(self._feeds.surplus) - set(symbols):
            self._on_place_found(symbol)

    def _on_place_found(self, symbol: Symbol) -> None:
        """Note that a symbol without a feed was added to the feeds, which may have no connection left for it."""
        if self._has_connection(symbol):
            self._connected.add(symbol)
        if (market := self._markets.get(symbol)) is not None:
            market.status.rejection = self._feeds.limit_problem if symbol in self._feeds.surplus else None
            market.presence.connected = symbol in self._connected

    def _has_connection(self, symbol: Symbol) -> bool:
        runner = self._feeds.runner_of(symbol)
        return runner is not None and runner.is_connected

    def _awaits_snapshot(self, symbol: Symbol) -> bool:
        runner = self._feeds.runner_of(symbol)
        return runner is not None and runner.awaits_snapshot(symbol)

    def _close_market(self, market: MarketIngest) -> None:
        self._count_closed(market)
        self._store_forming(market)
        self._in_grace_period.pop(market.key.symbol, None)
        self._repair.close_market(market)
        self._past.forget_market(market.key.symbol)
        self._publisher.close_market(market)

    def _store_forming(self, market: MarketIngest) -> None:
        for candle in market.minutes.forming:
            self._store.enqueue_row(market.key, candle)

    def _count_closed(self, market: MarketIngest) -> None:
        self._counts.closed_revisions += market.revisions
        self._counts.closed_invalid_rows += market.rows.invalid.total

    async def stop(self) -> None:
        """Stop all tasks, and queue for the store the minutes that are not final yet."""
        await self._tasks.cancel()
        await self._feeds.stop()
        for market in self._markets.values():
            self._store_forming(market)
            self._count_closed(market)

    def describe(self) -> dict[str, Any]:
        """Return the exchange's part of `/health`, without its symbols."""
        now_ms, runners = self._time.now_ms(), self._feeds.runners
        return {
            "clockSkewMs": self._time.skew_ms(),
            "clock": self._time.estimate.describe(),
            "historyTrouble": self._repair.problem,
            "parity": self._repair.parity.describe(now_ms),
            "complaints": self._errors.total,
            "malformedFrames": sum(runner.malformed.total for runner in runners),
            "unsubscribedEvents": sum(runner.unsubscribed_events for runner in runners),
            "hosts": self._http.describe(),
        }

    def describe_symbols(self) -> Iterator[tuple[Symbol, dict[str, Any]]]:
        """Yield each symbol's part of `/health`. The symbols may change meanwhile."""
        for symbol in list(self._symbols):
            if symbol in self._symbols:
                yield symbol, self._describe_symbol(symbol, self._time.now_ms())

    @property
    def symbols(self) -> Collection[Symbol]:
        """The symbols that are wanted, in order."""
        return self._symbols.keys()

    def measure_feeds(self, measures: IngestMeasures) -> None:
        """Add the numbers that belong to no single market to `measures`, those of the exchange."""
        runners = self._feeds.runners
        compared, differing = self._repair.parity.totals(self._time.now_ms())
        measures.feeds += len(runners)
        measures.connected_feeds += sum(runner.is_connected for runner in runners)
        measures.skew_ms = max(measures.skew_ms, self._time.skew_ms(), key=abs)
        measures.is_rest_available = measures.is_rest_available and self._repair.problem is None
        measures.compared += compared
        measures.differing += differing

    def measure_market(
        self, symbol: Symbol, measures: IngestMeasures, silent: Collection[Symbol]
    ) -> MarketIngest | None:
        """Add a wanted market to `measures`, given `silent_symbols`. Return it; None if it is not open yet."""
        market = self._markets.get(symbol)
        if market is None:
            measures.states.count_state("warming", "starting", has_problem=True)
        else:
            measures.count_market(market, self.now_ms, is_silent=symbol in silent)
        return market

    @property
    def silent_symbols(self) -> set[Symbol]:
        """The symbols that are subscribed and deliver nothing."""
        return {symbol for runner in self._feeds.runners for symbol in runner.silent_symbols}

    @property
    def now_ms(self) -> int:
        """The time on the exchange's clock, UTC epoch milliseconds."""
        return self._time.now_ms()

    def measure_symbols(self) -> Iterator[SymbolMeasures]:
        """Yield the present state of each symbol in numbers. The symbols may change meanwhile."""
        now_ms = self._time.now_ms()
        for symbol in list(self._symbols):
            if symbol not in self._symbols:
                continue
            market = self._markets.get(symbol)
            if market is None:
                yield SymbolMeasures(symbol, "warming")
                continue
            state, missing = market.status.condition(now_ms).state, market.missing_minutes(now_ms)
            yield SymbolMeasures(symbol, state, market.presence.pushed_ms, missing, market.revisions)

    def _describe_symbol(self, symbol: Symbol, now_ms: int) -> dict[str, Any]:
        market, runner = self._markets.get(symbol), self._feeds.runner_of(symbol)
        if market is None:
            problem, is_connected = "is not loaded from the store yet", symbol in self._connected
            return {"state": "warming", "reason": "starting", "connected": is_connected, "trouble": problem}
        is_silent = runner is not None and symbol in runner.silent_symbols
        return describe_market(market, now_ms, self._publisher.state_since_ms(market), is_silent=is_silent)

    async def _read_newest(self, symbols: Sequence[Symbol]) -> Mapping[Symbol, int]:
        """Return the newest final minute of each stored market of `symbols`, or of all.

        Queued minutes of `symbols` are stored first: these markets may have been closed a moment ago.
        """

        async def flush(symbol: Symbol) -> None:
            with contextlib.suppress(StoreUnavailable, StoreRejected):  # logged by the writer; the load waits then
                await self._store.flush_market(MarketKey(self.name, symbol))

        await in_parallel(len(symbols), symbols, flush)
        return await (self._loader.load_newest_of(symbols) if len(symbols) <= _FEW else self._newest.read())

    async def _reopen_market(self, symbol: Symbol, reading: asyncio.Task[Mapping[Symbol, int]]) -> None:
        """Open a market that may have been read before."""
        newest = await asyncio.shield(reading)  # other markets wait for it too
        await self._open_market(symbol, newest.get(symbol))

    async def _open_market(self, symbol: Symbol, newest_ms: int | None) -> None:
        """Read a market's stored data, then process the events that its feed has delivered since."""
        is_urgent = self._listing.is_urgent(MarketKey(self.name, symbol))
        turns = self._turns[is_urgent]
        async with turns.reading:
            market = await self._loader.load_market(symbol, newest_ms, self._time.now_ms)
        async with turns.beginning.take(is_urgent=is_urgent):
            self._begin_market(market, newest_ms)

    def _begin_market(self, market: MarketIngest, newest_ms: int | None) -> None:
        symbol = market.key.symbol
        self._opening.pop(symbol)
        market.presence.connected = symbol in self._connected
        if symbol in self._feeds.surplus:
            market.status.rejection = self._feeds.limit_problem
        self._markets[symbol] = market
        self._past.examine_again(symbol)
        self._listing.compare_market(market)
        self._publisher.open_market(market, newest_ms, self._time.now_ms())
        for event, received_ms in self._early.take_events(symbol):
            self._on_market_event(event, self._time.now_ms() if received_ms is None else received_ms)
        if self._listing.is_urgent(market.key):  # the others wait until the stream has given the time as well
            self._repair.enqueue_request(market, self._time.now_ms())

    # ------------------------------------------------------------ PoolSink

    def on_feed_connected(self, feed: Feed) -> None:
        """Mark the feed's markets as connected."""
        self._connected.update(feed.symbols)
        for market in self._open_markets(feed):
            market.presence.connected = True

    def on_feed_interrupted(self, feed: Feed, reason: str) -> None:
        """Discard the feed's waiting events and mark its markets as interrupted."""
        self._connected.difference_update(feed.symbols)
        self._early.forget_markets(feed.symbols)
        self._untimed.forget_markets(feed.symbols)
        for market in self._open_markets(feed):
            market.on_interrupted(is_flooded=reason == FLOODED)

    def on_feed_event(self, event: Event) -> None:
        """Process an event of a feed, and use its timestamps to estimate the exchange's clock."""
        if isinstance(event, Candles) and event.candles and not self._time.is_own:
            self._time.observe_frame(event)
            if not self._time.is_reliable:
                self._update_clock()
        if isinstance(event, Candles | SubscriptionRejected):
            now_ms = self._time.now_ms()
            if isinstance(event, Candles):
                self._count_event(event, now_ms)
            self._on_market_event(event, now_ms)
        elif isinstance(event, FeedError):
            self._on_error(event)

    def _count_event(self, event: Candles, now_ms: int) -> None:
        counts = self._counts
        counts.candle_events += 1
        if counts.candle_events % _LAG_EVERY or event.snapshot or not event.candles:
            return
        if sent_ms := event.candles[-1].as_of_ms:
            counts.lag_s.observe(max(0.0, (now_ms - sent_ms) / 1000))

    def _on_error(self, event: FeedError) -> None:
        self._counts.complaints += 1
        if self._errors.add_error(self._time.steady_ms()):
            logger.warning("%s: the exchange reported an error, counting further ones: %s", self.name, event.reason)

    def _open_markets(self, feed: Feed) -> list[MarketIngest]:
        return [self._markets[symbol] for symbol in feed.symbols if symbol in self._markets]

    def _on_market_event(self, event: Candles | SubscriptionRejected, now_ms: int) -> None:
        market = self._markets.get(event.symbol)
        if market is None:
            if event.symbol in self._connected:
                self._early.add_event(event, now_ms if self._time.is_reliable else None)
        elif isinstance(event, SubscriptionRejected):
            if market.status.rejection is None:
                logger.error(
                    "%s: rejected the subscription to %s, trying again: %s", self.name, event.symbol, event.reason
                )
            market.status.rejection = event.reason
        elif event.candles or event.invalid:
            if self._time.is_reliable:
                self._on_candles(market, event, now_ms)
            else:
                self._untimed.add_event(event, None)

    def _on_candles(self, market: MarketIngest, event: Candles, now_ms: int) -> None:
        if event.snapshot:
            may_shorten = self._store.is_behind and not self._listing.is_urgent(market.key)
            event = self._short.use_snapshot(event, market, may_shorten=may_shorten and self._repair.problem is None)
        outcome = market.on_push(event, now_ms)
        self._publish_live(market, outcome)
        if outcome.past or not self._publisher.has_published(market):
            self._tasks.start(self._publisher.publish_repair(market, outcome))

    def _publish_live(self, market: MarketIngest, outcome: Outcome) -> None:
        self._publisher.publish_live(market, outcome.live, outcome.past_range)
        if market.minutes.awaits_late_versions:
            self._in_grace_period[market.key.symbol] = market

    # ------------------------------------------------------------ from the repair and the list of markets

    def _on_answer(self, market: MarketIngest, outcome: Outcome) -> None:
        self._counts.checked += outcome.checked
        self._counts.mismatched += outcome.mismatched
        self._counts.repaired += outcome.repaired_minutes
        self._publish_live(market, outcome)
        self._short.on_answer(market)
        if outcome.is_subscription_dead and (runner := self._feeds.runner_of(market.key.symbol)) is not None:
            runner.renew_subscription(market.key.symbol)

    def _on_listed(self, symbol: Symbol) -> None:
        self._repair.retry_now(symbol)
        if (runner := self._feeds.runner_of(symbol)) is not None:
            runner.retry_now(symbol)
        elif symbol not in self._feeds.surplus:  # it had no feed, because it was delisted for long
            self._feeds.add_symbols([symbol])
            self._on_place_found(symbol)

    def _on_ended(self, symbol: Symbol) -> None:
        """Unsubscribe from a market that has been delisted for a day. It stays open with its history."""
        self._leave_feeds([symbol])
        self._short.forget_markets([symbol])
        self._markets[symbol].presence.connected = False

    def _on_renamed(self, symbol: Symbol, former: Symbol) -> None:
        self._tasks.start(self._renamed.copy_history(former, symbol))

    # ------------------------------------------------------------ maintenance

    async def _run_maintenance(self) -> None:
        """Check every market, in an endless loop."""
        while True:
            self._time.log_differences()
            self._repair.share_polls(self._markets.values())
            errors = self._errors.end_series(self._time.steady_ms())
            if errors > 1:
                logger.info("%s: no more errors reported by the exchange; %d in total", self.name, errors)
            await self._spread_over(list(self._markets.values()), _CHECK_S, self._check_market)

    async def _run_finality(self) -> None:
        """Publish minutes soon after they became final, in an endless loop."""
        while True:
            self._update_clock()
            await self._spread_over(list(self._in_grace_period.values()), _FINALITY_S, self._publish_final)

    async def _spread_over(
        self, markets: Sequence[MarketIngest], seconds: float, check: Callable[[MarketIngest, int], None]
    ) -> None:
        """Call `check` for each market, spread over `seconds`, so that many markets do not block the event loop."""
        turns = max(1, -(-len(markets) // _MARKETS_AT_ONCE))
        for turn in range(turns):
            now_ms = self._time.now_ms()
            for market in markets[turn::turns]:
                if self._publisher.is_open(market):  # it may have been removed meanwhile
                    check(market, now_ms)
            await self._clock.sleep(seconds / turns)

    def _check_market(self, market: MarketIngest, now_ms: int) -> None:
        self._repair.enqueue_request(market, now_ms)
        self._publisher.publish_state(market, now_ms)
        market.rows.log_recovery(now_ms)
        self._renew_snapshot(market)

    def _renew_snapshot(self, market: MarketIngest) -> None:
        """Renew the subscription of a market if REST did not deliver the minutes that its snapshot had."""
        symbol = market.key.symbol
        if self._repair.has_failed(symbol) or market.status.is_credible is False or market.ended_ms is not None:
            self._short.on_failure(symbol)
        if symbol in self._short.unmet and (runner := self._feeds.runner_of(symbol)) is not None:
            runner.renew_subscription(symbol)  # unless it was renewed a moment ago

    def _publish_final(self, market: MarketIngest, now_ms: int) -> None:
        final = market.finalize_minutes(now_ms)
        if final:
            self._publisher.publish_live(market, final)
        if not market.minutes.awaits_late_versions:
            self._in_grace_period.pop(market.key.symbol, None)

    def _update_clock(self) -> None:
        """Update the estimate of the exchange's clock, and process the candles that waited for it."""
        if self._time.is_own:
            return
        before_ms = self._time.now_ms()
        if self._time.update_estimate():
            self._tasks.start(self._request_time())
        if self._time.now_ms() < before_ms - TOLERANCE_MS:
            for market in self._markets.values():
                market.coverage.drop_after(MINUTE.floor(self._time.now_ms()))
        if self._time.is_reliable:
            for event in self._untimed.take_all():
                self._on_market_event(event, self._time.now_ms())

    async def _request_time(self) -> None:
        """Make a REST request to learn the time, after this machine's clock was set or the machine slept."""
        with contextlib.suppress(Unavailable, ExchangeError):
            await self._exchange.fetch_markets(self._http)
