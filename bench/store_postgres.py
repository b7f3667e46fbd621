"""How fast the PostgreSQL store writes and reads. Ratios are against a plain COPY of the same minutes in the same run.

    python -m bench.store_postgres [--years 5] [--markets 50] [--dsn postgresql://…]

Without an address a server of its own is started in a temporary folder, as for the tests: it does not wait for the
disk. One market gets `--years` of minutes, the others 30 days each. Reads are cold for the store: each asks for a
place of the history that was not read before, all of them in the operating system's cache. Of a server of its own they
are read from the disk too: it is restarted, and nothing of its files is in memory.
"""

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import psycopg2

from bench.store_sqlite import candle
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Candle, Interval, MarketKey, Symbol, iso_ms
from candled.store.batch import source_number
from candled.store.postgres.store import PostgresStore
from tests.servers import Database, PostgresServer, own_postgres

PAGE_ROWS = 5_000  # as the writer sends them
MONTH = 30 * 1440
READS = 200
COLD_STARTS = 9
Row = tuple[MarketKey, Candle]


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def market(number: int) -> MarketKey:
    """One of the markets; 0 is the one with the long history."""
    return MarketKey("bitget", Symbol(f"COIN{number}", "USDT"))


def pages(of: MarketKey, minutes: int) -> Iterator[list[Row]]:
    """The minutes of a market in pages."""
    for start in range(0, minutes, PAGE_ROWS):
        yield [(of, candle(at)) for at in range(start, min(minutes, start + PAGE_ROWS))]


def copy_plainly(url: str, batches: Sequence[Sequence[Row]]) -> float:
    """Seconds to copy the rows into one table with the same columns and key, a transaction a batch."""
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE plain (LIKE candled.candles INCLUDING ALL)")
        connection.commit()

        def copy() -> None:
            for batch in batches:
                lines = "".join(
                    f"1\t{iso_ms(c.open_ms)}\t{c.open}\t{c.high}\t{c.low}\t{c.close}\t{c.volume}\t{c.quote_volume}"
                    f"\t{iso_ms(c.as_of_ms)}\t{c.rev}\t{source_number(c.src)}\n"
                    for _, c in batch
                )
                cursor.copy_expert("COPY plain FROM STDIN", io.StringIO(lines))
                connection.commit()

        took = seconds(copy)
        cursor.execute("DROP TABLE plain")
        connection.commit()
    connection.close()
    return took


def write(store: PostgresStore, batches: Sequence[Sequence[Row]]) -> float:
    """Seconds to write the batches to the store."""
    return seconds(lambda: [store.write_minutes(batch) for batch in batches])


def measure_bulk(url: str, name: str, intervals: Sequence[Interval]) -> None:
    """A month of one market in pages: new, and again."""
    plain, new, again = [], [], []
    with opened(url, intervals) as store:
        for number in range(5):
            batches = list(pages(market(number), MONTH))
            plain.append(copy_plainly(url, batches))
            new.append(write(store, batches))
            again.append(write(store, batches))
    for what, took in (("new", new), ("again, unchanged", again)):
        ratio = statistics.median(base / own for base, own in zip(plain, took, strict=True))
        speed = MONTH / statistics.median(took)
        print(f"bulk, {name}, {what}: {speed:,.0f} rows/s, {ratio:.2f} of plain COPY (medians of 5)")


def measure_live(url: str, count: int) -> None:
    """A minute of many markets in each batch, as while candles come in."""
    batches = [[(market(10_000 + number), candle(at)) for number in range(count)] for at in range(60)]
    with opened(url, DEFAULT_INTERVALS) as store:
        written = [seconds(lambda batch=batch: store.write_minutes(batch)) * 1000 for batch in batches]  # type: ignore[misc]
    print(
        f"live, one minute of {count} markets and six longer bars of each: median {statistics.median(written):.0f} ms"
    )


def measure_reads(store: PostgresStore, interval: Interval, limit: int, minutes: int, dice: random.Random) -> None:
    """The newest bars before random times of the long history."""
    first_ms = candle(0).open_ms + min(limit * interval.ms, minutes * MINUTE_MS // 2)
    last_ms = candle(0).open_ms + minutes * MINUTE_MS
    took = sorted(
        seconds(lambda: store.read_bars(market(0), interval, before_ms=dice.randrange(first_ms, last_ms), limit=limit))
        * 1000
        for _ in range(READS)
    )
    print(f"read {limit} of {interval}: p50 {took[READS // 2]:.1f} ms, p99 {took[READS * 99 // 100]:.1f} ms")


def measure_disk_reads(server: PostgresServer, database: Database, minutes: int, dice: random.Random) -> None:
    """The newest bars before random times, the first ones that a restarted server reads of its tables."""
    last_ms = candle(0).open_ms + minutes * MINUTE_MS
    took: dict[tuple[int, Interval], list[float]] = {}
    for _ in range(COLD_STARTS):
        for limit in (100, 1000):
            for interval in DEFAULT_INTERVALS:
                server.kill()
                server.forget_files()
                server.start()
                with opened(database.url(), DEFAULT_INTERVALS) as store:
                    store.read_bars(
                        market(1), interval, before_ms=candle(MONTH).open_ms, limit=1
                    )  # the catalog is read
                    before_ms = dice.randrange(last_ms - minutes * MINUTE_MS // 2, last_ms)
                    read = seconds(partial(store.read_bars, market(0), interval, before_ms=before_ms, limit=limit))
                took.setdefault((limit, interval), []).append(read * 1000)
    for (limit, interval), values in took.items():
        print(f"from the disk, {limit} of {interval}: median {statistics.median(values):.1f} ms of {COLD_STARTS}")


@contextmanager
def opened(url: str, intervals: Sequence[Interval]) -> Iterator[PostgresStore]:
    """A store that is closed at the end."""
    store = PostgresStore(url, intervals)
    store.open()
    try:
        yield store
    finally:
        store.close()


def measure(dsn: str, years: float, markets: int, server: PostgresServer | None = None) -> None:
    """Everything, each part in a database of its own. Reads from the disk need a server that may be stopped."""
    for name, intervals in (("minutes and six longer intervals", DEFAULT_INTERVALS), ("minutes alone", ())):
        with Database(dsn) as database:
            measure_bulk(database.url(), name, intervals)
    with Database(dsn) as database:
        measure_live(database.url(), 1000)
    with Database(dsn) as database:
        measure_history(database, years, markets)
        if server:
            database.rows("CHECKPOINT; SELECT 1")
            measure_disk_reads(server, database, round(years * 365 * 1440), random.Random(2))


def measure_history(database: Database, years: float, markets: int) -> None:
    """A long history among others: written, and read."""
    with opened(database.url(), DEFAULT_INTERVALS) as store:
        minutes = round(years * 365 * 1440)
        took = sum(write(store, [page]) for page in pages(market(0), minutes))
        print(f"{minutes:,} minutes of one market written in {took:.0f} s: {minutes / took:,.0f} rows/s")
        for number in range(1, markets):
            write(store, list(pages(market(number), MONTH)))
        print(f"read from {years:g} years of one market among {markets} with 30 days each:")
        dice = random.Random(1)
        for limit in (100, 1000):
            for interval in DEFAULT_INTERVALS:
                measure_reads(store, interval, limit, minutes, dice)
        span = candle(0).open_ms, candle(MONTH).open_ms
        print(
            "the stored ranges of a month of minutes: "
            f"{seconds(lambda: store.stored_ranges(market(0), *span)) * 1000:.0f} ms"
        )
        [(size,)] = database.rows("SELECT pg_database_size(current_database())")
        print(f"size: {size / (minutes + (markets - 1) * MONTH):.0f} bytes a minute, its share of longer bars included")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=float, default=5)
    parser.add_argument("--markets", type=int, default=50)
    parser.add_argument("--dsn", help="a role that may create databases")
    options = parser.parse_args()
    if options.dsn:
        measure(options.dsn, options.years, options.markets)
        return
    server = own_postgres()
    try:
        measure(server.dsn, options.years, options.markets, server)
    finally:
        server.remove()


if __name__ == "__main__":
    main()
