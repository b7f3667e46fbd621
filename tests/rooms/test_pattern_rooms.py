"""Pattern rooms: the closed bars of every market that a pattern selects, each once, however markets and bars change."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.aggregate.live_bars import LiveBars
from candled.bus import FeedMetadata, HistoryChanged, MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, MarketKey, Range, Symbol
from candled.protocol.frames import Frame
from candled.protocol.requests import RequestCodec
from candled.rooms import pattern_rooms
from candled.rooms.hub import Hub
from candled.rooms.recipients import NullConnection
from candled.serve.client import ClientSession
from candled.serve.pager import SessionContext
from candled.universe import Universe
from tests.clocks import ManualClock
from tests.rooms.stage import Limits, Publisher, Stored
from tests.rows import MONDAY_MS, minute

BTC, ETH, SOL, UP = (Symbol(base, "USDT") for base in ("BTC", "ETH", "SOL", "BTCUP"))
CONTRACT = Symbol("BTC", "USDT", "USDT")
STORED = 5  # final minutes of each market at the start


class Listening(NullConnection):
    """A client's connection that keeps what it is sent."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.received: list[dict] = []

    def take_frame(self, frame: Frame) -> int:
        self.frames.append(frame)
        self.received.append(json.loads(frame.payload))
        return len(frame)

    def send_reply(self, frame: Frame) -> None:
        self.take_frame(frame)

    def bars(self, kind: str = "update") -> list[tuple[str, str]]:
        return [(one["symbol"], one["bar"]["time"][11:16]) for one in self.received if one["type"] == kind]

    def take(self) -> list[dict]:
        received, self.received = self.received, []
        return received


class World:
    """One process whose markets come and go, each with a feed of its own."""

    def __init__(self, *symbols: Symbol, rooms: int = 64) -> None:
        self.clock = ManualClock(MONDAY_MS + STORED * MINUTE_MS)
        self.universe = Universe(["okx", "bitget"])
        self.universe.set_markets("okx", symbols)
        self.codec = RequestCodec({"okx": symbols, "bitget": ()}, DEFAULT_INTERVALS)
        self.stored = Stored(minute(number, final=True) for number in range(STORED))
        self.bars = LiveBars(self.universe.markets, DEFAULT_INTERVALS, self.stored, self.clock)
        self.hub = Hub(self.codec, self.bars, self.clock, Publisher())
        self.bars.add_listener(self.hub)
        self.bus = MemoryBus("one")
        self.bus.add_listener(self.bars)
        for follow in (self.codec, self.hub, self.bars):
            self.universe.add_listener(follow.on_markets_changed)
        self.limits = Limits(rooms)

    async def start(self) -> "World":
        await self.bars.start()
        return self

    def connect(self) -> tuple[Listening, ClientSession]:
        listeners = Listening()
        context = SessionContext(self.hub, self.bars, self.codec, self.clock, self.limits, None)
        session = ClientSession(listeners, context)
        return listeners, session

    def subscribe(self, symbol: str = "*", **fields) -> Listening:
        listeners, session = self.connect()
        listeners.session = session
        self.send_json(listeners, {"type": "subscribe", "symbol": symbol, "interval": "1m", "mode": "closed", **fields})
        return listeners

    @staticmethod
    def send_json(listeners: Listening, message: dict) -> list[dict]:
        before = len(listeners.received)
        listeners.session.on_client_message(json.dumps(message))
        return listeners.received[before:]

    def push(self, symbol: Symbol, number: int, *, final_before: int | None = None, close: str = "10", rev: int = 0):
        """A minute of a market, which is final, and so are all before it, or all before `final_before`."""
        until = number + 1 if final_before is None else final_before
        candle = minute(number, close=close, final=until > number)._replace(rev=rev)
        metadata = FeedMetadata(MONDAY_MS + until * MINUTE_MS)
        self.bus.publish(MinuteChanged(MarketKey("okx", symbol), candle, metadata))


async def world(*symbols: Symbol, **options) -> World:
    return await World(*symbols, **options).start()


async def test_a_room_is_sent_the_closed_bars_of_every_market_once_and_names_the_market():
    one = await world(BTC, ETH)
    listeners = one.subscribe(id=3)
    assert listeners.take() == [{"type": "subscribed", "id": 3, "symbol": "*", "interval": "1m"}]
    one.push(BTC, 5, final_before=5)
    assert listeners.take() == []  # it is forming
    one.push(BTC, 5)
    bar = {"time": "2025-05-19T00:05:00.000Z", "open": 10, "high": 10, "low": 10, "close": 10, "volume": 1}
    assert listeners.take() == [{"type": "update", "pattern": "*", "symbol": "BTC/USDT", "interval": "1m", "bar": bar}]
    one.push(ETH, 5)
    one.push(BTC, 5)  # again
    assert listeners.bars() == [("ETH/USDT", "00:05")]


@pytest.mark.parametrize(
    ("pattern", "selected"),
    [
        ("*", ["BTC/USDT", "ETH/USDT", "BTCUP/USDT", "BTC/USDT:USDT"]),
        ("*/USDT", ["BTC/USDT", "ETH/USDT", "BTCUP/USDT"]),
        ("*/USDT:USDT", ["BTC/USDT:USDT"]),
        ("!*UP/USDT", ["BTC/USDT", "ETH/USDT", "BTC/USDT:USDT"]),
        ("/^(BTC|ETH)\\//", ["BTC/USDT", "ETH/USDT", "BTC/USDT:USDT"]),
        ("DOGE*/*", []),
    ],
)
async def test_a_pattern_selects_as_in_the_settings(pattern, selected):
    one = await world(BTC, ETH, UP, CONTRACT)
    listeners = one.subscribe(pattern, markets=True)
    assert listeners.take() == [{"type": "markets", "pattern": pattern, "interval": "1m", "symbols": selected}]
    for symbol in (BTC, ETH, UP, CONTRACT):
        one.push(symbol, 5)
    assert [symbol for symbol, _ in listeners.bars()] == selected


async def test_a_frame_is_encoded_once_for_all_members_with_equal_fields(monkeypatch):
    one = await world(BTC, ETH)
    rooms = [one.subscribe() for _ in range(3)]
    final = [one.subscribe(fields=["final", "rev"]) for _ in range(2)]
    printed = []
    text = pattern_rooms.bar_text
    monkeypatch.setattr(pattern_rooms, "bar_text", lambda *args, **more: printed.append(args) or text(*args, **more))
    one.push(BTC, 5)
    assert len(printed) == 2
    for group in (rooms, final):
        assert len({id(listeners.frames[-1]) for listeners in group}) == 1
    assert final[0].received[-1]["bar"]["final"] is True


async def test_bars_of_longer_intervals_close_with_their_last_minute():
    one = await world(BTC)
    listeners = one.subscribe(interval="5m", fields=["seq"])
    for number in range(5, 11):
        one.push(BTC, number)
    assert listeners.bars() == [("BTC/USDT", "00:05")]
    assert (listeners.received[-1]["epoch"], listeners.received[-1]["seq"]) == ("one", 5)


async def test_late_bars_and_revised_ones_come_as_corrections_to_those_who_ask():
    one = await world(BTC)
    plain, corrected = one.subscribe(), one.subscribe(corrections=True)
    span = Range(MONDAY_MS + 5 * MINUTE_MS, MONDAY_MS + 7 * MINUTE_MS)
    until_ms = MONDAY_MS + 8 * MINUTE_MS
    one.bus.publish(MinuteChanged(MarketKey("okx", BTC), minute(7, final=True), FeedMetadata(until_ms, gap=span)))
    assert plain.bars() == corrected.bars() == [("BTC/USDT", "00:07")]
    one.stored.minutes |= {candle.open_ms: candle for candle in (minute(number, final=True) for number in (5, 6, 7))}
    one.bus.publish(HistoryChanged(MarketKey("okx", BTC), *span, MONDAY_MS, FeedMetadata(until_ms)))
    for _ in range(20):
        await one.clock.advance(0.1)
    assert corrected.bars("correction") == [("BTC/USDT", "00:05"), ("BTC/USDT", "00:06")]
    one.push(BTC, 7, final_before=8, close="11", rev=1)
    assert corrected.received[-1]["bar"]["close"] == 11
    assert plain.bars() == [("BTC/USDT", "00:07")]
    assert plain.bars("correction") == []


async def test_members_learn_which_markets_come_and_go_and_get_their_bars():
    one = await world(BTC, ETH)
    listeners, other = one.subscribe(markets=True), one.subscribe("*/USDT:USDT", markets=True)
    listeners.take(), other.take()
    one.universe.set_markets("okx", [BTC, SOL, CONTRACT])
    head = {"type": "markets", "pattern": "*", "interval": "1m"}
    assert listeners.take() == [{**head, "added": ["SOL/USDT", "BTC/USDT:USDT"], "removed": ["ETH/USDT"]}]
    assert other.take() == [{**head, "pattern": "*/USDT:USDT", "added": ["BTC/USDT:USDT"], "removed": []}]
    assert one.subscribe(markets=True).take() == [{**head, "symbols": ["BTC/USDT", "SOL/USDT", "BTC/USDT:USDT"]}]
    for _ in range(5):
        await one.clock.advance(0.1)
    for symbol in (BTC, ETH, SOL):
        one.push(symbol, 5)
    assert listeners.bars() == [("BTC/USDT", "00:05"), ("SOL/USDT", "00:05")]


async def test_a_room_counts_as_one_and_is_listed_and_left():
    one = await world(BTC, ETH, rooms=2)
    listeners = one.subscribe()
    assert one.send_json(listeners, {"type": "subscribe", "symbol": "!*UP/*", "interval": "5m", "mode": "closed"}) == []
    (error,) = one.send_json(listeners, {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "id": 1})
    assert (error["message"], error["code"]) == ("Too many subscriptions: at most 2 per connection", 106)
    (listing,) = one.send_json(listeners, {"type": "list"})
    assert listing["subscriptions"] == [{"symbol": "*", "interval": "1m"}, {"symbol": "!*UP/*", "interval": "5m"}]
    assert [(room["key"], room["clientCount"], room["hasCandle"]) for room in one.hub.describe_rooms()] == [
        ("*:1m", 1, True),
        ("!*UP/*:5m", 1, True),
    ]
    assert (one.hub.describe()["totalRooms"], one.hub.describe()["totalClients"]) == (2, 1)
    described = one.hub.describe_rooms()
    assert next(described)["key"] == "*:1m"
    one.send_json(listeners, {"type": "unsubscribe", "symbol": "!*UP/*", "interval": "5m"})
    assert not list(described)
    left = {"type": "unsubscribe", "symbol": "*", "interval": "1m", "id": 2}
    assert [one.send_json(listeners, left)[0]["existed"] for _ in range(2)] == [True, False]
    one.push(BTC, 5)
    assert listeners.bars() == []
    listeners.session.on_close()
    assert one.hub.describe()["totalRooms"] == 0
    assert not one.hub._patterns._followed


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mode": "all"}, 'Invalid mode: "all". Valid with a pattern: closed'),
        ({"status": True}, "Invalid status: true. Not available with a pattern"),
        ({"resume": {"epoch": "e", "seq": 1, "time": 0}}, "Invalid resume: {"),
        ({"markets": 1}, "Invalid markets: 1. Expected true or false"),
        ({"symbol": "BTC/USDT", "markets": True}, "Invalid markets: true. Expected a pattern as symbol, such as *"),
        ({"interval": "7m"}, "Invalid interval: 7m. Valid: 1m, 5m, 15m, 1h, 4h, 1D, 1W"),
        ({"symbol": "*USDT"}, "Invalid symbol: *USDT. Expected a symbol, or a pattern such as */USDT or /^BTC/"),
        (
            {"symbol": "/(a)*/"},
            "Invalid symbol: /(a)*/. Expected a symbol, or a pattern such as */USDT or /^BTC/; "
            "a regular expression may not repeat a group, such as (…)*",
        ),
        (
            {"symbol": "/(/"},
            "Invalid symbol: /(/. Expected a symbol, or a pattern such as */USDT or /^BTC/; no regular",
        ),
        ({"symbol": "*" * 257}, f"Invalid symbol: {'*' * 64}…. Expected a symbol, or a pattern"),
        ({"type": "history"}, "Invalid symbol: *. Valid: BTC/USDT, ETH/USDT"),
        ({"exchange": "kraken"}, "Invalid exchange: kraken. Valid: okx, bitget"),
    ],
)
async def test_a_mistake_gets_a_clear_error_and_no_room(changes, text):
    one = await world(BTC, ETH)
    listeners, session = one.connect()
    message = {"type": "subscribe", "symbol": "*", "interval": "1m", "mode": "closed", "id": 9, **changes}
    session.on_client_message(json.dumps(message))
    (error,) = listeners.take()
    assert error["message"].startswith(text)
    assert (error["id"], error["temporary"]) == (9, False)
    assert one.hub.describe()["totalRooms"] == 0


async def test_the_number_of_patterns_in_use_is_limited(monkeypatch):
    monkeypatch.setattr("candled.rooms.hub.MOST_PATTERNS", 1)
    one = await world(BTC)
    one.subscribe()
    assert one.subscribe().received == []
    (error,) = one.subscribe("*/USDT", id=1).received
    assert error["message"] == "Too many patterns: this server has no space for another one"
    assert (error["code"], error["temporary"]) == (106, True)


async def test_a_client_that_does_not_read_its_bars_loses_the_subscription_and_learns_it():
    one = await world(BTC, ETH)
    listeners = one.subscribe(id=4)
    one.push(BTC, 5)
    topic = listeners.frames[-1].topic
    listeners.take()
    listeners.session.on_fell_behind(topic)
    (error,) = listeners.take()
    assert error == {
        "type": "error", "message": "Subscription ended: bars of * were not read", "id": 4, "code": 108,
        "temporary": True,
    }  # fmt: skip
    one.push(BTC, 6)
    assert listeners.take() == []


SYMBOLS = [BTC, ETH, SOL, CONTRACT]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("markets"), st.lists(st.sampled_from(SYMBOLS), unique=True)),
        st.tuples(st.just("join"), st.sampled_from(["*", "*/USDT", "!ETH*/*", "/^BTC/"])),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("close"), st.sampled_from(SYMBOLS)),
    ),
    max_size=30,
)


@pytest.mark.slow
@given(steps)
async def test_after_any_steps_each_member_got_each_closed_bar_of_its_markets_once_in_order(taken):
    one = await world(BTC, ETH)
    served, number, members = [BTC, ETH], dict.fromkeys(SYMBOLS, STORED), []
    for kind, value in taken:
        if kind == "markets":
            served = value
            one.universe.set_markets("okx", served)
            for _ in range(4):
                await one.clock.advance(0.2)
        elif kind == "join":
            members.append((one.subscribe(value), value, []))
        elif kind == "leave" and members:
            members.pop(value % len(members))[0].session.on_close()
        elif kind == "close" and value in served:
            one.push(value, number[value])
            for listeners, pattern, expected in members:
                room = listeners.session._patterns and next(iter(listeners.session._patterns.values())).room
                if room.selects(value):
                    expected.append((str(value), f"00:{number[value]:02}"))
            number[value] += 1
    for listeners, _, expected in members:
        assert listeners.bars() == expected
        listeners.session.on_close()
    assert one.hub.describe()["totalRooms"] == 0
