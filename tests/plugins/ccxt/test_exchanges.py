"""History of many exchanges over ccxt: exact numbers, pages and refusals, with answers that are made up."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled import MINUTE_MS, ExchangeError, Interval, InvalidRow, Unavailable
from tests.clocks import START_MS
from tests.plugins.ccxt.answers import SHAPES, answer, rows_from
from tests.plugins.ccxt.known import SPOT, SWAP, make
from tests.plugins.local import FakeHttp, opening_times
from tests.tiers import few_examples


def test_there_are_enough_exchanges():
    assert len(SHAPES) >= 20


@pytest.mark.parametrize("exchange", SHAPES)
async def test_rows_keep_every_digit_that_the_exchange_sent(exchange):
    rows = rows_from(START_MS, 2)
    http = FakeHttp(lambda path, query: answer(exchange, rows))
    symbol = SWAP if exchange == "hyperliquid" else SPOT
    found = await make(exchange, symbol).fetch_history(http, symbol, START_MS, START_MS + 3 * MINUTE_MS)
    assert opening_times(found) == [START_MS, START_MS + MINUTE_MS]
    for candle, row in zip(sorted(found), rows, strict=True):
        assert [str(value) for value in candle[1:6]] == list(row[1:])
        assert (candle.quote_volume, candle.as_of_ms, candle.final) == (None, 0, False)
    assert {budget for _, _, _, budget in http.requests} == {"ccxt"}
