import pytest

from candled.exchange import Candles, ConnectionLimits, FeedError, Pong, SocketFeed, Subscribed, SubscriptionRejected
from candled.ingest.connection import FeedConnection
from candled.ingest.snapshot_places import SnapshotPlaces
from candled.model import Symbol
from tests.rows import minute

FAST = ConnectionLimits(frames_per_s=100.0)
BTC, ETH = Symbol.parse("BTC/USDT"), Symbol.parse("ETH/USDT")


class PlainFeed(SocketFeed):
    """A language of one word a frame."""

    ping = "ping"
    lifetime_s = 3600.0
    snapshot = True

    def subscribe(self, symbols):
        return [f"+{symbol}" for symbol in symbols]

    def unsubscribe(self, symbols):
        return [f"-{symbol}" for symbol in symbols]

    def read_frame(self, frame):
        word, _, rest = frame.partition(" ")
        symbol = Symbol.parse(rest) if "/" in rest else None
        return {
            "pong": lambda: [Pong()],
            "ack": lambda: [Subscribed(symbol)],
            "no": lambda: [SubscriptionRejected(symbol, "unknown")],
            "candle": lambda: [Candles(symbol, (minute(0),))],
            "bye": lambda: [FeedError("overload", reconnect=True)],
        }[word]()


def connection(*symbols: Symbol) -> FeedConnection:
    return FeedConnection(PlainFeed("ws://localhost", symbols), symbols, 0.0)


def sent(one: FeedConnection, until: float, start: float = 0.0) -> list[str]:
    frames, now = [], start
    while now <= until:
        frames += one.frames_to_send(now)
        now += 0.25
    return frames


def test_subscriptions_are_sent_first_and_pings_on_time():
    one = connection(BTC, ETH)
    one.on_frame("candle BTC/USDT", 0.5)
    one.on_frame("candle ETH/USDT", 0.5)
    assert sent(one, 41.0) == ["+BTC/USDT", "+ETH/USDT", "ping", "ping"]


class IdleFeed(PlainFeed):
    """As OKX: it closes a connection on which nothing was sent for a while."""

    pings_when_idle = True


def test_only_an_idle_connection_is_pinged_if_the_feed_wants_that():
    one = FeedConnection(IdleFeed("ws://localhost", [BTC]), [BTC], 0.0)
    frames = []
    for tick in range(1, 241):  # a frame every 15 s for a minute, then silence
        if tick == 1 or (tick <= 120 and tick % 30 == 0):
            one.on_frame("candle BTC/USDT", tick / 2)
        frames += [(tick / 2, frame) for frame in one.frames_to_send(tick / 2)]
        if frames and frames[-1] == (tick / 2, "ping"):
            one.on_frame("pong", tick / 2 + 0.1)
    assert frames == [(0.5, "+BTC/USDT"), (80.0, "ping"), (100.5, "ping")]
    assert one.close_reason(120.0) is None
    assert sent(one, 130.0, 120.0) == ["ping"]
    assert one.close_reason(132.0) == "no pong or other frame within 10 s after a ping"


def test_five_snapshots_are_awaited_at_once_on_all_connections_of_an_exchange():
    symbols, limits, places = [Symbol(f"S{number}", "USDT") for number in range(50)], FAST, SnapshotPlaces()
    one, other = (
        FeedConnection(PlainFeed("ws://localhost", some), some, 0.0, limits=limits, places=places)
        for some in (symbols[:25], symbols[25:])
    )
    assert [sent(one, 0.75), sent(other, 0.75)] == [[f"+{symbol}" for symbol in symbols[:5]], []]
    one.on_frame(f"candle {symbols[0]}", 0.8)
    one.on_frame(f"no {symbols[1]}", 0.8)
    assert other.frames_to_send(0.9) == [f"+{symbol}" for symbol in symbols[25:27]]
    assert other.has_more
    assert one.frames_to_send(1.3) == [f"+{symbol}" for symbol in symbols[5:8]]  # the exchange has not answered
    assert other.frames_to_send(1.95) == [f"+{symbol}" for symbol in symbols[27:29]]


def test_at_most_15_snapshots_a_second_are_requested_after_a_start_however_fast_they_come():
    symbols = [Symbol(f"S{number}", "USDT") for number in range(400)]
    feed = PlainFeed("ws://localhost", symbols[:200])
    limits, places = ConnectionLimits(frames_per_s=1000.0), SnapshotPlaces()
    one = FeedConnection(feed, feed.symbols, 0.0, limits=limits, places=places)

    def requested(start: float) -> int:
        asked = 0
        for tick in range(30):
            frames = one.frames_to_send(start + tick / 10)
            asked += len(frames)
            for frame in frames:
                one.on_frame(f"candle {frame[1:]}", start + tick / 10)
        return asked

    assert 140 <= requested(0.0) <= 160
    requested(3.0)
    feed.set_symbols(symbols)
    one.add_symbols(symbols[200:], 20.0)
    assert 42 <= requested(20.0) <= 52
    for start in (23.0, 26.0, 29.0, 32.0):
        requested(start)
    places.restart()
    feed.set_symbols([Symbol(f"T{number}", "USDT") for number in range(200)])
    one.add_symbols(feed.symbols, 40.0)
    assert 140 <= requested(40.0) <= 160


class WideFeed(PlainFeed):
    """One frame for all symbols, as far as the daemon puts them together."""

    def subscribe(self, symbols):
        return ["+" + ",".join(map(str, symbols))]


def test_after_a_start_a_frame_asks_for_few_snapshots():
    symbols, places = [Symbol(f"S{number}", "USDT") for number in range(14)], SnapshotPlaces(places=50)
    feed = WideFeed("ws://localhost", symbols[:7])
    one = FeedConnection(feed, feed.symbols, 0.0, limits=FAST, places=places)

    def sizes(connection: FeedConnection, start: float) -> list[int]:
        frames = [frame for frame in sent(connection, start + 1.5, start) if frame[0] == "+"]
        for symbol in feed.symbols:
            connection.on_frame(f"candle {symbol}", start + 1.5)
        return [frame.count(",") + 1 for frame in frames]

    assert sizes(one, 0.0) == [7]
    feed.set_symbols(symbols)
    one.add_symbols(symbols[7:], 20.0)
    assert sizes(one, 20.0) == [2, 2, 2, 1]
    assert sizes(FeedConnection(feed, symbols, 30.0, limits=FAST, places=places), 30.0) == [2, 2, 2, 2, 2, 2, 2]
    places.restart()
    assert sizes(FeedConnection(feed, symbols, 40.0, limits=FAST, places=places), 40.0) == [14]


def test_urgent_symbols_are_subscribed_to_before_those_that_wait_and_without_a_place():
    symbols, places = [Symbol(f"S{number}", "USDT") for number in range(20)], SnapshotPlaces()
    feed = PlainFeed("ws://localhost", symbols)
    one = FeedConnection(feed, symbols, 0.0, limits=FAST, places=places)
    sent(one, 0.3)  # five wait for their snapshots, and fifteen for places
    urgent = [Symbol("U0", "USDT"), Symbol("U1", "USDT")]
    feed.set_symbols((*symbols, *urgent))
    one.add_symbols(urgent, 0.4, is_urgent=True)
    assert sent(one, 0.6, 0.4) == [f"+{symbol}" for symbol in urgent]
    assert one.frames_to_send(1.5) == [f"+{symbol}" for symbol in symbols[5:10]]


def test_a_symbol_that_was_removed_and_is_urgent_now_is_subscribed_to_after_it_was_unsubscribed_from():
    symbols = [Symbol(f"S{number}", "USDT") for number in range(3)]
    feed = PlainFeed("ws://localhost", symbols)
    one = FeedConnection(feed, symbols, 0.0, limits=FAST)
    sent(one, 0.3)
    feed.set_symbols(symbols[:1])
    one.remove_symbols(symbols[1:])
    feed.set_symbols(symbols)
    one.add_symbols([symbols[1]], 0.4, is_urgent=True)
    assert sent(one, 0.6, 0.4) == [
        f"{sign}{symbol}" for sign, symbol in zip("-+-", (symbols[1], *symbols[1:]), strict=True)
    ]


def test_a_snapshot_is_awaited_from_the_request_on_for_a_second():
    symbols, places = [Symbol(f"S{number}", "USDT") for number in range(8)], SnapshotPlaces()
    one = FeedConnection(PlainFeed("ws://localhost", symbols), symbols, 0.0, limits=FAST, places=places)
    sent(one, 0.3)
    for frame in (f"candle {symbols[0]}", f"no {symbols[1]}"):
        one.on_frame(frame, 0.35)
    awaiting = [symbol for symbol in symbols if one.awaits_snapshot(symbol, 0.5)]
    assert awaiting == symbols[2:]
    awaiting = [symbol for symbol in symbols if one.awaits_snapshot(symbol, 1.35)]
    assert awaiting == symbols[5:]  # their subscriptions wait for places
    assert not one.awaits_snapshot(Symbol("X", "USDT"), 0.5)


def test_no_snapshot_is_awaited_from_a_feed_without_any():
    one = FeedConnection(TradesFeed("ws://localhost", [BTC]), [BTC], 0.0, limits=FAST)
    assert not one.awaits_snapshot(BTC, 0.0)


def test_while_the_store_is_behind_with_snapshots_one_frame_a_second_asks_for_more():
    symbols, behind = [Symbol(f"S{number}", "USDT") for number in range(9)], [True]
    places = SnapshotPlaces(is_behind=lambda: behind[0])
    one = FeedConnection(PlainFeed("ws://localhost", symbols), symbols, 0.0, limits=FAST, places=places)
    for second in range(4):
        assert sent(one, second + 0.75, second) == [f"+{symbols[second]}"]
        one.on_frame(f"candle {symbols[second]}", second + 0.8)
    behind[0] = False
    assert sent(one, 4.75, 4.25) == [f"+{symbol}" for symbol in symbols[4:]]


def test_subscriptions_without_snapshots_do_not_wait_for_the_store():
    symbols, places = [Symbol(f"S{number}", "USDT") for number in range(9)], SnapshotPlaces(is_behind=lambda: True)
    one = FeedConnection(TradesFeed("ws://localhost", symbols), symbols, 0.0, limits=FAST, places=places)
    assert sent(one, 0.5) == [f"+{symbol}" for symbol in symbols]


class TradesFeed(PlainFeed):
    """It has no snapshots, so its subscriptions wait for no answer."""

    snapshot = False


def test_a_subscription_is_renewed_only_after_its_frame_was_sent():
    symbols = [Symbol(f"S{number}", "USDT") for number in range(3)]
    limits = ConnectionLimits(frames_per_s=100.0, subscribes_per_hour=2)
    one = FeedConnection(PlainFeed("ws://localhost", symbols), symbols, 0.0, limits=limits)
    for number, now in enumerate([0.0, *range(1, 1798)]):
        for frame in one.frames_to_send(float(now)):
            assert (frame, number) in (("+S0/USDT", 0), ("+S1/USDT", 1)) or frame == "ping"
            one.on_frame("pong" if frame == "ping" else f"candle {frame[1:]}", float(now))
    assert one.frames_to_send(1801.0) == ["ping", "+S2/USDT"]


def test_never_more_frames_a_second_than_the_exchange_allows():
    symbols = [Symbol(f"S{number}", "USDT") for number in range(100)]
    one = FeedConnection(TradesFeed("ws://localhost", symbols), symbols, 0.0)
    times = [tick / 20 for tick in range(200) for _ in one.frames_to_send(tick / 20)]
    assert len(times) == 100
    assert max(sum(start <= moment < start + 1 for moment in times) for start in times) <= 13


def test_no_pong_in_time_ends_the_connection_and_a_pong_does_not():
    one = connection(BTC)
    one.on_frame("candle BTC/USDT", 0.5)
    sent(one, 20.0)
    one.on_frame("pong", 21.0)
    assert one.close_reason(31.0) is None
    sent(one, 40.5, 21.0)
    assert one.close_reason(45.0) is None
    assert "no pong" in one.close_reason(51.0)


def test_frames_that_delay_the_pong_prove_that_the_connection_works():
    """As when the snapshots of fifty symbols take longer to read than a pong may take."""
    one = connection(BTC)
    sent(one, 20.0)
    for at in range(21, 60, 9):
        one.on_frame("candle BTC/USDT", float(at))
        assert one.close_reason(at + 9.0) is None
    assert "no pong" in one.close_reason(at + 11.0)


def test_an_acknowledgement_without_data_is_asked_again_and_the_others_go_on():
    one = connection(BTC, ETH)
    sent(one, 1.0)
    one.on_frame("ack BTC/USDT", 1.0)
    one.on_frame("ack ETH/USDT", 1.0)
    one.on_frame("candle ETH/USDT", 1.0)
    assert sent(one, 12.0, 1.0) == ["-BTC/USDT", "+BTC/USDT"]
    assert one.silent_symbols == [BTC]
    assert one.close_reason(12.0) is None
    one.on_frame("candle BTC/USDT", 13.0)
    assert one.silent_symbols == []


def test_a_mute_subscription_is_renewed_ever_more_seldom():
    one = connection(BTC)
    one.on_frame("ack BTC/USDT", 0.0)
    renewals = [
        tick / 2
        for tick in range(7200)
        if "+BTC/USDT" in one.frames_to_send(tick / 2) and one.on_frame("pong", tick / 2) == []
    ]
    assert len(renewals) < 13


def test_a_subscription_that_is_mute_for_weeks_is_still_renewed():
    one = connection(BTC)
    for number in range(1100):  # 2**1024 is no float
        one.frames_to_send(number * 601.0)
    assert "+BTC/USDT" in sent(one, 1102 * 601.0, 1101 * 601.0)


def test_a_refused_symbol_is_reported_and_not_asked_again_for_a_minute():
    one = connection(BTC, ETH)
    sent(one, 1.0)
    assert one.on_frame("no BTC/USDT", 1.0) == [SubscriptionRejected(BTC, "unknown")]
    one.on_frame("candle ETH/USDT", 1.0)
    assert "+BTC/USDT" not in sent(one, 60.0, 1.0)
    assert "+BTC/USDT" in sent(one, 61.0, 61.0)


def test_a_silent_symbol_renews_one_subscription_but_not_again_immediately():
    one = connection(BTC, ETH)
    sent(one, 1.0)
    for symbol in (BTC, ETH):
        one.on_frame(f"candle {symbol}", 1.0)
    one.renew_subscription(BTC, 10.0)
    assert sent(one, 11.0, 10.0) == []
    one.renew_subscription(BTC, 40.0)
    frames = sent(one, 41.0, 40.0)
    one.renew_subscription(BTC, 45.0)
    assert [frame for frame in frames + sent(one, 46.0, 45.0) if frame != "ping"] == ["-BTC/USDT", "+BTC/USDT"]


@pytest.mark.parametrize(("frame", "now", "reason"), [("bye", 1.0, "overload"), ("pong", 3601.0, "on schedule")])
def test_the_connection_is_replaced_when_the_exchange_asks_or_its_time_is_up(frame, now, reason):
    one = connection(BTC)
    one.on_frame(frame, now)
    assert reason in one.close_reason(now)
