"""`candled verify`: compares stored bars with their minutes, the exchange, and a running daemon."""

import asyncio
import math
import random
import secrets
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from candled.clock import SystemClock
from candled.config import Config
from candled.model import (
    DAY_MS,
    END_OF_TIME_MS,
    MINUTE,
    MINUTE_MS,
    WEEK,
    Candle,
    Interval,
    MarketKey,
    Range,
    RangeSet,
    iso_ms,
)
from candled.store.interface import SEQ_UNPUBLISHED, BadRow, Store, Table

from . import store_access as stored
from .budgets import request_budgets
from .compare import Difference, compare, contradictions, impossible, recompute
from .digest import day_digests
from .report import Report

_EMPTY_WEEKS = 520  # weeks of a page where no minutes are stored
_READS = 5

Windows = int | Literal["all"]


def verify(
    config: Config,
    markets: Sequence[MarketKey],
    bounds: Range,
    *,
    repair: bool,
    windows: Windows | None,
    seed: int | None,
    memory: str | None,
    digest: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run `candled verify`; return the exit status.

    `windows` is the number of windows of each market to compare with its exchange; `seed` chooses them. `memory` is the
    address of a daemon to compare with.
    """
    report = Report(as_json=as_json, quiet=quiet)
    with stored.open_store(config) as store:
        if digest:
            for market in markets:
                _print_digests(store, market, bounds, report)
            return 0
        checks = [
            MarketCheck(
                store,
                market,
                report,
                repair=repair,
                opens_at_previous_close=stored.exchange_of(config, market.exchange).plugin.opens_at_previous_close,
                asks_later=repair and windows is not None,
            )
            for market in markets
        ]
        for check in checks:
            check.run(bounds)
        if windows is not None:
            asyncio.run(_check_exchanges(store, config, checks, bounds, report, windows, seed, repair=repair))
        for check in checks:
            check.report_contradictions()
        if memory:
            from .memory_check import check_memory  # the other checks need no client

            shown = [interval for interval in config.intervals if interval in (MINUTE, *store.intervals())]
            asyncio.run(check_memory(store, memory, markets, shown, report))
    return report.exit_status


async def _check_exchanges(
    store: Store,
    config: Config,
    checks: Sequence["MarketCheck"],
    bounds: Range,
    report: Report,
    windows: Windows,
    seed: int | None,
    *,
    repair: bool,
) -> None:
    """Compare samples of markets, and the suspect minutes, with the exchange."""
    from .exchange_check import ExchangeCheck

    seed = secrets.randbelow(10**6) if seed is None else seed
    if windows != "all":
        report.print_finding(f"seed {seed}", {"seed": seed})
    clock = SystemClock()
    async with request_budgets(config, clock) as budget:
        for exchange in config.exchanges:
            suspect = {one.market: one.suspect for one in checks if one.market.exchange == exchange.name}
            if suspect:
                chance = random.Random(seed)
                check = ExchangeCheck(store, exchange, store.intervals(), clock, report, chance, budget, repair=repair)
                await check.run(list(suspect), bounds, windows, suspect)


# ---------------------------------------------------------------- comparison with the minutes


@dataclass(slots=True)
class MarketCheck:
    """Compares the stored bars of one market with its minutes, a week at a time, and reports the differences."""

    #: The store with the bars.
    store: Store
    #: The market to check.
    market: MarketKey
    #: Prints the differences and counts them.
    report: Report
    _: KW_ONLY
    #: True to delete bad rows and rebuild wrong bars, which are reported as repaired if they are right afterwards.
    repair: bool = False
    #: True if every minute must open at the close of the one before.
    opens_at_previous_close: bool = False
    #: True if the exchange is asked about minutes that contradict their neighbours: `report_contradictions` reports
    #: them afterwards.
    asks_later: bool = False
    #: The intervals of the longer bars.
    longer: Sequence[Interval] = field(init=False)
    #: The start of the minutes that the database keeps: longer bars from before it cannot be recomputed.
    from_ms: int = field(init=False)
    #: The times of the unreadable rows that are not deleted, by interval.
    unreadable: dict[Interval, list[float]] = field(default_factory=dict)
    #: The newest minute of the page before.
    last: Candle | None = None
    #: The pairs of minutes that contradict each other.
    contradictions: list[Difference] = field(default_factory=list)
    #: The minutes whose rows were deleted.
    deleted: RangeSet = field(default_factory=RangeSet)

    def __post_init__(self) -> None:
        self.longer = self.store.intervals()
        self.from_ms = self.store.kept_from()

    @property
    def suspect(self) -> RangeSet:
        """The minutes that only the exchange can decide on: pairs that contradict each other, and deleted ones."""
        pairs = [(one.open_ms - MINUTE_MS, one.open_ms + MINUTE_MS) for one in self.contradictions]
        return RangeSet([*self.deleted, *pairs])

    def run(self, bounds: Range) -> None:
        """Compare every longer bar of the weeks that `bounds` touch, including those that have bars but no minutes."""
        store, market, report = self.store, self.market, self.report
        before = report.found_count, report.repaired_count
        self._check_rows(_whole_weeks(bounds))
        span = store.span(market, MINUTE)
        weeks = [] if span is None else list(_weeks(span, bounds))
        minutes = bars = 0
        with report.show_progress(f"verify {market}", len(weeks) * WEEK.ms // MINUTE_MS) as advance:
            for page in sorted([*self._beyond(span, bounds), *weeks]):
                of_page = self._check_page(page)
                minutes += len(of_page)
                bars += sum(len({interval.floor(minute.open_ms) for minute in of_page}) for interval in self.longer)
                advance(WEEK.ms // MINUTE_MS)
        differ, repaired = report.found_count - before[0], report.repaired_count - before[1]
        if span is None and not differ and not repaired:
            report.print_finding(f"{market}: no minutes are stored", {**market.describe(), "minutes": 0})
            return
        report.print_finding(
            f"{market}: {minutes:,} minutes, {bars:,} longer bars: "
            + (f"{differ:,} differ" if differ else "nothing differs")
            + (f", {repaired:,} repaired" if repaired else ""),
            {**market.describe(), "minutes": minutes, "bars": bars, "differ": differ, "repaired": repaired},
        )

    # ------------------------------------------------------------ unreadable rows

    def _check_rows(self, within: Range) -> None:
        """Report the rows that cannot be read; delete them, or remember their times."""
        rows = self.store.bad_rows(self.market, within)
        for minute in self.store.read_forming(self.market) if not _are_forming(rows) else ():
            rows += [_bad_row("forming", one) for one in impossible(self.market, [minute])]
        self._report_bad(rows)
        if self.repair:
            return
        for row in rows:
            if row.table != "forming" and isinstance(row.time, int | float):
                insort(self.unreadable.setdefault(row.interval, []), row.time)

    def _report_bad(self, rows: Sequence[BadRow]) -> None:
        """Report rows that are no bars. With `repair`, delete them, so that their minutes are fetched again."""
        if self.repair and rows:
            times = [(at_ms, row.interval.ms) for row in rows if (at_ms := _time_of(row)) is not None]
            spans = [(at_ms, at_ms + length_ms) for at_ms, length_ms in times]
            self.store.log_changes(self.market, None, [(SEQ_UNPUBLISHED, span) for span in RangeSet(spans)])
            self.store.discard_rows(self.market, rows)
            for row in rows:
                at_ms = _time_of(row)
                if row.table == "candles" and at_ms is not None:
                    self.deleted.add(MINUTE.floor(at_ms), MINUTE.floor(at_ms) + MINUTE_MS)
        self.report.add_differences([_difference(self.market, row) for row in rows], repaired=self.repair)

    def _read(self, interval: Interval, page: Range) -> list[Candle]:
        """Return the bars of a page that can be read."""
        bars: list[Candle] = []
        start_ms = page.start_ms
        for at_ms in self._unreadable_in(interval, page):
            bars += self.store.read_bars_between(self.market, interval, start_ms, math.ceil(at_ms))
            start_ms = math.floor(at_ms) + 1
        return bars + self.store.read_bars_between(self.market, interval, start_ms, page.end_ms)

    def _unreadable_in(self, interval: Interval, page: Range) -> Sequence[float]:
        times = self.unreadable.get(interval, [])
        return times[bisect_left(times, page.start_ms) : bisect_left(times, page.end_ms)]

    # ------------------------------------------------------------ wrong bars

    def _beyond(self, span: Range | None, bounds: Range) -> Iterator[Range]:
        """Yield the ranges in which bars are stored but no minutes, in long pages."""
        found = [one for interval in self.longer if (one := self.store.span(self.market, interval)) is not None]
        if not found:
            return
        first_ms, last_ms = min(one.start_ms for one in found), max(one.end_ms for one in found)
        minutes = Range(first_ms, first_ms) if span is None else _whole_weeks(span)
        within = _whole_weeks(bounds)
        for start_ms, end_ms in ((max(first_ms, self.from_ms), minutes.start_ms), (minutes.end_ms, last_ms)):
            yield from Range(WEEK.floor(start_ms), end_ms).common(within).split(_EMPTY_WEEKS * WEEK.ms)

    def _check_page(self, page: Range) -> list[Candle]:
        """Report the differences in a page; return its minutes."""
        minutes, bad, wrong = self._read_stored(page)
        if bad:
            self._report_bad([_bad_row("candles", one) for one in bad])
        if bad and self.repair:
            minutes, _, wrong = self._read_stored(page)
        if wrong and self.repair:
            wrong = self._fold_again(page, wrong)
        self.report.add_differences(wrong)
        if self.opens_at_previous_close and minutes:
            last = [] if self.last is None else [self.last]
            self.last = minutes[-1]
            found = contradictions(self.market, [*last, *minutes])
            self.contradictions.extend(found)
            self.report.add_differences([] if self.asks_later else found)
        return minutes

    def _read_stored(self, page: Range) -> tuple[list[Candle], list[Difference], list[Difference]]:
        """Return the minutes of a page, the impossible ones, and the longer bars that differ from the minutes.

        A daemon may write between two reads: a difference counts only if its minutes are the same before and after.
        Bars with an impossible minute are not compared: they may be right.
        """
        minutes = self._read(MINUTE, page)
        for _ in range(_READS):
            bad = impossible(self.market, minutes)
            suspect = {one.open_ms for one in bad}
            good = [minute for minute in minutes if minute.open_ms not in suspect]
            wrong = self._differences(good, suspect, page)
            if not wrong:
                break
            again = self._read(MINUTE, page)
            if again == minutes:
                break
            changed = {minute.open_ms for minute in {*minutes} ^ {*again}}
            wrong = [one for one in wrong if one.open_ms not in map(one.interval.floor, changed)]
            minutes = again
        return good, bad, wrong

    def _differences(self, minutes: Sequence[Candle], suspect: Iterable[int], page: Range) -> list[Difference]:
        expected = recompute(minutes, self.longer)
        unread = [*suspect, *map(math.floor, self._unreadable_in(MINUTE, page))]
        wrong: list[Difference] = []
        for interval in self.longer:
            unclear = {interval.floor(at_ms) for at_ms in unread} | {*self._unreadable_in(interval, page)}
            found = self._read(interval, page)
            wrong += [
                difference
                for difference in compare("rollup", self.market, interval, expected[interval], found, revisions=True)
                if difference.open_ms >= self.from_ms and difference.open_ms not in unclear
            ]
        return wrong

    def _fold_again(self, page: Range, wrong: Sequence[Difference]) -> list[Difference]:
        """Rebuild wrong bars; return the remaining differences."""
        spans = RangeSet((difference.open_ms, difference.open_ms + difference.interval.ms) for difference in wrong)
        self.store.log_changes(self.market, None, [(SEQ_UNPUBLISHED, span) for span in spans])
        self.store.rebuild_rollups(self.market, list(spans))
        _, _, left = self._read_stored(page)
        still = {(difference.interval, difference.open_ms) for difference in left}
        self.report.add_differences([one for one in wrong if (one.interval, one.open_ms) not in still], repaired=True)
        return left

    # ------------------------------------------------------------ contradictions

    def report_contradictions(self) -> None:
        """Report the contradictions that were found with `asks_later`, now that the exchange was asked."""
        if self.asks_later:
            left = [one for one in self.contradictions if self._is_left(one)]
            self.report.add_differences([one for one in self.contradictions if one not in left], repaired=True)
            self.report.add_differences(left)

    def _is_left(self, one: Difference) -> bool:
        pair = self.store.read_bars_between(self.market, MINUTE, one.open_ms - MINUTE_MS, one.open_ms + MINUTE_MS)
        return bool(contradictions(self.market, pair))


def _are_forming(rows: Iterable[BadRow]) -> bool:
    return any(row.table == "forming" for row in rows)


def _time_of(row: BadRow) -> int | None:
    return row.time if isinstance(row.time, int) and 0 <= row.time < END_OF_TIME_MS else None


def _bad_row(table: Table, difference: Difference) -> BadRow:
    return BadRow(table=table, interval=MINUTE, time=difference.open_ms, problem=difference.problem)


def _difference(market: MarketKey, row: BadRow) -> Difference:
    at_ms = _time_of(row)
    return Difference(
        check="minute" if row.interval == MINUTE else "rollup",
        market=market,
        interval=row.interval,
        open_ms=0 if at_ms is None else at_ms,
        time=f"time {row.time!r:.40}" if at_ms is None else "",
        problem=f"{row.problem} (table {row.table})",
    )


def _whole_weeks(span: Range) -> Range:
    return Range(WEEK.floor(span.start_ms), WEEK.floor(span.end_ms - 1) + WEEK.ms)


def _weeks(span: Range, bounds: Range) -> Iterator[Range]:
    """Yield the weeks that both ranges touch, in full."""
    common = span.common(bounds)
    if common.start_ms < common.end_ms:
        yield from _whole_weeks(common).split(WEEK.ms)


# ---------------------------------------------------------------- digests


def _print_digests(store: Store, market: MarketKey, bounds: Range, report: Report) -> None:
    span = store.span(market, MINUTE)
    if span is None:
        return
    start_ms = max(bounds.start_ms, span.start_ms)
    start_ms -= start_ms % DAY_MS
    end_ms = min(-(-bounds.end_ms // DAY_MS) * DAY_MS, span.end_ms)
    for page in Range(start_ms, end_ms).split(WEEK.ms):
        for day in day_digests(store.read_bars_between(market, MINUTE, *page)):
            date = iso_ms(day.day_ms)[:10]
            report.print_finding(
                f"{market} {date} {day.minutes} {day.sha256}",
                {**market.describe(), "day": date, "minutes": day.minutes, "sha256": day.sha256},
            )
