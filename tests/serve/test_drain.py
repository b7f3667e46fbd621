"""Drain: readiness fails first, then clients are disconnected in slices, each with a `bye` of its own."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest
import websockets

from tests import deadlines
from tests.clocks import FairScaledClock

pytestmark = [pytest.mark.gen_test, pytest.mark.stage(clock=FairScaledClock(10.0))]
SUBSCRIBE = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 1, "fields": ["final"]}
CLIENTS = 30


async def read_until_closed(ws, clock) -> tuple[float, int]:
    """When the connection was closed, and the delay of its `bye`."""
    bye = 0
    try:
        while True:
            message = json.loads(await ws.recv())
            bye = message.get("reconnectAfterMs", bye)
    except websockets.ConnectionClosed:
        assert ws.close_code == 1001
    return clock.monotonic(), bye


@pytest.mark.slow
async def test_clients_are_disconnected_one_after_the_other_once_readiness_has_failed(stage, connect, fetch):
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect()) for _ in range(CLIENTS)]
        for ws in clients:
            await ws.send(json.dumps(SUBSCRIBE))
            assert json.loads(await deadlines.wait_for(ws.recv(), 3))["type"] == "initial"
        started = stage.clock.monotonic()
        draining = asyncio.create_task(stage.server.drain(12.0))
        reading = asyncio.gather(*(read_until_closed(ws, stage.clock) for ws in clients))
        await asyncio.sleep(0)
        assert stage.server.reports.is_stopping()
        assert (await fetch("/readyz")).code == 503
        async with connect():  # a balancer that has not noticed yet
            pass
        ends = [(at - started, bye) for at, bye in await deadlines.wait_for(reading, 20)]
        await deadlines.wait_for(draining, 5)
    times = sorted(at for at, _ in ends)
    assert times[0] >= 3.0, "the time in which balancers notice"
    assert times[-1] - times[0] >= 5.0
    byes = [bye for _, bye in ends]
    assert all(100 <= bye <= 2000 for bye in byes)
    assert len(set(byes)) > CLIENTS // 2


async def test_without_a_time_nothing_waits(stage):
    await stage.server.drain(0.0)
    assert not stage.server.reports.is_stopping()
