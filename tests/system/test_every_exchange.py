"""The whole daemon on all native exchanges together: each one's forming minute, from its socket to a client.

Bitget has a fake of its own (tests/fakes/bitget.py). The other ones answer here in their own forms, which are those of
`bench.frames` and of `tests.plugins.ccxt.answers`. Their lists of markets fail, except where a plugin needs the sizes
of contracts.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import websockets
import yaml
from tornado.httpclient import AsyncHTTPClient
from tornado.web import RequestHandler

from bench.frames import FORMS, START_MS, frame_of
from bench.frames import symbol_of as market_of
from candled import Symbol
from candled import config as settings
from candled.app import Daemon
from candled.model import MINUTE_MS, parse_iso_ms
from candled.plugins import discover
from tests import bundled, deadlines
from tests.clocks import ScaledClock
from tests.plugins.ccxt.answers import Row, answer, rows_from
from tests.plugins.local import socket_server, web_server

pytestmark = pytest.mark.usefixtures("daemon")

CONTRACTS = ["gate-usdt", "htx-usdt", "kucoin-usdt", "mexc-usdt"]
NAMES = [name for name in FORMS if name != "bitget"]
CANDLES = ("candle", "kline", "OHLC")
#: The shapes of answers of exchanges that share one.
SHAPES = {"binance-usdm": "binance", "bybit-linear": "bybit", "bybit-inverse": "bybit"}
BARS = 5


def contracts_answer(name: str, rows: Sequence[Row]) -> dict[str, Any] | str:
    """The answer of an exchange whose contracts have 0.001 coins each."""
    texts: list[Any] = []
    for row in rows:
        count, seconds = Decimal(row.volume) * 1000, row.open_ms // 1000
        if name == "gate-usdt":
            texts.append(
                {
                    "t": seconds,
                    "v": f"{count:f}",
                    "c": row.close,
                    "h": row.high,
                    "l": row.low,
                    "o": row.open,
                    "sum": "1",
                }
            )
        elif name == "htx-usdt":
            values = {"open": row.open, "close": row.close, "low": row.low, "high": row.high, "amount": row.volume}
            texts.append({"id": seconds, **values, "vol": f"{count:f}", "trade_turnover": "1", "count": 8})
        else:  # a row of KuCoin, and the columns of MEXC
            texts.append([row.open_ms, row.open, row.high, row.low, row.close, f"{count:f}"])
    if name == "gate-usdt":
        return json.dumps(texts)
    if name == "htx-usdt":
        return {"status": "ok", "ch": "market.BTC-USDT.kline.1min", "ts": START_MS, "data": texts}
    if name == "kucoin-usdt":
        return {"code": "200000", "data": texts}
    opened, *columns = zip(*texts, strict=True)
    named = dict(zip(("open", "high", "low", "close", "vol"), map(list, columns), strict=True))
    data = {"time": [at // 1000 for at in opened], **named, "amount": ["1"] * len(texts)}
    return {"success": True, "code": 0, "data": data}


def symbol_of(name: str) -> Symbol:
    return market_of(name, "BTC")


class Rest(RequestHandler):
    """The candles of the last minutes, whatever range is asked for; there are no days, and lists only of contracts."""

    ws_url = ""
    clock: ScaledClock

    def rows(self) -> list[Row]:
        return rows_from(START_MS - BARS * MINUTE_MS, BARS)

    def prepare(self) -> None:
        self.set_header("Date", formatdate(self.clock.now_ms() / 1000, usegmt=True))

    def get(self, name: str, path: str) -> None:
        body = self.request.body.decode()
        listing = FORMS[name].listing
        if listing is not None and path.endswith(("contracts", "contracts/active", "contract/detail")):
            self.finish(json.dumps(listing([symbol_of(name)])))
            return
        if not any(word in path + body for word in CANDLES):
            self.set_status(404)
            self.finish("{}")
            return
        rows = self.rows()
        if name in CONTRACTS:
            self.finish(contracts_answer(name, rows))
            return
        if name == "coinbase":
            self.finish({"candles": [{**row._asdict(), "start": str(row.open_ms // 1000)} for row in rows]})
            return
        if name == "okx":  # its plugin accepts no rows outside of the range, whose bounds are exclusive
            after, before = (int(self.get_query_argument(bound)) for bound in ("before", "after"))
            rows = [row for row in rows if after < row.open_ms < before]
        self.finish(answer(SHAPES.get(name, name), rows))

    def post(self, name: str, path: str) -> None:
        if not name.startswith("kucoin"):
            self.get(name, path)
            return
        server = {"endpoint": f"{self.ws_url}{name}", "pingInterval": 18_000, "pingTimeout": 10_000}
        self.finish({"code": "200000", "data": {"token": "t", "instanceServers": [server]}})


async def greet(peer: Any) -> str:
    """Greet, and wait for a subscription; return the exchange's name."""
    name: str = peer.request.path.strip("/").partition("?")[0]
    if name.startswith("kucoin"):
        await peer.send('{"id":"1","type":"welcome"}')
    await peer.recv()
    return name


async def serve_frames(peer: Any) -> None:
    """Send versions of the forming minute."""
    name = await greet(peer)
    with contextlib.suppress(websockets.ConnectionClosed):
        for number in range(90):
            await peer.send(frame_of(FORMS[name], symbol_of(name), number))
            await asyncio.sleep(0.2)
        await peer.wait_closed()


async def bars_of(port: int, name: str, count: int = 1) -> list[dict[str, Any]]:
    """The newest bars that a client of the daemon is shown first."""
    request = {"type": "subscribe", "exchange": name, "symbol": str(symbol_of(name)), "interval": "1m"}
    async with websockets.connect(f"ws://127.0.0.1:{port}/ws", close_timeout=0.1) as socket:
        await socket.send(json.dumps({**request, "initialBars": count}))
        bars: list[dict[str, Any]] = json.loads(await socket.recv())["bars"]
        return bars


def is_complete(bars: list[dict[str, Any]]) -> bool:
    """Whether there is the forming minute."""
    return bool(bars) and parse_iso_ms(bars[-1]["time"]) == START_MS


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    names: Sequence[str],
    server: dict[str, Any] | None = None,
    *,
    clock: ScaledClock | None = None,
    rest: type[Rest] = Rest,
    stream: Callable[[Any], Awaitable[None]] = serve_frames,
) -> AsyncIterator[Daemon]:
    """A daemon on the fakes of exchanges, with an empty store."""
    clock = clock or ScaledClock(1.0, START_MS + 100)
    async with contextlib.AsyncExitStack() as stack:
        ws_url = await stack.enter_async_context(socket_server(stream))
        handler = type("Handler", (rest,), {"ws_url": ws_url, "clock": clock})
        rest_url = await stack.enter_async_context(web_server((r"/([a-z-]+)/(.*)", handler), address="0.0.0.0"))
        exchanges = {}
        for number, name in enumerate(names, 2):
            # exchanges on one host share its budget; KuCoin gives out an address on its own host
            host = "127.0.0.1" if name.startswith("kucoin") else f"127.0.0.{number}"
            exchanges[name] = {
                "symbols": [str(symbol_of(name))],
                "rest_url": f"{rest_url.replace('127.0.0.1', host)}/{name}",
                "ws_url": f"{ws_url}{name}",
            }
        for name in exchanges.keys() & {"kucoin", "kucoin-usdt"}:
            del exchanges[name]["ws_url"]
        path = directory / "candled.yaml"
        document = {
            "server": {"host": "127.0.0.1", "port": 0, **(server or {})},
            "exchanges": exchanges,
            "ingest": {"backfill": "0s"},
            "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
        }
        path.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
        plugins = discover(bundled.ENTRY_POINTS)
        daemon = Daemon(settings.load(path, {}, plugins), plugins, clock)
        stack.push_async_callback(daemon.stop)
        await daemon.start()
        yield daemon


@pytest.mark.slow
async def test_every_exchange_is_served(tmp_path):
    shown: dict[str, list[Any]] = {}
    async with running(tmp_path, NAMES) as daemon:
        try:
            async with deadlines.timeout(30):
                while missing := [name for name in NAMES if not is_complete(shown.get(name, []))]:
                    found = await asyncio.gather(*(bars_of(daemon.port, name) for name in missing))
                    shown.update(zip(missing, found, strict=True))
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError({name: shown[name] for name in missing}) from None
    for name, bars in shown.items():
        assert str(bars[-1]["close"]).startswith("641"), name


async def test_a_client_that_wants_more_bars_than_the_exchange_has_gets_them_without_the_longest_wait(tmp_path):
    """The exchange has five minutes, and nothing proves that it has no others."""
    async with running(tmp_path, ["binance"], {"warmup_wait": "10m"}) as daemon, deadlines.timeout(20):
        bars = await bars_of(daemon.port, "binance", 50)
        url = f"http://127.0.0.1:{daemon.port}/api/candles?exchange=binance&symbol=BTC/USDT&interval=1m&limit=50"
        page = json.loads((await AsyncHTTPClient().fetch(url)).body)
    assert len(bars) >= BARS
    assert len(page["bars"]) >= BARS


class RestAfterTheMinute(Rest):
    """The minutes that are over, with the last version that the stream did not send."""

    def rows(self) -> list[Row]:
        last = Row(START_MS, "64049.3", "65001", "64000", "65000", "100.5")
        return [last] if self.clock.now_ms() >= START_MS + MINUTE_MS else []


@pytest.mark.slow
async def test_the_end_of_a_minute_of_contracts_that_the_stream_lost_is_repaired_in_base_coins(tmp_path):
    clock = ScaledClock(5.0, START_MS + 50_000)

    async def lose_the_end(peer: Any) -> None:
        name, is_first = await greet(peer), clock.now_ms() < START_MS + 59_500
        with contextlib.suppress(websockets.ConnectionClosed):
            while not is_first or clock.now_ms() < START_MS + 59_500:
                await peer.send(frame_of(FORMS[name], symbol_of(name), clock.now_ms() - START_MS))
                await asyncio.sleep(0.2)

    shown: dict[str, list[Any]] = {name: [] for name in CONTRACTS}
    async with (
        running(tmp_path, CONTRACTS, clock=clock, rest=RestAfterTheMinute, stream=lose_the_end) as daemon,
        deadlines.timeout(40),
    ):
        while not all(map(is_repaired, shown.values())):
            found = await asyncio.gather(*(bars_of(daemon.port, name, 2) for name in CONTRACTS))
            shown.update(zip(CONTRACTS, found, strict=True))
            await asyncio.sleep(0.2)
    for name, (repaired, forming) in shown.items():
        assert str(repaired["volume"]) == "100.5", name
        assert str(forming["close"]).startswith("64"), name


def is_repaired(bars: list[dict[str, Any]]) -> bool:
    """Whether the minute has its last version, and the next one is forming."""
    times = [parse_iso_ms(bar["time"]) for bar in bars]
    return times == [START_MS, START_MS + MINUTE_MS] and str(bars[0]["close"]) == "65000"
