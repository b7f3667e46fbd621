"""Fetches the missing minutes of one market into the store, newest first. A kill at any moment loses no progress."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from candled.errors import CandledError, ExchangeError, StoreRejected
from candled.ingest.coverage import Coverage, Window
from candled.ingest.gap_retry import absence_reason
from candled.model import MINUTE, MINUTE_MS, Candle, Gap, MarketKey, Range, RangeSet, iso_ms
from candled.model.gaps import clip_gap
from candled.tasks import in_parallel

from .session import ExchangeSource, Session
from .store_access import before_beginning, put_past

# Windows whose coverage is in memory at a time, so that memory does not grow with the range.
_SEGMENT_WINDOWS = 30
_WORKERS = 4
_GIVE_UP_AFTER = 3  # windows in a row with unusable answers of the exchange


@dataclass(slots=True, kw_only=True)
class BackfillEstimate:
    """The amount of work."""

    #: The number of windows to fetch; one window is one call of `fetch_history`.
    windows: int = 0
    #: The number of missing minutes.
    minutes: int = 0


@dataclass(slots=True, kw_only=True)
class Result:
    """The result for a market."""

    #: The number of windows that were fetched.
    windows: int = 0
    #: The number of minutes that were missing and are stored now.
    stored: int = 0
    #: The number of stored minutes that had other values and were replaced.
    revised: int = 0
    #: The number of missing minutes that the exchange does not have.
    absent: int = 0
    #: The windows for which the exchange gave no usable answer.
    failed: list[Range] = field(default_factory=list)
    #: The error that ended the backfill early; None without one.
    problem: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "stored": self.stored,
            "revised": self.revised,
            "absent": self.absent,
            "failed": [{"from": iso_ms(one.start_ms), "to": iso_ms(one.end_ms)} for one in self.failed],
            "trouble": self.problem,
        }


class Backfiller:
    """Fills one market. Minutes are stored before they are counted, so a kill loses only the requests in progress.

    `is_reopened` selects the known gaps that are fetched now instead of at their next attempt. With `rereads`, stored
    minutes are fetched too, and replaced if the exchange has other values, regardless of their timestamps.
    """

    def __init__(
        self,
        session: Session,
        source: ExchangeSource,
        market: MarketKey,
        *,
        is_reopened: Callable[[Gap], bool] = lambda known_gap: False,
        rereads: bool = False,
    ) -> None:
        self.result = Result()
        self._session = session
        self._source = source
        self._market = market
        self._is_reopened = is_reopened
        self._rereads = rereads
        self._invalid_count = 0
        self._is_credible = False  # True once the exchange has had anything of this market

    async def estimate(self, span: Range) -> BackfillEstimate:
        """Count the work of `fill_span` from the store alone."""
        estimate = BackfillEstimate()
        for segment in self._split_span(span):
            coverage = await self._load_coverage(segment)
            for window in self._next_windows(coverage, segment.end_ms):
                estimate.windows += 1
                estimate.minutes += coverage.count_missing(window.start_ms, window.end_ms)
        return estimate

    async def fill_span(self, span: Range, advance: Callable[[int], None], *, to_present: bool) -> None:
        """Fetch the missing minutes of `span`, newest first; call `advance` with the number of minutes of each answer.

        With `to_present`, the span ends with the newest minute that is over. The start of the complete history is then
        stored even if it was unknown.
        """
        for segment in self._split_span(span):
            coverage = await self._load_coverage(segment)
            windows = self._next_windows(await self._load_coverage(segment), segment.end_ms)
            fetch = partial(self._fetch_window, coverage=coverage, until_ms=segment.end_ms, advance=advance)
            await in_parallel(_WORKERS, windows, fetch)
            if self.result.problem is not None:
                return
            await self._lower_since(coverage, segment, claims=to_present and segment.end_ms == span.end_ms)

    def _split_span(self, span: Range) -> Iterator[Range]:
        length_ms = _SEGMENT_WINDOWS * self._source.exchange.max_history_minutes * MINUTE_MS
        for end_ms in range(span.end_ms, span.start_ms, -length_ms):
            yield Range(max(span.start_ms, end_ms - length_ms), end_ms)

    async def _load_coverage(self, segment: Range) -> Coverage:
        store = self._session.store
        known_gaps = await self._session.read_store(store.known_gaps, self._market, segment)
        present = [] if self._rereads else await self._session.read_store(store.stored_ranges, self._market, *segment)
        return Coverage(
            present=present,
            known_gaps=[
                piece for known_gap in map(self._reopen_gap, known_gaps) for piece in clip_gap(known_gap, *segment)
            ],
            since_ms=segment.end_ms,
            from_ms=segment.start_ms,
            absence=absence_reason(publishes_empty_candles=self._source.exchange.publishes_empty_candles),
            older=True,  # the time before the exchange's history was found out beforehand
        )

    def _reopen_gap(self, known_gap: Gap) -> Gap:
        return replace(known_gap, retry_ms=0) if self._is_reopened(known_gap) else known_gap

    def _next_windows(self, coverage: Coverage, until_ms: int) -> Iterator[Window]:
        """Yield the windows to fetch, newest first, until there is a problem.

        `coverage` is used up: each window counts as answered.
        """
        now_ms, most = self._source.exchange.now_ms(), self._source.exchange.max_history_minutes
        while self.result.problem is None and (window := coverage.next_window(until_ms, now_ms, most, 0)) is not None:
            yield window
            coverage.on_answer(window, until_ms, now_ms)

    async def _fetch_window(
        self, window: Window, coverage: Coverage, until_ms: int, advance: Callable[[int], None]
    ) -> None:
        missing = coverage.count_missing(window.start_ms, window.end_ms)
        try:
            await self._request_window(window, coverage, until_ms)
        except ExchangeError as error:
            self._on_invalid_answer(window, error)
        except CandledError as error:  # the exchange or the store failed, in all attempts
            self.result.problem = self.result.problem or str(error)
        advance(missing)

    async def _request_window(self, window: Window, coverage: Coverage, until_ms: int) -> None:
        span = Range(window.start_ms, window.end_ms)
        answer = await self._source.fetch_range(self._market.symbol, span)
        candles, unreadable = answer.candles, answer.unreadable_within(span)
        self._invalid_count = 0
        store = self._session.store
        known: dict[int, Candle] = {}
        if self._rereads:
            for minute in await self._session.read_store(store.read_bars_between, self._market, MINUTE, *span):
                known[minute.open_ms] = minute
                coverage.add_minute(minute.open_ms, confirmed=True)
        new = [candle for candle in candles if not coverage.has_minute(candle.open_ms)]
        revised = [
            candle.confirmed_over(known[candle.open_ms])
            for candle in candles
            if candle.open_ms in known and _differs(candle, known[candle.open_ms])
        ]
        await self._session.write_store(put_past, store, self._market, sorted([*new, *revised]))
        await self._check_kept(new)
        for candle in new:
            coverage.add_minute(candle.open_ms, confirmed=True)
        self._is_credible |= bool(candles or answer.invalid)
        until_ms = self._answered_until(candles, until_ms)
        now_ms = self._source.exchange.now_ms()
        coverage.on_answer(
            window, until_ms, now_ms, unreadable, is_credible=self._is_credible, kept_ms=self._source.kept_ms
        )
        changed = coverage.take_changes()
        if changed is not None:
            known_gaps = coverage.known_gaps_within(*changed)
            await self._session.write_store(store.save_known_gaps, self._market, known_gaps, changed)
        self.result.windows += 1
        self.result.stored += len(new)
        self.result.revised += len(revised)
        self.result.absent += coverage.count_missing(window.start_ms, window.end_ms)

    async def _check_kept(self, new: list[Candle]) -> None:
        """Raise if the store dropped minutes because of its retention: every run would fetch them again."""
        if not new:
            return
        span = Range(new[0].open_ms, new[-1].open_ms + MINUTE_MS)
        kept = RangeSet(await self._session.read_store(self._session.store.stored_ranges, self._market, *span))
        dropped = [candle.open_ms for candle in new if candle.open_ms not in kept]
        if dropped:
            raise StoreRejected(f"the store does not keep {iso_ms(dropped[-1])} and before: see its retention")

    def _answered_until(self, candles: list[Candle], until_ms: int) -> int:
        """Return the end of an answer. If this machine's clock is ahead, the newest minutes are yet to come."""
        newest_as_of_ms = max((candle.as_of_ms for candle in candles), default=None)
        return until_ms if newest_as_of_ms is None else min(until_ms, MINUTE.floor(newest_as_of_ms))

    def _on_invalid_answer(self, window: Window, error: ExchangeError) -> None:
        self.result.failed.append(Range(window.start_ms, window.end_ms))
        self._invalid_count += 1
        if self._invalid_count >= _GIVE_UP_AFTER:
            self.result.problem = self.result.problem or str(error)

    async def _lower_since(self, coverage: Coverage, segment: Range, *, claims: bool) -> None:
        """Store an earlier start of the complete history, if this segment adjoins it without a gap."""
        store, market = self._session.store, self._market
        known_ms = await self._session.read_store(store.complete_from, market)
        if known_ms is None and claims:
            known_ms = segment.end_ms
        if known_ms is None or not segment.start_ms < known_ms <= segment.end_ms:
            return
        since_ms = segment.start_ms
        for gap in coverage.missing_within(segment.start_ms, known_ms):
            since_ms = gap.end_ms
        since_ms = await self._session.read_store(before_beginning, store, market, since_ms)
        if since_ms < known_ms:
            await self._session.write_store(store.set_complete_from, market, since_ms)


def _differs(answer: Candle, known: Candle) -> bool:
    """Return True if an answer has other values; a missing quote volume is no difference."""
    if answer.quote_volume is None:
        return answer.values[:-1] != known.values[:-1]
    return answer.values != known.values


def print_failures(market: MarketKey, result: Mapping[str, Any]) -> None:
    """Print the failures in the JSON values of a result on standard error."""
    for one in result.get("failed", ()):
        print(f"{market}: no usable answer for {one['from']} to {one['to']}", file=sys.stderr)
    if result["trouble"]:
        print(f"{market}: given up: {result['trouble']}", file=sys.stderr)


def revised_text(count: int) -> str:
    """Return the number of replaced minutes as text, empty if there are none."""
    return f", {count:,} revised" if count else ""
