import json
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.model import DEFAULT_INTERVALS, Candle, Interval, MarketKey, Symbol, Topic
from candled.protocol import messages, requests
from candled.protocol.messages import FINAL, REV, SEQ, SRC, STRINGS, Options
from candled.protocol.requests import (
    GetHistory,
    ListSubscriptions,
    Ping,
    RequestCodec,
    RequestError,
    Resume,
    Subscribe,
    SubscribeMany,
    Unsubscribe,
)

BTC, ETH = Symbol.parse("BTC/USDT"), Symbol.parse("ETH/USDT")
FIVE = Interval.parse("5m")
ONE = RequestCodec({"bitget": [BTC]}, DEFAULT_INTERVALS)
TWO = RequestCodec({"bitget": [BTC, ETH], "other": [BTC]}, DEFAULT_INTERVALS)
TOPIC = Topic(MarketKey("bitget", BTC), FIVE)


def refused(codec: RequestCodec, message: str | bytes) -> str:
    with pytest.raises(RequestError) as raised:
        codec.decode_request(message)
    return str(raised.value)


def subscribe(**fields) -> str:
    return json.dumps({"type": "subscribe", "symbol": "BTC/USDT", "interval": "5m", **fields})


def test_the_documented_messages_are_read():
    assert ONE.decode_request(subscribe(initialBars=50)) == Subscribe(TOPIC, 50)
    assert ONE.decode_request(subscribe()) == Subscribe(TOPIC, 100)
    assert ONE.decode_request('{"type":"unsubscribe","symbol":"BTC/USDT","interval":"5m"}') == Unsubscribe(TOPIC)
    assert ONE.decode_request('{"type":"ping"}') == Ping()


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
    assert ONE.decode_request(subscribe(initialBars=count)) == Subscribe(TOPIC, 1000)


def test_errors_repeat_no_more_than_a_piece_of_what_the_client_sent():
    assert len(refused(ONE, json.dumps({"type": "x" * 10_000}))) < 100


BAR = Candle.parse(1729764000000, "67234.50", "67340.00", "67200", "67310.25", "145.23", "9772345.67")
HEAD = ONE.topic_head(TOPIC)


def test_messages_carry_exactly_the_specified_keys_byte_for_byte():
    text = messages.bar_text(BAR)
    assert messages.bar_message("update", HEAD, text) == (
        '{"type":"update","symbol":"BTC/USDT","interval":"5m","bar":{"time":"2024-10-24T10:00:00.000Z","open":67234.5,'
        '"high":67340,"low":67200,"close":67310.25,"volume":145.23,"quoteVolume":9772345.67}}'
    )
    bare = messages.bar_text(BAR._replace(quote_volume=None)).encode()
    initial = b"".join(messages.initial(HEAD, (bare + b",", bare)))
    assert initial == b'{"type":"initial","symbol":"BTC/USDT","interval":"5m","bars":[%b,%b]}' % (bare, bare)
    assert b"quoteVolume" not in bare
    assert messages.error("No") == '{"type":"error","message":"No"}'
    assert messages.pong() == '{"type":"pong"}'


def test_fields_stand_in_each_bar_only_where_they_were_asked_for():
    revised = BAR._replace(rev=2, src="rest")
    assert json.loads(messages.bar_text(revised)).keys() == json.loads(messages.bar_text(BAR)).keys()
    asked = json.loads(messages.bar_text(revised, FINAL | REV | SRC, final=True))
    assert (asked["final"], asked["rev"], asked["src"]) == (True, 2, "rest")
    assert json.loads(messages.bar_text(revised, FINAL))["final"] is False
    assert "seq" not in json.loads(messages.bar_text(revised, SEQ))


def test_answers_name_the_request_they_answer():
    assert json.loads(messages.subscribed(HEAD, 7)) == {
        "type": "subscribed",
        "id": 7,
        "symbol": "BTC/USDT",
        "interval": "5m",
    }
    gone = json.loads(messages.unsubscribed(HEAD, "x", existed=False))
    assert gone == {"type": "unsubscribed", "id": "x", "symbol": "BTC/USDT", "interval": "5m", "existed": False}
    wrong = json.loads(messages.error("No", "x", code=102))
    assert wrong == {"type": "error", "message": "No", "id": "x", "code": 102, "temporary": False}
    assert json.loads(messages.pong("ü")) == {"type": "pong", "id": "ü"}


def test_an_exchange_that_is_not_the_default_is_named_in_its_messages_and_rooms():
    topic = TWO.decode_request(subscribe(exchange="other")).topic
    assert json.loads(b"".join(messages.initial(TWO.topic_head(topic), [])))["exchange"] == "other"
    assert TWO.room_name(topic) == "other:BTC/USDT:5m"
    assert "exchange" not in json.loads(b"".join(messages.initial(TWO.topic_head(TOPIC), [])))
    assert TWO.room_name(TOPIC) == "BTC/USDT:5m"


# ---------------------------------------------------------------- extensions


def test_the_extensions_of_a_subscription_are_read():
    request = ONE.decode_request(
        subscribe(
            id="a",
            fields=["final", "seq", "final"],
            mode="closed",
            status=True,
            corrections=True,
            resume={"epoch": "k3x", "seq": 4711, "time": "2024-10-24T10:05:00.000Z"},
        )
    )
    assert request == Subscribe(
        TOPIC, 100, Options(FINAL | SEQ, True, True), True, Resume("k3x", 4711, 1729764300000), "a"
    )
    assert ONE.decode_request(subscribe(resume={"epoch": "", "seq": 0, "time": 5})).resume == Resume("", 0, 5)
    assert ONE.decode_request(subscribe(mode="all", status=False, corrections=False, fields=[])) == Subscribe(
        TOPIC, 100
    )


def test_several_subscriptions_share_what_stands_beside_them():
    request = TWO.decode_request(
        json.dumps(
            {
                "type": "subscribe",
                "id": 9,
                "symbol": "BTC/USDT",
                "fields": ["seq"],
                "subscriptions": [
                    {"interval": "5m"},
                    {"interval": "1h", "symbol": "ETH/USDT", "fields": [], "initialBars": 3, "id": 1, "type": "ping"},
                    {"interval": "7m"},
                    3,
                ],
            }
        )
    )
    assert isinstance(request, SubscribeMany)
    first, second, *wrong = request.wanted
    assert first == Subscribe(TOPIC, 100, Options(SEQ), id=9)
    assert (second.topic.market.symbol, second.bars, second.options, second.id) == (ETH, 3, Options(), 9)
    assert [str(error).split(":")[0] for error in wrong] == ["Invalid interval", "Invalid message format"]
    assert [error.request_id for error in wrong] == [9, 9]


def test_the_other_requests_are_read():
    assert ONE.decode_request('{"type":"list","id":0}') == ListSubscriptions(0)
    assert ONE.decode_request('{"type":"ping","id":"x"}') == Ping("x")
    history = {"type": "history", "symbol": "BTC/USDT", "interval": "5m"}
    assert ONE.decode_request(json.dumps(history)) == GetHistory(TOPIC, None, 500)
    asked = ONE.decode_request(
        json.dumps({**history, "before": "2024-10-24T10:05:00Z", "limit": 3, "fields": ["rev"], "id": 1})
    )
    assert asked == GetHistory(TOPIC, 1729764300000, 3, REV, 1)


def test_numbers_are_asked_for_as_strings():
    history = {"type": "history", "symbol": "BTC/USDT", "interval": "5m", "fields": ["rev"]}
    assert ONE.decode_request(subscribe(numbers="string")).options == Options(STRINGS)
    assert ONE.decode_request(subscribe(numbers="string", fields=["final"])).options == Options(FINAL | STRINGS)
    assert ONE.decode_request(subscribe(numbers="number")) == ONE.decode_request(subscribe())
    assert ONE.decode_request(json.dumps({**history, "numbers": "string"})).fields == REV | STRINGS
    several = subscribe(numbers="string", subscriptions=[{}, {"interval": "1h", "numbers": "number"}])
    assert [one.options for one in ONE.decode_request(several).wanted] == [Options(STRINGS), Options()]


WRONG = [
    ({"id": 1.5}, "Invalid id: 1.5. Expected an integer or at most 64 characters", None),
    ({"id": "x" * 65}, f'Invalid id: "{"x" * 63}…. Expected an integer or at most 64 characters', None),
    ({"id": None}, "Invalid id: null. Expected an integer or at most 64 characters", None),
    ({"id": True}, "Invalid id: true. Expected an integer or at most 64 characters", None),
    ({"id": 2**63}, "Invalid id: 9223372036854775808. Expected an integer or at most 64 characters", None),
    ({"fields": ["open"]}, 'Invalid fields: ["open"]. Valid: final, seq, rev, src', 107),
    ({"fields": "final"}, 'Invalid fields: "final". Valid: final, seq, rev, src', 107),
    ({"fields": [["final"]]}, 'Invalid fields: [["final"]]. Valid: final, seq, rev, src', 107),
    ({"numbers": "text"}, 'Invalid numbers: "text". Valid: number, string', 107),
    ({"numbers": None}, "Invalid numbers: null. Valid: number, string", 107),
    ({"numbers": ["string"]}, 'Invalid numbers: ["string"]. Valid: number, string', 107),
    ({"type": "history", "numbers": 1}, "Invalid numbers: 1. Valid: number, string", 107),
    ({"mode": "open"}, 'Invalid mode: "open". Valid: all, closed', 107),
    ({"mode": None}, "Invalid mode: null. Valid: all, closed", 107),
    ({"mode": ["all"]}, 'Invalid mode: ["all"]. Valid: all, closed', 107),
    ({"status": 1}, "Invalid status: 1. Expected true or false", 107),
    ({"corrections": "yes"}, 'Invalid corrections: "yes". Expected true or false', 107),
    ({"corrections": 0}, "Invalid corrections: 0. Expected true or false", 107),
    ({"resume": None}, "Invalid resume: null. Expected epoch, seq and time as the server sent them", 107),
    ({"resume": {"epoch": 1, "seq": 1, "time": 1}}, "Invalid resume: {", 107),
    ({"resume": {"epoch": "e", "seq": True, "time": 1}}, "Invalid resume: {", 107),
    ({"resume": {"epoch": "e", "seq": -1, "time": 1}}, "Invalid resume: {", 107),
    (
        {"resume": {"epoch": "e", "seq": 1, "time": "soon"}},
        'Invalid resume.time: "soon". Expected an ISO 8601 time or epoch milliseconds',
        107,
    ),
    ({"subscriptions": []}, "Invalid message format", 107),
    ({"subscriptions": {}}, "Invalid message format", 107),
    ({"interval": "7m"}, "Invalid interval: 7m. Valid: 1m, 5m, 15m, 1h, 4h, 1D, 1W", 102),
    ({"symbol": "X/Y"}, "Invalid symbol: X/Y. Only BTC/USDT is supported.", 102),
    ({"exchange": "mars"}, "Invalid exchange: mars. Valid: bitget", 102),
    ({"initialBars": -1}, "Invalid initialBars: -1. Expected a whole number from 0 to 1000", 107),
    ({"type": "history", "limit": 0}, "Invalid limit: 0. Expected a whole number from 1 to 1000", 107),
    ({"type": "history", "limit": 1001}, "Invalid limit: 1001. Expected a whole number from 1 to 1000", 107),
    ({"type": "history", "limit": "9"}, 'Invalid limit: "9". Expected a whole number from 1 to 1000', 107),
    ({"type": "history", "before": -1}, "Invalid before: -1. Expected an ISO 8601 time or epoch milliseconds", 107),
    ({"type": "history", "before": None}, "Invalid before: null. Expected an ISO 8601 time or epoch milliseconds", 107),
    ({"type": "history", "before": "x" * 99}, "Invalid before: ", 107),
    ({"type": "unheard"}, "Unknown message type: unheard", 107),
    ({"type": None}, "Invalid message format", 107),
]


@pytest.mark.parametrize(("changes", "text", "code"), WRONG)
@pytest.mark.parametrize("named", [False, True])
def test_every_mistake_has_its_text_and_names_the_request_where_it_has_a_name(changes, text, code, named):
    with pytest.raises(RequestError) as raised:
        ONE.decode_request(
            subscribe(**({"id": 12} if named else {}), **changes) if "id" not in changes else subscribe(**changes)
        )
    assert str(raised.value).startswith(text)
    assert raised.value.request_id == (12 if named and code else None)
    assert not code or raised.value.code == code


@given(st.decimals(min_value=0, max_value=10**15, allow_nan=False, places=None))
def test_numbers_on_the_wire_are_exact_and_without_exponent(number):
    bar = Candle(0, number, number, number, number, number)
    text = messages.bar_text(bar)
    assert "e" not in text.split('"open"')[1].replace('"close"', "").replace('"volume"', "").lower()
    assert json.loads(text, parse_float=Decimal, parse_int=Decimal)["volume"] == number


@given(st.decimals(min_value=0, max_value=10**15, allow_nan=False, places=None), st.booleans(), st.booleans())
def test_strings_are_the_same_digits_in_quotes_and_nothing_else_differs(number, has_quote, final):
    bar = Candle(1729764000000, number, number, number, number, number, number if has_quote else None)
    fields = FINAL | REV | SRC
    plain = json.loads(messages.bar_text(bar, fields, final=final), parse_float=str, parse_int=str)
    quoted = json.loads(messages.bar_text(bar, fields | STRINGS, final=final), parse_int=str)
    assert quoted == plain
    assert all(isinstance(quoted[name], str) for name in ("open", "high", "low", "close", "volume"))


KEYS = st.sampled_from(
    ["type", "symbol", "interval", "initialBars", "exchange", "id", "fields", "numbers", "mode", "status",
     "corrections", "resume", "epoch", "seq", "time", "subscriptions", "before", "limit"]
) | st.text()  # fmt: skip
WORDS = st.sampled_from(
    ["subscribe", "unsubscribe", "ping", "list", "history", "BTC/USDT", "5m", "final", "closed", "2024-10-24"]
) | st.text()  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | WORDS | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)


@pytest.mark.slow
@given(st.text() | st.binary() | JSON.map(json.dumps))
def test_no_input_raises_anything_but_an_answerable_error(message):
    try:
        request = TWO.decode_request(message)
    except RequestError as error:
        text = messages.error(str(error), error.request_id, code=error.code, temporary=error.temporary)
        assert json.loads(text)["type"] == "error"
    else:
        assert isinstance(request, Subscribe | SubscribeMany | Unsubscribe | Ping | ListSubscriptions | GetHistory)


@pytest.mark.parametrize(
    ("shared", "most"),
    [
        ({"fields": ["final", "seq", "volume"] * 450}, 8),
        ({"fields": ["nonsense"] * 1000}, 0),
        ({"fields": [{"deep": ["x" * 20] * 50}]}, 0),
        ({"resume": {"epoch": "e", "more": ["x"] * 1000}}, 0),
        ({"mode": "m" * 5000}, 0),
        ({"numbers": ["é"] * 500}, 0),
        ({"status": ["é"] * 500}, 0),
    ],
)
def test_what_many_subscriptions_share_is_read_once_and_with_the_same_result(monkeypatch, shared, most):
    """One message of 16 KB must not cost its length squared."""
    one = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", **shared}

    def result(message):
        try:
            return ONE.decode_request(json.dumps(message))
        except RequestError as error:
            return error

    alone = result(one)
    seen = []
    encode, read = msgspec.json.encode, requests._fields
    monkeypatch.setattr(requests.msgspec.json, "encode", lambda value: seen.append(len(encode(value))) or encode(value))
    monkeypatch.setattr(requests, "_fields", lambda given: seen.append(len(str(given))) or read(given))
    many = result({**one, "subscriptions": [{"interval": "1m"}] * 200})
    assert sum(seen) < 60_000
    for each in many.wanted:
        assert each == alone or str(each) == str(alone)
