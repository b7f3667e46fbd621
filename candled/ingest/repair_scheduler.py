"""The requests for history of one exchange: the most urgent first, within its request budget."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from candled.errors import CandledError, ExchangeError, StoreRejected, StoreUnavailable, Unavailable
from candled.exchange import InvalidRow
from candled.model import MINUTE_MS, Candle, Range, Symbol
from candled.model.texts import printable
from candled.tasks import Backoff, LoopTurns

from .context import IngestContext
from .coverage import Urgency, Window
from .evidence import find_evidence
from .market import POLL_MS, MarketIngest, Outcome
from .market_listing import MarketListing
from .market_status import MAX_PROBLEM
from .parity import Parity
from .publisher import IngestPublisher
from .request_queue import Place, RequestQueue
from .retention import fetch_kept, kept_since

logger = logging.getLogger(__name__)

_TICK_S = 0.1
# Few, because the others wait in the queue, where an urgent one can overtake them.
_REQUESTS_AT_ONCE = 4
# While so many answers are being saved, only the requests for which clients wait are made.
_SAVED_AT_ONCE = 48
_OUTAGE_S = 10.0
#: The number of tasks that call `run`.
WORKERS = 64
# While a stream is down, REST is polled for its forming minutes, using at most this share of the request budget.
_POLL_SHARE = 0.4
# Other sources are asked about an unconfirmed beginning of history after pauses that grow from one minute to six hours.
_EVIDENCE_S, _EVIDENCE_MOST_S = 60.0, 21_600.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """The rows of an answer, and when they were requested."""

    #: The request: its purpose, and its minutes.
    window: Window
    #: The rows, in any order; those that are not valid candles as `InvalidRow`.
    rows: Sequence[Candle | InvalidRow]
    #: When the request was made, UTC epoch milliseconds on the exchange's clock.
    asked_ms: int
    #: When the request was made, in milliseconds of a clock that never goes back.
    asked_steady_ms: int


class RepairScheduler:
    """A queue of markets with a request to make. Several workers `run` it.

    `on_answer` is called with the outcome of each answer that is used. `Place` explains the order of requests with the
    same purpose. Markets for which `awaits_snapshot` is true are `LATE`.
    """

    def __init__(
        self,
        context: IngestContext,
        publisher: IngestPublisher,
        listing: MarketListing,
        *,
        on_answer: Callable[[MarketIngest, Outcome], None],
        awaits_snapshot: Callable[[Symbol], bool],
    ) -> None:
        self._name = context.name
        self._exchange = context.exchange
        self._http = context.http
        self._clock = context.clock
        self._time = context.time
        self._store = context.store
        self._publisher = publisher
        self._listing = listing
        self._on_answer = on_answer
        self._awaits_snapshot = awaits_snapshot
        self._queue = RequestQueue()
        #: Set when the queue is not empty.
        self._queued = asyncio.Event()
        #: For work with the rows of an answer.
        self._turns = LoopTurns(context.clock)
        #: The workers that make a request. The others save answers, which may take long.
        self._requesting = asyncio.Semaphore(_REQUESTS_AT_ONCE)
        #: The number of answers that are being saved.
        self._saving = 0
        #: Markets from their entry into the queue until their answer is saved.
        self._busy: set[MarketIngest] = set()
        #: When to request a market again after a failure, monotonic seconds.
        self._retry_at: dict[Symbol, float] = {}
        #: The pauses of markets whose requests fail.
        self._backoffs: dict[Symbol, Backoff] = {}
        #: The pauses while the exchange's REST API is unavailable, and the end of the current one, monotonic seconds.
        self._outage, self._paused_until = Backoff(), 0.0
        #: Pauses between searches for evidence, and the time of the next one.
        self._searches: dict[Symbol, tuple[Backoff, float]] = {}
        #: The time between two requests for the present of one market.
        self._poll_ms = POLL_MS
        #: Why the exchange's REST API is unavailable; None if it is available.
        self.problem: str | None = None
        self._outage_since = 0.0  # monotonic seconds
        self.parity = Parity()

    def has_failed(self, symbol: Symbol) -> bool:
        """Return whether REST failed twice in a row for a market, or has been unavailable for ten seconds."""
        is_outage = self.problem is not None and self._clock.monotonic() > self._outage_since + _OUTAGE_S
        return is_outage or (symbol in self._backoffs and self._backoffs[symbol].failure_count > 1)

    def share_polls(self, markets: Iterable[MarketIngest]) -> None:
        """Share the requests for forming minutes among the markets whose streams do not deliver them."""
        now_ms = self._time.now_ms()
        polled = sum(market.is_polled(now_ms) for market in markets)
        self._poll_ms = max(POLL_MS, round(1000 * polled / (_POLL_SHARE * self._exchange.requests_per_s)))

    def retry_now(self, symbol: Symbol) -> None:
        """Forget the failed requests of a market."""
        self._retry_at.pop(symbol, None)
        self._backoffs.pop(symbol, None)

    def close_market(self, market: MarketIngest) -> None:
        """Forget a market. The answer to a request that is under way is not used."""
        symbol = market.key.symbol
        self._queue.remove_market(market)
        self._busy.discard(market)
        self._searches.pop(symbol, None)
        self.retry_now(symbol)

    def enqueue_request(self, market: MarketIngest, now_ms: int) -> None:
        """Queue a market if a request is due, or move it ahead in the queue."""
        symbol, place = market.key.symbol, self._place_of(market)
        self._queue.move_ahead(market, place)
        is_resting = self._clock.monotonic() < self._retry_at.get(symbol, 0.0)
        if market in self._busy or is_resting or not self._time.is_reliable:
            return
        window = market.next_request(now_ms, self._poll_ms)
        if window is not None:
            self._busy.add(market)
            self._queue.add_market(market, window.urgency, place)
            self._queued.set()

    def _place_of(self, market: MarketIngest) -> Place:
        if self._listing.is_urgent(market.key):
            return Place.AWAITED
        return Place.LATE if self._awaits_snapshot(market.key.symbol) else Place.USUAL

    async def run(self) -> None:
        """Request the most urgent window of all markets, and save the answer, in an endless loop."""
        while True:
            while not self._queue:
                self._queued.clear()
                await self._queued.wait()
            async with self._requesting:
                market = await self._next_market()
                answer = None if market is None else await self._request_market(market)
            if market is None:
                continue
            try:
                if answer is not None and await self._save_answer(market, answer):
                    await self._examine_beginning(market)
            finally:
                self._busy.discard(market)
            if self._publisher.is_open(market):
                self.enqueue_request(market, self._time.now_ms())

    async def _next_market(self) -> MarketIngest | None:
        """Take the market with the most urgent request from the queue, once it may be made; None if there is none."""
        while (wait_s := self._wait_s()) > 0:
            await self._clock.sleep(wait_s)
        return self._queue.take_first()

    def _wait_s(self) -> float:
        """Return the seconds until the first request is checked again; 0.0 if it may be made now."""
        # requests that are not urgent may use only half of the budget
        urgency, place = self._queue.first or (Urgency.RECENT, Place.AWAITED)
        has_budget = urgency < Urgency.CONFIRM or not self._http.is_busy()
        has_space = place is Place.AWAITED or self._saving < _SAVED_AT_ONCE
        return max(0.0 if has_budget and has_space else _TICK_S, self._paused_until - self._clock.monotonic())

    async def _request_market(self, market: MarketIngest) -> _Answer | None:
        """Make the next request of a market; return the answer, or None if it cannot be used."""
        try:
            is_open = self._publisher.is_open(market)
            window = market.next_request(self._time.now_ms(), self._poll_ms) if is_open else None
            return None if window is None else await self._request_window(market, window)
        except BaseException:
            self._busy.discard(market)
            raise

    async def _request_window(self, market: MarketIngest, window: Window) -> _Answer | None:
        symbol = market.key.symbol
        asked_ms, asked_steady_ms = self._time.now_ms(), self._time.steady_ms()
        try:
            rows = await fetch_kept(self._exchange, self._http, symbol, Range(window.start_ms, window.end_ms), asked_ms)
        except Unavailable as error:
            self._on_unavailable(market, error)
            return None
        except ExchangeError as error:
            self._on_failure(market, str(error))
            return None
        except Exception as error:  # an error in a plugin must not end the repair of all markets
            logger.exception("%s: history of %s failed", self._name, symbol)
            self._on_failure(market, repr(error))
            return None
        return _Answer(window, rows, asked_ms, asked_steady_ms)

    async def _save_answer(self, market: MarketIngest, answer: _Answer) -> bool:
        """Apply, store and publish an answer; return whether it was used."""
        self._saving += 1
        try:
            outcome = await self._apply_answer(market, answer)
            if outcome is None:
                return False
            if outcome.past or outcome.repaired is not None or not self._publisher.has_published(market):
                await self._publisher.publish_repair(market, outcome)
        finally:
            self._saving -= 1
        return True

    async def _examine_beginning(self, market: MarketIngest) -> None:
        if market.coverage.beginning is None:
            self._searches.pop(market.key.symbol, None)
            return
        async with self._requesting:
            await self._find_beginning(market)

    async def _apply_answer(self, market: MarketIngest, answer: _Answer) -> Outcome | None:
        """Apply an answer to a market, and publish its live edge; return the outcome, or None for an unused answer."""
        window, rows, asked_ms = answer.window, answer.rows, answer.asked_ms
        if not self._publisher.is_open(market):
            return None
        foreign = market.comparison.find_foreign(rows)
        if foreign is not None:
            market.rows.drop_row(foreign, self._time.now_ms())
            self._on_failure(market, "the exchange's REST API answers with rows of another market")
            return None
        self._on_success(market.key.symbol)
        self._time.observe_rows(rows, answer.asked_steady_ms)
        try:
            stored = await self._read_stored(market, window)
        except (StoreUnavailable, StoreRejected) as error:
            self._on_failure(market, f"the stored minutes cannot be read to compare them: {error}")
            return None
        async with self._turns.take(is_urgent=self._listing.is_urgent(market.key)):
            if not self._publisher.is_open(market):
                return None
            now_ms = max(asked_ms, self._time.now_ms())
            outcome = market.on_history(window, rows, now_ms, asked_ms=asked_ms, stored=stored)
            self.parity.count_checked(self._time.now_ms(), outcome.checked, outcome.mismatched)
            self._on_answer(market, outcome)
            return outcome

    async def _read_stored(self, market: MarketIngest, window: Window) -> Sequence[Candle]:
        """Return the stored minutes that a response is compared with and that are not in memory."""
        span = market.stored_span(window, self._time.now_ms())
        if span is None:
            return ()
        await self._store.flush_market(market.key)
        return await self._store.read_minutes(market.key, *span)

    async def _find_beginning(self, market: MarketIngest) -> None:
        """Ask other sources about the time before the first minute, after growing pauses while it is unconfirmed."""
        symbol, beginning, first_ms = market.key.symbol, market.coverage.beginning, market.coverage.first_ms
        if not self._publisher.is_open(market):
            return
        if beginning is None or first_ms is None or beginning.reason != "unconfirmed":
            self._searches.pop(symbol, None)
            return
        pauses, due_at = self._searches.get(symbol, (Backoff(first_s=_EVIDENCE_S, most_s=_EVIDENCE_MOST_S), 0.0))
        if self._clock.monotonic() < due_at or market.coverage.unasked_within(beginning.start_ms, first_ms):
            return
        self._searches[symbol] = pauses, self._clock.monotonic() + pauses.on_failure()
        span, listed_ms = Range(beginning.start_ms, beginning.end_ms), self._listing.listed_ms(symbol)
        try:
            (first,) = await self._store.read_minutes(market.key, first_ms, first_ms + MINUTE_MS)
            kept_ms = kept_since(self._exchange.history_minutes, self._time.now_ms())
            evidence = await find_evidence(self._exchange, self._http, symbol, span, first, listed_ms, kept_ms)
        except (CandledError, ValueError) as error:  # no result; asked again later
            logger.debug("%s: the beginning of its history is unknown: %s", market.key, error)
            return
        except Exception:  # an error in a plugin must not end the repair of all markets
            logger.exception("%s: the beginning of its history is unknown", market.key)
            return
        changed = market.apply_evidence(evidence, self._time.now_ms())
        if changed is not None:
            await self._publisher.publish_repair(market, Outcome(repaired=changed))

    def _on_unavailable(self, market: MarketIngest, error: Unavailable) -> None:
        market.on_history_failed(str(error))
        wait_s = max(self._outage.on_failure(), error.retry_after_s or 0.0)
        self._paused_until = self._clock.monotonic() + wait_s
        if self.problem is None:
            self._outage_since = self._clock.monotonic()
            logger.warning("%s: history cannot be read: %s; next attempt in %.1f s", self._name, error, wait_s)
        self.problem = printable(str(error), MAX_PROBLEM)

    def _on_failure(self, market: MarketIngest, reason: str) -> None:
        if not self._publisher.is_open(market):
            return
        symbol = market.key.symbol
        wait_s = self._backoffs.setdefault(symbol, Backoff(first_s=5.0, most_s=600.0)).on_failure()
        self._retry_at[symbol] = self._clock.monotonic() + wait_s
        if market.status.problem != reason:
            logger.warning("%s: history of %s: %s; next attempt in %.0f s", self._name, symbol, reason, wait_s)
        market.on_history_failed(reason)

    def _on_success(self, symbol: Symbol) -> None:
        self._outage.on_success()
        self._backoffs.pop(symbol, None)
        if self.problem is not None:
            logger.info("%s: history can be read again", self._name)
            self.problem = None
