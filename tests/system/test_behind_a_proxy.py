"""The daemon in a network where only a proxy reaches the exchange: TLS, REST and WebSocket go through it."""

import asyncio
import json
from typing import Any

import pytest

from candled.model import Symbol
from tests import deadlines
from tests.certificates import Authority
from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.proxies import FakeProxy
from tests.fakes.tapes import Synthetic
from tests.system.daemon import Daemon

pytestmark = [pytest.mark.usefixtures("daemon"), pytest.mark.timeout(900)]
BTC = Symbol.parse("BTC/USDT")
HOST = "exchange.test"  # only the proxy knows it


async def until_live(daemon: Daemon, within_s: float = 60.0) -> dict[str, Any]:
    """Wait until the symbol is live and its history is there; return its part of `/health`."""
    async with deadlines.timeout(within_s):
        while True:
            health = await asyncio.to_thread(daemon.get, "/health?verbose")
            symbol: dict[str, Any] = health["exchanges"]["bitget"]["symbols"].get("BTC/USDT", {})
            if symbol.get("state") == "live" and symbol.get("missingMinutes") == 0:
                return symbol
            await asyncio.sleep(0.2)


@pytest.mark.parametrize(
    ("kind", "is_setting"),
    [("http", False), ("http", True), ("socks5h", True)],
    ids=["environment", "setting", "SOCKS"],
)
async def test_the_exchange_is_read_through_the_proxy(tmp_path, kind, is_setting):
    authority = Authority(tmp_path)
    fake = FakeBitget(ScaledClock(), [FakeMarket(symbol=BTC, tape=Synthetic(7))])
    await fake.start(certificate=authority.sign(HOST))
    try:
        async with FakeProxy(kind, {HOST: fake.port}, "ann:s3cret") as proxy:
            url = proxy.url("ann:s3cret")
            exchange = {"symbols": ["BTC/USDT"], "ws_url": f"wss://{HOST}/v2/ws/public", "rest_url": f"https://{HOST}"}
            config = {
                "exchanges": {"bitget": {**exchange, **({"proxy": url} if is_setting else {})}},
                "ingest": {"backfill": "1h"},
                "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
                "log": {"level": "debug"},
            }
            env = {
                "SSL_CERT_FILE": str(authority.certificate),
                "HTTPS_PROXY": "http://127.0.0.1:1" if is_setting else url,
            }
            with Daemon(tmp_path) as daemon:
                await asyncio.to_thread(daemon.start, config, env=env, within_s=60)
                await until_live(daemon)
                assert set(proxy.asked) == {f"{HOST}:443"}
                assert len(proxy.asked) >= 2  # REST, and the stream
                assert fake.open_connections == 1
                assert f"connected to {HOST} through {proxy.url()} for 1 symbols" in daemon.output

                proxy.fault = "forbidden"
                proxy.cut()
                async with deadlines.timeout(60):
                    while "does not connect to exchange.test:443" not in daemon.output:
                        await asyncio.sleep(0.2)
                health = await asyncio.to_thread(daemon.get, "/health?verbose")
                assert f"the proxy {kind}://127.0.0.1:{proxy.port}" in daemon.output
                proxy.fault = ""
                await until_live(daemon)
                assert await asyncio.to_thread(daemon.stop) == 0
                assert "s3cret" not in daemon.output + json.dumps(health)
                assert "Traceback" not in daemon.output
    finally:
        await fake.close()
