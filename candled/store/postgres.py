"""The store for large sites: PostgreSQL, with TimescaleDB where the server has it."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from candled.errors import StoreRejected
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Range, RangeSet, Symbol, sources

from . import postgres_statements as sql
from .batch import by_market, minute_ranges, touched
from .holes import replaced
from .interface import ALL_TIME, FEED_DAYS, FEEDS_KEPT, LATER, Hole
from .postgres_pool import Link, Pool, Watchdog, parse_address
from .postgres_rows import as_array, as_candles, as_columns
from .postgres_schema import SCHEMA, check, migrate, timescale

logger = logging.getLogger(__name__)

OLDEST_SERVER = 140_000  # date_bin came with PostgreSQL 14
DAY_MS = 86_400_000
FOLD_CHUNK_MS = 28 * DAY_MS
PRESENT_CHUNK_MS = 100 * DAY_MS
DELETE_CHUNK_MS = 28 * DAY_MS
FORGET_AFTER_MS = 7 * DAY_MS
MAINTENANCE_LIMIT_S = 3600.0

_MONDAYS = Interval.parse("1W")


class PostgresStore:
    """The candles of all markets in the schema `candled` of the database that `url` names.

    Bars of each of `intervals` are kept beside the minutes. Several processes may use one database, each with its
    own intervals: every writer keeps up all that any of them is configured for. Methods may be called from any
    threads; at most `writers` write and `readers` read at a time, further ones wait. Each statement ends within
    `limit_s` seconds, whatever the link does; `open` and `maintain` may take longer.

    `compress_after_days` (TimescaleDB under its own licence) and `retention_days` are what `maintain` does to old
    minutes; None leaves them alone. Longer bars are never dropped. Without `upgrade`, `open` refuses a database whose
    tables are not there or not up to date.
    """

    def __init__(
        self,
        url: str,
        intervals: Iterable[Interval],
        *,
        compress_after_days: int | None = None,
        retention_days: int | None = None,
        upgrade: bool = True,
        writers: int = 2,
        readers: int = 4,
        limit_s: float = 10.0,
    ) -> None:
        self._parameters = parse_address(url)
        self._intervals = frozenset(intervals) - {MINUTE}
        self._compress_after_days = compress_after_days
        self._retention_days = retention_days
        self._upgrade = upgrade
        self._sizes = writers, readers
        self._limit_s = limit_s
        self._pools: tuple[Watchdog, Pool, Pool] | None = None
        self._facts: dict[str, Any] = {"kind": "postgresql", "schema": SCHEMA}
        self._timescale = timescale.Timescale()

    # ------------------------------------------------------------ opening and closing

    def open(self) -> None:
        """Create or upgrade the tables and fold newly configured intervals. Other processes may be at work.

        Raises:
            StoreUnavailable: the server cannot be reached, or does not accept us now.
            StoreRejected: the server is too old, the schema newer than known, or the role may not create tables.
        """
        self.close()
        watchdog = Watchdog()
        try:
            with self._alone(watchdog) as link:
                self._prepare(link)
        except BaseException:
            watchdog.close()
            raise
        writers, readers = self._sizes
        connect = partial(Link, self._parameters, watchdog, limit_s=self._limit_s)
        self._pools = (
            watchdog,
            Pool(partial(connect, autocommit=False), writers, wait_s=self._limit_s),
            Pool(partial(connect, autocommit=True), readers, wait_s=self._limit_s),
        )

    def close(self) -> None:
        """Close every connection; calls under way on other threads end first or fail."""
        pools, self._pools = self._pools, None
        if pools is None:
            return
        watchdog, writers, readers = pools
        writers.close()
        readers.close()
        watchdog.close()

    def describe(self) -> dict[str, Any]:
        """Facts for `/health`: kind (`timescaledb` or `postgresql`), schema, versions, and connections not in use."""
        if self._pools is None:
            return dict(self._facts)
        _, writers, readers = self._pools
        return {**self._facts, "freeWriters": writers.usable(), "freeReaders": readers.usable()}

    # ------------------------------------------------------------ writing

    def write(self, rows: Sequence[tuple[MarketKey, Candle]]) -> None:
        """See `Store.write`. Writers of the same market wait for each other, in an order that never deadlocks.

        If this raises `StoreUnavailable` the rows may have been stored: writing them again changes nothing then.
        """
        batches = by_market(rows)
        if not batches:
            return
        with self._writing() as link:
            ids = _lock_markets(link, batches)
            minutes = {ids[market]: batch.minutes for market, batch in batches.items() if batch.minutes}
            running = {ids[market]: batch.running for market, batch in batches.items() if batch.running}
            if minutes:
                self._write_minutes(link, minutes)
            if running:
                markets = sorted(running)
                link.run(sql.PUT_RUNNING, as_columns(markets, [running[id] for id in markets]))

    def _write_minutes(self, link: Link, minutes: Mapping[int, Mapping[int, Candle]]) -> None:
        times = {id: sorted(minutes[id]) for id in sorted(minutes)}
        markets = [id for id in times for _ in times[id]]
        candles = [candle for id in times for candle in map(minutes[id].__getitem__, times[id])]
        changed = link.rows(sql.PUT_MINUTES, as_columns(markets, candles))
        if not changed:
            return
        link.run(sql.WIDEN_SPANS, [as_array(map(str, column)) for column in zip(*changed, strict=True)])
        stretches = {
            id: _stretches([open_ms for open_ms in times[id] if first_ms <= open_ms <= last_ms])
            for id, first_ms, last_ms in changed
        }
        # Read only now that the markets are locked: an interval that another process adds is either in this
        # list, or its folding waits for our lock and sees our minutes.
        _fold(link, stretches, _levels(tuple(link.rows(sql.INTERVALS))))

    def set_complete_from(self, market: MarketKey, since_ms: int) -> None:
        """See `Store.set_complete_from`."""
        with self._writing() as link:
            ids = _lock_markets(link, [market])
            link.run(sql.SET_COMPLETE_FROM, (since_ms, ids[market]))

    def save_holes(self, market: MarketKey, holes: Sequence[Hole], within: Range = ALL_TIME) -> None:
        """See `Store.save_holes`."""
        with self._writing() as link:
            market_id = _lock_markets(link, [market])[market]
            near = _holes(link.rows(sql.HOLES, (*_names(market), *within)))
            new = replaced(near, holes, within)
            link.run(sql.DROP_HOLES, (market_id, [hole.start_ms for hole in near]))
            link.run(
                sql.PUT_HOLES,
                (
                    market_id,
                    [hole.start_ms for hole in new],
                    [hole.end_ms for hole in new],
                    [hole.reason for hole in new],
                    [hole.attempts for hole in new],
                    [hole.retry_ms for hole in new],
                ),
            )

    def open_feed(self, markets: Sequence[MarketKey], epoch: str) -> None:
        """See `Store.open_feed`."""
        with self._writing() as link:
            ids = _lock_markets(link, dict.fromkeys(markets)) if markets else {}
            link.run(sql.OPEN_FEED, (epoch, sorted(ids.values())))

    def note_changes(self, market: MarketKey, epoch: str | None, changes: Sequence[tuple[int, Range]]) -> None:
        """See `Store.note_changes`."""
        with self._writing() as link:
            market_id = _lock_markets(link, [market])[market]
            feeds = link.rows(sql.FEED, (market_id, epoch, epoch))
            if not feeds and epoch is None:
                return
            if not feeds:
                raise StoreRejected(f"{market} has no feed {epoch}, or no longer")
            rows = [(seq, *span) for seq, span in changes]
            arrays = [as_array(map(str, column)) for column in zip(*rows, strict=True)]
            if arrays:
                link.run(sql.DROP_UNTOLD, (*arrays, market_id, *feeds[0], LATER, LATER))
                link.run(sql.NOTE_CHANGES, (market_id, *feeds[0], *arrays))

    # ------------------------------------------------------------ reading

    def bars(self, market: MarketKey, interval: Interval, *, before_ms: int, limit: int) -> list[Candle]:
        """See `Store.bars`.

        Raises:
            StoreRejected: `interval` is not among the configured ones.
        """
        if limit <= 0:
            return []
        if interval == MINUTE:
            return self._last_minutes(market, before_ms, limit)
        parameters = (*_names(market), _minutes(self._known(interval)), _possible(before_ms), limit)
        return as_candles(reversed(self._rows(sql.BARS_BEFORE, parameters)))

    def _last_minutes(self, market: MarketKey, before_ms: int, limit: int) -> list[Candle]:
        """The last minutes, first looked for where they are if none is missing, then ever farther back.

        A search without a lower bound would look into every chunk there is.
        """
        with self._reading() as link:
            for market_id, first_ms, last_ms in link.rows(sql.SPAN, _names(market)):
                end_ms = min(before_ms, last_ms + MINUTE_MS)
                reach_ms = limit * MINUTE_MS
                while True:
                    start_ms = max(first_ms, end_ms - reach_ms)
                    rows = link.rows(sql.LAST_MINUTES, (market_id, start_ms, _possible(end_ms), limit))
                    if len(rows) == limit or start_ms == first_ms:
                        return as_candles(reversed(rows))
                    reach_ms *= 4
        return []

    def bars_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        """See `Store.bars_between`.

        Raises:
            StoreRejected: `interval` is not among the configured ones.
        """
        if interval != MINUTE:
            span = _minutes(self._known(interval)), _possible(start_ms), _possible(end_ms)
            return as_candles(self._rows(sql.BARS_BETWEEN, (*_names(market), *span)))
        with self._reading() as link:
            return [
                candle
                for market_id, *span in _within(link, market, start_ms, end_ms)
                for candle in as_candles(link.rows(sql.MINUTES_BETWEEN, (market_id, *span)))
            ]

    def running(self, market: MarketKey) -> Candle | None:
        """See `Store.running`."""
        rows = self._rows(sql.RUNNING, _names(market))
        return as_candles(rows, final=False)[0] if rows else None

    def newest(self, exchange: str) -> Mapping[Symbol, int]:
        """See `Store.newest`."""
        return {Symbol.parse(symbol): newest_ms for symbol, newest_ms in self._rows(sql.NEWEST, (exchange,))}

    def present(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Range]:
        """See `Store.present`."""
        found = RangeSet()
        with self._reading() as link:
            for market_id, first_ms, last_ms in _within(link, market, start_ms, end_ms):
                for chunk_ms in range(first_ms, last_ms, PRESENT_CHUNK_MS):
                    chunk = market_id, chunk_ms, min(last_ms, chunk_ms + PRESENT_CHUNK_MS)
                    for stretch in link.rows(sql.PRESENT, chunk):
                        found.add(*stretch)
        return list(found)

    def complete_from(self, market: MarketKey) -> int | None:
        """See `Store.complete_from`."""
        rows = self._rows(sql.COMPLETE_FROM, _names(market))
        return rows[0][0] if rows else None

    def holes(self, market: MarketKey, within: Range = ALL_TIME) -> list[Hole]:
        """See `Store.holes`."""
        found = _holes(self._rows(sql.HOLES, (*_names(market), *within)))
        return [hole for hole in found if hole.start_ms < within.end_ms and within.start_ms < hole.end_ms]

    def changes_since(self, market: MarketKey, epoch: str, seq: int) -> list[Range] | None:
        """See `Store.changes_since`."""
        rows = self._rows(sql.CHANGES_SINCE, (seq, *_names(market), epoch))
        return list(RangeSet(row for row in rows if row != (None, None))) if rows else None

    # ------------------------------------------------------------ maintenance

    def maintain(self, now_ms: int) -> None:
        """Compress and drop what is old at `now_ms` (UTC epoch ms), old feeds, and bars of intervals nobody uses.

        To be called about once an hour, not on the writing thread: compressing a chunk may take a minute. Where
        another process is at it, this returns at once. Raises as every method of a store; the next call goes on.
        """
        watchdog, _, _ = self._opened()
        with self._alone(watchdog) as link:
            [(is_ours,)] = link.rows(sql.TRY_MAINTAIN)
            link.commit()
            if not is_ours:
                return
            link.run(sql.SEE_FEEDS, (now_ms,))
            link.run(sql.DROP_FEEDS, (FEEDS_KEPT, now_ms - FEED_DAYS * DAY_MS))
            link.commit()
            self._forget_intervals(link, now_ms)
            if self._retention_days is not None:
                self._drop_minutes(link, now_ms - self._retention_days * DAY_MS)
            if self._compress_after_days is not None and self._timescale.hypertable and self._timescale.licensed:
                compressed = timescale.compress(link, now_ms - self._compress_after_days * DAY_MS)
                if compressed:
                    logger.info("compressed %s chunks of minutes", compressed)

    def _forget_intervals(self, link: Link, now_ms: int) -> None:
        link.run(sql.NOTE_USED, (now_ms, [str(interval) for interval in self._intervals]))
        forgotten = link.rows(sql.FORGET_UNUSED, (now_ms - FORGET_AFTER_MS,))
        link.commit()
        for (name,) in forgotten:
            dropped = 0
            for market_id, _, _ in _spans(link):
                link.run(sql.LOCK_MARKET, (market_id,))  # whoever still folds from these bars ends first
                dropped += link.run(sql.DROP_BARS, (market_id, _minutes(Interval.parse(name))))
                link.commit()
            logger.info("dropped %s bars of %s, for a week not configured anywhere", dropped, name)

    def _drop_minutes(self, link: Link, before_ms: int) -> None:
        """Drop minutes of whole weeks, so that no bar loses a part of its minutes."""
        before_ms = _MONDAYS.floor(before_ms)
        if before_ms <= 0:
            return
        link.run(sql.SET_KEPT_FROM, (before_ms, before_ms))
        link.commit()
        if self._timescale.hypertable:
            link.rows(sql.LOCK_ALL_MARKETS)  # a writer may still be folding minutes of a chunk that goes
            dropped = timescale.drop_chunks(link, before_ms)
            link.commit()
            if dropped:
                logger.info("dropped %s chunks of minutes", dropped)
            return
        deleted = sum(_delete_minutes(link, market_id, before_ms) for market_id, _, _ in _spans(link))
        if deleted:
            logger.info("dropped %s minutes", deleted)

    # ------------------------------------------------------------ preparing

    def _prepare(self, link: Link) -> None:
        version = link.server_version
        name = f"{version // 10_000}.{version % 10_000}"
        if version < OLDEST_SERVER:
            raise StoreRejected(f"expected PostgreSQL {OLDEST_SERVER // 10_000} or newer, the server is {name}")
        if not link.rows(sql.TRY_PREPARE)[0][0]:
            logger.info("waiting for another process that prepares the database")
            link.rows(sql.PREPARE)
        (migrate if self._upgrade else check)(link)
        self._timescale = timescale.prepare(link)
        self._facts = {
            "kind": "timescaledb" if self._timescale.hypertable else "postgresql",
            "schema": SCHEMA,
            "server": name,
            "timescaledb": self._timescale.version,
            "compression": self._compress_after_days is not None and self._timescale.licensed,
        }
        if self._timescale.hypertable:
            logger.info("PostgreSQL %s with TimescaleDB %s", name, self._timescale.version)
        else:
            logger.info("PostgreSQL %s with plain tables: %s", name, self._timescale.remark)
        self._fold_history(link)

    def _fold_history(self, link: Link) -> None:
        """Fold stored minutes into intervals that are new to the database. What is cut short is done again."""
        names = sorted(map(str, self._intervals))
        link.run(sql.ADD_INTERVALS, (names,))
        link.commit()  # from here on every writer keeps up the new ones too
        rows = link.rows(sql.INTERVALS)
        link.commit()
        folded = {Interval.parse(name) for name, is_folded in rows if is_folded}
        fresh = self._intervals - folded
        if not fresh:
            return
        levels = {interval: source for interval, source in sources(fresh | folded).items() if interval in fresh}
        spans = _spans(link)
        for done, (market_id, first_ms, last_ms) in enumerate(spans, start=1):
            # A bar cut by the edge of two chunks is folded by both, at last from all its parts.
            for start_ms in range(first_ms, last_ms + 1, FOLD_CHUNK_MS):
                link.run(sql.LOCK_MARKET, (market_id,))
                _fold(link, {market_id: RangeSet([(start_ms, start_ms + FOLD_CHUNK_MS)])}, levels)
                link.commit()
            if done * 10 // len(spans) > (done - 1) * 10 // len(spans):  # at most ten lines
                logger.info("folded %s: %s of %s markets", ", ".join(map(str, levels)), done, len(spans))
        link.run(sql.SET_FOLDED, ([str(interval) for interval in fresh],))
        link.commit()

    # ------------------------------------------------------------ connections

    def _opened(self) -> tuple[Watchdog, Pool, Pool]:
        if self._pools is None:
            raise StoreRejected("the store is not open")
        return self._pools

    @contextmanager
    def _writing(self) -> Iterator[Link]:
        with self._opened()[1].transaction() as link:
            yield link

    @contextmanager
    def _reading(self) -> Iterator[Link]:
        with self._opened()[2].borrow() as link:
            yield link

    def _rows(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._reading() as link:
            return link.rows(statement, parameters)

    @contextmanager
    def _alone(self, watchdog: Watchdog) -> Iterator[Link]:
        """A connection for this once, for statements that may take long; its locks end with it."""
        link = Link(self._parameters, watchdog, limit_s=MAINTENANCE_LIMIT_S, autocommit=False)
        try:
            yield link
        finally:
            link.close()

    def _known(self, interval: Interval) -> Interval:
        if interval not in self._intervals:
            raise StoreRejected(f"no bars of {interval} are kept; it is not among the intervals")
        return interval


# ---------------------------------------------------------------- markets and spans


def _names(market: MarketKey) -> tuple[str, str]:
    return market.exchange, str(market.symbol)


def _lock_markets(link: Link, markets: Iterable[MarketKey]) -> dict[MarketKey, int]:
    """The numbers of the markets, given now if they had none; nobody else writes to them until we are done."""
    names = {_names(market): market for market in markets}
    columns = [list(column) for column in zip(*names, strict=True)]
    link.run(sql.ADD_MARKETS, columns)
    return {names[exchange, symbol]: id for id, exchange, symbol in link.rows(sql.LOCK_MARKETS, columns)}


def _spans(link: Link) -> list[tuple[Any, ...]]:
    """Number, first and last minute of every market that has minutes."""
    rows = link.rows(sql.SPANS)
    link.commit()
    return rows


def _within(link: Link, market: MarketKey, start_ms: int, end_ms: int) -> list[tuple[int, int, int]]:
    """The market's number with the part of `[start_ms, end_ms)` that its minutes span; empty where it has none."""
    return [
        (market_id, max(start_ms, first_ms), min(end_ms, last_ms + MINUTE_MS))
        for market_id, first_ms, last_ms in link.rows(sql.SPAN, _names(market))
    ]


def _possible(at_ms: int) -> int:
    """The time itself, or the end of PostgreSQL's calendar where it lies beyond."""
    return max(0, min(at_ms, 10**15))


def _holes(rows: Iterable[tuple[Any, ...]]) -> list[Hole]:
    return [
        Hole(start_ms=start_ms, end_ms=end_ms, reason=reason, attempts=attempts, retry_ms=retry_ms)
        for start_ms, end_ms, reason, attempts, retry_ms in rows
    ]


def _delete_minutes(link: Link, market_id: int, before_ms: int) -> int:
    """Delete the market's minutes before a time in small transactions, oldest first; return how many."""
    deleted = 0
    while True:
        [(oldest_ms,)] = link.rows(sql.OLDEST_MINUTE, (market_id,))
        if oldest_ms is None or oldest_ms >= before_ms:
            link.commit()
            return deleted
        link.run(sql.LOCK_MARKET, (market_id,))
        end_ms = min(before_ms, oldest_ms + DELETE_CHUNK_MS)
        deleted += link.run(sql.DELETE_MINUTES, (market_id, oldest_ms, end_ms))
        link.commit()


# ---------------------------------------------------------------- folding


def _minutes(interval: Interval) -> int:
    return interval.ms // MINUTE_MS


@lru_cache(maxsize=8)
def _levels(rows: tuple[tuple[str, bool], ...]) -> Mapping[Interval, Interval]:
    """The intervals to keep up, shortest first, each with the longest one whose past is folded to fold it from."""
    folded = {Interval.parse(name) for name, is_folded in rows if is_folded}
    wanted = sorted(Interval.parse(name) for name, _ in rows)
    return {interval: sources({*folded, interval})[interval] for interval in wanted}


def _stretches(open_ms: Sequence[int]) -> RangeSet:
    """`minute_ranges` of sorted times, at once where no minute is missing, as in every page of a backfill."""
    first_ms, end_ms = open_ms[0], open_ms[-1] + MINUTE_MS
    if end_ms - first_ms == len(open_ms) * MINUTE_MS:
        return RangeSet([(first_ms, end_ms)])
    return minute_ranges(open_ms)


def _fold(link: Link, changed: Mapping[int, RangeSet], levels: Mapping[Interval, Interval]) -> None:
    """Fold again every bar of `levels` that the changed stretches of the markets touch."""
    for interval, source in levels.items():
        spans = [(id, *span) for id in sorted(changed) for span in touched(changed[id], interval)]
        arrays = [as_array(map(str, column)) for column in zip(*spans, strict=True)]
        bounds = min(start_ms for _, start_ms, _ in spans), max(end_ms for _, _, end_ms in spans)
        parameters = (_minutes(interval), _minutes(interval), *arrays, *bounds)
        if source == MINUTE:
            link.run(sql.FOLD_MINUTES, parameters)
        else:
            link.run(sql.FOLD_BARS, (*parameters, _minutes(source)))
