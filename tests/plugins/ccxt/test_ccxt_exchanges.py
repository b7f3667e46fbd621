"""History of many exchanges over ccxt: exact numbers, pages and refusals, with answers that are made up."""

import json
from decimal import Decimal

import pytest
from hypothesis import given

from candled import MINUTE_MS, ConfigError, ExchangeError, Interval, InvalidRow, Symbol, Unavailable
from tests.clocks import START_MS
from tests.plugins.ccxt.answers import SHAPES, answer, rows_from
from tests.plugins.ccxt.known import SPOT, SWAP, make, market_of
from tests.plugins.local import WINDOWS, FakeHttp, opening_times, window
from tests.tiers import few_examples


def test_there_are_enough_exchanges():
    assert len(SHAPES) >= 20


@pytest.mark.parametrize("exchange", SHAPES)
async def test_rows_keep_every_digit_that_the_exchange_sent(exchange):
    rows = rows_from(START_MS, 2)
    http = FakeHttp(lambda path, query: answer(exchange, rows))
    symbol = SWAP if exchange in ("hyperliquid", "kucoinfutures") else SPOT
    found = await make(exchange, symbol).fetch_history(http, symbol, START_MS, START_MS + 3 * MINUTE_MS)
    assert opening_times(found) == [START_MS, START_MS + MINUTE_MS]
    for candle, row in zip(sorted(found), rows, strict=True):
        assert [str(value) for value in candle[1:6]] == list(row[1:])
        assert (candle.quote_volume, candle.as_of_ms, candle.final) == (None, 0, False)
    assert {budget for _, _, _, budget in http.requests} == {"ccxt"}


OTHER_KINDS = [
    ("kucoinfutures", "kucoinfutures", Symbol("BTC", "USDT", "USDT"), "/api/v1/kline/query"),
    ("htx", "htx", Symbol("BTC", "USDT", "USDT"), "/linear-swap-ex/market/history/kline"),
    ("hyperliquid", "hyperliquid", Symbol("BTC", "USDC"), "/info"),
]


@pytest.mark.parametrize(("exchange", "shape", "symbol", "path"), OTHER_KINDS)
async def test_contracts_and_a_spot_pair_are_read_with_candles_of_a_socket(exchange, shape, symbol, path):
    rows, made = rows_from(START_MS, 2), make(exchange, symbol)
    http = FakeHttp(lambda path, query: answer(shape, rows))
    found = await made.fetch_history(http, symbol, START_MS, START_MS + 3 * MINUTE_MS)
    assert [[str(value) for value in candle[1:6]] for candle in sorted(found)] == [list(row[1:]) for row in rows]
    assert http.requests[0][0] == path
    assert type(made.make_feed([symbol])).__name__ == "CandleFeed"


# ---------------------------------------------------------------- pages


class Bitstamp:
    """An exchange with a row for every minute up to START_MS + 2, which returns the `newest` rows of a range."""

    def __init__(self, most: int = 1000, quiet: range = range(0)) -> None:
        self.most, self.quiet = most, quiet

    def __call__(self, path: str, query: dict[str, str]) -> str:
        start_ms, end_ms = int(query["start"]) * 1000, int(query["end"]) * 1000
        times = range(-(-start_ms // MINUTE_MS) * MINUTE_MS, min(end_ms, START_MS + 2 * MINUTE_MS) + 1, MINUTE_MS)
        traded = [at for at in times if at // MINUTE_MS not in self.quiet]
        return answer("bitstamp", [row for at in traded[-self.most :] for row in rows_from(at, 1)])


@few_examples
@given(WINDOWS)
async def test_every_minute_of_a_range_is_found(ago_and_count):
    exchange = make("bitstamp")
    start_ms, end_ms = window(*ago_and_count, exchange.max_history_minutes)
    found = await exchange.fetch_history(FakeHttp(Bitstamp()), SPOT, start_ms, end_ms)
    assert opening_times(found) == list(range(start_ms, end_ms, MINUTE_MS))


@pytest.mark.parametrize("most", [7, 60, 500])
async def test_an_answer_that_the_exchange_cut_is_completed(most):
    """ccxt says that a page of Bitstamp has 1,000 rows; here it has fewer."""
    exchange, http = make("bitstamp"), FakeHttp(Bitstamp(most))
    found = await exchange.fetch_history(http, SPOT, START_MS - 100 * MINUTE_MS, START_MS)
    assert opening_times(found) == list(range(START_MS - 100 * MINUTE_MS, START_MS, MINUTE_MS))
    assert len(http.requests) <= 2 + 2 * (100 // most)


async def test_a_range_with_quiet_minutes_is_asked_for_once_when_the_size_of_pages_is_known():
    first = START_MS // MINUTE_MS
    exchange, http = make("bitstamp"), FakeHttp(Bitstamp(quiet=range(first - 50, first - 20)))
    await exchange.fetch_history(http, SPOT, START_MS - 100 * MINUTE_MS, START_MS)
    http.requests.clear()
    found = await exchange.fetch_history(http, SPOT, START_MS - 60 * MINUTE_MS, START_MS)
    assert len(found) == 30
    assert len(http.requests) == 1
    assert await exchange.fetch_history(http, SPOT, START_MS - 40 * MINUTE_MS, START_MS - 30 * MINUTE_MS) == []


async def test_an_exchange_that_ignores_the_start_of_a_range_does_not_count_as_quiet():
    """Kraken answers with its newest rows, also when it is asked for older ones."""
    http = FakeHttp(lambda path, query: answer("kraken", rows_from(START_MS, 2)))
    with pytest.raises(ExchangeError, match="asked for bars of BTC/USDT from"):
        await make("kraken").fetch_history(http, SPOT, START_MS - 90 * MINUTE_MS, START_MS - 80 * MINUTE_MS)


async def test_bars_begin_on_their_boundaries_in_utc():
    day_ms = 86_400_000
    first = START_MS // day_ms * day_ms - 2 * day_ms
    rows = [rows_from(first + n * day_ms, 1)[0] for n in range(2)]
    http = FakeHttp(lambda path, query: answer("bitstamp", rows))
    bars = await make("bitstamp").fetch_bars(http, SPOT, Interval.parse("1D"), first, first + 2 * day_ms)
    assert opening_times(bars) == [first, first + day_ms]
    rows[0] = rows[0]._replace(open_ms=first + 8 * 3_600_000)
    with pytest.raises(ExchangeError, match="boundaries in UTC"):
        await make("bitstamp").fetch_bars(http, SPOT, Interval.parse("1D"), first, first + 2 * day_ms)
    assert await make("bitstamp").fetch_bars(http, SPOT, Interval.parse("2m"), 0, 10) is None


# ---------------------------------------------------------------- refusals


async def test_a_float_is_refused():
    """A number that ccxt computed has not the exchange's digits."""
    exchange = make("bitstamp")
    exchange._client.parse_ohlcv = lambda row, market=None: [START_MS, "1", "2", "1", "2", 0.1 + 0.2]
    http = FakeHttp(lambda path, query: answer("bitstamp", rows_from(START_MS, 1)))
    (found,) = await exchange.fetch_history(http, SPOT, START_MS, START_MS + MINUTE_MS)
    assert isinstance(found, InvalidRow)
    assert "expected numbers as text, got '0.30000000000000004'" in found.reason


@pytest.mark.parametrize(
    ("exchange", "body", "error", "paused"),
    [
        ("okx", {"code": "50011", "msg": "Too Many Requests", "data": []}, Unavailable, True),
        ("okx", {"code": "51001", "msg": "Instrument ID does not exist", "data": []}, ExchangeError, False),
        ("kraken", {"error": ["EService:Unavailable"]}, Unavailable, False),
        ("bybit", {"retCode": 10006, "retMsg": "Too many visits!", "result": {}}, Unavailable, True),
    ],
)
async def test_refusals_are_translated(exchange, body, error, paused):
    http = FakeHttp(lambda path, query: json.dumps(body))
    with pytest.raises(error):
        await make(exchange).fetch_history(http, SPOT, START_MS, START_MS + MINUTE_MS)
    assert bool(http.paused) == paused


async def test_a_symbol_that_ccxt_does_not_know_is_an_error():
    with pytest.raises(ExchangeError, match="BadSymbol"):
        await make("okx").fetch_history(FakeHttp(lambda path, query: "[]"), SWAP, START_MS, START_MS + MINUTE_MS)


@pytest.mark.parametrize(
    ("exchange", "problem"),
    [
        ("", "expected one that ccxt .* knows, got ''"),
        ("krakn", "did you mean kraken?"),
        ("coincheck", "ccxt has no candles of a minute of coincheck"),
    ],
)
def test_an_exchange_that_cannot_be_read_is_an_error_of_the_settings(exchange, problem):
    with pytest.raises(ConfigError, match=problem):
        make(exchange)


# ---------------------------------------------------------------- markets and budgets


async def test_weights_are_those_of_ccxt_and_the_budget_half_of_its_limit():
    exchange, http = make("binance"), FakeHttp(lambda path, query: answer("binance", rows_from(START_MS, 1)))
    await exchange.fetch_history(http, SPOT, START_MS, START_MS + MINUTE_MS)
    client = exchange._client
    (_, query, weight, _), *_ = http.requests
    limits = client.api["public"]["get"]["klines"]
    assert weight == client.calculate_rate_limiter_cost(
        "public", "GET", "klines", {"limit": int(query["limit"])}, limits
    )
    budget = exchange.request_budgets["ccxt"]
    assert budget.limit == 60_000 / client.rateLimit
    assert budget.share == 0.5


async def test_markets_are_those_of_the_kind_with_their_steps():
    exchange = make("okx")
    client = exchange._client
    spot, swap = market_of(client, SPOT), market_of(client, SWAP)
    halted = {**spot, "symbol": "ETH/USDT", "active": False, "created": None}

    async def fetch_markets(params=None):
        return [spot, swap, halted, {**spot, "symbol": "not a symbol", "id": "x"}]

    async def fetch_tickers(symbols=None, params=None):
        return {"BTC/USDT": {"quoteVolume": "12345678901234567890.5"}}

    client.fetch_markets, client.fetch_tickers = fetch_markets, fetch_tickers
    found = await exchange.fetch_markets(FakeHttp(lambda path, query: "[]"))
    assert [(str(one.symbol), one.status, one.tick_size, one.listed_ms, one.quote_volume_24h) for one in found] == [
        ("BTC/USDT", "trading", Decimal("0.01"), 1_600_000_000_000, Decimal("12345678901234567890.5")),
        ("ETH/USDT", "suspended", Decimal("0.01"), None, None),
    ]
    assert found[0].decimals == (2, 4)
