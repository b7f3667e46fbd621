"""`candled gaps` and `candled repair`: the missing minutes with their reasons, and fetching them again."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from candled.config import Config
from candled.exchange import Clock
from candled.model import MINUTE, WEEK, Gap, MarketKey, Range, iso_ms
from candled.model.gaps import clip_gap, join_neighbours
from candled.store.history import read_gaps as read_page
from candled.store.interface import Store

from .backfiller import Backfiller, print_failures, revised_text
from .progress import show_progress
from .session import Session, open_session
from .store_access import open_store
from .tables import print_rows

_PAGE_MS = 4 * WEEK.ms
# Minutes younger than this may be on their way into the store of a running daemon.
_MARGIN_MS = 120_000


# ---------------------------------------------------------------- missing minutes


def expected(store: Store, market: MarketKey, now_ms: int, backfill_ms: int) -> Range:
    """Return the range that should be stored at `now_ms`, according to the settings and the store."""
    stored = store.span(market, MINUTE)
    begins = [WEEK.floor(now_ms - backfill_ms), *([stored.start_ms] if stored else [])]
    since_ms = store.complete_from(market)
    if since_ms is not None:
        begins.append(since_ms)
    until_ms = MINUTE.floor(now_ms - _MARGIN_MS)
    return Range(min(until_ms, max(min(begins), store.kept_from())), until_ms)


def read_gaps(store: Store, market: MarketKey, span: Range) -> Iterator[Gap]:
    """Yield the gaps of `span`, oldest first, read page by page."""
    return join_neighbours(gap for page in span.split(_PAGE_MS) for gap in read_page(store, market, page))


# ---------------------------------------------------------------- candled gaps


def list_gaps(config: Config, markets: Sequence[MarketKey], clock: Clock, *, every: bool, as_json: bool) -> int:
    """Run `candled gaps`; return the exit status."""
    now_ms = clock.now_ms()
    reports = []
    is_incomplete = False
    with open_store(config) as store:
        for market in markets:
            span = expected(store, market, now_ms, _backfill_ms(config))
            minutes: Counter[str] = Counter()
            found = _counted(read_gaps(store, market, span), minutes)
            report = _report(market, span, minutes, [gap for gap in found if as_json or every or _is_listed(gap)])
            is_incomplete = is_incomplete or minutes["missing"] > 0
            reports.append(report)
            if not as_json:
                _print_gaps(report)
    if as_json:
        print(json.dumps({"markets": reports}))
    return 1 if is_incomplete else 0


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
        **market.describe(),
        "from": iso_ms(span.start_ms),
        "to": iso_ms(span.end_ms),
        "missing": dict(sorted(minutes.items())),
        "gaps": [_gap_json(gap) for gap in gaps],
    }


def _gap_json(gap: Gap) -> dict[str, Any]:
    return {
        "from": iso_ms(gap.start_ms),
        "to": iso_ms(gap.end_ms),
        "minutes": gap.minute_count,
        "reason": gap.reason,
        "attempts": gap.attempts,
        "nextTry": None if gap.retry_ms is None else iso_ms(gap.retry_ms),
    }


def _print_gaps(report: dict[str, Any]) -> None:
    missing = ", ".join(f"{reason} {minutes:,} min" for reason, minutes in report["missing"].items())
    span = f"{report['from']} to {report['to']}"
    print(f"{report['exchange']}:{report['symbol']}: {span}: {missing or 'nothing is missing'}")
    print_rows(
        ("from", "to", "minutes", "reason", "asked for"),
        [(gap["from"], gap["to"], f"{gap['minutes']:,}", gap["reason"], _asked(gap)) for gap in report["gaps"]],
        [
            f"  {gap['from']} to {gap['to']} {gap['minutes']:>9,} min  {gap['reason']:<15} {_asked(gap)}"
            for gap in report["gaps"]
        ],
    )


def _asked(gap: dict[str, Any]) -> str:
    if not gap["attempts"]:
        return "not asked for yet"
    times = {1: "once", 2: "twice"}.get(gap["attempts"], f"{gap['attempts']} times")
    return f"asked {times}, " + (f"again at {gap['nextTry']}" if gap["nextTry"] else "not again")


# ---------------------------------------------------------------- candled repair


async def repair(
    config: Config,
    markets: Sequence[MarketKey],
    bounds: Range,
    clock: Clock,
    *,
    reread: bool,
    every: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run `candled repair`; return the exit status."""
    reports = []
    async with open_session(config, {market.exchange for market in markets}, clock) as session:
        for market in markets:
            begin_ms = _backfill_ms(config)
            reports.append(await _repair_market(session, market, bounds, begin_ms, reread, every, quiet or as_json))
            if not as_json:
                _print_repair(market, reports[-1])
    if as_json:
        print(json.dumps({"markets": reports}))
    return 1 if any(report["trouble"] or report["failed"] for report in reports) else 0


async def _repair_market(
    session: Session, market: MarketKey, bounds: Range, backfill_ms: int, reread: bool, every: bool, quiet: bool
) -> dict[str, Any]:
    source, store = session.sources[market.exchange], session.store
    start_ms, end_ms = await session.read_store(expected, store, market, source.exchange.now_ms(), backfill_ms)
    end_ms = min(end_ms, source.until_ms())
    start_ms = max(start_ms, MINUTE.floor(bounds.start_ms))
    span = Range(start_ms, max(start_ms, min(end_ms, MINUTE.floor(bounds.end_ms))))

    def is_asked_for(gap: Gap) -> bool:
        return every or gap.reason != "beyond_history"

    before = await session.read_store(_listed_gaps, store, market, span)
    backfiller = Backfiller(session, source, market, is_reopened=is_asked_for, rereads=reread)
    estimate = await backfiller.estimate(span)
    with show_progress(f"repair {market}", estimate.minutes, quiet=quiet) as advance:
        await backfiller.fill_span(span, advance, to_present=span.end_ms == end_ms)
    after = await session.read_store(_listed_gaps, store, market, span)
    return {
        **market.describe(),
        "asked": estimate.minutes,
        **backfiller.result.describe(),
        "gaps": [{**_gap_json(gap), **_outcome(gap, after)} for gap in before if is_asked_for(gap)],
    }


def _listed_gaps(store: Store, market: MarketKey, span: Range) -> list[Gap]:
    return [gap for gap in read_gaps(store, market, span) if _is_listed(gap)]


def _outcome(gap: Gap, after: list[Gap]) -> dict[str, Any]:
    """Return the number of minutes of a gap that are stored now, and the reasons for the others."""
    left = [piece for one in after for piece in clip_gap(one, gap.start_ms, gap.end_ms)]
    missing = sum(piece.minute_count for piece in left)
    return {"repaired": gap.minute_count - missing, "now": sorted({piece.reason for piece in left})}


def _print_repair(market: MarketKey, report: dict[str, Any]) -> None:
    print(
        f"{market}: {report['asked']:,} minutes asked for, {report['stored']:,} stored"
        f"{revised_text(report['revised'])}, {report['absent']:,} the exchange does not have"
    )
    gaps = report["gaps"]
    print_rows(
        ("from", "to", "repaired", "minutes", "still missing"),
        [
            (gap["from"], gap["to"], f"{gap['repaired']:,}", f"{gap['minutes']:,}", ", ".join(gap["now"]))
            for gap in gaps
        ],
        [
            f"  {gap['from']} to {gap['to']}: {gap['repaired']:,} of {gap['minutes']:,} minutes are stored now"
            + (f" ({', '.join(gap['now'])})" if gap["now"] else "")
            for gap in gaps
        ],
    )
    print_failures(market, report)
