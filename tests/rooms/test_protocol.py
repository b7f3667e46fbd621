import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from candled.errors import ClientError
from candled.model import DEFAULT_INTERVALS, Candle, Interval, MarketKey, Symbol
from candled.rooms import protocol
from candled.rooms.protocol import Ping, Protocol, Subscribe, Topic, Unsubscribe

BTC, ETH = Symbol.parse("BTC/USDT"), Symbol.parse("ETH/USDT")
FIVE = Interval.parse("5m")
ONE = Protocol({"bitget": [BTC]}, DEFAULT_INTERVALS)
TWO = Protocol({"bitget": [BTC, ETH], "other": [BTC]}, DEFAULT_INTERVALS)
TOPIC = Topic(MarketKey("bitget", BTC), FIVE)


def refused(codec: Protocol, message: str | bytes) -> str:
    with pytest.raises(ClientError) as raised:
        codec.decode(message)
    return str(raised.value)


def subscribe(**fields) -> str:
    return json.dumps({"type": "subscribe", "symbol": "BTC/USDT", "interval": "5m", **fields})


def test_the_documented_messages_are_read():
    assert ONE.decode(subscribe(initialBars=50)) == Subscribe(TOPIC, 50)
    assert ONE.decode(subscribe()) == Subscribe(TOPIC, 100)
    assert ONE.decode('{"type":"unsubscribe","symbol":"BTC/USDT","interval":"5m"}') == Unsubscribe(TOPIC)
    assert ONE.decode('{"type":"ping"}') == Ping()


def test_error_texts_are_those_of_the_specification():
    assert refused(ONE, subscribe(interval="10m")) == "Invalid interval: 10m. Valid: 1m, 5m, 15m, 1h, 4h, 1D, 1W"
    assert refused(ONE, subscribe(symbol="ETH/USDT")) == "Invalid symbol: ETH/USDT. Only BTC/USDT is supported."
    assert refused(ONE, '{"type":"unheard"}') == "Unknown message type: unheard"
    assert refused(TWO, subscribe(symbol="X/Y")) == "Invalid symbol: X/Y. Valid: BTC/USDT, ETH/USDT"
    assert refused(TWO, subscribe(exchange="nowhere")) == "Invalid exchange: nowhere. Valid: bitget, other"


@pytest.mark.parametrize(
    "message",
    ["", "{", "[]", "null", '"ping"', "{}", '{"type":7}', '{"type":null}', "[" * 8000, '{"type":"ping"', b"\x00\x01",
     '{"type":"subscribe"}', '{"type":"subscribe","symbol":1,"interval":"5m"}',
     '{"type":"subscribe","symbol":"BTC/USDT"}',
     '{"type":"subscribe","symbol":"BTC/USDT","interval":["5m"]}', '{"type":"unsubscribe","symbol":{},"interval":"5m"}',
     '{"type":"subscribe","symbol":"BTC/USDT","interval":"5m","exchange":3}', '{"type":NaN}', "\x00"],
)  # fmt: skip
def test_what_is_not_a_message_is_an_invalid_format(message):
    assert refused(ONE, message) == "Invalid message format"


@pytest.mark.parametrize("count", [-1, -1000000, "100", 1.5, 100.0, True, None, [], {}, 1e9])
def test_a_number_of_bars_that_is_none_is_a_clear_error(count):
    """Fault 6: initialBars negative, huge, a string or a float reaching a query."""
    expected = f"Invalid initialBars: {json.dumps(count) if count != 1e9 else '1000000000.0'}."
    assert refused(ONE, subscribe(initialBars=count)).startswith(expected)


@pytest.mark.parametrize("count", [1001, 10**9, 10**18])
def test_a_huge_number_of_bars_is_clamped_to_the_documented_maximum(count):
    assert ONE.decode(subscribe(initialBars=count)) == Subscribe(TOPIC, 1000)


def test_errors_repeat_no_more_than_a_piece_of_what_the_client_sent():
    assert len(refused(ONE, json.dumps({"type": "x" * 10_000}))) < 100


def test_messages_carry_exactly_the_specified_keys():
    bar = Candle.parse(1729764000000, "67234.50", "67340.00", "67200", "67310.25", "145.23", "9772345.67")
    message = json.loads(ONE.update(TOPIC, protocol.bar_text(bar)))
    assert message == {
        "type": "update",
        "symbol": "BTC/USDT",
        "interval": "5m",
        "bar": {"time": "2024-10-24T10:00:00.000Z", "open": 67234.5, "high": 67340, "low": 67200, "close": 67310.25,
                "volume": 145.23, "quoteVolume": 9772345.67},
    }  # fmt: skip
    bars = [protocol.bar_text(bar._replace(quote_volume=None))] * 2
    initial = json.loads(ONE.initial(TOPIC, bars))
    assert list(initial) == ["type", "symbol", "interval", "bars"]
    assert "quoteVolume" not in initial["bars"][0]


def test_an_exchange_that_is_not_the_default_is_named_in_its_messages_and_rooms():
    topic = TWO.decode(subscribe(exchange="other")).topic
    assert json.loads(TWO.initial(topic, []))["exchange"] == "other"
    assert TWO.room_name(topic) == "other:BTC/USDT:5m"
    assert "exchange" not in json.loads(TWO.initial(TOPIC, []))
    assert TWO.room_name(TOPIC) == "BTC/USDT:5m"


@given(st.decimals(min_value=0, max_value=10**15, allow_nan=False, places=None))
@settings(max_examples=300, deadline=None)
def test_numbers_on_the_wire_are_exact_and_without_exponent(number):
    bar = Candle(0, number, number, number, number, number)
    text = protocol.bar_text(bar)
    assert "e" not in text.split('"open"')[1].replace('"close"', "").replace('"volume"', "").lower()
    assert json.loads(text, parse_float=Decimal, parse_int=Decimal)["volume"] == number


KEYS = st.sampled_from(["type", "symbol", "interval", "initialBars", "exchange"]) | st.text()
WORDS = st.sampled_from(["subscribe", "unsubscribe", "ping", "BTC/USDT", "5m"]) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | WORDS | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)


@given(st.text() | st.binary() | JSON.map(json.dumps))
@settings(max_examples=2000, deadline=None)
def test_no_input_raises_anything_but_an_answerable_error(message):
    try:
        request = TWO.decode(message)
    except ClientError as error:
        assert json.loads(protocol.error(str(error)))["type"] == "error"
    else:
        assert isinstance(request, Subscribe | Unsubscribe | Ping)
