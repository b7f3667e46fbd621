"""The reads that all SQL stores share. Their statements have the same names, parameters and columns."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from candled.errors import StoreRejected
from candled.model import ALL_TIME, DAY_MS, MINUTE, Candle, Gap, Interval, MarketKey, Range, RangeSet, Symbol

from .batch import group_by_symbol
from .interface import SEQ_UNPUBLISHED, Store

logger = logging.getLogger(__name__)

FOLD_CHUNK_MS = 28 * DAY_MS


class SqlStore(Store, ABC):
    """A `Store` that reads with the statements in the module `_sql`.

    The parameters of a statement about a market begin with the market's: its number, or its exchange and symbol.
    """

    _sql: ModuleType
    #: The names of the steps that make the tables; their number is the version of the schema.
    schema_steps: Sequence[str]
    #: The prefix of errors.
    _label = ""
    #: The intervals above 1m for which all bars are stored.
    _kept: frozenset[Interval] = frozenset()
    #: The unit in which the lengths of intervals are stored, milliseconds.
    _unit_ms = 1

    @abstractmethod
    def _fetch_rows(self, statement: str, *parameters: object) -> list[Any]:
        """Run a reading statement."""

    @abstractmethod
    def _fetch_of_market(self, statement: str, market: MarketKey, *parameters: object) -> list[Any]:
        """Run a reading statement about a market; return no rows if the market is unknown."""

    @abstractmethod
    def _as_candles(self, rows: Iterable[Any], *, final: bool = True) -> list[Candle]:
        """Return the candles of rows."""

    def intervals(self) -> Sequence[Interval]:
        """See `Store.intervals`."""
        return sorted(self._kept)

    @abstractmethod
    def read_schema(self) -> int:
        """Return the version of the tables, 0 if there are none. The store is not open, and nothing changes.

        Raises:
            StoreUnavailable: the store cannot be reached.
            StoreRejected: the tables are those of a newer version.
        """

    @abstractmethod
    def migrate(self, version: int) -> None:
        """Upgrade the tables to `version`, or undo their last step if `version` is one lower than now.

        The store is not open.
        """

    def drop_old_minutes(self, now_ms: int) -> Iterator[None]:
        """See `Store.drop_old_minutes`. There are no steps: a server deletes in `tidy_up`, without blocking writers."""
        yield from ()

    @abstractmethod
    def put_bars(self, market: MarketKey, interval: Interval, bars: Sequence[Candle]) -> None:
        """Store longer bars as they are, in one transaction. Use this for bars whose minutes are not kept any more."""

    @abstractmethod
    def set_kept_from(self, since_ms: int) -> None:
        """Refuse minutes before a time (UTC epoch ms) from now on. The time only moves forward."""

    def markets(self) -> list[MarketKey]:
        """List all markets that the store knows."""
        return [MarketKey(exchange, Symbol.parse(symbol)) for exchange, symbol in self._fetch_rows(self._sql.MARKETS)]

    def feed_log(self, market: MarketKey) -> dict[str, list[tuple[int, Range]]]:
        """Return the changes of each feed of a market, by epoch, in the order of the feeds; see `log_changes`."""
        log: dict[str, list[tuple[int, Range]]] = {}
        for epoch, seq, *span in self._fetch_of_market(self._sql.FEED_LOG, market):
            log.setdefault(epoch, []).extend([] if seq is None else [(seq, Range(*span))])
        return log

    def read_forming(self, market: MarketKey) -> list[Candle]:
        """See `Store.read_forming`."""
        return self._as_candles(self._fetch_of_market(self._sql.FORMING, market), final=False)

    def span(self, market: MarketKey, interval: Interval) -> Range | None:
        """See `Store.span`."""
        if interval == MINUTE:
            rows = self._fetch_of_market(self._sql.SPAN, market)
        else:
            length = self._check_interval(interval).ms // self._unit_ms
            rows = self._fetch_of_market(self._sql.BARS_SPAN, market, length)
        return next((Range(first, last + interval.ms) for first, last in rows if first is not None), None)

    def newest_minutes(self, exchange: str) -> Mapping[Symbol, int]:
        """See `Store.newest_minutes`."""
        return {Symbol.parse(symbol): newest_ms for symbol, newest_ms in self._fetch_rows(self._sql.NEWEST, exchange)}

    def complete_from(self, market: MarketKey) -> int | None:
        """See `Store.complete_from`."""
        rows = self._fetch_of_market(self._sql.COMPLETE_FROM, market)
        return rows[0][0] if rows else None

    def served_from(self, market: MarketKey) -> int | None:
        """See `Store.served_from`."""
        rows = self._fetch_of_market(self._sql.SERVED_FROM, market)
        return rows[0][0] if rows else None

    def known_gaps(self, market: MarketKey, within: Range = ALL_TIME) -> list[Gap]:
        """See `Store.known_gaps`."""
        found = as_known_gaps(self._fetch_of_market(self._sql.KNOWN_GAPS, market, *within))
        return [gap for gap in found if gap.start_ms < within.end_ms and within.start_ms < gap.end_ms]

    def unpublished(self, exchange: str) -> Mapping[Symbol, Sequence[Range]]:
        """See `Store.unpublished`."""
        return group_by_symbol(self._fetch_rows(self._sql.UNPUBLISHED, exchange, SEQ_UNPUBLISHED))

    def changes_since(self, market: MarketKey, epoch: str, seq: int) -> list[Range] | None:
        """See `Store.changes_since`."""
        rows = self._fetch_of_market(self._sql.CHANGES_SINCE, market, epoch, seq)
        return list(RangeSet(row for row in rows if row != (None, None))) if rows else None

    def _check_interval(self, interval: Interval) -> Interval:
        if interval != MINUTE and interval not in self._kept:
            raise StoreRejected(f"{self._label}no bars of {interval} are kept")
        return interval


def as_known_gaps(rows: Iterable[Any]) -> list[Gap]:
    """Convert rows to known gaps."""
    return [
        Gap(start_ms=start_ms, end_ms=end_ms, reason=reason, attempts=attempts, retry_ms=retry_ms)
        for start_ms, end_ms, reason, attempts, retry_ms in rows
    ]


def known_gap_row(gap: Gap) -> tuple[int, int, str, int, int | None]:
    """Return the row of a known gap."""
    return gap.start_ms, gap.end_ms, gap.reason, gap.attempts, gap.retry_ms


def log_unused(unused: Collection[Interval]) -> None:
    """Log the stored intervals that the settings do not name, if there are any."""
    if unused:
        logger.info(
            "the store keeps bars of %s, which the settings do not name; to drop them: "
            "candled init-db --drop-interval %s",
            ", ".join(map(str, sorted(unused))),
            min(unused),
        )


def log_progress(intervals: Iterable[Interval], done: int, count: int) -> None:
    """Log the number of markets that are folded into new intervals, at most ten times."""
    if done * 10 // count > (done - 1) * 10 // count:
        logger.info("folded stored minutes into %s: %s of %s markets", ", ".join(map(str, intervals)), done, count)
