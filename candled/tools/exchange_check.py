"""Stored bars against the exchange's own, in random samples."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Literal

from candled.budget import MakeBudget
from candled.config import ExchangeConfig
from candled.errors import ExchangeError, Unavailable
from candled.exchange import Clock, Exchange
from candled.ingest.http import HttpClient
from candled.ingest.rows import Answer, sift
from candled.model import MINUTE, Interval, MarketKey, Range, iso_ms
from candled.store.interface import Store

from . import stored
from .compare import compare
from .report import Report

_ATTEMPTS = 4
_FIRST_WAIT_S = 1.0
_STRETCH_BARS = 90  # one request nearly everywhere, and a quarter of daily bars

_Ask = Callable[[MarketKey, Interval, Range], Awaitable[Answer]]


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
        budget: MakeBudget,
    ) -> None:
        self._store = store
        self._name = exchange.name
        self._exchange: Exchange = exchange.plugin(exchange.settings, clock)
        self._longer = [interval for interval in intervals if interval != MINUTE]
        self._clock = clock
        self._report = report
        self._chance = chance
        self._compared: Counter[Interval] = Counter()
        self._http = HttpClient(clock, self._exchange.requests_per_s, budget, exchange.proxies)

    async def run(self, markets: Sequence[MarketKey], bounds: Range, windows: int | Literal["all"]) -> None:
        """Compare `windows` stretches of minutes of each market, and a stretch of each longer interval offered.

        With `all` everything is compared that is stored and the exchange has.
        """
        self._exchange.resume(max(self._store.newest(self._name).values(), default=None))
        plans = {market: self._plan(market, bounds, windows) for market in markets}
        progress = self._report.progress(f"ask {self._name}", sum(map(len, plans.values())))
        try:
            for market, plan in plans.items():
                self._compared.clear()
                for interval, window in plan:
                    await self._compare(market, interval, window, self._minutes if interval == MINUTE else self._bars)
                    progress.advance(1)
                self._summarize(market)
        except Unavailable as error:
            self._report.unchecked(self._name, error)
        finally:
            progress.clear()
            self._http.close()

    def _plan(self, market: MarketKey, bounds: Range, windows: int | Literal["all"]) -> list[tuple[Interval, Range]]:
        """What to compare, minutes first; nothing that reaches beyond the stored minutes."""
        span = stored.span_of(self._store, market, MINUTE)
        start_ms = max(span.start_ms if span else 0, bounds.start_ms)
        end_ms = min(span.end_ms if span else 0, bounds.end_ms)
        plan: list[tuple[Interval, Range]] = []
        for interval in (MINUTE, *self._longer):
            most = self._exchange.history_minutes if interval == MINUTE else _STRETCH_BARS
            if windows == "all":
                plan += [(interval, window) for window in _all_windows(interval, start_ms, end_ms, most)]
                continue
            for _ in range(windows if interval == MINUTE else 1):
                window = self._window(interval, start_ms, end_ms, most)
                if window is not None:
                    plan.append((interval, window))
        return plan

    async def _minutes(self, market: MarketKey, _: Interval, window: Range) -> Answer:
        return sift(await self._exchange.history(self._http, market.symbol, *window), window)

    async def _bars(self, market: MarketKey, interval: Interval, window: Range) -> Answer:
        return Answer(await self._exchange.bars(self._http, market.symbol, interval, *window) or [])

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
            answer = await self._persist(lambda: ask(market, interval, window))
        except ExchangeError as error:
            self._report.unchecked(f"{market} {interval} {iso_ms(window.start_ms)}", error)
            return
        for row in answer.invalid:
            at = iso_ms(window.start_ms if row.open_ms is None else row.open_ms)
            self._report.unchecked(f"{market} {interval} {at}", row.reason)
        theirs, unreadable = answer.candles, answer.unreadable(window)
        if not theirs:  # not offered, or older than what the exchange still has
            return
        bars = self._store.bars_between(market, interval, *window)
        ours = [bar for bar in bars if bar.open_ms not in unreadable]
        self._compared[interval] += len(theirs)
        self._report.differ(compare("exchange", market, interval, theirs, ours, quote_may_be_absent=True))

    async def _persist(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
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


def _all_windows(interval: Interval, start_ms: int, end_ms: int, most: int) -> list[Range]:
    """All whole bars within a range, newest first, in stretches of at most `most`."""
    first_ms, last_ms = interval.floor(start_ms + interval.ms - 1), interval.floor(end_ms)
    return [
        Range(max(first_ms, until_ms - most * interval.ms), until_ms)
        for until_ms in range(last_ms, first_ms, -most * interval.ms)
    ]
