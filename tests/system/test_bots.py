"""What bots are written with reads a running daemon on the replay, and agrees with the recording candle for candle."""

import asyncio
import csv
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import websockets

from candled.model import MINUTE_MS, Candle, Interval, fold, parse_iso_ms
from plugins.replay.exchange import read_recording
from plugins.replay.recording import Recording
from tests import deadlines
from tests.lazy import LazyModule
from tests.system.binance_libraries import snippet, watch, without_proxies
from tests.system.daemon import Daemon

pytestmark = pytest.mark.usefixtures("daemon")

ccxt, ccxt_async, ccxt_pro = LazyModule("ccxt"), LazyModule("ccxt.async_support"), LazyModule("ccxt.pro")
pandas, python_binance = LazyModule("pandas"), LazyModule("binance")

ROOT = Path(__file__).parents[2]
DAY_MS = 86_400_000


@cache
def recording() -> Recording:
    return read_recording("bundled:binance-spot-btcusdt")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on the replay, as in the demo, whose history is complete."""
    directory = tmp_path_factory.mktemp("bots")
    config = {
        "exchanges": {"replay": {"symbols": ["BTC/USDT", "ETH/USDT"], "speed": 30}},  # a minute every two seconds
        "ingest": {"backfill": "2d"},
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
        "klines": {"enabled": True},
        "limits": {"api_requests": 0},
    }
    with Daemon(directory) as one:
        health = one.start(config)
        deadline = deadlines.now() + 60
        while any(facts.get("missingMinutes", 1) or not facts["completeFrom"] for facts in symbols(health)):
            assert deadlines.now() < deadline, one.output
            time.sleep(0.2)
            health = one.get("/health?verbose")
        time.sleep(1.0)  # until what was fetched is in memory
        yield one


def symbols(health: dict[str, Any]) -> list[dict[str, Any]]:
    return list(health["exchanges"]["replay"]["symbols"].values())


def beginning(daemon: Daemon) -> int:
    return min(parse_iso_ms(facts["completeFrom"]) for facts in symbols(daemon.get("/health?verbose")))


def recorded(interval: str, start_ms: int, end_ms: int) -> dict[int, Candle]:
    """The bars that are over at `end_ms`, made of the recording without candled's store, memory or server."""
    length = Interval.parse(interval)
    buckets: dict[int, list[Candle]] = {}
    for candle in recording().minutes_between(start_ms, end_ms, end_ms):
        buckets.setdefault(length.floor(candle.open_ms), []).append(candle)
    return {
        open_ms: fold(parts, open_ms)
        for open_ms, parts in buckets.items()
        if open_ms >= start_ms and open_ms + length.ms <= end_ms
    }


def over_at(daemon: Daemon) -> int:
    """Until when everything is over and stored for certain."""
    return parse_iso_ms(symbols(daemon.get("/health?verbose"))[0]["newestMinute"]) - MINUTE_MS


@pytest.fixture
def spot(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """python-binance's client for the daemon; it makes an event loop for each instance, which it does not close."""
    client = python_binance.Client  # imports the library, without its warnings
    loop = asyncio.new_event_loop()
    for module in ("base_client", "ws.reconnecting_websocket"):
        monkeypatch.setattr(f"binance.{module}.get_loop", lambda: loop)
    monkeypatch.setattr(client, "API_URL", f"{daemon.url}/api")
    yield client
    loop.close()


@pytest.fixture
def binance(daemon: Daemon) -> Any:
    client = ccxt.binance({"options": {"fetchMarkets": {"types": ["spot"]}}})
    client.urls["api"]["public"] = f"{daemon.url}/api/v3"
    return client


@pytest.mark.parametrize(("timeframe", "interval"), [("1m", "1m"), ("15m", "15m"), ("1h", "1h"), ("1d", "1D")])
def test_ccxt_pages_from_the_first_candle_to_now(daemon, binance, timeframe, interval):
    first_ms, length_ms = beginning(daemon), Interval.parse(interval).ms
    found: list[list[float]] = []
    since = first_ms
    while rows := binance.fetch_ohlcv("BTC/USDT", timeframe, since=since, limit=1000):
        found += rows
        since = rows[-1][0] + length_ms
    over_ms = over_at(daemon)
    wanted = recorded(interval, first_ms, over_ms)
    assert [row[0] for row in found] == sorted({row[0] for row in found})
    agreed = {row[0]: row[1:] for row in found if row[0] in wanted}
    assert agreed == {open_ms: [float(number) for number in bar.values[:5]] for open_ms, bar in wanted.items()}
    assert len(wanted) >= (over_ms - first_ms) // length_ms - 1


def test_ccxt_reads_the_markets_and_their_precision(binance):
    markets = binance.load_markets()
    assert sorted(markets) == ["BTC/USDT", "ETH/USDT"]
    market = markets["BTC/USDT"]
    assert (market["id"], market["active"], market["spot"]) == ("BTCUSDT", True, True)
    assert (market["precision"]["price"], market["precision"]["amount"]) == (0.01, 0.000001)
    with pytest.raises(ccxt.BadSymbol):
        binance.public_get_klines({"symbol": "NOPE", "interval": "1m"})


def test_python_binance_reads_history_that_agrees_with_the_recording(daemon, spot):
    client = spot()
    assert client.get_exchange_info()["timezone"] == "UTC"
    assert abs(client.get_server_time()["serverTime"] - time.time() * 1000) < 5000
    first_ms = beginning(daemon)
    rows = client.get_historical_klines("BTCUSDT", client.KLINE_INTERVAL_5MINUTE, 0)
    wanted = recorded("5m", first_ms, over_at(daemon))
    assert rows[0][0] == first_ms
    assert {row[0]: tuple(map(Decimal, row[1:6])) for row in rows if row[0] in wanted} == {
        open_ms: bar.values[:5] for open_ms, bar in wanted.items()
    }
    assert {row[6] - row[0] for row in rows} == {5 * MINUTE_MS - 1}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl: install your system's curl package")
def test_curl_reads_a_table_that_agrees_with_the_recording(daemon):
    url = f"{daemon.url}/api/candles?symbol=BTC/USDT&interval=5m&format=csv&from={beginning(daemon)}"
    over_ms = over_at(daemon)
    text = subprocess.run(["curl", "-sS", "--fail", url], capture_output=True, text=True, check=True).stdout
    found = {int(row["time_ms"]): row for row in csv.DictReader(text.splitlines())}
    wanted = recorded("5m", beginning(daemon), over_ms)
    assert len(wanted) > 500
    for open_ms, bar in wanted.items():
        values = [Decimal(found[open_ms][name]) for name in ("open", "high", "low", "close", "volume")]
        assert values == list(bar.values[:5])


async def test_a_websocket_reads_bars_that_agree_with_the_recording(daemon):
    over_ms = over_at(daemon)
    async with websockets.connect(daemon.ws_url, max_size=None) as socket:
        request = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "15m", "initialBars": 1000}
        await socket.send(json.dumps(request))
        initial = json.loads(await deadlines.wait_for(socket.recv(), 20), parse_float=Decimal)
    wanted = recorded("15m", beginning(daemon), over_ms)
    found = {parse_iso_ms(bar["time"]): bar for bar in initial["bars"]}
    assert len(wanted.keys() & found.keys()) > 180
    for open_ms in wanted.keys() & found.keys():
        bar = found[open_ms]
        values = [bar["open"], bar["high"], bar["low"], bar["close"], bar["volume"]]
        assert values == list(wanted[open_ms].values[:5])


# ---------------------------------------------------------------- streams


async def test_ccxt_watches_bars_that_agree_with_the_recording(daemon):
    client = ccxt_pro.binance(
        {
            "urls": {
                "api": {"public": f"{daemon.url}/api/v3", "ws": {"spot": f"ws://127.0.0.1:{daemon.port}/ws/stream"}}
            },
            "options": {"fetchMarkets": {"types": ["spot"]}},
            "newUpdates": False,
        }
    )
    rows: list[list[float]] = []
    try:
        while len(rows) < 4:
            rows = await deadlines.wait_for(client.watch_ohlcv("BTC/USDT", "1m"), 30)
    finally:
        await client.close()
    assert [row[0] for row in rows] == list(range(int(rows[0][0]), int(rows[-1][0]) + 1, MINUTE_MS))
    wanted = recorded("1m", int(rows[0][0]), int(rows[-1][0]))
    assert {row[0]: row[1:] for row in rows[:-1]} == {
        open_ms: [float(number) for number in bar.values[:5]] for open_ms, bar in wanted.items()
    }


async def test_python_binance_hears_each_bar_end_once_and_as_recorded(daemon, monkeypatch):
    monkeypatch.setattr(python_binance.AsyncClient, "API_URL", f"{daemon.url}/api")
    monkeypatch.setattr(python_binance.BinanceSocketManager, "STREAM_URL", f"ws://127.0.0.1:{daemon.port}/")
    client = await python_binance.AsyncClient.create()
    ends: list[dict[str, Any]] = []
    try:
        async with python_binance.BinanceSocketManager(client).kline_socket("BTCUSDT", interval="1m") as stream:
            while len(ends) < 3:
                kline = (await deadlines.wait_for(stream.recv(), 30))["k"]
                ends += [kline] if kline["x"] else []
    finally:
        await client.close_connection()
    times = [kline["t"] for kline in ends]
    assert times == list(range(times[0], times[-1] + 1, MINUTE_MS))
    wanted = recorded("1m", times[0], times[-1] + MINUTE_MS)
    assert {kline["t"]: tuple(Decimal(kline[key]) for key in "ohlcv") for kline in ends} == {
        open_ms: bar.values[:5] for open_ms, bar in wanted.items()
    }


async def watched_by_ccxt(daemon: Daemon, interval: str) -> list[dict[str, Any]]:
    """As `watch` of the libraries that run in a process of their own."""
    spot = f"ws://127.0.0.1:{daemon.port}/ws/stream"
    urls = {"api": {"public": f"{daemon.url}/api/v3", "ws": {"spot": spot}}}
    client = ccxt_pro.binance({"urls": urls, "options": {"fetchMarkets": {"types": ["spot"]}}})
    try:
        await client.load_markets()
        begun = time.monotonic()
        found = []
        for _ in range(2):
            row = (await deadlines.wait_for(client.watch_ohlcv("BTC/USDT", interval), 30))[-1]
            found.append({"time": row[0], "close": row[4]})
        return found
    except ccxt.ExchangeError as error:
        return [{"refused": str(error), "ms": (time.monotonic() - begun) * 1000}]
    finally:
        await client.close()


@pytest.mark.parametrize("library", ["ccxt for Python", "ccxt", "binance-connector", "binance-api-node"])
async def test_a_library_is_sent_bars_and_told_of_an_interval_that_is_not_configured(daemon, library):
    async def of(interval: str) -> list[dict[str, Any]]:
        if library == "ccxt for Python":
            return await watched_by_ccxt(daemon, interval)
        return await watch(library, daemon.port, interval)

    bars = await of("1m")
    assert len(bars) == 2
    assert bars[0]["time"] <= bars[1]["time"] + MINUTE_MS
    assert all(bar["time"] % MINUTE_MS == 0 and 10_000 < bar["close"] < 1_000_000 for bar in bars)
    (refused,) = await of("3m")
    assert "unknown stream btcusdt@kline_3m" in refused["refused"]
    assert refused["ms"] < 3000


# ---------------------------------------------------------------- the page


def blocks(language: str) -> list[str]:
    """What docs/how-to/bots.md shows in a language, for a daemon on another port."""
    page = (ROOT / "docs" / "how-to" / "bots.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.+?)^```", page, re.MULTILINE | re.DOTALL)


def here(code: str, daemon: Daemon) -> str:
    """A snippet for the daemon of the tests."""
    assert "localhost:7000" in code
    return code.replace("localhost:7000", f"127.0.0.1:{daemon.port}")


@pytest.mark.parametrize("code", [code for code in blocks("python") if "binance.websocket" not in code])
@pytest.mark.usefixtures("spot")
def test_the_snippets_of_the_page_run(daemon, capsys, code):
    exec(compile(here(code, daemon), "docs/how-to/bots.md", "exec"), {})
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize("language", ["python", "js"])
def test_the_snippets_of_other_libraries_run(daemon, language):
    (code,) = [code for code in blocks(language) if language == "js" or "binance.websocket" in code]
    command, more = snippet(language, here(code, daemon))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**without_proxies(), **more})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\n") >= 3


def installed(program: str) -> Path:
    """A program of `make bots`, or no test."""
    path = ROOT / ".bots" / program
    if not path.exists():
        pytest.skip(f"{program} is not installed: make bots")
    return path


@pytest.mark.slow
def test_freqtrade_downloads_and_backtests_as_the_page_says(daemon, tmp_path):
    freqtrade = installed("freqtrade/bin/freqtrade")
    (settings,), (commands,) = blocks("json"), blocks("sh")
    (tmp_path / "config.json").write_text(settings.replace("localhost:7000", f"127.0.0.1:{daemon.port}"))
    output = ""
    for command in commands.splitlines():
        words = [str(freqtrade), *shlex.split(command)[1:]]
        ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        output = ended.stdout + ended.stderr
        assert ended.returncode == 0, output
        assert "ERROR" not in output
    assert "Result for strategy SampleStrategy" in output
    for timeframe in ("1m", "5m"):
        table = pandas.read_feather(tmp_path / "user_data" / "data" / "binance" / f"BTC_USDT-{timeframe}.feather")
        found = {int(row[0].timestamp() * 1000): tuple(row[1:6]) for row in table.itertuples(index=False)}
        wanted = recorded(timeframe, min(found), max(found))
        assert len(wanted) > 1440 / Interval.parse(timeframe).ms * MINUTE_MS * 0.9
        assert found == {
            **{open_ms: tuple(map(float, bar.values[:5])) for open_ms, bar in wanted.items()},
            max(found): found[max(found)],
        }


READ_BY_NAUTILUS = """
import asyncio, json, sys
from nautilus_trader.adapters.binance.common.enums import BinanceAccountType, BinanceKlineInterval
from nautilus_trader.adapters.binance.http.client import BinanceHttpClient
from nautilus_trader.adapters.binance.spot.http.market import BinanceSpotMarketHttpAPI
from nautilus_trader.adapters.binance.spot.providers import BinanceSpotInstrumentProvider
from nautilus_trader.common.component import LiveClock
from nautilus_trader.model.data import BarType

async def main():
    clock = LiveClock()
    client = BinanceHttpClient(clock=clock, api_key="", api_secret="", base_url=sys.argv[1])
    market = BinanceSpotMarketHttpAPI(client, BinanceAccountType.SPOT)
    provider = BinanceSpotInstrumentProvider(client=client, clock=clock, account_type=BinanceAccountType.SPOT)
    for symbol in (await market.query_spot_exchange_info()).symbols:
        provider._parse_instrument(symbol, fee=None, ts_event=0)
    kind = BarType.from_str("BTCUSDT.BINANCE-1-MINUTE-LAST-EXTERNAL")
    bars = await market.request_binance_bars(kind, interval=BinanceKlineInterval.MINUTE_1, start_time=int(sys.argv[2]))
    instruments = {str(one.id): [str(one.price_increment), str(one.size_increment)] for one in provider.list_all()}
    rows = {bar.ts_event: [str(bar.open), str(bar.high), str(bar.low), str(bar.close), str(bar.volume)] for bar in bars}
    print(json.dumps({"instruments": instruments, "bars": rows}))

asyncio.run(main())
"""


@pytest.mark.slow
def test_nautilus_traders_typed_decoders_read_markets_and_bars(daemon):
    python, over_ms = installed("nautilus_trader/bin/python"), over_at(daemon)
    start_ms = over_ms - 100 * MINUTE_MS
    command = [str(python), "-c", READ_BY_NAUTILUS, daemon.url, str(start_ms)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    read = json.loads(ended.stdout.splitlines()[-1])
    assert read["instruments"]["BTCUSDT.BINANCE"] == ["0.01", "0.000001"]
    assert set(read["instruments"]) == {"BTCUSDT.BINANCE", "ETHUSDT.BINANCE"}
    wanted = recorded("1m", start_ms, over_ms)
    found = {int(at) // 10**6 + 1 - MINUTE_MS: tuple(map(Decimal, numbers)) for at, numbers in read["bars"].items()}
    assert len(wanted) == 100
    assert {open_ms: found[open_ms] for open_ms in wanted} == {at: bar.values[:5] for at, bar in wanted.items()}


async def test_freqtrades_settings_make_a_ccxt_that_reads_here(daemon):
    (text,) = blocks("json")
    config = json.loads(text.replace("localhost:7000", f"127.0.0.1:{daemon.port}"))["exchange"]
    client = getattr(ccxt_async, config["name"])(config["ccxt_config"])
    try:
        rows = await client.fetch_ohlcv(config["pair_whitelist"][0], "1m", limit=5)
    finally:
        await client.close()
    assert len(rows) == 5
