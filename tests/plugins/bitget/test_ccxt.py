"""ccxt, an independent client of Bitget, reads the fake's candles as they are: this keeps the fake honest."""

import pytest

from candled import Symbol
from candled.clock import SystemClock
from candled.model import MINUTE_MS
from candled_plugins.bitget.exchange import Bitget, BitgetSettings
from tests import deadlines
from tests.clocks import ScaledClock
from tests.fakes.bitget import DAY_MS, FakeBitget, FakeMarket
from tests.fakes.http import PlainHttp
from tests.fakes.tapes import Recorded
from tests.lazy import LazyModule

ccxt = LazyModule("ccxt.pro")

SPOT, FUTURES = "BTC/USDT", "ETH/USDT:USDT"
UNIFIED = [SPOT, FUTURES]
TIMEOUT_S = 30


@pytest.fixture
async def fake(request):
    markets = [
        FakeMarket(symbol=Symbol.parse(SPOT), tape=Recorded.load("bitget-spot-btcusdt")),
        FakeMarket(symbol=Symbol.parse(FUTURES), tape=Recorded.load("bitget-usdt-futures-ethusdt")),
    ]
    async with FakeBitget(getattr(request, "param", SystemClock)(), markets) as fake:
        yield fake


@pytest.fixture
async def bitget(fake):
    pytest.importorskip("ccxt.pro", reason="needs ccxt: pip install -e '.[test]'")
    bitget = ccxt.bitget({"enableRateLimit": False})
    bitget.has["fetchCurrencies"] = False
    bitget.milliseconds = fake.now_ms
    api = bitget.urls["api"]
    for name in api:
        api[name] = dict.fromkeys(api[name], fake.ws_url) if isinstance(api[name], dict) else fake.rest_url
    yield bitget
    await bitget.close()


def as_floats(candles):
    return [[candle.open_ms, *(float(number) for number in candle[1:6])] for candle in candles]


@pytest.mark.slow
@pytest.mark.parametrize("symbol", UNIFIED)
async def test_ccxt_fetches_the_candles_of_the_last_hours(fake, bitget, symbol):
    rows = await bitget.fetch_ohlcv(symbol, "1m", limit=300)
    assert len(rows) == 300
    finished = fake.truth(symbol, rows[0][0], rows[-1][0])
    assert rows[:-1] == as_floats(finished)


@pytest.mark.slow
@pytest.mark.parametrize("symbol", UNIFIED)
@pytest.mark.parametrize("days_ago", [3, 40])
async def test_ccxt_fetches_older_candles_by_their_time(fake, bitget, symbol, days_ago):
    start_ms = fake.now_ms() - days_ago * DAY_MS
    start_ms -= start_ms % MINUTE_MS
    rows = await bitget.fetch_ohlcv(symbol, "1m", since=start_ms, limit=150)
    assert rows == as_floats(fake.truth(symbol, rows[0][0], rows[-1][0] + MINUTE_MS))
    assert len(rows) >= 149
    assert len(fake.requests_to("candles" if days_ago == 3 else "history-candles")) == 1


@pytest.mark.slow
async def test_ccxt_gives_every_market_the_symbol_that_the_plugin_gives_it(fake, bitget):
    settings = BitgetSettings(markets=("spot", "usdt-futures"), ws_url=fake.ws_url, rest_url=fake.rest_url)
    http = PlainHttp()
    listed = await Bitget(settings, fake.clock).fetch_markets(http)
    http.close()
    assert sorted(str(market.symbol) for market in listed) == sorted(await bitget.load_markets())


@pytest.mark.slow
async def test_ccxt_understands_the_answer_about_a_symbol_that_does_not_exist(fake, bitget):
    await bitget.load_markets()
    with pytest.raises(ccxt.ExchangeError, match="40034"):
        await bitget.publicSpotGetV2SpotMarketCandles({"symbol": "NOPEUSDT", "granularity": "1min"})


@pytest.mark.slow
async def test_ccxt_understands_too_many_requests(fake, bitget):
    await bitget.load_markets()
    fake.rest_429()
    with pytest.raises(ccxt.DDoSProtection):
        await bitget.fetch_ohlcv(SPOT, "1m")


@pytest.mark.slow
@pytest.mark.parametrize("fake", [lambda: ScaledClock(60)], indirect=True)
@pytest.mark.parametrize("symbol", UNIFIED)
async def test_ccxt_watches_minutes_come_and_go_through_a_lost_connection(fake, bitget, symbol):
    fake.pong_within_s = None  # ccxt pings in real time
    fake.enforce_limits = False
    snapshot = await deadlines.wait_for(bitget.watch_ohlcv(symbol, "1m"), TIMEOUT_S)
    assert len(snapshot) == 500
    begun_ms = snapshot[-1][0]
    dropped, seen = False, {row[0]: row for row in snapshot}
    deadline = deadlines.now() + TIMEOUT_S
    while fake.now_ms() < begun_ms + 4 * MINUTE_MS:
        assert deadlines.now() < deadline
        if not dropped and fake.now_ms() > begun_ms + 2 * MINUTE_MS:
            fake.drop_all()
            dropped = True
        try:
            rows = await deadlines.wait_for(bitget.watch_ohlcv(symbol, "1m"), TIMEOUT_S)
        except ccxt.NetworkError:
            continue
        seen |= {row[0]: list(row) for row in rows}
    assert dropped
    assert fake.connections == 2
    finished = as_floats(fake.truth(symbol, snapshot[0][0], max(seen)))
    assert [seen[open_ms] for open_ms in sorted(seen)][:-1] == finished
    assert len(finished) > 500
