"""How many bytes a minute takes in each store, with its longer intervals: to plan disks.

    python -m bench.sizes [FILE]

The minutes are those of a CSV file (gzip; `time_ms,open,high,low,close,volume` and perhaps more columns), by default a
week of BTC/USDT of the tests. The volume in the quote currency is close times volume. A year is that of one market.
"""

import csv
import gzip
import sys
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from bench.process import ROOT, print_table
from candled.model import DEFAULT_INTERVALS, Candle, MarketKey, Symbol
from candled.store import make_store
from tests.servers import Database, own_postgres

MARKET = MarketKey("bitget", Symbol("BTC", "USDT"))
YEAR = 365 * 1440
_BATCH = 5000


def read(path: Path) -> list[Candle]:
    """Return the minutes of a file."""
    with gzip.open(path, "rt") as lines:
        return [_candle(row) for row in csv.DictReader(lines)]


def _candle(row: dict[str, str]) -> Candle:
    values = [Decimal(row[name]) for name in ("open", "high", "low", "close", "volume")]
    return Candle(int(row["time_ms"]), *values, quote_volume=values[3] * values[4], final=True)


def write(url: str, candles: Sequence[Candle]) -> None:
    """Store all of them."""
    store = make_store(url, DEFAULT_INTERVALS)
    store.open()
    try:
        for at in range(0, len(candles), _BATCH):
            store.write_minutes([(MARKET, candle) for candle in candles[at : at + _BATCH]])
    finally:
        store.close()


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    candles = read(Path(arguments[0]) if arguments else ROOT / "tests" / "data" / "btcusdt-week.csv.gz")
    with tempfile.TemporaryDirectory() as folder:
        write(f"sqlite:///{folder}/candled.db", candles)
        sizes = {"SQLite": sum(path.stat().st_size for path in Path(folder).glob("candled.db*"))}
    postgres = own_postgres()
    try:
        with Database(postgres.dsn) as database:
            ((before,),) = database.rows("SELECT pg_database_size(current_database())")
            write(database.url(), candles)
            ((after,),) = database.rows("SELECT pg_database_size(current_database())")
            sizes["PostgreSQL"] = after - before
    finally:
        postgres.remove()
    rows = [
        [name, f"{size / len(candles):.0f}", f"{size / len(candles) * YEAR / 1e6:.0f} MB"]
        for name, size in sizes.items()
    ]
    print_table([f"{len(candles):,} minutes", "bytes a minute", "one market, a year"], rows)


if __name__ == "__main__":
    main(sys.argv[1:])
