"""Gate: recorded frames of two forms, quote volume before base volume, one market in a frame, contracts by number."""

import json
from decimal import Decimal

import pytest
from hypothesis import given

from candled import (
    MINUTE_MS,
    ExchangeError,
    FeedError,
    Interval,
    Pong,
    Subscribed,
    SubscriptionRejected,
    Symbol,
)
from candled_plugins.gate.exchange import Gateio, GateioSettings, GateioUsdt, GateioUsdtSettings
from tests.clocks import START_MS, ManualClock
from tests.plugins.local import (
    NOT_FRAMES,
    WINDOWS,
    FakeHttp,
    candles_of,
    opening_times,
    read_all,
    recorded,
    recorded_answer,
    window,
)
from tests.tiers import few_examples

BTC, CONTRACT, FRONT = Symbol("BTC", "USDT"), Symbol("BTC", "USDT", "USDT"), Symbol("FRONT", "USDT", "USDT")
CONTRACTS = [
    {"name": name, "quanto_multiplier": size, "order_price_round": "0.1", "in_delisting": False, "create_time": 1}
    for name, size in (("BTC_USDT", "0.0001"), ("FRONT_USDT", "10"))
]


def gate() -> Gateio:
    return Gateio(GateioSettings(), ManualClock(START_MS + 30_000))


def gate_usdt() -> GateioUsdt:
    return GateioUsdt(GateioUsdtSettings(), ManualClock(START_MS + 30_000))


def feed(*symbols: Symbol):
    return gate().make_feed(symbols or (BTC,))


async def futures_feed(*symbols: Symbol):
    one = gate_usdt().make_feed(symbols)
    await one.prepare_connection(FakeHttp(lambda path, query: CONTRACTS))
    return one


UPDATE = {"time": 100, "time_ms": 100_500, "channel": "spot.candlesticks", "event": "update", "result": {
    "t": "60", "v": "33", "c": "11", "h": "12", "l": "9", "o": "10", "n": "1m_BTC_USDT", "a": "3", "w": False,
}}  # fmt: skip


# ---------------------------------------------------------------- WebSocket


def test_recorded_frames_become_candles_with_base_and_quote_volume():
    one = feed()
    one.subscribe([BTC])
    first, *events = read_all(one, recorded("gate/socket_spot.json"))
    assert first == Subscribed(BTC)
    assert [(one.open_ms, str(one.volume), str(one.quote_volume), one.as_of_ms, one.final)
            for one in candles_of(events)] == [
        (1786539960000, "1.888203", "120920.0651408", 1786539971596, False),
        (1786539960000, "1.888514", "120939.9828092", 1786539973598, False),
    ]  # fmt: skip


def test_a_recorded_frame_without_base_volume_is_no_candle():
    """As they were in 2021: to take the quote volume for the base volume would be wrong by the price."""
    names = [("DIS", "USDT"), ("NEO", "BTC"), ("FAST", "USDT"), ("QTUM3S", "USDT"), ("HAI", "ETH"), ("INK", "USDT"),
             ("BTC", "USDC"), ("NANO", "USDT"), ("ZKS", "ETH"), ("OMG", "USDT")]  # fmt: skip
    events = read_all(feed(*(Symbol(*name) for name in names)), recorded("gate/socket_spot_2021.txt"))
    assert candles_of(events) == []
    assert {len(event.invalid) for event in events} == {1}


async def test_a_recorded_contract_is_a_list_of_rows():
    (event,) = read_all(await futures_feed(FRONT), recorded("gate/socket_futures.txt"))
    (candle,) = event.candles
    assert (candle.open_ms, str(candle.close), candle.volume, candle.quote_volume, candle.as_of_ms) == (
        1684930140000, "0.1701", 0, None, 1684930165934,
    )  # fmt: skip


async def test_contracts_are_counted_in_base_coins():
    rows = [{**UPDATE["result"], "t": 60, "v": 25_000}, {**UPDATE["result"], "t": 120, "v": "1.5"}]
    frame = json.dumps({**UPDATE, "channel": "futures.candlesticks", "result": rows})
    (event,) = (await futures_feed(CONTRACT)).read_frame(frame)
    assert [(one.open_ms, one.volume) for one in event.candles] == [
        (60_000, Decimal("2.5")),
        (120_000, Decimal("0.00015")),
    ]
    with pytest.raises(ExchangeError, match="size of a contract"):
        (await futures_feed(Symbol("ETH", "USDT", "USDT"))).read_frame(frame.replace("BTC_", "ETH_"))


def test_the_last_version_of_a_minute_is_marked():
    closed = {**UPDATE, "result": {**UPDATE["result"], "w": True}}
    assert [one.final for one in candles_of(read_all(feed(), map(json.dumps, (UPDATE, closed))))] == [False, True]


def test_each_market_has_its_frame_and_its_answer():
    eth = Symbol("ETH", "USDT")
    one = feed(BTC, eth)
    first, second = map(json.loads, one.subscribe([BTC, eth]))
    assert first == {"time": START_MS // 1000 + 30, "id": 1, "channel": "spot.candlesticks", "event": "subscribe",
                     "payload": ["1m", "BTC_USDT"]}  # fmt: skip
    answer = {"time": 1, "channel": "spot.candlesticks", "event": "subscribe"}
    error = {"code": 2, "message": "unknown currency pair: ETH_USDT"}
    rejected = SubscriptionRejected(eth, "2 unknown currency pair: ETH_USDT")
    assert one.read_frame(json.dumps({**answer, "id": second["id"], "error": error})) == [rejected]
    assert one.read_frame(json.dumps({**answer, "id": 1, "result": {"status": "success"}})) == [Subscribed(BTC)]
    assert one.read_frame(json.dumps({**answer, "error": error})) == [FeedError("2 unknown currency pair: ETH_USDT")]
    (frame,) = one.unsubscribe([BTC])
    assert json.loads(frame)["event"] == "unsubscribe"


def test_a_ping_has_the_time():
    assert json.loads(feed().make_ping()) == {"time": START_MS // 1000 + 30, "channel": "spot.ping"}
    assert feed().read_frame('{"time":1,"channel":"spot.pong","event":"","error":null,"result":null}') == [Pong()]


@pytest.mark.parametrize("change", [{"h": "8"}, {"t": "61"}, {"t": None}, {"a": None}, {"v": "x"}])
def test_a_bad_row_is_none(change):
    (event,) = feed().read_frame(json.dumps({**UPDATE, "result": {**UPDATE["result"], **change}}))
    assert (event.candles, len(event.invalid)) == ((), 1)


@pytest.mark.parametrize("frame", [
    *NOT_FRAMES,
    json.dumps({**UPDATE, "channel": "spot.trades"}),
    json.dumps({**UPDATE, "result": {**UPDATE["result"], "n": "5m_BTC_USDT"}}),
    json.dumps({**UPDATE, "result": {**UPDATE["result"], "n": "1m_ETH_USDT"}}),
    json.dumps({**UPDATE, "result": 5}),
    json.dumps({**UPDATE, "time": None, "time_ms": None}),
])  # fmt: skip
def test_other_frames_are_errors(frame):
    with pytest.raises(ExchangeError):
        feed().read_frame(frame)


# ---------------------------------------------------------------- REST


def candlesticks(path: str, query: dict[str, str]):
    """Gate's rows: oldest first, both bounds inclusive, 1,000 at most."""
    if path.endswith("contracts"):
        return CONTRACTS
    start_s, end_s = int(query["from"]), min(int(query["to"]), START_MS // 1000)
    assert "limit" not in query
    times = range(-(-start_s // 60) * 60, end_s + 1, 60)
    assert len(times) <= 1000
    if "contract" in query:
        return [{"t": at, "v": 20_000, "c": "11", "h": "12", "l": "9", "o": "10", "sum": "33"} for at in times]
    return [[str(at), "33", "11", "12", "9", "10", "2", "true"] for at in times]


@few_examples
@given(WINDOWS)
async def test_every_minute_of_a_range_is_found(ago_and_count):
    start_ms, end_ms = window(*ago_and_count, Gateio.max_history_minutes)
    for exchange, symbol in ((gate(), BTC), (gate_usdt(), CONTRACT)):
        rows = await exchange.fetch_history(FakeHttp(candlesticks), symbol, start_ms, end_ms)
        assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
        assert {(str(row.open), row.volume, str(row.quote_volume)) for row in rows} == {("10", 2, "33")}


async def test_the_sizes_of_contracts_are_read_once():
    http, exchange = FakeHttp(candlesticks), gate_usdt()
    for _ in range(2):
        await exchange.fetch_history(http, CONTRACT, START_MS - MINUTE_MS, START_MS)
    assert [path.rpartition("/")[2] for path, *_ in http.requests] == ["contracts", "candlesticks", "candlesticks"]
    with pytest.raises(ExchangeError, match="the exchange has no market ETH_USDT"):
        await exchange.fetch_history(http, Symbol("ETH", "USDT", "USDT"), START_MS - MINUTE_MS, START_MS)


async def test_a_recorded_row_is_read_with_all_its_digits():
    http = FakeHttp(lambda path, query: recorded_answer("gate/rest_hour_spot.json"))
    (bar,) = await gate().fetch_bars(http, BTC, Interval.parse("1h"), 1710327600000, 1710331200000)
    assert [str(one) for one in bar.values] == [
        "73236.9", "73435.8", "73236.3", "73408.9", "13.53020576", "992134.61604178",
    ]  # fmt: skip


async def test_days_of_another_time_zone_are_refused():
    http = FakeHttp(lambda path, query: [["1710345600", "33", "11", "12", "9", "10", "2", "true"]])
    with pytest.raises(ExchangeError, match="on their boundaries in UTC"):
        await gate().fetch_bars(http, BTC, Interval.parse("1D"), 1710288000000, 1710374400000)
    assert await gate().fetch_bars(http, BTC, Interval.parse("1W"), 0, 10) is None


@pytest.mark.parametrize("body", [{"label": "INVALID_CURRENCY_PAIR"}, None])
async def test_an_answer_that_is_no_list_is_an_error(body):
    with pytest.raises(ExchangeError):
        await gate().fetch_history(FakeHttp(lambda path, query: body), BTC, START_MS, START_MS + MINUTE_MS)


async def test_markets_with_their_facts():
    pair = {"id": "BTC_USDT", "base": "BTC", "quote": "USDT", "precision": 1, "amount_precision": 6,
            "trade_status": "tradable", "buy_start": 1574640000}  # fmt: skip

    def answer(path, query):
        if path.endswith("tickers"):
            return [{"currency_pair": "BTC_USDT", "contract": "BTC_USDT", "quote_volume": "7.5",
                     "volume_24h_quote": "8"}]  # fmt: skip
        return CONTRACTS if path.endswith("contracts") else [pair, {**pair, "trade_status": "untradable"}]

    found, closed = await gate().fetch_markets(FakeHttp(answer))
    assert (found.symbol, found.price_decimals, found.decimals.volume, found.status) == (BTC, 1, 6, "trading")
    assert (found.listed_ms, found.quote_volume_24h, closed.status) == (1574640000000, Decimal("7.5"), "suspended")
    found, _ = await gate_usdt().fetch_markets(FakeHttp(answer))
    assert (found.symbol, found.tick_size, found.decimals.volume) == (CONTRACT, Decimal("0.1"), 4)
    assert (found.listed_ms, found.quote_volume_24h) == (1000, 8)


@pytest.mark.parametrize("make", [gate, gate_usdt])
async def test_a_list_of_another_form_is_an_error(make):
    with pytest.raises(ExchangeError, match="not as documented"):
        await make().fetch_markets(FakeHttp(lambda path, query: [{}]))
