"""KuCoin: a token over POST before each connection, a greeting to wait for, and its own order of columns."""

import asyncio
import contextlib
import json
from decimal import Decimal

import pytest
from hypothesis import given
from tornado.web import RequestHandler

from candled import (
    MINUTE_MS,
    ExchangeError,
    FeedError,
    Interval,
    Pong,
    Ready,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    Unavailable,
)
from candled_plugins.kucoin.exchange import Kucoin, KucoinFeed, KucoinSettings, KucoinUsdt, KucoinUsdtSettings
from tests import deadlines
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
    running,
    socket_server,
    web_server,
    window,
)
from tests.tiers import few_examples

BCHSV = Symbol("BCHSV", "USDT")
DAPPT = Symbol("DAPPT", "BTC")


class QuickFeed(KucoinFeed):
    ready_within_s = 0.5


def feed(*symbols: Symbol) -> KucoinFeed:
    return KucoinFeed("http://localhost", symbols or (BCHSV, DAPPT))


def kucoin() -> Kucoin:
    return Kucoin(KucoinSettings(), ManualClock(START_MS + 30_000))


def bullet(*answers: dict[str, object]) -> type[RequestHandler]:
    """A handler that gives out one answer after the other, the last one again and again."""
    left = list(answers)

    class Bullet(RequestHandler):
        def post(self) -> None:
            self.finish(left.pop(0) if len(left) > 1 else left[0])

    return Bullet


def token(number: int, endpoint: str) -> dict[str, object]:
    server = {"endpoint": endpoint, "pingInterval": 300, "pingTimeout": 2000}
    return {"code": "200000", "data": {"token": f"t{number}", "instanceServers": [server]}}


@pytest.mark.slow
async def test_each_connection_asks_for_a_token_and_waits_for_the_greeting():
    paths, early, pings = [], [], asyncio.Queue()

    async def handle(peer):
        paths.append(peer.request.path)
        with contextlib.suppress(TimeoutError):
            early.append(await asyncio.wait_for(peer.recv(), 0.2))
        welcome, ack, *pushes = recorded("kucoin/socket.txt")
        await peer.send(welcome)
        assert json.loads(await peer.recv())["topic"] == "/market/candles:BCHSV-USDT_1min,DAPPT-BTC_1min"
        for message in (ack, *pushes):
            await peer.send(message)
        pings.put_nowait(await peer.recv())
        await peer.close(4001, "token is expired")

    async with socket_server(handle) as ws_url:
        route = ("/api/v1/bullet-public", bullet(token(1, ws_url), token(2, ws_url)))
        async with web_server(route) as rest_url, running(QuickFeed(rest_url, [BCHSV, DAPPT])) as (sink, _):
            candles = await sink.candles(5)
            assert json.loads(await deadlines.wait_for(pings.get(), 10))["type"] == "ping"  # after 0.3 s
            assert "token is expired" in await sink.reason()
            await sink.candles(5)
    assert paths[:2] == ["/?token=t1&connectId=1", "/?token=t2&connectId=1"]
    assert early == []
    assert [candle.open_ms for candle in candles] == [
        1619378220000, 1619378280000, 1619378280000, 1619378280000, 1619378340000,
    ]  # fmt: skip
    assert candles[0].as_of_ms == 1619378328806


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"code": "200000", "data": {}}, "expected a token and servers"),
        (token(1, "not an address"), "the address cannot be used"),
        (token(1, "ws://127.0.0.1:1/"), "ConnectionRefusedError"),
    ],
    ids=["no token", "no address", "no server"],
)
async def test_an_answer_without_a_usable_address_is_an_interruption_that_repeats_no_token(answer, reason):
    async with (
        web_server(("/api/v1/bullet-public", bullet(answer))) as url,
        running(QuickFeed(url, [BCHSV])) as (sink, _),
    ):
        found = await sink.reason()
        assert reason in found or ("ConnectionRefused" in reason and "Connect call failed" in found)
        assert "token=" not in found


@pytest.mark.slow
async def test_a_server_that_does_not_greet_is_left():
    async def handle(peer):
        await peer.wait_closed()

    async with (
        socket_server(handle) as ws_url,
        web_server(("/api/v1/bullet-public", bullet(token(1, ws_url)))) as url,
        running(QuickFeed(url, [BCHSV])) as (sink, _),
    ):
        assert await sink.reason() == "the exchange is not ready after 0.5 s"


# ---------------------------------------------------------------- frames


def test_a_recorded_minute_begins_with_an_add_and_a_quiet_one_is_flat():
    candles = candles_of(read_all(feed(DAPPT, BCHSV), recorded("kucoin/socket.txt")))
    assert [(one.open_ms, f"{one.close:f}", str(one.volume), str(one.quote_volume)) for one in candles][:2] == [
        (1619378220000, "0.0000001116", "0", "0"),
        (1619378280000, "0.0000001123", "3437.9375", "0.00038556424505"),
    ]
    assert not any(one.final for one in candles)


PUSH = {"type": "message", "topic": "/market/candles:BCHSV-USDT_1min", "subject": "trade.candles.update", "data": {
    "symbol": "BCHSV-USDT", "candles": ["60", "10", "11", "12", "9", "3", "33"], "time": 61_000_000_000}}  # fmt: skip


@pytest.mark.parametrize("time", [1619378328806, 1619378328806123, 1619378328806123456])
def test_the_time_of_sending_may_be_in_any_unit(time):
    (event,) = feed().read_frame(json.dumps({**PUSH, "data": {**PUSH["data"], "time": time}}))
    assert event.candles[0].as_of_ms == 1619378328806


def test_subscriptions_share_a_frame_and_are_answered_by_number():
    symbols = [Symbol(f"S{number}", "USDT") for number in range(101)]
    one = feed(*symbols)
    first, second = map(json.loads, one.subscribe(symbols))
    assert (first["topic"].count(","), second["topic"]) == (99, "/market/candles:S100-USDT_1min")
    assert len(one.read_frame('{"id":"1","type":"ack"}')) == 100
    error = {"id": "2", "type": "error", "code": 404, "data": "topic /market/candles:S100-USDT_1min is not found"}
    reason = "404 topic /market/candles:S100-USDT_1min is not found"
    assert one.read_frame(json.dumps(error)) == [SubscriptionRejected(symbols[100], reason)]
    (frame,) = one.unsubscribe(symbols[:1])
    assert json.loads(frame)["type"] == "unsubscribe"
    assert len({one.make_ping(), one.make_ping()}) == 2


def test_answers():
    one = feed()
    one.subscribe([BCHSV])
    assert one.read_frame('{"id":"1","type":"ack"}') == [Subscribed(BCHSV)]
    assert one.read_frame('{"id":"x","type":"welcome"}') == [Ready()]
    assert one.read_frame('{"id":"9","type":"pong","timestamp":1}') == [Pong()]
    expired = FeedError("401 token is expired", reconnect=True)
    assert one.read_frame('{"id":"9","type":"error","code":401,"data":"token is expired"}') == [expired]


@pytest.mark.parametrize("row", [["60"], None, ["61", *PUSH["data"]["candles"][1:]], ["x"] * 7])
def test_a_bad_row_is_none(row):
    (event,) = feed().read_frame(json.dumps({**PUSH, "data": {**PUSH["data"], "candles": row}}))
    assert (event.candles, len(event.invalid)) == ((), 1)


@pytest.mark.parametrize("frame", [
    *NOT_FRAMES,
    json.dumps({**PUSH, "topic": "/market/candles:BCHSV-USDT_5min"}),
    json.dumps({**PUSH, "data": {**PUSH["data"], "symbol": "ETH-USDT"}}),
    json.dumps({**PUSH, "data": {**PUSH["data"], "time": "1"}}),
    json.dumps({**PUSH, "data": []}),
])  # fmt: skip
def test_other_frames_are_errors(frame):
    with pytest.raises(ExchangeError):
        feed().read_frame(frame)


# ---------------------------------------------------------------- REST


def candles(path: str, query: dict[str, str]):
    """KuCoin's rows: newest first, the end exclusive, 1,500 at most."""
    first_s, end_s = int(query["startAt"]), min(int(query["endAt"]), START_MS // 1000 + 60)
    times = range((end_s - 1) // 60 * 60, -(-first_s // 60) * 60 - 1, -60)
    return {"code": "200000", "data": [[str(at), "10", "11", "12", "9", "3", "33"] for at in times][:1500]}


@few_examples
@given(WINDOWS)
async def test_every_minute_of_a_range_is_found(ago_and_count):
    start_ms, end_ms = window(*ago_and_count, Kucoin.max_history_minutes)
    http = FakeHttp(candles)
    rows = await kucoin().fetch_history(http, BCHSV, start_ms, end_ms)
    assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
    assert [(path, weight, budget) for path, _, weight, budget in http.requests] == [
        ("/api/v1/market/candles", 3.0, "weight")
    ]


async def test_recorded_rows_are_read_with_all_their_digits():
    http = FakeHttp(lambda path, query: recorded_answer("kucoin/rest_hours.json"))
    bars = await kucoin().fetch_bars(http, BCHSV, Interval.parse("1h"), 1706630400000, 1706641200000)
    assert [(one.open_ms, str(one.high), str(one.volume), str(one.quote_volume)) for one in bars] == [
        (1706630400000, "43521.9", "101.30420492", "4391287.808186813"),
        (1706634000000, "43598.9", "101.11170513", "4390218.48746545"),
        (1706637600000, "43491.9", "135.02905655", "5859577.939581874"),
    ]
    assert await kucoin().fetch_bars(http, BCHSV, Interval.parse("1W"), 0, 10) is None


@pytest.mark.parametrize(
    ("body", "error", "paused"),
    [
        ({"code": "429000", "msg": "Too Many Requests"}, Unavailable, True),
        ({"code": "400100", "msg": "Unsupported trading pair."}, ExchangeError, False),
        ({"code": "200000", "data": None}, ExchangeError, False),
        ([], ExchangeError, False),
    ],
)
async def test_answers_without_candles(body, error, paused):
    http = FakeHttp(lambda path, query: body)
    with pytest.raises(error):
        await kucoin().fetch_history(http, BCHSV, START_MS, START_MS + MINUTE_MS)
    assert bool(http.paused) == paused


async def test_a_renamed_market_keeps_the_name_that_kucoin_knows():
    renamed = {"symbol": "BCHSV-USDT", "name": "BSV-USDT", "baseCurrency": "BSV", "quoteCurrency": "USDT",
               "baseIncrement": "0.0001", "priceIncrement": "0.01", "enableTrading": True}  # fmt: skip
    data = {"/api/v2/symbols": [renamed], "/api/v1/market/allTickers": {"ticker": [
        {"symbol": "BCHSV-USDT", "volValue": "7.5"}]}}  # fmt: skip
    (found,) = await kucoin().fetch_markets(FakeHttp(lambda path, query: {"code": "200000", "data": data[path]}))
    assert (found.symbol, found.tick_size, found.decimals.volume, found.status, found.quote_volume_24h) == (
        BCHSV, Decimal("0.01"), 4, "trading", Decimal("7.5"),
    )  # fmt: skip
    data["/api/v2/symbols"] = [{"symbol": "A-B-C"}]
    with pytest.raises(ExchangeError, match="not as documented"):
        await kucoin().fetch_markets(FakeHttp(lambda path, query: {"code": "200000", "data": data[path]}))


# ---------------------------------------------------------------- contracts

CONTRACT = Symbol("BTC", "USDT", "USDT")
ACTIVE = [{"symbol": "XBTUSDTM", "baseCurrency": "XBT", "quoteCurrency": "USDT", "settleCurrency": "USDT",
           "expireDate": None, "isInverse": False, "multiplier": Decimal("0.001"), "tickSize": Decimal("0.1"),
           "status": "Open", "firstOpenDate": 1585555200000, "turnoverOf24h": Decimal("7.5")}]  # fmt: skip


def kucoin_usdt() -> KucoinUsdt:
    return KucoinUsdt(KucoinUsdtSettings(), ManualClock(START_MS + 30_000))


def contracts(path: str, query):
    """KuCoin's rows of contracts: `from` excluded, 200 at most."""
    if path.endswith("active"):
        return {"code": "200000", "data": ACTIVE}
    if path.endswith("bullet-public"):
        server = {"endpoint": "wss://x.example/endpoint", "pingInterval": 18_000, "pingTimeout": 10_000}
        return {"code": "200000", "data": {"token": "t", "instanceServers": [server]}}
    assert (query["symbol"], query["granularity"]) == ("XBTUSDTM", "1")
    times = range(
        int(query["from"]) // MINUTE_MS * MINUTE_MS + MINUTE_MS, min(int(query["to"]), START_MS) + 1, MINUTE_MS
    )
    return {"code": "200000", "data": [[at, 10, 12, 9, 11, 3000] for at in times[:200]]}


async def test_of_a_documented_frame_of_a_contract_the_last_column_is_the_number_of_contracts():
    feed = kucoin_usdt().make_feed([CONTRACT])
    assert await feed.prepare_connection(FakeHttp(contracts)) == "wss://x.example/endpoint?token=t&connectId=1"
    (command,) = map(json.loads, feed.subscribe([CONTRACT]))
    assert command["topic"] == "/contractMarket/limitCandle:XBTUSDTM_1min"
    assert feed.read_frame(json.dumps({"id": command["id"], "type": "ack"})) == [Subscribed(CONTRACT)]
    data = {"symbol": "XBTUSDTM", "candles": ["1715470980", "81.38", "81.4", "81.5", "81.3", "99.0", "61"],
            "time": 1715470994801}  # fmt: skip
    frame = {"topic": command["topic"], "type": "message", "data": data, "subject": "candle.stick"}
    (event,) = feed.read_frame(json.dumps(frame))
    (candle,) = event.candles
    assert (candle.open_ms, candle.as_of_ms, candle.quote_volume) == (1715470980000, 1715470994801, None)
    assert [str(one) for one in candle[1:6]] == ["81.38", "81.5", "81.3", "81.4", "0.061"]
    for topic in ("/market/candles:XBTUSDTM_1min", "/contractMarket/limitCandle:XBTUSDTM_5min"):
        with pytest.raises(ExchangeError, match="expected a candle of a minute"):
            feed.read_frame(json.dumps({**frame, "topic": topic}))


async def test_every_minute_of_a_range_of_a_contract_is_found_in_base_coins():
    exchange = kucoin_usdt()
    start_ms, end_ms = window(50, 500, exchange.max_history_minutes)
    http = FakeHttp(contracts)
    rows = await exchange.fetch_history(http, CONTRACT, start_ms, end_ms)
    assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
    assert {(row.volume, row.quote_volume) for row in rows} == {(3, None)}
    with pytest.raises(ExchangeError, match="the exchange has no market ETHUSDTM"):
        await exchange.fetch_history(http, Symbol("ETH", "USDT", "USDT"), start_ms, end_ms)
    assert await exchange.fetch_bars(http, CONTRACT, Interval.parse("1W"), 0, 10) is None


async def test_contracts_have_the_usual_name_of_their_coin():
    (found,) = await kucoin_usdt().fetch_markets(FakeHttp(contracts))
    assert (found.symbol, found.tick_size, found.decimals.volume, found.status) == (
        CONTRACT, Decimal("0.1"), 3, "trading",
    )  # fmt: skip
    assert (found.listed_ms, found.quote_volume_24h) == (1585555200000, Decimal("7.5"))
    with pytest.raises(ExchangeError, match="not as documented"):
        await kucoin_usdt().fetch_markets(FakeHttp(lambda path, query: {"code": "200000", "data": [{}]}))
