"""Kraken: a recorded snapshot with JSON numbers, two names for each coin, and the newest 720 rows of REST."""

import json
from decimal import Decimal

import pytest

from candled import (
    MINUTE_MS,
    ExchangeError,
    FeedError,
    Interval,
    Pong,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    Unavailable,
)
from candled_plugins.kraken.exchange import Kraken, KrakenFeed, KrakenSettings
from candled_plugins.kraken.messages import pair_of
from tests.clocks import START_MS, ManualClock
from tests.plugins.local import (
    NOT_FRAMES,
    FakeHttp,
    opening_times,
    read_all,
    recorded,
    recorded_answer,
    window,
)

BTC, ETH = Symbol("BTC", "USD"), Symbol("ETH", "EUR")


def feed(*symbols: Symbol) -> KrakenFeed:
    return KrakenFeed("ws://localhost", symbols or (BTC, ETH))


def kraken() -> Kraken:
    return Kraken(KrakenSettings(), ManualClock(START_MS + 30_000))


ROW = {"symbol": "BTC/USD", "open": 10, "high": 12.5, "low": 9, "close": 11, "trades": 1, "volume": 3, "vwap": 10,
       "interval_begin": "2026-08-12T19:19:00.000000000Z", "interval": 1,
       "timestamp": "2026-08-12T19:20:00Z"}  # fmt: skip


def push(*rows: object, kind: str = "update", sent: object = "2026-08-12T19:19:30.5Z") -> str:
    return json.dumps({"channel": "ohlc", "type": kind, "timestamp": sent, "data": rows})


# ---------------------------------------------------------------- WebSocket


def test_a_recorded_subscription_starts_with_a_snapshot():
    acknowledged, snapshot, update = read_all(feed(), recorded("kraken/socket.json"))
    assert acknowledged == Subscribed(BTC)
    assert (snapshot.snapshot, update.snapshot, len(snapshot.candles)) == (True, False, 10)
    assert [one.open_ms for one in snapshot.candles] == [1786562340000 + n * MINUTE_MS for n in range(10)]
    (last,) = update.candles
    assert (last.open_ms, str(last.close), str(last.volume)) == (1786562880000, "63297.7", "0.04121249")
    assert (last.quote_volume, last.as_of_ms, last.final) == (None, 1786562924084, False)


def test_numbers_keep_their_digits_and_rows_of_several_markets_are_told_apart():
    text = push(ROW, {**ROW, "symbol": "ETH/EUR"}).replace("12.5", "12.10000000000000000001")
    first, second = feed().read_frame(text)
    assert (first.symbol, second.symbol) == (BTC, ETH)
    assert str(first.candles[0].high) == "12.10000000000000000001"


def test_subscriptions_ask_for_a_snapshot():
    symbols = [Symbol(f"S{number}", "USD") for number in range(150)]
    first, second = map(json.loads, feed(*symbols).subscribe(symbols))
    assert first["params"] == {
        "channel": "ohlc", "symbol": [f"S{n}/USD" for n in range(100)], "interval": 1, "snapshot": True,
    }  # fmt: skip
    assert len(second["params"]["symbol"]) == 50
    (frame,) = feed().unsubscribe([BTC])
    assert json.loads(frame) == {
        "method": "unsubscribe", "params": {"channel": "ohlc", "symbol": ["BTC/USD"], "interval": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("message", "events"),
    [
        ({"method": "subscribe", "success": False, "symbol": "BTC/USD", "error": "Currency pair not supported"},
         [SubscriptionRejected(BTC, "Currency pair not supported")]),
        ({"method": "subscribe", "success": False, "error": "Exceeded msg rate"}, [FeedError("Exceeded msg rate")]),
        ({"error": "Unsupported event", "method": "x", "success": False}, [FeedError("Unsupported event")]),
        ({"method": "pong", "time_in": "x"}, [Pong()]),
        ({"method": "unsubscribe", "success": True, "result": {"symbol": "BTC/USD"}}, []),
        ({"channel": "heartbeat"}, []),
    ],
)  # fmt: skip
def test_answers(message, events):
    assert feed().read_frame(json.dumps(message)) == events


@pytest.mark.parametrize("change", [
    {"high": 8}, {"interval": 5}, {"interval_begin": "2026-08-12T19:19:30Z"}, {"interval_begin": "2026-08-12T19:19:00"},
    {"interval_begin": 5}, {"volume": None}, {"close": "x"},
])  # fmt: skip
def test_a_bad_row_costs_itself(change):
    (event,) = feed().read_frame(push(ROW, {**ROW, **change}))
    assert (len(event.candles), len(event.invalid)) == (1, 1)


@pytest.mark.parametrize("frame", [
    *NOT_FRAMES, push({**ROW, "symbol": "XBT/USD"}), push(5), push(ROW, sent="now"), push(ROW, sent=None),
    '{"channel":"ticker"}', '{"channel":"ohlc","timestamp":"2026-08-12T19:19:30Z","data":{}}',
])  # fmt: skip
def test_other_frames_are_errors(frame):
    with pytest.raises(ExchangeError):
        feed().read_frame(frame)


# ---------------------------------------------------------------- REST


def ohlc(path: str, query: dict[str, str]):
    """Kraken's rows: those after `since`, the newest 720 at most, up to the forming one."""
    since_ms = int(query["since"]) * 1000
    first_ms = max(since_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS, START_MS - 719 * MINUTE_MS)
    rows = [
        [at_ms // 1000, "10", "12", "9", "11", "10.5", "0", 0] for at_ms in range(first_ms, START_MS + 1, MINUTE_MS)
    ]
    return {"error": [], "result": {"XXBTZUSD": rows, "last": START_MS // 1000 - 60}}


@pytest.mark.parametrize(("ago", "count"), [(0, 1), (0, 700), (1, 2), (300, 100), (690, 10)])
async def test_every_minute_of_the_newest_is_found(ago, count):
    start_ms, end_ms = window(ago, count, Kraken.max_history_minutes)
    http = FakeHttp(ohlc)
    rows = await kraken().fetch_history(http, BTC, start_ms, end_ms)
    assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
    assert http.requests[0][1]["pair"] == "XBTUSD"


async def test_as_far_back_as_the_plugin_says_kraken_has_minutes():
    start_ms = START_MS - Kraken.history_minutes * MINUTE_MS
    rows = await kraken().fetch_history(FakeHttp(ohlc), BTC, start_ms, start_ms + MINUTE_MS)
    assert opening_times(rows) == [start_ms]


async def test_recorded_rows_are_read_with_all_their_digits():
    http = FakeHttp(lambda path, query: recorded_answer("kraken/rest_hours.json"))
    symbol = Symbol("BTC", "USDT")
    bars = await kraken().fetch_bars(http, symbol, Interval.parse("1h"), 1706626800000, 1706634000000)
    assert [(one.open_ms, str(one.open), str(one.volume), one.quote_volume) for one in bars] == [
        (1706626800000, "43437.5", "18.75430110", None),
        (1706630400000, "43366.3", "12.51327406", None),
    ]
    assert await kraken().fetch_bars(http, symbol, Interval.parse("1W"), 0, 10) is None


@pytest.mark.parametrize(
    ("body", "error", "paused"),
    [
        ({"error": ["EAPI:Rate limit exceeded"]}, Unavailable, True),
        ({"error": ["EGeneral:Too many requests"]}, Unavailable, True),
        ({"error": ["EService:Unavailable"]}, Unavailable, False),
        ({"error": ["EQuery:Unknown asset pair"]}, ExchangeError, False),
        ({"error": [], "result": {"A": [], "B": [], "last": 1}}, ExchangeError, False),
        ({"error": [], "result": {"last": 1}}, ExchangeError, False),
        ({"error": []}, ExchangeError, False),
        ([], ExchangeError, False),
    ],
)
async def test_answers_without_candles(body, error, paused):
    http = FakeHttp(lambda path, query: body)
    with pytest.raises(error):
        await kraken().fetch_history(http, BTC, START_MS, START_MS + MINUTE_MS)
    assert bool(http.paused) == paused


async def test_markets_have_the_names_of_the_websocket():
    pair = {"wsname": "XBT/USD", "pair_decimals": 1, "lot_decimals": 8, "tick_size": "0.1", "status": "online"}

    def answer(path, query):
        if path.endswith("Ticker"):
            return {"error": [], "result": {"XXBTZUSD": {"v": ["1", "20.5"], "p": ["1", "60000"]}}}
        doge = {"wsname": "XDG/XBT", "pair_decimals": 9, "lot_decimals": 8, "status": "cancel_only"}
        return {"error": [], "result": {"XXBTZUSD": pair, "XDGXBT": doge, "XBTUSD.d": {"altname": "XBTUSD.d"}}}

    bitcoin, doge = await kraken().fetch_markets(FakeHttp(answer))
    assert (bitcoin.symbol, bitcoin.tick_size, bitcoin.volume_decimals, bitcoin.status) == (
        BTC, Decimal("0.1"), 8, "trading",
    )  # fmt: skip
    assert bitcoin.quote_volume_24h == Decimal("1230000")
    assert (doge.symbol, doge.status, doge.quote_volume_24h) == (Symbol("DOGE", "BTC"), "suspended", None)
    assert pair_of(doge.symbol) == "XDGXBT"


async def test_a_list_of_another_form_is_an_error():
    body = {"error": [], "result": {"A": {"wsname": "A/B"}}}
    with pytest.raises(ExchangeError, match="not as documented"):
        await kraken().fetch_markets(FakeHttp(lambda path, query: body))
