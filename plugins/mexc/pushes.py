"""The class of MEXC's binary frames, made with protobuf, which only this plugin needs.

Source: github.com/mexcdevelop/websocket-proto, PushDataV3ApiWrapper.proto and PublicSpotKlineV3Api.proto.
"""

from typing import Any

from candled import ConfigError

_KLINE = (
    "interval", "windowStart", "openingPrice", "closingPrice", "highestPrice", "lowestPrice", "volume", "amount",
    "windowEnd",
)  # fmt: skip
_TEXT, _INT64, _MESSAGE = 9, 3, 11  # of google/protobuf/descriptor.proto


def make_push_class() -> Any:
    """Return the class of `PushDataV3ApiWrapper`, with the fields that the plugin reads.

    Raises:
        ConfigError: protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise ConfigError("mexc needs protobuf: pip install 'candled[mexc]'") from error
    file = descriptor_pb2.FileDescriptorProto(name="mexc.proto", syntax="proto3")
    kline = file.message_type.add(name="PublicSpotKlineV3Api")
    for number, name in enumerate(_KLINE, 1):
        kline.field.add(name=name, number=number, label=1, type=_INT64 if name.startswith("window") else _TEXT)
    wrapper = file.message_type.add(name="PushDataV3ApiWrapper")
    wrapper.field.add(name="channel", number=1, label=1, type=_TEXT)
    wrapper.field.add(name="symbol", number=3, label=1, type=_TEXT)
    wrapper.field.add(name="createTime", number=5, label=1, type=_INT64)
    wrapper.field.add(name="publicSpotKline", number=308, label=1, type=_MESSAGE, type_name="PublicSpotKlineV3Api")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("PushDataV3ApiWrapper"))
