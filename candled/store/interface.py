"""What every store can do. Implementations block and are called from worker threads only, never from the event loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from candled.model import Candle, Interval, MarketKey, Range, Symbol

SEQ_UNPUBLISHED = 2**53  # the seq of a past change that is not told yet: whoever asks what changed is given it
FEEDS_KEPT = 100
FEED_DAYS = 30
CHECK_IN_S = 20.0
FORMING_KEPT_MS = 86_400_000  # a forming minute so much older than the market's newest will not become final any more
ALL_TIME = Range(0, 10**14)  # later than any candle, and within what every store can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownGap:
    """Minutes `[start_ms, end_ms)` that the exchange itself does not have, as far as it was asked.

    `reason` is one of `candled.model.REASONS` but `missing`.
    `attempts` counts the answers without them; `retry_ms` is when to ask again (UTC epoch ms), None for never.
    """

    start_ms: int
    end_ms: int
    reason: str
    attempts: int
    retry_ms: int | None


Table = Literal["candles", "rollups", "forming"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A stored row that cannot be a bar: a final minute, a longer bar, or a minute that is not final.

    `time` is as it is stored: UTC epoch milliseconds, or another value where that is the problem itself.
    """

    table: Table
    interval: Interval
    time: object
    problem: str


class Store(Protocol):
    """The candles of all markets. 1-minute candles are the truth; longer bars are folded from them.

    The store itself knows of which intervals it keeps the bars, and every writer keeps up all of them. A store made
    with intervals is the daemon's own: it adds those that are new. One made without is a guest's, as commands are, and
    takes the store as it is.

    Every method raises `StoreUnavailable` when trying again may help and `StoreRejected` when it will not.
    """

    def open(self) -> None:
        """Open it; the daemon's own also creates or upgrades tables where allowed, and folds new intervals.

        A guest changes nothing. A newer schema than known is refused, by a guest an older one too.
        """

    def close(self) -> None:
        """Release everything; the store is not used afterwards."""

    def write_minutes(self, rows: Sequence[tuple[MarketKey, Candle]]) -> None:
        """Upsert 1-minute candles in one transaction, durable when this returns.

        Of two versions of a minute the one that `Candle.supersedes` the other stays, whatever the order of
        writing. Final candles (`final=True`) are kept in the minutes, and every configured longer bar they touch is
        recomputed from its parts in the same transaction. Candles that are not final are the market's forming
        minutes: kept apart, never part of the minutes or longer bars, and gone once a final version of them is stored.

        `rev` and `src` of minutes are kept. Where a version with other values replaces a final minute, `rev` becomes
        at least one more than it was; rows that are written again count once. One with the same values leaves `src`.
        """

    def intervals(self) -> Sequence[Interval]:
        """List the intervals above 1m of which all bars are stored, shortest first."""

    def drop_interval(self, interval: Interval) -> int:
        """Drop the bars of an interval, and keep them up no more; return how many bars there were.

        Raises:
            StoreRejected: a daemon that runs uses the interval.
        """

    def rebuild_rollups(self, market: MarketKey, spans: Sequence[Range]) -> None:
        """Fold again every longer bar that some stretches touch, and drop those in which no minute lies.

        One transaction. Bars that begin before `kept_from` stay.
        """

    def discard(self, market: MarketKey, rows: Sequence[BadRow]) -> None:
        """Delete rows, and fold again every longer bar that they were, or were a part of. One transaction."""

    def read_bars(self, market: MarketKey, interval: Interval, *, before_ms: int, limit: int) -> list[Candle]:
        """The newest `limit` bars with `open_ms < before_ms`, oldest first, built from final minutes only."""

    def read_bars_between(self, market: MarketKey, interval: Interval, start_ms: int, end_ms: int) -> list[Candle]:
        """All bars with `start_ms <= open_ms < end_ms`, oldest first, built from final minutes only."""

    def span(self, market: MarketKey, interval: Interval) -> Range | None:
        """Return the time from the oldest bar to the end of the newest one; None where there is none.

        Of minutes only final ones count. No value of a bar is read, so that bad ones are no obstacle.
        """

    def kept_from(self) -> int:
        """Return before which time (UTC epoch ms) minutes are dropped while their bars stay; 0 where all are kept."""

    def bad_rows(self, market: MarketKey, within: Range = ALL_TIME) -> list[BadRow]:
        """Return the rows of a range that cannot be read as bars, in all tables; rows without a possible time too.

        Where the types of the columns let none in, there are none. A read that comes upon one raises `StoreRejected`.
        """

    def read_forming(self, market: MarketKey) -> list[Candle]:
        """Return the minutes of which no final version is stored, as they were last written, oldest first.

        The newest may be in progress; older ones are over, and their late versions were still waited for.
        """

    def newest_minutes(self, exchange: str) -> Mapping[Symbol, int]:
        """The newest final minute of every market of `exchange` that has one, UTC epoch milliseconds."""

    def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> list[Range]:
        """Which minutes of `[start_ms, end_ms)` are there, as disjoint sorted ranges."""

    def complete_from(self, market: MarketKey) -> int | None:
        """Since when (UTC epoch ms) history is complete but for known holes; None before the first answer."""

    def served_from(self, market: MarketKey) -> int | None:
        """Return where what may be served begins (UTC epoch ms): the oldest minute, or complete history if earlier.

        Between there and `complete_from` minutes may be missing that the exchange was never asked for.
        """

    def set_complete_from(self, market: MarketKey, since_ms: int) -> None:
        """Remember since when history is complete. It only moves back: a later time than the known one changes nothing.

        So several processes may say what each of them knows.
        """

    def known_gaps(self, market: MarketKey, within: Range = ALL_TIME) -> list[KnownGap]:
        """The known holes of a market that reach into a range, oldest first and whole."""

    def save_known_gaps(self, market: MarketKey, holes: Sequence[KnownGap], within: Range = ALL_TIME) -> None:
        """Replace the known holes of a market within a range, in one transaction.

        A hole across an edge of the range is cut there and its outer part kept, and nothing of `holes` is stored
        beyond the edges: so several processes may each save what they asked the exchange for. Neighbours that differ
        in nothing but their times become one hole.
        """

    def register_feed(self, markets: Sequence[MarketKey], epoch: str) -> None:
        """Note that a new feed of these markets begins, after all those noted before; again is no other feed."""

    def log_changes(self, market: MarketKey, epoch: str | None, changes: Sequence[tuple[int, Range]]) -> None:
        """Add to the log what of the past changed, each stretch with the number of the feed's message that told it.

        One transaction; stretches that are in the log already are not added twice. A stretch with `SEQ_UNPUBLISHED`
        stays until one that contains it is logged with its number. Epoch None is the newest feed; without a feed
        nothing is logged.

        Raises:
            StoreRejected: the market has no such feed, or no longer.
        """

    def unpublished(self, exchange: str) -> Mapping[Symbol, Sequence[Range]]:
        """Return the stretches that were noted with `SEQ_UNPUBLISHED` in the newest feed of each market of an exchange.

        So commands that store past minutes beside a daemon are noticed by it.
        """

    def changes_since(self, market: MarketKey, epoch: str, seq: int) -> list[Range] | None:
        """What of the past changed after message `seq` of a feed, in it and all later ones: disjoint sorted ranges.

        None where that cannot be told: the feed is not known, or no longer.
        """

    def cancel_read(self, thread: int) -> None:
        """End the read that another thread (`threading.get_ident`) is in: it raises `StoreUnavailable`.

        Nothing happens where there is none, and nothing is raised.
        """

    def tidy_up(self, now_ms: int) -> None:
        """Tidy up what is old at `now_ms` (UTC epoch ms). Called about once an hour, on a thread that reads.

        Of each market's feeds the newest `FEEDS_KEPT` stay, without those that ended `FEED_DAYS` ago or earlier.
        """

    def check_in(self) -> Sequence[str]:
        """Note that this process uses the store, and name those that do so with other settings, a line each.

        Only the daemon calls it, every `CHECK_IN_S` seconds.
        """

    def describe(self) -> dict[str, Any]:
        """Facts for `/health`: at least `kind`, `schema` and `intervals`."""
