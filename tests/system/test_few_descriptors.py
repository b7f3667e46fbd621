"""The daemon with too few file descriptors: clients are refused properly, and what it needs itself goes on."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from typing import Any

import pytest
import websockets

from candled.model import Symbol
from tests import deadlines
from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.system.daemon import Daemon

pytestmark = [pytest.mark.usefixtures("daemon"), pytest.mark.timeout(900)]
BTC = Symbol.parse("BTC/USDT")
SUBSCRIBE = json.dumps({"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 5})


async def attempt(daemon: Daemon, clients: list[Any]) -> str:
    """Connect and subscribe; return what became of it."""
    began = time.monotonic()
    try:
        client = await websockets.connect(daemon.ws_url, max_size=None, open_timeout=20)
    except websockets.InvalidStatus as refusal:
        assert json.loads(refusal.response.body)["error"]["code"] == 503
        assert int(refusal.response.headers["Retry-After"]) > 0
        return "503"
    except (OSError, websockets.WebSocketException) as error:
        # without descriptors, a connection whose request is not there after a second is closed
        return "late" if time.monotonic() - began > 1.0 else repr(error)
    clients.append(client)
    try:
        await client.send(SUBSCRIBE)
        async with deadlines.timeout(20):
            while json.loads(await client.recv())["type"] != "initial":
                continue
    except websockets.ConnectionClosed as error:
        return f"let in and cut: {error}"
    return "served"


async def is_connected(daemon: Daemon) -> bool:
    """Return whether the daemon reads the exchange, as `/health` reports; it may also refuse to answer."""
    facts = await asyncio.to_thread(daemon.get, "/health?verbose")
    return "exchanges" in facts and bool(facts["exchanges"]["bitget"]["symbols"]["BTC/USDT"].get("connected"))


async def reconnected(fake: FakeBitget, within_s: float = 150.0) -> bool:  # up to a minute passes between attempts
    async with deadlines.timeout(within_s):
        while not fake.open_connections:
            await asyncio.sleep(0.1)
    return True


@pytest.mark.parametrize("takeover", [True, False])
async def test_clients_beyond_the_limit_get_503_and_the_exchange_comes_back(tmp_path, takeover):
    async with FakeBitget(ScaledClock(), [FakeMarket(symbol=BTC, tape=Synthetic(7))]) as fake:
        config = {
            "exchanges": {"bitget": {"symbols": ["BTC/USDT"], "ws_url": fake.ws_url, "rest_url": fake.rest_url}},
            "ingest": {"backfill": "0s"},
            "server": {"own_sockets": takeover, "warmup_wait": "0s"},
            "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
        }
        with Daemon(tmp_path) as daemon:
            await asyncio.to_thread(daemon.start, config, open_files=60, within_s=60)
            await reconnected(fake)
            clients: list[Any] = []
            outcomes = Counter(await asyncio.gather(*(attempt(daemon, clients) for _ in range(100))))
            assert outcomes["served"] >= 5
            assert outcomes["served"] + outcomes["503"] + outcomes["late"] == 100, outcomes
            refused = 0  # in a row: a descriptor may have become free, such as that of a request to the exchange
            while refused < 5:
                outcomes[outcome := await attempt(daemon, clients)] += 1
                refused = refused + 1 if outcome == "503" else 0
                assert outcomes.total() < 120, outcomes
            async with deadlines.timeout(10):  # `/health` may be a second old
                while not await is_connected(daemon):
                    await asyncio.sleep(0.05)
            fake.drop_all()
            await asyncio.sleep(0.2)
            assert await reconnected(fake)
            await asyncio.sleep(1.0)
            assert len([client for client in clients if client.state.name == "OPEN"]) == outcomes["served"]
            await asyncio.gather(*(client.close() for client in clients))
            async with deadlines.timeout(20):
                while await attempt(daemon, clients) != "served":
                    await asyncio.sleep(0.2)
            await clients[-1].close()
            assert await asyncio.to_thread(daemon.stop) == 0
            assert "Traceback" not in daemon.output
            lines = [line for line in daemon.output.splitlines() if "open files" in line or "descriptor" in line]
            assert len(lines) == 2, lines  # at the start, and when it happened
            assert "about 0 clients find room" in lines[0]


class HalfOpen:
    """Connections that send half a request, from several addresses; each that ends is replaced."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._tasks = [asyncio.create_task(self._stay(number)) for number in range(count)]
        self.opened = self.closed = 0

    async def _stay(self, number: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                source = f"127.0.2.{1 + number // 50}", 0
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=source)
                try:
                    self.opened += 1
                    writer.write(b"GET / HTTP/1.1\r\nHost")
                    await reader.read()
                    self.closed += 1
                finally:
                    writer.close()
            await asyncio.sleep(0.5)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_four_hundred_half_open_connections_leave_room_for_probes_clients_and_the_exchange(tmp_path):
    async with FakeBitget(ScaledClock(), [FakeMarket(symbol=BTC, tape=Synthetic(7))]) as fake:
        config = {
            "exchanges": {"bitget": {"symbols": ["BTC/USDT"], "ws_url": fake.ws_url, "rest_url": fake.rest_url}},
            "ingest": {"backfill": "0s"},
            "server": {"warmup_wait": "0s"},
            "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
        }
        with Daemon(tmp_path) as daemon:
            await asyncio.to_thread(daemon.start, config, open_files=256, within_s=60)
            await reconnected(fake)
            strangers = HalfOpen(daemon.port, 400)
            async with deadlines.timeout(30):
                while strangers.closed < 200:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1.0)  # so long a new one keeps its descriptor
            for _ in range(10):
                assert await asyncio.to_thread(daemon.get, "/health/live") == {"status": "pass"}
            clients: list[Any] = []
            outcomes = Counter([await attempt(daemon, clients) for _ in range(10)])
            assert outcomes["served"] >= 9, outcomes
            fake.drop_all()
            await asyncio.sleep(0.2)
            assert await reconnected(fake)
            assert all(client.state.name == "OPEN" for client in clients)
            await strangers.stop()
            await asyncio.gather(*(client.close() for client in clients))
            assert await asyncio.to_thread(daemon.stop) == 0
            assert "Traceback" not in daemon.output
