"""`candled gaps` and `candled repair`: which minutes are missing and why, and asking for them again now."""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from candled.clock import SystemClock
from candled.config import Config
from candled.exchange import Clock
from candled.model import MINUTE, MINUTE_MS, REASONS, Interval, MarketKey, Range, RangeSet, iso_ms
from candled.store.holes import inside
from candled.store.interface import KnownGap, Store
from candled.tools import Commands

from . import store_access as stored
from .backfill import add_markets, add_reread, revised_text, shown
from .backfiller import Backfiller
from .progress import Progress
from .session import Console, Session, open_session

_WEEK = Interval.parse("1W")
_PAGE_MS = 4 * _WEEK.ms
# Minutes younger than this may be on their way into the store of a running daemon.
_MARGIN_MS = 120_000

_GAPS_HELP = """\
Reads only the store and asks no exchange. Why a minute is missing:
""" + "".join(f"  {reason:<16}  {why}\n" for reason, why in REASONS.items())
_GAPS_STATUS = """\
exit status:
  0  nothing is missing that the exchange was not asked for
  1  some minutes were not fetched yet (missing)
  2  a mistake in settings or arguments
"""
_REPAIR_HELP = """\
Asks the exchange again for everything that is missing, now and whatever was answered before; what it still does not
have is remembered as before. May run beside the daemon, which notices the repaired minutes within ten seconds.
"""
_REPAIR_STATUS = """\
exit status:
  0  the exchange answered for everything
  1  the exchange or the store failed for minutes on end, or some answers were not usable: run it again
  2  a mistake in settings or arguments
"""


def add(commands: Commands) -> None:
    """Add both commands."""
    gaps = commands.add(
        "gaps",
        run_gaps,
        help="list the minutes that are missing, and why",
        description=_GAPS_HELP,
        epilog=_GAPS_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_markets(gaps)
    gaps.add_argument("--all", action="store_true", help="list minutes without trades one by one too")
    gaps.add_argument("--json", action="store_true", help="print one JSON object")
    repair = commands.add(
        "repair",
        run_repair,
        help="ask the exchange again for the minutes that are missing",
        description=_REPAIR_HELP,
        epilog=_REPAIR_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_markets(repair)
    stored.add_range(repair)
    add_reread(repair)
    repair.add_argument("--all", action="store_true", help="ask for what is older than the exchange's history too")
    repair.add_argument("--json", action="store_true", help="print one JSON object at the end")
    repair.add_argument("--quiet", action="store_true", help="show no progress")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Missing minutes `[start_ms, end_ms)`; `reason` as `candled gaps --help` says, `retry_ms` None for never."""

    start_ms: int
    end_ms: int
    reason: str
    attempts: int = 0
    retry_ms: int | None = None

    @property
    def minute_count(self) -> int:
        """How many minutes are missing."""
        return (self.end_ms - self.start_ms) // MINUTE_MS

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "from": iso_ms(self.start_ms),
            "to": iso_ms(self.end_ms),
            "minutes": self.minute_count,
            "reason": self.reason,
            "attempts": self.attempts,
            "nextTry": None if self.retry_ms is None else iso_ms(self.retry_ms),
        }


# ---------------------------------------------------------------- what is missing


def expected(store: Store, market: MarketKey, now_ms: int, backfill_ms: int) -> Range:
    """The minutes that should be there at `now_ms`: what is stored and what settings or store say is wanted."""
    there = store.span(market, MINUTE)
    begins = [_WEEK.floor(now_ms - backfill_ms), *([there.start_ms] if there else [])]
    since_ms = store.complete_from(market)
    if since_ms is not None:
        begins.append(since_ms)
    return Range(min(begins), MINUTE.floor(now_ms - _MARGIN_MS))


def find_gaps(store: Store, market: MarketKey, span: Range) -> Iterator[Gap]:
    """What of `span` is missing, oldest first, read page by page; neighbours with the same facts are one gap."""
    last: Gap | None = None
    for gap in _pieces(store, market, span):
        if last is not None and last.end_ms == gap.start_ms and _facts(last) == _facts(gap):
            last = Gap(**{**_fields(last), "end_ms": gap.end_ms})
            continue
        if last is not None:
            yield last
        last = gap
    if last is not None:
        yield last


def _pieces(store: Store, market: MarketKey, span: Range) -> Iterator[Gap]:
    for page_ms in range(span.start_ms, span.end_ms, _PAGE_MS):
        page = Range(page_ms, min(span.end_ms, page_ms + _PAGE_MS))
        absent = RangeSet(store.stored_ranges(market, *page)).missing(*page)
        gaps = []
        for hole in store.known_gaps(market, page):
            for piece in inside(hole, *page):
                gaps += [_known(hole, part) for part in _overlap(absent, piece)]
        for gap in gaps:
            absent.remove(gap.start_ms, gap.end_ms)
        gaps += [Gap(start_ms=start_ms, end_ms=end_ms, reason="missing") for start_ms, end_ms in absent]
        yield from sorted(gaps, key=lambda gap: gap.start_ms)


def _overlap(absent: RangeSet, hole: KnownGap) -> RangeSet:
    there = absent.missing(hole.start_ms, hole.end_ms)
    return there.missing(hole.start_ms, hole.end_ms)


def _known(hole: KnownGap, part: Range) -> Gap:
    return Gap(**part._asdict(), reason=hole.reason, attempts=hole.attempts, retry_ms=hole.retry_ms)


def _fields(gap: Gap) -> dict[str, Any]:
    return {name: getattr(gap, name) for name in ("start_ms", "end_ms", "reason", "attempts", "retry_ms")}


def _facts(gap: Gap) -> tuple[str, int, int | None]:
    return gap.reason, gap.attempts, gap.retry_ms


# ---------------------------------------------------------------- candled gaps


def run_gaps(options: argparse.Namespace, config: Config, clock: Clock | None = None) -> int:
    """Run `candled gaps`; return the exit status."""
    now_ms = (clock or SystemClock()).now_ms()
    markets = stored.markets_of(config, options.symbols, options.exchange)
    reports = []
    is_ours = False
    with stored.open_store(config) as store:
        for market in markets:
            span = expected(store, market, now_ms, _backfill_ms(config))
            gaps = find_gaps(store, market, span)
            minutes: Counter[str] = Counter()
            listed = [gap for gap in _counted(gaps, minutes) if options.json or options.all or _is_listed(gap)]
            is_ours = is_ours or minutes["missing"] > 0
            report = _report(market, span, minutes, listed)
            reports.append(report)
            if not options.json:
                _print_gaps(report)
    if options.json:
        print(json.dumps({"markets": reports}))
    return 1 if is_ours else 0


def _backfill_ms(config: Config) -> int:
    return round(config.ingest.backfill.total_seconds() * 1000)


def _counted(gaps: Iterable[Gap], minutes: Counter[str]) -> Iterator[Gap]:
    for gap in gaps:
        minutes[gap.reason] += gap.minute_count
        yield gap


def _is_listed(gap: Gap) -> bool:
    return gap.reason != "no_trades"


def _report(market: MarketKey, span: Range, minutes: Counter[str], gaps: list[Gap]) -> dict[str, Any]:
    return {
        "exchange": market.exchange,
        "symbol": str(market.symbol),
        "from": iso_ms(span.start_ms),
        "to": iso_ms(span.end_ms),
        "missing": dict(sorted(minutes.items())),
        "gaps": [gap.as_json() for gap in gaps],
    }


def _print_gaps(report: dict[str, Any]) -> None:
    missing = ", ".join(f"{reason} {minutes:,} min" for reason, minutes in report["missing"].items())
    span = f"{report['from']} to {report['to']}"
    print(f"{report['exchange']}:{report['symbol']}: {span}: {missing or 'nothing is missing'}")
    for gap in report["gaps"]:
        print(f"  {gap['from']} to {gap['to']} {gap['minutes']:>9,} min  {gap['reason']:<15} {_asked(gap)}".rstrip())


def _asked(gap: dict[str, Any]) -> str:
    if not gap["attempts"]:
        return "not asked for yet"
    times = {1: "once", 2: "twice"}.get(gap["attempts"], f"{gap['attempts']} times")
    return f"asked {times}, " + (f"again at {gap['nextTry']}" if gap["nextTry"] else "not again")


# ---------------------------------------------------------------- candled repair


def run_repair(options: argparse.Namespace, config: Config, clock: Clock | None = None) -> int:
    """Run `candled repair`; return the exit status."""
    return asyncio.run(repair(options, config, clock or SystemClock()))


async def repair(options: argparse.Namespace, config: Config, clock: Clock) -> int:
    """The command on the loop that runs."""
    markets = stored.markets_of(config, options.symbols, options.exchange)
    speaker = Console()
    reports = []
    async with open_session(config, {market.exchange for market in markets}, clock, speaker) as session:
        for market in markets:
            reports.append(await _repair_market(session, market, options, _backfill_ms(config), speaker))
            if not options.json:
                _print_repair(reports[-1])
    if options.json:
        print(json.dumps({"markets": reports}))
    return 1 if any(report["trouble"] or report["failed"] for report in reports) else 0


async def _repair_market(
    session: Session, market: MarketKey, options: argparse.Namespace, backfill_ms: int, speaker: Console
) -> dict[str, Any]:
    source, store = session.sources[market.exchange], session.store
    start_ms, end_ms = await session.run_read(expected, store, market, source.now_ms(), backfill_ms)
    end_ms = min(end_ms, source.until_ms())
    start_ms = max(start_ms, MINUTE.floor(options.start_ms))
    span = Range(start_ms, max(start_ms, min(end_ms, MINUTE.floor(options.end_ms))))
    before = await session.run_read(_listed_gaps, store, market, span)
    filler = Backfiller(
        session,
        source,
        market,
        is_reopened=lambda hole: options.all or hole.reason != "beyond_history",
        rereads=options.reread,
    )
    tally = await filler.estimate(span)
    progress = Progress(f"repair {market}", tally.minutes, enabled=shown(options))
    speaker.progress = progress
    await filler.fill_span(span, progress.advance, to_present=span.end_ms == end_ms)
    progress.finish_line()
    speaker.progress = None
    after = await session.run_read(_listed_gaps, store, market, span)
    return {
        "exchange": market.exchange,
        "symbol": str(market.symbol),
        "asked": tally.minutes,
        "stored": filler.result.stored,
        "revised": filler.result.revised,
        "absent": filler.result.absent,
        "gaps": [{**gap.as_json(), **_outcome(gap, after)} for gap in before if options.all or _may_heal(gap)],
        "failed": [{"from": iso_ms(one.start_ms), "to": iso_ms(one.end_ms)} for one in filler.result.failed],
        "trouble": filler.result.trouble,
    }


def _listed_gaps(store: Store, market: MarketKey, span: Range) -> list[Gap]:
    return [gap for gap in find_gaps(store, market, span) if _is_listed(gap)]


def _may_heal(gap: Gap) -> bool:
    return gap.reason != "beyond_history"


def _outcome(gap: Gap, after: list[Gap]) -> dict[str, Any]:
    """How many minutes of a gap are there now, and why the others are not."""
    left = [
        (one, min(one.end_ms, gap.end_ms) - max(one.start_ms, gap.start_ms))
        for one in after
        if one.start_ms < gap.end_ms and gap.start_ms < one.end_ms
    ]
    missing = sum(length_ms for _, length_ms in left) // MINUTE_MS
    return {"repaired": gap.minute_count - missing, "now": sorted({one.reason for one, _ in left})}


def _print_repair(report: dict[str, Any]) -> None:
    name = f"{report['exchange']}:{report['symbol']}"
    print(
        f"{name}: {report['asked']:,} minutes asked for, {report['stored']:,} stored{revised_text(report)}, "
        f"{report['absent']:,} the exchange does not have"
    )
    for gap in report["gaps"]:
        why = f" ({', '.join(gap['now'])})" if gap["now"] else ""
        print(f"  {gap['from']} to {gap['to']}: {gap['repaired']:,} of {gap['minutes']:,} minutes are there now{why}")
    for one in report["failed"]:
        print(f"{name}: no usable answer for {one['from']} to {one['to']}", file=sys.stderr)
    if report["trouble"]:
        print(f"{name}: given up: {report['trouble']}", file=sys.stderr)
