"""Binance: recorded minute boundaries of both markets, numbered requests, weights, and the lists of markets."""

import json
from decimal import Decimal

import pytest
from hypothesis import given

from candled import (
    MINUTE_MS,
    ClosingSoon,
    ExchangeError,
    FeedError,
    HttpRejected,
    Interval,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    Unavailable,
)
from candled_plugins.binance.exchange import (
    Binance,
    BinanceFeed,
    BinanceSettings,
    BinanceUsdm,
    BinanceUsdmFeed,
    BinanceUsdmSettings,
)
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

BTC, LTC, PERPETUAL = Symbol("BTC", "USDT"), Symbol("LTC", "BRL"), Symbol("BTC", "USDT", "USDT")


def feed(*symbols: Symbol) -> BinanceFeed:
    return (BinanceUsdmFeed if symbols and symbols[0].settle else BinanceFeed)("ws://localhost", symbols or (BTC,))


def spot() -> Binance:
    return Binance(BinanceSettings(), ManualClock(START_MS + 30_000))


def usdm() -> BinanceUsdm:
    return BinanceUsdm(BinanceUsdmSettings(), ManualClock(START_MS + 30_000))


KLINE = {"e": "kline", "E": 1, "s": "BTCUSDT", "k": {
    "t": 60_000, "T": 119_999, "s": "BTCUSDT", "i": "1m", "o": "10", "c": "11", "h": "12", "l": "9", "v": "3", "n": 1,
    "x": False, "q": "33"}}  # fmt: skip


# ---------------------------------------------------------------- WebSocket


def test_a_recorded_minute_of_spot_ends_with_a_marked_version_and_the_next_begins_flat():
    names = [("BEL", "BTC"), ("XEM", "USDT"), ("ELF", "BUSD"), ("LTC", "BRL")]
    events = read_all(feed(*(Symbol(*name) for name in names)), recorded("binance/boundary_spot.txt"))
    assert len(events) == 8
    assert [
        (one.open_ms, one.final, str(one.close), str(one.volume), str(one.quote_volume), one.as_of_ms)
        for event in events
        if event.symbol == LTC
        for one in event.candles
    ] == [
        (1681153980000, True, "473.10000000", "0.53400000", "252.73120000", 1681154040004),
        (1681154040000, False, "473.10000000", "0E-8", "0E-8", 1681154042674),
    ]


def test_a_recorded_minute_of_contracts_ends_with_a_marked_version():
    symbols = [Symbol("CTK", "USDT", "USDT"), Symbol("AKRO", "USDT", "USDT")]
    events = read_all(feed(*symbols), recorded("binance/boundary_usdm.txt"))
    assert len(events) == 40
    for symbol in symbols:
        candles = [event.candles[0] for event in events if event.symbol == symbol]
        minutes = sorted({one.open_ms for one in candles})
        assert len(minutes) == 2
        marked = [number for number, one in enumerate(candles) if one.final]
        assert [candles[number].open_ms for number in marked] == minutes[:1]
        assert {one.open_ms for one in candles[: marked[0] + 1]} == {minutes[0]}
        assert {one.open_ms for one in candles[marked[0] + 1 :]} == {minutes[1]}


def test_recorded_frames_of_both_forms_become_candles():
    one = feed(BTC)
    one.subscribe([BTC])
    first, *events = read_all(one, recorded("binance/socket_usdm.json"))
    assert first == Subscribed(BTC)
    assert [(str(one.close), str(one.volume), str(one.quote_volume)) for one in candles_of(events)] == [
        ("64025.70", "32.311", "2069200.98090"),
        ("64025.60", "32.645", "2090585.53250"),
    ]
    wrapped = read_all(feed(Symbol("NKN", "USDT"), Symbol("LRC", "BTC")), recorded("binance/socket_spot.txt"))
    assert [(event.symbol.base, str(event.candles[0].volume)) for event in wrapped] == [
        ("NKN", "25877.00000000"),
        ("LRC", "177.00000000"),
    ]


def test_a_refusal_of_several_names_none_and_the_next_one_names_its_market():
    one = feed(BTC, LTC)
    (frame,) = one.subscribe([BTC, LTC])
    assert json.loads(frame) == {"method": "SUBSCRIBE", "params": ["btcusdt@kline_1m", "ltcbrl@kline_1m"], "id": 1}
    refusal = {"code": 2, "msg": "Invalid request"}
    assert one.read_frame(json.dumps({**refusal, "id": 1})) == [FeedError("2 Invalid request")]
    (frame,) = one.subscribe([LTC])
    number = json.loads(frame)["id"]
    expected = [SubscriptionRejected(LTC, "2 Invalid request")]
    assert one.read_frame(json.dumps({"error": refusal, "id": number})) == expected
    (frame,) = one.unsubscribe([BTC])
    assert one.read_frame(json.dumps({"result": None, "id": json.loads(frame)["id"]})) == []
    assert one.read_frame('{"result":null,"id":99}') == []


def test_no_frame_has_more_streams_than_fit():
    symbols = [Symbol(f"S{number}", "USDT") for number in range(120)]
    assert [len(json.loads(frame)["params"]) for frame in feed(*symbols).subscribe(symbols)] == [50, 50, 20]


@pytest.mark.parametrize("frame", ['{"e":"serverShutdown","E":1}', '{"stream":"x","data":{"e":"serverShutdown"}}',
                                   '{"event":{"e":"serverShutdown","E":1770123456789}}'])  # fmt: skip
def test_a_shutdown_is_announced(frame):
    assert feed().read_frame(frame) == [ClosingSoon("the server is about to shut down")]


@pytest.mark.parametrize("change", [{"h": "8"}, {"t": 61_000}, {"v": None}, {"t": "x"}, {"o": "1e99"}])
def test_a_bad_row_is_none(change):
    (event,) = feed().read_frame(json.dumps({**KLINE, "k": {**KLINE["k"], **change}}))
    assert (event.candles, len(event.invalid)) == ((), 1)


@pytest.mark.parametrize(
    "frame",
    [
        *NOT_FRAMES,
        json.dumps({**KLINE, "s": "ETHUSDT"}),
        json.dumps({**KLINE, "k": {**KLINE["k"], "i": "1h"}}),
        json.dumps({**KLINE, "E": None}),
        json.dumps({**KLINE, "k": []}),
        '{"stream":"btcusdt@kline_1m","data":[]}',
        '{"e":"trade","s":"BTCUSDT"}',
    ],
)
def test_other_frames_are_errors(frame):
    with pytest.raises(ExchangeError):
        feed().read_frame(frame)


# ---------------------------------------------------------------- REST


def klines(path: str, query: dict[str, str]):
    """Binance's pages: oldest first from `startTime`, both bounds inclusive."""
    start_ms, end_ms = int(query["startTime"]), min(int(query["endTime"]), START_MS)
    first_ms = -(-start_ms // MINUTE_MS) * MINUTE_MS
    rows = [
        [at_ms, "10", "12", "9", "11", "3", at_ms + 59_999, "33", 1, "1", "11", "0"]
        for at_ms in range(first_ms, end_ms + 1, MINUTE_MS)
    ]
    return rows[: int(query["limit"])]


@pytest.mark.slow
@few_examples
@given(WINDOWS)
async def test_every_minute_of_a_range_is_found_with_one_request(ago_and_count):
    for exchange, path, weight in ((spot(), "/api/v3/klines", 2.0), (usdm(), "/fapi/v1/klines", 2.0)):
        start_ms, end_ms = window(*ago_and_count, exchange.max_history_minutes)
        http = FakeHttp(klines)
        rows = await exchange.fetch_history(http, PERPETUAL, start_ms, end_ms)
        assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
        assert [(asked, cost, budget) for asked, _, cost, budget in http.requests] == [(path, weight, "weight")]


async def test_recorded_rows_are_read_with_all_their_digits():
    http = FakeHttp(lambda path, query: recorded_answer("binance/rest_hours_spot.json"))
    bars = await spot().fetch_bars(http, BTC, Interval.parse("1h"), 1706630400000, 1706641200000)
    assert [(one.open_ms, str(one.close), str(one.volume), str(one.quote_volume)) for one in bars] == [
        (1706630400000, "43488.71000000", "20.55495000", "891428.42858070"),
        (1706634000000, "43374.80000000", "21.80865000", "946546.04941680"),
        (1706637600000, "43361.11000000", "23.66547000", "1027527.77116170"),
    ]
    assert await spot().fetch_bars(http, BTC, Interval.parse("45m"), 0, 10) is None


async def test_a_firewall_pauses_all_requests():
    def refuse(path, query):
        raise HttpRejected("403", status=403, body=None)

    http = FakeHttp(refuse)
    with pytest.raises(Unavailable):
        await spot().fetch_history(http, BTC, START_MS, START_MS + MINUTE_MS)
    assert http.paused == [("/api/v3/klines", 300.0)]


@pytest.mark.parametrize("body", [{"code": -1121, "msg": "Invalid symbol."}, None, "x"])
async def test_an_answer_that_is_no_list_is_an_error(body):
    with pytest.raises(ExchangeError):
        await spot().fetch_history(FakeHttp(lambda path, query: body), BTC, START_MS, START_MS + MINUTE_MS)


def entry(**change) -> dict[str, object]:
    return {
        "symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT", "pricePrecision": 8,
        "filters": [{"filterType": "PRICE_FILTER", "tickSize": "0.10000000"}, {"filterType": "LOT_SIZE",
                    "stepSize": "0.00001000"}], **change}  # fmt: skip


async def test_markets_with_their_facts():
    def answer(path, query):
        if path.endswith("ticker/24hr"):
            return [{"symbol": "BTCUSDT", "quoteVolume": "123.5"}, {"symbol": "OLD", "quoteVolume": "0"}]
        if path.startswith("/api"):
            assert query == {"symbolStatus": "TRADING", "showPermissionSets": "false"}
            return {"symbols": [entry()]}
        contract = {"marginAsset": "USDT", "onboardDate": 1569398400000}
        return {"symbols": [entry(**contract, status="PENDING_TRADING"), entry(**contract, symbol="BTCUSDT_261225")]}

    http = FakeHttp(answer)
    (found,) = await spot().fetch_markets(http)
    assert (found.symbol, found.tick_size, found.decimals.volume, found.status, found.quote_volume_24h) == (
        BTC, Decimal("0.1"), 5, "trading", Decimal("123.5"),
    )  # fmt: skip
    assert [weight for _, _, weight, _ in http.requests] == [20.0, 80.0]
    (found,) = await usdm().fetch_markets(FakeHttp(answer))
    assert (found.symbol, found.status, found.listed_ms) == (PERPETUAL, "upcoming", 1569398400000)


@pytest.mark.parametrize("info", [{}, None, {"symbols": [{"symbol": "A"}]}, {"symbols": [entry(filters=None)]}])
async def test_a_list_of_another_form_is_an_error(info):
    with pytest.raises(ExchangeError, match="not as documented"):
        await spot().fetch_markets(FakeHttp(lambda path, query: [] if "ticker" in path else info))
