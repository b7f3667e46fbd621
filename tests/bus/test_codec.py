"""Messages and keys as other programs see them."""

import json
from functools import partial
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from candled.bus import FeedMetadata, HistoryChanged, MessagesLost, MinuteChanged, StateChanged
from candled.bus.codec import (
    BadMessage,
    FutureMessage,
    Heartbeat,
    Names,
    Newest,
    decode_heartbeat,
    decode_message,
    decode_newest,
    encode_heartbeat,
    encode_message,
    encode_newest,
    epoch_of,
    parse_fence,
    private_channel,
    token_of,
)
from candled.model import MINUTE_MS, STATES, Candle, Decimals, MarketKey, Position, Range, Symbol
from candled.model.decimals import MAX_PLACES

BTC = MarketKey("bitget", Symbol("BTC", "USDT"))
NAMES = Names("", "bitget", 4)
AT = Position("0.1760000000000000", 7)

TIMES = st.integers(0, 250_000_000_000_000)
MINUTES = st.integers(0, 4_000_000).map(lambda number: number * MINUTE_MS)
TEXTS = st.text('ab "é', max_size=9)
NUMBERS = st.decimals("0.000000000001", "999999999999", places=12)
STATED = st.sampled_from(list(STATES))
RANGES = st.tuples(TIMES, TIMES).map(lambda one: Range(*sorted(one)))
FACTS = st.builds(FeedMetadata, st.none() | TIMES, st.none() | RANGES, st.integers(-1, 10**9))

DIGITS = st.none() | st.integers(0, MAX_PLACES)
DECIMALS = st.builds(Decimals, DIGITS, DIGITS)


@st.composite
def candles(draw) -> Candle:
    low, *middle, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)))
    volume, quote = draw(NUMBERS), draw(st.none() | NUMBERS)
    src, final, rev = (
        draw(st.sampled_from(["", "live", "rest", "backfill"])),
        draw(st.booleans()),
        draw(st.integers(0, 9)),
    )
    return Candle(draw(MINUTES), middle[0], high, low, middle[1], volume, quote, draw(TIMES), final, rev, src)


CHANGED_STATES = st.builds(StateChanged, st.just(BTC), STATED, TIMES, TEXTS, TEXTS, DECIMALS)
MESSAGES = st.one_of(
    st.builds(MinuteChanged, st.just(BTC), candles(), FACTS),
    st.builds(lambda span, *rest: HistoryChanged(BTC, *span, *rest), RANGES, st.none() | TIMES, FACTS),
    CHANGED_STATES,
)
TOKENS = st.integers(1, 9 * 10**15 - 1)
POSITIONS = st.builds(Position, st.builds(epoch_of, st.integers(0, 9), TOKENS), st.integers(1, 10**12))


@pytest.mark.slow
@given(MESSAGES, POSITIONS)
def test_what_is_written_is_what_is_read(message, position):
    assert decode_message(BTC, encode_message(message, position)) == (message, position)


@pytest.mark.slow
@given(POSITIONS, st.lists(candles(), max_size=3).map(tuple), FACTS, st.none() | TIMES, st.none() | CHANGED_STATES)
def test_the_newest_state_reads_back(position, minutes, metadata, since_ms, state):
    newest = Newest(position, minutes, metadata, since_ms, state)
    assert decode_newest(BTC, encode_newest(newest)) == newest


@pytest.mark.slow
@given(MESSAGES, POSITIONS, st.dictionaries(st.text().map("x-".__add__), st.none() | st.booleans() | st.text()))
def test_unknown_keys_are_ignored(message, position, more):
    text = json.dumps({**more, **json.loads(encode_message(message, position).decode())})
    read, at = decode_message(BTC, text.encode())
    assert at == position
    assert type(read) is type(message)


def test_a_candle_is_written_as_documented():
    candle = Candle.parse(60_000, "67234.50", "67340", "67200", "67300", "0.00000001", "0.5", as_of_ms=61_234)
    candle = candle._replace(close=candle.open, rev=2, src="live")
    text = encode_message(MinuteChanged(BTC, candle, FeedMetadata(60_000, Range(0, 60_000), 5)), AT)
    assert text == (
        b'{"type":"candle","time":"1970-01-01T00:01:00.000Z","open":67234.5,"high":67340,"low":67200,"close":67234.5,'
        b'"volume":0.00000001,"quoteVolume":0.5,"final":false,"asOf":"1970-01-01T00:01:01.234Z","rev":2,"src":"live",'
        b'"exchange":"bitget","symbol":"BTC/USDT","interval":"1m","epoch":"0.1760000000000000","seq":7,'
        b'"watermark":"1970-01-01T00:01:00.000Z","gap":["1970-01-01T00:00:00.000Z","1970-01-01T00:01:00.000Z"],"logged":5}'
    )


def test_a_minute_of_another_program_needs_time_prices_and_volume():
    text = b'{"time":"2025-10-06T00:00:00Z","open":1,"high":2,"low":1,"close":"1.50","volume":0}'
    message, position = decode_message(BTC, text)
    assert position is None
    assert (message.candle.open_ms, str(message.candle.close), message.candle.src) == (
        1_759_708_800_000,
        "1.50",
        "live",
    )
    in_ms = text.replace(b'"2025-10-06T00:00:00Z"', b"1759708800000")
    assert decode_message(BTC, in_ms)[0].candle == message.candle


def test_of_two_versions_without_a_time_of_their_own_the_final_one_wins():
    running = b'{"time":0,"open":1,"high":9,"low":1,"close":1,"volume":5}'
    final = b'{"time":0,"open":1,"high":2,"low":1,"close":1,"volume":4,"final":true}'
    first, second = (decode_message(BTC, text)[0].candle for text in (running, final))
    assert second.supersedes(first)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"7",
        b'"candle"',
        b"{}",
        b'{"type":"trade"}',
        b'{"type":7}',
        b'{"type":"healed","from":0,"until":60000}',
        b'{"type":"state","state":"live","since":0}',
        b'{"type":"state","state":"odd","since":0,"epoch":"0.1","seq":1}',
        b'{"type":"state","state":"live","since":0,"epoch":"0.1","seq":1,"priceDecimals":-1}',
        b'{"type":"state","state":"live","since":0,"epoch":"0.1","seq":1,"volumeDecimals":1e9}',
        b'{"time":0,"open":1,"high":2,"low":1,"close":1}',
        b'{"time":1,"open":1,"high":2,"low":1,"close":1,"volume":1}',
        b'{"time":-60000,"open":1,"high":2,"low":1,"close":1,"volume":1}',
        b'{"time":999999999999999960000,"open":1,"high":2,"low":1,"close":1,"volume":1}',
        b'{"time":"soon","open":1,"high":2,"low":1,"close":1,"volume":1}',
        b'{"time":0,"open":true,"high":2,"low":1,"close":1,"volume":1}',
        b'{"time":0,"open":"NaN","high":2,"low":1,"close":1,"volume":1}',
        b'{"time":0,"open":1,"high":1e999999999,"low":1,"close":1,"volume":1}',
        b'{"time":0,"open":1,"high":2,"low":1,"close":1,"volume":0e999999999}',
        b'{"time":0,"open":1,"high":2,"low":1,"close":1,"volume":1e101}',
        b'{"time":0,"open":1,"high":2,"low":1,"close":1,"volume":1e-101}',
        b'{"time":0,"open":1,"high":2,"low":1,"close":1,"volume":1%s}' % (b"0" * 100),
        b'{"time":0,"open":1,"high":2,"low":1,"close":1,"volume":1.%s1}' % (b"0" * 99),
        b'{"time":0,"open":1,"high":2,"low":3,"close":1,"volume":1}',
        b'{"time":0,"open":1,"high":2,"low":1,"close":1,"volume":-1}',
        b"[" * 100_000,
        b'{"more":' + b"[" * 60_000,
        b'{"type":"state","since":0,"epoch":"0.1","seq":1}',
    ],
)
def test_a_message_that_is_not_as_documented_is_detected(text):
    with pytest.raises(BadMessage):
        decode_message(BTC, text)


NOW_MS = 1_759_708_830_000
MINUTE_NOW = (
    b'{"type":"candle","time":"2025-10-06T00:00:00Z","open":1,"high":2,"low":1,"close":1,"volume":1,'
    b'"epoch":"0.17","seq":1'
)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (b"", None),
        (b',"watermark":"2025-10-06T00:00:00Z","gap":["2025-10-05T00:00:00Z","2025-10-06T00:01:00Z"]', None),
        (b',"exchange":"bitget","symbol":"BTC/USDT","interval":"1m"', None),
        (b',"asOf":"2025-10-06T00:00:30Z","rev":3,"src":"live","logged":0', None),
        (b',"time":"2025-10-06T00:01:00Z"', FutureMessage),
        (b',"time":"9999-12-31T23:59:00Z"', FutureMessage),
        (b',"asOf":"2025-10-06T00:00:31Z"', FutureMessage),
        (b',"watermark":"9999-12-31T23:59:00Z"', FutureMessage),
        (b',"gap":["2025-10-06T00:00:00Z","9999-12-31T23:59:00Z"]', FutureMessage),
        (b',"gap":["2025-10-06T00:00:00Z","2025-10-05T00:00:00Z"]', BadMessage),
        (b',"time":"0001-01-01T00:00:00Z"', BadMessage),
        (b',"seq":9007199254740993', BadMessage),
        (b',"seq":-1', BadMessage),
        (b',"seq":1.5', BadMessage),
        (b',"epoch":"0.10000000000000000000000"', BadMessage),
        (b',"epoch":"0.9007199254740993"', BadMessage),
        (b',"epoch":"here.17"', BadMessage),
        (b',"epoch":"0.17\\n"', BadMessage),
        (b',"epoch":"' + b"0" * 10_000 + b'"', BadMessage),
        (b',"rev":-1', BadMessage),
        (b',"rev":1000000000', BadMessage),
        (b',"logged":-2', BadMessage),
        (b',"src":"' + b"x" * 33 + b'"', BadMessage),
        (b',"symbol":"ETH/USDT"', BadMessage),
        (b',"exchange":"kraken"', BadMessage),
        (b',"interval":"5m"', BadMessage),
        (b',"more":"' + b"x" * 65_536 + b'"', BadMessage),
    ],
)
def test_a_message_is_checked_like_a_frame_of_an_exchange(more, error):
    text = MINUTE_NOW + more + b"}"
    if error is None:
        assert decode_message(BTC, text, NOW_MS)[1] == ("0.17", 1)
        return
    with pytest.raises(error) as raised:
        decode_message(BTC, text, NOW_MS)
    assert type(raised.value) is error


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"healed","epoch":"0.1","seq":1,"from":0,"until":"9999-01-01T00:00:00Z"}',
        b'{"type":"healed","epoch":"0.1","seq":1,"from":0,"until":60000,"completeFrom":"9999-01-01T00:00:00Z"}',
        b'{"type":"state","epoch":"0.1","seq":1,"state":"live","since":"9999-01-01T00:00:00Z"}',
    ],
)
def test_repairs_and_states_of_the_future_are_refused_too(text):
    assert decode_message(BTC, text)[1] == ("0.1", 1)
    with pytest.raises(FutureMessage):
        decode_message(BTC, text, NOW_MS)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (b"", None),
        (b',"candles":[%s,"time":"9999-12-31T23:59:00Z"}]' % MINUTE_NOW, FutureMessage),
        (b',"watermark":"9999-12-31T23:59:00Z"', FutureMessage),
        (b',"completeFrom":"9999-12-31T23:59:00Z"', FutureMessage),
        (b',"state":"live","since":"9999-12-31T23:59:00Z"', FutureMessage),
        (b',"epoch":"0.10000000000000000000000"', BadMessage),
        (b',"epoch":"0.9007199254740993"', BadMessage),
        (b',"seq":9007199254740993', BadMessage),
        (b',"more":"' + b"x" * 65_536 + b'"', BadMessage),
    ],
)
def test_the_newest_state_is_checked_too(more, error):
    text = b'{"epoch":"0.17","seq":1' + more + b"}"
    if error is None:
        assert decode_newest(BTC, text, NOW_MS).position == ("0.17", 1)
        return
    with pytest.raises(error) as raised:
        decode_newest(BTC, text, NOW_MS)
    assert type(raised.value) is error


@pytest.mark.parametrize(
    "text",
    [
        b'{"shard":0,"epoch":"","seqs":{}}',
        b'{"shard":0,"epoch":"0.10000000000000000000000","seqs":{}}',
        b'{"shard":0,"epoch":"0.9007199254740993","seqs":{}}',
        b'{"shard":-1,"epoch":"0.17","seqs":{}}',
        b'{"shard":0,"epoch":"0.17","seqs":{"x":-1}}',
        b'{"shard":0,"epoch":"0.17","seqs":{"x":9007199254740993}}',
        b'{"shard":0,"epoch":"0.17","seqs":{},"asOf":"soon"}',
        b'{"shard":0,"epoch":"0.17","seqs":{},"more":"' + b"x" * 4_194_304 + b'"}',
    ],
)
def test_a_heartbeat_is_checked_too(text):
    with pytest.raises(BadMessage):
        decode_heartbeat(text)


@pytest.mark.parametrize(
    ("text", "fence"),
    [
        (b"17 3", (17, 3)),
        (b"17", (17, 0)),
        (b"", None),
        (b"17 3 4", None),
        (b"-1 3", None),
        (b"\xff 3", None),
        (b"10000000000000000000000 0", None),
        (b"17 10000000000000000000000", None),
        (b"9" * 65_536, None),
    ],
)
def test_a_fence_is_two_numbers_that_redis_can_count(text, fence):
    assert parse_fence(text) == fence


@pytest.mark.slow
@given(
    st.binary() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(lambda one: json.dumps(one).encode())
)
def test_whatever_comes_is_read_or_refused(text):
    for read in (partial(decode_message, BTC), partial(decode_newest, BTC), decode_heartbeat):
        try:
            read(text)
        except BadMessage:
            continue


def test_a_heartbeat_has_the_last_number_of_each_channel():
    text = encode_heartbeat(2, "2.17", {"candles:BTC/USDT:1m": 9})
    assert json.loads(text) == {"type": "heartbeat", "shard": 2, "epoch": "2.17", "seqs": {"candles:BTC/USDT:1m": 9}}
    assert decode_heartbeat(text) == Heartbeat(2, "2.17", {"candles:BTC/USDT:1m": 9})
    text = encode_heartbeat(2, "2.17", {}, 1_759_708_800_123)
    assert json.loads(text)["asOf"] == "2025-10-06T00:00:00.123Z"
    assert decode_heartbeat(text).as_of_ms == 1_759_708_800_123


def test_a_reason_is_one_line_of_bounded_length():
    text = encode_message(StateChanged(BTC, "stale", 0, "silent\n", "a\n\x1b[31m" + "b" * 10_000), AT)
    message, _ = decode_message(BTC, text)
    assert message.reason == "silent\\n"
    assert message.problem.startswith("a\\n\\x1b[31mbbb")
    assert len(message.problem) == 300


def test_local_messages_of_a_bus_are_not_published():
    with pytest.raises(TypeError):
        encode_message(MessagesLost(BTC), AT)


# ---------------------------------------------------------------- names


def test_channels_are_named_as_documented():
    assert NAMES.candles_channel(BTC) == "candles:BTC/USDT:1m"
    assert NAMES.candles_channel(MarketKey("kraken", BTC.symbol)) == "candles:kraken:BTC/USDT:1m"
    assert Names("staging:", "bitget", 1).candles_channel(BTC) == "staging:candles:BTC/USDT:1m"
    perpetual = MarketKey("bitget", Symbol("BTC", "USDT", "USDT"))
    assert NAMES.candles_channel(perpetual) == "candles:BTC/USDT%3AUSDT:1m"


PARTS = st.text("AB1m{}%.-", min_size=1, max_size=4)
MARKETS = st.builds(
    MarketKey, st.sampled_from(["bitget", "kraken"]), st.builds(Symbol, PARTS, PARTS, st.just("") | PARTS)
)


@given(MARKETS)
def test_a_channel_names_one_market(market):
    kind, *exchange, written, interval = NAMES.candles_channel(market).split(":")
    assert (kind, interval) == ("candles", "1m")
    assert MarketKey(*(exchange or ["bitget"]), Symbol.parse(unquote(written))) == market


@given(st.text("AB{}%/", min_size=1, max_size=8), st.text("AB{}%", min_size=1, max_size=8), st.text("a:-", max_size=4))
def test_a_markets_keys_lie_where_its_channel_is(base, quote, prefix):
    market, names = MarketKey("other", Symbol(base, quote)), Names(prefix, "bitget", 3)
    slots = {
        key_slot(name.encode())
        for name in (names.candles_channel(market), names.newest_key(market), names.fence_key(market))
    }
    assert slots == {key_slot(private_channel(names.candles_channel(market), "me").encode())}


def test_a_shards_keys_lie_where_its_heartbeat_is():
    for shard in range(4):
        heartbeat = NAMES.heartbeat_channel(shard)
        names = (heartbeat, NAMES.lease_key(shard), NAMES.token_key(shard), private_channel(heartbeat, "me"))
        assert len({key_slot(name.encode()) for name in names}) == 1


def test_the_token_of_a_feed_orders_it():
    assert token_of(epoch_of(3, 1_760_000_000_000_000)) == 1_760_000_000_000_000
    assert token_of(epoch_of(3, 0, "abc")) == token_of("") == token_of("here.abc") == 0
