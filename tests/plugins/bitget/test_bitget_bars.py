"""Bitget's own longer bars: paged, in UTC, and never those of a day that begins in UTC+8."""

import json

import pytest

from candled import ExchangeError, Interval, Symbol
from candled.model import DEFAULT_INTERVALS, MINUTE
from candled.store.batch import fold_bars
from candled_plugins.bitget.exchange import Bitget, BitgetSettings
from candled_plugins.bitget.messages import SPOT, USDT_FUTURES
from tests.clocks import ManualClock
from tests.fakes.bitget import DAY_MS, FakeBitget, FakeMarket
from tests.fakes.http import PlainHttp
from tests.fakes.tapes import Recorded, Synthetic
from tests.plugins.bitget.pages import read_page

BTC, ETH = Symbol("BTC", "USDT"), Symbol("ETH", "USDT", "USDT")
NOW_MS = 1_763_640_000_000 + 12_345  # 2025-11-20T12:00Z, a Thursday
LISTED_MS = NOW_MS - NOW_MS % DAY_MS - 17 * DAY_MS  # a Monday
LONGER = [interval for interval in DEFAULT_INTERVALS if interval != MINUTE]


@pytest.fixture
async def fake():
    markets = [
        FakeMarket(symbol=BTC, tape=Synthetic(3), listed_ms=LISTED_MS),
        FakeMarket(
            symbol=ETH,
            tape=Recorded.load("bitget-usdt-futures-ethusdt"),
            listed_ms=LISTED_MS,
        ),
    ]
    async with FakeBitget(ManualClock(NOW_MS), markets) as fake:
        fake.enforce_limits = False
        yield fake


@pytest.fixture
def http():
    http = PlainHttp()
    yield http
    http.close()


def bitget_at(fake):
    settings = BitgetSettings(markets=("spot", "usdt-futures"), ws_url=fake.ws_url, rest_url=fake.rest_url)
    return Bitget(settings, fake.clock)


@pytest.mark.slow
@pytest.mark.parametrize("symbol", [BTC, ETH], ids=str)
@pytest.mark.parametrize("interval", LONGER, ids=str)
@pytest.mark.parametrize("takes_in_end", [True, False])
async def test_they_equal_the_sums_of_the_minutes(fake, http, symbol, interval, takes_in_end):
    fake.history_takes_in_end = takes_in_end
    reach_ms = 7 * DAY_MS if interval.ms > 3_600_000 else 250 * interval.ms
    end_ms = interval.floor(NOW_MS)
    start_ms = interval.floor(max(LISTED_MS, end_ms - reach_ms))
    bars = await bitget_at(fake).fetch_bars(http, symbol, interval, start_ms, end_ms)
    expected = fold_bars(fake.truth(symbol, start_ms, end_ms), interval)
    assert [(bar.open_ms, *bar.values) for bar in bars] == [(bar.open_ms, *bar.values) for bar in expected]
    assert len(bars) >= 1


async def test_more_bars_than_a_page_come_without_a_gap(fake, http):
    m5 = Interval.parse("5m")
    end_ms = m5.floor(NOW_MS)
    bars = await bitget_at(fake).fetch_bars(http, BTC, m5, end_ms - 450 * m5.ms, end_ms)
    assert [bar.open_ms for bar in bars] == list(range(end_ms - 450 * m5.ms, end_ms, m5.ms))
    assert len(fake.requests_to("history-candles")) == 3


@pytest.mark.parametrize("symbol", [BTC, ETH], ids=str)
async def test_a_length_that_bitget_does_not_have_is_not_offered(fake, http, symbol):
    assert await bitget_at(fake).fetch_bars(http, symbol, Interval.parse("8h"), 0, DAY_MS) is None
    assert fake.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1day", "1week"])
async def test_the_fake_begins_days_and_weeks_without_utc_in_their_name_at_16_utc(fake, http, name):
    query = {"symbol": "BTCUSDT", "granularity": name, "endTime": str(NOW_MS), "limit": "3"}
    body = await http.get_json(f"{fake.rest_url}/api/v2/spot/market/history-candles", query)
    assert {int(row[0]) % DAY_MS for row in body["data"]} == {16 * 3_600_000}


@pytest.mark.parametrize(("product", "interval"), [(SPOT, "1D"), (USDT_FUTURES, "1W")])
def test_a_day_that_begins_in_utc_plus_8_is_an_error(product, interval):
    row = [str(LISTED_MS - 8 * 3_600_000), "2", "3", "1", "2", "1", "2", "2"]
    body = json.loads(json.dumps({"code": "00000", "requestTime": NOW_MS, "data": [row]}))
    with pytest.raises(ExchangeError, match=f"bars of {interval} on their boundaries"):
        read_page(body, product, NOW_MS, Interval.parse(interval))


@pytest.mark.parametrize("product", [SPOT, USDT_FUTURES])
def test_every_default_interval_has_a_name_that_means_utc(product):
    names = [product.granularities[str(interval)] for interval in DEFAULT_INTERVALS]
    assert names[-2:] == ["1Dutc", "1Wutc"]
    assert len(set(names)) == len(names)
