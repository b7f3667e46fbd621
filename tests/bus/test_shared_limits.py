"""Budgets and counts that several processes share, and what they do while Redis is away."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis import asyncio as aioredis
from tornado.web import RequestHandler

from candled.budget import LocalBudget, MakeBudget
from candled.bus.codec import Names
from candled.bus.failures import FailureLog
from candled.bus.redis import shared_limits
from candled.bus.redis.address import RedisAddress
from candled.bus.redis.connections import Caller, Servers
from candled.bus.redis.shared_limits import RedisBudgets, RedisCounter
from candled.clock import SystemClock
from candled.config import load
from candled.errors import Unavailable
from candled.ingest.http import HttpClient
from candled.plugins import discover
from candled.tools.budgets import request_budgets
from tests import deadlines
from tests.bus.rig import new_prefix
from tests.clocks import ManualClock
from tests.proxy import Proxy
from tests.redis_servers import own_redis, shared_redis
from tests.web import serving

pytestmark = pytest.mark.usefixtures("redis")

NOWHERE = "redis://127.0.0.1:1"


@pytest.fixture
def names() -> Names:
    return Names(new_prefix(), "bitget", 1)


@asynccontextmanager
async def budgets(url: str, names: Names, count: int, processes: int = 1) -> AsyncIterator[list[RedisBudgets]]:
    """The budgets of several processes."""
    callers = [Caller(Servers(RedisAddress.parse(url))) for _ in range(count)]
    try:
        all_ = [
            RedisBudgets(caller, names, SystemClock(), FailureLog(SystemClock()), lambda: processes)
            for caller in callers
        ]
        yield all_
        for one in all_:
            await one.stop()
    finally:
        for caller in callers:
            await caller.close()


async def taken_within(seconds: float, *ways) -> int:
    """How many requests are granted when each way asks as fast as it can."""
    taken = [0]

    async def ask(budget) -> None:
        while True:
            await budget.acquire()
            taken[0] += 1

    tasks = [asyncio.ensure_future(ask(budget)) for budget in ways]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return taken[0]


# ---------------------------------------------------------------- budgets


async def test_several_processes_together_keep_to_one_budget(names):
    async with budgets(shared_redis(), names, 3) as all_:
        taken = await taken_within(2.0, *(one.budget_for("host", 10.0) for one in all_))
        assert 25 <= taken <= 31  # ten at once, then ten a second


async def test_every_host_has_a_budget_of_its_own(names):
    async with budgets(shared_redis(), names, 1) as (one,):
        assert one.budget_for("a", 5.0) is one.budget_for("a", 5.0)
        assert await taken_within(1.0, one.budget_for("a", 5.0), one.budget_for("b", 5.0)) >= 10


async def test_silence_that_a_host_asks_of_one_process_binds_all(names):
    async with budgets(shared_redis(), names, 2) as (first, second):
        await second.budget_for("host", 10.0).acquire()
        first.budget_for("host", 10.0).close_for(1.0)
        assert first.budget_for("host", 10.0).closed_for() > 0.9
        await asyncio.sleep(0.1)
        started, wall_s = deadlines.now(), time.monotonic()
        await second.budget_for("host", 10.0).acquire()
        assert time.monotonic() - wall_s > 0.8
        assert deadlines.now() - started < 2.0
        assert await taken_within(0.5, first.budget_for("host", 10.0), second.budget_for("host", 10.0)) <= 7


async def test_what_is_left_is_known_without_asking(names):
    async with budgets(shared_redis(), names, 1) as (one,):
        budget = one.budget_for("host", 5.0)
        assert budget.remaining_share() == 1.0
        for _ in range(4):
            await budget.acquire()
        assert budget.remaining_share() < 0.5
        await asyncio.sleep(0.6)
        assert budget.remaining_share() > 0.5  # a request that waits for an idle budget must not wait forever
        budget.close_for(5.0)
        assert budget.remaining_share() == 0.0


async def test_while_redis_is_unavailable_each_process_keeps_to_its_share(names):
    async with budgets(NOWHERE, names, 2, processes=2) as all_:
        ways = [one.budget_for("host", 10.0) for one in all_]
        await taken_within(1.0, *ways)  # the first requests are there at once in each of them
        assert 6 <= await taken_within(1.0, *ways) <= 13


async def test_a_process_that_never_saw_another_takes_half_for_itself(names):
    async with budgets(NOWHERE, names, 1, processes=0) as (one,):
        way = one.budget_for("host", 10.0)
        await taken_within(1.0, way)
        assert 3 <= await taken_within(1.0, way) <= 7


@asynccontextmanager
async def command(url: str, prefix: str) -> AsyncIterator[MakeBudget]:
    """The budgets of a command with the settings of a daemon."""
    loaded = load(None, {"CANDLED_BUS__URL": url, "CANDLED_BUS__PREFIX": prefix}, discover())
    async with request_budgets(loaded, SystemClock()) as budget:
        yield budget


async def test_a_command_beside_a_daemon_takes_half_of_what_both_may(names):
    prefix = names.budget_key("").removesuffix("candled:budget:")
    async with budgets(shared_redis(), names, 1) as (one,), command(shared_redis(), prefix) as beside:
        daemon, tool = one.budget_for("host", 10.0), beside("host", 10.0)
        taken = await taken_within(2.0, daemon, tool)
        assert 25 <= taken <= 31
        assert await taken_within(2.0, tool) <= 16
        tool.close_for(1.0)
        await asyncio.sleep(0.2)
        assert await taken_within(0.5, daemon) == 0


async def test_while_redis_is_unavailable_a_command_and_a_daemon_ask_no_more_than_one_may(names):
    async with budgets(NOWHERE, names, 1) as (one,), command(NOWHERE, "") as beside:
        ways = [one.budget_for("host", 10.0), beside("host", 10.0)]
        await taken_within(2.0, *ways)  # the first requests are there at once in each of them
        assert 15 <= await taken_within(2.0, *ways) <= 22


async def test_two_sections_of_one_process_share_a_budget_in_redis_fairly_at_the_lower_rate(names):
    async with budgets(shared_redis(), names, 1) as (one,):
        first, second = HttpClient(SystemClock(), 40.0, one.budget_for), HttpClient(SystemClock(), 10.0, one.budget_for)
        ways = [http._budget("host", http._rate) for http in (first, second)]
        assert ways[0] is ways[1]
        assert 25 <= await taken_within(2.0, *ways) <= 31
        first.close()
        second.close()


async def test_silence_that_redis_missed_is_sent_when_it_is_back(names):
    with own_redis() as server:
        async with budgets(server.url, names, 2) as (first, second):
            server.kill()
            first.budget_for("host", 10.0).close_for(30.0)
            await asyncio.sleep(0.2)
            server.start()
            await asyncio.sleep(3.2)
            with pytest.raises(TimeoutError):
                await deadlines.wait_for(second.budget_for("host", 10.0).acquire(), 0.5)


async def test_a_redis_that_does_not_answer_delays_no_request(names):
    with own_redis() as server, Proxy(server.address) as proxy:
        async with budgets(f"redis://127.0.0.1:{proxy.address[1]}", names, 1) as (one,):
            budget = one.budget_for("host", 10.0)
            await budget.acquire()
            proxy.freeze()
            started = deadlines.now()
            for _ in range(4):
                await budget.acquire()
            assert deadlines.now() - started < 1.5
            proxy.thaw()


async def test_a_budget_of_one_process_waits_and_closes(names):
    clock = ManualClock()
    budget = LocalBudget(clock, 2.0)
    for _ in range(2):
        await budget.acquire()
    assert budget.remaining_share() == 0.0
    waiting = asyncio.ensure_future(budget.acquire())
    await clock.advance(0.4)
    assert not waiting.done()
    await clock.advance(0.2)
    assert waiting.done()
    budget.close_for(5.0)
    assert (budget.closed_for(), budget.remaining_share()) == (5.0, 0.0)


# ---------------------------------------------------------------- the client of exchanges


class _Refusing(RequestHandler):
    asked = 0

    def get(self) -> None:
        _Refusing.asked += 1
        if _Refusing.asked == 1:
            self.set_status(429)
            self.set_header("Retry-After", "1")
        self.write({})


@pytest.fixture
async def refusing() -> AsyncIterator[str]:
    """The address of a server that asks for a second of silence at the first request."""
    _Refusing.asked = 0
    async with serving(_Refusing) as url:
        yield url


async def test_a_host_that_refused_one_process_is_not_asked_by_another(names, refusing):
    async with budgets(shared_redis(), names, 2) as all_:
        first, second = (HttpClient(SystemClock(), 10.0, one.budget_for) for one in all_)
        with contextlib.suppress(Unavailable):
            await first.get_json(refusing)
        await asyncio.sleep(0.1)
        started, wall_s = deadlines.now(), time.monotonic()
        await second.get_json(refusing)
        assert time.monotonic() - wall_s > 0.7
        assert deadlines.now() - started < 2.0
        (facts,) = first.describe().values()
        assert facts["requests"] == 1
        first.close()
        second.close()


# ---------------------------------------------------------------- counts


async def test_requests_are_counted_together_within_a_window(names):
    async with counters(shared_redis(), names, 2) as (first, second):
        assert [(await one.count_hit("a", 0.5))[0] for one in (first, second, first)] == [1, 2, 3]
        assert (await first.count_hit("b", 0.5))[0] == 1
        count, left_s = await second.count_hit("a", 0.5)
        assert (count, 0.3 < left_s <= 0.5) == (4, True)
        await asyncio.sleep(0.6)
        assert (await first.count_hit("a", 0.5))[0] == 1


@pytest.fixture
def patient(monkeypatch):
    """A busy machine may need longer than the half second that a client waits for its count."""
    monkeypatch.setattr(shared_limits, "_REPLY_TIMEOUT_S", 30.0)


async def test_a_thousand_concurrent_requests_are_a_thousand(names, patient):
    async with counters(shared_redis(), names, 2) as all_:
        counts: list[tuple[int, float]] = []
        for _ in range(10):
            counts += await asyncio.gather(*(all_[number % 2].count_hit("a", 60.0) for number in range(100)))
        assert sorted(count for count, _ in counts) == list(range(1, 1001))


async def test_a_request_that_cannot_be_counted_is_reported_immediately_and_counted_again_later(names, patient):
    with own_redis() as server:
        async with counters(server.url, names, 1) as (one,):
            await one.count_hit("a", 60.0)
            server.kill()
            started = deadlines.now()
            for _ in range(100):
                with pytest.raises(Unavailable):
                    await one.count_hit("a", 60.0)
            assert deadlines.now() - started < 1.0
            server.start()
            deadline = deadlines.now() + 4.0
            while True:
                try:
                    assert (await one.count_hit("a", 60.0))[0] == 1
                    break
                except Unavailable:
                    assert deadlines.now() < deadline
                    await asyncio.sleep(0.1)


async def test_a_forged_count_refuses_nobody_for_longer_than_a_window(names, patient):
    url = shared_redis()
    async with counters(url, names, 1) as (one,), aioredis.Redis.from_url(url) as client:
        await client.set(names.count_key("a"), 10**6, ex=31_536_000)
        for _ in range(2):
            count, left_s = await one.count_hit("a", 0.5)
            assert count > 10**6
            assert left_s <= 0.5
        await asyncio.sleep(0.6)
        assert (await one.count_hit("a", 0.5))[0] == 1


@asynccontextmanager
async def counters(url: str, names: Names, count: int) -> AsyncIterator[list[RedisCounter]]:
    """The counters of several processes."""
    callers = [Caller(Servers(RedisAddress.parse(url))) for _ in range(count)]
    try:
        yield [RedisCounter(caller, names, SystemClock(), FailureLog(SystemClock())) for caller in callers]
    finally:
        for caller in callers:
            await caller.close()


async def test_a_weight_above_the_burst_is_a_debt_that_all_processes_pay(names):
    async with budgets(shared_redis(), names, 2) as (one, other):
        first, second = one.budget_for("host/weight", 40.0), other.budget_for("host/weight", 40.0)
        await first.acquire(60.0)  # 20 more than there is
        assert first.remaining_share() == pytest.approx(0.0, abs=0.1)
        began, fair_s = time.monotonic(), deadlines.now()
        await second.acquire(0.0)  # waits for nothing but silence
        assert deadlines.now() - fair_s < 0.4
        await second.acquire(20.0)
        assert time.monotonic() - began > 0.8
