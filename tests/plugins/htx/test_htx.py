"""HTX: every frame is gzip, and the server pings: compressed frames and replies, against a server that misbehaves."""

import asyncio
import contextlib
import gzip
import json
import zlib
from decimal import Decimal

import pytest
from websockets.exceptions import ConnectionClosed

from candled import (
    MINUTE_MS,
    ExchangeError,
    FeedError,
    Interval,
    Subscribed,
    SubscriptionRejected,
    Symbol,
)
from candled.exchange import Compression
from candled.ingest.connection import FeedConnection
from candled.ingest.decompression import TooLarge, decompress
from candled_plugins.htx.exchange import Htx, HtxFeed, HtxSettings, HtxUsdt, HtxUsdtSettings
from tests import deadlines
from tests.clocks import START_MS, ManualClock
from tests.plugins.local import NOT_FRAMES, FakeHttp, opening_times, recorded, running, socket_server, window

BTC = Symbol("BTC", "USDT")


def htx() -> Htx:
    return Htx(HtxSettings(), ManualClock(START_MS + 30_000))


def packed(message: object) -> bytes:
    return gzip.compress(json.dumps(message).encode())


@pytest.mark.slow
async def test_recorded_frames_become_candles_and_pings_are_answered():
    ended = asyncio.Queue()

    async def handle(peer):
        """As documented: a ping is answered with its number, or the connection is closed."""
        assert json.loads(await peer.recv())["sub"] == "market.btcusdt.kline.1min"
        for message in map(json.loads, recorded("htx/socket.json")):
            await peer.send(packed(message))
            if "ping" in message:
                answer = await deadlines.wait_for(peer.recv(), 5)
                if json.loads(answer) != {"pong": message["ping"]}:
                    await peer.close(1000, "no pong")
        ended.put_nowait(None)
        await peer.wait_closed()

    async with socket_server(handle) as url, running(HtxFeed(url, [BTC])) as (sink, _):
        first, last = await sink.candles(2)
        await deadlines.wait_for(ended.get(), 10)
        assert (str(first.volume), str(first.quote_volume), first.as_of_ms) == (
            "0.010242", "648.82957338", 1786563034187,
        )  # fmt: skip
        assert (last.open_ms, last.as_of_ms) == (first.open_ms, 1786563060052)


async def test_frames_that_are_not_gzip_are_skipped_and_one_that_explodes_ends_the_connection():
    frame = packed(json.loads(recorded("htx/socket.json")[1]))

    async def handle(peer):
        await peer.recv()
        for bad in (b"", b"\x1f\x8b", frame[:-5], frame + frame, b"plain", b"\xff" * 100):
            await peer.send(bad)
        await peer.send(frame)
        await peer.send(gzip.compress(b" " * 2**20 + b"{}", 1))
        await peer.wait_closed()

    async with socket_server(handle) as url, running(HtxFeed(url, [BTC])) as (sink, runner):
        await sink.candles(1)
        assert runner.malformed.total == 6
        assert "after decompression" in await sink.reason()


@pytest.mark.slow
async def test_a_server_that_pings_without_end_is_left():
    async def handle(peer):
        await peer.recv()
        with contextlib.suppress(ConnectionClosed):
            while True:
                await peer.send(packed({"ping": 1}))
                await asyncio.sleep(0.001)

    async with socket_server(handle) as url, running(HtxFeed(url, [BTC])) as (sink, _):
        assert await sink.reason() == "the exchange asks for more replies than may be sent"


def test_replies_keep_their_order_and_go_before_subscriptions():
    feed = HtxFeed("ws://localhost", [BTC])
    one = FeedConnection(feed, feed.symbols, 0.0)
    for number in (1, 2):
        one.on_frame(json.dumps({"ping": number}), 0.0)
    frames = [frame for now in range(4) for frame in one.frames_to_send(float(now))]
    assert frames[:2] == ['{"pong": 1}', '{"pong": 2}']
    assert frames[2:] == feed.subscribe([BTC])


@pytest.mark.parametrize(("compression", "wbits"), [("gzip", 31), ("zlib", 15), ("deflate", -15)])
def test_no_more_is_decompressed_than_allowed(compression: Compression, wbits: int):
    def pack(content: bytes) -> bytes:
        stream = zlib.compressobj(9, zlib.DEFLATED, wbits)
        return stream.compress(content) + stream.flush()

    assert decompress(pack(b"x" * 1000), compression, 1000) == b"x" * 1000
    with pytest.raises(TooLarge):
        decompress(pack(b"x" * 1001), compression, 1000)
    with pytest.raises(TooLarge):
        decompress(pack(b" " * 10_000_000), compression, 1000)
    for bad in (pack(b"x")[:-1], pack(b"x") + b"x", b"", b"\x00\x00 no"):
        with pytest.raises(ExchangeError):
            decompress(bad, compression, 1000)


# ---------------------------------------------------------------- other frames


def test_answers_name_their_topic():
    feed = HtxFeed("ws://localhost", [BTC])
    topic = "market.btcusdt.kline.1min"
    refused = {"id": topic, "status": "error", "err-code": "bad-request", "err-msg": "invalid topic"}
    assert feed.read_frame(json.dumps(refused)) == [SubscriptionRejected(BTC, "bad-request invalid topic")]
    assert feed.read_frame(json.dumps({**refused, "id": "x"})) == [FeedError("bad-request invalid topic")]
    assert feed.read_frame(json.dumps({"subbed": topic, "status": "ok"})) == [Subscribed(BTC)]
    assert feed.read_frame(json.dumps({"unsubbed": topic, "status": "ok"})) == []
    assert json.loads(feed.unsubscribe([BTC])[0]) == {"unsub": topic, "id": topic}


PUSH = json.loads(recorded("htx/socket.json")[1])


def test_numbers_keep_their_digits():
    text = json.dumps(PUSH).replace("0.010242", "0.44639786263800907")
    (event,) = HtxFeed("ws://localhost", [BTC]).read_frame(text)
    assert str(event.candles[0].volume) == "0.44639786263800907"


@pytest.mark.parametrize("change", [{"high": 1}, {"id": 1}, {"id": None}, {"amount": "x"}, {"vol": "x"}])
def test_a_bad_row_is_none(change):
    frame = json.dumps({**PUSH, "tick": {**PUSH["tick"], **change}})
    (event,) = HtxFeed("ws://localhost", [BTC]).read_frame(frame)
    assert (event.candles, len(event.invalid)) == ((), 1)


@pytest.mark.parametrize("frame", [
    *NOT_FRAMES, '{"ping":"x"}', json.dumps({**PUSH, "ch": "market.ethusdt.kline.1min"}),
    json.dumps({**PUSH, "ch": "market.btcusdt.kline.5min"}), json.dumps({**PUSH, "ts": None}),
])  # fmt: skip
def test_other_frames_are_errors(frame):
    with pytest.raises(ExchangeError):
        HtxFeed("ws://localhost", [BTC]).read_frame(frame)


# ---------------------------------------------------------------- REST


def klines(path: str, query: dict[str, str]):
    """HTX's rows: the newest `size` ones, newest first, the forming one among them."""
    step_ms = {"1min": MINUTE_MS, "60min": 60 * MINUTE_MS}[query["period"]]
    newest_ms, size = START_MS // step_ms * step_ms, int(query["size"])
    assert 1 <= size <= 2000
    rows = [
        {"id": (newest_ms - number * step_ms) // 1000, "open": Decimal("10.0"), "close": 11, "low": 9, "high": 12,
         "amount": 3, "vol": 33, "count": 1}
        for number in range(size)
    ]  # fmt: skip
    return {"status": "ok", "ch": "x", "ts": START_MS + 30_000, "data": rows}


@pytest.mark.parametrize(("ago", "count"), [(0, 1), (1, 2), (0, 1000), (990, 1000), (1500, 100)])
async def test_every_minute_of_the_newest_is_found(ago, count):
    start_ms, end_ms = window(ago, count, Htx.max_history_minutes)
    http = FakeHttp(klines)
    rows = await htx().fetch_history(http, BTC, start_ms, end_ms)
    assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
    assert {(row.volume, row.quote_volume, row.as_of_ms) for row in rows} == {(3, 33, START_MS + 30_000)}
    assert int(http.requests[0][1]["size"]) <= ago + count + 1


async def test_as_far_back_as_the_plugin_says_htx_has_minutes():
    start_ms = START_MS - Htx.history_minutes * MINUTE_MS
    rows = await htx().fetch_history(FakeHttp(klines), BTC, start_ms, start_ms + MINUTE_MS)
    assert opening_times(rows) == [start_ms]


async def test_hours_are_offered_and_days_of_another_time_zone_are_not():
    hour_ms = 60 * MINUTE_MS
    start_ms = START_MS // hour_ms * hour_ms - 5 * hour_ms
    bars = await htx().fetch_bars(FakeHttp(klines), BTC, Interval.parse("1h"), start_ms, start_ms + 2 * hour_ms)
    assert [one.open_ms for one in bars] == [start_ms, start_ms + hour_ms]
    assert await htx().fetch_bars(FakeHttp(klines), BTC, Interval.parse("1D"), 0, 10) is None


@pytest.mark.parametrize("body", [{"status": "error", "err-code": "invalid-parameter"}, {"status": "ok"}, [], None])
async def test_answers_without_candles(body):
    with pytest.raises(ExchangeError):
        await htx().fetch_history(FakeHttp(lambda path, query: body), BTC, START_MS, START_MS + MINUTE_MS)


async def test_markets_with_their_facts():
    entry = {"symbol": "btcusdt", "base-currency": "btc", "quote-currency": "usdt", "price-precision": 2,
             "amount-precision": 6, "state": "online"}  # fmt: skip
    data = {"/v1/common/symbols": [entry, {**entry, "symbol": "ethusdt", "base-currency": "eth", "state": "offline"}],
            "/market/tickers": [{"symbol": "btcusdt", "vol": Decimal("7.5")}]}  # fmt: skip
    answer = FakeHttp(lambda path, query: {"status": "ok", "data": data[path]})
    found, gone = await htx().fetch_markets(answer)
    assert (found.symbol, found.price_decimals, found.decimals.volume, found.status, found.quote_volume_24h) == (
        BTC, 2, 6, "trading", Decimal("7.5"),
    )  # fmt: skip
    assert (gone.status, gone.quote_volume_24h) == ("delisted", None)
    data["/v1/common/symbols"] = [{}]
    with pytest.raises(ExchangeError, match="not as documented"):
        await htx().fetch_markets(answer)


# ---------------------------------------------------------------- contracts

CONTRACT = Symbol("BTC", "USDT", "USDT")


def htx_usdt() -> HtxUsdt:
    return HtxUsdt(HtxUsdtSettings(), ManualClock(START_MS + 30_000))


def test_of_a_documented_contract_the_turnover_is_the_quote_volume_and_vol_a_number_of_contracts():
    tick = {"id": 1603707120, "mrid": 131592424, "open": 13067.7, "close": 13067.7, "high": 13067.7, "low": 13067.7,
            "amount": 0.004, "vol": 4, "trade_turnover": 52.2708, "count": 1}  # fmt: skip
    frame = json.dumps({"ch": "market.BTC-USDT.kline.1min", "ts": 1603707124366, "tick": tick})
    (event,) = htx_usdt().make_feed([CONTRACT]).read_frame(frame)
    (candle,) = event.candles
    assert (event.symbol, str(candle.volume), str(candle.quote_volume)) == (CONTRACT, "0.004", "52.2708")
    assert candle.quote_volume / candle.volume == candle.close


@pytest.mark.parametrize("is_inclusive", [True, False])
async def test_every_minute_of_a_range_of_a_contract_is_found(is_inclusive):
    def answer(path, query):
        assert (path, query["contract_code"]) == ("/linear-swap-ex/market/history/kline", "BTC-USDT")
        first = int(query["from"]) + (0 if is_inclusive else 1)
        times = range(-(-first // 60) * 60, min(int(query["to"]), START_MS // 1000) + 1, 60)
        assert len(times) <= 2000
        row = {"open": 10, "close": 11, "low": 9, "high": 12, "amount": 3, "vol": 300, "trade_turnover": 33}
        return {"status": "ok", "ts": START_MS, "data": [{"id": at, **row} for at in times]}

    start_ms, end_ms = window(100, 1000, HtxUsdt.max_history_minutes)
    rows = await htx_usdt().fetch_history(FakeHttp(answer), CONTRACT, start_ms, end_ms)
    assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))


async def test_contracts_that_expire_are_not_listed():
    entry = {"symbol": "BTC", "contract_code": "BTC-USDT", "contract_size": Decimal("0.001"), "business_type": "swap",
             "price_tick": Decimal("0.1"), "contract_status": 1}  # fmt: skip
    future = {**entry, "contract_code": "BTC-USDT-211231", "business_type": "futures"}
    merged = {"status": "ok", "ticks": [{"contract_code": "BTC-USDT", "trade_turnover": "7.5"}]}
    infos = {"status": "ok", "data": [entry, future, {**entry, "contract_code": "X-USDT", "contract_status": 3}]}
    http = FakeHttp(lambda path, query: merged if "merged" in path else infos)
    found, halted = await htx_usdt().fetch_markets(http)
    assert (found.symbol, found.tick_size, found.decimals.volume, found.status, found.quote_volume_24h) == (
        CONTRACT, Decimal("0.1"), 3, "trading", Decimal("7.5"),
    )  # fmt: skip
    assert (halted.symbol, halted.status) == (Symbol("X", "USDT", "USDT"), "suspended")
    merged["ticks"] = None
    with pytest.raises(ExchangeError, match="not as documented"):
        await htx_usdt().fetch_markets(http)
