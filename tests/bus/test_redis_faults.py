"""Links that break in every way: they heal, nothing is missed in silence, and the event loop is never held."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from candled.bus.redis.leases import LeaseState
from tests import deadlines
from tests.bus.rig import BTC, CLOCK, LOOP_BLOCKED_S, Process, new_prefix, process, until
from tests.loop_watch import LoopWatch
from tests.proxy import Proxy
from tests.redis_servers import RedisServer, own_redis

pytestmark = pytest.mark.usefixtures("redis")

LONG = "CANDLED_TEST_LONG" in os.environ
TIMES = 20 if LONG else 2
REPAIRED_WITHIN_S = 5.0  # after the connection works again
_EVERY_S = 0.02
_TAKES_HOLD_S = 0.2  # what the proxy has begun to carry still passes


class Trial:
    """A leader that publishes fifty times a second, and a process that hears it through a proxy."""

    def __init__(self, server: RedisServer, proxy: Proxy, leader: Process, hearer: Process) -> None:
        self.server = server
        self.proxy = proxy
        self.leader = leader
        self.hearer = hearer
        self.worst_s = 0.0
        self.repaired = 0
        self._number = 0

    async def publish(self) -> None:
        """Publish for ever; every tenth version closes a minute."""
        while True:
            self._number += 1
            self.leader.publish(number=self._number // 10, final=self._number % 10 == 9)
            await asyncio.sleep(_EVERY_S)

    async def heals(self, since: float) -> float:
        """Wait until what is published from now on is heard and every loss was told; return the seconds since then."""
        volume = self.leader.listener.newest[BTC].volume
        listener = self.hearer.listener
        await until(lambda: listener.newest[BTC].volume > volume and not listener.open_gaps, REPAIRED_WITHIN_S + 1)
        took_s = deadlines.now() - since
        self.worst_s = max(self.worst_s, took_s)
        self.repaired += took_s <= REPAIRED_WITHIN_S
        return took_s

    async def half_open(self) -> None:
        """Both directions lose everything, and nobody closes."""
        self.proxy.lose_existing()
        await asyncio.sleep(_TAKES_HOLD_S)

    async def reset(self) -> None:
        """Every connection is reset."""
        self.proxy.reset_existing()
        await asyncio.sleep(_TAKES_HOLD_S)

    async def killed(self) -> None:
        """The server dies without a word, and is there again after a second, empty."""
        self.server.kill()
        await CLOCK.sleep(1.0)
        await asyncio.to_thread(self.server.start)

    async def client_killed(self) -> None:
        """The server cuts off who subscribes, as it does with whoever is too slow."""
        with self.server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def stopped(self) -> None:
        """The server answers nothing for six seconds, and goes on."""
        self.server.pause()
        await CLOCK.sleep(6.0)
        self.server.resume()


@asynccontextmanager
async def trial() -> AsyncIterator[Trial]:
    prefix = new_prefix()
    with own_redis() as server, Proxy(server.address) as proxy:
        far = f"redis://127.0.0.1:{proxy.address[1]}"
        async with process(server.url, prefix, ingests=True) as leader, process(far, prefix) as hearer:
            await until(lambda: leader.state is LeaseState.LEADER and hearer.is_ready)
            one = Trial(server, proxy, leader, hearer)
            publishing = asyncio.ensure_future(one.publish())
            await until(lambda: BTC in hearer.listener.newest)
            try:
                yield one
            finally:
                publishing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await publishing


@pytest.mark.parametrize("fault", ["half_open", "reset", "killed", "client_killed", "stopped"])
async def test_a_fault_is_over_within_five_seconds_after_the_connection_is_back(fault, capsys):
    times = TIMES if LONG or fault != "stopped" else 1
    async with trial() as one, LoopWatch() as watch:
        generation = one.hearer.bus.describe()["generation"]
        for _ in range(times):
            received = len(one.hearer.listener.received)
            began = deadlines.now()
            await getattr(one, fault)()
            is_over = fault in ("killed", "stopped")
            await one.heals(deadlines.now() if is_over else began)
            await until(
                lambda received=received: len(one.hearer.listener.received) > received + 20
            )  # before the next one
        facts = one.hearer.bus.describe()
        assert one.repaired == times
        assert facts["generation"] >= generation + (times if fault != "stopped" else 0)
        assert one.hearer.listener.open_gaps == set()
    with capsys.disabled():
        print(
            f"\n{fault}: {times} faults, {one.repaired} healed, worst {one.worst_s:.2f} s"
            f", loop held {watch.blocked_s:.3f} s, {facts['healed']}"
        )
    assert watch.blocked_s < LOOP_BLOCKED_S


async def test_a_leader_whose_connection_is_half_open_publishes_again_and_sends_the_newest_minutes():
    prefix = new_prefix()
    with own_redis() as server, Proxy(server.address) as proxy:
        far = f"redis://127.0.0.1:{proxy.address[1]}"
        async with process(far, prefix, ingests=True) as leader, process(server.url, prefix) as hearer:
            await until(lambda: leader.state is LeaseState.LEADER and hearer.is_ready)
            leader.publish()
            await until(lambda: hearer.listener.candles())
            received = len(hearer.listener.candles())
            proxy.lose_existing()
            for _ in range(100):
                leader.publish()
                await asyncio.sleep(_EVERY_S)
            candle = leader.publish()
            await until(lambda: hearer.listener.newest[BTC] == candle, REPAIRED_WITHIN_S)
            assert hearer.listener.open_gaps == set()
            assert len(hearer.listener.candles()) - received < 30  # the newest, and not a hundred one after the other


async def test_a_combined_process_shows_its_own_minutes_all_the_while(capsys):
    """Redis is away: publishing costs ingest nothing, and the process's own clients miss nothing (no matter how)."""
    prefix, took = new_prefix(), []
    with own_redis() as server, Proxy(server.address) as proxy:
        far = f"redis://127.0.0.1:{proxy.address[1]}"
        async with process(far, prefix, ingests=True, lease_s=2.0) as leader, LoopWatch() as watch:
            await until(lambda: leader.state is LeaseState.LEADER)
            published = 0
            for fault in (proxy.freeze, server.kill):
                fault()
                number = 0
                while (number := number + 1) < (300 if LONG else 60) or leader.state is not LeaseState.UNSURE:
                    started = deadlines.now()
                    leader.publish(number=number)
                    took.append(deadlines.now() - started)
                    published += 1
                    await asyncio.sleep(_EVERY_S)
                assert len(leader.listener.candles()) == published
            proxy.thaw()
            server.start()
            await until(lambda: leader.state is LeaseState.LEADER, 8.0)
            assert len(leader.listener.candles()) == published
    p99_s = sorted(took)[int(0.99 * len(took))]
    with capsys.disabled():
        print(f"\nRedis away: {len(took)} published, p99 {p99_s * 1000:.2f} ms, loop held {watch.blocked_s:.3f} s")
    assert p99_s < 0.05
    assert watch.blocked_s < LOOP_BLOCKED_S


async def test_a_connection_that_ends_again_and_again_is_not_tried_in_a_spin():
    prefix = new_prefix()
    with own_redis() as server, Proxy(server.address) as proxy:
        far = f"redis://127.0.0.1:{proxy.address[1]}"
        async with process(far, prefix) as hearer:
            await until(lambda: hearer.is_ready)
            before = proxy.connections
            proxy.refuse()
            proxy.reset_existing()
            await CLOCK.sleep(3.0)
            assert not hearer.bus.describe()["connected"]
            assert proxy.connections - before < 30
            proxy.refuse(False)
            await until(lambda: hearer.bus.describe()["connected"], 2.0)
