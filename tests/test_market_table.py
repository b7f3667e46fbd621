"""Facts about markets are read when they are first needed, and again for a market that is new."""

from decimal import Decimal

import pytest

from candled import ExchangeError, InvalidCandle, MarketTable, base_volume
from tests.plugins.local import FakeHttp


async def test_facts_are_read_once_and_again_for_a_new_market():
    listed, http = {"BTC": 1}, FakeHttp(lambda path, query: dict(listed))
    table: MarketTable[str, int] = MarketTable(lambda http: http.get_json("https://x.example/markets"))
    assert await table.find(http, "BTC") == 1
    await table.load(http)
    assert len(http.requests) == 1
    listed["ETH"] = 2
    assert await table.find(http, "ETH") == 2
    with pytest.raises(ExchangeError, match="the exchange has no market XRP"):
        await table.find(http, "XRP")
    assert len(http.requests) == 3


def test_contracts_are_base_coins_with_all_their_digits():
    assert base_volume("12345678901234567890", Decimal("0.0001")) == "1234567890123456.7890"
    with pytest.raises(InvalidCandle, match="expected a number of contracts, got 'x'"):
        base_volume("x", Decimal(1))
