"""From now to the first candle in every dialect: each bar exactly once, the same values in all, then a clear end."""

import json
from decimal import Decimal

import pytest

from candled.clock import SystemClock
from candled.config.sections import KlinesSettings
from candled.model import Interval, fold, parse_iso_ms
from tests.api.stage import BTC, following
from tests.api.udf_adapter import Adapter
from tests.rows import MONDAY_MS, minute
from tests.serve.test_events import source

pytestmark = [pytest.mark.gen_test, pytest.mark.stage(clock=SystemClock(), klines=KlinesSettings(enabled=True))]
NUMBERS = ("open", "high", "low", "close", "volume")
Rows = list[tuple]


async def by_rest(get, interval: str) -> Rows:
    path, found = f"/api/candles?symbol=BTC/USDT&interval={interval}&limit=300", []
    while path is not None:
        page = await get(path)
        found = [(parse_iso_ms(bar["time"]), *map(bar.get, NUMBERS)) for bar in page["bars"]] + found
        path = following(path, page)
    return found


async def by_websocket(connect, interval: str) -> Rows:
    found: Rows = []
    async with connect("/ws") as ws:
        end, before = False, {}
        while not end:
            request = {"type": "history", "symbol": "BTC/USDT", "interval": interval, "limit": 300, "id": 1, **before}
            await ws.send(json.dumps(request))
            page = json.loads(await ws.recv(), parse_float=Decimal, parse_int=Decimal)
            found = [(parse_iso_ms(bar["time"]), *map(bar.get, NUMBERS)) for bar in page["bars"]] + found
            end, before = page["end"], {"before": page["bars"][0]["time"]}
    return found


async def by_udf(get, interval: str) -> Rows:
    resolution = {"1m": "1", "5m": "5", "15m": "15", "1h": "60", "4h": "240"}.get(interval, interval)
    found, to_s = [], 10**10
    while True:
        bars, more = await Adapter(get).bars("REPLAY:BTCUSDT", resolution, 0, to_s, 300)
        if more["noData"]:
            return found
        found = [(bar["time"], *map(bar.get, NUMBERS)) for bar in bars] + found
        to_s = bars[0]["time"] // 1000


async def by_klines(get, interval: str) -> Rows:
    """Backwards by `endTime`, as bots page."""
    found, end = [], ""
    while True:
        rows = await get(f"/api/v3/klines?symbol=BTCUSDT&interval={interval.lower()}&limit=300{end}")
        if not rows:
            return found
        found = [(int(row[0]), *map(Decimal, row[1:6])) for row in rows] + found
        end = f"&endTime={int(rows[0][0]) - 1}"


async def by_csv(fetch, interval: str) -> Rows:
    answer = await fetch(f"/api/candles?symbol=BTC/USDT&interval={interval}&format=csv")
    lines = answer.body.decode().splitlines()[1:]
    return [(int(cells[0]), *map(Decimal, cells[1:6])) for cells in (line.split(",") for line in lines)]


GAPPY = [
    minute(number, close=f"10.{number:06}", volume=f"{number}.25", final=True)
    for number in range(3200)
    if number % 101 != 50 and not 1500 <= number < 1630
]


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["1m", "5m", "1h", "1D", "1W"])
@pytest.mark.stage(minutes={BTC: GAPPY})
async def test_every_dialect_has_the_same_bars_from_now_to_the_first(stage, fetch, get, connect, interval):
    stage.push(minute(3200, close="9", volume="0.1"))
    everything = [*GAPPY, minute(3200, close="9", volume="0.1")]
    length = Interval.parse(interval)
    buckets: dict[int, list] = {}
    for candle in everything:
        buckets.setdefault(length.floor(candle.open_ms), []).append(candle)
    wanted = [(open_ms, *fold(parts, open_ms).values[:5]) for open_ms, parts in sorted(buckets.items())]
    assert await by_rest(get, interval) == wanted
    assert await by_websocket(connect, interval) == wanted
    assert await by_udf(get, interval) == wanted
    assert await by_klines(get, interval) == wanted
    assert await by_csv(fetch, interval) == wanted


LONG_CLOSE, LONG_VOLUME = "67160.25559653090524111836", "0.1234567890123456789"  # more digits than a float has


async def by_subscription(stage, connect) -> list[dict]:
    """The bars of `initial`, `update`, `resumed` and `history`, as a client reads them whose numbers are floats."""
    wanted = {"symbol": "BTC/USDT", "interval": "1m", "numbers": "string"}
    async with connect("/ws") as ws:

        async def ask(**message) -> dict:
            await ws.send(json.dumps({**wanted, **message}))
            return json.loads(await ws.recv())

        initial = await ask(type="subscribe", initialBars=1, fields=["seq"])
        history = await ask(type="history", limit=1)
        stage.push(minute(1, close=LONG_CLOSE, volume=LONG_VOLUME))
        update = json.loads(await ws.recv())
        resume = {"epoch": "one", "seq": 0, "time": MONDAY_MS}
        resumed = await ask(type="subscribe", fields=["seq", "final"], resume=resume)
    assert [one["type"] for one in (initial, history, update, resumed)] == ["initial", "history", "update", "resumed"]
    return [initial["bars"][0], history["bars"][0], update["bar"], *resumed["bars"]]


async def by_events(http_port) -> list[dict]:
    async with source(http_port, "/events?symbol=BTC/USDT&interval=1m&initialBars=1&numbers=string") as events:
        return (await events.event())["bars"]


@pytest.mark.stage(minutes={BTC: [minute(0, close=LONG_CLOSE, volume=LONG_VOLUME, final=True)]})
async def test_strings_keep_the_digits_that_a_float_loses(stage, connect, http_port):
    assert json.loads(LONG_CLOSE) != Decimal(LONG_CLOSE)
    for bars in (await by_subscription(stage, connect), await by_events(http_port)):
        assert bars
        assert {(bar["close"], bar["volume"], bar["open"]) for bar in bars} == {(LONG_CLOSE, LONG_VOLUME, "10")}
