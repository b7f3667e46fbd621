"""Every fault of Bitget that the fake can do: afterwards store and charts hold what the exchange really had."""

import gc
import random
from contextlib import asynccontextmanager

import pytest

from candled.ingest import feeds
from candled.model import MINUTE, MINUTE_MS, Interval, Range, Symbol, parse_iso_ms
from tests import deadlines
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Recorded, Row, Synthetic
from tests.loop_watch import LoopWatch
from tests.system.rig import MONDAY_MORNING_MS, Rig

pytestmark = pytest.mark.usefixtures("daemon")

BTC, ETH, THIN = Symbol.parse("BTC/USDT"), Symbol.parse("ETH/USDT"), Symbol.parse("EWZ/USDT")
SPEED = 60.0
SOAK_S, SOAK_FAULTS = 600.0, 60


def markets() -> list[FakeMarket]:
    return [
        FakeMarket(symbol=BTC, tape=Synthetic(7)),
        FakeMarket(symbol=ETH, tape=Recorded.load("bitget-usdt-futures-ethusdt")),
        FakeMarket(symbol=THIN, tape=Recorded.load("bitget-usdt-futures-ewzusdt")),
    ]


@asynccontextmanager
async def rig(tmp_path, symbols=(BTC, ETH), *, speed: float = SPEED, push_s: float = 3.0, missing=()):
    """The `missing` minutes of BTC are numbered from the start."""
    clock = FairScaledClock(speed, MONDAY_MORNING_MS)
    async with FakeBitget(clock, markets(), push_interval_s=push_s) as fake:
        fake.enforce_limits = False  # limits per second mean nothing on a fast clock; their own tests are elsewhere
        fake.missing_minutes(BTC, *(Range(*(MONDAY_MORNING_MS + at * MINUTE_MS for at in span)) for span in missing))
        one = Rig(tmp_path, fake, clock, list(symbols))
        try:
            await one.start()
            yield one
        finally:
            await one.stop()


async def live(one: Rig) -> None:
    await one.until(lambda: all(one.health(symbol)["state"] == "live" for symbol in (BTC, ETH)))


async def test_without_faults_store_and_charts_hold_the_truth(tmp_path):
    async with rig(tmp_path) as one:
        chart, hours = one.open_chart(BTC), one.open_chart(ETH, "1h", 10)
        await live(one)
        await one.minutes(3)
        assert await one.check() > 700
        week = one.open_chart(BTC, "1W", 5)
        await one.until(lambda: week.bars)
        assert chart.initials >= 1
        shown = await one.reload(hours)
        start_ms, end_ms = parse_iso_ms(shown[0]["time"]), parse_iso_ms(shown[-1]["time"])
        assert shown[:-1] == one.truth_bars(ETH, Interval.parse("1h"), start_ms, end_ms)
        assert len(shown) >= 7  # since Monday, and the running one


FLOOD = ('{"event":"error","code":30001,"msg":"no"}', '{"action":"update","data":[["x"]]}', "[" * 1000)


@pytest.mark.slow  # a whole daemon, and minutes of a fast market
async def test_a_flooded_feed_is_interrupted_and_costs_few_lines_and_no_minute(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(feeds, "_FRAMES_PER_S", 20)  # of the market's time
    monkeypatch.setattr(feeds, "_FRAMES_PER_S_AND_SYMBOL", 10)
    async with rig(tmp_path, speed=SPEED / 2) as one:
        chart = one.open_chart(BTC)
        await live(one)

        def is_flooded() -> bool:
            for text in FLOOD:
                one.fake.flood(text, 200)
            return feeds.FLOODED in caplog.text

        await one.until(is_flooded)
        await live(one)
        assert await one.check() > 700
        assert chart.bars
        lines = [record for record in caplog.records if "feed 1" in record.getMessage()]
        assert len(lines) < 100, caplog.text  # fewer than the frames of one flood
        assert "Traceback" not in caplog.text


def silence(one: Rig) -> None:
    one.fake.silence_all()


def silence_one(one: Rig) -> None:
    one.fake.silence(BTC)


def duplicates(one: Rig) -> None:
    one.fake.duplicate_updates = True


def late_final(one: Rig) -> None:
    one.fake.late_final(BTC, 5.0)


def skip_push(one: Rig) -> None:
    one.fake.skip_push(BTC)


def half_open(one: Rig) -> None:
    one.fake.half_open()


def drop(one: Rig) -> None:
    one.fake.drop_all()


def storm(one: Rig) -> None:
    one.fake.max_age_s = 3.0


def no_pong_limit(one: Rig) -> None:
    one.fake.pong_within_s = (15.0, 19.0)


def refuse(one: Rig) -> None:
    one.fake.refuse_connections = True
    one.fake.drop_all()


def html(one: Rig) -> None:
    one.fake.html_instead_of_json(200)
    one.fake.drop_all()


def html_403(one: Rig) -> None:
    one.fake.html_instead_of_json(403)
    one.fake.drop_all()


def too_many(one: Rig) -> None:
    one.fake.rest_429(times=3)
    one.fake.drop_all()


def rest_down(one: Rig) -> None:
    one.fake.rest_down = True


def unknown_error(one: Rig) -> None:
    one.fake.rest_error("45001", "unknown error", 500)


def shifted_window(one: Rig) -> None:
    one.fake.window_shift_ms = 5 * MINUTE_MS
    one.fake.drop_all()


def mute(one: Rig) -> None:
    one.fake.mute_subscription(BTC)
    one.fake.drop_all()


def nothing(one: Rig) -> None:
    one.fake.rest_nothing()
    one.fake.drop_all()


def bad_rows(one: Rig) -> None:
    """No row of the last and the next minutes can be a candle."""
    for open_ms in lied_about(one):
        one.fake.garble(BTC, open_ms, lambda row: [[row[0], "1", "1", "2", "1", *row[5:]]])
    one.fake.drop_all()


def malformed_pushes(one: Rig) -> None:
    for open_ms in lied_about(one):
        one.fake.garble(BTC, open_ms, lambda row: [["yesterday", None, {}]], live=True)


def lied_about(one: Rig) -> range:
    now_ms = MINUTE.floor(one.clock.now_ms())
    return range(now_ms - 10 * MINUTE_MS, now_ms + 10 * MINUTE_MS, MINUTE_MS)


LIES = [nothing, bad_rows, malformed_pushes]
# Each group shares a daemon, and the faults of a group follow each other.
FAULTS = {
    "stream": [silence, silence_one, half_open, mute, drop, storm, no_pong_limit],
    "pushes": [duplicates, late_final, skip_push, malformed_pushes],
    "REST": [refuse, html, html_403, too_many, rest_down, unknown_error, shifted_window, nothing, bad_rows],
}


def calm(one: Rig) -> None:
    """Let the fake be as Bitget is on a good day."""
    one.fake.heal()
    for open_ms in range(MONDAY_MORNING_MS, one.clock.now_ms() + 20 * MINUTE_MS, MINUTE_MS):
        one.fake.garble(BTC, open_ms, None)
        one.fake.garble(BTC, open_ms, None, live=True)
    one.fake.max_age_s = 86_400.0
    one.fake.pong_within_s = (120.0, 145.0)


@pytest.mark.parametrize("group", FAULTS)
async def test_after_each_fault_the_store_and_the_charts_hold_the_truth(tmp_path, group):
    async with rig(tmp_path) as one:
        chart = one.open_chart(BTC)
        one.open_chart(BTC, "5m")
        one.open_chart(ETH)
        await live(one)
        for fault in FAULTS[group]:
            try:
                fault(one)
                await one.minutes(1.1)  # a boundary of a minute at least
                calm(one)
                await one.minutes(0.5)
                assert await one.check() > 700
            except AssertionError as error:
                error.add_note(f"after {fault.__name__}, or before it")  # minutes are compared when they are 3 old
                raise
        await one.minutes(3)
        assert await one.check() > 700
        assert chart.initials >= 1


@pytest.mark.long
async def test_lies_and_faults_hold_the_loop_briefly_and_leave_nothing_in_memory(tmp_path):
    blocked_s, sizes = [], []
    async with rig(tmp_path, speed=20.0, push_s=1.0) as one:
        one.open_chart(BTC)
        await live(one)
        for _ in range(2):
            async with LoopWatch() as watch:
                for fault in (*LIES, drop, html, duplicates):
                    fault(one)
                    await one.minutes(0.3)
                    calm(one)
                    await one.minutes(0.2)
            blocked_s.append(watch.blocked_s)
            gc.unfreeze()  # the daemon keeps its objects from the collector
            gc.collect()
            sizes.append(len(gc.get_objects()))
        await one.check(within_minutes=60)
    assert max(blocked_s) < 0.25  # with the fake and the chart in the same loop
    assert sizes[1] - sizes[0] < 5_000, "more than some minutes of two markets leave"


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_faults_one_after_another_leave_nothing_behind(tmp_path):
    """Promise 1: ten minutes with at least 60 faults in a random order. The short form is the test of each fault."""
    draw, began, injected = random.Random(20251118), deadlines.now(), 0
    kinds = [fault for group in FAULTS.values() for fault in group if fault not in LIES]
    async with rig(tmp_path, push_s=1.0) as one:
        one.open_chart(BTC)
        one.open_chart(ETH, "5m")
        await live(one)
        while deadlines.now() - began < SOAK_S:
            draw.choice(kinds)(one)
            injected += 1
            await one.minutes(draw.uniform(0.2, 4))
            calm(one)
            await one.minutes(draw.uniform(0.1, 3))
        minutes = await one.check(within_minutes=30)
    print(f"{injected} faults, {minutes} minutes compared: 0 missing, wrong or extra")
    assert injected >= SOAK_FAULTS


async def test_a_revised_minute_is_found_by_the_comparison_with_rest_and_shown(tmp_path):
    async with rig(tmp_path) as one:
        one.open_chart(BTC)
        await live(one)
        await one.minutes(1)
        open_ms = MINUTE.floor(one.clock.now_ms())
        await one.until(lambda: one.clock.now_ms() > open_ms + MINUTE_MS + 6_000)
        row = one.fake.truth(BTC, open_ms, open_ms + MINUTE_MS)[0]
        one.fake.revise(BTC, open_ms, Row(*row.values[:4], row.volume + 1, row.quote_volume + 5))
        await one.minutes(2)
        await one.check()
        assert one.health(BTC)["revisions"] >= 1


async def test_holes_of_the_exchange_are_reported_and_never_filled(tmp_path):
    """Promise 2. How often they are asked for: tests/ingest/test_holes.py, in virtual time."""
    async with rig(tmp_path, (BTC,), missing=[(-300, -297), (-280, -277)]) as one:
        await one.until(lambda: one.health(BTC)["state"] == "live")
        await one.check()
        known_gaps = one.health(BTC)["holes"]
        assert (known_gaps["count"], known_gaps["minutes"]) == (2, 6)


async def test_an_unknown_symbol_is_named_and_the_others_go_on(tmp_path):
    nope = Symbol.parse("NOPE/USDT")
    async with rig(tmp_path, (BTC, ETH, nope)) as one:
        await live(one)
        await one.until(lambda: one.health(nope)["trouble"])
        assert one.health(nope)["state"] == "stale"
        assert await one.check(symbols=[BTC, ETH]) > 700


async def test_a_quiet_market_is_quiet_not_stale_and_has_every_minute(tmp_path):
    async with rig(tmp_path, (BTC, THIN)) as one:
        one.fake.push_quiet_minutes = False
        await one.until(lambda: one.health(THIN)["state"] == "quiet")
        await one.minutes(3)
        assert await one.check() > 700
        assert one.health(THIN)["state"] in ("quiet", "live", "recovering")


async def test_a_clock_far_from_the_exchanges_is_noticed_and_harmless(tmp_path, caplog):
    clock = FairScaledClock(SPEED, MONDAY_MORNING_MS)
    async with FakeBitget(clock, markets(), push_interval_s=1.0, skew_ms=90_000) as fake:
        fake.enforce_limits = False
        one = Rig(tmp_path, fake, clock, [BTC, ETH])
        try:
            await one.start()
            await live(one)
            await one.minutes(3)
            await one.check()
            assert "from this machine" in caplog.text
            assert (await one.daemon.health.report())["exchanges"]["bitget"]["clockSkewMs"] > 80_000
        finally:
            await one.stop()


async def test_a_restart_after_minutes_away_shows_no_half_bar_and_repairs_the_rest(tmp_path):
    async with rig(tmp_path) as one:
        await live(one)
        await one.minutes(2)
        await one.stop()
        await one.minutes(6)
        await one.start()
        chart = one.open_chart(BTC, "1m", 30)
        await live(one)
        assert await one.check() > 720
        times = [bar["time"] for bar in chart.bars]
        assert times == sorted(set(times))
        assert len(times) >= 30


async def test_many_symbols_share_a_connection_and_more_use_more(tmp_path):
    from tests.fakes.bitget import synthetic_markets

    clock = FairScaledClock(4.0, MONDAY_MORNING_MS)
    many = synthetic_markets(11)
    async with FakeBitget(clock, many, push_interval_s=1.0) as fake:
        fake.enforce_limits = False
        one = Rig(tmp_path, fake, clock, [one.symbol for one in many], bitget={"symbols_per_connection": 5})
        try:
            await one.start()
            await one.until(lambda: one.all_are("connected", True))
            assert fake.open_connections == 3
            await one.until(lambda: one.all_are("state", "live"), 30)
        finally:
            await one.stop()
