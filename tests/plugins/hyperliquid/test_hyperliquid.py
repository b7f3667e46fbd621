"""Hyperliquid: everything over POST, candles without a time of sending, and weights by the rows of an answer."""

import json
from decimal import Decimal
from typing import ClassVar

import pytest
from hypothesis import given
from tornado.web import RequestHandler

from candled import (
    MINUTE_MS,
    ExchangeError,
    FeedError,
    HttpRejected,
    Interval,
    Pong,
    SubscriptionRejected,
    Symbol,
    Unavailable,
)
from candled.clock import SystemClock
from candled.ingest.http import HttpClient
from candled_plugins.hyperliquid.exchange import Hyperliquid, HyperliquidFeed, HyperliquidSettings
from tests.clocks import START_MS, ManualClock
from tests.plugins.local import (
    NOT_FRAMES,
    WINDOWS,
    FakeHttp,
    opening_times,
    recorded,
    recorded_answer,
    running,
    socket_server,
    web_server,
    window,
)
from tests.tiers import few_examples

BTC, HOUR = Symbol("BTC", "USDC", "USDC"), Interval.parse("1h")


def made(**settings) -> Hyperliquid:
    return Hyperliquid(HyperliquidSettings(**settings), ManualClock(START_MS + 30_000))


def feed(*symbols: Symbol) -> HyperliquidFeed:
    return HyperliquidFeed("ws://localhost", symbols or (BTC,))


async def test_recorded_frames_become_candles():
    async def handle(peer):
        assert json.loads(await peer.recv())["subscription"]["coin"] == "BTC"
        for message in recorded("hyperliquid/socket.json"):
            await peer.send(message)
        await peer.wait_closed()

    async with socket_server(handle) as url, running(HyperliquidFeed(url, [BTC])) as (sink, _):
        first, last = await sink.candles(2)
    assert (first.open_ms, str(first.close), first.as_of_ms) == (1786539540000, "64099.0", 0)
    assert (str(last.volume), last.quote_volume) == ("6.392", None)


PUSH = json.loads(recorded("hyperliquid/socket.json")[1])


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ('Invalid subscription {"type":"candle","coin":"BTC","interval":"1m"}', SubscriptionRejected),
        ('Error parsing JSON into valid websocket request: {\\"coin\\": \\"BTC\\"}', SubscriptionRejected),
        ("Too many subscriptions", FeedError),
        ("Already subscribed: {}", None),
    ],
)
def test_an_error_names_its_market_in_its_text(text, events):
    found = feed().read_frame(json.dumps({"channel": "error", "data": text}))
    assert [type(one) for one in found] == ([] if events is None else [events])


def test_frames_have_one_market_each_and_spot_pairs_keep_a_text_that_is_refused():
    one, spot = feed(), Symbol("PURR", "USDC")
    names = [json.loads(frame)["subscription"]["coin"] for frame in one.subscribe([BTC, spot])]
    assert names == ["BTC", "PURR/USDC"]
    assert [json.loads(frame)["method"] for frame in one.unsubscribe([BTC])] == ["unsubscribe"]
    assert one.read_frame('{"channel":"pong"}') == [Pong()]
    gone = {"channel": "subscriptionResponse", "data": {"method": "unsubscribe", "subscription": {"coin": "BTC"}}}
    assert one.read_frame(json.dumps(gone)) == []


@pytest.mark.parametrize("change", [{"h": "1"}, {"t": 1}, {"t": None}, {"v": "x"}, {"i": "5m"}])
def test_a_bad_row_is_none(change):
    (event,) = feed().read_frame(json.dumps({**PUSH, "data": {**PUSH["data"], **change}}))
    assert (event.candles, len(event.invalid)) == ((), 1)


@pytest.mark.parametrize("frame", [
    *NOT_FRAMES, json.dumps({**PUSH, "data": {**PUSH["data"], "s": "ETH"}}), json.dumps({**PUSH, "data": []}),
    json.dumps({**PUSH, "channel": "trades"}), '{"channel":"subscriptionResponse","data":{"subscription":5}}',
])  # fmt: skip
def test_other_frames_are_errors(frame):
    with pytest.raises(ExchangeError):
        feed().read_frame(frame)


# ---------------------------------------------------------------- REST


def snapshot(path: str, body):
    """Hyperliquid's rows: oldest first, both bounds inclusive, the newest 5,000 at most."""
    request = body["req"]
    first_ms = max(-(-request["startTime"] // MINUTE_MS) * MINUTE_MS, START_MS - 4999 * MINUTE_MS)
    row = {"s": "BTC", "i": "1m", "o": "10", "h": "12", "l": "9", "c": "11", "v": "3", "n": 1}
    return [
        {"t": at, "T": at + 59_999, **row} for at in range(first_ms, min(request["endTime"], START_MS) + 1, MINUTE_MS)
    ]


@few_examples
@given(WINDOWS)
async def test_every_minute_of_a_range_is_found(ago_and_count):
    start_ms, end_ms = window(*ago_and_count, Hyperliquid.max_history_minutes)
    http = FakeHttp(snapshot)
    rows = await made().fetch_history(http, BTC, start_ms, end_ms)
    assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
    ((_, _, weight, budget),) = http.requests
    assert (weight, budget) == (20 + len(rows) / 60, "weight")


async def test_as_far_back_as_the_plugin_says_there_are_minutes():
    start_ms = START_MS - Hyperliquid.history_minutes * MINUTE_MS
    rows = await made().fetch_history(FakeHttp(snapshot), BTC, start_ms, start_ms + MINUTE_MS)
    assert opening_times(rows) == [start_ms]
    assert await made().fetch_bars(FakeHttp(snapshot), BTC, Interval.parse("1W"), 0, 10) is None


async def test_markets_and_their_facts_are_matched_by_their_places():
    universe = [{"name": "BTC", "szDecimals": 5}, {"name": "kPEPE", "szDecimals": 0, "isDelisted": True}]
    answer = [{"universe": universe}, [{"dayNtlVlm": "7.5"}, {"dayNtlVlm": "0.0"}]]
    found, gone = await made().fetch_markets(FakeHttp(lambda path, body: answer))
    assert (found.symbol, found.volume_decimals, found.price_decimals, found.status, found.quote_volume_24h) == (
        BTC, 5, None, "trading", Decimal("7.5"),
    )  # fmt: skip
    assert (gone.symbol, gone.status) == (Symbol("kPEPE", "USDC", "USDC"), "delisted")
    answer[1].pop()
    with pytest.raises(ExchangeError, match="not as documented"):
        await made().fetch_markets(FakeHttp(lambda path, body: answer))


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
    client = HttpClient(SystemClock(), 100.0, budgets=Hyperliquid.request_budgets)
    yield client
    client.close()


async def test_recorded_rows_are_asked_for_with_post(http, monkeypatch):
    rows = recorded_answer("hyperliquid/rest_hours.json")
    monkeypatch.setattr(Info, "answer", (200, json.dumps([{**row, "s": "BTC"} for row in rows])))
    Info.bodies.clear()
    async with web_server(("/info", Info)) as url:
        bars = await made(rest_url=url).fetch_bars(http, BTC, HOUR, 1761728400000, 1761735600000)
    assert [(one.open_ms, str(one.open), str(one.volume), one.quote_volume) for one in bars] == [
        (1761728400000, "0.020729", "321028.89", None),
        (1761732000000, "0.0207", "54681.37", None),
    ]
    assert Info.bodies == [
        {
            "type": "candleSnapshot",
            "req": {"coin": "BTC", "interval": "1h", "startTime": 1761728400000, "endTime": 1761735599999},
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
            await made(rest_url=url).fetch_history(http, BTC, 0, 60 * MINUTE_MS)
