"""From now to the first candle in every dialect: each bar exactly once, the same values in all, then a clear end."""

import json
from decimal import Decimal

import pytest
import websockets

from candled.clock import SystemClock
from candled.config import KlinesSettings
from candled.model import Interval, fold, parse_iso_ms
from tests.api.stage import BTC, Stage, following, stage
from tests.api.udf_adapter import Adapter
from tests.rows import MONDAY_MS, minute
from tests.serve.test_events import source

NUMBERS = ("open", "high", "low", "close", "volume")
Rows = list[tuple]


async def by_rest(one: Stage, interval: str) -> Rows:
    path, found = f"/api/candles?symbol=BTC/USDT&interval={interval}&limit=300", []
    while path is not None:
        page = await one.get(path)
        found = [(parse_iso_ms(bar["time"]), *map(bar.get, NUMBERS)) for bar in page["bars"]] + found
        path = following(path, page)
    return found


async def by_websocket(one: Stage, interval: str) -> Rows:
    found: Rows = []
    async with websockets.connect(f"ws://127.0.0.1:{one.port}/ws", max_size=None) as ws:
        end, before = False, {}
        while not end:
            request = {"type": "history", "symbol": "BTC/USDT", "interval": interval, "limit": 300, "id": 1, **before}
            await ws.send(json.dumps(request))
            page = json.loads(await ws.recv(), parse_float=Decimal, parse_int=Decimal)
            found = [(parse_iso_ms(bar["time"]), *map(bar.get, NUMBERS)) for bar in page["bars"]] + found
            end, before = page["end"], {"before": page["bars"][0]["time"]}
    return found


async def by_udf(one: Stage, interval: str) -> Rows:
    resolution = {"1m": "1", "5m": "5", "15m": "15", "1h": "60", "4h": "240"}.get(interval, interval)
    found, to_s = [], 10**10
    while True:
        bars, more = await Adapter(one).bars("REPLAY:BTCUSDT", resolution, 0, to_s, 300)
        if more["noData"]:
            return found
        found = [(bar["time"], *map(bar.get, NUMBERS)) for bar in bars] + found
        to_s = bars[0]["time"] // 1000


async def by_klines(one: Stage, interval: str) -> Rows:
    """Backwards by `endTime`, as bots page."""
    found, end = [], ""
    while True:
        rows = await one.get(f"/api/v3/klines?symbol=BTCUSDT&interval={interval.lower()}&limit=300{end}")
        if not rows:
            return found
        found = [(int(row[0]), *map(Decimal, row[1:6])) for row in rows] + found
        end = f"&endTime={int(rows[0][0]) - 1}"


async def by_csv(one: Stage, interval: str) -> Rows:
    answer = await one.ask(f"/api/candles?symbol=BTC/USDT&interval={interval}&format=csv")
    lines = answer.body.decode().splitlines()[1:]
    return [(int(cells[0]), *map(Decimal, cells[1:6])) for cells in (line.split(",") for line in lines)]


@pytest.mark.parametrize("interval", ["1m", "5m", "1h", "1D", "1W"])
async def test_every_dialect_tells_the_same_bars_from_now_to_the_first(tmp_path, interval):
    numbers = [number for number in range(3200) if number % 101 != 50 and not 1500 <= number < 1630]
    minutes = [minute(number, close=f"10.{number:06}", volume=f"{number}.25", final=True) for number in numbers]
    settings = KlinesSettings(enabled=True)
    async with stage(tmp_path, {BTC: minutes}, clock=SystemClock(), klines=settings) as one:
        one.push(minute(3200, close="9", volume="0.1"))
        everything = [*minutes, minute(3200, close="9", volume="0.1")]
        length = Interval.parse(interval)
        buckets: dict[int, list] = {}
        for candle in everything:
            buckets.setdefault(length.floor(candle.open_ms), []).append(candle)
        wanted = [(open_ms, *fold(parts, open_ms).values[:5]) for open_ms, parts in sorted(buckets.items())]
        for read in (by_rest, by_websocket, by_udf, by_klines, by_csv):
            assert await read(one, interval) == wanted, read.__name__


LONG_CLOSE, LONG_VOLUME = "67160.25559653090524111836", "0.1234567890123456789"  # more digits than a float has


async def by_subscription(one: Stage) -> list[dict]:
    """The bars of `initial`, `update`, `resumed` and `history`, as a client reads them whose numbers are floats."""
    wanted = {"symbol": "BTC/USDT", "interval": "1m", "numbers": "string"}
    async with websockets.connect(f"ws://127.0.0.1:{one.port}/ws") as ws:

        async def ask(**message) -> dict:
            await ws.send(json.dumps({**wanted, **message}))
            return json.loads(await ws.recv())

        initial = await ask(type="subscribe", initialBars=1, fields=["seq"])
        history = await ask(type="history", limit=1)
        one.push(minute(1, close=LONG_CLOSE, volume=LONG_VOLUME))
        update = json.loads(await ws.recv())
        resume = {"epoch": "one", "seq": 0, "time": MONDAY_MS}
        resumed = await ask(type="subscribe", fields=["seq", "final"], resume=resume)
    assert [one["type"] for one in (initial, history, update, resumed)] == ["initial", "history", "update", "resumed"]
    return [initial["bars"][0], history["bars"][0], update["bar"], *resumed["bars"]]


async def by_events(one: Stage) -> list[dict]:
    async with source(one, "/events?symbol=BTC/USDT&interval=1m&initialBars=1&numbers=string") as events:
        return (await events.event())["bars"]


async def test_strings_keep_the_digits_that_a_float_loses(tmp_path):
    stored = [minute(0, close=LONG_CLOSE, volume=LONG_VOLUME, final=True)]
    assert json.loads(LONG_CLOSE) != Decimal(LONG_CLOSE)
    async with stage(tmp_path, {BTC: stored}, clock=SystemClock()) as one:
        for read in (by_subscription, by_events):
            bars = await read(one)
            assert bars
            assert {(bar["close"], bar["volume"], bar["open"]) for bar in bars} == {(LONG_CLOSE, LONG_VOLUME, "10")}
