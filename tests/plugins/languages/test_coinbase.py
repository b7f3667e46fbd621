"""Coinbase Advanced: no candles of one minute, so they are made from trades.

The form of the frames is that of its page "Market Trades Channel"; no recorded frame with trades was found.
"""

import json
from datetime import datetime
from decimal import Decimal
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled import MINUTE_MS, Event, InvalidCandle, SocketFeed, Subscribed, Symbol, TradeBars
from candled.exchange import Candles
from candled.ingest.market import MarketIngest
from candled.model import MINUTE, Candle
from tests.plugins.local import running, socket_server
from tests.rows import MONDAY_MS

BTC = Symbol("BTC", "USD")


class CoinbaseFeed(SocketFeed):
    def __init__(self, url, symbols):
        super().__init__(url, symbols)
        self._bars = {symbol: TradeBars(symbol) for symbol in symbols}
        self._next = 0

    def subscribe(self, symbols):
        names = [f"{symbol.base}-{symbol.quote}" for symbol in symbols]
        return [
            json.dumps({"type": "subscribe", "channel": channel, "product_ids": names})
            for channel in ("market_trades", "heartbeats")
        ]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        message = json.loads(frame)
        sent_ms = read_ms(message["timestamp"])
        if message["sequence_num"] != self._next:  # a new connection, or a loss
            for bars in self._bars.values():
                bars.begin(sent_ms)
        self._next = message["sequence_num"] + 1
        if message["channel"] == "subscriptions":
            return [Subscribed(symbol) for symbol in self.symbols]
        if message["channel"] != "market_trades":
            return []
        for event in message["events"]:
            for trade in event["trades"]:
                bars = self._bars[Symbol(*trade["product_id"].split("-"))]
                bars.add_trade(read_ms(trade["time"]), trade["price"], trade["size"], int(trade["trade_id"]))
        return [event for bars in self._bars.values() for event in bars.take_candles(sent_ms)]


def read_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


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
    return json.dumps(
        {
            "channel": channel,
            "client_id": "",
            "timestamp": time_of(time),
            "sequence_num": number,
            "events": [{"type": "update", "trades": rows}],
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
    bars.begin(MONDAY_MS)
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


@given(TRADES, st.randoms(use_true_random=False), st.integers(0, 2 * MINUTE_MS))
def test_any_order_and_repetition_gives_the_candles_of_the_sorted_trades(trades, random, begin_ms):
    numbered = [(at, price, size, number) for number, (at, price, size) in enumerate(sorted(trades))]
    shuffled = numbered + random.sample(numbered, len(numbered) // 2)
    random.shuffle(shuffled)
    bars, shown = TradeBars(BTC), {}
    bars.begin(begin_ms)
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
    bars.begin(MONDAY_MS)

    def push(at_ms: int, number: int) -> None:
        bars.add_trade(MONDAY_MS + at_ms, "100", "1", number)
        for event in bars.take_candles(MONDAY_MS + at_ms):
            market.on_push(event, MONDAY_MS + at_ms)

    push(5_000, 1)
    push(MINUTE_MS + 5_000, 2)
    assert [one.open_ms for one in market.finalize_minutes(MONDAY_MS + MINUTE_MS + 30_000)] == [MONDAY_MS]
    bars.begin(MONDAY_MS + MINUTE_MS + 40_000)
    push(2 * MINUTE_MS + 5_000, 9)
    push(3 * MINUTE_MS + 5_000, 10)
    final = market.finalize_minutes(MONDAY_MS + 4 * MINUTE_MS)
    assert [one.open_ms for one in final] == [MONDAY_MS + 2 * MINUTE_MS]


def test_a_trade_of_long_ago_changes_nothing():
    bars = TradeBars(BTC)
    bars.begin(0)
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
    bars.begin(0)
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
