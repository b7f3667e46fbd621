"""The whole daemon in the test's own process, against the fake Bitget, on a clock that runs faster."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import websockets
import yaml

from candled import config as settings
from candled.app import Daemon
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Symbol, fold
from candled.plugins import discover
from candled.protocol.messages import bar_text
from candled.store import make_store
from tests import deadlines, tiers
from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget
from tests.passes import run_through

MONDAY_MORNING_MS = 1_759_730_400_000  # 2025-10-06T06:00Z
PLUGINS = discover()


class Chart:
    """The documented JavaScript client, in Python: what it would show."""

    def __init__(self, symbol: str, interval: str, bars: int) -> None:
        self.request = {"type": "subscribe", "symbol": symbol, "interval": interval, "initialBars": bars}
        self.bars: list[dict[str, Any]] = []
        self.initials = 0

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "initial":
            self.initials += 1
            self.bars = message["bars"]
        elif message["type"] == "update":
            assert self.initials, "an update came before its initial"
            bar = message["bar"]
            if self.bars and self.bars[-1]["time"] == bar["time"]:
                self.bars[-1] = bar
            else:
                assert not self.bars or bar["time"] > self.bars[-1]["time"], f"back in time: {bar}"
                self.bars.append(bar)


class Rig:
    """A daemon on Bitget's fake; `check` proves store and charts against the fake's truth."""

    def __init__(
        self, directory: Path, fake: FakeBitget, clock: ScaledClock, symbols: list[Symbol], **more: Any
    ) -> None:
        self.directory = directory
        self.fake = fake
        self.clock = clock
        self.symbols = symbols
        self.more = more
        self.store_url = more.get("store_url", f"sqlite:///{directory / 'candled.db'}")
        self.started_ms = clock.now_ms()
        self.daemon: Daemon | None = None
        self.charts: list[Chart] = []
        self._readers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        tiers.require("daemon")
        path = self.directory / "candled.yaml"
        bitget = {
            "symbols": [str(symbol) for symbol in self.symbols],
            "markets": ["spot", "usdt-futures"],
            "ws_url": self.fake.ws_url,
            "rest_url": self.fake.rest_url,
            **self.more.get("bitget", {}),
        }
        document = {
            "server": {"host": "127.0.0.1", "port": 0},
            "exchanges": {"bitget": bitget},
            "ingest": {"backfill": "1h", **self.more.get("ingest", {})},
            "store": {"url": self.store_url, "journal": str(self.directory / "journal")},
            **self.more.get("sections", {}),
        }
        path.write_text(yaml.safe_dump(document), "utf-8")
        self.daemon = Daemon(settings.load(path, {}, PLUGINS), PLUGINS, self.clock)
        await self.daemon.start()

    async def stop(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        if self.daemon is not None:
            await self.daemon.stop()

    def open_chart(self, symbol: Symbol, interval: str = "1m", bars: int = 50) -> Chart:
        chart = Chart(str(symbol), interval, bars)
        self.charts.append(chart)
        self._readers.append(asyncio.ensure_future(self._follow(chart)))
        return chart

    async def reload(self, chart: Chart) -> list[dict[str, Any]]:
        """What a fresh subscription shows."""
        async with websockets.connect(f"ws://127.0.0.1:{self.daemon.port}/", max_size=None) as ws:
            await ws.send(json.dumps(chart.request))
            return json.loads(await ws.recv())["bars"]

    async def minutes(self, count: float) -> None:
        """Let so many minutes of the market pass."""
        await self.clock.sleep(count * 60)

    def health(self, symbol: Symbol) -> dict[str, Any]:
        return run_through(self.daemon.health.report())["exchanges"]["bitget"]["symbols"][str(symbol)]

    def all_are(self, key: str, value: object) -> bool:
        """Return whether `key` has this value for every symbol."""
        symbols = run_through(self.daemon.health.report())["exchanges"]["bitget"]["symbols"].values()
        return all(facts[key] == value for facts in symbols)

    async def until(self, condition, within_minutes: float = 15.0) -> None:
        deadline = deadlines.now() + within_minutes * 60 / self.clock.speed
        while not condition():
            assert deadlines.now() < deadline, json.dumps(run_through(self.daemon.health.report()), indent=1)
            await asyncio.sleep(0.05)

    # ------------------------------------------------------------ proof

    async def check(self, within_minutes: float = 20.0, symbols: list[Symbol] | None = None) -> int:
        """Wait until the store equals the truth and the charts equal a reload; return the minutes compared.

        Raises:
            AssertionError: that did not come to be; the text says what differs.
        """
        deadline = deadlines.now() + within_minutes * 60 / self.clock.speed
        while True:
            wrong = await self._differences(symbols or self.symbols)
            if not wrong:
                until_ms = self.clock.now_ms() - 3 * MINUTE_MS
                return sum(len(self._truth(symbol, until_ms)) for symbol in symbols or self.symbols)
            assert deadlines.now() < deadline, wrong
            await asyncio.sleep(0.25)  # a comparison takes long enough

    async def _differences(self, symbols: list[Symbol]) -> str:
        until_ms = MINUTE.floor(self.clock.now_ms()) - 3 * MINUTE_MS
        for symbol in symbols:
            if missing := self.health(symbol).get("missingMinutes", "all"):  # seen faster than by comparing them
                return f"{symbol}: {missing} minutes missing"
            stored = await asyncio.to_thread(self._stored, symbol, until_ms)
            truth = self._truth(symbol, until_ms)
            for open_ms in sorted(set(stored) | set(truth)):
                if stored.get(open_ms) != truth.get(open_ms):
                    return f"{symbol} {open_ms}: stored {stored.get(open_ms)}, truth {truth.get(open_ms)}"
        for chart in self.charts:
            fresh = (await self.reload(chart))[-30:]
            if chart.bars[-len(fresh) :] != fresh:
                return f"{chart.request}: shown {chart.bars[-3:]}, a reload shows {fresh[-3:]}"
        return ""

    def truth_bars(self, symbol: Symbol, interval: Interval, start_ms: int, until_ms: int) -> list[dict[str, Any]]:
        """The bars of an interval as plain folds of the truth, as a client would read them."""
        buckets: dict[int, list[Candle]] = {}
        for candle in self.fake.truth(symbol, start_ms, until_ms):
            buckets.setdefault(interval.floor(candle.open_ms), []).append(candle)
        return [json.loads(bar_text(fold(parts, open_ms))) for open_ms, parts in sorted(buckets.items())]

    def _truth(self, symbol: Symbol, until_ms: int) -> dict[int, tuple]:
        week_ms = DEFAULT_INTERVALS[-1].floor(self.started_ms)
        return {candle.open_ms: candle.values for candle in self.fake.truth(symbol, week_ms, until_ms)}

    def _stored(self, symbol: Symbol, until_ms: int) -> dict[int, tuple]:
        store = make_store(self.store_url, None)
        try:
            store.open()
            week_ms = DEFAULT_INTERVALS[-1].floor(self.started_ms)
            rows = store.read_bars_between(MarketKey("bitget", symbol), MINUTE, week_ms, until_ms)
            return {row.open_ms: row.values for row in rows}
        finally:
            store.close()

    async def _follow(self, chart: Chart) -> None:
        while True:
            with contextlib.suppress(websockets.ConnectionClosed, OSError):
                async with websockets.connect(f"ws://127.0.0.1:{self.daemon.port}/", max_size=None) as ws:
                    await ws.send(json.dumps(chart.request))
                    async for text in ws:
                        chart.take(json.loads(text))
            await asyncio.sleep(0.05)
