"""Compares stored bars with those of the exchange, in random samples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Literal

from candled.budget import MakeBudget
from candled.config import ExchangeConfig, make_exchange
from candled.errors import ExchangeError, StoreRejected, Unavailable
from candled.exchange import Clock, Exchange
from candled.ingest.http import HttpClient
from candled.ingest.retention import kept_since
from candled.ingest.rows import Answer, sift
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Range, RangeSet, iso_ms
from candled.store.interface import Store
from candled.tasks import Backoff, retry

from .compare import Difference, compare
from .report import Report
from .session import MARGIN_MS
from .store_access import put_past
from .transfer import extend_coverage

_ATTEMPTS = 4
_STRETCH_BARS = 90  # one request at nearly every exchange, and three months of daily bars


class ExchangeCheck:
    """Compares one exchange's markets in windows that `chance` chooses.

    With `repair`, minutes that differ are replaced by a new revision with the exchange's values, and longer bars are
    recomputed.
    """

    def __init__(
        self,
        store: Store,
        exchange: ExchangeConfig,
        intervals: Sequence[Interval],
        clock: Clock,
        report: Report,
        chance: Random,
        budget: MakeBudget,
        *,
        repair: bool = False,
    ) -> None:
        self._store = store
        self._name = exchange.name
        self._exchange: Exchange = make_exchange(exchange, clock)
        self._longer = [interval for interval in intervals if interval != MINUTE]
        self._clock = clock
        self._report = report
        self._chance = chance
        self._is_repairing = repair
        self._compared: Counter[Interval] = Counter()
        made = self._exchange
        self._http = HttpClient(clock, made.requests_per_s, budget, exchange.proxies, made.request_budgets)

    async def run(
        self,
        markets: Sequence[MarketKey],
        bounds: Range,
        windows: int | Literal["all"],
        suspect: Mapping[MarketKey, RangeSet] = MappingProxyType({}),
    ) -> None:
        """Compare `windows` ranges of minutes of each market, and a range of each longer interval that is offered.

        With `all`, every stored bar that the exchange still has is compared. `suspect` minutes are always compared.
        """
        self._exchange.resume_after(max(self._store.newest_minutes(self._name).values(), default=None))
        plans = {
            market: self._make_plan(market, bounds, windows, suspect.get(market, RangeSet())) for market in markets
        }
        try:
            with self._report.show_progress(f"ask {self._name}", sum(map(len, plans.values()))) as advance:
                for market, plan in plans.items():
                    self._compared.clear()
                    for interval, window in plan:
                        await self._compare_window(market, interval, window)
                        advance(1)
                    self._report_summary(market)
        except Unavailable as error:
            self._report.add_unchecked(self._name, error)
        finally:
            self._http.close()

    def _make_plan(
        self, market: MarketKey, bounds: Range, windows: int | Literal["all"], suspect: RangeSet
    ) -> list[tuple[Interval, Range]]:
        """Return the ranges to compare, minutes first; none extends past the stored minutes."""
        start_ms, end_ms = bounds.common(self._store.span(market, MINUTE) or Range(0, 0))
        kept_ms = max(start_ms, kept_since(self._exchange.history_minutes, self._exchange.now_ms() + MARGIN_MS))
        plan: list[tuple[Interval, Range]] = []
        if windows != "all":
            plan += [(MINUTE, window) for window in _windows_around(suspect, self._exchange.max_history_minutes)]
        for interval in (MINUTE, *self._longer):
            most = self._exchange.max_history_minutes if interval == MINUTE else _STRETCH_BARS
            from_ms = kept_ms if interval == MINUTE else start_ms
            if windows == "all":
                plan += [(interval, window) for window in _all_windows(interval, from_ms, end_ms, most)]
                continue
            for _ in range(windows if interval == MINUTE else 1):
                window = self._random_window(interval, from_ms, end_ms, most)
                if window is not None:
                    plan.append((interval, window))
        return plan

    async def _fetch(self, market: MarketKey, interval: Interval, window: Range) -> Answer:
        if interval == MINUTE:
            return sift(await self._exchange.fetch_history(self._http, market.symbol, *window), window)
        return Answer(await self._exchange.fetch_bars(self._http, market.symbol, interval, *window) or [])

    def _random_window(self, interval: Interval, start_ms: int, end_ms: int, most: int) -> Range | None:
        """Return a random range of at most `most` complete bars; None if not even one fits."""
        first_ms = interval.floor(start_ms + interval.ms - 1)
        count = (end_ms - first_ms) // interval.ms
        if count <= 0:
            return None
        bars = min(most, count)
        window_ms = first_ms + self._chance.randrange(count - bars + 1) * interval.ms
        return Range(window_ms, window_ms + bars * interval.ms)

    async def _compare_window(self, market: MarketKey, interval: Interval, window: Range) -> None:
        asked_ms = self._exchange.now_ms()
        fetch = partial(self._fetch, market, interval, window)
        try:
            answer = await retry(fetch, self._clock, Backoff(), on=Unavailable, attempts=_ATTEMPTS)
        except ExchangeError as error:
            self._report.add_unchecked(f"{market} {interval} {iso_ms(window.start_ms)}", error)
            return
        for row in answer.invalid:
            at = iso_ms(window.start_ms if row.open_ms is None else row.open_ms)
            self._report.add_unchecked(f"{market} {interval} {at}", row.reason)
        offered, unreadable = answer.candles, answer.unreadable_within(window)
        if not offered:  # not offered, or older than the history of the exchange
            return
        self._compared[interval] += len(offered)
        try:
            wrong = self._differences(market, interval, window, offered, unreadable)
            if wrong and self._is_repairing:
                if interval == MINUTE:
                    self._take(market, wrong, asked_ms)
                else:
                    await self._compare_parts(market, wrong)
                left = self._differences(market, interval, window, offered, unreadable)
                still = {difference.open_ms for difference in left}
                self._report.add_differences([one for one in wrong if one.open_ms not in still], repaired=True)
                wrong = left
        except StoreRejected as error:  # a row that cannot be read, which was reported
            self._report.add_unchecked(f"{market} {interval} {iso_ms(window.start_ms)}", error)
            return
        self._report.add_differences(wrong)

    def _differences(
        self, market: MarketKey, interval: Interval, window: Range, offered: Sequence[Candle], unreadable: RangeSet
    ) -> list[Difference]:
        bars = self._store.read_bars_between(market, interval, *window)
        stored_bars = [bar for bar in bars if bar.open_ms not in unreadable]
        return compare("exchange", market, interval, offered, stored_bars, quote_may_be_absent=True)

    def _take(self, market: MarketKey, wrong: Sequence[Difference], asked_ms: int) -> None:
        """Store the exchange's version of minutes that are over; keep minutes that it does not have."""
        over_ms = asked_ms - MARGIN_MS
        minutes = []
        for expected, found in ((one.expected, one.found) for one in wrong):
            if expected is None or expected.open_ms + MINUTE_MS > over_ms:
                continue
            minute = expected._replace(final=True, src="backfill", as_of_ms=expected.as_of_ms or asked_ms)
            if found is not None:
                minute = minute.confirmed_over(found)
            minutes.append(minute)
        put_past(self._store, market, minutes)
        if any(one.found is None for one in wrong):
            extend_coverage(self._store, market)

    async def _compare_parts(self, market: MarketKey, wrong: Sequence[Difference]) -> None:
        """Compare the minutes of longer bars that differ."""
        spans = RangeSet((one.open_ms, one.open_ms + one.interval.ms) for one in wrong)
        for span in spans:
            for window in _all_windows(MINUTE, *span, self._exchange.max_history_minutes):
                await self._compare_window(market, MINUTE, window)

    def _report_summary(self, market: MarketKey) -> None:
        counts = {str(interval): self._compared[interval] for interval in (MINUTE, *self._longer)}
        listed = ", ".join(f"{count:,} of {interval}" for interval, count in counts.items())
        self._report.print_finding(
            f"{market}: compared with the exchange: {listed}",
            {**market.describe(), "compared": counts},
        )


def _windows_around(suspect: RangeSet, most: int) -> list[Range]:
    """Return a few ranges of at most `most` minutes that contain all suspect ones, newest first."""
    windows: list[Range] = []
    for start_ms, end_ms in suspect:
        if windows and end_ms - windows[-1].start_ms <= most * MINUTE_MS:
            windows[-1] = Range(windows[-1].start_ms, end_ms)
        else:
            windows.append(Range(start_ms, end_ms))
    return [part for window in reversed(windows) for part in _all_windows(MINUTE, *window, most)]


def _all_windows(interval: Interval, start_ms: int, end_ms: int, most: int) -> list[Range]:
    """Return the complete bars within a range, newest first, in ranges of at most `most` bars."""
    first_ms, last_ms = interval.floor(start_ms + interval.ms - 1), interval.floor(end_ms)
    return [
        Range(max(first_ms, until_ms - most * interval.ms), until_ms)
        for until_ms in range(last_ms, first_ms, -most * interval.ms)
    ]
