"""What the daemon's comparison with its store finds, and what `/health` tells of the comparison with REST."""

import sqlite3
from contextlib import closing

import pytest

from candled.model import MINUTE, MINUTE_MS, Symbol
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Row, Synthetic
from tests.passes import run_through
from tests.system.rig import MONDAY_MORNING_MS, Rig

pytestmark = pytest.mark.usefixtures("daemon")

BTC = Symbol.parse("BTC/USDT")


async def test_minutes_that_the_store_has_lost_are_fetched_again(tmp_path, caplog):
    clock = FairScaledClock(60.0, MONDAY_MORNING_MS)
    async with FakeBitget(clock, [FakeMarket(symbol=BTC, tape=Synthetic(7))], push_interval_s=2.0) as fake:
        fake.enforce_limits = False
        rig = Rig(tmp_path, fake, clock, [BTC])
        try:
            await rig.start()
            await rig.until(lambda: rig.health(BTC)["state"] == "live")
            await rig.check()
            await rig.until(lambda: rig.health(BTC)["unconfirmedMinutes"] < 60)  # after the snapshot
            lost = (MONDAY_MORNING_MS - 200 * MINUTE_MS, MONDAY_MORNING_MS - 190 * MINUTE_MS)
            with closing(sqlite3.connect(tmp_path / "candled.db")) as database, database:
                deleted = database.execute("DELETE FROM candles WHERE time_ms >= ? AND time_ms < ?", lost).rowcount
            assert deleted == 10
            assert await rig.check() > 300
            assert "10 minutes missing from the store" in caplog.text
        finally:
            await rig.stop()


async def test_health_counts_the_minutes_that_agreed_with_rest(tmp_path):
    clock = FairScaledClock(40.0, MONDAY_MORNING_MS)
    async with FakeBitget(clock, [FakeMarket(symbol=BTC, tape=Synthetic(7))], push_interval_s=1.0) as fake:
        fake.enforce_limits = False
        rig = Rig(tmp_path, fake, clock, [BTC])
        try:
            await rig.start()

            def parity():
                return run_through(rig.daemon.health.report())["exchanges"]["bitget"]["parity"]

            first = parity()
            assert (first["mismatched24h"], first["ratio"]) == (0, 1.0 if first["checked24h"] else None)
            await rig.until(lambda: parity()["checked24h"] >= 2)
            assert parity()["ratio"] == 1.0
            open_ms = MINUTE.floor(clock.now_ms())
            await rig.until(lambda: clock.now_ms() > open_ms + MINUTE_MS + 6_000)
            (was,) = fake.truth(BTC, open_ms, open_ms + MINUTE_MS)
            fake.revise(BTC, open_ms, Row(*was.values[:4], was.volume + 1, was.quote_volume + 5))
            await rig.until(lambda: parity()["mismatched24h"] == 1)
            assert parity()["ratio"] < 1.0
        finally:
            await rig.stop()


async def test_after_a_pause_longer_than_the_backfill_setting_no_week_is_left_out(tmp_path):
    clock = FairScaledClock(60.0, MONDAY_MORNING_MS)
    async with FakeBitget(clock, [FakeMarket(symbol=BTC, tape=Synthetic(7))], push_interval_s=2.0) as fake:
        fake.enforce_limits = False
        rig = Rig(tmp_path, fake, clock, [BTC])
        try:
            await rig.start()
            await rig.check()
            await rig.stop()
            later = FairScaledClock(60.0, MONDAY_MORNING_MS + 8 * 1440 * MINUTE_MS)
            fake.clock = rig.clock = later
            await rig.start()
            assert await rig.check(within_minutes=600) > 8 * 1440
        finally:
            await rig.stop()
