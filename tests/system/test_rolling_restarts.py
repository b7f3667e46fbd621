"""Serve processes on one port are restarted one after the other: their clients resume, and no client loses a bar."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests import deadlines
from tests.system.daemon import Daemon
from tests.system.resuming import Record, ResumingClient, wait_until_equal
from tests.system.several import Several

pytestmark = pytest.mark.usefixtures("postgres", "redis", "daemon")

CLIENTS = 40
ROOMS = [("BTC/USDT", "1m"), ("BTC/USDT", "5m")]
SERVER = {"shutdown_seconds": 1.0, "max_connections_per_ip": 0}
REPLAY = {"replay": {"symbols": ["BTC/USDT"], "speed": 60}}


async def until_ready(daemon: Daemon) -> None:
    """Wait until a process serves complete bars, and no older ones are read any more.

    A client that comes back gets all bars if thousands of them have changed meanwhile, however old they are.
    """
    async with deadlines.timeout(40):
        while True:
            markets = (await asyncio.to_thread(daemon.get, "/health?verbose"))["exchanges"]["replay"]["symbols"]
            ready = await asyncio.to_thread(daemon.get, "/health/ready")
            market = markets.get("BTC/USDT", {})
            if ready["status"] == "pass" and market.get("state") == "live" and market.get("missingMinutes", 0) == 0:
                return
            await asyncio.sleep(0.1)


async def test_clients_of_restarted_processes_resume_and_show_every_bar(tmp_path):
    record = Record()
    with Several(tmp_path, 2, shares_port=True, exchanges=REPLAY, server=SERVER) as deployment:
        for one in (deployment.ingest, *deployment.serving):
            await until_ready(one)
        url = f"ws://127.0.0.1:{deployment.ws_port}/"
        clients = [ResumingClient(url, ROOMS[number % 2], 20, record) for number in range(CLIENTS)]
        async with AsyncExitStack() as stack:
            for client in clients:
                await stack.enter_async_context(client)
            async with deadlines.timeout(30):
                while not all(client.bars for client in clients):
                    await asyncio.sleep(0.02)
            for one in deployment.serving:
                assert await asyncio.to_thread(one.stop) == 0
                await asyncio.to_thread(deployment.start, one)
                await until_ready(one)
            async with deadlines.timeout(30):
                while not all(one.answered for one in record.reconnects):
                    await asyncio.sleep(0.02)
            assert await wait_until_equal(clients, url, ROOMS, 1000, 20) == []
    # each client was at one of them: it has been disconnected once, and perhaps again at the other one
    assert len(record.reconnects) >= CLIENTS
    assert all(one.bye_ms is not None and 100 <= one.bye_ms <= 2000 for one in record.reconnects)
    assert [one.reason for one in record.reconnects if not one.is_resumed] == []
    # the kernel assigns connections to processes; one that a process has not accepted when it ends is reset
    assert record.failures <= CLIENTS // 10
