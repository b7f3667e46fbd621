"""The exchange's word reaches stored minutes by command: counted, folded, and sent to a running daemon's clients."""

import asyncio
import json
from datetime import timedelta
from random import Random

import pytest

from candled.budget import LocalBudgets, part_of
from candled.config import ExchangeConfig, IngestSettings
from candled.model import DEFAULT_INTERVALS, END_OF_TIME_MS, MINUTE, MINUTE_MS, Interval, Range, RangeSet
from candled.store.batch import fold_bars
from candled.tools.budgets import SHARE
from candled.tools.exchange_check import ExchangeCheck
from candled.tools.report import Report
from candled.tools.verify import MarketCheck
from candled_plugins.bitget.exchange import Bitget, BitgetSettings
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Row, Synthetic
from tests.system.rig import MONDAY_MORNING_MS, Rig
from tests.tools.command import BTC, called, run, settings
from tests.tools.exchange import at, bench, iso, values
from tests.tools.tables import MARKET, SqliteFile, fill, opened

LONGER = DEFAULT_INTERVALS[1:]
D1, H1 = Interval.parse("1D"), Interval.parse("1h")
DAY_MS = 86_400_000
NOW_MS = 1_763_640_012_345  # 2025-11-20T12:00Z, a Thursday
BEGUN_MS = NOW_MS - NOW_MS % DAY_MS - DAY_MS
AT = NOW_MS - NOW_MS % MINUTE_MS - DAY_MS


@pytest.fixture
async def fake():
    async with FakeBitget(FairScaledClock(50, NOW_MS), [FakeMarket(symbol=BTC, tape=Synthetic(3))]) as fake:
        fake.enforce_limits = False
        yield fake


def config_of(fake, tables):
    own = BitgetSettings(ws_url=fake.ws_url, rest_url=fake.rest_url)
    return settings(tables.url, ExchangeConfig(name="bitget", plugin=Bitget, symbols=(BTC,), settings=own))


async def check(fake, tables, *, windows="all", intervals=DEFAULT_INTERVALS, repair=True, unconfirmed=()):
    """Compare with the exchange; return the report and its lines."""
    report = Report(as_json=True, quiet=True)
    store = opened(tables)
    budget = part_of(fake.clock, SHARE, LocalBudgets(fake.clock).budget)
    exchange = config_of(fake, tables).exchanges[0]
    try:
        one = ExchangeCheck(store, exchange, intervals, fake.clock, report, Random(1), budget, repair=repair)
        await one.run([MARKET], Range(0, END_OF_TIME_MS), windows, {MARKET: RangeSet(unconfirmed)})
    finally:
        store.close()
    return report


def history(fake):
    return fake.truth(BTC, BEGUN_MS, NOW_MS - 5 * MINUTE_MS)


def stored(tables, interval=MINUTE):
    store = opened(tables)
    try:
        return store.read_bars_between(MARKET, interval, 0, 10**14)
    finally:
        store.close()


def other(candle, **change):
    return candle._replace(src="live", **change)


KINDS = {
    "another volume": lambda one: other(one, volume=one.volume + 1),
    "a stamp from the future": lambda one: other(one, volume=one.volume + 1, as_of_ms=END_OF_TIME_MS),
    "stated before the end": lambda one: other(one, volume=one.volume + 7, as_of_ms=one.open_ms + 1),
    "another open": lambda one: other(one, open=one.low),
    "another close": lambda one: other(one, close=one.low),
    "revised before": lambda one: other(one, volume=one.volume + 1, rev=3),
    "not there": lambda one: None,
}


@pytest.mark.slow
async def test_minutes_that_differ_become_the_exchanges_own(fake, tables, capsys):
    """One in each way, two hours apart."""
    truth = {one.open_ms: one for one in history(fake)}
    kind_at = {AT + 2 * number * H1.ms: kind for number, kind in enumerate(KINDS)}
    before = {open_ms: KINDS[kind](truth[open_ms]) for open_ms, kind in kind_at.items()}
    assert all(one is None or one.values != truth[one.open_ms].values for one in before.values())
    fill(tables, [one for one in (truth | before).values() if one is not None])
    store = opened(tables)
    store.register_feed([MARKET], "a")
    store.close()

    assert (await check(fake, tables, repair=False)).exit_status == 1
    capsys.readouterr()
    report = await check(fake, tables)
    assert (report.exit_status, report.repaired_count > 0) == (0, True)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["repaired"] for one in found if "difference" in one} == {True}
    assert sorted(one["time"] for one in found if one.get("interval") == "1m") == [iso(open_ms) for open_ms in kind_at]

    kept = {one.open_ms: one for one in stored(tables)}
    for open_ms, kind in kind_at.items():
        one, was = kept[open_ms], before[open_ms]
        assert (kind, one.values, one.src) == (kind, truth[open_ms].values, "backfill")
        assert (kind, one.rev) == (kind, 0 if was is None else was.rev + 1)
    for interval in LONGER:
        bars, expected = stored(tables, interval), fold_bars(stored(tables), interval)
        assert [(*bar.values, bar.rev) for bar in bars] == [(*bar.values, bar.rev) for bar in expected]
    store = opened(tables)
    assert store.changes_since(MARKET, "a", 10**9) == [Range(open_ms, open_ms + MINUTE_MS) for open_ms in kind_at]
    store.close()
    assert (await check(fake, tables)).exit_status == 0
    assert "repaired" not in capsys.readouterr().out


@pytest.mark.slow
async def test_the_minutes_of_a_longer_bar_that_differs_are_asked_for(fake, tables, capsys):
    """No window of minutes holds the wrong one: the day does."""
    minutes = history(fake)
    fill(tables, [one._replace(volume=one.volume + 1) if one.open_ms == AT else one for one in minutes])
    report = await check(fake, tables, windows=0, intervals=[MINUTE, D1])
    assert (report.exit_status, report.repaired_count) == (0, 2)
    assert values(stored(tables)) == values(minutes)


@pytest.mark.slow
async def test_a_minute_that_the_exchange_does_not_have_stays_and_is_named(fake, tables, capsys):
    fill(tables, history(fake))
    fake.missing_minutes(BTC, (AT, AT + MINUTE_MS))
    assert (await check(fake, tables, intervals=[MINUTE])).exit_status == 1
    fake.give_back_minutes(BTC)
    assert values(stored(tables)) == values(history(fake))


@pytest.mark.slow
async def test_doubtful_minutes_are_asked_for_whatever_windows_are_chosen(fake, tables):
    minutes = history(fake)
    fill(tables, [one._replace(volume=one.volume + 1) if one.open_ms == AT else one for one in minutes])
    report = await check(fake, tables, windows=0, intervals=[MINUTE], unconfirmed=[(AT - MINUTE_MS, AT + MINUTE_MS)])
    assert (report.exit_status, report.repaired_count) == (0, 1)


@pytest.mark.slow
async def test_an_absent_quote_volume_is_no_difference_to_repair(fake, tables):
    fill(tables, [one._replace(quote_volume=None) if one.open_ms == AT else one for one in history(fake)])
    report = await check(fake, tables, intervals=[MINUTE])
    assert (report.exit_status, report.repaired_count) == (0, 0)


@pytest.mark.slow
async def test_the_command_fetches_the_minutes_that_it_deletes(tables, capsys):
    from candled.clock import SystemClock

    async with FakeBitget(SystemClock(), [FakeMarket(symbol=BTC, tape=Synthetic(3))]) as fake:
        now_ms = fake.now_ms()
        minutes = fake.truth(BTC, now_ms - 4 * DAY_MS, now_ms - 5 * MINUTE_MS)
        fill(tables, minutes)
        for number in (400, 4000, len(minutes) - 1):
            tables.spoil(f"UPDATE candles SET close = 'NaN' WHERE time_ms = AT({minutes[number].open_ms})")
        command = config_of(fake, tables), "verify", "--quiet", "--exchange-check", "1", "--seed", "5", "--repair"
        assert await asyncio.to_thread(run, *command) == 0
        assert values(stored(tables)) == values(minutes)


@pytest.mark.slow
async def test_the_command_mends_minutes_that_contradict_each_other(tables, capsys):
    from candled.clock import SystemClock

    async with FakeBitget(SystemClock(), [FakeMarket(symbol=BTC, tape=Synthetic(3))]) as fake:
        now_ms = fake.now_ms()
        minutes = [one._replace(src="live") for one in fake.truth(BTC, now_ms - DAY_MS, now_ms - 5 * MINUTE_MS)]
        inside = [one for one in minutes[300:900] if 10 <= one.open_ms // MINUTE_MS % 60 < 50]  # of an hour
        middle = max(inside, key=lambda one: one.high - one.low)
        wrong = middle._replace(open=middle.low if middle.open > middle.low else middle.high)
        fill(tables, [wrong if one is middle else one for one in minutes])
        command = config_of(fake, tables), "verify", "--quiet", "--exchange-check", "1", "--seed", "5"
        assert await asyncio.to_thread(run, *command) == 1
        assert any("though the minute before closed at" in line for line in capsys.readouterr().out.splitlines())
        assert await asyncio.to_thread(run, *command, "--repair") == 0
        found = capsys.readouterr().out.splitlines()
        assert any("though" in line and line.endswith("(repaired)") for line in found)
        assert any("at the exchange" in line and line.endswith("(repaired)") for line in found)
        assert values(stored(tables)) == values(minutes)


# ---------------------------------------------------------------- reading minutes again


@pytest.mark.slow
@pytest.mark.parametrize("command", ["backfill", "repair"])
async def test_stored_minutes_are_read_again_where_that_is_asked_for(tmp_path, command, capsys):
    async with bench(tmp_path) as one:
        one.config = one.config.model_copy(update={"ingest": IngestSettings(backfill=timedelta(days=1))})
        truth = one.truth(at(-1), at(0, -10))
        changed = [one.open_ms for one in truth[100:1400:200]]
        gone = truth[50].open_ms
        one.put(
            *[
                minute._replace(volume=minute.volume + 1, as_of_ms=10**14) if minute.open_ms in changed else minute
                for minute in truth
                if minute.open_ms != gone
            ]
        )
        more = ("--from", iso(at(-1)), "--to", iso(at(0, -10)))
        assert await one.run(command, *(more if command == "backfill" else ())) == 0
        assert {minute.open_ms for minute in one.stored(at(-1), at(0, -10))} == {minute.open_ms for minute in truth}
        assert values(one.stored(at(-1), at(0, -10))) != values(truth)  # what is stored is left alone

        capsys.readouterr()
        if command == "backfill":
            assert await one.run(command, *more, "--reread", "--json", "--dry-run") == 0
            assert json.loads(capsys.readouterr().out)["markets"][0]["minutes"] == len(truth)
        assert await one.run(command, *more, "--reread", "--json") == 0
        [facts] = json.loads(capsys.readouterr().out)["markets"]
        assert facts["revised"] == len(changed)
        assert facts["stored"] == 0
        again = one.stored(at(-1), at(0, -10))
        assert values(again) == values(truth)
        assert {minute.open_ms for minute in again if minute.rev} == set(changed)
        assert all(minute.src == "backfill" for minute in again if minute.rev)
        assert one.known_gaps() == []


@pytest.mark.slow
async def test_reading_again_takes_no_stored_minute_for_absent(tmp_path):
    async with bench(tmp_path) as one:
        truth = one.truth(at(-1), at(0, -10))
        one.put(*truth)
        one.fake.missing_minutes(BTC, (truth[60].open_ms, truth[70].open_ms))
        assert await one.run("backfill", "--from", iso(at(-1)), "--to", iso(at(0, -10)), "--reread") == 0
        assert values(one.stored(at(-1), at(0, -10))) == values(truth)
        assert one.known_gaps() == []


# ---------------------------------------------------------------- beside a daemon


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("act", ["exchange check", "reread", "verify"])
async def test_clients_of_a_running_daemon_get_a_correction(tmp_path, capsys, act):
    clock = FairScaledClock(20.0, MONDAY_MORNING_MS)
    async with FakeBitget(clock, [FakeMarket(symbol=BTC, tape=Synthetic(7))], push_interval_s=2.0) as fake:
        fake.enforce_limits = False
        rig = Rig(tmp_path, fake, clock, [BTC])
        file = SqliteFile(tmp_path / "candled.db")
        try:
            await rig.start()
            await rig.until(lambda: rig.health(BTC)["state"] == "live" and not rig.health(BTC)["missingMinutes"])
            chart = rig.open_chart(BTC, "1h", 10)
            await rig.until(lambda: chart.initials >= 1)
            at_ms = MONDAY_MORNING_MS - 4 * H1.ms + 17 * MINUTE_MS
            hour = iso(H1.floor(at_ms))
            before = bar_of(chart, hour)
            row = fake.truth(BTC, at_ms, at_ms + MINUTE_MS)[0]
            if act == "verify":
                file.spoil(f"UPDATE candles SET volume = '-1' WHERE time_ms = {at_ms}")
            else:
                more = Row(row.open, row.high, row.low, row.close, row.volume + 1000, row.quote_volume)
                fake.revise(BTC, at_ms, more)
            config = config_of(fake, file)
            if act == "exchange check":
                assert await check_running(fake, file) == 1
            elif act == "reread":
                one = ("backfill", "BTC/USDT", "--from", iso(at_ms - H1.ms), "--to", iso(at_ms + H1.ms), "--reread")
                assert await called(config, *one, clock=clock) == 0
            else:
                store = opened_beside(file)
                report = Report(as_json=False, quiet=True)
                MarketCheck(store, MARKET, report, repair=True).run(Range(0, END_OF_TIME_MS))
                store.close()
            asked = before["volume"] if act == "verify" else before["volume"] + 1000
            await rig.until(lambda: bar_of(chart, hour)["volume"] == pytest.approx(asked, rel=1e-12), 5)
            if act == "verify":  # the minute is fetched again
                await rig.until(lambda: at_ms in {one.open_ms for one in beside(file)}, 15)
            assert values([one for one in beside(file) if one.open_ms == at_ms]) == values(
                fake.truth(BTC, at_ms, at_ms + MINUTE_MS)
            )
        finally:
            await rig.stop()


async def check_running(fake, file):
    """Mend what differs from the exchange; return how many minutes were."""
    report = Report(as_json=True, quiet=True)
    store = opened_beside(file)
    budget = part_of(fake.clock, SHARE, LocalBudgets(fake.clock).budget)
    exchange = config_of(fake, file).exchanges[0]
    try:
        one = ExchangeCheck(store, exchange, [MINUTE], fake.clock, report, Random(1), budget, repair=True)
        await one.run([MARKET], Range(0, END_OF_TIME_MS), "all")
    finally:
        store.close()
    return report.repaired_count


def opened_beside(file):
    from candled.store import make_store

    store = make_store(file.url, None)
    store.open()
    return store


def beside(file):
    store = opened_beside(file)
    try:
        return store.read_bars_between(MARKET, MINUTE, 0, 10**14)
    finally:
        store.close()


def bar_of(chart, time):
    [bar] = [bar for bar in chart.bars if bar["time"] == time]
    return bar
