"""Hyperliquid: everything over POST, candles without a time of sending, weights by rows, spot pairs with numbers."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
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
    Subscribed,
    SubscriptionRejected,
    Symbol,
    Unavailable,
)
from candled.clock import SystemClock
from candled.ingest.http import HttpClient
from candled.testing.recording import read_recording
from candled.testing.stage import Stage
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
HYPE, PURR, HPENGU = (Symbol(base, "USDC") for base in ("HYPE", "PURR", "HPENGU"))
# tokens have indexes that are not their places, and the facts have more entries than the pairs
PAIRS = [
    {
        "tokens": [
            {"name": "USDC", "szDecimals": 8, "index": 0},
            {"name": "PURR", "szDecimals": 0, "index": 1},
            {"name": "HYPE", "szDecimals": 2, "index": 150},
            {"name": "HPENGU", "szDecimals": 1, "index": 290},
            {"name": "HYPE", "szDecimals": 5, "index": 300},
        ],
        "universe": [
            {"name": "PURR/USDC", "tokens": [1, 0], "index": 0},
            {"name": "@107", "tokens": [150, 0], "index": 107},
            {"name": "@184", "tokens": [290, 0], "index": 184},
            {"name": "@367", "tokens": [479, 0], "index": 367},
            {"name": "@368", "tokens": [300, 0], "index": 368},
        ],
    },
    [
        {"coin": "PURR/USDC", "dayNtlVlm": "8906.0"},
        {"coin": "@1", "dayNtlVlm": "1.0"},
        {"coin": "@107", "dayNtlVlm": "160771600.5"},
    ],
]


def made(**settings) -> Hyperliquid:
    return Hyperliquid(HyperliquidSettings(**settings), ManualClock(START_MS + 30_000))


def feed(*symbols: Symbol, url: str = "ws://localhost") -> HyperliquidFeed:
    return made(ws_url=url).make_feed(symbols or (BTC,))


async def test_recorded_frames_become_candles():
    async def handle(peer):
        assert json.loads(await peer.recv())["subscription"]["coin"] == "BTC"
        for message in recorded("hyperliquid/socket.json"):
            await peer.send(message)
        await peer.wait_closed()

    async with socket_server(handle) as url, running(feed(url=url)) as (sink, _):
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


def coins(frames):
    return [json.loads(frame)["subscription"]["coin"] for frame in frames]


def test_frames_have_one_market_each_and_unknown_ones_keep_a_text_that_is_refused():
    one = feed()
    assert coins(one.subscribe([BTC, HYPE, Symbol("BTC", "USDT", "USDT")])) == ["BTC", "HYPE/USDC", "BTC/USDT:USDT"]
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


async def test_the_numbers_of_spot_pairs_are_read_before_a_connection_that_has_some():
    asked = FakeHttp(lambda path, body: PAIRS)
    exchange = made()
    one = exchange.make_feed([BTC])
    assert await one.prepare_connection(asked) == one.url
    assert asked.requests == []
    one.set_symbols([BTC, HYPE, PURR])
    await one.prepare_connection(asked)
    assert [(body, weight, budget) for _, body, weight, budget in asked.requests] == [
        ({"type": "spotMetaAndAssetCtxs"}, 20.0, "weight")
    ]
    assert coins(one.subscribe([BTC, HYPE, PURR])) == ["BTC", "@107", "PURR/USDC"]
    assert coins(one.unsubscribe([HYPE])) == ["@107"]
    (event,) = one.read_frame(json.dumps({**PUSH, "data": {**PUSH["data"], "s": "@107"}}))
    assert (event.symbol, len(event.candles)) == (HYPE, 1)


async def test_a_spot_pair_that_is_added_to_a_connection_is_found_by_its_number():
    exchange, http = (
        made(markets=("perpetual", "spot")),
        FakeHttp(lambda path, body: PAIRS if body["type"].startswith("spot") else [{"universe": []}, []]),
    )
    one = exchange.make_feed([BTC])
    await exchange.fetch_markets(http)
    one.set_symbols([BTC, HYPE])
    assert coins(one.subscribe([HYPE])) == ["@107"]
    acknowledged = {"method": "subscribe", "subscription": {"type": "candle", "coin": "@107", "interval": "1m"}}
    assert one.read_frame(json.dumps({"channel": "subscriptionResponse", "data": acknowledged})) == [Subscribed(HYPE)]
    error = json.dumps({"channel": "error", "data": f"Invalid subscription {json.dumps(acknowledged)}"})
    (event,) = one.read_frame(error)
    assert (type(event), event.symbol) == (SubscriptionRejected, HYPE)


def test_the_conformance_kit_subscribes_to_a_spot_pair_by_its_number():
    recording = read_recording(Path(__file__).with_name("hyperliquid-spot-documented.jsonl"))
    with asyncio.Runner() as runner:
        assert Stage(Hyperliquid, recording, (), runner).form.symbol == HYPE


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


async def test_spot_pairs_are_named_by_their_tokens_and_their_facts_by_their_numbers():
    found = await made(markets=("spot",)).fetch_markets(FakeHttp(lambda path, body: PAIRS))
    assert [(one.symbol, one.volume_decimals, one.quote_volume_24h) for one in found] == [
        (PURR, 0, Decimal("8906.0")),
        (HYPE, 2, Decimal("160771600.5")),  # the second pair of this name is another token
        (HPENGU, 1, None),
    ]
    meta, facts = PAIRS
    without_names = [meta, [{"dayNtlVlm": one["dayNtlVlm"]} for one in facts]]
    purr, *others = await made(markets=("spot",)).fetch_markets(FakeHttp(lambda path, body: without_names))
    assert (purr.quote_volume_24h, others[0].quote_volume_24h) == (Decimal("8906.0"), None)


@pytest.mark.parametrize("answer", [[], {}, [{"tokens": [], "universe": [{"name": "@1"}]}, []], [{"tokens": [1]}, []]])
async def test_a_list_of_spot_pairs_that_is_not_documented_is_an_error(answer):
    with pytest.raises(ExchangeError, match="not as documented"):
        await made(markets=("spot",)).fetch_markets(FakeHttp(lambda path, body: answer))


async def test_the_recorded_hours_of_a_spot_pair_are_asked_for_by_its_number():
    rows = recorded_answer("hyperliquid/rest_hours.json")
    http = FakeHttp(lambda path, body: PAIRS if "req" not in body else [{**row, "t": int(row["t"])} for row in rows])
    exchange = made()
    bars = await exchange.fetch_bars(http, HPENGU, HOUR, 1761728400000, 1761735600000)
    assert [str(one.close) for one in bars] == ["0.020704", "0.020765"]
    assert [body["req"]["coin"] for _, body, _, _ in http.requests[1:]] == [rows[0]["s"]] == ["@184"]
    with pytest.raises(ExchangeError, match="no market NONE/USDC"):
        await exchange.fetch_history(http, Symbol("NONE", "USDC"), 0, MINUTE_MS)


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
