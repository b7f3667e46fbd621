"""Stored bars against the exchange's own, in random samples."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from candled.config import ExchangeConfig
from candled.errors import ExchangeError, Unavailable
from candled.exchange import Clock, Exchange
from candled.ingest.http import HttpClient
from candled.model import MINUTE, Candle, Interval, MarketKey, Range, iso_ms
from candled.store.interface import Store

from . import stored
from .compare import compare
from .progress import Progress
from .report import Report

_SHARE = 0.5  # of the request budget: a daemon beside us needs the rest
_ATTEMPTS = 4
_FIRST_WAIT_S = 1.0
_STRETCH_BARS = 90  # one request nearly everywhere, and a quarter of daily bars

_Ask = Callable[[MarketKey, Interval, Range], Awaitable[list[Candle] | None]]


class ExchangeCheck:
    """Compares one exchange's markets, in windows that `chance` chooses: by the same seed the same ones."""

    def __init__(
        self,
        store: Store,
        exchange: ExchangeConfig,
        intervals: Sequence[Interval],
        clock: Clock,
        report: Report,
        chance: Random,
    ) -> None:
        self._store = store
        self._name = exchange.name
        self._exchange: Exchange = exchange.plugin(exchange.settings, clock)
        self._longer = [interval for interval in intervals if interval != MINUTE]
        self._clock = clock
        self._report = report
        self._chance = chance
        self._compared: Counter[Interval] = Counter()
        self._http = HttpClient(clock, self._exchange.requests_per_s * _SHARE)

    async def run(self, markets: Sequence[MarketKey], bounds: Range, windows: int) -> None:
        """Compare `windows` stretches of minutes of each market, and a stretch of each longer interval offered."""
        self._exchange.resume(max(self._store.newest(self._name).values(), default=None))
        progress = self._report.progress(f"ask {self._name}", len(markets) * (windows + len(self._longer)))
        try:
            for market in markets:
                self._compared.clear()
                await self._check(market, bounds, windows, progress)
                self._summarize(market)
        except Unavailable as error:
            self._report.unchecked(self._name, error)
        finally:
            progress.clear()
            self._http.close()

    async def _check(self, market: MarketKey, bounds: Range, windows: int, progress: Progress) -> None:
        span = stored.span_of(self._store, market, MINUTE)
        start_ms = max(span.start_ms if span else 0, bounds.start_ms)
        end_ms = min(span.end_ms if span else 0, bounds.end_ms)
        for _ in range(windows):
            window = self._window(MINUTE, start_ms, end_ms, self._exchange.history_minutes)
            if window is not None:
                await self._compare(market, MINUTE, window, self._minutes)
            progress.advance(1)
        for interval in self._longer:
            window = self._window(interval, start_ms, end_ms, _STRETCH_BARS)
            if window is not None:
                await self._compare(market, interval, window, self._bars)
            progress.advance(1)

    async def _minutes(self, market: MarketKey, _: Interval, window: Range) -> list[Candle]:
        return await self._exchange.history(self._http, market.symbol, *window)

    async def _bars(self, market: MarketKey, interval: Interval, window: Range) -> list[Candle] | None:
        return await self._exchange.bars(self._http, market.symbol, interval, *window)

    def _window(self, interval: Interval, start_ms: int, end_ms: int, most: int) -> Range | None:
        """A random stretch of at most `most` whole bars; None where not one fits."""
        first_ms = interval.floor(start_ms + interval.ms - 1)
        count = (end_ms - first_ms) // interval.ms
        if count <= 0:
            return None
        bars = min(most, count)
        window_ms = first_ms + self._chance.randrange(count - bars + 1) * interval.ms
        return Range(window_ms, window_ms + bars * interval.ms)

    async def _compare(self, market: MarketKey, interval: Interval, window: Range, ask: _Ask) -> None:
        try:
            theirs = await self._persist(lambda: ask(market, interval, window))
        except ExchangeError as error:
            self._report.unchecked(f"{market} {interval} {iso_ms(window.start_ms)}", error)
            return
        if not theirs:  # not offered, or older than what the exchange still has
            return
        ours = self._store.bars_between(market, interval, *window)
        self._compared[interval] += len(theirs)
        self._report.differ(compare("exchange", market, interval, theirs, ours, quote_may_be_absent=True))

    async def _persist(self, ask: Callable[[], Awaitable[list[Candle] | None]]) -> list[Candle] | None:
        wait_s = _FIRST_WAIT_S
        for _ in range(_ATTEMPTS - 1):
            try:
                return await ask()
            except Unavailable as error:
                await self._clock.sleep(max(wait_s, error.retry_after_s or 0.0))
                wait_s *= 2
        return await ask()

    def _summarize(self, market: MarketKey) -> None:
        counts = {str(interval): self._compared[interval] for interval in (MINUTE, *self._longer)}
        listed = ", ".join(f"{count:,} of {interval}" for interval, count in counts.items())
        self._report.say(
            f"{market}: compared with the exchange: {listed}",
            {"exchange": market.exchange, "symbol": str(market.symbol), "compared": counts},
        )
