"""How fast the SQLite store writes and reads. Ratios are against a plain `executemany` of the same minute rows.

    python -m bench.store_sqlite [directory]

The directory decides which disk is measured; without it, a temporary one is used.
"""

import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Candle, Interval, MarketKey, Symbol
from candled.store.sqlite.store import SqliteStore

MONDAY_MS = 1_748_822_400_000
DAYS = 30
MINUTES = DAYS * 1440
MARKET = MarketKey("bitget", Symbol("BTC", "USDT"))
Row = tuple[MarketKey, Candle]


def candle(at: int) -> Candle:
    """A minute with digits like those of a real market."""
    price = Decimal(10_000_000 + at * 37 % 9_973).scaleb(-2)
    volume = Decimal(at * 7_919 % 99_999_999).scaleb(-6)
    return Candle(
        MONDAY_MS + at * MINUTE_MS,
        price,
        price + 9,
        price - 9,
        price + 1,
        volume,
        (price * volume).quantize(Decimal("0.00000001")),
        MONDAY_MS + at * MINUTE_MS + 61_000,
        True,
    )


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def plain(path: Path, batches: Sequence[Sequence[Row]]) -> float:
    """Seconds to insert the rows into one table of a file with the same durability, a transaction a batch."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE candles (market TEXT, time_ms INTEGER, open TEXT, high TEXT, low TEXT, close TEXT, volume TEXT, "
        "quote_volume TEXT, as_of_ms INTEGER, rev INTEGER, src INTEGER, PRIMARY KEY (market, time_ms)) WITHOUT ROWID"
    )

    def insert() -> None:
        for batch in batches:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO candles VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (str(market), c.open_ms, *(str(value) for value in c.values), c.as_of_ms, c.rev, 0)
                    for market, c in batch
                ],
            )
            connection.execute("COMMIT")

    took = seconds(insert)
    connection.close()
    return took


def stored(store: SqliteStore, batches: Sequence[Sequence[Row]]) -> float:
    """Seconds to write the batches to the store."""
    return seconds(lambda: [store.write_minutes(batch) for batch in batches])


def measure_writes(store: SqliteStore, directory: Path, name: str, batches: Sequence[Sequence[Row]]) -> None:
    """New rows, then the same ones again, against the plain insert."""
    rows = sum(map(len, batches))
    base = plain(directory / f"plain-{rows}.db", batches)
    for what in ("new", "again, unchanged"):
        took = stored(store, batches)
        print(
            f"{name}, {what}: {rows / took:,.0f} rows/s, {took / len(batches) * 1000:.1f} ms a batch; "
            f"plain {rows / base:,.0f} rows/s, ratio {base / took:.2f}"
        )


def measure_bars(store: SqliteStore, interval: Interval, limit: int) -> None:
    """The newest bars of the market with the long history."""
    reads = [
        seconds(lambda: store.read_bars(MARKET, interval, before_ms=10**15, limit=limit)) * 1000 for _ in range(200)
    ]
    print(f"bars {interval}, limit {limit}: median {statistics.median(reads):.2f} ms, worst {max(reads):.2f} ms")


def measure_presence(store: SqliteStore) -> None:
    """Which minutes are there, over the whole history."""
    end_ms = MONDAY_MS + MINUTES * MINUTE_MS
    reads = [seconds(lambda: store.stored_ranges(MARKET, MONDAY_MS, end_ms)) * 1000 for _ in range(20)]
    print(f"present over {MINUTES:,} minutes: median {statistics.median(reads):.1f} ms")


def measure_file(path: Path, intervals: Sequence[Interval], pages: Sequence[Sequence[Row]], name: str) -> None:
    """The size of a closed file."""
    store = SqliteStore(path, intervals)
    store.open()
    stored(store, pages)
    store.close()
    print(f"file, {name}: {path.stat().st_size / MINUTES:.0f} bytes a minute")


def measure_fold(path: Path) -> None:
    """The first opening of a file of minutes with longer intervals."""
    store = SqliteStore(path, DEFAULT_INTERVALS)
    took = seconds(store.open)
    store.close()
    print(f"six intervals folded from stored minutes at opening: {MINUTES / took:,.0f} minutes/s")


def main(directory: Path) -> None:
    """Measure and print."""
    history = [(MARKET, candle(at)) for at in range(MINUTES)]
    pages = [history[start : start + 1000] for start in range(0, MINUTES, 1000)]
    markets = [MarketKey("bitget", Symbol(f"COIN{number}", "USDT")) for number in range(200)]
    ticks = [[(market, candle(at)) for market in markets] for at in range(60)]

    store = SqliteStore(directory / "candled.db", DEFAULT_INTERVALS)
    store.open()
    measure_writes(store, directory, f"{DAYS} days of one market in pages of 1000", pages)
    measure_writes(store, directory, "one minute of 200 markets in each batch", ticks)
    for text in ("1m", "5m", "1h"):
        for limit in (100, 1000):
            measure_bars(store, Interval.parse(text), limit)
    measure_presence(store)
    store.close()

    measure_file(directory / "all.db", DEFAULT_INTERVALS, pages, "minutes and six longer intervals")
    measure_file(directory / "minutes.db", [], pages, "minutes alone")
    measure_file(directory / "newest-first.db", [], pages[::-1], "minutes alone, newest page first")
    measure_fold(directory / "minutes.db")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        main(Path(name))
