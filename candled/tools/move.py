"""`candled move`: copies a store to another one beside a running daemon, and compares them."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from candled.config import Config
from candled.errors import ConfigError, StoreNotReady, StoreRejected, StoreUnavailable
from candled.exchange import Clock
from candled.model import DAY_MS, MINUTE, MINUTE_MS, WEEK, Candle, Interval, MarketKey, Range, decimal_text, iso_ms
from candled.settings import redacted
from candled.store import make_store
from candled.store.batch import merge_changes
from candled.store.interface import BadRow
from candled.store.sql_store import SqlStore

from .progress import show_progress
from .store_access import put_past
from .transfer import extend_coverage

_PASS_S = 60.0
_ATTEMPTS = 5  # comparisons of a page that the daemon may be changing
_TAIL_MS = DAY_MS  # the daemon rarely changes older minutes; comparing everything finds such changes

Advance = Callable[[int], None]
Bars = Mapping[Interval, Sequence[Candle]]


def move(config: Config, target_url: str, source_url: str | None, clock: Clock, *, quiet: bool) -> int:
    """Run `candled move`; return the exit status: 1 if the stores differ at the end."""
    source_url = source_url or config.store.url
    if _place(source_url) == _place(target_url):
        raise ConfigError(f"move: both stores are {_shown(source_url)}; expected another one as TARGET")
    try:
        with ExitStack() as until:
            source = _opened(source_url, until)
            target = _open_target(target_url, source.intervals(), until)
            target.set_kept_from(source.kept_from())
            mover = Mover(source, target, clock)
            mover.run(quiet=quiet)
    except (StoreUnavailable, StoreRejected) as error:
        raise ConfigError(f"move: {error}; run it again to continue") from error
    for line in mover.differences:
        print(line)
    if mover.differences:
        return 1
    print(_ADVICE.format(url=_shown(target_url), old=_shown(source_url)))
    return 0


_ADVICE = """\
Both stores agree. To switch over:
  1. set store.url to {url} in the settings, or in CANDLED_STORE__URL
  2. restart candled
The daemon fetches the minutes since this moment from the exchange when it starts. Candles in its journal go to the new
store. To copy the last minutes of the old store too, at any time after the restart:
  candled move {url} --source {old}
The old store is unchanged: to go back, set the old address again."""


def _place(url: str) -> str:
    scheme, _, path = url.partition(":///")
    return str(Path(path).resolve()) if scheme == "sqlite" else url


def _shown(url: str) -> str:
    return redacted(url) if urlsplit(url).password else url


def _opened(url: str, until: ExitStack) -> SqlStore:
    """Open a store as a guest, so that its tables stay as they are."""
    store = make_store(url, None)
    if not isinstance(store, SqlStore):
        raise ConfigError("move: expected SQLite or PostgreSQL; the stores of plugins cannot be copied")
    store.open()
    until.callback(store.close)
    return store


def _open_target(url: str, wanted: Sequence[Interval], until: ExitStack) -> SqlStore:
    """Open the target, which must have tables and all the intervals of the source."""
    try:
        target = _opened(url, until)
    except StoreNotReady as error:
        raise ConfigError(f"move: {error}, with CANDLED_STORE__URL={_shown(url)} in its environment") from error
    if missing := sorted({*wanted} - {*target.intervals()}):
        names = ", ".join(map(str, missing))
        raise ConfigError(
            f"move: {_shown(url)} keeps no bars of {names}, which the source keeps: add them to intervals in the "
            "settings and run candled init-db for the target, or drop them from the source with --drop-interval"
        )
    return target


class Mover:
    """Copies all markets from one open store to another, and compares them."""

    def __init__(self, source: SqlStore, target: SqlStore, clock: Clock) -> None:
        self._source = source
        self._target = target
        self._clock = clock
        #: The time before which the source has longer bars only, UTC epoch milliseconds.
        self._kept_ms = source.kept_from()
        self._intervals = source.intervals()
        #: A line for each page that still differs after several attempts.
        self.differences: list[str] = []

    def run(self, *, quiet: bool) -> None:
        """Copy everything, compare everything, and copy the newest part until nothing is behind."""
        spans = {market: span for market in self._source.markets() if (span := self._span(market))}
        total = sum(map(_slots, spans.values()))
        with show_progress("copy", total, quiet=quiet) as advance:
            for market, span in spans.items():
                for page in _pages(span):
                    self._copy_page(market, page)
                    advance(_slots(page))
                self._copy_facts(market)
        with show_progress("compare", total, quiet=quiet) as advance:
            for market in spans:
                self._compare(market, advance)
        self._catch_up(spans)

    def _catch_up(self, spans: Mapping[MarketKey, Range]) -> None:
        """Copy the newest part again until a pass takes less than a minute: then at most one minute is behind."""
        took_s = math.inf
        while took_s > _PASS_S:
            before_s, started_s = took_s, self._clock.monotonic()
            for market in self._source.markets():
                if span := self._span(market):
                    copied_ms = spans[market].end_ms - _TAIL_MS if market in spans else 0
                    for page in _pages(span._replace(start_ms=max(span.start_ms, copied_ms))):
                        self._copy_page(market, page)
                    self._copy_facts(market)
            took_s = self._clock.monotonic() - started_s
            if took_s >= before_s:  # there are too many markets to be faster
                return

    def _span(self, market: MarketKey) -> Range | None:
        """Return the time from the oldest to the newest minute or bar of the source."""
        found = [span for one in (MINUTE, *self._intervals) if (span := self._source.span(market, one))]
        minutes = self._source.span(market, MINUTE)
        end_ms = minutes.end_ms if minutes else max((span.end_ms for span in found), default=0)
        return Range(min(span.start_ms for span in found), end_ms) if found else None

    def _is_used(self, market: MarketKey) -> bool:
        """Return True if a daemon has already used the target, which then has newer facts of its own."""
        return not self._target.feed_log(market).keys() <= self._source.feed_log(market).keys()

    # ------------------------------------------------------------ copying

    def _copy_page(self, market: MarketKey, page: Range) -> int:
        """Copy the minutes of a page that the target does not have in this version; return their number."""
        if page.end_ms <= self._kept_ms:
            for interval in self._intervals:
                bars = self._source.read_bars_between(market, interval, *page)
                if bars != self._target.read_bars_between(market, interval, *page):
                    self._target.put_bars(market, interval, bars)
            return 0
        changed = self._behind(market, page)
        if changed and self._is_used(market):
            put_past(self._target, market, changed)
        else:
            self._target.write_minutes([(market, minute) for minute in changed])
        return len(changed)

    def _behind(self, market: MarketKey, page: Range) -> list[Candle]:
        """Return the minutes of a page that the target does not have in this version."""
        given = {minute.open_ms: minute for minute in self._source.read_bars_between(market, MINUTE, *page)}
        stored = {minute.open_ms: minute for minute in self._target.read_bars_between(market, MINUTE, *page)}
        return merge_changes({at_ms: one for at_ms, one in given.items() if at_ms >= self._kept_ms}, stored)

    def _copy_facts(self, market: MarketKey) -> None:
        """Copy everything else about a market, after its minutes.

        The source logs each change before it stores the minutes, so the copied log lacks no change of copied minutes.
        """
        if self._is_used(market):
            extend_coverage(self._target, market)
            return
        self._target.write_minutes([(market, minute) for minute in self._source.read_forming(market)])
        known_gaps, since_ms = self._source.known_gaps(market), self._source.complete_from(market)
        if known_gaps != self._target.known_gaps(market):
            self._target.save_known_gaps(market, known_gaps)
        if since_ms is not None:
            self._target.set_complete_from(market, since_ms)
        copied = {epoch: set(changes) for epoch, changes in self._target.feed_log(market).items()}
        for epoch, changes in self._source.feed_log(market).items():
            if epoch not in copied:
                self._target.register_feed([market], epoch)
            fresh = [change for change in changes if change not in copied.get(epoch, ())]
            if fresh:
                self._target.log_changes(market, epoch, fresh)

    # ------------------------------------------------------------ comparing

    def _compare(self, market: MarketKey, advance: Advance) -> None:
        """Compare a market, copy again what the daemon has changed meanwhile, and print count and checksum."""
        spans = [span for span in (self._span(market), self._target.span(market, MINUTE)) if span]
        bounds = Range(min(span.start_ms for span in spans), min(span.end_ms for span in spans))
        is_used = self._is_used(market)
        minute_count = bar_count = 0
        sha256 = hashlib.sha256()
        for page in _pages(bounds):
            bars = self._copied_bars(market, page) if is_used else self._agreed_bars(market, page, bounds.end_ms)
            minute_count += len(bars[MINUTE])
            bar_count += sum(map(len, bars.values())) - len(bars[MINUTE])
            sha256.update("".join(map(_line, chain.from_iterable(bars.values()))).encode())
            advance(_slots(page))
        print(
            f"{market}: {minute_count:,} minutes and {bar_count:,} longer bars before {iso_ms(bounds.end_ms)}, "
            f"sha256 {sha256.hexdigest()}"
        )

    def _agreed_bars(self, market: MarketKey, page: Range, end_ms: int) -> Bars:
        """Return the bars of a page once both stores have the same.

        The daemon may be changing the source. So a bar counts as different only if it still differs after it was
        copied, and the source has not changed it meanwhile.
        """
        lasting: set[object] = set()
        before: set[object] = set()
        for _ in range(_ATTEMPTS):
            given, stored = (self._read_page(store, market, page, end_ms) for store in (self._source, self._target))
            differing = _differing(given, stored)
            if not differing:
                return given
            lasting, before = differing & before, differing
            wrong = [
                BadRow(table="candles", interval=MINUTE, time=minute.open_ms, problem="differs from the source")
                for minute in set(stored[MINUTE]) - set(given[MINUTE])
            ]
            self._target.discard_rows(market, wrong)
            self._copy_page(market, page)
        if lasting:
            names = ", ".join(str(interval) for interval in given if given[interval] != stored[interval])
            self.differences.append(
                f"{market}: the {names} bars from {iso_ms(page.start_ms)} to {iso_ms(page.end_ms)} differ; "
                "try candled verify --repair, and run this again"
            )
        return given

    def _copied_bars(self, market: MarketKey, page: Range) -> Bars:
        """Copy a page to a target that a daemon uses, which may have newer versions; return the page's minutes."""
        self._copy_page(market, page)
        if self._behind(market, page):
            self.differences.append(f"{market}: minutes from {iso_ms(page.start_ms)} were not stored; run it again")
        return {MINUTE: self._source.read_bars_between(market, MINUTE, *page)}

    def _read_page(self, store: SqlStore, market: MarketKey, page: Range, end_ms: int) -> Bars:
        """Return the bars that begin in a page and end by `end_ms`, without minutes that are about to be dropped."""
        return {
            interval: [
                bar
                for bar in store.read_bars_between(market, interval, *page)
                if bar.open_ms + interval.ms <= end_ms and (interval != MINUTE or bar.open_ms >= self._kept_ms)
            ]
            for interval in (MINUTE, *self._intervals)
        }


def _pages(span: Range) -> Iterator[Range]:
    """Yield the weeks of a range, cut at its ends. In whole weeks, even the longest bar is folded only once."""
    for week_ms in range(WEEK.floor(span.start_ms), span.end_ms, WEEK.ms):
        yield Range(max(span.start_ms, week_ms), min(span.end_ms, week_ms + WEEK.ms))


def _differing(given: Bars, stored: Bars) -> set[object]:
    """Return the bars that are missing from the second store, and the times of those that only it has."""
    missing = {(interval, bar) for interval, bars in given.items() for bar in set(bars) - set(stored[interval])}
    times = {(interval, bar.open_ms) for interval, bars in given.items() for bar in bars}
    return missing | ({(interval, bar.open_ms) for interval, bars in stored.items() for bar in bars} - times)


def _slots(span: Range) -> int:
    return (span.end_ms - span.start_ms) // MINUTE_MS


def _line(bar: Candle) -> str:
    numbers = ("" if number is None else decimal_text(number) for number in bar.values)
    return f"{bar.open_ms},{','.join(numbers)},{bar.as_of_ms},{bar.rev},{bar.src}\n"
