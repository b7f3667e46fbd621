"""A daemon whose real PostgreSQL becomes unavailable: nothing is lost, charts go on, the loop is never blocked."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from candled.model import Symbol
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.loop_watch import LoopWatch
from tests.passes import run_through
from tests.proxy import Proxy
from tests.servers import Database, PostgresServer, own_postgres
from tests.system.rig import MONDAY_MORNING_MS, Rig

pytestmark = pytest.mark.usefixtures("postgres")

BTC, ETH = Symbol.parse("BTC/USDT"), Symbol.parse("ETH/USDT")
MARKETS = [FakeMarket(symbol=BTC, tape=Synthetic(1)), FakeMarket(symbol=ETH, tape=Synthetic(2))]
LONG = "CANDLED_TEST_LONG" in os.environ
SPEED = 20.0
OUTAGE_S = 600.0 if LONG else 4.0
HANG_S = 60.0 if LONG else 12.0  # long enough for calls to be given up, after 10 seconds
HITS = 200 if LONG else 20


class Deployment:
    """A daemon that stores in PostgreSQL, through a proxy that may cut and freeze."""

    def __init__(self, server: PostgresServer, database: Database, proxy: Proxy, rig: Rig) -> None:
        self.server = server
        self.database = database
        self.proxy = proxy
        self.rig = rig
        self.chart = rig.open_chart(BTC)

    @property
    def store(self) -> dict[str, Any]:
        """The store in `/health`."""
        return run_through(self.rig.daemon.health.report())["store"]

    def is_stored(self) -> bool:
        """Whether the store is back and nothing waits for it any more."""
        return self.store["state"] == "ok" and self.store["waiting"] < 10 and not self.store["journal"]["rows"]


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Deployment]:
    server = await asyncio.to_thread(own_postgres)
    clock = FairScaledClock(SPEED, MONDAY_MORNING_MS)
    try:
        with Database(server.dsn) as database, Proxy(database.address) as proxy:
            async with FakeBitget(clock, MARKETS, push_interval_s=2.0) as fake:
                fake.enforce_limits = False
                url = database.url(address=proxy.address)
                rig = Rig(directory, fake, clock, [BTC, ETH], store_url=url)
                try:
                    await rig.start()
                    deployment = Deployment(server, database, proxy, rig)
                    await rig.until(lambda: all(rig.health(one)["state"] == "live" for one in (BTC, ETH)))
                    await rig.check()
                    yield deployment
                finally:
                    await rig.stop()
    finally:
        await asyncio.to_thread(server.remove)


# ---------------------------------------------------------------- what happens to the database


async def killed(deployment: Deployment) -> str:
    """kill -9, and some time later a new start."""
    await asyncio.to_thread(deployment.server.kill)
    await deployment.rig.clock.sleep(OUTAGE_S * SPEED)
    await deployment.rig.until(lambda: deployment.store["state"] == "unavailable")
    await asyncio.to_thread(deployment.server.start)
    return f"away for {OUTAGE_S:.0f} s"


async def killed_and_daemon_restarted(deployment: Deployment) -> str:
    """The same, and the daemon is stopped and started while the database is away."""
    await asyncio.to_thread(deployment.server.kill)
    await deployment.rig.minutes(2)
    await deployment.rig.daemon.stop()
    await deployment.rig.start()
    await deployment.rig.clock.sleep(min(OUTAGE_S, 60.0) * SPEED)
    await asyncio.to_thread(deployment.server.start)
    return "away, and the daemon restarted"


async def hung(deployment: Deployment) -> str:
    """Connections stay open, and nothing comes any more."""
    deployment.proxy.freeze()
    await asyncio.sleep(HANG_S)  # of the wall, by which calls are given up
    await deployment.rig.until(lambda: deployment.store["state"] == "unavailable")
    deployment.proxy.thaw()
    return f"a link that hung for {HANG_S:.0f} s"


async def hit(deployment: Deployment) -> str:
    """Connections are reset in the middle, many at COMMIT, and backends killed, while the daemon writes."""
    dice, kills = random.Random(3), 0
    while deployment.proxy.faults < HITS or kills < HITS // 2:
        if dice.random() < 0.1:  # a moment of peace, or what waits grows and never gets through in one piece
            await deployment.rig.until(deployment.is_stored)
        if dice.random() < 0.3:
            deployment.proxy.cut_at_commit(reaches_server=dice.random() < 0.5)
        else:
            deployment.proxy.cut_after(dice.randrange(12_000))
        [(killed,)] = await asyncio.to_thread(deployment.database.rows, KILL) if dice.random() < 0.5 else [(0,)]
        kills += killed
        await asyncio.sleep(0.1)
    deployment.proxy.spare()  # otherwise a fault that is left hits the next reader of the store
    assert deployment.proxy.faults_at_commit >= HITS // 10
    proxy = deployment.proxy
    return f"{proxy.faults} resets, {proxy.faults_at_commit} of them at COMMIT, {kills} backends killed"


KILL = """SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name = 'candled' AND datname = current_database()"""


@pytest.mark.timeout(1200 if LONG else 900)
@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(killed, marks=pytest.mark.long),  # and so is it in the next
        killed_and_daemon_restarted,
        hung,
        pytest.param(hit, marks=pytest.mark.long),
    ],
)
async def test_trouble_with_the_database_loses_no_minute_and_charts_go_on(tmp_path, problem):
    """Promise 4, 5 and 8 for the whole daemon. The loop is never blocked, whatever the database does."""
    async with opened(tmp_path) as deployment:
        shown = len(deployment.chart.bars)
        async with LoopWatch() as watch:
            what = await problem(deployment)
            moved = len(deployment.chart.bars) - shown
            await deployment.rig.until(deployment.is_stored, within_minutes=60)
        minutes = await deployment.rig.check(within_minutes=60)
        print(f"{what}; {minutes} minutes: 0 missing, wrong or extra; {watch}")
        assert minutes > 700
        assert moved > 0, "the chart did not move"
        assert watch.blocked_s < 0.1
        await deployment.rig.until(lambda: (deployment.store["freeWriters"], deployment.store["freeReaders"]) == (2, 4))
