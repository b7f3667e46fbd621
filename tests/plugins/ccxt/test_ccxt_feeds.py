"""Live candles over ccxt: of its sockets, made from trades, or by polling."""

import asyncio
import json
from decimal import Decimal

import pytest

from candled import (
    MINUTE_MS,
    Candles,
    PollingFeed,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    Unavailable,
)
from candled.clock import SystemClock
from candled.ingest.http import HttpClient
from tests import deadlines
from tests.clocks import START_MS
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Recorded
from tests.plugins.ccxt.answers import answer, rows_from
from tests.plugins.ccxt.known import SPOT, make, market_of, require_ccxt
from tests.plugins.local import FakeHttp, socket_server


async def take(feed, http, count):
    """The first events of a feed."""
    found = []
    stream = feed.stream_events(http)
    try:
        async with deadlines.timeout(20):
            async for event in stream:
                found.append(event)
                if len(found) == count:
                    break
    finally:
        await stream.aclose()
    return found


async def take_all(stream):
    async for _ in stream:
        pass


@pytest.mark.parametrize(
    ("exchange", "kind"),
    [("bitget", "CandleFeed"), ("kraken", "CandleFeed"), ("bitstamp", "TradeFeed"), ("bitso", "PollingFeed")],
)
def test_the_feed_is_the_best_one_that_ccxt_has(exchange, kind):
    assert type(make(exchange).make_feed([SPOT])).__name__ == kind
    assert isinstance(make(exchange, feed="polling").make_feed([SPOT]), PollingFeed)


# ---------------------------------------------------------------- Bitget


@pytest.fixture
async def fake():
    require_ccxt()
    market = FakeMarket(symbol=SPOT, tape=Recorded.load("bitget-spot-btcusdt"))
    async with FakeBitget(SystemClock(), [market]) as fake:
        yield fake


def bitget_at(fake, **settings):
    exchange = make("bitget", **settings)
    exchange.clock = fake.clock
    client = exchange._client
    client.markets = None  # they are read from the fake
    api = client.urls["api"]
    for name in api:
        api[name] = dict.fromkeys(api[name], fake.ws_url) if isinstance(api[name], dict) else fake.rest_url
    return exchange


@pytest.mark.slow
async def test_bitget_is_read_from_its_socket_and_over_rest(fake):
    exchange, http = bitget_at(fake), HttpClient(fake.clock, 100.0)
    http._limits = exchange.request_budgets
    try:
        (market,) = await exchange.fetch_markets(http)
        assert (market.symbol, market.status) == (SPOT, "trading")
        subscribed, event = await take(exchange.make_feed([SPOT]), http, 2)
        assert subscribed == Subscribed(SPOT)
        assert len(event.candles) == 500
        finished = fake.truth(str(SPOT), event.candles[0].open_ms, event.candles[-1].open_ms)
        assert [one.values[:5] for one in event.candles[:-1]] == [one.values[:5] for one in finished]
        end_ms = fake.now_ms() // MINUTE_MS * MINUTE_MS - 600 * MINUTE_MS
        rows = await exchange.fetch_history(http, SPOT, end_ms - 150 * MINUTE_MS, end_ms)
        truth = fake.truth(str(SPOT), end_ms - 150 * MINUTE_MS, end_ms)
        assert [one.values[:5] for one in sorted(rows)] == [one.values[:5] for one in truth]
        assert http.describe()[fake.rest_url.removeprefix("http://")]["budgets"]["ccxt"] < 1
    finally:
        http.close()


@pytest.mark.slow
async def test_a_lost_connection_interrupts_the_feed(fake):
    exchange, http = bitget_at(fake), HttpClient(fake.clock, 100.0)
    http._limits = exchange.request_budgets
    stream = exchange.make_feed([SPOT]).stream_events(http)
    try:
        async with deadlines.timeout(20):
            await anext(stream)
            fake.drop_all()
            with pytest.raises(Unavailable):
                await take_all(stream)
    finally:
        await stream.aclose()
        http.close()


# ---------------------------------------------------------------- other sockets


def at_socket(exchange, url):
    """Let all sockets of ccxt go to one address."""
    exchange._client.urls = {**exchange._client.urls, "api": {**exchange._client.urls["api"], "ws": url}}


async def test_json_numbers_of_a_socket_keep_their_digits_and_a_refused_symbol_is_no_interruption():
    push = {"channel": "ohlc", "type": "update", "timestamp": "2025-10-09T08:54:30Z", "data": [{
        "symbol": "BTC/USDT", "open": 1, "high": 3, "low": 1, "close": 2, "vwap": 1, "trades": 8, "volume": 5,
        "interval_begin": "2025-10-09T08:54:00.000000000Z", "interval": 1, "timestamp": "2025-10-09T08:55:00.000Z"}],
    }  # fmt: skip
    text = json.dumps(push).replace('"volume": 5', '"volume": 12345678901.12345678901')

    async def handle(peer):
        await peer.recv()
        await peer.send(text)
        await peer.wait_closed()

    unknown = Symbol("NOPE", "USDT")
    async with socket_server(handle) as url:
        exchange = make("kraken")
        exchange._client.urls["api"]["ws"] = {"public": url, "private": url, "publicV2": url, "privateV2": url}
        feed = exchange.make_feed([SPOT, unknown])
        events = await take(feed, FakeHttp(lambda path, query: "{}"), 3)
    (rejected,) = [one for one in events if isinstance(one, SubscriptionRejected)]
    assert rejected.symbol == unknown
    assert "BadSymbol" in rejected.reason
    (found,) = [one for one in events if isinstance(one, Candles)]
    assert (found.candles[0].open_ms, str(found.candles[0].volume)) == (START_MS, "12345678901.12345678901")


async def test_candles_are_made_from_trades():
    """Trades before the subscription do not count, and their digits are kept."""
    exchange = make("bitstamp")
    trades = [
        {"id": "7", "timestamp": START_MS + 170_000, "price": "10.1", "amount": "1"},
        {"id": "8", "timestamp": START_MS + 181_000, "price": "10.20", "amount": "0.12345678901234567891"},
        {"id": "8", "timestamp": START_MS + 181_000, "price": "10.20", "amount": "0.12345678901234567891"},
        {"id": "9", "timestamp": START_MS + 182_000, "price": "10.1", "amount": "2"},
    ]
    answers = [trades, [{**trades[3], "id": "x", "amount": 0.3}]]

    class Watcher:
        errors, market = exchange._client.errors, exchange._client.market

        async def watch_trades(self, symbol):
            if len(answers) < 2:
                await exchange.clock.advance(33)  # into the next minute
            return answers.pop(0) if answers else await asyncio.Event().wait()

        async def close(self): ...

    async def make_watcher(http):
        return Watcher()

    exchange.make_watcher = make_watcher
    _, first, second = await take(exchange.make_feed([SPOT]), FakeHttp(lambda path, query: ""), 3)
    assert first.from_trades
    (candle,) = first.candles
    assert (candle.open_ms, str(candle.open), str(candle.close)) == (START_MS + 180_000, "10.20", "10.1")
    assert str(candle.volume) == "2.12345678901234567891"
    assert [one.open_ms for one in second.invalid] == [START_MS + 180_000]  # a float: the minute is left to REST


def test_trades_of_inverse_contracts_have_no_amount_in_coins():
    from candled_plugins.ccxt.messages import contract_size

    exchange = make("bitstamp")
    linear = market_of(exchange._client, Symbol("BTC", "USDC", "USDC"))
    assert contract_size(linear) == Decimal("0.5")
    assert contract_size({**linear, "linear": False}) is None


# ---------------------------------------------------------------- polling


async def test_polling_reads_the_newest_minutes():
    exchange = make("bitso")
    http = FakeHttp(lambda path, query: answer("bitso", rows_from(START_MS + MINUTE_MS, 2)))
    (event,) = await take(exchange.make_feed([SPOT]), http, 1)
    assert [one.open_ms for one in event.candles] == [START_MS + MINUTE_MS, START_MS + 2 * MINUTE_MS]


def test_polls_of_many_symbols_use_at_most_half_of_the_budget():
    exchange = make("bitso")
    assert exchange._polling_step(1) == 15
    assert exchange._polling_step(10_000) == 60
    count = 5
    needed_s = count / (exchange.request_budgets["ccxt"].limit * exchange.request_budgets["ccxt"].share / 60)
    assert exchange._polling_step(count) >= 2 * needed_s
