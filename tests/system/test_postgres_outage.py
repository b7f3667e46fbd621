"""The daemon on a real PostgreSQL that goes away: nothing is lost, charts go on, the loop is never held."""

import asyncio
import os
from typing import Any

import pytest

from candled.model import Symbol
from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.servers import Database, own_postgres
from tests.system.loop_watch import LoopWatch
from tests.system.rig import MONDAY_MORNING_MS, Rig

BTC, ETH = Symbol.parse("BTC/USDT"), Symbol.parse("ETH/USDT")
MARKETS = [FakeMarket(symbol=BTC, tape=Synthetic(1)), FakeMarket(symbol=ETH, tape=Synthetic(2))]
LONG = "CANDLED_TEST_LONG" in os.environ
OUTAGE_S = 600.0 if LONG else 6.0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("restart_daemon", [False, True], ids=["the daemon goes on", "the daemon restarts meanwhile"])
async def test_an_outage_of_the_database_loses_no_minute_and_charts_go_on(tmp_path, restart_daemon):
    """Promise 4, short form: the server is killed while candles come, and stays away for a while."""
    server = await asyncio.to_thread(own_postgres)
    clock = ScaledClock(20.0, MONDAY_MORNING_MS)
    try:
        with Database(server.dsn) as database:
            async with FakeBitget(clock, MARKETS) as fake:
                fake.enforce_limits = False
                one = Rig(tmp_path, fake, clock, [BTC, ETH], store_url=database.url())
                try:
                    await one.start()
                    chart = one.open_chart(BTC)
                    await one.until(lambda: one.health(BTC)["state"] == "live" and one.health(ETH)["state"] == "live")
                    await one.check()
                    async with LoopWatch() as watch:
                        await asyncio.to_thread(server.kill)
                        shown = len(chart.bars)
                        if restart_daemon:
                            await one.minutes(2)
                            await one.daemon.stop()
                            await one.start()
                        await asyncio.sleep(OUTAGE_S)
                        if not restart_daemon:
                            assert len(chart.bars) > shown, "the chart stood still while the database was away"
                            assert one.daemon.health()["store"]["state"] == "away"
                        await asyncio.to_thread(server.start)
                        await one.until(lambda: is_stored(one.daemon.health()["store"]), within_minutes=60)
                    minutes = await one.check(within_minutes=60)
                    print(f"{OUTAGE_S:.0f} s away, {minutes} minutes: 0 missing, wrong or extra; {watch}")
                    assert minutes > 700
                    assert watch.held_s < 0.1
                finally:
                    await one.stop()
    finally:
        await asyncio.to_thread(server.remove)


def is_stored(store: dict[str, Any]) -> bool:
    """Whether the store is back and nothing waits for it any more."""
    return store["state"] == "ok" and store["waiting"] < 10 and not store["journal"]["rows"]
