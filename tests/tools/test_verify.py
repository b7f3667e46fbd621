"""Verify: every kind of wrong bar is found and named, what can be repaired is, and nothing right is called wrong."""

import asyncio
import json
from decimal import Decimal
from random import Random

import pytest

from candled.budget import LocalBudgets, part_of
from candled.clock import SystemClock
from candled.config import ExchangeConfig
from candled.model import DAY_MS, DEFAULT_INTERVALS, END_OF_TIME_MS, MINUTE, MINUTE_MS, Candle, Range, iso_ms
from candled.tools.budgets import SHARE
from candled.tools.exchange_check import ExchangeCheck
from candled.tools.report import Report
from candled.tools.verify import MarketCheck
from candled_plugins.bitget.exchange import Bitget, BitgetSettings
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Row, Synthetic
from tests.store.rows import MONDAY_MS, recorded
from tests.system.rig import MONDAY_MORNING_MS, Rig
from tests.tools.command import BTC, ETH, run, settings
from tests.tools.tables import MARKET, SqliteFile, fill, opened

M5, M15, H1, H4, D1, W1 = DEFAULT_INTERVALS[1:]
ALWAYS = Range(0, END_OF_TIME_MS)


def week():
    """Two weeks that hang together, of real minutes, with a thin stretch."""
    return recorded("btcusdt-week.csv.gz")[5000:] + [
        candle._replace(open_ms=candle.open_ms + 7 * DAY_MS) for candle in recorded("btcusdt-week.csv.gz")[:3000:3]
    ]


@pytest.fixture
def weeks(templates, kind, tmp_path):
    """Tables with these weeks."""
    with templates.copy(kind, week, tmp_path) as tables:
        yield tables


@pytest.fixture
def file_of_weeks(templates, tmp_path):
    with templates.copy("sqlite", week, tmp_path) as file:
        yield file


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def verify(tables, *more):
    return run(settings(tables.url), "verify", "--quiet", "BTC/USDT", *more)


# ---------------------------------------------------------------- against the minutes


@pytest.mark.slow
def test_in_a_good_store_nothing_differs(weeks, capsys):
    assert verify(weeks) == 0
    assert lines(capsys) == ["bitget:BTC/USDT: 6,080 minutes, 2,334 longer bars: nothing differs"]


@pytest.mark.slow
def test_every_wrong_bar_is_named_with_what_is_wrong(weeks, capsys):
    at = MONDAY_MS + 4 * DAY_MS
    weeks.spoil(f"UPDATE rollups SET close = '1', volume = '2.50' WHERE time_ms = AT({at}) INTERVAL", H1)
    weeks.spoil(f"DELETE FROM rollups WHERE time_ms = AT({at + M15.ms}) INTERVAL", M15)
    weeks.spoil(f"UPDATE rollups SET time_ms = AT({at + 30 * DAY_MS}) WHERE time_ms = AT({at + M5.ms}) INTERVAL", M5)
    weeks.spoil(f"UPDATE rollups SET quote_volume = '7' WHERE time_ms = AT({at + 3 * DAY_MS}) INTERVAL", W1)
    assert verify(weeks) == 1
    *found, summary = lines(capsys)
    [last] = bars(weeks, MINUTE, at + 59 * MINUTE_MS, 1)
    volume = sum(candle.volume for candle in bars(weeks, MINUTE, at, 60))
    assert found == [
        "bitget:BTC/USDT 5m 2025-06-06T00:05:00.000Z: is not stored, though there are minutes",
        "bitget:BTC/USDT 15m 2025-06-06T00:15:00.000Z: is not stored, though there are minutes",
        "bitget:BTC/USDT 1h 2025-06-06T00:00:00.000Z: "
        f"close is 1, by its minutes {last.close}, volume is 2.5, by its minutes {volume}",
        "bitget:BTC/USDT 1W 2025-06-09T00:00:00.000Z: quoteVolume is 7, by its minutes absent",
        "bitget:BTC/USDT 5m 2025-07-06T00:00:00.000Z: no minute lies in it, but it is stored",
    ]
    assert summary.endswith("5 differ")


@pytest.mark.slow
def test_a_wrong_count_of_revisions_is_found_and_repaired(weeks, capsys):
    at = MONDAY_MS + 4 * DAY_MS
    weeks.spoil(f"UPDATE rollups SET rev = 7 WHERE time_ms = AT({at}) INTERVAL", H1)
    assert verify(weeks) == 1
    assert lines(capsys)[0] == "bitget:BTC/USDT 1h 2025-06-06T00:00:00.000Z: rev is 7, by its minutes 0"
    assert verify(weeks, "--repair") == 0
    capsys.readouterr()
    assert verify(weeks) == 0


def bars(tables, interval, start_ms, count):
    store = opened(tables)
    try:
        return store.read_bars_between(MARKET, interval, start_ms, start_ms + count * interval.ms)
    finally:
        store.close()


@pytest.mark.slow
def test_a_bar_without_minutes_is_found(weeks, capsys):
    weeks.spoil(f"DELETE FROM candles WHERE time_ms = AT({MONDAY_MS + 7 * DAY_MS + 9 * MINUTE_MS})")
    assert verify(weeks) == 1
    found = lines(capsys)
    assert "1m" not in {line.split()[1] for line in found}
    assert any("volume is" in line for line in found)
    weeks.spoil(f"DELETE FROM candles WHERE time_ms >= AT({MONDAY_MS + 7 * DAY_MS}) AND time_ms < "
                 f"AT({MONDAY_MS + 7 * DAY_MS + M5.ms})")  # fmt: skip
    verify(weeks)
    assert (
        "bitget:BTC/USDT 5m 2025-06-09T00:00:00.000Z: no minute lies in it, but it is stored" in lines(capsys)
    )  # fmt: skip


@pytest.mark.slow
def test_an_impossible_minute_is_found(file_of_weeks, capsys):
    file_of_weeks.spoil(f"UPDATE candles SET low = '999999999' WHERE time_ms = {MONDAY_MS + 8 * DAY_MS}")
    assert verify(file_of_weeks) == 1
    assert any(line.startswith("bitget:BTC/USDT 1m 2025-06-10") and "low <= open" in line for line in lines(capsys))


@pytest.mark.slow
def test_only_the_weeks_of_the_range_are_read(file_of_weeks, capsys):
    file_of_weeks.spoil(f"UPDATE rollups SET close = '1' WHERE time_ms = {MONDAY_MS + 4 * DAY_MS} INTERVAL", H1)
    assert verify(file_of_weeks, "--from", "2025-06-11") == 0
    assert verify(file_of_weeks, "--to", "2025-06-05T13:00Z") == 1
    assert lines(capsys)[0] == "bitget:BTC/USDT: 1,000 minutes, 867 longer bars: nothing differs"


def test_json_has_every_finding_exactly(file, capsys):
    fill(file, [candle(0), candle(1)])
    file.spoil("UPDATE rollups SET volume = '0.30000000000000000001' WHERE true INTERVAL", M5)
    assert verify(file, "--json") == 1
    difference, summary = map(json.loads, lines(capsys))
    numbers = {"open": "2", "high": "9", "low": "1", "close": "2", "quoteVolume": None}
    assert difference == {
        "difference": "rollup", "exchange": "bitget", "symbol": "BTC/USDT", "interval": "5m",
        "time": "2025-06-02T00:00:00.000Z", "repaired": False,
        "expected": {**numbers, "volume": "2"}, "found": {**numbers, "volume": "0.30000000000000000001"},
    }  # fmt: skip
    assert summary == {
        "exchange": "bitget", "symbol": "BTC/USDT", "minutes": 2, "bars": 6, "differ": 1, "repaired": 0,
    }  # fmt: skip


def candle(at, close="2", volume="1", as_of=60_000):
    open_ms = MONDAY_MS + at * MINUTE_MS
    return Candle.parse(open_ms, "2", "9", "1", close, volume, as_of_ms=open_ms + as_of, final=True)


def test_a_market_without_minutes_is_reported_to_have_none(file, capsys):
    assert run(settings(file.url), "verify", "--quiet") == 0
    assert lines(capsys) == [f"bitget:{symbol}: no minutes are stored" for symbol in (BTC, ETH)]


class Busy:
    """A store to which a daemon writes whenever bars of an hour are read."""

    def __init__(self, store, writes):
        self._store = store
        self._writes = list(writes)

    def __getattr__(self, name):
        return getattr(self._store, name)

    def read_bars_between(self, market, interval, start_ms, end_ms):
        if interval == H1 and self._writes:
            self._store.write_minutes([(market, self._writes.pop(0))])
        return self._store.read_bars_between(market, interval, start_ms, end_ms)


def test_what_a_daemon_writes_meanwhile_is_no_difference(file, capsys):
    fill(file, [candle(at) for at in range(100)])
    store = opened(file)
    report = Report(as_json=False, quiet=True)
    busy = Busy(store, [candle(100), candle(5, volume="3", as_of=70_000), candle(101, volume="7")])
    MarketCheck(busy, MARKET, report).run(ALWAYS)
    store.close()
    assert report.exit_status == 0
    assert lines(capsys) == ["bitget:BTC/USDT: 102 minutes, 33 longer bars: nothing differs"]


def test_a_daemon_that_writes_faster_than_its_bars_are_read_is_no_difference_either(file, capsys):
    fill(file, [candle(at) for at in range(100)])
    store = opened(file)
    store.register_feed([MARKET], "a")
    report = Report(as_json=False, quiet=True)
    MarketCheck(Busy(store, map(candle, range(100, 200))), MARKET, report, repair=True).run(ALWAYS)
    assert store.changes_since(MARKET, "a", 10**9) == []
    store.close()
    assert report.exit_status == 0
    assert lines(capsys)[-1].endswith("nothing differs")


# ---------------------------------------------------------------- repair


@pytest.mark.slow
def test_repair_folds_wrong_bars_again_and_says_so(weeks, capsys):
    before = {interval: bars(weeks, interval, 0, 10**7) for interval in DEFAULT_INTERVALS}
    at = MONDAY_MS + 4 * DAY_MS
    weeks.spoil(f"UPDATE rollups SET high = '1000000' WHERE time_ms >= AT({at}) AND time_ms < AT({at + DAY_MS})")
    weeks.spoil(f"DELETE FROM rollups WHERE time_ms = AT({MONDAY_MS + 7 * DAY_MS}) INTERVAL", D1)
    assert verify(weeks, "--repair") == 0
    *repaired, summary = lines(capsys)
    assert len(repaired) == 288 + 96 + 24 + 6 + 1 + 1
    assert all(line.endswith("(repaired)") for line in repaired)
    assert summary.endswith("nothing differs, 416 repaired")
    assert verify(weeks) == 0
    after = {interval: bars(weeks, interval, 0, 10**7) for interval in DEFAULT_INTERVALS}
    assert values(after) == values(before)


def values(by_interval):
    return {interval: [(bar.open_ms, *bar.values) for bar in bars] for interval, bars in by_interval.items()}


def test_repair_takes_away_a_bar_that_has_no_minutes(tables, capsys):
    minutes = [candle(0), candle(10), candle(20_000)]
    fill(tables, minutes)
    tables.spoil(f"UPDATE rollups SET time_ms = AT({MONDAY_MS + M5.ms}) WHERE time_ms = AT({MONDAY_MS}) INTERVAL", M5)
    tables.spoil(f"UPDATE rollups SET volume = '7' WHERE time_ms > AT({MONDAY_MS + 8 * DAY_MS}) INTERVAL", M5)
    assert verify(tables, "--repair") == 0
    assert lines(capsys) == [
        "bitget:BTC/USDT 5m 2025-06-02T00:00:00.000Z: is not stored, though there are minutes (repaired)",
        "bitget:BTC/USDT 5m 2025-06-02T00:05:00.000Z: no minute lies in it, but it is stored (repaired)",
        "bitget:BTC/USDT 5m 2025-06-15T21:20:00.000Z: volume is 7, by its minutes 1 (repaired)",
        "bitget:BTC/USDT: 3 minutes, 13 longer bars: nothing differs, 3 repaired",
    ]
    assert bars(tables, MINUTE, MONDAY_MS, 30_000) == minutes
    assert verify(tables) == 0


@pytest.mark.slow
def test_what_a_repair_changes_is_in_the_log_of_changes(weeks):
    store = opened(weeks)
    store.register_feed([MARKET], "a")
    at = MONDAY_MS + 4 * DAY_MS
    weeks.spoil(f"UPDATE rollups SET high = '1000000' WHERE time_ms = AT({at}) INTERVAL", H1)
    assert verify(weeks, "--repair") == 0
    assert store.changes_since(MARKET, "a", 10**9) == [Range(at, at + H1.ms)]
    store.close()


@pytest.mark.usefixtures("postgres")
def test_bars_whose_first_minutes_a_database_dropped_are_left_alone(templates, tmp_path, capsys):
    with templates.copy("postgresql", week, tmp_path) as tables:
        tables.spoil(f"DELETE FROM candles WHERE time_ms < AT({MONDAY_MS + 4 * DAY_MS + 90 * MINUTE_MS})")
        tables.spoil(f"UPDATE candled.state SET kept_from = AT({MONDAY_MS + 4 * DAY_MS + 90 * MINUTE_MS})")
        assert verify(tables) == 0
        assert lines(capsys)[0].endswith("nothing differs")


# ---------------------------------------------------------------- digests


@pytest.mark.slow
def test_two_stores_with_the_same_minutes_print_the_same_digests(weeks, tmp_path, capsys):
    other = SqliteFile(tmp_path / "other.db")
    fill(other, [one._replace(as_of_ms=5, close=one.close + Decimal("0.000")) for one in reversed(week())])
    assert verify(weeks, "--digest") == 0
    first = lines(capsys)
    assert verify(other, "--digest") == 0
    assert lines(capsys) == first
    days = {"05": "760", **dict.fromkeys(("06", "07", "08"), "1440"), "09": "480", "10": "480", "11": "40"}
    assert [line.split()[:3] for line in first] == [["bitget:BTC/USDT", f"2025-06-{day}", days[day]] for day in days]
    fill(other, [week()[0]._replace(close=week()[0].low, as_of_ms=END_OF_TIME_MS)])
    verify(other, "--digest", "--json")
    changed = [json.loads(line)["sha256"] for line in lines(capsys)]
    assert [line.split()[3] != digest for line, digest in zip(first, changed, strict=True)] == [True] + [False] * 6


@pytest.mark.slow
def test_digests_of_a_range_are_those_of_its_whole_days(file_of_weeks, capsys):
    verify(file_of_weeks, "--digest")
    whole = lines(capsys)
    verify(file_of_weeks, "--digest", "--from", "2025-06-06T07:00Z", "--to", "2025-06-07T01:00Z")
    assert lines(capsys) == whole[1:3]


# ---------------------------------------------------------------- against the exchange

NOW_MS = 1_763_640_012_345  # 2025-11-20T12:00Z, a Thursday
LISTED_MS = NOW_MS - NOW_MS % DAY_MS - 17 * DAY_MS  # a Monday
BEGUN_MS = LISTED_MS + 3 * DAY_MS + 77 * MINUTE_MS


@pytest.fixture
async def fake():
    markets = [FakeMarket(symbol=BTC, tape=Synthetic(3), listed_ms=LISTED_MS)]
    async with FakeBitget(FairScaledClock(50, NOW_MS), markets) as fake:
        yield fake


def bitget(fake):
    own = BitgetSettings(ws_url=fake.ws_url, rest_url=fake.rest_url)
    return ExchangeConfig(name="bitget", plugin=Bitget, symbols=(BTC,), settings=own)


async def against(fake, file, *, windows=3, seed=1, intervals=DEFAULT_INTERVALS, clock=None, within=ALWAYS):
    report = Report(as_json=True, quiet=True)
    store = opened(file)
    try:
        clock = clock or fake.clock
        budget = part_of(clock, SHARE, LocalBudgets(clock).budget)
        check = ExchangeCheck(store, bitget(fake), intervals, clock, report, Random(seed), budget)
        await check.run([MARKET], within, windows)
    finally:
        store.close()
    return report


def history():
    """What the fake has, until five minutes ago."""
    tape = Synthetic(3)
    return [tape.row(at).candle(at, final=True) for at in range(BEGUN_MS, NOW_MS - 5 * MINUTE_MS, MINUTE_MS)]


@pytest.fixture
def stored_history(templates, tmp_path):
    with templates.copy("sqlite", history, tmp_path) as file:
        yield file


@pytest.mark.slow
async def test_a_store_with_what_the_exchange_has_differs_in_nothing(fake, stored_history, capsys):
    report = await against(fake, stored_history)
    assert report.exit_status == 0
    [summary] = map(json.loads, lines(capsys))
    assert summary["compared"] == {"1m": 3 * 999, "5m": 90, "15m": 90, "1h": 90, "4h": 85, "1D": 13, "1W": 1}


@pytest.mark.slow
async def test_a_minute_that_the_exchange_has_otherwise_is_found(fake, stored_history, capsys):
    at = NOW_MS - NOW_MS % MINUTE_MS - 3 * DAY_MS
    row = fake.truth(BTC, at, at + MINUTE_MS)[0]
    fake.revise(BTC, at, Row(row.open, row.high, row.low, row.close, row.volume + 1, row.quote_volume))
    fake.missing_minutes(BTC, (at + MINUTE_MS, at + 2 * MINUTE_MS))
    near = Range(at - DAY_MS, at + DAY_MS)
    report = await against(fake, stored_history, windows=30, intervals=[MINUTE, D1], within=near)
    assert report.exit_status == 1
    found = [json.loads(line) for line in lines(capsys)[:-1]]
    by_interval = {(one["interval"], one["time"]): one for one in found}
    assert {interval for interval, _ in by_interval} == {"1m", "1D"}
    assert by_interval["1m", "2025-11-17T12:00:00.000Z"]["expected"]["volume"] == str(row.volume + 1)
    assert by_interval["1m", "2025-11-17T12:01:00.000Z"]["expected"] is None


@pytest.mark.slow
async def test_everything_can_be_compared_with_the_exchange(fake, stored_history, capsys):
    minutes = history()
    assert (await against(fake, stored_history, windows="all")).exit_status == 0
    [summary] = map(json.loads, lines(capsys))
    assert summary["compared"]["1m"] == len(minutes)
    assert [summary["compared"][str(interval)] for interval in (H4, D1, W1)] == [85, 13, 1]
    assert summary["compared"]["5m"] in (len(minutes) // 5 - 1, len(minutes) // 5)
    asked = [(request.path, request.query) for request in fake.requests]
    assert len(set(map(str, asked))) == len(asked)

    row = fake.truth(BTC, minutes[3].open_ms, minutes[4].open_ms)[0]
    fake.revise(BTC, row.open_ms, Row(row.open, row.high, row.low, row.close, row.volume + 1, row.quote_volume))
    near = Range(BEGUN_MS, BEGUN_MS + DAY_MS)
    assert (await against(fake, stored_history, windows="all", intervals=[MINUTE], within=near)).exit_status == 1
    assert json.loads(lines(capsys)[0])["time"] == iso_ms(row.open_ms)


@pytest.mark.slow
async def test_a_minute_that_is_not_stored_is_found(fake, file, capsys):
    minutes = history()
    gone = minutes.pop(-500)
    fill(file, minutes[-900:])
    report = await against(fake, file, windows=1, intervals=[MINUTE])
    assert report.exit_status == 1
    assert json.loads(lines(capsys)[0])["found"] is None
    assert gone.open_ms not in {one.open_ms for one in minutes}


@pytest.mark.slow
async def test_the_same_seed_asks_for_the_same_windows(fake, stored_history):
    asked = []
    for seed in (7, 7, 8):
        fake.requests.clear()
        await against(fake, stored_history, windows=1, seed=seed, clock=Frozen(fake.clock))
        asked.append([(request.path, request.query) for request in fake.requests])
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


class Frozen(FairScaledClock):
    """A clock whose wall stands still, for questions that depend on nothing else."""

    def __init__(self, clock):
        super().__init__(clock.speed, NOW_MS)

    def now_ms(self):
        return NOW_MS


@pytest.mark.slow
async def test_at_most_half_of_the_request_budget_is_taken(fake, stored_history):
    await against(fake, stored_history, windows=20, intervals=[MINUTE])
    first, last = fake.requests[0].at_ms, fake.requests[-1].at_ms
    half = Bitget.requests_per_s / 2
    assert len(fake.requests) >= 20
    assert len(fake.requests) <= half * ((last - first) / 1000 + 1) + 1


@pytest.mark.slow
async def test_an_exchange_that_cannot_be_reached_is_tried_again_and_then_named(fake, stored_history, capsys):
    fake.rest_429(retry_after=1, times=2)
    assert (await against(fake, stored_history, windows=1)).exit_status == 0
    capsys.readouterr()
    fake.rest_down = True
    report = await against(fake, stored_history, windows=5)
    assert report.exit_status == 1
    [line] = map(json.loads, lines(capsys))
    assert line["unchecked"] == "bitget"
    assert "cannot reach" in line["reason"]


@pytest.mark.slow
async def test_an_answer_that_is_not_as_documented_leaves_the_other_windows(fake, stored_history, capsys):
    fake.rest_error("40034", "Parameter BTCUSDT does not exist", times=1)
    report = await against(fake, stored_history, windows=2, intervals=[MINUTE])
    assert report.exit_status == 1
    unchecked, summary = map(json.loads, lines(capsys))
    assert "does not exist" in unchecked["reason"]
    assert summary["compared"] == {"1m": 999}


@pytest.mark.slow
async def test_the_command_prints_its_seed_and_takes_it_again(tmp_path, capsys):
    market = FakeMarket(symbol=BTC, tape=Synthetic(3))
    async with FakeBitget(SystemClock(), [market]) as fake:
        file = SqliteFile(tmp_path / "candled.db")
        now_ms = fake.now_ms()
        fill(file, fake.truth(BTC, now_ms - DAY_MS, now_ms - 5 * MINUTE_MS))
        config = settings(file.url, bitget(fake))
        await asyncio.to_thread(run, config, "verify", "--exchange-check", "1", "--quiet", "--seed", "77")
        printed = lines(capsys)
        assert printed[1] == "seed 77"
        assert printed[2].startswith("bitget:BTC/USDT: compared with the exchange: 999 of 1m, 90 of 5m")
        await asyncio.to_thread(run, config, "verify", "--exchange-check", "1", "--quiet")
        assert lines(capsys)[1].split()[1].isdigit()


# ---------------------------------------------------------------- against memory


@pytest.mark.usefixtures("daemon")
async def test_what_a_daemon_shows_is_compared_with_the_store(tmp_path, capsys):
    clock = FairScaledClock(60.0, MONDAY_MORNING_MS)
    async with FakeBitget(clock, [FakeMarket(symbol=BTC, tape=Synthetic(7))], push_interval_s=1.0) as fake:
        fake.enforce_limits = False
        one = Rig(tmp_path, fake, clock, [BTC])
        try:
            await one.start()
            await one.until(lambda: one.health(BTC)["state"] == "live")
            await one.minutes(2)
            file = SqliteFile(tmp_path / "candled.db")
            url = f"ws://127.0.0.1:{one.daemon.port}/ws"
            command = settings(file.url), "verify", "--quiet", "--memory", url, "BTC/USDT"
            assert await asyncio.to_thread(run, *command) == 0
            assert lines(capsys)[-1].endswith("nothing differs")

            at = MONDAY_MORNING_MS - 60 * MINUTE_MS
            file.spoil(f"UPDATE candles SET close = low, as_of_ms = {END_OF_TIME_MS} WHERE time_ms = {at}")
            assert await asyncio.to_thread(run, *command) == 1
            assert any(" 1m 2025-10-06T05:00:00.000Z: close is " in line for line in lines(capsys))

            assert await asyncio.to_thread(run, *command[:-1], "NOPE/USDT") == 1
            assert any("not checked: Invalid symbol: NOPE/USDT." in line for line in lines(capsys))
        finally:
            await one.stop()


async def test_a_daemon_that_is_not_there_is_named(file, capsys):
    fill(file, [candle(0)])
    command = settings(file.url), "verify", "--quiet", "--memory", "ws://127.0.0.1:9/ws", "BTC/USDT"
    assert await asyncio.to_thread(run, *command) == 1
    assert lines(capsys)[-1].startswith("ws://127.0.0.1:9/ws: not checked: ")
