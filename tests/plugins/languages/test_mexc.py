"""MEXC: candles in protobuf, acknowledgements in JSON on the same connection, by a dependency of the plugin alone.

The numbers of the fields are those of github.com/mexcdevelop/websocket-proto. No recorded frame was found, so the
frames are made with them.
"""

import json

import pytest

from candled import Candle, Candles, Event, ExchangeError, Pong, SocketFeed, Subscribed, SubscriptionRejected, Symbol
from tests.plugins.local import running, socket_server

pytest.importorskip("google.protobuf", reason='pip install -e ".[test]"')

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

BTC = Symbol("BTC", "USDT")
KLINE = (
    "interval", "windowStart", "openingPrice", "closingPrice", "highestPrice", "lowestPrice", "volume", "amount",
    "windowEnd",
)  # fmt: skip
_TEXT, _INT64, _MESSAGE = 9, 3, 11  # of google/protobuf/descriptor.proto


def wrapper_class():
    """The class of `PushDataV3ApiWrapper`, with the fields that the plugin reads."""
    file = descriptor_pb2.FileDescriptorProto(name="mexc.proto", syntax="proto3")
    kline = file.message_type.add(name="PublicSpotKlineV3Api")
    for number, name in enumerate(KLINE, 1):
        kline.field.add(name=name, number=number, label=1, type=_INT64 if name.startswith("window") else _TEXT)
    wrapper = file.message_type.add(name="PushDataV3ApiWrapper")
    wrapper.field.add(name="channel", number=1, label=1, type=_TEXT)
    wrapper.field.add(name="symbol", number=3, label=1, type=_TEXT)
    wrapper.field.add(name="createTime", number=5, label=1, type=_INT64)
    wrapper.field.add(name="publicSpotKline", number=308, label=1, type=_MESSAGE, type_name="PublicSpotKlineV3Api")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("PushDataV3ApiWrapper"))


Wrapper = wrapper_class()


class MexcFeed(SocketFeed):
    ping = '{"method":"PING"}'

    def subscribe(self, symbols):
        return [json.dumps({"method": "SUBSCRIPTION", "params": [channel(symbol) for symbol in symbols]})]

    def unsubscribe(self, symbols):
        return [json.dumps({"method": "UNSUBSCRIPTION", "params": [channel(symbol) for symbol in symbols]})]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        by_channel = {channel(symbol): symbol for symbol in self.symbols}
        if isinstance(frame, str):
            answer = json.loads(frame)["msg"]
            if answer == "PONG":
                return [Pong()]
            if answer in by_channel:
                return [Subscribed(by_channel[answer])]
            return [SubscriptionRejected(symbol, answer) for name, symbol in by_channel.items() if name in answer]
        try:
            message = Wrapper.FromString(frame)
        except DecodeError as error:
            raise ExchangeError(f"expected a PushDataV3ApiWrapper, got {frame[:40]!r}") from error
        row = message.publicSpotKline
        candle = Candle.parse(
            row.windowStart * 1000, row.openingPrice, row.highestPrice, row.lowestPrice, row.closingPrice, row.volume,
            row.amount, as_of_ms=message.createTime,
        )  # fmt: skip
        return [Candles(by_channel[message.channel], (candle,))]


def channel(symbol: Symbol) -> str:
    return f"spot@public.kline.v3.api.pb@{symbol.base}{symbol.quote}@Min1"


def pushed(volume: str = "1.5", name: str = channel(BTC)) -> bytes:
    kline = {
        "interval": "Min1", "windowStart": 1786563000, "openingPrice": "63349.89", "closingPrice": "63350.1",
        "highestPrice": "63351", "lowestPrice": "63349.89", "volume": volume, "amount": "95025.15",
        "windowEnd": 1786563060,
    }  # fmt: skip
    made = Wrapper(channel=name, symbol="BTCUSDT", createTime=1786563034187)
    for key, value in kline.items():
        setattr(made.publicSpotKline, key, value)
    return made.SerializeToString()


async def test_binary_frames_reach_the_plugin_byte_by_byte():
    assert b"\xa2\x13" in pushed()  # the tag of field 308, no UTF-8

    async def handle(peer):
        (name,) = json.loads(await peer.recv())["params"]
        await peer.send(json.dumps({"id": 0, "code": 0, "msg": name}))
        await peer.send(pushed())
        for bad in (pushed()[:-3], b"\xff\xff\xff", b"", pushed("-1"), pushed(name="spot@other"), b'{"msg":"PONG"}'):
            await peer.send(bad)
        await peer.send(pushed("2.5"))
        await peer.wait_closed()

    async with socket_server(handle) as url, running(MexcFeed(url, [BTC])) as (sink, runner):
        first, last = await sink.candles(2)
        assert runner.malformed.total == 6
    assert first == Candle.parse(
        1786563000000, "63349.89", "63351", "63349.89", "63350.1", "1.5", "95025.15", as_of_ms=1786563034187
    )
    assert str(last.volume) == "2.5"


def test_a_refusal_in_words_with_code_0_is_one():
    feed = MexcFeed("ws://localhost", [BTC])
    text = f"Not Subscribed successfully! [{channel(BTC)}]. Reason: Blocked!"
    assert feed.read_frame(json.dumps({"id": 0, "code": 0, "msg": text})) == [SubscriptionRejected(BTC, text)]
    assert feed.read_frame('{"id":0,"code":0,"msg":"PONG"}') == [Pong()]
