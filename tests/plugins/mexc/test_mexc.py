"""MEXC: candles in protobuf, acknowledgements in JSON on the same connection, and refusals with code 0.

No recorded frame was found, so the frames are made with the documented numbers of fields.
"""

import json
import sys
from decimal import Decimal

import pytest
from hypothesis import given

from candled import (
    MINUTE_MS,
    Candle,
    ConfigError,
    ExchangeError,
    FeedError,
    HttpRejected,
    Interval,
    Pong,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    Unavailable,
)
from candled_plugins.mexc.exchange import Mexc, MexcFeed, MexcSettings, MexcUsdt, MexcUsdtSettings
from candled_plugins.mexc.messages import channel_of
from candled_plugins.mexc.pushes import make_push_class
from tests.clocks import START_MS, ManualClock
from tests.plugins.local import (
    NOT_FRAMES,
    WINDOWS,
    FakeHttp,
    opening_times,
    recorded_answer,
    running,
    socket_server,
    window,
)
from tests.tiers import few_examples

pytest.importorskip("google.protobuf", reason='pip install -e ".[test]"')

BTC, ETH = Symbol("BTC", "USDT"), Symbol("ETH", "USDT")
Push = make_push_class()


def mexc() -> Mexc:
    return Mexc(MexcSettings(), ManualClock(START_MS + 30_000))


def feed(*symbols: Symbol, url: str = "ws://localhost") -> MexcFeed:
    return MexcFeed(url, symbols or (BTC,), Push)


def pushed(volume: str = "1.5", name: str = channel_of(BTC)) -> bytes:
    kline = {
        "interval": "Min1", "windowStart": 1786563000, "openingPrice": "63349.89", "closingPrice": "63350.1",
        "highestPrice": "63351", "lowestPrice": "63349.89", "volume": volume, "amount": "95025.15",
        "windowEnd": 1786563060,
    }  # fmt: skip
    made = Push(channel=name, symbol="BTCUSDT", createTime=1786563034187)
    for key, value in kline.items():
        setattr(made.publicSpotKline, key, value)
    return made.SerializeToString()


async def test_binary_frames_reach_the_plugin_byte_by_byte():
    assert b"\xa2\x13" in pushed()  # the tag of field 308, no UTF-8

    async def handle(peer):
        (name,) = json.loads(await peer.recv())["params"]
        await peer.send(json.dumps({"id": 0, "code": 0, "msg": name}))
        await peer.send(pushed())
        for bad in (pushed()[:-3], b"\xff\xff\xff", b"", pushed(name="spot@other"), b'{"msg":"PONG"}'):
            await peer.send(bad)
        await peer.send(pushed("2.5"))
        await peer.wait_closed()

    async with socket_server(handle) as url, running(feed(url=url)) as (sink, runner):
        first, last = await sink.candles(2)
        assert runner.malformed.total == 5
    assert first == Candle.parse(
        1786563000000, "63349.89", "63351", "63349.89", "63350.1", "1.5", "95025.15", as_of_ms=1786563034187
    )
    assert str(last.volume) == "2.5"


def test_a_bad_row_is_none():
    (event,) = feed().read_frame(pushed("-1"))
    assert (event.candles, event.invalid[0].open_ms) == ((), 1786563000000)


def test_answers_are_text():
    one = feed(BTC, ETH)
    refusal = f"Not Subscribed successfully! [{channel_of(BTC)}]. Reason: Blocked!"
    for text, events in (
        (refusal, [SubscriptionRejected(BTC, refusal)]),
        (channel_of(ETH), [Subscribed(ETH)]),
        (f"{channel_of(BTC)},{channel_of(ETH)}", [Subscribed(BTC), Subscribed(ETH)]),
        ("PONG", [Pong()]),
        ("Too many subscriptions", [FeedError("Too many subscriptions")]),
    ):
        assert one.read_frame(json.dumps({"id": 0, "code": 0, "msg": text})) == events


def test_no_frame_has_more_channels_than_fit():
    symbols = [Symbol(f"S{number}", "USDT") for number in range(11)]
    frames = list(map(json.loads, feed(*symbols).subscribe(symbols)))
    assert [(one["method"], len(one["params"])) for one in frames] == [("SUBSCRIPTION", 10), ("SUBSCRIPTION", 1)]
    assert json.loads(feed().unsubscribe([BTC])[0]) == {"method": "UNSUBSCRIPTION", "params": [channel_of(BTC)]}


@pytest.mark.parametrize("frame", [*NOT_FRAMES, '{"msg":5}'])
def test_other_frames_are_errors(frame):
    with pytest.raises(ExchangeError):
        feed().read_frame(frame)


def test_without_protobuf_the_operator_is_asked_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(ConfigError, match=r"pip install 'candled\[mexc\]'"):
        mexc()


# ---------------------------------------------------------------- REST


def klines(path: str, query: dict[str, str]):
    """MEXC's rows: oldest first, the end exclusive, 500 at most."""
    first_ms = -(-int(query["startTime"]) // MINUTE_MS) * MINUTE_MS
    rows = [
        [at, "10", "12", "9", "11", "3", at + MINUTE_MS, "33"]
        for at in range(first_ms, min(int(query["endTime"]), START_MS + 1), MINUTE_MS)
    ]
    return rows[:500]


@few_examples
@given(WINDOWS)
async def test_every_minute_of_a_range_is_found(ago_and_count):
    start_ms, end_ms = window(*ago_and_count, Mexc.max_history_minutes)
    http = FakeHttp(klines)
    rows = await mexc().fetch_history(http, BTC, start_ms, end_ms)
    assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
    assert [(path, budget) for path, _, _, budget in http.requests] == [("/api/v3/klines", "weight")]


async def test_a_recorded_row_is_read_with_all_its_digits():
    http = FakeHttp(lambda path, query: recorded_answer("mexc/rest_hour.json"))
    (bar,) = await mexc().fetch_bars(http, BTC, Interval.parse("1h"), 1710327600000, 1710331200000)
    assert [str(one) for one in bar.values] == [
        "73260.0", "73442.95", "73238.69", "73414.21", "49.560236", "3633995.45",
    ]  # fmt: skip
    assert http.requests[0][1]["interval"] == "60m"
    assert await mexc().fetch_bars(http, BTC, Interval.parse("1W"), 0, 10) is None


async def test_a_firewall_pauses_all_requests():
    def refuse(path, query):
        raise HttpRejected("403", status=403, body=None)

    http = FakeHttp(refuse)
    with pytest.raises(Unavailable):
        await mexc().fetch_history(http, BTC, START_MS, START_MS + MINUTE_MS)
    assert http.paused == [("/api/v3/klines", 300.0)]


async def test_markets_with_their_facts():
    entry = {"symbol": "BTCUSDT", "status": "1", "baseAsset": "BTC", "quoteAsset": "USDT", "quoteAssetPrecision": 2,
             "baseAssetPrecision": 6}  # fmt: skip
    info = {"symbols": [entry, {**entry, "symbol": "ETHUSDT", "baseAsset": "ETH", "status": "3"}]}
    tickers = [{"symbol": "BTCUSDT", "quoteVolume": "7.5"}, {"symbol": "ETHUSDT", "quoteVolume": None}]
    http = FakeHttp(lambda path, query: tickers if "ticker" in path else info)
    found, gone = await mexc().fetch_markets(http)
    assert (found.symbol, found.price_decimals, found.decimals.volume, found.status, found.quote_volume_24h) == (
        BTC, 2, 6, "trading", Decimal("7.5"),
    )  # fmt: skip
    assert (gone.status, gone.quote_volume_24h) == ("delisted", None)
    info["symbols"] = [{}]
    with pytest.raises(ExchangeError, match="not as documented"):
        await mexc().fetch_markets(http)
    with pytest.raises(ExchangeError, match="expected a list"):
        await mexc().fetch_history(FakeHttp(lambda path, query: {}), BTC, START_MS, START_MS + MINUTE_MS)


# ---------------------------------------------------------------- contracts

CONTRACT = Symbol("BTC", "USDT", "USDT")
DETAIL = [{"symbol": "BTC_USDT", "baseCoin": "BTC", "quoteCoin": "USDT", "settleCoin": "USDT", "state": 0,
           "contractSize": Decimal("0.0001"), "priceUnit": Decimal("0.5"), "priceScale": 2},
          {"symbol": "BTC_USD", "baseCoin": "BTC", "quoteCoin": "USD", "settleCoin": "BTC", "state": 0,
           "contractSize": 100, "priceUnit": Decimal("0.5"), "priceScale": 2}]  # fmt: skip


def mexc_usdt() -> MexcUsdt:
    return MexcUsdt(MexcUsdtSettings(), ManualClock(START_MS + 30_000))


def contracts(is_inclusive: bool = True):
    """MEXC's columns of contracts, 2,000 rows at most."""

    def answer(path: str, query):
        if path.endswith("detail"):
            return {"success": True, "code": 0, "data": DETAIL}
        if path.endswith("ticker"):
            return {"success": True, "code": 0, "data": [{"symbol": "BTC_USDT", "amount24": Decimal("7.5")}]}
        assert (path, query["interval"]) == ("/api/v1/contract/kline/BTC_USDT", "Min1")
        first = int(query["start"]) + (0 if is_inclusive else 1)
        times = list(range(-(-first // 60) * 60, min(int(query["end"]), START_MS // 1000) + 1, 60))
        assert len(times) <= 2000
        row = {"open": 10, "close": 11, "high": 12, "low": 9, "vol": 30000, "amount": 33}
        columns = {name: [value] * len(times) for name, value in row.items()}
        return {"success": True, "code": 0, "data": {"time": times, **columns}}

    return answer


async def contract_feed():
    feed = mexc_usdt().make_feed([CONTRACT])
    await feed.prepare_connection(FakeHttp(contracts()))
    return feed


PUSH = {"channel": "push.kline", "symbol": "BTC_USDT", "ts": 1651230713067, "data": {
    "a": 325653.3287, "c": 38839, "h": 38909.5, "interval": "Min1", "l": 38833, "o": 38901.5, "q": 83808, "rc": 38839,
    "rh": 38909.5, "rl": 38833, "ro": 38909.5, "symbol": "BTC_USDT", "t": 1651230660}}  # fmt: skip


async def test_a_documented_candle_of_a_contract_is_in_base_coins():
    (event,) = (await contract_feed()).read_frame(json.dumps(PUSH))
    (candle,) = event.candles
    assert (event.symbol, candle.open_ms, candle.as_of_ms) == (CONTRACT, 1651230660000, 1651230713067)
    assert [str(one) for one in candle.values] == ["38901.5", "38909.5", "38833", "38839", "8.3808", "325653.3287"]
    assert candle.low < candle.quote_volume / candle.volume < candle.high


async def test_answers_about_contracts():
    feed = await contract_feed()
    assert [json.loads(frame) for frame in feed.subscribe([CONTRACT])] == [
        {"method": "sub.kline", "param": {"symbol": "BTC_USDT", "interval": "Min1"}}
    ]
    for message, events in (
        ({"channel": "pong", "data": 1}, [Pong()]),
        ({"channel": "rs.sub.kline", "param": {"symbol": "BTC_USDT"}}, [Subscribed(CONTRACT)]),
        ({"channel": "rs.sub.kline", "data": "success", "ts": 1}, []),
        ({"channel": "rs.unsub.kline", "param": {"symbol": "BTC_USDT"}}, []),
        ({"channel": "rs.error", "data": "Contract does not exist!", "ts": 1}, [FeedError("Contract does not exist!")]),
    ):
        assert feed.read_frame(json.dumps(message)) == events
    (bad,) = feed.read_frame(json.dumps({**PUSH, "data": {**PUSH["data"], "q": None}}))
    assert (bad.candles, bad.invalid[0].open_ms) == ((), 1651230660000)
    for change in ({"symbol": "ETH_USDT"}, {"channel": "push.deal"}, {"ts": None}, {"data": {"interval": "Min5"}}):
        with pytest.raises(ExchangeError):
            feed.read_frame(json.dumps({**PUSH, **change}))


@pytest.mark.parametrize("is_inclusive", [True, False])
async def test_every_minute_of_a_range_of_a_contract_is_found(is_inclusive):
    exchange = mexc_usdt()
    start_ms, end_ms = window(100, 1990, exchange.max_history_minutes)
    rows = await exchange.fetch_history(FakeHttp(contracts(is_inclusive)), CONTRACT, start_ms, end_ms)
    assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
    assert {(row.volume, row.quote_volume) for row in rows} == {(3, 33)}


@pytest.mark.parametrize(
    ("body", "error", "paused"),
    [
        ({"success": False, "code": 510, "message": "Requests are too frequent"}, Unavailable, True),
        ({"success": False, "code": 1001, "message": "Contract does not exist!"}, ExchangeError, False),
        ([], ExchangeError, False),
        ({"success": True, "data": {"time": [1], "open": []}}, ExchangeError, False),
    ],
)
async def test_answers_about_contracts_without_candles(body, error, paused):
    http = FakeHttp(lambda path, query: contracts()(path, query) if path.endswith("detail") else body)
    with pytest.raises(error):
        await mexc_usdt().fetch_history(http, CONTRACT, START_MS, START_MS + MINUTE_MS)
    assert bool(http.paused) == paused


async def test_only_contracts_in_usdt_are_listed_and_their_tick_size_is_not_the_scale():
    (found,) = await mexc_usdt().fetch_markets(FakeHttp(contracts()))
    assert (found.symbol, found.tick_size, found.decimals.volume, found.status, found.quote_volume_24h) == (
        CONTRACT, Decimal("0.5"), 4, "trading", Decimal("7.5"),
    )  # fmt: skip
    with pytest.raises(ExchangeError, match="not as documented"):
        await mexc_usdt().fetch_markets(FakeHttp(lambda path, query: {"success": True, "data": [{}]}))
