"""Bitget's history, markets and feeds, against the fake Bitget over real HTTP."""

import json
from decimal import Decimal

import pytest

from candled import ExchangeError, Market, Subscribed, Symbol, Unavailable
from candled.ingest.distribution import distribute
from candled.model import MINUTE_MS
from candled_plugins import bitget
from candled_plugins.bitget import messages
from candled_plugins.bitget.exchange import Bitget, BitgetSettings
from tests.clocks import START_MS, ManualClock
from tests.fakes.bitget import DAY_MS, FakeBitget, FakeMarket
from tests.fakes.http import PlainHttp
from tests.fakes.tapes import Recorded, Synthetic

SPOT, FUTURES = Symbol("BTC", "USDT"), Symbol("ETH", "USDT", "USDT")
CROSS, THIN = Symbol("ETH", "BTC"), Symbol("EWZ", "USDT", "USDT")
NOW = START_MS + 30_000  # in the middle of a minute
LATEST = START_MS  # the minute in progress


def minutes_ago(count):
    return LATEST - count * MINUTE_MS


@pytest.fixture
async def fake():
    markets = [
        FakeMarket(symbol=SPOT, tape=Recorded.load("bitget-spot-btcusdt")),
        FakeMarket(symbol=CROSS, tape=Synthetic(7), usdt_per_quote=60_000),
        FakeMarket(symbol=FUTURES, tape=Recorded.load("bitget-usdt-futures-ethusdt")),
        FakeMarket(
            symbol=THIN,
            tape=Recorded.load("bitget-usdt-futures-ewzusdt"),
            active=False,
            listed_ms=minutes_ago(60 * 24 * 40),
        ),
    ]
    async with FakeBitget(ManualClock(NOW), markets) as fake:
        yield fake


@pytest.fixture
def http():
    http = PlainHttp()
    yield http
    http.close()


def bitget_at(fake, *markets, **more):
    settings = BitgetSettings(
        **{
            "markets": markets or ("spot", "usdt-futures"),
            "ws_url": fake.ws_url,
            "rest_url": fake.rest_url,
            "symbols_per_connection": 50,
            **more,
        }
    )
    return Bitget(settings, fake.clock)


def values(candles):
    return [(candle.open_ms, *candle.values) for candle in candles]


MARKETS = [SPOT, CROSS, FUTURES, THIN]


@pytest.mark.slow
@pytest.mark.parametrize("symbol", MARKETS, ids=str)
@pytest.mark.parametrize("days_ago", [0, 20, 35])
@pytest.mark.parametrize("takes_in_end", [True, False])
@pytest.mark.parametrize("pages_count_rows", [True, False])
async def test_history_equals_what_was_traded_digit_for_digit(
    fake, http, symbol, days_ago, takes_in_end, pages_count_rows
):
    fake.candles_take_in_end = fake.history_takes_in_end = takes_in_end
    fake.pages_count_rows = pages_count_rows
    end_ms = LATEST - days_ago * DAY_MS
    start_ms = end_ms - Bitget.max_history_minutes * MINUTE_MS
    candles = await bitget_at(fake).fetch_history(http, symbol, start_ms, end_ms)
    assert len(candles) == Bitget.max_history_minutes
    assert values(candles) == values(fake.truth(symbol, start_ms, end_ms))
    assert {candle.as_of_ms for candle in candles} == {NOW}
    assert not any(candle.final for candle in candles)


@pytest.mark.slow
@pytest.mark.parametrize(("days_ago", "endpoint", "requests"), [(1, "candles", 1), (35, "history-candles", 5)])
async def test_a_window_costs_as_few_requests_as_its_endpoint_allows(fake, http, days_ago, endpoint, requests):
    start_ms = LATEST - days_ago * DAY_MS
    await bitget_at(fake).fetch_history(http, FUTURES, start_ms, start_ms + Bitget.max_history_minutes * MINUTE_MS)
    assert len(fake.requests_to(endpoint)) == len(fake.requests) == requests


async def test_a_few_minutes_are_asked_for_as_a_few(fake, http):
    candles = await bitget_at(fake).fetch_history(http, FUTURES, minutes_ago(3), minutes_ago(1))
    assert values(candles) == values(fake.truth(FUTURES, minutes_ago(3), minutes_ago(1)))
    [request] = fake.requests
    assert request.query["limit"] == "3"


async def test_recent_history_ends_with_the_minute_in_progress(fake, http):
    candles = await bitget_at(fake).fetch_history(http, FUTURES, minutes_ago(2), LATEST + MINUTE_MS)
    assert [candle.open_ms for candle in candles] == [minutes_ago(2), minutes_ago(1), LATEST]
    [whole] = [candle for candle in candles if candle.open_ms == minutes_ago(1)]
    assert candles[-1].open == whole.close


async def test_the_endpoint_follows_the_exchange_clock_at_the_edge_of_a_month(fake, http):
    edge = NOW - fake.recent_reach_ms
    for start_ms in (edge - edge % MINUTE_MS - 10 * MINUTE_MS, edge - edge % MINUTE_MS + 10 * MINUTE_MS):
        candles = await bitget_at(fake).fetch_history(http, FUTURES, start_ms, start_ms + 5 * MINUTE_MS)
        assert values(candles) == values(fake.truth(FUTURES, start_ms, start_ms + 5 * MINUTE_MS))


async def test_before_the_listing_there_is_nothing_and_paging_ends(fake, http):
    end_ms = minutes_ago(60 * 24 * 40)
    start_ms = end_ms - 999 * MINUTE_MS
    assert await bitget_at(fake).fetch_history(http, THIN, start_ms, end_ms) == []
    assert len(fake.requests) <= 6


@pytest.mark.slow
async def test_history_that_begins_in_the_window_is_found_whole(fake, http):
    listed_ms = minutes_ago(60 * 24 * 40)
    start_ms, end_ms = listed_ms - 500 * MINUTE_MS, listed_ms + 499 * MINUTE_MS
    candles = await bitget_at(fake).fetch_history(http, THIN, start_ms, end_ms)
    assert values(candles) == values(fake.truth(THIN, start_ms, end_ms))
    assert len(candles) == 499


@pytest.mark.slow
@pytest.mark.parametrize("pages_count_rows", [True, False])
@pytest.mark.parametrize("days_ago", [1, 35])
async def test_a_gap_of_the_exchange_wider_than_a_page_hides_nothing_before_it(fake, http, days_ago, pages_count_rows):
    fake.pages_count_rows = pages_count_rows
    start_ms = LATEST - days_ago * DAY_MS
    end_ms = start_ms + 999 * MINUTE_MS
    fake.missing_minutes(FUTURES, (start_ms + 100 * MINUTE_MS, start_ms + 700 * MINUTE_MS))
    candles = await bitget_at(fake).fetch_history(http, FUTURES, start_ms, end_ms)
    assert values(candles) == values(fake.truth(FUTURES, start_ms, end_ms))
    assert len(candles) == 399


async def test_a_page_that_reaches_past_the_start_is_the_last_although_minutes_are_missing(fake, http):
    fake.pages_count_rows = True
    fake.missing_minutes(FUTURES, (minutes_ago(100), minutes_ago(60)))
    candles = await bitget_at(fake).fetch_history(http, FUTURES, minutes_ago(100), LATEST)
    assert len(candles) == 60
    assert len(fake.requests) == 1


async def test_a_revised_minute_is_read_as_it_is_now(fake, http):
    row = fake.truth(FUTURES, minutes_ago(5), minutes_ago(4))[0]
    tape_row = Synthetic(1).row(0)
    fake.revise(FUTURES, minutes_ago(5), tape_row)
    [candle] = await bitget_at(fake).fetch_history(http, FUTURES, minutes_ago(5), minutes_ago(4))
    assert candle.values == tuple(tape_row) != row.values


async def test_a_later_window_than_asked_for_is_an_error(fake, http):
    fake.window_shift_ms = 10 * MINUTE_MS
    with pytest.raises(ExchangeError, match="asked for bars of 1m before"):
        await bitget_at(fake).fetch_history(http, FUTURES, minutes_ago(300), minutes_ago(200))


async def test_an_earlier_window_than_asked_for_brings_nothing_outside_the_window(fake, http):
    fake.window_shift_ms = -90 * MINUTE_MS
    candles = await bitget_at(fake).fetch_history(http, FUTURES, minutes_ago(300), minutes_ago(200))
    assert values(candles) == values(fake.truth(FUTURES, minutes_ago(300), minutes_ago(289)))


async def test_an_unknown_symbol_is_an_error_with_bitgets_own_words(fake, http):
    with pytest.raises(ExchangeError, match="40034: Parameter NOPEUSDT does not exist"):
        await bitget_at(fake).fetch_history(http, Symbol("NOPE", "USDT"), minutes_ago(5), LATEST)


@pytest.mark.slow
async def test_too_many_requests_in_the_middle_of_a_window_do_not_shorten_it(fake, http):
    exchange, start_ms = bitget_at(fake), LATEST - 35 * DAY_MS
    for _ in range(4):
        await exchange.fetch_history(http, FUTURES, start_ms, start_ms + 999 * MINUTE_MS)
    with pytest.raises(Unavailable):
        await exchange.fetch_history(http, FUTURES, start_ms, start_ms + 999 * MINUTE_MS)


async def test_an_internal_failure_under_a_status_of_the_client_is_worth_another_try(fake, http):
    fake.rest_error("40725", "service return an error", status=400)
    with pytest.raises(Unavailable, match="40725"):
        await bitget_at(fake).fetch_history(http, FUTURES, minutes_ago(5), LATEST)


@pytest.mark.parametrize(("status", "error"), [(200, ExchangeError), (403, ExchangeError), (503, Unavailable)])
async def test_a_page_of_html_is_an_error(fake, http, status, error):
    fake.html_instead_of_json(status, times=1)
    exchange = bitget_at(fake)
    with pytest.raises(error):
        await exchange.fetch_history(http, FUTURES, minutes_ago(5), LATEST)
    assert len(await exchange.fetch_history(http, FUTURES, minutes_ago(5), LATEST)) == 5


async def test_an_exchange_that_is_down_is_unavailable(fake, http):
    fake.rest_down = True
    with pytest.raises(Unavailable):
        await bitget_at(fake).fetch_markets(http)


CENT, NONE = Decimal("0.01"), Decimal(0)


async def test_the_markets_of_spot_and_futures_are_listed_with_their_precision(fake, http):
    assert await bitget_at(fake, "spot").fetch_markets(http) == [
        Market(symbol=SPOT, price_decimals=2, volume_decimals=4, tick_size=CENT, quote_volume_24h=NONE),
        Market(symbol=CROSS, price_decimals=2, volume_decimals=4, tick_size=CENT, quote_volume_24h=NONE),
    ]
    futures = [
        Market(symbol=FUTURES, price_decimals=2, volume_decimals=4, tick_size=CENT, quote_volume_24h=NONE),
        Market(
            symbol=THIN,
            price_decimals=2,
            volume_decimals=4,
            tick_size=CENT,
            quote_volume_24h=NONE,
            status="suspended",
            listed_ms=minutes_ago(60 * 24 * 40),
        ),
    ]
    assert await bitget_at(fake, "usdt-futures").fetch_markets(http) == futures
    assert [market.symbol for market in await bitget_at(fake).fetch_markets(http)] == [SPOT, CROSS, FUTURES, THIN]


async def test_a_spot_pair_and_its_perpetual_have_a_history_each(fake, http):
    """Both are `ETHUSDT`."""
    spot = FakeMarket(symbol=Symbol("ETH", "USDT"), tape=Synthetic(9))
    async with FakeBitget(fake.clock, [spot, FakeMarket(symbol=FUTURES, tape=Synthetic(10))]) as both:
        exchange = bitget_at(both)
        pair = await exchange.fetch_history(http, spot.symbol, minutes_ago(9), LATEST)
        contract = await exchange.fetch_history(http, FUTURES, minutes_ago(9), LATEST)
        assert values(pair) == values(both.truth(spot.symbol, minutes_ago(9), LATEST))
        assert values(contract) == values(both.truth(FUTURES, minutes_ago(9), LATEST))
        assert not set(values(pair)) & set(values(contract))


@pytest.mark.parametrize("text", ["ETH/USDT:ETH", "ETH/USDT:USDT-261225", "ETH/USDT:USDT"])
async def test_bitget_refuses_a_contract_of_another_kind(fake, http, text):
    exchange = bitget_at(fake, "spot")
    with pytest.raises(ExchangeError, match=f"40034: Parameter {text} does not exist"):
        await exchange.fetch_history(http, Symbol.parse(text), minutes_ago(5), LATEST)


LISTINGS = [("", None), ("0", None), (None, None), (0, None), ("soon", None), ("1700000000000", 1_700_000_000_000)]


@pytest.mark.parametrize(("text", "listed_ms"), LISTINGS)
def test_a_listing_date_that_is_not_set_is_unknown(text, listed_ms):
    entry = {
        "symbol": "BTCUSDT",
        "baseCoin": "BTC",
        "quoteCoin": "USDT",
        "pricePrecision": "2",
        "quantityPrecision": "6",
    }
    body = {"code": "00000", "requestTime": 1, "data": [{**entry, "status": "online", "openTime": text}]}
    (market,) = messages.read_markets(body, {**body, "data": []}, messages.SPOT)
    assert market.listed_ms == listed_ms


async def test_symbols_spread_over_as_many_connections_as_the_limit_asks_for(fake):
    symbols = [Symbol(f"S{number}", "USDT") for number in range(120)]
    bitget = bitget_at(fake)
    groups, surplus = distribute(symbols, bitget.limits)
    feeds = [bitget.make_feed(group) for group in groups]
    assert surplus == ()
    assert [len(feed.symbols) for feed in feeds] == [50, 50, 20]
    assert [symbol for feed in feeds for symbol in feed.symbols] == symbols
    assert {feed.url for feed in feeds} == {fake.ws_url}


async def test_one_feed_carries_both_kinds_of_markets(fake):
    symbols = [FUTURES, SPOT]
    feed = bitget_at(fake).make_feed(symbols)
    names = [("USDT-FUTURES", "ETHUSDT"), ("SPOT", "BTCUSDT")]
    for op, frames in (("subscribe", feed.subscribe(symbols)), ("unsubscribe", feed.unsubscribe(symbols))):
        [frame] = frames
        args = [{"instType": inst_type, "channel": "candle1m", "instId": inst_id} for inst_type, inst_id in names]
        assert json.loads(frame) == {"op": op, "args": args}
    for symbol, (inst_type, inst_id) in zip(symbols, names, strict=True):
        arg = {"instType": inst_type, "channel": "candle1m", "instId": inst_id}
        assert feed.read_frame(json.dumps({"event": "subscribe", "arg": arg})) == [Subscribed(symbol)]


async def test_a_feed_takes_symbols_that_were_added_later(fake):
    feed = bitget_at(fake).make_feed([SPOT])
    arg = {"instType": "USDT-FUTURES", "channel": "candle1m", "instId": "ETHUSDT"}
    feed.subscribe([FUTURES])
    assert feed.read_frame(json.dumps({"event": "subscribe", "arg": arg})) == [Subscribed(FUTURES)]


def test_the_plugin_offers_bitget():
    assert bitget.candled_exchanges() == [Bitget]
