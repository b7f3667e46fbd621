"""Export and import: exact both ways, nothing half written, nothing newer undone, nothing claimed that is not there."""

import gzip
import json
import shutil
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Candle, Gap, Interval, MarketKey, Range, iso_ms
from candled.store import make_store
from candled.tools.files import BadRow, open_writer, read_candles
from tests.servers import Database, shared_postgres
from tests.store.rows import DATA, MONDAY_MS
from tests.tools.command import BTC, refusal, run, settings

MARKET = MarketKey("bitget", BTC)
EWZ = DATA / "bitget-usdt-futures-ewzusdt.csv.gz"
ETHUSDT = DATA / "bitget-usdt-futures-ethusdt.csv.gz"
THIN = DATA / "ethusd-thin-week.csv.gz"
H1 = Interval.parse("1h")
NOW_MS = MONDAY_MS + 10**12
HEADER = "time_ms,open,high,low,close,volume,quote_volume,as_of_ms"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request, tmp_path):
    """The address of a new store; skipped by name where no PostgreSQL server is."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'candled.db'}"
        return
    with Database(shared_postgres()) as database:
        yield database.url()


@pytest.fixture
def config(tmp_path):
    return settings(f"sqlite:///{tmp_path / 'candled.db'}")


@pytest.fixture
def store(config):
    """The same store as the commands', open beside them."""
    store = make_store(config.store.url, config.intervals)
    store.open()
    yield store
    store.close()


def row(at, close="2", as_of=60_000):
    open_ms = MONDAY_MS + at * MINUTE_MS
    return f"{open_ms},2,9,1,{close},1,,{open_ms + as_of}"


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def minutes(store):
    return store.read_bars_between(MARKET, MINUTE, 0, 10**14)


def closes(store):
    return [str(candle.close) for candle in minutes(store)]


def load(config, path, *more):
    return run(config, "import", path, "--symbol", "BTC/USDT", "--quiet", *more)


def unload(config, path, *more):
    return run(config, "export", "BTC/USDT", "--output", path, "--quiet", *more)


# ---------------------------------------------------------------- round trips


@pytest.mark.slow
@pytest.mark.parametrize("recording", [EWZ, ETHUSDT, THIN], ids=lambda path: path.name.partition(".")[0])
def test_what_was_exported_and_imported_is_exported_to_the_same_bytes(url, tmp_path, recording):
    config, other = settings(url), settings(f"sqlite:///{tmp_path / 'other.db'}")
    assert load(config, recording) == 0
    assert unload(config, tmp_path / "first.csv.gz") == 0
    assert load(other, tmp_path / "first.csv.gz") == 0
    assert unload(other, tmp_path / "second.csv.gz") == 0
    assert (tmp_path / "first.csv.gz").read_bytes() == (tmp_path / "second.csv.gz").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("recording", [EWZ, ETHUSDT], ids=lambda path: path.name.partition(".")[0])
def test_an_export_holds_every_digit_that_was_recorded(url, tmp_path, recording):
    config = settings(url)
    load(config, recording)
    unload(config, tmp_path / "out.csv")
    with gzip.open(recording, "rt") as file:
        header, *recorded = file.read().splitlines()
    exported = (tmp_path / "out.csv").read_text().splitlines()
    assert exported[0] == HEADER
    columns = len(header.split(","))
    assert [",".join(line.split(",")[:columns]) for line in exported[1:]] == recorded


@pytest.mark.usefixtures("postgres")
def test_from_sqlite_to_postgresql_and_back_nothing_changes(tmp_path):
    here, back = settings(f"sqlite:///{tmp_path / 'here.db'}"), settings(f"sqlite:///{tmp_path / 'back.db'}")
    with Database(shared_postgres()) as database:
        there = settings(database.url())
        load(here, EWZ)
        for source, target, name in ((here, there, "1.csv"), (there, back, "2.csv")):
            unload(source, tmp_path / name)
            load(target, tmp_path / name)
        unload(back, tmp_path / "3.csv")
        unload(there, tmp_path / "there-1h.csv", "--interval", "1h")
    unload(back, tmp_path / "back-1h.csv", "--interval", "1h")
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes() == (tmp_path / "3.csv").read_bytes()
    assert (tmp_path / "there-1h.csv").read_bytes() == (tmp_path / "back-1h.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("recording", [EWZ, ETHUSDT], ids=lambda path: path.name.partition(".")[0])
def test_parquet_brings_back_the_same_csv(config, tmp_path, recording):
    pytest.importorskip("pyarrow", reason="no pyarrow: install candled[parquet]")
    other = settings(f"sqlite:///{tmp_path / 'other.db'}")
    load(config, recording)
    unload(config, tmp_path / "all.csv")
    unload(config, tmp_path / "all.parquet")
    load(other, tmp_path / "all.parquet")
    unload(other, tmp_path / "again.csv")
    assert (tmp_path / "all.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()


_digits = st.decimals(min_value="0.00000001", max_value=10**12, places=8) | st.sampled_from(
    [Decimal("1E+3"), Decimal("2.500"), Decimal("0E-8"), Decimal("1." + "3" * 40)]
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
@given(st.lists(st.tuples(_digits, _digits, st.none() | _digits, st.integers(0, 10**12)), min_size=1, max_size=5))
def test_any_digits_survive_a_file(tmp_path_factory, kind, values):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="no pyarrow: install candled[parquet]")
    bars = [
        Candle(at * MINUTE_MS, price + 1, price + 1, price + 1, price + 1, volume, quote, as_of, True)
        for at, (price, volume, quote, as_of) in enumerate(values)
    ]
    path = tmp_path_factory.mktemp("file") / "bars"
    with open_writer(str(path), kind, MARKET, MINUTE) as put:
        put(bars)
    again = list(read_candles(path, NOW_MS))
    assert again == bars
    assert [format(n, "f") for bar in again for n in bar.values if n is not None] == [
        format(n, "f") for bar in bars for n in bar.values if n is not None
    ]


# ---------------------------------------------------------------- export


def test_an_export_ends_before_its_end_and_goes_to_standard_output(config, capsys, tmp_path):
    load(config, write(tmp_path / "in.csv", HEADER, row(0), row(1), row(2), row(3)))
    capsys.readouterr()
    bounds = "--from", iso_ms(MONDAY_MS + MINUTE_MS), "--to", iso_ms(MONDAY_MS + 3 * MINUTE_MS)
    assert run(config, "export", "BTC/USDT", "--quiet", *bounds) == 0
    assert capsys.readouterr().out.splitlines() == [HEADER, row(1), row(2)]


def test_longer_bars_are_exported_as_stored_and_without_a_time_of_statement(config, capsys, tmp_path):
    load(config, write(tmp_path / "in.csv", HEADER, row(0), row(59, close="3"), row(60)))
    capsys.readouterr()
    assert run(config, "export", "BTC/USDT", "--interval", "1h", "--quiet") == 0
    assert capsys.readouterr().out.splitlines() == [
        "time_ms,open,high,low,close,volume,quote_volume",
        f"{MONDAY_MS},2,9,1,3,2,",
        f"{MONDAY_MS + H1.ms},2,9,1,2,1,",
    ]


def test_an_export_that_fails_leaves_no_file_and_keeps_the_old_one(config, store, tmp_path, monkeypatch):
    load(config, write(tmp_path / "in.csv", HEADER, row(0), row(20_000)))
    old = write(tmp_path / "out.csv", "old")
    calls = []

    def fail_at_the_second_page(self, *arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(type(store), "read_bars_between", fail_at_the_second_page)
    with pytest.raises(KeyboardInterrupt):
        unload(config, old)
    assert old.read_text() == "old\n"
    assert not list(tmp_path.glob("*.part"))


def test_an_export_of_nothing_says_what_there_is(config, tmp_path, capsys):
    assert unload(config, tmp_path / "none.csv") == 1
    assert "no 1m bars of bitget:BTC/USDT are stored" in capsys.readouterr().err
    load(config, write(tmp_path / "in.csv", HEADER, row(0)))
    assert unload(config, tmp_path / "none.csv", "--to", "2020-01-01") == 1
    assert "there are some from 2025-06-02T00:00:00.000Z to 2025-06-02T00:01:00.000Z" in capsys.readouterr().err
    assert not (tmp_path / "none.csv").exists()


def test_what_cannot_be_exported_is_refused(config, tmp_path):
    assert "no bars of 3m are kept, only of 1m, 5m" in refusal(config, "export", "BTC/USDT", "--interval", "3m")
    assert "Parquet needs a file" in refusal(config, "export", "BTC/USDT", "--format", "parquet")
    assert "did you mean bitget" in refusal(config, "export", "BTC/USDT", "--exchange", "bitgte")
    load(config, write(tmp_path / "in.csv", HEADER, row(0)))
    assert "cannot be written" in refusal(config, "export", "BTC/USDT", "--output", tmp_path / "no" / "out.csv")


# ---------------------------------------------------------------- import: rows


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("x,2,9,1,2,1,,", "expected a time"),
        (f"{MONDAY_MS + 1},2,9,1,2,1,,", "on a boundary"),
        (f"{MONDAY_MS},2,1,9,2,1,,", "low <= open"),
        (f"{MONDAY_MS},2,9,1,2,-1,,", "volumes of zero or more"),
        (f"{MONDAY_MS},2,9,1,2,NaN,,", "finite"),
        (f"{MONDAY_MS},2,9,1,2,1E+999999999,,", "at most 50 digits"),
        (f"{MONDAY_MS},2,9,1,2,1E-99,,", "at most 50 digits"),
        (f"{MONDAY_MS},2,9,1,2,1,,yesterday", "expected as_of_ms"),
        (f"{MONDAY_MS},2,9,1,2,1,,{NOW_MS * 2}", "expected as_of_ms"),
        (f"{MONDAY_MS},2,9,1,2,1", "8 columns, got 6"),
        (f"{NOW_MS - NOW_MS % MINUTE_MS},2,9,1,2,1,,", "a minute that is over"),
    ],
)
def test_an_impossible_row_is_named_by_its_line(tmp_path, line, problem):
    path = write(tmp_path / "in.csv", HEADER, "0,2,9,1,2,1,,60000", "", line)
    first, bad = read_candles(path, NOW_MS)
    assert first == Candle.parse(0, "2", "9", "1", "2", "1", as_of_ms=60_000, final=True)
    assert isinstance(bad, BadRow)
    assert bad.where == "line 4"
    assert problem in bad.problem


def test_times_that_do_not_ascend_are_bad_rows(tmp_path):
    path = write(tmp_path / "in.csv", HEADER, row(1), row(1), row(0), row(2))
    assert [type(one) for one in read_candles(path, NOW_MS)] == [Candle, BadRow, BadRow, Candle]


@pytest.mark.slow
def test_a_bad_row_keeps_every_file_out_and_all_of_them_are_reported(config, store, tmp_path):
    good = write(tmp_path / "good.csv", HEADER, row(0))
    bad = write(tmp_path / "bad.csv", HEADER, *(row(at) for at in range(10_100)), "x,2,9,1,2,1,,")
    worse = write(tmp_path / "worse.csv", HEADER, *["y"] * 7)
    problems = refusal(config, "import", good, bad, worse, "--symbol", "BTC/USDT").splitlines()
    assert len(problems) == 1 + 6 + 1
    assert problems[0].startswith(f"{bad}, line 10102: expected a time and decimal numbers")
    assert problems[-2:] == [f"{worse}: and 2 more bad rows", "nothing was imported"]
    assert minutes(store) == []


def test_bad_rows_can_be_skipped_and_are_counted(config, store, tmp_path, capsys):
    path = write(tmp_path / "in.csv", HEADER, row(0), "x,2,9,1,2,1,,", row(1))
    assert load(config, path, "--skip-bad", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "file": str(path), "read": 3, "new": 2, "replaced": 0, "kept": 0, "refused": 0, "bad": 1,
    }  # fmt: skip
    assert f"left out: {path}, line 3" in printed.err
    assert len(minutes(store)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no column time_ms"),
        ("time_ms,open,high,low,close\n", "no column volume"),
        ("time_ms,open,high,low,close,volume,price\n", "unknown column 'price'"),
        ("time_ms,open,high,low,close,volume,volume\n", "column volume is listed twice"),
        ("PAR1 but no more", "cannot be read|pyarrow"),
        (b"\x1f\x8b not gzip", "cannot be read"),
        (b"time_ms,open,high,low,close,volume\n\xff\xfe\n", "cannot be read"),
    ],
)
def test_a_file_of_another_kind_is_refused(config, tmp_path, text, problem):
    path = tmp_path / "in.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems = refusal(config, "import", path, "--symbol", "BTC/USDT")
    assert str(path) in problems or "pyarrow" in problems
    assert any(part in problems for part in problem.split("|"))


@pytest.mark.slow
def test_a_truncated_gzip_file_leaves_nothing(config, store, tmp_path):
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(ETHUSDT.read_bytes()[:-100])
    assert "cannot be read" in refusal(config, "import", path, "--symbol", "BTC/USDT")
    assert minutes(store) == []


def test_a_file_that_is_not_there_is_named(config, tmp_path):
    assert f"{tmp_path / 'no.csv'}: cannot be read: No such file" in refusal(
        config, "import", tmp_path / "no.csv", "--symbol", "BTC/USDT"
    )


@pytest.mark.slow
@pytest.mark.parametrize("interval", [interval for interval in DEFAULT_INTERVALS if interval.ms <= 14_400_000][1:])
def test_an_export_of_longer_bars_is_not_taken_for_minutes(config, tmp_path, interval):
    load(config, ETHUSDT)
    unload(config, tmp_path / "longer.csv", "--interval", interval)
    problems = refusal(config, "import", tmp_path / "longer.csv", "--symbol", "ETH/USDT")
    assert f"the rows are {interval.ms // MINUTE_MS} minutes apart" in problems


@pytest.mark.slow
def test_parquet_of_longer_bars_is_not_taken_for_minutes(config, tmp_path):
    pytest.importorskip("pyarrow", reason="no pyarrow: install candled[parquet]")
    load(config, EWZ)
    unload(config, tmp_path / "longer.parquet", "--interval", "1D")
    problems = refusal(config, "import", tmp_path / "longer.parquet", "--symbol", "ETH/USDT")
    assert "bars of 1D; only 1-minute candles can be imported" in problems


def test_parquet_with_binary_floats_is_refused(config, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="no pyarrow: install candled[parquet]")
    from pyarrow import parquet

    names = ["time_ms", "open", "high", "low", "close", "volume"]
    parquet.write_table(pyarrow.table([[MONDAY_MS], *[[0.1]] * 5], names=names), str(tmp_path / "f.parquet"))
    assert "binary floats are not exact" in refusal(config, "import", tmp_path / "f.parquet", "--symbol", "BTC/USDT")


def test_parquet_with_decimals_of_others_is_read(config, store, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="no pyarrow: install candled[parquet]")
    from pyarrow import parquet

    names = ["time_ms", "open", "high", "low", "close", "volume"]
    numbers = [[Decimal("2.50")]] * 5
    parquet.write_table(pyarrow.table([[MONDAY_MS], *numbers], names=names), str(tmp_path / "f.parquet"))
    assert load(config, tmp_path / "f.parquet") == 0
    assert closes(store) == ["2.50"]


def test_minutes_far_apart_are_taken_when_they_are_declared_to_be_minutes(config, store, tmp_path):
    lines = [row(at * 60).rpartition(",")[0] for at in range(4)]
    path = write(tmp_path / "in.csv", HEADER.rpartition(",")[0], *lines)
    assert "60 minutes apart" in refusal(config, "import", path, "--symbol", "BTC/USDT")
    assert load(config, path, "--sparse") == 0
    assert len(minutes(store)) == 4


# ---------------------------------------------------------------- import: versions


def test_an_older_version_never_replaces_a_newer_one(config, store, tmp_path, capsys):
    load(config, write(tmp_path / "1.csv", HEADER, row(0, close="5", as_of=90_000), row(1, close="5", as_of=90_000)))
    capsys.readouterr()
    second = write(
        tmp_path / "2.csv", HEADER, row(0, close="4", as_of=80_000), row(1, close="6", as_of=95_000), row(2, close="7")
    )
    assert load(config, second) == 0
    assert capsys.readouterr().out == (
        f"{second}: 3 rows: 1 new, 1 replaced an older version, 1 already stored, 0 bad\n"
    )
    assert closes(store) == ["5", "6", "7"]


def test_rows_without_a_time_of_statement_yield_to_anything_the_exchange_sent_later(config, store, tmp_path):
    stated = Candle.parse(MONDAY_MS, "2", "9", "1", "5", "1", as_of_ms=MONDAY_MS + MINUTE_MS + 1, final=True)
    store.write_minutes([(MARKET, stated)])
    line = row(0, close="4").rpartition(",")[0]
    load(config, write(tmp_path / "in.csv", HEADER.rpartition(",")[0], line, row(1, close="4").rpartition(",")[0]))
    assert closes(store) == ["5", "4"]
    assert minutes(store)[1].as_of_ms == MONDAY_MS + 2 * MINUTE_MS


def test_what_an_import_changes_is_in_the_log_of_changes(config, store, tmp_path):
    """So that a client that was away is given it, though no daemon could tell of it."""
    load(config, write(tmp_path / "1.csv", HEADER, row(0), row(1)))
    store.register_feed([MARKET], "a")
    load(config, write(tmp_path / "2.csv", HEADER, row(0), row(1, close="5", as_of=90_000), row(2)))
    assert store.changes_since(MARKET, "a", 10**9) == [Range(MONDAY_MS + MINUTE_MS, MONDAY_MS + 3 * MINUTE_MS)]
    assert [candle.rev for candle in minutes(store)] == [0, 1, 0]


@pytest.mark.slow
def test_importing_again_changes_nothing(config, store, tmp_path, capsys):
    load(config, EWZ)
    before = minutes(store)
    capsys.readouterr()
    load(config, EWZ)
    assert "234 rows: 0 new, 0 replaced an older version, 234 already stored, 0 bad" in capsys.readouterr().out
    assert minutes(store) == before


def test_a_store_that_keeps_no_such_old_minutes_is_noticed(config, tmp_path, capsys, monkeypatch, store):
    monkeypatch.setattr(type(store), "write_minutes", lambda self, rows: None)
    assert load(config, write(tmp_path / "in.csv", HEADER, row(0))) == 1
    assert "1 refused (older than the store keeps)" in capsys.readouterr().out


def test_a_symbol_that_is_not_served_is_pointed_out(config, tmp_path, capsys):
    path = write(tmp_path / "in.csv", HEADER, row(0))
    assert run(config, "import", path, "--symbol", "BTC/USDTT", "--quiet") == 0
    assert "bitget:BTC/USDTT is not in the settings" in capsys.readouterr().err


# ---------------------------------------------------------------- import: what is complete


def after(at):
    return MONDAY_MS + at * MINUTE_MS


def gap(start, end):
    return Gap(start_ms=after(start), end_ms=after(end), reason="exchange_outage", attempts=2, retry_ms=None)


def test_history_is_complete_from_the_imported_beginning_when_it_joins(config, store, tmp_path):
    load(config, write(tmp_path / "new.csv", HEADER, *(row(at) for at in range(10, 20))))
    store.set_complete_from(MARKET, after(10))
    load(config, write(tmp_path / "old.csv", HEADER, *(row(at) for at in range(3, 10))))
    assert store.complete_from(MARKET) == after(3)


def test_history_is_complete_only_down_to_the_newest_break(config, store, tmp_path):
    load(config, write(tmp_path / "new.csv", HEADER, *(row(at) for at in range(10, 20))))
    store.set_complete_from(MARKET, after(10))
    load(config, write(tmp_path / "old.csv", HEADER, *(row(at) for at in (2, 3, 4, 7, 8, 9))))
    assert store.complete_from(MARKET) == after(7)
    load(config, write(tmp_path / "older.csv", HEADER, *(row(at) for at in (0, 1, 6))))
    assert store.complete_from(MARKET) == after(6)


def test_a_known_hole_is_no_break_and_what_fills_it_leaves_the_rest(config, store, tmp_path):
    load(config, write(tmp_path / "new.csv", HEADER, *(row(at) for at in range(10, 20))))
    store.set_complete_from(MARKET, after(10))
    store.save_known_gaps(MARKET, [gap(4, 10)])
    load(config, write(tmp_path / "old.csv", HEADER, *(row(at) for at in (2, 3, 6, 7))))
    assert store.complete_from(MARKET) == after(2)
    assert store.known_gaps(MARKET) == [gap(4, 6), gap(8, 10)]


def test_nothing_is_claimed_where_nothing_was_known(config, store, tmp_path):
    load(config, write(tmp_path / "in.csv", HEADER, row(0), row(1)))
    assert store.complete_from(MARKET) is None


def test_a_claim_that_was_lost_comes_back_with_any_import(config, store, tmp_path):
    path = write(tmp_path / "in.csv", HEADER, *(row(at) for at in range(10)))
    load(config, path)
    store.set_complete_from(MARKET, after(8))  # as a daemon that ran meanwhile may have left it
    load(config, write(tmp_path / "newer.csv", HEADER, row(10)))
    assert store.complete_from(MARKET) == after(0)


def test_an_import_of_what_is_newer_claims_nothing(config, store, tmp_path):
    store.set_complete_from(MARKET, after(0))
    load(config, write(tmp_path / "in.csv", HEADER, row(5), row(6)))
    assert store.complete_from(MARKET) == after(0)


# ---------------------------------------------------------------- as a command


@pytest.mark.slow
def test_both_work_from_the_command_line(tmp_path, monkeypatch, capsys):
    from candled.cli import main

    monkeypatch.chdir(tmp_path)
    shutil.copy(EWZ, tmp_path / "ewz.csv.gz")
    write(tmp_path / "candled.yaml", "exchanges: {replay: {symbols: [EWZ/USDT]}}")
    assert main(["init-db"]) == 0
    assert main(["import", "ewz.csv.gz", "--symbol", "EWZ/USDT"]) == 0
    assert "234 new" in capsys.readouterr().out
    assert main(["export", "EWZ/USDT", "--interval", "1D"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    (tmp_path / "bad.csv").write_text("nonsense\n")
    assert main(["import", "bad.csv", "--symbol", "EWZ/USDT"]) == 2
    assert "bad.csv: no column time_ms" in capsys.readouterr().err
