"""Hyperliquid: everything over POST, candles without a time of sending, and weights by the rows of an answer."""

import json
from typing import ClassVar

import pytest
from tornado.web import RequestHandler

from candled import (
    MINUTE_MS,
    Candle,
    Candles,
    Event,
    ExchangeError,
    Http,
    Pong,
    RequestBudget,
    SocketFeed,
    Subscribed,
    Symbol,
    read_rows,
)
from candled.clock import SystemClock
from candled.errors import HttpRejected, Unavailable
from candled.ingest.http import HttpClient
from tests.plugins.local import recorded, recorded_answer, running, socket_server, web_server

BTC = Symbol("BTC", "USDC", "USDC")
BUDGETS = {"weight": RequestBudget(limit=1200)}


class HyperliquidFeed(SocketFeed):
    ping = '{"method":"ping"}'

    def subscribe(self, symbols):
        return [
            json.dumps({"method": "subscribe", "subscription": {"type": "candle", "coin": one.base, "interval": "1m"}})
            for one in symbols
        ]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        message = json.loads(frame)
        by_coin = {symbol.base: symbol for symbol in self.symbols}
        if message["channel"] == "pong":
            return [Pong()]
        if message["channel"] == "subscriptionResponse":
            return [Subscribed(by_coin[message["data"]["subscription"]["coin"]])]
        return [Candles(by_coin[message["data"]["s"]], (read_candle(message["data"]),))]


def read_candle(row: dict[str, str]) -> Candle:
    return Candle.parse(*(row[key] for key in "tohlcv"))


async def fetch_history(http: Http, url: str, coin: str, start_ms: int, end_ms: int):
    rows = (end_ms - start_ms) // MINUTE_MS
    request = {"coin": coin, "interval": "1m", "startTime": start_ms, "endTime": end_ms - 1}
    body = {"type": "candleSnapshot", "req": request}
    answer = await http.post_json(f"{url}/info", body, weight=20 + rows / 60, budget="weight")
    return read_rows(answer, read_candle, open_ms=lambda row: int(row["t"]))


class Info(RequestHandler):
    bodies: ClassVar[list[object]] = []
    answer: tuple[int, str] = (200, "[]")

    def post(self) -> None:
        assert self.request.headers["Content-Type"] == "application/json"
        Info.bodies.append(json.loads(self.request.body))
        self.set_status(self.answer[0])
        self.finish(self.answer[1])


@pytest.fixture
async def http():
    client = HttpClient(SystemClock(), 100.0, budgets=BUDGETS)
    yield client
    client.close()


async def test_recorded_rows_are_asked_for_with_post(http, monkeypatch):
    rows = recorded_answer("languages/hyperliquid_rest.json")
    monkeypatch.setattr(Info, "answer", (200, json.dumps(rows)))
    Info.bodies.clear()
    async with web_server(("/info", Info)) as url:
        candles = await fetch_history(http, url, "@184", 1761728400000, 1761736850000)
    assert [(candle.open_ms, str(candle.open)) for candle in candles] == [
        (1761728400000, "0.020729"),
        (1761732000000, "0.0207"),
    ]
    assert Info.bodies == [
        {
            "type": "candleSnapshot",
            "req": {"coin": "@184", "interval": "1m", "startTime": 1761728400000, "endTime": 1761736849999},
        }
    ]
    (host,) = http.describe().values()
    assert 0 <= host["budgets"]["weight"] < 0.5


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, "[" * 100_000, ExchangeError),
        (200, "Failed to deserialize the JSON body into the target type", ExchangeError),
        (422, "{}", HttpRejected),
        (429, "{}", Unavailable),
        (502, "<html>", Unavailable),
        (302, "{}", HttpRejected),
    ],
)
async def test_answers_to_post_are_judged_like_those_to_get(status, body, error, http, monkeypatch):
    monkeypatch.setattr(Info, "answer", (status, body))
    async with web_server(("/info", Info)) as url:
        with pytest.raises(error):
            await fetch_history(http, url, "BTC", 0, 60 * MINUTE_MS)


async def test_recorded_frames_become_candles():
    async def handle(peer):
        assert json.loads(await peer.recv())["subscription"]["coin"] == "BTC"
        for message in map(json.loads, recorded("languages/hyperliquid_socket.json")):
            await peer.send(json.dumps(message))
        await peer.wait_closed()

    async with socket_server(handle) as url, running(HyperliquidFeed(url, [BTC])) as (sink, _):
        first, last = await sink.candles(2)
    assert (first.open_ms, str(first.close), first.as_of_ms) == (1786539540000, "64099.0", 0)
    assert (str(last.volume), last.quote_volume) == ("6.392", None)
