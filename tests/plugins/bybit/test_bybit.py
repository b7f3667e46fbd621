"""Bybit: recorded frames, refusals by number, volumes of inverse contracts, pages of markets, and its ban."""

import json
from decimal import Decimal

import pytest
from hypothesis import given

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
from candled_plugins.bybit import exchange as bybit
from candled_plugins.bybit.messages import name_of
from tests.clocks import START_MS, ManualClock
from tests.plugins.local import (
    NOT_FRAMES,
    WINDOWS,
    FakeHttp,
    candles_of,
    opening_times,
    read_all,
    recorded,
    recorded_answer,
    window,
)
from tests.tiers import few_examples

BTC, LINEAR, INVERSE = Symbol("BTC", "USDT"), Symbol("BTC", "USDT", "USDT"), Symbol("BTC", "USD", "BTC")
CLASSES = {"spot": bybit.Bybit, "linear": bybit.BybitLinear, "inverse": bybit.BybitInverse}


def made(category: str = "spot"):
    chosen = CLASSES[category]
    return chosen(chosen.Settings(), ManualClock(START_MS + 30_000))


def feed(*symbols: Symbol, category: str = "spot"):
    return made(category).make_feed(symbols or (BTC,))


ROW = {"start": 60_000, "end": 119_999, "interval": "1", "open": "10", "close": "11", "high": "12", "low": "9",
       "volume": "300", "turnover": "3", "confirm": False, "timestamp": 1}  # fmt: skip


def push(topic: str = "kline.1.BTCUSDT", sent_ms: object = 61_000, **change) -> str:
    return json.dumps({"topic": topic, "type": "snapshot", "ts": sent_ms, "data": [{**ROW, **change}]})


# ---------------------------------------------------------------- WebSocket


def test_recorded_frames_become_candles():
    one = feed()
    one.subscribe([BTC])
    first, *events = read_all(one, recorded("bybit/socket_spot.json"))
    assert first == Subscribed(BTC)
    assert [(one.open_ms, str(one.open), str(one.volume), str(one.quote_volume), one.as_of_ms, one.final)
            for one in candles_of(events)] == [
        (1786538700000, "64104.5", "1.01673", "65173.1079222", 1786538714563, False),
        (1786538700000, "64104.5", "1.017302", "65209.7710708", 1786538715562, False),
    ]  # fmt: skip
    assert not any(event.snapshot for event in events)  # Bybit calls every push a snapshot


def test_the_last_version_of_a_minute_is_marked_and_may_come_twice():
    assert [one.final for one in candles_of(read_all(feed(), [push(), push(confirm=True), push(confirm=True)]))] == [
        False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("category", "symbol", "volumes"),
    [("spot", BTC, (300, 3)), ("linear", LINEAR, (300, 3)), ("inverse", INVERSE, (3, 300))],
)
def test_the_volume_of_an_inverse_contract_is_in_dollars(category, symbol, volumes):
    (event,) = feed(symbol, category=category).read_frame(push(f"kline.1.{name_of(symbol, category)}"))
    assert event.symbol == symbol
    assert (event.candles[0].volume, event.candles[0].quote_volume) == volumes


@pytest.mark.parametrize(
    ("symbol", "category", "name"),
    [(LINEAR, "linear", "BTCUSDT"), (INVERSE, "inverse", "BTCUSD"), (Symbol("BTC", "USDC"), "spot", "BTCUSDC"),
     (Symbol("BTC", "USDC", "USDC"), "linear", "BTCPERP"),
     (Symbol("BTC", "USDT", "USDT-261225"), "linear", "BTC/USDT:USDT-261225"),
     (LINEAR, "spot", "BTC/USDT:USDT"), (BTC, "linear", "BTC/USDT"), (INVERSE, "linear", "BTC/USD:BTC")],
)  # fmt: skip
def test_names(symbol, category, name):
    assert name_of(symbol, category) == name


def test_frames_have_at_most_ten_markets_and_a_refusal_of_one_names_it():
    symbols = [Symbol(f"S{number}", "USDT") for number in range(11)]
    one = feed(*symbols)
    first, second = map(json.loads, one.subscribe(symbols))
    assert (first["op"], len(first["args"]), second) == (
        "subscribe", 10, {"op": "subscribe", "req_id": "2", "args": ["kline.1.S10USDT"]},
    )  # fmt: skip
    refusal = {"success": False, "ret_msg": "error:handler not found", "op": "subscribe"}
    assert one.read_frame(json.dumps({**refusal, "req_id": "1"})) == [FeedError("error:handler not found")]
    expected = [SubscriptionRejected(symbols[10], "error:handler not found")]
    assert one.read_frame(json.dumps({**refusal, "req_id": "2"})) == expected
    (frame,) = one.unsubscribe(symbols[:2])
    assert json.loads(frame)["op"] == "unsubscribe"


@pytest.mark.parametrize("frame", [
    '{"success":true,"ret_msg":"pong","conn_id":"a","req_id":"","op":"ping"}',
    '{"req_id":"1","op":"pong","args":["1672815298018"],"conn_id":"a"}',
])  # fmt: skip
def test_both_shapes_of_a_pong(frame):
    assert feed().read_frame(frame) == [Pong()]


@pytest.mark.parametrize("change", [{"high": "8"}, {"start": 1}, {"volume": None}, {"turnover": {}}])
def test_a_bad_row_is_none(change):
    (event,) = feed().read_frame(push(**change))
    assert (event.candles, len(event.invalid)) == ((), 1)


@pytest.mark.parametrize("frame", [
    *NOT_FRAMES, push("kline.1.ETHUSDT"), push("kline.5.BTCUSDT"), push("BTCUSDT"), push(sent_ms="x"),
    '{"topic":"kline.1.BTCUSDT","ts":1,"data":null}', '{"op":"auth"}',
])  # fmt: skip
def test_other_frames_are_errors(frame):
    with pytest.raises(ExchangeError):
        feed().read_frame(frame)


# ---------------------------------------------------------------- REST


def klines(path: str, query: dict[str, str]):
    """Bybit's pages: newest first, both bounds inclusive; a start inside a minute includes that minute."""
    last_ms = min(int(query["end"]) // MINUTE_MS * MINUTE_MS, START_MS)
    first_ms = int(query["start"]) // MINUTE_MS * MINUTE_MS
    rows = [[str(at_ms), "10", "12", "9", "11", "300", "3"] for at_ms in range(last_ms, first_ms - 1, -MINUTE_MS)]
    result = {"symbol": query["symbol"], "category": query["category"], "list": rows[: int(query["limit"])]}
    return {"retCode": 0, "retMsg": "OK", "result": result, "time": START_MS + 30_000}


@few_examples
@given(WINDOWS)
async def test_every_minute_of_a_range_is_found_with_one_request(ago_and_count):
    start_ms, end_ms = window(*ago_and_count, bybit.Bybit.max_history_minutes)
    for category, symbol in (("spot", BTC), ("inverse", INVERSE)):
        http = FakeHttp(klines)
        rows = await made(category).fetch_history(http, symbol, start_ms, end_ms)
        assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
        assert {(row.as_of_ms, row.volume) for row in rows} == {(START_MS + 30_000, 300 if category == "spot" else 3)}
        ((path, query, _, _),) = http.requests
        assert (path, query["category"], query["interval"]) == ("/v5/market/kline", category, "1")


async def test_recorded_rows_are_read_with_all_their_digits():
    http = FakeHttp(lambda path, query: recorded_answer("bybit/rest_hours_linear.json"))
    bars = await made("linear").fetch_bars(http, LINEAR, Interval.parse("1h"), 1706630400000, 1706641200000)
    assert [(one.open_ms, str(one.volume), str(one.quote_volume)) for one in bars] == [
        (1706630400000, "1341.261", "58117391.4117"),
        (1706634000000, "3199.431", "138878389.2519"),
        (1706637600000, "1575.305", "68345898.1407"),
    ]
    assert http.requests[0][1]["interval"] == "60"
    assert await made().fetch_bars(http, BTC, Interval.parse("45m"), 0, 10) is None


@pytest.mark.parametrize(
    ("body", "error", "paused"),
    [
        ({"retCode": 10006, "retMsg": "Too many visits", "result": {}, "time": 1}, Unavailable, True),
        ({"retCode": 10016, "retMsg": "Server error", "result": {}, "time": 1}, Unavailable, False),
        ({"retCode": 10001, "retMsg": "Not supported symbols", "result": {}, "time": 1}, ExchangeError, False),
        ({"retCode": 0, "result": {}, "time": 1}, ExchangeError, False),
        ({"retCode": 0, "result": {"list": []}}, ExchangeError, False),
        ([], ExchangeError, False),
    ],
)
async def test_answers_without_candles(body, error, paused):
    http = FakeHttp(lambda path, query: body)
    with pytest.raises(error):
        await made().fetch_history(http, BTC, START_MS, START_MS + MINUTE_MS)
    assert bool(http.paused) == paused


async def test_a_ban_is_kept_for_ten_minutes():
    def refuse(path, query):
        raise HttpRejected("403", status=403, body="access too frequent")

    http = FakeHttp(refuse)
    with pytest.raises(Unavailable):
        await made().fetch_history(http, BTC, START_MS, START_MS + MINUTE_MS)
    assert http.paused == [("/v5/market/kline", 600.0)]


def entry(symbol: str = "BTCUSDT", **change) -> dict[str, object]:
    return {"symbol": symbol, "baseCoin": "BTC", "quoteCoin": "USDT", "settleCoin": "USDT", "status": "Trading",
            "launchTime": "1585526400000", "priceFilter": {"tickSize": "0.10"},
            "lotSizeFilter": {"qtyStep": "0.001", "basePrecision": "0.000001"}, **change}  # fmt: skip


async def test_markets_come_in_pages():
    def answer(path, query):
        if path.endswith("tickers"):
            rows = [{"symbol": "BTCUSDT", "turnover24h": "99.5", "volume24h": "1"}]
        elif "cursor" in query:
            assert query["cursor"] == "next"
            rows = [entry("BTCPERP", quoteCoin="USDC", settleCoin="USDC", status="PreLaunch"), entry("BTCUSDTZ26")]
        else:
            rows = [entry()]
        cursor = "" if "cursor" in query or path.endswith("tickers") else "next"
        return {"retCode": 0, "result": {"list": rows, "nextPageCursor": cursor}, "time": 1}

    found, usdc = await made("linear").fetch_markets(FakeHttp(answer))
    assert (found.symbol, found.tick_size, found.decimals.volume, found.status) == (
        LINEAR, Decimal("0.10"), 3, "trading",
    )  # fmt: skip
    assert (found.listed_ms, found.quote_volume_24h) == (1585526400000, Decimal("99.5"))
    assert (usdc.symbol, usdc.status, usdc.quote_volume_24h) == (Symbol("BTC", "USDC", "USDC"), "upcoming", None)


async def test_spot_and_inverse_markets_have_other_steps():
    def answer(path, query):
        one = {"symbol": "BTCUSD", "turnover24h": "7", "volume24h": "8"}
        inverse = entry("BTCUSD", quoteCoin="USD", settleCoin="BTC")
        spot = entry(launchTime=None)
        rows = [one] if path.endswith("tickers") else [inverse if query["category"] == "inverse" else spot]
        return {"retCode": 0, "result": {"list": rows}, "time": 1}

    (inverse,) = await made("inverse").fetch_markets(FakeHttp(answer))
    assert (inverse.symbol, inverse.decimals.volume, inverse.quote_volume_24h) == (INVERSE, None, 8)
    (spot,) = await made().fetch_markets(FakeHttp(answer))
    assert (spot.symbol, spot.decimals.volume, spot.listed_ms) == (BTC, 6, None)
