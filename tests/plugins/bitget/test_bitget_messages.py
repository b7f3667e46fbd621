"""Bitget's frames and rows, captured and generated, read into candles."""

import json
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled import (
    Candle,
    Candles,
    ExchangeError,
    FeedError,
    InvalidCandle,
    Market,
    Pong,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    Unavailable,
    read_rows,
)
from candled.model import MINUTE_MS, decimal_text
from candled_plugins.bitget import messages
from candled_plugins.bitget.exchange import BitgetFeed
from candled_plugins.bitget.messages import SPOT, USDT_FUTURES
from tests.plugins.bitget.pages import read_page

BTC = Symbol("BTC", "USDT")
PERPETUAL = Symbol("BTC", "USDT", "USDT")
SYMBOLS = {("SPOT", "BTCUSDT"): BTC, ("USDT-FUTURES", "BTCUSDT"): PERPETUAL}
FRAMES = Path(__file__).parent / "frames"


def captured(name):
    return (FRAMES / f"{name}.json").read_text()


def error(code, *, arg=True):
    about = {"arg": {"instType": "SPOT", "channel": "candle1m", "instId": "BTCUSDT"}, "op": "subscribe"}
    return json.dumps({"event": "error", "code": code, "msg": "no", **(about if arg else {})})


def push(*rows, action="update", inst_id="BTCUSDT"):
    arg = {"instType": "SPOT", "channel": "candle1m", "instId": inst_id}
    return json.dumps({"action": action, "arg": arg, "data": rows, "ts": 120_500})


def row(open_ms, price="5", volume="2"):
    return [str(open_ms), price, price, price, price, volume, "10", "10"]


def answer(rows, request_time=1_000_000):
    return {"code": "00000", "msg": "success", "requestTime": request_time, "data": rows}


# ---------------------------------------------------------------- frames


def test_a_captured_snapshot_is_read_digit_for_digit():
    [event] = messages.read_frame(captured("snapshot_spot"), SYMBOLS)
    assert event == Candles(
        BTC,
        (
            Candle.parse(
                1701871620000, "44080.23", "44080.23", "44028.5", "44028.51", "9.9287", "437404.105512",
                as_of_ms=1701901610417,
            ),
            Candle.parse(
                1701871680000, "44028.51", "44108.11", "44028.5", "44108.11", "17.139", "755436.870643",
                as_of_ms=1701901610417,
            ),
        ),
        snapshot=True,
    )  # fmt: skip


def test_a_captured_update_is_an_open_candle_as_of_its_send_time():
    [event] = messages.read_frame(captured("update_futures"), SYMBOLS)
    [candle] = event.candles
    assert event.symbol == PERPETUAL
    assert not event.snapshot
    assert not candle.final
    assert candle.as_of_ms == 1786650728706
    assert candle.values == tuple(map(Decimal, ("63415.3", "63415.4", "63415.2", "63415.2", "0.2824", "17908.4799")))


def test_an_acknowledgement_names_its_symbol():
    assert messages.read_frame(captured("ack_futures"), SYMBOLS) == [Subscribed(PERPETUAL)]


def test_an_unsubscription_is_no_change():
    assert messages.read_frame(captured("unsubscribed_spot_trade"), SYMBOLS) == []


def test_the_answer_to_a_ping_is_a_pong():
    assert messages.read_frame("pong", SYMBOLS) == [Pong()]


@pytest.mark.parametrize("code", [30001, "30001", 30016, "30016"])
def test_a_refused_subscription_costs_that_symbol_only(code):
    assert messages.read_frame(error(code), SYMBOLS) == [SubscriptionRejected(BTC, f"{code} no")]


def test_an_error_about_a_foreign_channel_is_not_taken_for_one_of_a_subscribed_symbol():
    with pytest.raises(ExchangeError, match="candle1m"):
        messages.read_frame(captured("error_30001"), SYMBOLS)


@pytest.mark.parametrize(("code", "reconnect"), [(30002, False), (30003, False), (30006, False), (30007, True)])
def test_other_errors_are_feed_errors_and_only_30007_costs_the_connection(code, reconnect):
    assert messages.read_frame(error(code, arg=False), SYMBOLS) == [FeedError(f"{code} no", reconnect=reconnect)]


def test_a_refusal_that_names_no_subscription_is_a_feed_error():
    assert messages.read_frame(error(30016, arg=False), SYMBOLS) == [FeedError("30016 no")]


def test_rows_of_a_push_come_out_oldest_first():
    [event] = messages.read_frame(push(row(120_000), row(60_000)), SYMBOLS)
    assert [candle.open_ms for candle in event.candles] == [60_000, 120_000]


def test_an_impossible_row_is_left_out_and_reported_without_losing_the_others():
    [event] = messages.read_frame(push(row(60_000), row(60_001), action="snapshot"), SYMBOLS)
    assert [candle.open_ms for candle in event.candles] == [60_000]
    assert event.snapshot
    assert [(row.open_ms, "boundary" in row.reason) for row in event.invalid] == [(60_001, True)]


def test_an_empty_snapshot_still_proves_the_subscription():
    assert messages.read_frame(push(action="snapshot"), SYMBOLS) == [Candles(BTC, (), snapshot=True)]


def test_a_lower_case_echo_of_a_market_is_understood():
    [event] = messages.read_frame(push(row(60_000), inst_id="btcusdt"), SYMBOLS)
    assert event.symbol == BTC


@pytest.mark.parametrize(
    "frame",
    [
        "hello",
        "[]",
        "{}",
        '{"event":"login","code":0}',
        '{"event":"subscribe"}',
        push(row(60_000), inst_id="ETHUSDT"),
        push(row(60_000)).replace("SPOT", "COIN-FUTURES"),
        push(row(60_000)).replace("candle1m", "candle5m"),
        push(row(60_000)).replace("120500", "null"),
        push(row(60_000)).replace("120500", '"soon"'),
        '{"action":"update","arg":{"instType":"SPOT","channel":"candle1m","instId":"BTCUSDT"},"data":null,"ts":1}',
    ],
)
def test_a_frame_that_is_not_as_documented_is_an_error(frame):
    with pytest.raises(ExchangeError):
        messages.read_frame(frame, SYMBOLS)


@pytest.mark.slow
@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["event", "action", "arg", "data", "ts", "code", "instId"]), x)).map(json.dumps))  # fmt: skip
def test_whatever_arrives_is_events_or_an_exchange_error(frame):
    try:
        events = messages.read_frame(frame, SYMBOLS)
    except ExchangeError:
        return
    assert isinstance(events, list)


def test_subscriptions_are_written_ten_to_a_frame_and_within_its_size():
    symbols = [Symbol(f"{'X' * 20}{number:03}", "USDT", "USDT") for number in range(25)]
    frames = BitgetFeed("ws://localhost", symbols, [SPOT, USDT_FUTURES]).subscribe(symbols)
    args = [json.loads(frame)["args"] for frame in frames]
    assert [len(part) for part in args] == [10, 10, 5]
    assert max(map(len, frames)) < 4096
    assert args[0][0] == {"instType": "USDT-FUTURES", "channel": "candle1m", "instId": f"{'X' * 20}000USDT"}
    assert [arg for part in args for arg in part] == [
        {"instType": "USDT-FUTURES", "channel": "candle1m", "instId": f"{symbol.base}USDT"} for symbol in symbols
    ]


BOTH = [SPOT, USDT_FUTURES]


@pytest.mark.parametrize(
    ("symbol", "products", "key"),
    [
        ("BTC/USDT", BOTH, ("SPOT", "BTCUSDT")),
        ("BTC/USDT:USDT", BOTH, ("USDT-FUTURES", "BTCUSDT")),
        ("BTC/USDT:USDT", [USDT_FUTURES], ("USDT-FUTURES", "BTCUSDT")),
        ("stETH/USDT", BOTH, ("SPOT", "STETHUSDT")),
        # None of these may be read from the market of the same coins.
        ("BTC/USDT", [USDT_FUTURES], ("USDT-FUTURES", "BTC/USDT")),
        ("BTC/USDT:USDT", [SPOT], ("SPOT", "BTC/USDT:USDT")),
        ("BTC/USDT:BTC", BOTH, ("SPOT", "BTC/USDT:BTC")),
        ("BTC/USDT:USDT-261225", BOTH, ("SPOT", "BTC/USDT:USDT-261225")),
    ],
)
def test_a_symbol_has_the_names_of_its_kind_of_market(symbol, products, key):
    assert messages.find_instrument(Symbol.parse(symbol), products).key == key


# ---------------------------------------------------------------- rows

numbers = st.decimals(min_value=Decimal("1e-12"), max_value=Decimal("1e9"), places=12)
volumes = st.decimals(min_value=0, max_value=Decimal("1e9"), places=11)


@st.composite
def candles(draw):
    low, *inner, high = sorted(draw(st.lists(numbers, min_size=4, max_size=4)))
    opened, close = draw(st.permutations(inner))
    open_ms, as_of_ms = draw(st.integers(0, 10**8)) * MINUTE_MS, draw(st.integers(0, 10**13))
    return Candle(open_ms, opened, high, low, close, draw(volumes), draw(volumes), as_of_ms)


def as_row(candle):
    quote_volume = decimal_text(candle.quote_volume)
    numbers = [candle.open, candle.high, candle.low, candle.close, candle.volume]
    return [str(candle.open_ms), *map(decimal_text, numbers), quote_volume, quote_volume]


@given(candles())
def test_a_row_gives_back_the_candle_it_was_printed_from(candle):
    for columns, cells in ((SPOT.quote_columns, 8), (USDT_FUTURES.quote_columns, 7)):
        assert messages.read_row(as_row(candle)[:cells], columns, candle.as_of_ms) == candle


CELLS = st.one_of(
    st.sampled_from(
        ["1", "2", "60000", "1.50", "1e3", " 1", "1_0", "", "NaN", "-1", 1, 2.5, None, [0, [1], 0], "9" * 61]
    ),
    st.text(max_size=2),
)


@given(st.lists(st.lists(CELLS, min_size=7, max_size=8), max_size=3), st.lists(candles(), max_size=3))
def test_rows_are_read_together_as_they_are_one_by_one(strange, plain):
    printed = [as_row(candle) for candle in plain]
    for rows in (8 * strange, 8 * [*printed, *strange], 8 * printed):  # few are always read one by one
        read = partial(messages.read_row, quote_columns=SPOT.quote_columns, as_of_ms=5)
        read_all = partial(messages._read_plain_rows, quote_columns=SPOT.quote_columns, as_of_ms=5)
        one_by_one = read_rows(rows, read)
        assert read_rows(rows, read, read_all=read_all) == one_by_one
        assert not rows or rows != 8 * printed or read_all(rows) == one_by_one


def test_captured_rest_rows_of_spot_keep_every_digit():
    rows = json.loads(captured("rest_rows_spot"))
    page = read_page(answer(rows), SPOT, 1758798540000)
    assert [as_row(candle) for candle in page] == rows


@pytest.mark.parametrize("columns", [("300000", "5"), ("5", "300000")])
def test_the_quote_volume_of_a_pair_without_usdt_is_found_in_either_order(columns):
    candle = messages.read_row(["0", "0.05", "0.0501", "0.0499", "0.05", "100", *columns], SPOT.quote_columns, 0)
    assert candle.quote_volume == 5


@pytest.mark.parametrize(
    "cells",
    [
        None,
        "0",
        ["0", "1", "1", "1", "1", "1"],
        [0, 1, 1, 1, True, 1, 1],
        ["0", "1", "1", "1", "x", "1", "1"],
        ["0", "1", "0.5", "1", "1", "1", "1"],
        ["0", "1", "1", "1", "1", "NaN", "1"],
        ["30000", "1", "1", "1", "1", "1", "1"],
    ],
)
def test_what_is_no_candle_is_refused(cells):
    with pytest.raises(InvalidCandle):
        messages.read_row(cells, USDT_FUTURES.quote_columns, 0)


# ---------------------------------------------------------------- answers


def test_an_answer_has_the_exchange_clock():
    assert messages.read_envelope(json.loads(captured("rest_envelope")))[1] == 1788329115116


def test_rows_in_any_order_and_twice_make_one_page():
    page = read_page(answer([row(180_000), row(60_000), row(120_000), row(60_000)]), SPOT, 240_000)
    assert [(candle.open_ms, candle.as_of_ms) for candle in page] == [
        (60_000, 1_000_000),
        (120_000, 1_000_000),
        (180_000, 1_000_000),
    ]


def test_the_minute_at_the_end_of_the_window_may_come_or_not():
    assert len(read_page(answer([row(60_000), row(120_000)]), SPOT, 120_000)) == 2
    with pytest.raises(ExchangeError, match="asked for bars of 1m before 60000"):
        read_page(answer([row(60_000), row(120_000)]), SPOT, 60_000)


def test_candles_of_another_period_are_refused():
    hours = json.loads(captured("rest_hours_rows_futures"))
    more = ["1788336000000", *hours[1][1:]]
    with pytest.raises(ExchangeError, match="3600000 ms apart"):
        read_page(answer([*hours, more]), USDT_FUTURES, 1788339600000)


def test_a_market_without_candles_answers_null():
    assert read_page(answer(None), SPOT, 60_000) == []


@pytest.mark.parametrize("code", ["429", "40725", "40015", "45001", "40010", "40910"])
def test_a_busy_exchange_is_asked_again(code):
    with pytest.raises(Unavailable, match=code):
        messages.read_envelope({"code": code, "msg": "busy", "requestTime": 1, "data": None})


def test_the_captured_answer_to_too_many_requests_asks_for_another_try():
    with pytest.raises(Unavailable, match="429: Too Many Requests"):
        messages.read_envelope(json.loads(captured("rest_too_many_requests")))


@pytest.mark.parametrize("code", ["40034", "400172", "40017", "40404", "42016", "1"])
def test_a_wrong_request_is_an_error_with_code_and_message(code):
    with pytest.raises(ExchangeError, match=f"{code}: Parameter X does not exist"):
        messages.read_envelope({"code": code, "msg": "Parameter X does not exist", "requestTime": 1, "data": None})


@pytest.mark.parametrize(
    "body", [None, [], "x", {}, {"code": "00000", "data": []}, {"code": "00000", "requestTime": 1, "data": {}}]
)
def test_an_answer_that_is_not_as_documented_is_an_error(body):
    with pytest.raises(ExchangeError):
        messages.read_envelope(body)


def test_captured_spot_symbols_become_markets_with_the_volumes_of_tickers():
    # a ticker of the documentation, with another volume; only one market has one
    ticker = {"symbol": "BTCUSDT", "lastPr": "34413.1", "quoteVolume": "512345678.91", "baseVolume": "14888.1"}
    assert messages.read_markets(answer(json.loads(captured("symbols_spot"))), answer([ticker]), SPOT) == [
        Market(
            symbol=BTC,
            price_decimals=2,
            volume_decimals=6,
            tick_size=Decimal("0.01"),
            quote_volume_24h=Decimal("512345678.91"),
        ),
        Market(
            symbol=Symbol("WLFI", "USD1"),
            price_decimals=4,
            volume_decimals=2,
            tick_size=Decimal("0.0001"),
            status="suspended",
        ),
    ]


def test_dated_contracts_do_not_pose_as_the_perpetual_of_their_coins():
    perpetual = {
        "baseCoin": "BTC",
        "quoteCoin": "USDT",
        "pricePlace": "1",
        "volumePlace": "4",
        "symbolStatus": "normal",
    }
    entries = [{"symbol": "BTCUSDT_261225", **perpetual}, {"symbol": "BTCUSDT", **perpetual}]
    assert messages.read_markets(answer(entries), answer([]), USDT_FUTURES) == [
        Market(symbol=PERPETUAL, price_decimals=1, volume_decimals=4, tick_size=Decimal("0.1"))
    ]


def test_a_market_without_its_precision_is_an_error():
    with pytest.raises(ExchangeError, match="pricePrecision"):
        messages.read_markets(answer([{"symbol": "AB", "baseCoin": "A", "quoteCoin": "B"}]), answer([]), SPOT)
    with pytest.raises(ExchangeError, match="quoteVolume"):
        messages.read_markets(answer([]), answer([{"symbol": "AB"}]), SPOT)
