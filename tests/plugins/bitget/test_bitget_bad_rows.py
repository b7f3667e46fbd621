"""A row that cannot be a candle costs nothing but itself; columns that nobody reads may hold anything."""

import json
from decimal import Decimal

import pytest

from candled import Candle, ExchangeError, InvalidRow, Symbol
from candled.model import MINUTE_MS
from candled_plugins.bitget import messages
from candled_plugins.bitget.exchange import Bitget, BitgetSettings
from candled_plugins.bitget.messages import SPOT, USDT_FUTURES
from tests.clocks import START_MS, ManualClock
from tests.fakes.bitget import DAY_MS, FakeBitget, FakeMarket
from tests.fakes.http import PlainHttp
from tests.fakes.tapes import Synthetic
from tests.plugins.bitget.pages import read_page

BTC = Symbol("BTC", "USDT")
END_MS = 10 * MINUTE_MS
GOOD = ["5", "7", "4", "6", "2", "10", "10"]  # open, high, low, close, volume, quote volume twice


def row(number: int, *cells) -> list:
    return [str(number * MINUTE_MS), *(cells or GOOD)]


def changed(index: int, cell) -> list:
    cells = row(5)
    cells[index] = cell
    return cells


def answer(rows) -> dict:
    return {"code": "00000", "msg": "success", "requestTime": 1_000_000_000, "data": rows}


BAD = {
    "open below low": row(5, "3", "7", "4", "6", "2", "10", "10"),
    "a flat row of zeros": row(5, "0", "0", "0", "6", "0", "0", "0"),
    "null for a price": changed(2, None),
    "an object for a price": changed(1, {"price": "5"}),
    "true for a price": changed(4, True),
    "words for a price": changed(4, "n/a"),
    "spaces inside a number": changed(1, "5 0"),
    "no number": changed(5, "NaN"),
    "endless digits": changed(5, "1" * 400),
    "no column of a quote volume": ["300000", "5", "7", "4", "6", "2"],
    "too short": ["300000", "5"],
    "negative volume": changed(5, "-1"),
    "off the grid": [str(5 * MINUTE_MS + 1), *GOOD],
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("newest_first", [False, True])
def test_a_bad_row_of_a_page_costs_itself_and_names_its_minute(bad, newest_first):
    rows = [row(4), bad, row(6)]
    page = read_page(answer(rows[::-1] if newest_first else rows), SPOT, END_MS)
    assert [one.open_ms // MINUTE_MS for one in page] == [4, 5, 6]
    assert [type(one) for one in page] == [Candle, InvalidRow, Candle]
    assert page[1].reason


@pytest.mark.parametrize("bad", [None, "row", [], {}, 7, ["soon", *GOOD], [None, *GOOD]])
def test_a_row_without_a_time_names_no_minute(bad):
    page = read_page(answer([row(4), bad, row(6)]), SPOT, END_MS)
    assert [one.open_ms for one in page] == [None, 4 * MINUTE_MS, 6 * MINUTE_MS]


FUTURES = ["300000", "5", "7", "4", "6", "2", "10"]
GOOD_ROWS = {
    "numeric time": (SPOT, [300_000, *GOOD]),
    "a time with a fraction of nothing": (SPOT, ["300000.0", *GOOD]),
    "numbers for prices": (SPOT, ["300000", 5, Decimal("7.0"), 4, 6, 2, 10, 10]),
    "more columns than documented": (SPOT, [*row(5), "x", None, {"a": 1}]),
    "null in an unused column": (USDT_FUTURES, [*FUTURES, None]),
    "an object in an unused column": (USDT_FUTURES, [*FUTURES, {"usdt": "10"}]),
    "a number in an unused column": (USDT_FUTURES, [*FUTURES, 10]),
    "one of two quote volumes is null": (SPOT, changed(6, None)),
    "one of two quote volumes is missing": (SPOT, row(5)[:7]),
    "spaces around numbers": (SPOT, [f" {cell} " for cell in row(5)]),
    "scientific notation": (SPOT, ["3e5", "5E0", "7e+0", "40E-1", "0.6e1", "2", "1e1", "1e1"]),
}


@pytest.mark.parametrize(("product", "good"), GOOD_ROWS.values(), ids=GOOD_ROWS)
def test_the_same_values_in_another_form_are_the_same_candle(product, good):
    (candle,) = read_page(answer([good]), product, END_MS)
    assert isinstance(candle, Candle), candle.reason
    assert (candle.open_ms, *candle.values) == (300_000, 5, 7, 4, 6, 2, 10)


def test_numbers_of_a_frame_keep_their_digits():
    arg = {"instType": "SPOT", "channel": "candle1m", "instId": "BTCUSDT"}
    frame = json.dumps({"action": "update", "arg": arg, "ts": 300_500, "data": [row(5)]})
    frame = frame.replace('"6"', "67160.25559653090524111836").replace('"7"', "70000")
    [event] = messages.read_frame(frame, {("SPOT", "BTCUSDT"): BTC})
    assert event.candles[0].close == Decimal("67160.25559653090524111836")


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_row_of_a_frame_costs_itself(bad):
    arg = {"instType": "SPOT", "channel": "candle1m", "instId": "BTCUSDT"}
    rows = [row(4), bad, row(6)]
    frame = json.dumps({"action": "snapshot", "arg": arg, "ts": 400_500, "data": rows})
    [event] = messages.read_frame(frame, {("SPOT", "BTCUSDT"): BTC})
    assert [candle.open_ms for candle in event.candles] == [4 * MINUTE_MS, 6 * MINUTE_MS]
    assert [one.open_ms // MINUTE_MS for one in event.invalid] == [5]


def test_two_different_rows_of_one_minute_both_come():
    """The daemon takes neither of them."""
    page = read_page(answer([row(5), row(5, "5", "8", "4", "8", "2", "10", "10"), row(5)]), SPOT, END_MS)
    assert [one.open_ms for one in page] == [300_000, 300_000]


def test_one_row_later_than_asked_for_is_left_out_and_several_are_another_answer():
    rows = [row(number) for number in range(5)]
    page = read_page(answer([*rows, row(500)]), SPOT, END_MS)
    assert [one.open_ms // MINUTE_MS for one in page] == [0, 1, 2, 3, 4]
    with pytest.raises(ExchangeError, match="asked for bars"):
        read_page(answer([*rows, row(500), row(501)]), SPOT, END_MS)


# ---------------------------------------------------------------- pages of a window


SPOILED = {
    "zeros": lambda row: [[row[0], "0", "0", "0", *row[4:]]],
    "no time": lambda row: [[None, *row[1:]]],
    "time in seconds": lambda row: [[row[0][:-3], *row[1:]]],
    "time 0": lambda row: [["0", *row[1:]]],
    "nothing at all": lambda row: [None],
    "contradiction": lambda row: [row, [*row[:5], "77", *row[6:]]],
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("days_ago", [1, 35])
async def test_a_window_with_bad_rows_has_all_the_others(spoil, days_ago):
    http = PlainHttp()
    start_ms = START_MS - days_ago * DAY_MS
    end_ms = start_ms + 999 * MINUTE_MS
    spoiled = [start_ms + number * MINUTE_MS for number in (0, 1, 350, 500, 501, 502, 998)]
    async with FakeBitget(ManualClock(START_MS), [FakeMarket(symbol=BTC, tape=Synthetic(3))]) as fake:
        for open_ms in spoiled:
            fake.garble(BTC, open_ms, spoil)
        exchange = Bitget(BitgetSettings(rest_url=fake.rest_url), fake.clock)
        rows = await exchange.fetch_history(http, BTC, start_ms, end_ms)
        truth = {candle.open_ms: candle.values for candle in fake.truth(BTC, start_ms, end_ms)}
        http.close()
    good = {one.open_ms: one.values for one in rows if isinstance(one, Candle) and one.open_ms not in spoiled}
    assert good == {open_ms: values for open_ms, values in truth.items() if open_ms not in spoiled}
