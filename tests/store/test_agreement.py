"""Memory, the longer bars of each store and a plain GROUP BY over its minutes agree, digit for digit.

With `CANDLED_TEST_RECORDINGS=<folder>` over further recordings too.
"""

import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Context, Decimal
from pathlib import Path

import pytest

from candled.aggregate.aggregator import Aggregator
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Candle, Interval
from candled.store.interface import Store
from candled.store.postgres.store import PostgresStore
from candled.store.sqlite.store import SqliteStore
from tests.rows import recorded
from tests.servers import NO_TIMESCALE, Database, has_timescale, shared_postgres, shared_timescale
from tests.store.contract import LONGER, W1, everything
from tests.store.rows import BTC

SHIPPED = [
    "btcusdt-week.csv.gz",
    "ethusd-thin-week.csv.gz",
    "bitget-spot-btcusdt.csv.gz",
    "bitget-usdt-futures-ethusdt.csv.gz",
    "bitget-usdt-futures-ewzusdt.csv.gz",
]
MORE = (
    sorted(Path(os.environ["CANDLED_TEST_RECORDINGS"]).glob("*.csv.gz"))
    if "CANDLED_TEST_RECORDINGS" in os.environ
    else []
)
PAGE_ROWS = 700
# of a recording; shuffled minutes of months take long, as every page touches everything
MOST_MINUTES = 20_000 if "CANDLED_TEST_LONG" in os.environ else 1_500
_ADD = Context(prec=200).add

Bar = tuple[int, Decimal, Decimal, Decimal, Decimal, Decimal, Decimal | None, int, int]


# ---------------------------------------------------------------- the stores, and GROUP BY in their own words


class Sqlite:
    """A file, and sums of its texts as decimals."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store: Store = SqliteStore(path, DEFAULT_INTERVALS)

    def grouped(self, interval: Interval) -> list[Bar]:
        offset_ms = 3 * 86_400_000 if interval == W1 else 0  # 1970 began on a Thursday
        bucket = f"(time_ms + {offset_ms}) / {interval.ms} * {interval.ms} - {offset_ms}"
        connection = sqlite3.connect(self.path)
        connection.create_aggregate("exact_sum", 1, ExactSum)
        for name in ("greatest", "least"):
            connection.create_aggregate(name, 1, {"greatest": Greatest, "least": Least}[name])
        rows = connection.execute(
            f"""SELECT bucket,
                (SELECT open FROM candles WHERE time_ms = first), high, low,
                (SELECT close FROM candles WHERE time_ms = last), volume, quote_volume, as_of_ms, rev
            FROM (SELECT {bucket} AS bucket, min(time_ms) AS first, max(time_ms) AS last, greatest(high) AS high,
                    least(low) AS low, exact_sum(volume) AS volume, exact_sum(quote_volume) AS quote_volume,
                    max(as_of_ms) AS as_of_ms, sum(rev) AS rev
                FROM candles GROUP BY 1)
            ORDER BY bucket"""
        ).fetchall()
        connection.close()
        return [(row[0], *(None if text is None else Decimal(text) for text in row[1:7]), *row[7:]) for row in rows]


class ExactSum:
    """A sum of decimal texts that is absent as soon as one of them is."""

    def __init__(self) -> None:
        self.total: Decimal | None = Decimal(0)

    def step(self, text: str | None) -> None:
        self.total = None if text is None or self.total is None else _ADD(self.total, Decimal(text))

    def finalize(self) -> str | None:
        return None if self.total is None else str(self.total)


class Greatest:
    """The greatest of decimal texts."""

    choose = staticmethod(max)

    def __init__(self) -> None:
        self.seen: list[Decimal] = []

    def step(self, text: str) -> None:
        self.seen = [self.choose([*self.seen, Decimal(text)])]

    def finalize(self) -> str:
        return str(self.seen[0])


class Least(Greatest):
    """The least of decimal texts."""

    choose = staticmethod(min)


class Postgres:
    """A database of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store: Store = PostgresStore(database.url(), DEFAULT_INTERVALS)

    def grouped(self, interval: Interval) -> list[Bar]:
        bucket = "date_trunc('week', time AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
        if interval != W1:
            bucket = f"to_timestamp(floor(extract(epoch FROM time) / {interval.ms // 1000}) * {interval.ms // 1000})"
        return self.database.rows(
            f"""SELECT extract(epoch FROM bucket)::bigint * 1000,
                (SELECT open FROM candled.candles WHERE time = first), high, low,
                (SELECT close FROM candled.candles WHERE time = last), volume, quote_volume,
                (extract(epoch FROM as_of) * 1000)::bigint, rev
            FROM (SELECT {bucket} AS bucket, min(time) AS first, max(time) AS last, max(high) AS high, min(low) AS low,
                    sum(volume) AS volume, max(as_of) AS as_of, sum(rev) AS rev,
                    CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END AS quote_volume
                FROM candled.candles GROUP BY 1) AS bars
            ORDER BY bucket"""
        )


@contextmanager
def _database(dsn: str) -> Iterator[Postgres]:
    with Database(dsn) as database:
        yield Postgres(database)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgres),
        pytest.param("timescaledb", marks=pytest.mark.postgres),
    ]
)
def place(request, tmp_path):
    if request.param == "sqlite":
        yield Sqlite(tmp_path / "candled.db")
        return
    if request.param == "timescaledb" and not has_timescale():
        pytest.skip(NO_TIMESCALE)
    with _database(shared_postgres() if request.param == "postgresql" else shared_timescale()) as place:
        yield place


@pytest.fixture
def store(place):
    place.store.open()
    yield place.store
    place.store.close()


# ---------------------------------------------------------------- the minutes


def shuffled(name: str | Path) -> tuple[list[Candle], list[Candle]]:
    """All that is said of the minutes of a recording, in any order, and what holds of it in the end.

    A fifth of them is corrected, some twice, and some are said again. Of the recordings some get quote volumes, some
    get them with gaps.
    """
    dice = random.Random(str(name))
    truth, rows = [], []
    with_quotes = dice.choice(["all", "some", "none"])
    for candle in recorded(name, MOST_MINUTES):
        has_quote = with_quotes == "all" or (with_quotes == "some" and dice.random() < 0.9)
        version = candle._replace(quote_volume=candle.close * candle.volume if has_quote else None, src="live")
        if dice.random() < 0.1:  # too early, though with a larger volume
            rows.append(version._replace(volume=version.volume * 3 + 1, as_of_ms=version.open_ms + 59_000))
            version = version._replace(rev=1)
        rows.append(version)
        for _ in range(dice.choices([0, 1, 2], [90, 8, 2])[0]):
            version = corrected(version, dice)
            rows.append(version)
        if dice.random() < 0.1:
            rows.append(version)
        truth.append(version)
    dice.shuffle(rows)
    return rows, truth


def corrected(candle: Candle, dice: random.Random) -> Candle:
    return candle._replace(
        close=candle.low,
        volume=candle.volume + dice.randrange(1, 9),
        as_of_ms=candle.as_of_ms + MINUTE_MS * dice.randrange(1, 9),
        rev=candle.rev + 1,
        src="rest",
    )


def in_memory(rows: list[Candle]) -> Aggregator:
    live_aggregator = Aggregator(DEFAULT_INTERVALS, 10**6)
    for candle in rows:
        live_aggregator.apply_minute(candle)
    return live_aggregator


def digits(bars: list[Candle]) -> list[Bar]:
    return [(bar.open_ms, *bar.values, bar.as_of_ms, bar.rev) for bar in bars]


# ---------------------------------------------------------------- the test


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHIPPED, *MORE], ids=lambda name: Path(name).name)
def test_memory_longer_bars_and_a_plain_group_by_agree_digit_for_digit(name, place, store):
    rows, truth = shuffled(name)
    for start in range(0, len(rows), PAGE_ROWS):
        store.write_minutes([(BTC, candle) for candle in rows[start : start + PAGE_ROWS]])
    memory = in_memory(rows)
    assert (
        digits(everything(store, BTC, MINUTE))
        == digits(truth)
        == digits(memory.series_of(MINUTE).newest_bars(10**6, 0))
    )
    for interval in LONGER:
        bars = digits(everything(store, BTC, interval))
        assert bars == digits(memory.series_of(interval).newest_bars(10**6, 0))
        assert bars == place.grouped(interval)
