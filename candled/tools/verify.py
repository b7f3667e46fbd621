"""`candled verify`: stored bars against their minutes, the exchange's own, and what a running daemon shows."""

import argparse
import asyncio
import random
import secrets
from collections.abc import Iterator, Sequence
from typing import Literal
from urllib.parse import urlsplit

from candled.clock import SystemClock
from candled.config import Config
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Range, RangeSet, iso_ms
from candled.store.interface import LATER, Store
from candled.tools import Commands

from . import stored
from .budgets import request_budgets
from .compare import Difference, compare, impossible, recompute
from .digest import DAY_MS, day_digests
from .report import Report

_WEEK = Interval.parse("1W")  # a page: whole bars of every interval
_READS = 5

_HELP = """\
Recomputes every stored bar from its minutes and compares digit for digit, week by week; weeks that the time range cuts
are taken whole. Prints a line for each difference. May run beside a daemon.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("verify", _verify, help="prove that stored bars are right", description=_HELP)
    parser.add_argument("symbols", nargs="*", type=stored.symbol, metavar="SYMBOL", help="default: all of the settings")
    parser.add_argument("--exchange", metavar="X", help="only markets of this exchange of the settings")
    stored.add_range(parser)
    parser.add_argument("--repair", action="store_true", help="fold wrong bars again from their minutes")
    parser.add_argument(
        "--exchange-check",
        nargs="?",
        const=10,
        type=_windows,
        metavar="N",
        help="also compare N random windows of each market (default: %(const)s), and a stretch of each longer interval "
        "that the exchange has in UTC, with the exchange, or `all` that it has; takes at most half of its request "
        "budget",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="choose the same windows as the run that printed S")
    parser.add_argument(
        "--memory",
        type=_address,
        metavar="URL",
        help="also compare what the daemon at this address shows, for instance ws://localhost:7000/ws",
    )
    parser.add_argument(
        "--digest", action="store_true", help="only print a SHA-256 of each market and UTC day, to compare two sites by"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _windows(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, or all, got {text!r}")
    return int(text)


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"expected ws://HOST:PORT/ws or wss://HOST/ws, got {text!r}")
    return text


def _verify(options: argparse.Namespace, config: Config) -> int:
    markets = stored.markets_of(config, options.symbols, options.exchange)
    report = Report(as_json=options.json, quiet=options.quiet)
    bounds = Range(options.start_ms, options.end_ms)
    with stored.open_store(config) as store:
        if options.digest:
            for market in markets:
                _print_digests(store, market, bounds, report)
            return 0
        for market in markets:
            verify_market(store, market, store.intervals(), bounds, report, repair=options.repair)
        if options.exchange_check:
            windows, seed = options.exchange_check, options.seed
            asyncio.run(_check_exchanges(store, config, markets, bounds, report, windows, seed))
        if options.memory:
            from .memory_check import check_memory  # the others need no client

            shown = [interval for interval in config.intervals if interval in (MINUTE, *store.intervals())]
            asyncio.run(check_memory(store, options.memory, markets, shown, report))
    return report.status


async def _check_exchanges(
    store: Store,
    config: Config,
    markets: Sequence[MarketKey],
    bounds: Range,
    report: Report,
    windows: int | Literal["all"],
    seed: int | None,
) -> None:
    from .exchange_check import ExchangeCheck

    seed = secrets.randbelow(10**6) if seed is None else seed
    if windows != "all":
        report.say(f"seed {seed}", {"seed": seed})
    clock = SystemClock()
    async with request_budgets(config, clock) as budget:
        for exchange in config.exchanges:
            ours = [market for market in markets if market.exchange == exchange.name]
            if ours:
                chance = random.Random(seed)
                check = ExchangeCheck(store, exchange, store.intervals(), clock, report, chance, budget)
                await check.run(ours, bounds, windows)


# ---------------------------------------------------------------- against the minutes


def verify_market(
    store: Store,
    market: MarketKey,
    intervals: Sequence[Interval],
    bounds: Range,
    report: Report,
    *,
    repair: bool = False,
) -> None:
    """Compare every longer bar of the weeks that `bounds` touch with what its minutes say; report what differs.

    With `repair` wrong bars are folded again, and reported as repaired when they are right afterwards.
    """
    span = stored.span_of(store, market, MINUTE)
    if span is None:
        report.say(f"{market}: no minutes are stored", {**_named(market), "minutes": 0})
        return
    longer = [interval for interval in intervals if interval != MINUTE]
    # A database drops minutes after its retention and keeps the bars: the first of these have more than their minutes.
    from_ms = 0 if store.describe()["kind"] == "sqlite" else span.start_ms
    pages = list(_weeks(span, bounds))
    progress = report.progress(f"verify {market}", len(pages) * _WEEK.ms // MINUTE_MS)
    minutes = bars = 0
    before = report.found, report.repaired
    for page in pages:
        of_page, wrong = _read_page(store, market, longer, page, from_ms)
        report.differ(impossible(market, of_page))
        if wrong and repair:
            wrong = _repair(store, market, longer, page, from_ms, wrong, report)
        report.differ(wrong)
        minutes += len(of_page)
        bars += sum(len({interval.floor(minute.open_ms) for minute in of_page}) for interval in longer)
        progress.advance(_WEEK.ms // MINUTE_MS)
    progress.clear()
    differ, repaired = report.found - before[0], report.repaired - before[1]
    report.say(
        f"{market}: {minutes:,} minutes, {bars:,} longer bars: "
        + (f"{differ:,} differ" if differ else "nothing differs")
        + (f", {repaired:,} repaired" if repaired else ""),
        {**_named(market), "minutes": minutes, "bars": bars, "differ": differ, "repaired": repaired},
    )


def _named(market: MarketKey) -> dict[str, str]:
    return {"exchange": market.exchange, "symbol": str(market.symbol)}


def _weeks(span: Range, bounds: Range) -> Iterator[Range]:
    """The whole weeks that both ranges touch."""
    start_ms, end_ms = max(span.start_ms, bounds.start_ms), min(span.end_ms, bounds.end_ms)
    if start_ms >= end_ms:
        return
    for week_ms in range(_WEEK.floor(start_ms), end_ms, _WEEK.ms):
        yield Range(week_ms, week_ms + _WEEK.ms)


def _read_page(
    store: Store, market: MarketKey, longer: Sequence[Interval], page: Range, from_ms: int
) -> tuple[list[Candle], list[Difference]]:
    """The minutes of a week, and which of its longer bars from `from_ms` on are not what these say.

    A daemon may write between two reads: a difference counts only where the minutes are the same before and after.
    """
    minutes = store.bars_between(market, MINUTE, *page)
    wrong: list[Difference] = []
    for _ in range(_READS):
        expected = recompute(minutes, longer)
        wrong = [
            difference
            for interval in longer
            for difference in compare(
                "rollup",
                market,
                interval,
                expected[interval],
                store.bars_between(market, interval, *page),
                revisions=True,
            )
            if difference.open_ms >= from_ms
        ]
        if not wrong:
            break
        again = store.bars_between(market, MINUTE, *page)
        if again == minutes:
            break
        minutes = again
    return minutes, wrong


def _repair(
    store: Store,
    market: MarketKey,
    longer: Sequence[Interval],
    page: Range,
    from_ms: int,
    wrong: Sequence[Difference],
    report: Report,
) -> list[Difference]:
    """Fold wrong bars again; return what differs still."""
    spans = RangeSet((difference.open_ms, difference.open_ms + difference.interval.ms) for difference in wrong)
    store.note_changes(market, None, [(LATER, span) for span in spans])
    store.refold(market, list(spans))
    _, left = _read_page(store, market, longer, page, from_ms)
    still = {(difference.interval, difference.open_ms) for difference in left}
    report.differ([one for one in wrong if (one.interval, one.open_ms) not in still], repaired=True)
    return left


# ---------------------------------------------------------------- digests


def _print_digests(store: Store, market: MarketKey, bounds: Range, report: Report) -> None:
    span = stored.span_of(store, market, MINUTE)
    if span is None:
        return
    start_ms = max(bounds.start_ms, span.start_ms)
    start_ms -= start_ms % DAY_MS
    end_ms = min(-(-bounds.end_ms // DAY_MS) * DAY_MS, span.end_ms)
    for page_ms in range(start_ms, end_ms, _WEEK.ms):
        for day in day_digests(store.bars_between(market, MINUTE, page_ms, min(page_ms + _WEEK.ms, end_ms))):
            date = iso_ms(day.day_ms)[:10]
            report.say(
                f"{market} {date} {day.minutes} {day.sha256}",
                {**_named(market), "day": date, "minutes": day.minutes, "sha256": day.sha256},
            )
