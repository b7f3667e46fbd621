"""Verify sees bars where no minutes are, rows that are no bars, and minutes that contradict each other."""

import json
import sqlite3
from decimal import Decimal

import pytest

from candled.errors import StoreRejected
from candled.model import ALL_TIME, DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Candle, Range
from candled.store.batch import fold_bars
from tests.store.rows import MONDAY_MS
from tests.tools.command import run, settings
from tests.tools.tables import MARKET, SqliteFile, fill, new_tables, opened

M5, M15, H1, H4, D1, W1 = LONGER = DEFAULT_INTERVALS[1:]
DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS


def minutes(count=400, start=0, src="live"):
    """Minutes that open where the one before closed; the high goes up, so that every bar's close and volume count."""
    return [
        Candle.parse(
            MONDAY_MS + at * MINUTE_MS,
            str(100 + at),
            str(900 + at),
            "1",
            str(101 + at),
            "2.5",
            as_of_ms=MONDAY_MS + (at + 1) * MINUTE_MS,
            final=True,
        )._replace(src=src)
        for at in range(start, start + count)
    ]


def verify(tables, *more):
    return run(settings(tables.url), "verify", "--quiet", "BTC/USDT", *more)


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def stored(tables, interval):
    store = opened(tables)
    try:
        return store.read_bars_between(MARKET, interval, 0, 10**14)
    finally:
        store.close()


def assert_bars_are_those_of(tables, kept):
    assert stored(tables, MINUTE) == kept
    for interval in LONGER:
        assert values(stored(tables, interval)) == values(fold_bars(kept, interval))


def values(bars):
    return [(bar.open_ms, *bar.values) for bar in bars]


# ---------------------------------------------------------------- bars where no minutes are

AT = MONDAY_MS + 2 * H1.ms


@pytest.mark.slow
@pytest.mark.parametrize("minutes_are", ["there", "gone"])
@pytest.mark.parametrize(
    ("moved_ms", "interval"),
    [
        (-WEEK_MS, H1),
        (-900 * WEEK_MS, M5),
        (3 * WEEK_MS, H4),
        (900 * WEEK_MS, W1),
        (60_000, H1),
        (DAY_MS, D1),
    ],
    ids=["a week before", "years before", "weeks after", "years after", "off the grid", "within the week"],
)
def test_bars_where_no_minutes_are_are_found_and_removed(tables, capsys, moved_ms, interval, minutes_are):
    fill(tables, minutes())
    at_ms = interval.floor(AT) + moved_ms
    tables.spoil(
        f"UPDATE rollups SET time_ms = AT({at_ms}) WHERE time_ms = AT({interval.floor(AT)}) INTERVAL", interval
    )
    if minutes_are == "gone":
        tables.spoil("DELETE FROM candles WHERE true")
        if not isinstance(tables, SqliteFile):
            tables.spoil("UPDATE candled.markets SET first_time = NULL, last_time = NULL")
    assert verify(tables, "--json") == 1
    found = [json.loads(line) for line in lines(capsys)]
    alone = [one for one in found if one.get("expected", "") is None]
    assert (str(interval), at_ms) in {(one["interval"], parsed(one["time"])) for one in alone}
    if minutes_are == "there":
        assert len(alone) == 1
    assert verify(tables, "--repair") == 0
    capsys.readouterr()
    assert verify(tables) == 0
    assert_bars_are_those_of(tables, minutes() if minutes_are == "there" else [])


def parsed(text):
    from candled.model import parse_iso_ms

    return parse_iso_ms(text)


def test_only_bars_of_the_range_are_looked_at(tables, capsys):
    fill(tables, minutes())
    for weeks in (-3, 5):
        tables.spoil(f"UPDATE rollups SET time_ms = AT({MONDAY_MS + weeks * WEEK_MS}) "
                     f"WHERE time_ms = AT({MONDAY_MS + (weeks + 3) * M15.ms}) INTERVAL", M15)  # fmt: skip
    assert verify(tables, "--from", "2025-06-20") == 1
    assert [line.split()[2] for line in lines(capsys)[:-1]] == ["2025-07-07T00:00:00.000Z:"]
    assert verify(tables, "--to", "2025-05-20") == 1
    assert [line.split()[2] for line in lines(capsys)[:-1]] == ["2025-05-12T00:00:00.000Z:"]


@pytest.mark.usefixtures("postgres")
def test_bars_older_than_the_retention_are_left_alone_and_later_ones_are_not(tmp_path, capsys):
    with new_tables("postgresql", tmp_path) as tables:
        fill(tables, minutes())
        for weeks in (-4, -2):
            tables.spoil(f"UPDATE rollups SET time_ms = AT({MONDAY_MS + weeks * WEEK_MS}) "
                         f"WHERE time_ms = AT({MONDAY_MS + (weeks + 5) * H1.ms}) INTERVAL", H1)  # fmt: skip
        tables.spoil(f"UPDATE candled.state SET kept_from = AT({MONDAY_MS - 3 * WEEK_MS})")
        verify(tables, "--repair")
        assert sum("no minute lies in it" in line for line in lines(capsys)) == 1
        assert [bar.open_ms for bar in stored(tables, H1)][:2] == [MONDAY_MS - 4 * WEEK_MS, MONDAY_MS]


# ---------------------------------------------------------------- impossible values, in both stores

IMPOSSIBLE = {
    "NaN": ("close = 'NaN'", "finite numbers"),
    "infinite": ("high = 'Infinity'", "finite numbers"),
    "negative price": ("low = '-5'", "above zero"),
    "price of zero": ("open = '0'", "low <= open"),
    "negative volume": ("volume = '-0.5'", "zero or more"),
    "not a number of a quote volume": ("quote_volume = 'NaN'", "finite numbers"),
    "negative quote volume": ("quote_volume = '-1'", "zero or more"),
    "high below close": ("high = '3'", "low <= open"),
    "off the grid": (f"time_ms = AT({AT + 1000})", "boundary"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "problem"), [pytest.param(*row, id=name) for name, row in IMPOSSIBLE.items()])
def test_an_impossible_minute_is_named_and_becomes_a_gap(tables, capsys, change, problem):
    fill(tables, minutes())
    tables.spoil(f"UPDATE candles SET {change} WHERE time_ms = AT({AT})")
    assert verify(tables) == 1
    found = lines(capsys)
    time = "2025-06-02T02:00:01.000Z" if "time_ms" in change else "2025-06-02T02:00:00.000Z"
    [line] = [line for line in found if line.startswith(f"bitget:BTC/USDT 1m {time}: ")]
    assert "candles" in line
    assert problem in line or "no number" in line
    if "time_ms" not in change:
        assert [line, found[-1]] == found  # bars with that minute may be right
    assert verify(tables, "--repair") == 0
    assert any(line.endswith("(repaired)") and time in line for line in lines(capsys))
    assert verify(tables) == 0
    assert_bars_are_those_of(tables, [one for one in minutes() if one.open_ms != AT])
    assert run(settings(tables.url), "gaps", "BTC/USDT", "--json") == 1
    gaps = json.loads(lines(capsys)[-1])["markets"][0]["gaps"]
    assert ("2025-06-02T02:00:00.000Z", 1, "missing") in {(gap["from"], gap["minutes"], gap["reason"]) for gap in gaps}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["close = 'NaN'", "low = '-5'", "high = 'Infinity'", "volume = '-1'"])
def test_an_impossible_longer_bar_is_named_and_folded_again(tables, capsys, change):
    fill(tables, minutes())
    tables.spoil(f"UPDATE rollups SET {change} WHERE time_ms = AT({AT}) INTERVAL", H1)
    assert verify(tables) == 1
    [line, _] = lines(capsys)
    assert line.startswith("bitget:BTC/USDT 1h 2025-06-02T02:00:00.000Z: ")
    assert verify(tables, "--repair") == 0
    assert verify(tables) == 0
    assert_bars_are_those_of(tables, minutes())


def test_a_bad_newest_minute_is_not_the_newest_afterwards(tables):
    fill(tables, minutes())
    last_ms = minutes()[-1].open_ms
    tables.spoil(f"UPDATE candles SET close = 'NaN' WHERE time_ms = AT({last_ms})")
    assert verify(tables, "--repair") == 0
    store = opened(tables)
    try:
        assert store.newest_minutes("bitget") == {MARKET.symbol: last_ms - MINUTE_MS}
        assert store.span(MARKET, MINUTE) == Range(MONDAY_MS, last_ms)
    finally:
        store.close()


def test_a_deleted_minute_is_in_the_log_of_changes(tables):
    fill(tables, minutes())
    store = opened(tables)
    store.register_feed([MARKET], "a")
    tables.spoil(f"UPDATE candles SET close = 'NaN' WHERE time_ms = AT({AT})")
    assert verify(tables, "--repair") == 0
    assert store.changes_since(MARKET, "a", 10**9) == [Range(AT, AT + MINUTE_MS)]
    assert store.unpublished("bitget") == {MARKET.symbol: [Range(AT, AT + MINUTE_MS)]}
    store.close()


# ---------------------------------------------------------------- values that no column should hold, in a file


def loosened(file):
    """Take NOT NULL from the columns, as a file may be that some other program wrote."""
    connection = sqlite3.connect(file.path)
    connection.execute("PRAGMA writable_schema = 1")
    for name in ("open", "high", "low", "close", "volume"):
        connection.execute(f"UPDATE sqlite_master SET sql = replace(sql, '{name} TEXT NOT NULL', '{name} TEXT')")
    connection.commit()
    connection.close()


VALUES = {
    "text": "'abc'",
    "no text": "''",
    "a dot": "'.'",
    "two dots": "'1.2.3'",
    "blob": "X'00ff'",
    "blob of digits": "X'31'",
    "NaN": "'NaN'",
    "signalling NaN": "'sNaN'",
    "infinite": "'-Infinity'",
    "NULL": "NULL",
}
COLUMNS = ("open", "high", "low", "close", "volume", "quote_volume")


@pytest.mark.slow
@pytest.mark.parametrize("value", [pytest.param(text, id=name) for name, text in VALUES.items()])
@pytest.mark.parametrize("table", ["candles", "rollups", "forming"])
def test_a_value_that_is_no_number_is_named_with_its_place_and_mended(file, capsys, table, value):
    running = minutes(1, 400)[0]._replace(final=False)
    fill(file, [*minutes(), running])
    loosened(file)
    at_ms = running.open_ms if table == "forming" else AT
    for number, column in enumerate(COLUMNS if value != "NULL" else COLUMNS[:-1]):
        where = (
            f"time_ms = {at_ms}" if table == "forming" else f"time_ms = {at_ms + number * H1.ms * (table == 'rollups')}"
        )
        if table == "candles":
            where = f"time_ms = {at_ms + number * MINUTE_MS}"
        file.spoil(f"UPDATE {table} SET {column} = {value} WHERE {where}" + (" INTERVAL" if table == "rollups" else ""),
                   H1 if table == "rollups" else None)  # fmt: skip
    assert verify(file) == 1
    *found, summary = lines(capsys)
    interval = "1h" if table == "rollups" else "1m"
    count = 1 if table == "forming" else len(COLUMNS) - (value == "NULL")
    if table == "rollups":
        count = min(count, 5)  # so many hours there are
    assert len(found) == count
    for line in found:
        assert line.startswith(f"bitget:BTC/USDT {interval} 2025-06-02T0")
        assert line.endswith(f"no number (table {table})")
    assert summary.endswith(f"{count} differ")

    assert verify(file, "--repair") == 0
    assert sum(line.endswith("(repaired)") for line in lines(capsys)) == count
    assert verify(file) == 0
    gone = [AT + number * MINUTE_MS for number in range(count)] if table == "candles" else []
    assert_bars_are_those_of(file, [one for one in minutes() if one.open_ms not in gone])
    store = opened(file)
    assert store.read_forming(MARKET) == ([] if table == "forming" else [running])
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("as_of_ms = 'soon'", "2025-06-02T02:00:00.000Z: as_of_ms is 'soon', which is no whole number"),
        ("rev = 1.5", "2025-06-02T02:00:00.000Z: rev is 1.5, which is no whole number"),
        ("src = 99", "2025-06-02T02:00:00.000Z: src is 99, which no source has"),
        ("time_ms = 'noon'", "time 'noon': its time is invalid"),
        ("time_ms = X'00'", "time b'\\x00': its time is invalid"),
        (f"time_ms = {AT}.5", f"time {AT}.5: its time is invalid"),
        ("time_ms = -60000", "time -60000: its time is invalid"),
        (f"time_ms = {10**18}", f"time {10**18}: its time is invalid"),
    ],
)
def test_every_other_column_is_looked_at_too(file, capsys, change, named):
    fill(file, minutes())
    if change == "src = 99":
        file.spoil(f"UPDATE candles SET src = 99 WHERE time_ms = {AT}")
        named = named.replace("src is 99, which no source has", "src is 99, which no source has")
    else:
        file.spoil(f"UPDATE candles SET {change} WHERE time_ms = {AT}")
    assert verify(file) == 1
    assert f"bitget:BTC/USDT 1m {named} (table candles)" in lines(capsys)
    assert verify(file, "--json") == 1
    assert json.loads(lines(capsys)[0])["time"] == named.split(": ")[0]
    assert verify(file, "--repair") == 0
    assert verify(file) == 0
    assert_bars_are_those_of(file, [one for one in minutes() if one.open_ms != AT])


def test_many_bad_rows_hide_no_wrong_bar_beside_them(file, capsys):
    fill(file, minutes())
    file.spoil(f"UPDATE candles SET close = 'x' WHERE time_ms < {MONDAY_MS + 2 * H1.ms} AND time_ms % 7 = 0")
    file.spoil(f"UPDATE rollups SET close = '1' WHERE time_ms = {MONDAY_MS + 5 * H1.ms} INTERVAL", H1)
    assert verify(file) == 1
    assert [line.split()[1:3] for line in lines(capsys)[:-1] if " 1m " not in line] == [
        ["1h", "2025-06-02T05:00:00.000Z:"]
    ]


def test_reading_a_bad_row_names_its_place(file):
    fill(file, minutes())
    file.spoil(f"UPDATE candles SET close = X'00' WHERE time_ms = {AT}")
    store = opened(file)
    for read in (
        lambda: store.read_bars_between(MARKET, MINUTE, *ALL_TIME),
        lambda: store.read_bars(MARKET, MINUTE, before_ms=10**14, limit=1000),
    ):
        with pytest.raises(StoreRejected) as refused:
            read()
        assert str(refused.value) == (
            "candled.db: a stored bar cannot be read: 2025-06-02T02:00:00.000Z: close is b'\\x00', which is no number; "
            "`candled verify --repair` repairs the store"
        )
    store.close()


# ---------------------------------------------------------------- minutes that contradict each other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "at"),
    [("open = '102'", 0), ("close = '7'", 1), ("open = '3', close = '4'", 0)],
    ids=["open", "close of the one before", "both"],
)
def test_a_minute_changed_in_the_middle_of_every_bar_contradicts_its_neighbour(tables, capsys, change, at):
    """The longer bars are as they were: only their first open, last close, highs, lows and sums are in them."""
    fill(tables, minutes())
    middle_ms = AT + 2 * MINUTE_MS
    tables.spoil(f"UPDATE candles SET {change} WHERE time_ms = AT({middle_ms})")
    assert verify(tables) == 1
    found = lines(capsys)
    assert {line.split()[1] for line in found[:-1]} == {"1m"}
    assert found[0].startswith(f"bitget:BTC/USDT 1m 2025-06-02T02:0{2 + at}:00.000Z: opens at ")
    assert "though the minute before closed at" in found[0]
    verify(tables, "--json")
    assert json.loads(lines(capsys)[0])["difference"] == "neighbour"
    assert verify(tables, "--repair") == 1  # only the exchange knows which one is wrong


def test_imported_minutes_and_those_beside_a_gap_contradict_no_neighbour(file, capsys):
    imported = [one._replace(open=Decimal(50)) for one in minutes(10, 0, src="")]
    fill(file, [*imported, *minutes(10, 10), *[one._replace(open=Decimal(700)) for one in minutes(1, 30)]])
    assert verify(file) == 0


@pytest.mark.slow
def test_only_exchanges_that_open_at_the_close_are_looked_at(file, capsys):
    from dataclasses import replace

    from candled_plugins.bitget.exchange import Bitget

    class Other(Bitget):
        opens_at_previous_close = False

    fill(file, [one._replace(open=Decimal(50)) for one in minutes()])
    config = settings(file.url)
    assert run(config, "verify", "--quiet", "BTC/USDT") == 1
    other = config.model_copy(update={"exchanges": tuple(replace(one, plugin=Other) for one in config.exchanges)})
    assert run(other, "verify", "--quiet", "BTC/USDT") == 0


# ---------------------------------------------------------------- writing beside them

BESIDE = {
    "a day": ("rollups", MONDAY_MS, D1),
    "five minutes": ("rollups", MONDAY_MS + 395 * MINUTE_MS, M5),
    "the week": ("rollups", MONDAY_MS, W1),
    "a minute of the same five": ("candles", MONDAY_MS + 401 * MINUTE_MS, None),
    "an older version of the minute": ("candles", MONDAY_MS + 403 * MINUTE_MS, None),
    "a forming minute": ("forming", MONDAY_MS + 410 * MINUTE_MS, None),
    "the minute while it formed": ("forming", MONDAY_MS + 403 * MINUTE_MS, None),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "at_ms", "interval", "value"),
    [pytest.param(*row, value, id=f"{name}: {value}") for name, row in BESIDE.items() for value in ("'abc'", "X'00'")]
    + [pytest.param(*BESIDE[name], "'NaN'", id=f"{name}: NaN") for name in ("a day", "a minute of the same five")],
)
def test_a_bad_row_keeps_no_minute_from_being_stored(file, table, at_ms, interval, value):
    there = minutes(404) if table != "forming" else minutes(403)
    running = Candle(*minutes(1, (at_ms - MONDAY_MS) // MINUTE_MS)[0])._replace(final=False, as_of_ms=at_ms + 1)
    fill(file, [*there, *([running] if table == "forming" else [])])
    store = opened(file)
    store.register_feed([MARKET], "a")
    file.spoil(
        f"UPDATE {table} SET high = {value} WHERE time_ms = {at_ms}" + (" INTERVAL" if interval else ""), interval
    )
    new = minutes(1, 403)[0]
    new = new._replace(volume=Decimal(9), as_of_ms=new.as_of_ms + 1, rev=1)  # as its writer knows
    store.write_minutes([(MARKET, new)])
    store.close()
    lost = [at_ms] if table == "candles" and at_ms != new.open_ms else []
    kept = [one for one in there if one.open_ms not in (*lost, new.open_ms)]
    after = stored(file, MINUTE)
    assert values(after) == values([*kept, new])
    for interval in LONGER:
        assert values(stored(file, interval)) == values(fold_bars(after, interval))
    store = opened(file)
    noted = [Range(at_ms, at_ms + MINUTE_MS)] if table == "candles" else []
    assert store.unpublished("bitget").get(MARKET.symbol, []) == noted
    store.close()
    assert verify(file) == 0


@pytest.mark.slow
def test_a_minute_that_cannot_be_stored_costs_no_other_row(file):
    fill(file, minutes())
    store = opened(file)
    with pytest.raises(StoreRejected):
        store.write_minutes([(MARKET, minutes(1, 401)[0]._replace(close=Decimal("1e999")))])
    store.close()
    assert_bars_are_those_of(file, minutes())
