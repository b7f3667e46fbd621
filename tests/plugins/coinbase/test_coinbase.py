"""Coinbase Advanced: no candles of one minute, so they are made from trades.

The form of the frames is that of its page "Market Trades Channel"; no recorded frame with trades was found.
"""

import json
from decimal import Decimal
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled import (
    MINUTE_MS,
    ExchangeError,
    FeedError,
    Interval,
    InvalidCandle,
    Subscribed,
    Symbol,
    TradeBars,
)
from candled.exchange import Candles
from candled.ingest.market import MarketIngest
from candled.model import MINUTE, Candle
from candled_plugins.coinbase.exchange import Coinbase, CoinbaseFeed, CoinbaseSettings
from tests.clocks import START_MS, ManualClock
from tests.plugins.local import NOT_FRAMES, WINDOWS, FakeHttp, candles_of, opening_times, running, socket_server, window
from tests.rows import MONDAY_MS
from tests.tiers import few_examples

BTC = Symbol("BTC", "USD")


def coinbase() -> Coinbase:
    return Coinbase(CoinbaseSettings(), ManualClock(START_MS + 30_000))


def frame(number: int, time: str, *trades: tuple[str, str, str, int], channel: str = "market_trades") -> str:
    rows = [
        {
            "trade_id": str(name),
            "product_id": "BTC-USD",
            "price": price,
            "size": size,
            "side": "BUY",
            "time": time_of(at),
        }
        for at, price, size, name in trades
    ]
    event = {"subscriptions": {"market_trades": ["BTC-USD"], "heartbeats": ["heartbeats"]}}
    if channel != "subscriptions":
        event = {"type": "update", "trades": rows}
    return json.dumps(
        {
            "channel": channel,
            "client_id": "",
            "timestamp": time_of(time),
            "sequence_num": number,
            "events": [event],
        }
    )


def time_of(text: str) -> str:
    return f"2026-08-12T{text}00000Z"


async def test_minutes_are_made_from_trades_and_one_that_was_missed_in_part_is_left_out():
    frames = [
        frame(0, "10:00:30.5", channel="subscriptions"),
        # the snapshot reaches into the minute that began before the connection
        frame(1, "10:00:30.6", ("10:00:10.0", "99", "1", 1)),
        # newest first, as Coinbase sends them
        frame(2, "10:01:02.0", ("10:01:01.0", "101", "2", 4), ("10:01:00.0", "100", "1", 3)),
        frame(3, "10:01:59.0", channel="heartbeats"),
        # a trade of the last minute comes late, and one comes twice
        frame(4, "10:02:01.0", ("10:02:00.2", "103", "1", 6), ("10:01:59.9", "102", "1", 5)),
        frame(5, "10:02:02.0", ("10:01:59.9", "102", "1", 5)),
        frame(9, "10:02:09.0", ("10:02:08.0", "104", "1", 9)),  # three frames were lost
        frame(10, "10:03:01.0", ("10:03:00.0", "105", "0.5", 12)),
    ]

    async def handle(peer):
        await peer.recv()
        for text in frames:
            await peer.send(text)
        await peer.wait_closed()

    async with socket_server(handle) as url, running(CoinbaseFeed(url, [BTC])) as (sink, _):
        candles = await sink.candles(4)
    assert [(one.open_ms // MINUTE_MS % 60, *map(str, one.values)) for one in candles] == [
        (1, "100", "101", "100", "101", "3", "302"),
        (1, "100", "102", "100", "102", "4", "404"),
        (2, "103", "103", "103", "103", "1", "103"),
        (3, "105", "105", "105", "105", "0.5", "52.5"),
    ]


def test_the_source_of_such_minutes_is_marked(market: MarketIngest):
    bars = TradeBars(BTC)
    bars.begin_at(MONDAY_MS)
    bars.add_trade(MONDAY_MS + 5, "100", "1", 1)
    (event,) = bars.take_candles(MONDAY_MS + 10)
    (candle,) = market.on_push(event, MONDAY_MS + 20).live
    assert candle.src == "trades"


@pytest.fixture
def market() -> MarketIngest:
    from tests.ingest.test_market import market

    return market(present=())


TRADES = st.lists(
    st.tuples(
        st.integers(0, 4 * MINUTE_MS - 1),
        st.decimals("0.0001", "99999", places=4),
        st.decimals("0.00000001", "9999", places=8),
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.slow
@given(TRADES, st.randoms(use_true_random=False), st.integers(0, 2 * MINUTE_MS))
def test_any_order_and_repetition_gives_the_candles_of_the_sorted_trades(trades, random, begin_ms):
    numbered = [(at, price, size, number) for number, (at, price, size) in enumerate(sorted(trades))]
    shuffled = numbered + random.sample(numbered, len(numbered) // 2)
    random.shuffle(shuffled)
    bars, shown = TradeBars(BTC), {}
    bars.begin_at(begin_ms)
    for trade in shuffled:
        bars.add_trade(*trade)
        for event in bars.take_candles(4 * MINUTE_MS):
            shown |= {candle.open_ms: candle for candle in event.candles}
    complete = [trade for trade in numbered if MINUTE.floor(trade[0]) >= begin_ms]
    for open_ms, group in groupby(complete, lambda trade: MINUTE.floor(trade[0])):
        rows = list(group)
        assert shown.pop(open_ms) == Candle(
            open_ms,
            rows[0][1],
            max(row[1] for row in rows),
            min(row[1] for row in rows),
            rows[-1][1],
            sum((row[2] for row in rows), Decimal(0)),
            sum((row[1] * row[2] for row in rows), Decimal(0)),
            4 * MINUTE_MS,
        )
    assert shown == {}


def test_a_minute_with_a_loss_is_not_final_because_the_next_one_began(market: MarketIngest):
    bars = TradeBars(BTC)
    bars.begin_at(MONDAY_MS)

    def push(at_ms: int, number: int) -> None:
        bars.add_trade(MONDAY_MS + at_ms, "100", "1", number)
        for event in bars.take_candles(MONDAY_MS + at_ms):
            market.on_push(event, MONDAY_MS + at_ms)

    push(5_000, 1)
    push(MINUTE_MS + 5_000, 2)
    assert [one.open_ms for one in market.finalize_minutes(MONDAY_MS + MINUTE_MS + 30_000)] == [MONDAY_MS]
    bars.begin_at(MONDAY_MS + MINUTE_MS + 40_000)
    push(2 * MINUTE_MS + 5_000, 9)
    push(3 * MINUTE_MS + 5_000, 10)
    final = market.finalize_minutes(MONDAY_MS + 4 * MINUTE_MS)
    assert [one.open_ms for one in final] == [MONDAY_MS + 2 * MINUTE_MS]


def test_a_trade_of_long_ago_changes_nothing():
    bars = TradeBars(BTC)
    bars.begin_at(0)
    bars.add_trade(10 * MINUTE_MS, "1", "1", 2)
    bars.take_candles(0)
    bars.add_trade(6 * MINUTE_MS, "1", "1", 1)
    assert bars.take_candles(0) == []


@pytest.mark.parametrize("number", ["0", "-1", "NaN", "Infinity", "1e60", "x", "", None])
def test_a_trade_that_is_none_is_refused_and_changes_nothing(number):
    bars = TradeBars(BTC)
    for price, size in ((number, "1"), ("1", number)):
        with pytest.raises(InvalidCandle):
            bars.add_trade(0, price, size, 1)
    assert bars.take_candles(0) == []


def test_a_minute_whose_sums_are_beyond_the_bounds_is_left_to_rest_and_the_others_go_on():
    bars = TradeBars(BTC)
    bars.begin_at(0)
    bars.add_trade(0, "1e49", "1e49", 1)
    bars.add_trade(MINUTE_MS, "7", "1", 2)
    (event,) = bars.take_candles(0)
    assert [row.open_ms for row in event.invalid] == [0]
    assert [(candle.open_ms, candle.close) for candle in event.candles] == [(MINUTE_MS, 7)]
    with pytest.raises(InvalidCandle):
        bars.add_trade(MINUTE_MS, "1." + "1" * 300, "1", 3)
    assert bars.take_candles(0) == []


def test_a_feed_event_with_candles_is_from_trades_only_if_it_says_so():
    assert not Candles(BTC, ()).from_trades


# ---------------------------------------------------------------- the plugin


ETH = Symbol("ETH", "USD")


def seen(feed: CoinbaseFeed, *frames: str) -> list[tuple[str, str]]:
    """The minute and the volume of each candle."""
    return [
        (str(one.open_ms // MINUTE_MS % 60), str(one.volume))
        for text in frames
        for one in candles_of(feed.read_frame(text))
    ]


def test_a_subscription_begins_only_what_is_new_on_the_connection():
    feed = CoinbaseFeed("ws://localhost", [BTC])
    assert [type(one) for one in feed.read_frame(frame(0, "09:59:30.0", channel="subscriptions"))] == [Subscribed]
    assert seen(feed, frame(1, "10:00:10.0", ("10:00:10.0", "99", "1", 1))) == [("0", "1")]
    again = frame(2, "10:00:20.0", channel="subscriptions")  # another product was added: the reply names all
    assert feed.read_frame(again) == []
    assert seen(feed, frame(3, "10:00:30.0", ("10:00:30.0", "99", "2", 2))) == [("0", "3")]


def test_a_trade_that_is_none_costs_its_minute_and_one_of_a_removed_product_nothing():
    feed = CoinbaseFeed("ws://localhost", [BTC])
    feed.read_frame(frame(0, "09:59:30.0", channel="subscriptions"))
    assert seen(feed, frame(1, "10:00:10.0", ("10:00:10.0", "99", "1", 1))) == [("0", "1")]
    mixed = json.loads(frame(2, "10:00:20.0", ("10:00:20.0", "99", "1", 2), ("10:00:21.0", "9", "1", 3)))
    mixed["events"][0]["trades"][1]["product_id"] = "ETH-USD"
    assert seen(feed, json.dumps(mixed)) == [("0", "2")]
    (event,) = feed.read_frame(frame(3, "10:00:30.0", ("10:00:30.0", "-1", "1", 4)))
    assert (event.candles, len(event.invalid)) == ((), 1)
    assert seen(feed, frame(4, "10:01:30.0", ("10:01:30.0", "99", "1", 5))) == [("1", "1")]


@pytest.mark.parametrize("text", [
    *NOT_FRAMES, frame(0, "10:00:00.0", ("10:00:00.0", "9", "1", 3)).replace("BTC-USD", "ETH-USD"),
    frame(0, "10:00:00.0", channel="ticker"), frame(0, "10:00:00.0").replace("sequence_num", "x"),
    frame(0, "10:00:00.0", ("10:00:00.0", "9", "1", 3)).replace("trade_id", "x"),
])  # fmt: skip
def test_other_frames_are_errors(text):
    with pytest.raises(ExchangeError):
        CoinbaseFeed("ws://localhost", [BTC]).read_frame(text)


def test_subscriptions_name_both_channels_and_an_error_is_one_of_the_connection():
    feed = CoinbaseFeed("ws://localhost", [BTC, ETH])
    first, second = map(json.loads, feed.subscribe([BTC, ETH]))
    assert (first["channel"], second["channel"], first["product_ids"]) == (
        "market_trades", "heartbeats", ["BTC-USD", "ETH-USD"],
    )  # fmt: skip
    (frame,) = feed.unsubscribe([ETH])
    assert json.loads(frame) == {"type": "unsubscribe", "channel": "market_trades", "product_ids": ["ETH-USD"]}
    assert feed.read_frame('{"type":"error","message":"authentication failure"}') == [
        FeedError("authentication failure")
    ]


def products(path: str, query: dict[str, str]):
    """Coinbase's rows: newest first, both bounds inclusive, 300 at most, and one from before the start."""
    start_s, end_s = int(query["start"]), min(int(query["end"]), START_MS // 1000)
    times = range(end_s // 60 * 60, -(-start_s // 60) * 60 - 61, -60)
    assert len(times) <= 300
    row = {"low": "9", "high": "12", "open": "10", "close": "11", "volume": "3"}
    return {"candles": [{"start": str(at), **row} for at in times]}


@few_examples
@given(WINDOWS)
async def test_every_minute_of_a_range_is_found(ago_and_count):
    start_ms, end_ms = window(*ago_and_count, Coinbase.max_history_minutes)
    http = FakeHttp(products)
    rows = await coinbase().fetch_history(http, BTC, start_ms, end_ms)
    assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
    assert http.requests[0][0] == "/api/v3/brokerage/market/products/BTC-USD/candles"
    assert {row.quote_volume for row in rows} == {None}


async def test_bars_come_in_pages_and_there_are_no_weeks():
    hour_ms = 60 * MINUTE_MS
    start_ms = START_MS // hour_ms * hour_ms - 400 * hour_ms

    def hours(path, query):
        row = {"low": "9", "high": "12", "open": "10", "close": "11", "volume": "3"}
        return {"candles": [{"start": str(at), **row} for at in range(int(query["start"]), int(query["end"]), 3600)]}

    bars = await coinbase().fetch_bars(FakeHttp(hours), BTC, Interval.parse("1h"), start_ms, start_ms + 350 * hour_ms)
    assert [one.open_ms for one in bars] == [start_ms + number * hour_ms for number in range(350)]
    assert await coinbase().fetch_bars(FakeHttp(hours), BTC, Interval.parse("1W"), 0, 10) is None


async def test_markets_without_aliases():
    entry = {"product_id": "BTC-USD", "base_currency_id": "BTC", "quote_currency_id": "USD", "price_increment": "0.01",
             "base_increment": "0.00000001", "status": "online", "new_at": "2023-01-01T00:00:00Z", "alias": "",
             "approximate_quote_24h_volume": "7.5"}  # fmt: skip
    alias = {**entry, "product_id": "BTC-USDC", "quote_currency_id": "USDC", "alias": "BTC-USD"}
    closed = {**entry, "base_currency_id": "OLD", "view_only": True, "new_at": None}
    found, old = await coinbase().fetch_markets(FakeHttp(lambda path, query: {"products": [entry, alias, closed]}))
    assert (found.symbol, found.tick_size, found.decimals.volume, found.status) == (BTC, Decimal("0.01"), 8, "trading")
    assert (found.listed_ms, found.quote_volume_24h) == (1672531200000, Decimal("7.5"))
    assert (old.status, old.listed_ms) == ("suspended", None)
    for body in ({}, None, {"products": [{}]}):
        with pytest.raises(ExchangeError, match="not as documented"):
            await coinbase().fetch_markets(FakeHttp(lambda path, query, body=body: body))
    with pytest.raises(ExchangeError, match="expected candles"):
        await coinbase().fetch_history(FakeHttp(lambda path, query: []), BTC, START_MS, START_MS + MINUTE_MS)
