"""HTX: every frame is gzip, and the server pings: compressed frames and replies, against a server that misbehaves."""

import asyncio
import contextlib
import gzip
import json
import zlib
from decimal import Decimal

import pytest
from websockets.exceptions import ConnectionClosed

from candled import Candle, Candles, Event, ExchangeError, Reply, SocketFeed, Subscribed, SubscriptionRejected, Symbol
from candled.exchange import Compression
from candled.ingest.connection import FeedConnection
from candled.ingest.decompression import TooLarge, decompress
from tests import deadlines
from tests.plugins.local import recorded, running, socket_server

BTC = Symbol("BTC", "USDT")


class HtxFeed(SocketFeed):
    compression = "gzip"

    def subscribe(self, symbols):
        return [json.dumps({"sub": topic(symbol), "id": topic(symbol)}) for symbol in symbols]

    def unsubscribe(self, symbols):
        return [json.dumps({"unsub": topic(symbol), "id": topic(symbol)}) for symbol in symbols]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        message = json.loads(frame, parse_float=Decimal)
        if "ping" in message:
            return [Reply(json.dumps({"pong": message["ping"]}))]
        by_topic = {topic(symbol): symbol for symbol in self.symbols}
        if message.get("status") == "error":
            return [SubscriptionRejected(by_topic[message["id"]], message["err-msg"])]
        if "subbed" in message:
            return [Subscribed(by_topic[message["subbed"]])]
        tick = message["tick"]
        cells = (str(tick[name]) for name in ("open", "high", "low", "close", "amount", "vol"))
        return [Candles(by_topic[message["ch"]], (Candle.parse(tick["id"] * 1000, *cells, as_of_ms=message["ts"]),))]


def topic(symbol: Symbol) -> str:
    return f"market.{symbol.base}{symbol.quote}.kline.1min".lower()


def packed(message: object) -> bytes:
    return gzip.compress(json.dumps(message).encode())


async def test_recorded_frames_become_candles_and_pings_are_answered():
    ended = asyncio.Queue()

    async def handle(peer):
        """As documented: a ping is answered with its number, or the connection is closed."""
        assert json.loads(await peer.recv())["sub"] == "market.btcusdt.kline.1min"
        for message in map(json.loads, recorded("languages/htx_socket.json")):
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
    frame = packed(json.loads(recorded("languages/htx_socket.json")[1]))

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
