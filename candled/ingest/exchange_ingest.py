"""One exchange's ingest: its feeds, its history, and the repair of gaps."""

import asyncio
import contextlib
import difflib
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, get_args

from candled.bus import Bus
from candled.errors import CandledError, ExchangeError, StoreRejected, StoreUnavailable, Unavailable
from candled.exchange import Candles, Clock, Event, Exchange, Feed, FeedError, SubscriptionRejected
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, Market, MarketKey, Range, RangeSet, Symbol, iso_ms
from candled.parallel import in_parallel
from candled.proxies import Proxies
from candled.store.interface import ALL_TIME, KnownGap
from candled.store.known_gaps import inside
from candled.tasks import Backoff, TaskSet, retry
from candled.token_bucket import TokenBucket

from . import publisher
from .complaints import Complaints
from .coverage import Absence, Coverage, Urgency, Window
from .evidence import find_evidence
from .exchange_clock import TOLERANCE_MS, ExchangeClock, Source
from .feeds import FeedRunner, LoopBudget
from .http import HttpClient
from .market import POLL_MS, MarketIngest, Outcome, Rules
from .minutes import WINDOW_MS
from .parity import Parity
from .publisher import IngestPublisher
from .stored_past import StoredPast

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OPENED_AT_ONCE = 8
_EARLY_EVENTS = 1000  # per market that is not open yet
_TICK_S = 0.5
_LOOK_S = 1.0  # between two checks of a market
_MARKETS_AT_ONCE = 50
_WORKERS = 4
_NOTABLE_SKEW_MS = 2_000
# At startup, and then this often, this much of the stored history is compared with REST again: exchanges revise
# minutes.
_RECHECK_MS = 24 * 60 * MINUTE_MS
_RECHECK_EVERY_MS = 6 * 60 * MINUTE_MS
# Every five minutes, the minutes that each market should have of the last days are compared with the store. The newest
# minutes are excluded, because their late versions may still arrive.
_AUDIT_S = 300.0
_AUDIT_MS = 3 * 1440 * MINUTE_MS
_AUDIT_MARGIN_MS = 10 * MINUTE_MS
_WEEK = Interval.parse("1W")
# While a stream is down, REST is polled for its forming minutes, using at most this share of the request budget.
_POLL_SHARE = 0.4
# Other sources are asked about an unconfirmed beginning of history after pauses that grow from one minute to six hours.
_EVIDENCE_S, _EVIDENCE_MOST_S = 60.0, 21_600.0
# The list of markets is read again every six hours; while a symbol is missing, after pauses of one minute to one hour.
_RELIST_S, _RELIST_MOST_S, _RELIST_WHOLE_S = 60.0, 3600.0, 21_600.0
# Bitget allows 300 attempts in 5 minutes per address. Half of that suits every exchange we know.
_ATTEMPTS_PER_S = 0.5
_ATTEMPTS_AT_ONCE = 20


class MarketStore(publisher.PublisherStore, Protocol):
    """The store methods that ingest needs; implemented by `candled.store.ingest_store.IngestStore`."""

    async def newest_minutes(self, exchange: str) -> Mapping[Symbol, int]:
        """See `Store.newest_minutes`."""

    async def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> Sequence[Range]:
        """See `Store.stored_ranges`."""

    async def read_minutes(self, market: MarketKey, start_ms: int, end_ms: int) -> Sequence[Candle]:
        """Return the final minutes of `[start_ms, end_ms)`, oldest first."""

    async def read_forming(self, market: MarketKey) -> Sequence[Candle]:
        """See `Store.read_forming`."""

    async def complete_from(self, market: MarketKey) -> int | None:
        """See `Store.complete_from`."""

    async def served_from(self, market: MarketKey) -> int | None:
        """See `Store.served_from`."""

    async def unpublished(self, exchange: str) -> Mapping[Symbol, Sequence[Range]]:
        """See `Store.unpublished`."""

    async def has_before(self, market: MarketKey, at_ms: int) -> bool:
        """Return whether a final minute before `at_ms` is stored."""

    async def known_gaps(self, market: MarketKey, within: Range) -> Sequence[KnownGap]:
        """See `Store.known_gaps`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestOptions:
    """The operator's settings for ingest. Times are in milliseconds."""

    #: How far back history is wanted.
    backfill_ms: int
    #: How long after the next minute opened the late versions of a minute are awaited.
    grace_period_ms: int
    #: How long the stream may be silent before REST is asked whether the market is quiet.
    quiet_after_ms: int
    #: The minimum time between two writes of forming minutes to the store.
    checkpoint_ms: int
    #: True if final minutes of the stream are compared with REST.
    confirm: bool


class ExchangeIngest:
    """The ingest of one configured exchange.

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
        store: MarketStore,
        http: HttpClient,
        options: IngestOptions,
        proxies: Proxies | None = None,
    ) -> None:
        self.name = name
        self._proxies = proxies
        self._exchange = exchange
        self._symbols = tuple(symbols)
        self._clock = clock
        self._store = store
        self._outlet = IngestPublisher(
            bus,
            store,
            clock,
            checkpoint_ms=options.checkpoint_ms,
            failed=lambda market, why: logger.error("%s: not stored: %s", market, why),
        )
        self._absence: Absence = "exchange_outage" if exchange.publishes_empty_candles else "no_trades"
        self._past = StoredPast(name, self._absence, store, self._outlet, clock)
        self._options = options
        self._http = http
        #: When each market was last compared with REST, on the steady clock.
        self._rechecked_ms: dict[Symbol, int] = {}
        self._time = ExchangeClock()
        #: Candles received before the clock was settled.
        self._waiting: list[Candles] = []
        #: How often each source of time was ignored.
        self._doubts: dict[Source, Complaints] = {source: Complaints() for source in get_args(Source)}
        http.saw_date = self._saw_date
        #: True if the plugin has its own clock, as the replay does.
        self._has_own_clock = type(exchange).now_ms is not Exchange.now_ms
        self._skew_noted = False
        #: The markets that are open.
        self._markets: dict[Symbol, MarketIngest] = {}
        #: The symbols whose feeds are connected.
        self._connected: set[Symbol] = set()
        # Events of markets that are not open yet, since the last interruption, each with the exchange's time of receipt
        # (None before the clock was settled). If opening takes long, the oldest events are dropped.
        self._early: dict[Symbol, deque[tuple[Candles | SubscriptionRejected, int | None]]] = {}
        self._store_is_away = False
        #: The exchange's newest list of markets; empty before it was read.
        self._listed: dict[Symbol, Market] = {}
        #: The feed of each symbol.
        self._runners: dict[Symbol, FeedRunner] = {}
        self._tasks = TaskSet()
        #: Markets with a request to make: a heap by urgency, then by order of arrival.
        self._queue: list[tuple[Urgency, int, Symbol]] = []
        #: Set when the queue is not empty.
        self._queued = asyncio.Event()
        self._turn = itertools.count()
        #: Markets that are in the queue or being requested.
        self._busy: set[Symbol] = set()
        #: Markets with minutes in their grace period.
        self._settling: dict[Symbol, MarketIngest] = {}
        #: When to request a market again after a failure, monotonic seconds.
        self._rest_until: dict[Symbol, float] = {}
        #: The pauses of markets whose requests fail.
        self._backoffs: dict[Symbol, Backoff] = {}
        #: The pauses while the exchange's REST API is unavailable.
        self._outage = Backoff()
        #: No requests before this time, monotonic seconds.
        self._paused_until = 0.0
        #: Why the exchange's REST API is unavailable; None if it is available.
        self._rest_trouble: str | None = None
        #: Pauses between searches for evidence, and the time of the next one.
        self._beginnings: dict[Symbol, tuple[Backoff, float]] = {}
        #: The time between two requests for the present of one market.
        self._pace_ms = POLL_MS
        self._parity = Parity()
        #: Counts errors that the exchange reported about whole connections.
        self._troubles = Complaints()

    # ------------------------------------------------------------ lifecycle

    async def start(self) -> None:
        """Start the feeds and the repair as soon as the store answers, and open the markets."""
        newest = await self._until_stored(lambda: self._store.newest_minutes(self.name))
        if type(self._exchange).resume_after is not Exchange.resume_after:
            self._exchange.resume_after(await self._until_stored(lambda: self._newest_over(newest)))
        attempts, turns = TokenBucket(_ATTEMPTS_PER_S, _ATTEMPTS_AT_ONCE), LoopBudget()
        for number, feed in enumerate(self._exchange.make_feeds(self._symbols), 1):
            runner = FeedRunner(f"{self.name} feed {number}", feed, self, self._clock, attempts, turns, self._proxies)
            self._runners |= dict.fromkeys(feed.symbols, runner)
            self._tasks.start(runner.run())
        self._tasks.start(self._follow_listing())
        self._tasks.start(self._run_maintenance())
        self._tasks.start(self._run_finality())
        self._tasks.start(self._outlet.run())
        for _ in range(_WORKERS):
            self._tasks.start(self._run_repair())
        await in_parallel(_OPENED_AT_ONCE, self._symbols, lambda symbol: self._open(symbol, newest.get(symbol)))
        self._tasks.start(self._run_audit())
        self._tasks.start(self._past.run(self._markets))

    async def stop(self) -> None:
        """Stop all tasks and queue the minutes that are not final yet for the store."""
        await self._tasks.cancel()
        for market in self._markets.values():
            for candle in market.forming():
                self._store.enqueue(market.key, candle)

    def now_ms(self) -> int:
        """Return the best estimate of the exchange's clock, UTC epoch milliseconds.

        It follows the time on which most sources agree, so setting this machine's clock changes nothing.
        """
        if self._has_own_clock:
            return self._exchange.now_ms()
        return self._time.now_ms(self._steady_ms(), self._clock.now_ms())

    def describe(self) -> dict[str, Any]:
        """Return the exchange's part of `/health`."""
        now_ms = self.now_ms()
        return {
            "clockSkewMs": self._skew_ms(),
            "clock": self._time.describe(),
            "historyTrouble": self._rest_trouble,
            "parity": self._parity.describe(now_ms),
            "complaints": self._troubles.total,
            "malformedFrames": sum(runner.malformed.total for runner in set(self._runners.values())),
            "hosts": self._http.describe(),
            "symbols": {str(symbol): self._describe_market(symbol, now_ms) for symbol in self._symbols},
        }

    # ------------------------------------------------------------ FeedSink

    def on_connected(self, feed: Feed) -> None:
        """Mark the feed's markets as connected."""
        self._connected.update(feed.symbols)
        for market in self._open_ones(feed):
            market.connected = True

    def on_interrupted(self, feed: Feed, reason: str) -> None:
        """Discard the feed's waiting events and mark its markets as interrupted."""
        self._connected.difference_update(feed.symbols)
        for symbol in feed.symbols:
            self._early.pop(symbol, None)
        self._waiting = [event for event in self._waiting if event.symbol not in feed.symbols]
        for market in self._open_ones(feed):
            market.on_interrupted()

    def on_event(self, event: Event) -> None:
        """Process an event of a feed, and use its timestamps to estimate the exchange's clock."""
        if isinstance(event, Candles) and event.candles and not self._has_own_clock:
            newest = event.candles[-1]
            self._time.observe_frame(newest.as_of_ms, newest.open_ms, self._steady_ms())
            if not self._time.is_settled:
                self._look_at_clocks()
        if isinstance(event, Candles | SubscriptionRejected):
            self._about_market(event, self.now_ms())
        elif isinstance(event, FeedError) and self._troubles.note(event.reason, self._steady_ms()):
            logger.warning("%s: the exchange reported an error, counting further ones: %s", self.name, event.reason)

    def _open_ones(self, feed: Feed) -> list[MarketIngest]:
        return [self._markets[symbol] for symbol in feed.symbols if symbol in self._markets]

    def _about_market(self, event: Candles | SubscriptionRejected, now_ms: int) -> None:
        market = self._markets.get(event.symbol)
        if market is None:
            if event.symbol in self._connected:
                self._early.setdefault(event.symbol, deque(maxlen=_EARLY_EVENTS)).append(
                    (event, now_ms if self._is_settled else None)
                )
        elif isinstance(event, Candles):
            self._on_candles(market, event, now_ms)
        else:
            if market.refused is None:
                logger.error(
                    "%s: rejected the subscription to %s, trying again: %s",
                    self.name,
                    event.symbol,
                    event.reason,
                )
            market.refused = event.reason

    def _on_candles(self, market: MarketIngest, event: Candles, now_ms: int) -> None:
        if not (event.candles or event.invalid):
            return
        if self._is_settled:
            self._take(market, event, now_ms)
        else:
            self._waiting.append(event)

    def _take(self, market: MarketIngest, event: Candles, now_ms: int) -> None:
        outcome = market.on_push(event, now_ms)
        self._publish_outcome(market, outcome)
        if outcome.past or not self._outlet.has_published(market):
            self._tasks.start(self._outlet.publish_repair(market, outcome))

    def _publish_outcome(self, market: MarketIngest, outcome: Outcome) -> None:
        self._outlet.publish_live(market, outcome.live, outcome.past_range)
        if market.awaits_late_versions:
            self._settling[market.key.symbol] = market

    # ------------------------------------------------------------ maintenance

    async def _run_maintenance(self) -> None:
        """Check every market, in an endless loop."""
        while True:
            self._compare_clocks()
            self._set_pace()
            complaints = self._troubles.ended(self._steady_ms())
            if complaints > 1:
                logger.info("%s: no more errors reported by the exchange; %d in total", self.name, complaints)
            await self._spread_over(list(self._markets.values()), _LOOK_S, self._check_market)

    async def _run_finality(self) -> None:
        """Publish minutes soon after they became final, in an endless loop."""
        while True:
            self._look_at_clocks()
            await self._spread_over(list(self._settling.values()), _TICK_S, self._publish_settled)

    async def _spread_over(
        self, markets: Sequence[MarketIngest], seconds: float, do: Callable[[MarketIngest, int], None]
    ) -> None:
        """Call `do` for each market, spread over `seconds`, so that many markets do not block the event loop."""
        turns = max(1, -(-len(markets) // _MARKETS_AT_ONCE))
        for turn in range(turns):
            now_ms = self.now_ms()
            for market in markets[turn::turns]:
                do(market, now_ms)
            await self._clock.sleep(seconds / turns)

    def _set_pace(self) -> None:
        """Share the requests for forming minutes among the markets whose streams do not deliver them."""
        now_ms = self.now_ms()
        polled = sum(market.is_polled(now_ms) for market in self._markets.values())
        self._pace_ms = max(POLL_MS, round(1000 * polled / (_POLL_SHARE * self._exchange.requests_per_s)))

    def _check_market(self, market: MarketIngest, now_ms: int) -> None:
        self._enqueue_request(market, now_ms)
        self._outlet.publish_state(market, now_ms)
        market.log_recovery(now_ms)

    def _publish_settled(self, market: MarketIngest, now_ms: int) -> None:
        settled = market.finalize_minutes(now_ms)
        if settled:
            self._outlet.publish_live(market, settled)
        if not market.awaits_late_versions:
            self._settling.pop(market.key.symbol, None)

    def _enqueue_request(self, market: MarketIngest, now_ms: int) -> None:
        symbol = market.key.symbol
        is_resting = self._clock.monotonic() < self._rest_until.get(symbol, 0.0)
        if symbol in self._busy or is_resting or not self._is_settled:
            return
        window = market.next_request(now_ms, self._pace_ms)
        if window is not None:
            self._busy.add(symbol)
            heapq.heappush(self._queue, (window.urgency, next(self._turn), symbol))
            self._queued.set()

    async def _run_repair(self) -> None:
        """Request the most urgent window of all markets, in an endless loop. Several workers run this."""
        while True:
            while not self._queue:
                self._queued.clear()
                await self._queued.wait()
            await self._wait_for_pause()
            if not self._queue:
                continue
            urgency, _, symbol = heapq.heappop(self._queue)
            market = self._markets[symbol]
            if urgency >= Urgency.CONFIRM:
                await self._until_idle()
            window = market.next_request(self.now_ms(), self._pace_ms)
            try:
                if window is not None:
                    await self._request_window(market, window)
            finally:
                self._busy.discard(symbol)
            self._enqueue_request(market, self.now_ms())

    async def _wait_for_pause(self) -> None:
        while (wait_s := self._paused_until - self._clock.monotonic()) > 0:
            await self._clock.sleep(wait_s)

    async def _until_idle(self) -> None:
        """Wait until more than half of the request budget is left.

        Requests that are not urgent may use only the other half.
        """
        while self._http.is_busy():
            await self._clock.sleep(_TICK_S)

    async def _request_window(self, market: MarketIngest, window: Window) -> None:
        symbol = market.key.symbol
        asked_ms, asked_steady_ms = self.now_ms(), self._steady_ms()
        try:
            rows = await self._exchange.fetch_history(self._http, symbol, window.start_ms, window.end_ms)
        except Unavailable as error:
            market.on_history_failed(str(error))
            wait_s = max(self._outage.on_failure(), error.retry_after_s or 0.0)
            self._paused_until = self._clock.monotonic() + wait_s
            self._note_rest_trouble(str(error), wait_s)
            return
        except ExchangeError as error:
            self._rest_failed(market, str(error))
            return
        except Exception as error:  # an error in a plugin must not end the repair of all markets
            logger.exception("%s: history of %s failed", self.name, symbol)
            self._rest_failed(market, repr(error))
            return
        foreign = market.find_foreign(rows, self.now_ms())
        if foreign is not None:
            self._rest_failed(market, foreign)
            return
        self._rest_works(symbol)
        if not self._has_own_clock:
            stated_ms = max((row.as_of_ms for row in rows if isinstance(row, Candle)), default=0)
            self._time.observe_answer(stated_ms, asked_steady_ms, self._steady_ms())
        try:
            stored = await self._stored(market, window)
        except (StoreUnavailable, StoreRejected) as error:
            self._rest_failed(market, f"the stored minutes cannot be read to compare them: {error}")
            return
        now_ms = max(asked_ms, self.now_ms())
        outcome = market.on_history(window, rows, now_ms, asked_ms=asked_ms, stored=stored)
        self._parity.count_checked(self.now_ms(), outcome.checked, outcome.mismatched)
        self._publish_outcome(market, outcome)
        if outcome.dead and symbol in self._runners:
            self._runners[symbol].renew_subscription(symbol)
        if outcome.past or outcome.healed is not None or not self._outlet.has_published(market):
            await self._outlet.publish_repair(market, outcome)
        await self._look_for_beginning(market)

    async def _look_for_beginning(self, market: MarketIngest) -> None:
        """Ask other sources about the time before the first minute, after growing pauses while it is unconfirmed."""
        symbol, beginning, first_ms = market.key.symbol, market.coverage.beginning, market.coverage.first_ms
        if beginning is None or first_ms is None or beginning.reason != "unconfirmed":
            self._beginnings.pop(symbol, None)
            return
        pauses, due_at = self._beginnings.get(symbol, (Backoff(first_s=_EVIDENCE_S, most_s=_EVIDENCE_MOST_S), 0.0))
        if self._clock.monotonic() < due_at or market.coverage.unasked(beginning.start_ms, first_ms):
            return
        self._beginnings[symbol] = pauses, self._clock.monotonic() + pauses.on_failure()
        stretch, listed = Range(beginning.start_ms, beginning.end_ms), self._listed.get(symbol)
        try:
            (first,) = await self._store.read_minutes(market.key, first_ms, first_ms + MINUTE_MS)
            evidence = await find_evidence(
                self._exchange, self._http, symbol, stretch, first, None if listed is None else listed.listed_ms
            )
        except (CandledError, ValueError) as error:  # no result; asked again later
            logger.debug("%s: the beginning of its history is unknown: %s", market.key, error)
            return
        except Exception:  # an error in a plugin must not end the repair of all markets
            logger.exception("%s: the beginning of its history is unknown", market.key)
            return
        changed = market.settle_beginning(evidence, self.now_ms())
        if changed is not None:
            await self._outlet.publish_repair(market, Outcome(healed=changed))

    async def _stored(self, market: MarketIngest, window: Window) -> Sequence[Candle]:
        """Return the stored minutes that a response is compared with and that are not in memory."""
        span = market.stored_span(window, self.now_ms())
        if span is None:
            return ()
        await self._store.flush()
        return await self._store.read_minutes(market.key, *span)

    def _rest_failed(self, market: MarketIngest, reason: str) -> None:
        symbol = market.key.symbol
        backoff = self._backoffs.setdefault(symbol, Backoff(first_s=5.0, most_s=600.0))
        wait_s = backoff.on_failure()
        self._rest_until[symbol] = self._clock.monotonic() + wait_s
        if market.trouble != reason:
            logger.warning("%s: history of %s: %s; next attempt in %.0f s", self.name, symbol, reason, wait_s)
        market.on_history_failed(reason)

    def _note_rest_trouble(self, reason: str, wait_s: float) -> None:
        if self._rest_trouble is None:
            logger.warning("%s: history cannot be read: %s; next attempt in %.1f s", self.name, reason, wait_s)
        self._rest_trouble = reason

    def _rest_works(self, symbol: Symbol) -> None:
        self._outage.on_success()
        self._backoffs.pop(symbol, None)
        if self._rest_trouble is not None:
            logger.info("%s: history can be read again", self.name)
            self._rest_trouble = None

    # ------------------------------------------------------------ comparison with the store

    async def _run_audit(self) -> None:
        """Compare the markets with the store in an endless loop, one at a time, and have some rechecked with REST."""
        while self._markets:
            for symbol, market in list(self._markets.items()):
                await self._clock.sleep(_AUDIT_S / len(self._markets))
                if self._steady_ms() - self._rechecked_ms[symbol] >= _RECHECK_EVERY_MS:
                    self._recheck(symbol, market.coverage)
                # logged by the writer; tried again in the next round
                with contextlib.suppress(StoreUnavailable, StoreRejected):
                    await self._compare_with_store(market)

    def _recheck(self, symbol: Symbol, coverage: Coverage) -> None:
        self._rechecked_ms[symbol] = self._steady_ms()
        coverage.recheck_since(self.now_ms() - _RECHECK_MS)

    async def _compare_with_store(self, market: MarketIngest) -> None:
        """Find minutes that the store has lost, and minutes that other processes have stored."""
        until_ms = MINUTE.floor(self.now_ms()) - _AUDIT_MARGIN_MS
        span = Range(max(market.coverage.from_ms, until_ms - _AUDIT_MS), until_ms)
        held = market.coverage.covered_within(*span)
        with contextlib.suppress(StoreRejected):  # minutes that were dropped show up as lost
            await self._store.flush()
        stored = RangeSet(await self._store.stored_ranges(market.key, *span))
        since_ms = await self._store.complete_from(market.key)
        lost, new = market.compare_with_store(held, stored, span)
        if lost:
            minutes = lost.total_ms // MINUTE_MS
            logger.warning("%s: %d minutes missing from the store, refetching", market.key, minutes)
        before_ms = market.coverage.since_ms
        if since_ms is not None and market.coverage.known_since(since_ms):
            new.add(since_ms, before_ms or until_ms)
        self._past.doubt(market.key.symbol)
        finds = list(new)
        if finds:
            await self._outlet.publish_repair(market, Outcome(healed=Range(finds[0].start_ms, finds[-1].end_ms)))

    # ------------------------------------------------------------ helpers

    async def _open(self, symbol: Symbol, newest_ms: int | None) -> None:
        """Read a market's stored data, then process the events that its feed has delivered since."""
        market = await self._until_stored(lambda: self._open_market(symbol, self.now_ms(), newest_ms))
        market.connected = symbol in self._connected
        self._markets[symbol] = market
        self._compare_with_listing(market)
        self._outlet.open_markets(market, newest_ms, self.now_ms())
        for event, came_ms in self._early.pop(symbol, ()):
            self._about_market(event, self.now_ms() if came_ms is None else came_ms)

    async def _until_stored(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read from the store, with retries while it is unavailable."""

        def report(error: Exception, wait_s: float) -> None:
            if not self._store_is_away:
                logger.warning("%s: the store cannot be read yet: %s", self.name, error)
            self._store_is_away = True

        result = await retry(read, self._clock, Backoff(), on=StoreUnavailable, report=report)
        self._store_is_away = False
        return result

    async def _newest_over(self, final: Mapping[Symbol, int]) -> int | None:
        """Return the newest completed minute in the store: a final one, or the one before a forming one."""
        newest = list(final.values())

        async def add_forming(symbol: Symbol) -> None:
            newest.extend(
                one.open_ms - MINUTE_MS for one in await self._store.read_forming(MarketKey(self.name, symbol))
            )

        await in_parallel(_OPENED_AT_ONCE, self._symbols, add_forming)
        return max(newest, default=None)

    async def _open_market(self, symbol: Symbol, now_ms: int, newest_ms: int | None) -> MarketIngest:
        key = MarketKey(self.name, symbol)
        # complete weeks, so that the first bar of every interval is complete; a longer pause leaves no week out
        wanted_ms = now_ms - self._options.backfill_ms
        from_ms = _WEEK.floor(wanted_ms if newest_ms is None else min(wanted_ms, newest_ms))
        coverage = Coverage(
            present=await self._store.stored_ranges(key, from_ms, now_ms),
            known_gaps=[_examined(gap) for gap in await self._known_gaps(key, from_ms, MINUTE.floor(now_ms))],
            since_ms=await self._store.complete_from(key),
            from_ms=from_ms,
            absence=self._absence,
            older=await self._store.has_before(key, from_ms),
        )
        self._recheck(symbol, coverage)
        rules = Rules(
            grace_period_ms=self._options.grace_period_ms,
            quiet_after_ms=self._options.quiet_after_ms,
            confirm=self._options.confirm,
            max_history_minutes=self._exchange.max_history_minutes,
            opens_at_previous_close=self._exchange.opens_at_previous_close,
            publishes_empty_candles=self._exchange.publishes_empty_candles,
        )
        recent = (
            () if newest_ms is None else await self._store.read_minutes(key, newest_ms - WINDOW_MS, ALL_TIME.end_ms)
        )
        return MarketIngest(key, coverage, rules, sorted([*recent, *await self._store.read_forming(key)]))

    async def _known_gaps(self, key: MarketKey, from_ms: int, now_ms: int) -> list[KnownGap]:
        """Return the stored gaps of a market and delete those in the future, which come from a wrong clock."""
        known_gaps = await self._store.known_gaps(key, Range(from_ms, ALL_TIME.end_ms))
        if any(gap.end_ms > now_ms for gap in known_gaps):
            await self._store.save_coverage(key, None, [], Range(now_ms, ALL_TIME.end_ms))
        return [piece for gap in known_gaps for piece in inside(gap, from_ms, now_ms)]

    async def _follow_listing(self) -> None:
        """Read the exchange's list of markets in an endless loop, more often while a symbol is missing from it."""
        failures, lacks = Backoff(first_s=2.0), Backoff(first_s=_RELIST_S, most_s=_RELIST_MOST_S)

        def report(error: Exception, wait_s: float) -> None:
            is_bug = not isinstance(error, CandledError)  # in a plugin, it must not end this task
            if is_bug or failures.failure_count == 1:
                logger.warning("%s: the list of markets cannot be read: %s", self.name, error, exc_info=is_bug)

        while True:
            listed = await retry(lambda: self._exchange.fetch_markets(self._http), self._clock, failures, report=report)
            failures.on_success()
            if self._take_listing(listed):
                lacks.on_success()
                await self._clock.sleep(_RELIST_WHOLE_S)
            else:
                await self._clock.sleep(lacks.on_failure())

    def _take_listing(self, listed: Sequence[Market]) -> bool:
        """Compare the exchange's list with the symbols; return whether it contains all of them."""
        self._listed = {market.symbol: market for market in listed}
        for market in self._markets.values():
            self._compare_with_listing(market)
        return all(symbol in self._listed for symbol in self._symbols)

    def _compare_with_listing(self, market: MarketIngest) -> None:
        """Apply the newest list to a market. An empty list, or none so far, is no evidence."""
        symbol = market.key.symbol
        if symbol in self._listed:
            market.decimals = self._listed[symbol].decimals
        was_unlisted, market.unlisted = market.unlisted is not None, None
        if self._listed and symbol not in self._listed:
            near = difflib.get_close_matches(str(symbol), map(str, self._listed), n=1, cutoff=0.8)
            market.unlisted = f"{self.name} does not list {symbol}" + (f", did you mean {near[0]}?" if near else "")
            if not was_unlisted:
                logger.error("%s; reading its list again after pauses", market.unlisted)
        elif was_unlisted:
            logger.info("%s: lists %s now", self.name, symbol)
            self._rest_until.pop(symbol, None)
            self._backoffs.pop(symbol, None)
            if symbol in self._runners:
                self._runners[symbol].hasten(symbol)

    @property
    def _is_settled(self) -> bool:
        return self._has_own_clock or self._time.is_settled

    def _saw_date(self, date_ms: int, asked: float, answered: float) -> None:
        self._time.observe_date(date_ms, round(asked * 1000), round(answered * 1000))

    def _look_at_clocks(self) -> None:
        """Update the estimate of the exchange's clock, and process the candles that waited for it."""
        if self._has_own_clock:
            return
        before_ms = self.now_ms()
        if self._time.look(self._steady_ms(), self._clock.now_ms()):
            self._tasks.start(self._ask_the_time())
        if self.now_ms() < before_ms - TOLERANCE_MS:
            for market in self._markets.values():
                market.coverage.forget_after(MINUTE.floor(self.now_ms()))
        if self._waiting and self._time.is_settled:
            waiting, self._waiting = self._waiting, []
            for event in waiting:
                self._take(self._markets[event.symbol], event, self.now_ms())

    async def _ask_the_time(self) -> None:
        """Make a REST request to learn the time, after this machine's clock was set or the machine slept."""
        with contextlib.suppress(Unavailable, ExchangeError):
            await self._exchange.fetch_markets(self._http)

    def _compare_clocks(self) -> None:
        for source, off_ms in self._time.doubted.items():
            if source != "machine" and self._doubts[source].note("", self._steady_ms()):
                logger.warning("%s: the time from its %s is %.1f s off, ignored", self.name, source, off_ms / 1000)
        for source, complaints in self._doubts.items():
            if complaints.ended(self._steady_ms()):
                logger.info("%s: the time from its %s is right again", self.name, source)
        notable = abs(self._skew_ms()) > _NOTABLE_SKEW_MS
        if notable != self._skew_noted:
            self._skew_noted = notable
            if notable:
                logger.warning(
                    "%s: its clock is %.1f s from this machine's; candles follow the exchange, check this machine",
                    self.name,
                    self._skew_ms() / 1000,
                )
            else:
                logger.info("%s: its clock and this machine's agree again", self.name)

    def _steady_ms(self) -> int:
        return round(self._clock.monotonic() * 1000)

    def _skew_ms(self) -> int:
        """Return how far the exchange's clock is ahead of this machine's."""
        return self.now_ms() - self._exchange.now_ms()

    def _describe_market(self, symbol: Symbol, now_ms: int) -> dict[str, Any]:
        market = self._markets.get(symbol)
        if market is None:
            loading = "is not loaded from the store yet"
            connected = symbol in self._connected
            return {"state": "warming", "reason": "starting", "connected": connected, "trouble": loading}
        coverage = market.coverage
        known_gaps = market.known_gaps
        runner = self._runners.get(symbol)
        condition = market.condition(now_ms)
        trouble = market.trouble_text
        if trouble is None and runner is not None and symbol in runner.silent_symbols:
            trouble = "subscribed, but the exchange sends nothing"
        return {
            "state": condition.state,
            "reason": condition.reason or None,
            "since": iso_ms(self._outlet.state_since_ms(market)),
            "connected": market.connected,
            "lastMessageAgeMs": None if market.pushed_ms is None else max(0, now_ms - market.pushed_ms),
            "newestMinute": None if market.newest_ms is None else iso_ms(market.newest_ms),
            "completeFrom": None if coverage.since_ms is None else iso_ms(coverage.since_ms),
            "beginning": _describe_gap(beginning) if (beginning := coverage.beginning) is not None else None,
            "missingMinutes": market.missing_minutes(now_ms),
            "holes": {
                "count": len(known_gaps),
                "minutes": sum(gap.end_ms - gap.start_ms for gap in known_gaps) // MINUTE_MS,
                "newest": [_describe_gap(gap) for gap in known_gaps[-5:]],
            },
            "revisions": market.revisions,
            "invalidCandles": market.complaints.total,
            "unbelievedStamps": market.unbelieved_stamps,
            "unconfirmedMinutes": coverage.unconfirmed_minutes,
            "trouble": trouble,
        }


def _examined(gap: KnownGap) -> KnownGap:
    """Return a stored gap with a retry time if it has none, so that even a permanent one is examined again."""
    return replace(gap, retry_ms=0) if gap.retry_ms is None else gap


def _describe_gap(gap: KnownGap) -> dict[str, Any]:
    return {
        "from": iso_ms(gap.start_ms),
        "to": iso_ms(gap.end_ms),
        "reason": gap.reason,
        "attempts": gap.attempts,
        "nextTry": None if gap.retry_ms is None else iso_ms(gap.retry_ms),
    }
