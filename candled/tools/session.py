"""The store on its threads and the exchanges within their budgets, for commands that ask an exchange."""

import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from candled.budget import MakeBudget
from candled.config import Config, ExchangeConfig, make_exchanges, make_store
from candled.errors import ExchangeError, StoreUnavailable, Unavailable
from candled.exchange import Clock, Exchange, InvalidRow
from candled.ingest.evidence import Evidence, find_evidence
from candled.ingest.http import HttpClient
from candled.ingest.retention import fetch_kept, kept_since
from candled.ingest.rows import Answer, sift
from candled.model import MINUTE, MINUTE_MS, Candle, Range, Symbol
from candled.store.interface import Store
from candled.store.threads import StoreThreads
from candled.tasks import Backoff, retry

from .budgets import SHARE, request_budgets
from .store_access import name_errors

P = ParamSpec("P")
T = TypeVar("T")

# The waits between attempts double from 1 s to 60 s: all attempts together take about five minutes.
_ATTEMPTS = 11
_MAX_INVALID_ANSWERS = 3
# Time after the end of a minute during which it is left to the daemon, because late versions may still arrive.
MARGIN_MS = 60_000


class ExchangeSource:
    """One configured exchange, used within a command's part of its request budget (`request_budgets`)."""

    def __init__(
        self, config: ExchangeConfig, exchange: Exchange, clock: Clock, grace_period_ms: int, budget: MakeBudget
    ) -> None:
        self.name = config.name
        self.exchange = exchange
        self._clock = clock
        self._grace_period_ms = grace_period_ms
        self.requests_per_s = exchange.requests_per_s * SHARE
        self._http = HttpClient(clock, exchange.requests_per_s, budget, config.proxies, exchange.request_budgets)

    @property
    def kept_ms(self) -> int:
        """The oldest minute that the exchange keeps, UTC epoch milliseconds; 0 if it keeps all."""
        return kept_since(self.exchange.history_minutes, self.exchange.now_ms())

    @property
    def request_count(self) -> int:
        """The number of requests so far."""
        return sum(int(host["requests"]) for host in self._http.describe().values())

    def until_ms(self) -> int:
        """Return the time before which minutes are over, with all their late versions."""
        return MINUTE.floor(self.exchange.now_ms() - self._grace_period_ms - MARGIN_MS)

    async def fetch_range(self, symbol: Symbol, span: Range) -> Answer:
        """Return the final minutes of `span` that the exchange has, and the rows that cannot be candles.

        Raises:
            Unavailable: it did not answer in several attempts over minutes.
            ExchangeError: it refused, or gave undocumented answers, several times.
        """
        asked_ms = self.exchange.now_ms()
        answer = sift(await self._fetch_final(symbol, span), span)
        stamped = (candle if candle.as_of_ms else candle._replace(as_of_ms=asked_ms) for candle in answer.candles)
        answer.candles = [candle._replace(final=True, src="backfill") for candle in stamped if self._is_over(candle)]
        return answer

    async def evidence(self, symbol: Symbol, stretch: Range, first: Candle) -> Evidence:
        """Ask other sources about the minutes of `stretch`, before `first`; see `candled.ingest.evidence`.

        Raises:
            Unavailable, ExchangeError: as the methods of the exchange.
        """
        listed = {market.symbol: market.listed_ms for market in await self.exchange.fetch_markets(self._http)}
        return await find_evidence(self.exchange, self._http, symbol, stretch, first, listed.get(symbol), self.kept_ms)

    def close(self) -> None:
        """Drop idle connections."""
        self._http.close()

    async def _fetch_final(self, symbol: Symbol, span: Range) -> Sequence[Candle | InvalidRow]:
        backoff = Backoff()

        def report(error: Exception, wait_s: float) -> None:
            if isinstance(error, ExchangeError) and backoff.failure_count > _MAX_INVALID_ANSWERS:
                raise error
            print_remark(f"{self.name}: {error}; next attempt in {wait_s:.0f} s")

        return await retry(
            lambda: fetch_kept(self.exchange, self._http, symbol, span, self.exchange.now_ms()),
            self._clock,
            backoff,
            on=(Unavailable, ExchangeError),
            attempts=_ATTEMPTS,
            report=report,
        )

    def _is_over(self, candle: Candle) -> bool:
        return candle.final or candle.as_of_ms >= candle.open_ms + MINUTE_MS + self._grace_period_ms


class Session:
    """The store and the exchanges of the settings, while a command runs."""

    def __init__(self, store: Store, threads: StoreThreads, sources: Iterable[ExchangeSource], clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.sources = {source.name: source for source in sources}
        self._threads = threads

    async def read_store(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the store that only reads.

        Raises:
            StoreUnavailable: several attempts over minutes have failed.
            StoreRejected: as the method.
        """
        read = partial(self._threads.run_read, call, *args, **kwargs)
        return await retry(read, self.clock, Backoff(), on=StoreUnavailable, attempts=_ATTEMPTS)

    async def write_store(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the store that changes it. Raises the same errors as `read_store`."""
        write = partial(self._threads.run_write, call, *args, **kwargs)
        return await retry(write, self.clock, Backoff(), on=StoreUnavailable, attempts=_ATTEMPTS)


def print_remark(text: str) -> None:
    """Print a remark on standard error."""
    print(f"candled: {text}", file=sys.stderr)


@asynccontextmanager
async def open_session(config: Config, exchanges: Collection[str], clock: Clock) -> AsyncIterator[Session]:
    """Open the store of the settings and the exchanges of these names for the length of the block.

    Raises:
        ConfigError: the store or an exchange could not be opened.
    """
    grace_period_ms = round(config.ingest.grace_period.total_seconds() * 1000)
    chosen = tuple(one for one in config.exchanges if one.name in exchanges)
    made = make_exchanges(config.model_copy(update={"exchanges": chosen}), clock)
    async with request_budgets(config, clock) as budget:
        sources = [
            ExchangeSource(one, exchange, clock, grace_period_ms, budget)
            for one, exchange in zip(chosen, made, strict=True)
        ]
        store = make_store(config)
        threads = StoreThreads(store)
        session = Session(store, threads, sources, clock)
        try:
            with name_errors("store.url"):
                await threads.run_write(store.open)
            for source in sources:
                newest = await session.read_store(store.newest_minutes, source.name)
                source.exchange.resume_after(max(newest.values(), default=None))
            yield session
        finally:
            for source in sources:
                source.close()
            await threads.close()
