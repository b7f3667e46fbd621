"""A daemon in this process whose internal port is asked, and its metrics as values."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import AsyncHTTPClient

from candled import config
from candled.app import Daemon
from candled.clock import SystemClock
from candled.exchange import Clock
from candled.plugins import discover
from tests import deadlines, tiers

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read_series(text: str) -> Series:
    """Return the value of each series, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Deployment:
    """A running daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._is_stopped = False

    async def stop(self) -> None:
        """Stop the daemon, once."""
        if not self._is_stopped:
            self._is_stopped = True
            await self.daemon.stop()

    async def get(self, path: str, *, public: bool = False) -> str:
        port = self.daemon.port if public else self.daemon.internal_port
        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}{path}", raise_error=False)
        return answer.body.decode()

    async def scrape(self) -> str:
        return await self.get("/metrics")

    async def value(self, name: str, **labels: str) -> float | None:
        """The value of one series; None if it does not exist."""
        return read_series(await self.scrape()).get((f"candled_{name}", frozenset(labels.items())))

    async def until(self, name: str, value: float, within_s: float = 20.0, **labels: str) -> None:
        """Wait until a series has at least this value."""
        async with deadlines.timeout(within_s):
            while (found := await self.value(name, **labels)) is None or found < value:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    directory: Path,
    exchanges: Mapping[str, Any] | None = None,
    *,
    clock: Clock | None = None,
    sections: Mapping[str, Any] | None = None,
    **server: Any,
) -> AsyncIterator[Deployment]:
    """Run a daemon, by default on the replay, with more settings of `server` and other sections."""
    tiers.require("daemon")
    document = {
        "server": {"host": "127.0.0.1", "port": 0, "internal_port": 0, **server},
        "exchanges": exchanges or {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
        **(sections or {}),
    }
    path = directory / "candled.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    plugins = discover()
    deployment = Deployment(Daemon(config.load(path, {}, plugins), plugins, clock or SystemClock()))
    try:
        await deployment.daemon.start()
        yield deployment
    finally:
        await deployment.stop()
