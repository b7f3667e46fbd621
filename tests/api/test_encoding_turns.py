"""However many bars an answer has, one turn of the event loop encodes few of them."""

import asyncio
import json
import sys
from asyncio.base_events import BaseEventLoop

import pytest

from candled.api.encoding_turns import EncodingTurns
from candled.api.formats import csv_line
from candled.api.printers import klines_printer, udf_printer
from candled.api.queries import MOST_BARS
from candled.config.sections import KlinesSettings
from candled.model import MINUTE, MINUTE_MS, iso_ms
from candled.protocol.messages import bar_text
from candled.rooms.encoded_bars import EncodedBars
from tests import deadlines
from tests.api.stage import BTC
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS, minute

COUNT = 2600  # bars in the store, of which memory has about a thousand
MOST = 400  # encoded in one turn, by all parts of an answer
ENCODERS = {bar_text.__code__, csv_line.__code__, klines_printer(MINUTE).print.__code__, udf_printer().print.__code__}
END = MONDAY_MS + COUNT * MINUTE_MS
OLD = f"{MONDAY_MS}&{{}}={MONDAY_MS + 900 * MINUTE_MS}"

pytestmark = [
    pytest.mark.gen_test,
    pytest.mark.slow,
    pytest.mark.stage(minutes=COUNT, klines=KlinesSettings(enabled=True), now_ms=END),
]


class CountedTurns:
    """Counts the bars that are encoded in each turn of the running event loop. Counts nothing outside of the block."""

    def __init__(self) -> None:
        self.bars = 0
        self.most = 0
        self._now = 0

    def __enter__(self) -> "CountedTurns":
        sys.setprofile(self._note_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self.most = max(self.most, self._now)

    def _note_call(self, frame, event, _) -> None:
        if event != "call":
            return
        if frame.f_code is BaseEventLoop._run_once.__code__:
            self.most, self._now = max(self.most, self._now), 0
        elif frame.f_code in ENCODERS:
            self.bars += 1
            self._now += 1
        elif frame.f_code is EncodedBars.append_final.__code__:  # column by column, at a fifth of the cost
            self.bars += MOST_BARS
            self._now += MOST_BARS // 5


@pytest.mark.parametrize("path", [
    "/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=1000",
    "/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=1000&startTime=" + OLD.format("endTime"),
    "/api/candles?symbol=BTC/USDT&interval=1m&limit=1000",
    "/api/candles?symbol=BTC/USDT&interval=1m&limit=1000&format=csv",
    "/api/candles?symbol=BTC/USDT&interval=1m&limit=1000&format=ndjson",
    "/api/candles?symbol=BTC/USDT&interval=1m&format=csv",  # the complete range
    "/api/candles?symbol=BTC/USDT&interval=1m&format=ndjson&from=" + OLD.format("to"),
    f"/api/pages?symbol=BTC/USDT&interval=1m&page={MONDAY_MS // MINUTE_MS // 1000 + 1}",
    f"/udf/history?symbol=REPLAY:BTCUSDT&resolution=1&from=0&to={END // 1000}&countback=5000",
    f"/udf/history?symbol=REPLAY:BTCUSDT&resolution=1&from=0&to={END // 1000}&countback=2000",
])  # fmt: skip
async def test_an_answer_over_http_is_encoded_in_slices(stage, fetch, path):
    with CountedTurns() as counted:
        answer = await fetch(path)
    assert answer.code == 200
    assert counted.bars >= 900
    assert counted.most <= MOST


class PassingClock(ManualClock):
    """Time passes whenever somebody looks at it."""

    def monotonic(self) -> float:
        self._now += 0.0004
        return self._now


@pytest.mark.stage(clock=PassingClock(END))
@pytest.mark.parametrize("request_fields", [
    {"type": "subscribe", "initialBars": 1000},
    {"type": "subscribe", "initialBars": 1000, "fields": ["final"]},
    {"type": "subscribe", "initialBars": 1000, "fields": ["final"], "updates": "closed"},
    {"type": "history", "limit": 1000},
    {"type": "history", "limit": 1000, "before": iso_ms(MONDAY_MS + 1200 * MINUTE_MS)},
])  # fmt: skip
async def test_a_message_on_a_web_socket_is_encoded_in_slices(stage, connect, request_fields):
    await stage.bars.load_bars(BTC, MINUTE, 1001, 0.0)
    async with connect("/ws") as ws:
        with CountedTurns() as counted:
            await ws.send(json.dumps({"symbol": "BTC/USDT", "interval": "1m", **request_fields}))
            answer = json.loads(await deadlines.wait_for(ws.recv(), 20))
    assert answer["type"] in ("initial", "history")
    assert len(answer.get("bars", answer.get("candles", ()))) >= 900
    assert counted.bars >= 900
    assert counted.most <= MOST


async def test_bars_that_change_while_they_are_encoded_are_sent_in_their_last_state(stage, fetch):
    path = "/api/candles?symbol=BTC/USDT&interval=1m&limit=1000"
    answer = asyncio.ensure_future(fetch(path))
    for number in range(5):
        await asyncio.sleep(0.002)
        stage.push(minute(COUNT - 100 + number, volume=str(50 + number), as_of=90_000, final=True))
    await answer
    rows = {row["time"]: row["volume"] for row in json.loads((await fetch(path)).body)["bars"]}
    assert [rows[iso_ms(MONDAY_MS + (COUNT - 100 + number) * MINUTE_MS)] for number in range(5)] == [50, 51, 52, 53, 54]


async def test_requests_take_turns_one_slice_in_each_pass(stage):
    turns, passes = EncodingTurns(stage.clock), []

    async def encode(name: str, slices: int) -> None:
        def one(number: int) -> bool:
            passes.append((name, number))
            return number == slices - 1

        await turns.run(one)

    with pytest.raises(ZeroDivisionError):
        await turns.run(lambda _: 1 / 0)
    await asyncio.gather(encode("a", 3), encode("b", 1), encode("c", 2))
    assert passes == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)]
