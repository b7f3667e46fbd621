"""The interface of all stores.

Implementations block. They are called from worker threads only, never from the event loop.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from candled.model import ALL_TIME, DAY_MS, BarTexts, Candle, Gap, Interval, MarketKey, Range, Symbol

SEQ_UNPUBLISHED = 2**53  # the seq of a past change that is not published yet; `changes_since` always returns it
FEEDS_KEPT = 100
FEED_DAYS = 30
CHECK_IN_S = 20.0
FORMING_KEPT_MS = DAY_MS  # a forming minute this much older than the market's newest will not become final any more


Table = Literal["candles", "rollups", "forming"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A stored row that is not a valid bar."""

    #: The table of the row: final minutes (`candles`), longer bars (`rollups`) or forming minutes (`forming`).
    table: Table
    #: The interval of the bar; 1m in the tables of minutes.
    interval: Interval
    #: The stored time: UTC epoch milliseconds, or another value if that is the problem.
    time: object
    #: Why the row is not a valid bar, in words.
    problem: str


class Store(Protocol):
    """The candles of all markets. 1-minute candles are the source of truth; longer bars are folded from them.

    The store records the intervals whose bars it keeps, and every writer updates all of them. A store opened with
    intervals belongs to the daemon, which adds new intervals. A store opened without intervals is a guest, which adds
    none. Commands are guests.

    Every method raises `StoreUnavailable` if another attempt may succeed, and `StoreRejected` if it will not, such as a
    read of bars of an interval that is not kept.
    """

    def open(self) -> None:
        """Open the store. The daemon also creates or upgrades tables if allowed, and folds new intervals.

        A guest changes nothing. A schema newer than this program is refused; a guest also refuses an older one.
        """

    def close(self) -> None:
        """Release all resources. The store cannot be used afterwards."""

    def write_minutes(self, rows: Sequence[tuple[MarketKey, Candle]]) -> None:
        """Upsert 1-minute candles in one transaction. They are durable when this returns.

        Of two versions of a minute, the one that `Candle.supersedes` the other is kept, regardless of the order of
        writing. Final candles (`final=True`) are stored as minutes, and every kept longer bar that contains them is
        recomputed in the same transaction. Other candles are the market's forming minutes: they are stored separately,
        are never part of the minutes or longer bars, and are deleted once a final version of them is stored.

        `rev` and `src` of minutes are stored. If a version with other values replaces a final minute, `rev` increases
        by at least one; rows that are written again count once. A version with the same values does not change `src`.
        If more revisions are stored than the row says, its writer did not know the version that it replaced: the minute
        is logged with `SEQ_UNPUBLISHED`, so that readers of the writer's messages read it again.
        """

    def intervals(self) -> Sequence[Interval]:
        """List the intervals above 1m for which all bars are stored, shortest first."""

    def add_intervals(self, intervals: Iterable[Interval]) -> Iterator[None]:
        """Keep bars of further intervals too, and fold the stored minutes into them, step by step.

        Every step is short, so that writes can run in between. After the last one the bars can be read. If the steps
        are not finished, the next call or the next start begins again.
        """

    def drop_interval(self, interval: Interval) -> int:
        """Drop the bars of an interval and stop updating them; return the number of dropped bars.

        Raises:
            StoreRejected: a running daemon uses the interval.
        """

    def rebuild_rollups(self, market: MarketKey, spans: Sequence[Range]) -> None:
        """Recompute every longer bar that overlaps the ranges, and drop those without minutes.

        This is one transaction. Bars that begin before `kept_from` are not changed.
        """

    def discard_rows(self, market: MarketKey, rows: Sequence[BadRow]) -> None:
        """Delete rows in one transaction, and recompute every longer bar that they were, or were part of."""

    def read_bars(self, market: MarketKey, interval: Interval, *, before_ms: int, limit: int) -> list[Candle]:
        """Return the newest `limit` bars with `open_ms < before_ms`, oldest first, built from final minutes only."""

    def read_bars_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        """Return all bars with `start_ms <= open_ms < end_ms`, oldest first, built from final minutes only."""

    def read_texts_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> BarTexts:
        """Return the same bars as `read_bars_between`, with texts in place of numbers, at a quarter of the cost."""

    def span(self, market: MarketKey, interval: Interval) -> Range | None:
        """Return the time from the oldest bar to the end of the newest one; None if there are none.

        Only final minutes count. The values of bars are not read, so invalid rows do not matter.
        """

    def kept_from(self) -> int:
        """Return the time (UTC epoch ms) before which minutes are dropped; 0 if none are. Longer bars are kept."""

    def bad_rows(self, market: MarketKey, within: Range = ALL_TIME) -> list[BadRow]:
        """Return the rows of a range, from all tables, that are not valid bars, and all rows with an impossible time.

        A store whose column types rule out such rows returns none. A read that meets a bad row raises `StoreRejected`.
        """

    def read_forming(self, market: MarketKey) -> list[Candle]:
        """Return the last written version of the minutes for which no final version is stored, oldest first.

        The newest may still be forming. Older ones are over, but were still in their grace period.
        """

    def newest_minutes(self, exchange: str) -> Mapping[Symbol, int]:
        """Return the newest final minute of every market of `exchange` that has one, UTC epoch milliseconds."""

    def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Range]:
        """Return the stored minutes of `[start_ms, end_ms)` as disjoint sorted ranges."""

    def complete_from(self, market: MarketKey) -> int | None:
        """Return the time (UTC epoch ms) from which history is complete except for known gaps; None if unknown."""

    def served_from(self, market: MarketKey) -> int | None:
        """Return the start of the history to serve, UTC epoch ms: the oldest minute, or `complete_from` if earlier.

        Between the start and `complete_from`, minutes may be missing that the exchange was never asked for.
        """

    def set_complete_from(self, market: MarketKey, since_ms: int) -> None:
        """Save the time since which history is complete, unless an earlier one is saved already.

        The time only moves back, so several processes may each save their own.
        """

    def known_gaps(self, market: MarketKey, within: Range = ALL_TIME) -> list[Gap]:
        """Return the known gaps of a market that overlap a range, oldest first and not cut at its edges."""

    def save_known_gaps(self, market: MarketKey, known_gaps: Sequence[Gap], within: Range = ALL_TIME) -> None:
        """Replace the known gaps of a market within a range, in one transaction.

        A stored gap across an edge of the range is cut there, and its outer part is kept. Nothing of `known_gaps`
        beyond the edges is stored. Several processes may therefore each save the gaps of the ranges they requested.
        Adjacent gaps that differ only in their times are joined.
        """

    def register_feed(self, markets: Sequence[MarketKey], epoch: str) -> None:
        """Register a new feed of these markets, after all earlier ones. Registering a feed again changes nothing."""

    def log_changes(self, market: MarketKey, epoch: str | None, changes: Sequence[tuple[int, Range]]) -> None:
        """Log ranges of the past that changed, each with the number of the feed's message that published the change.

        This is one transaction, and repeated entries are stored once. An entry with `SEQ_UNPUBLISHED` remains until a
        range that contains it is logged with its number. `epoch` None means the newest feed. If the market has no feed
        yet, nothing is logged, because no client can resume from one.

        Raises:
            StoreRejected: the market does not have this feed, or no longer has it.
        """

    def unpublished(self, exchange: str) -> Mapping[Symbol, Sequence[Range]]:
        """Return the ranges logged with `SEQ_UNPUBLISHED` in the newest feed of each market of an exchange.

        The daemon uses this to notice past minutes that commands have stored.
        """

    def changes_since(self, market: MarketKey, epoch: str, seq: int) -> list[Range] | None:
        """Return the ranges of the past that changed after message `seq` of a feed, disjoint and sorted.

        They include changes of all later feeds. None means unknown: the store does not have the feed, or no longer has
        it.
        """

    def cancel_read(self, thread: int) -> None:
        """End the read in progress on another thread (`threading.get_ident`), which then raises `StoreUnavailable`.

        If that thread is not reading, nothing happens. This method raises no errors.
        """

    def tidy_up(self, now_ms: int) -> None:
        """Delete old data as of `now_ms` (UTC epoch ms). Called about once an hour, on a reading thread.

        Of each market's feeds, the newest `FEEDS_KEPT` are kept, except those that ended at least `FEED_DAYS` ago.
        """

    def drop_old_minutes(self, now_ms: int) -> Iterator[None]:
        """Delete the minutes that are too old as of `now_ms` (UTC epoch ms), step by step, and move `kept_from`.

        Every step is short and runs on the writing thread, so that other writes can run in between. A store without a
        retention, and one that deletes in `tidy_up`, has no steps.
        """

    def check_in(self) -> Sequence[str]:
        """Register this process as a user of the store; return a line for each process with other settings.

        Only the daemon calls this, every `CHECK_IN_S` seconds.
        """

    def describe(self) -> dict[str, Any]:
        """Return facts for `/health`: at least `kind`, `schema` and `intervals`."""
