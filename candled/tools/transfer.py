"""`candled export` and `candled import`: stored bars to files, and files to stored minutes."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from candled.clock import SystemClock
from candled.config import Config
from candled.errors import ConfigError
from candled.model import MINUTE, MINUTE_MS, WEEK, Candle, Gap, Interval, MarketKey, Range, RangeSet, iso_ms
from candled.store.batch import merge_changes
from candled.store.interface import Store

from .files import BadRow, has_as_of, open_writer, read_candles
from .progress import show_progress
from .store_access import exchange_of, open_store, put_past

_PAGE_BARS = 10_080  # bars of a page; a week of minutes
_STEP = 1000  # rows between two steps of the progress
_NAMED = 5  # bad rows reported per file: in a file of another kind every row is bad
_IMPROBABLE = 1000

# ---------------------------------------------------------------- export


def export(
    config: Config, market: MarketKey, interval: Interval, bounds: Range, *, output: str, kind: str | None, quiet: bool
) -> int:
    """Run `candled export`; return the exit status."""
    kind = kind or ("parquet" if output.endswith(".parquet") else "csv")
    if kind == "parquet" and (output == "-" or output.endswith(".gz")):
        raise ConfigError("--output: Parquet needs a file, and is compressed by itself: FILE.parquet")
    with open_store(config) as store:
        kept = [MINUTE, *store.intervals()]
        if interval not in kept:
            raise ConfigError(f"--interval: no bars of {interval} are kept, only of {', '.join(map(str, kept))}")
        stored = store.span(market, interval)
        span = bounds.common(stored or Range(0, 0))
        if span.start_ms >= span.end_ms:
            have = f"; there are some from {iso_ms(stored.start_ms)} to {iso_ms(stored.end_ms)}" if stored else ""
            print(f"candled: no {interval} bars of {market} are stored in that time{have}", file=sys.stderr)
            return 1
        is_on_terminal = output == "-" and sys.stdout.isatty()  # the bars are the progress
        with (
            open_writer(output, kind, market, interval) as write,
            show_progress(
                f"export {market} {interval}", _slots(span, interval), quiet=quiet or is_on_terminal
            ) as advance,
        ):
            for page in span.split(_PAGE_BARS * interval.ms):
                write(store.read_bars_between(market, interval, *page))
                advance(_slots(page, interval))
    return 0


def _slots(span: Range, interval: Interval) -> int:
    return -(-(span.end_ms - span.start_ms) // interval.ms)


# ---------------------------------------------------------------- import


@dataclass(slots=True)
class Counts:
    """The number of rows of a file by their result."""

    #: The rows of the file.
    read: int = 0
    #: Minutes that were not stored before.
    new: int = 0
    #: Minutes that were stored in an older version.
    replaced: int = 0
    #: Minutes that were stored in the same or a newer version.
    kept: int = 0
    #: Minutes that the store did not take: they are older than its retention.
    refused: int = 0
    #: Rows that cannot be candles.
    bad: int = 0


def import_files(
    config: Config,
    market: MarketKey,
    files: Sequence[Path],
    *,
    skip_bad: bool,
    sparse: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run `candled import`; return the exit status."""
    now_ms = SystemClock().now_ms()
    with show_progress("check", None, quiet=quiet or as_json) as advance:
        total = _check(files, now_ms, advance, skip_bad=skip_bad, sparse=sparse)
    if market.symbol not in exchange_of(config, market.exchange).symbols:
        print(f"candled: {market} is not in the settings: it is stored, but not served", file=sys.stderr)
    results: list[tuple[Path, Counts]] = []
    with open_store(config) as store:
        with show_progress(f"import {market}", total, quiet=quiet or as_json) as advance:
            for path in files:
                counts = Counts()
                results.append((path, counts))
                for page in _minute_pages(read_candles(path, now_ms), counts):
                    put_page(store, market, page, counts)
                    advance(len(page))
        extend_coverage(store, market)
    for path, counts in results:
        _print_counts(path, counts, as_json=as_json)
    return 1 if any(counts.refused for _, counts in results) else 0


def _check(files: Sequence[Path], now_ms: int, advance: Callable[[int], None], *, skip_bad: bool, sparse: bool) -> int:
    """Read every file once without writing; return the number of good rows.

    Raises:
        ConfigError: some rows are bad and may not be skipped, or a file has longer bars; all files are reported.
    """
    problems: list[str] = []
    total = 0
    for path in files:
        spacing = _Spacing()
        bad: list[str] = []
        bad_rows = 0
        for count, row in enumerate(read_candles(path, now_ms), 1):
            if count % _STEP == 0:
                advance(_STEP)
            if isinstance(row, Candle):
                spacing.add_time(row.open_ms)
                continue
            bad_rows += 1
            if bad_rows <= _NAMED:
                bad.append(f"{path}, {row.where}: {row.problem}")
        total += spacing.rows
        if bad_rows > _NAMED:
            bad.append(f"{path}: and {bad_rows - _NAMED} more bad rows")
        if skip_bad:
            print("".join(f"candled: left out: {line}\n" for line in bad), end="", file=sys.stderr)
        else:
            problems += bad
        if not sparse and not has_as_of(path) and spacing.looks_longer():
            problems.append(
                f"{path}: the rows are {spacing.step_ms // MINUTE_MS} minutes apart: expected 1-minute candles, not "
                "longer bars (--sparse: they are minutes)"
            )
    if problems:
        raise ConfigError([*problems, "nothing was imported"])
    return total


class _Spacing:
    """Distinguishes minutes from longer bars, whose times are all multiples of their length."""

    def __init__(self) -> None:
        self.rows = 0
        self.step_ms = 0
        self._last_ms = 0

    def add_time(self, open_ms: int) -> None:
        if self.rows:
            self.step_ms = math.gcd(self.step_ms, open_ms - self._last_ms)
        self.rows += 1
        self._last_ms = open_ms

    def looks_longer(self) -> bool:
        """Return True if minutes would have these times only by a rare accident."""
        step = self.step_ms // MINUTE_MS
        return step > 1 and (self.rows - 1) * math.log(step) >= math.log(_IMPROBABLE)


def _minute_pages(rows: Iterable[Candle | BadRow], counts: Counts) -> Iterator[list[Candle]]:
    """Yield the good rows in pages of a week, so that each longer bar is folded once; count the bad rows."""

    def good() -> Iterator[Candle]:
        for row in rows:
            counts.read += 1
            if isinstance(row, Candle):
                yield row
            else:
                counts.bad += 1

    for _, page in groupby(good(), key=lambda candle: WEEK.floor(candle.open_ms)):
        yield list(page)


def put_page(store: Store, market: MarketKey, page: Sequence[Candle], counts: Counts) -> None:
    """Store the minutes that the store lacks or has in an older version. The page is ascending, without duplicates."""
    span = Range(page[0].open_ms, page[-1].open_ms + MINUTE_MS)
    known = {candle.open_ms: candle for candle in store.read_bars_between(market, MINUTE, *span)}
    changed = merge_changes({candle.open_ms: candle for candle in page}, known)
    counts.kept += len(page) - len(changed)
    if not changed:
        return
    put_past(store, market, changed)
    stored = RangeSet(store.stored_ranges(market, *span))
    for candle in changed:
        if candle.open_ms not in stored:
            counts.refused += 1
        elif candle.open_ms in known:
            counts.replaced += 1
        else:
            counts.new += 1


def _print_counts(path: Path, counts: Counts, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": str(path), **asdict(counts)}))
        return
    refused = f", {counts.refused} refused (older than the store keeps)" if counts.refused else ""
    print(
        f"{path}: {counts.read} rows: {counts.new} new, {counts.replaced} replaced an older version, "
        f"{counts.kept} already stored{refused}, {counts.bad} bad"
    )


# ---------------------------------------------------------------- complete history


def extend_coverage(store: Store, market: MarketKey) -> None:
    """Update the stored completeness of a market after minutes were stored without the daemon.

    The start of the complete history moves back only over stored minutes and known gaps, without a break. If the store
    does not have it yet, it stays unknown: the daemon finds it at its next start.
    """
    known_gaps = store.known_gaps(market)
    left = [piece for gap in known_gaps for piece in _unfilled(store, market, gap)]
    if left != known_gaps:
        store.save_known_gaps(market, left)
    since_ms, stored = store.complete_from(market), store.span(market, MINUTE)
    if since_ms is None or stored is None or stored.start_ms >= since_ms:
        return
    known = [(gap.start_ms, gap.end_ms) for gap in left]
    joined_ms = RangeSet([*store.stored_ranges(market, stored.start_ms, since_ms), *known]).start_of(since_ms)
    joined_ms = max(joined_ms, WEEK.floor(stored.start_ms))  # before history there is nothing to complete
    if joined_ms < since_ms:
        store.set_complete_from(market, joined_ms)


def _unfilled(store: Store, market: MarketKey, gap: Gap) -> list[Gap]:
    """Return the parts of a known gap that are still missing."""
    stored = RangeSet(store.stored_ranges(market, gap.start_ms, gap.end_ms))
    missing = stored.missing(gap.start_ms, gap.end_ms)
    return [replace(gap, start_ms=start_ms, end_ms=end_ms) for start_ms, end_ms in missing]
