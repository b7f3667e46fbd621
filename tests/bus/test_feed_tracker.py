"""What is noticed of messages that do not come, and what is believed of those that do."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from candled.bus.codec import Heartbeat
from candled.bus.redis.feed_tracker import (
    EXTERNAL_LATE_S,
    LATE_S,
    NO_HEARTBEAT,
    NOT_ARRIVING,
    NOT_LISTED,
    FeedTracker,
    MessageOrder,
    StaleCause,
)
from candled.model import MarketKey, Position, Symbol

BTC, ETH = (MarketKey("bitget", Symbol(base, "USDT")) for base in ("BTC", "ETH"))
CHANNELS = {"btc": BTC, "eth": ETH}
NEXT, REPEATED, GAP = MessageOrder.NEXT, MessageOrder.REPEATED, MessageOrder.GAP


def reception() -> FeedTracker:
    """One shard, and both markets have been heard up to message 1 of the feed 0.10."""
    received = FeedTracker({0: [BTC, ETH]}, 0.0)
    for market in (BTC, ETH):
        received.on_message(market, Position("0.10", 1))
    return received


def repaired(received: FeedTracker, newest: Position | None = None) -> set[MarketKey]:
    """What was to be read again; afterwards it was, and there was nothing, or `newest`."""
    markets = received.take_missed(100)
    for market in markets:
        received.mark_repaired(market)
        received.on_newest_read(market, newest)
    return set(markets)


def beat(received: FeedTracker, now: float, btc: int, eth: int = 1, epoch: str = "0.10", as_of_ms: int = 0) -> bool:
    return received.on_heartbeat(Heartbeat(0, epoch, {"btc": btc, "eth": eth}, as_of_ms), CHANNELS, now)


def test_a_number_left_out_is_a_lost_message():
    received = reception()
    assert received.on_message(BTC, Position("0.10", 2)) is NEXT
    assert repaired(received) == set()
    assert received.on_message(BTC, Position("0.10", 4)) is GAP
    assert repaired(received) == {BTC}
    assert received.missed_counts == {"hole": 1}


def test_a_feed_whose_beginning_was_not_received_is_read():
    received = FeedTracker({0: [BTC, ETH]}, 0.0)
    received.on_message(BTC, Position("0.10", 1))
    received.on_message(ETH, Position("0.10", 2))
    assert repaired(received) == {ETH}


def test_a_repeated_message_is_no_change():
    received = reception()
    received.on_message(BTC, Position("0.10", 2))
    assert received.on_message(BTC, Position("0.10", 2)) is REPEATED
    assert received.on_message(BTC, Position("0.10", 1)) is REPEATED
    assert repaired(received) == set()


def test_another_feed_is_read_from_its_beginning():
    received = reception()
    assert received.on_message(BTC, Position("0.11", 1)) is GAP
    assert repaired(received, Position("0.11", 1)) == {BTC}
    assert received.on_message(BTC, Position("0.10", 2)) is REPEATED  # of the previous leader
    assert received.position_of(BTC) == ("0.11", 1)


def test_a_leader_with_a_lower_token_is_followed_once_the_other_has_gone():
    received = reception()
    beat(received, 1.0, btc=1)
    received.update_lateness(LATE_S + 2)
    assert beat(received, LATE_S + 2, btc=0, epoch="0.3")
    repaired(received)
    assert received.on_message(BTC, Position("0.3", 1)) is NEXT


def test_a_heartbeat_reveals_messages_that_did_not_come_by_the_next_one():
    received = reception()
    beat(received, 1.0, btc=3)
    assert repaired(received) == set()
    beat(received, 2.0, btc=3)
    assert repaired(received, Position("0.10", 3)) == {BTC}
    beat(received, 3.0, btc=3)
    assert repaired(received) == set()
    assert received.missed_counts == {"heartbeat": 1}


def test_a_heartbeat_that_overtook_a_message_is_no_lost_message():
    received = reception()
    beat(received, 1.0, btc=2)
    received.on_message(BTC, Position("0.10", 2))
    beat(received, 2.0, btc=2)
    assert repaired(received) == set()


def test_the_heartbeat_of_another_leader_is_enough_to_read_again():
    received = reception()
    beat(received, 1.0, btc=0, eth=0, epoch="0.11")
    assert repaired(received) == {BTC, ETH}
    assert received.on_message(BTC, Position("0.11", 1)) is NEXT
    assert repaired(received) == set()


def test_a_shard_without_a_heartbeat_is_stale_and_is_read_again_after():
    received = reception()
    beat(received, 1.0, btc=1)
    received.update_lateness(1.0 + LATE_S)
    assert received.find_stale_cause(BTC, 1.0 + LATE_S) is None
    received.update_lateness(1.1 + LATE_S)
    assert received.find_stale_cause(BTC, 9.0) == received.find_stale_cause(ETH, 9.0) == NO_HEARTBEAT
    assert beat(received, 10.0, btc=1)
    assert repaired(received) == {BTC, ETH}
    assert received.find_stale_cause(BTC, 10.1) is None


def test_minutes_of_other_programs_count_only_where_no_process_leads():
    received = reception()
    assert not received.on_external_minute(BTC, 1.0)
    received.update_lateness(5.0)
    assert received.on_external_minute(BTC, 5.0)
    for now, cause in ((5.0 + EXTERNAL_LATE_S, None), (5.1 + EXTERNAL_LATE_S, NO_HEARTBEAT)):
        received.update_lateness(now)
        assert received.find_stale_cause(BTC, now) == cause
        assert received.find_stale_cause(ETH, now) == NO_HEARTBEAT


def test_what_was_missed_while_it_was_read_is_read_once_more():
    received = reception()
    received.mark_missed([BTC], "hole")
    assert received.take_missed(10) == [BTC]
    assert received.is_missed(BTC)
    received.mark_missed([BTC], "hole")
    received.mark_repaired(BTC)
    assert received.is_missed(BTC)
    assert received.take_missed(10) == [BTC]


def test_a_market_that_could_not_be_read_is_read_later_and_stale_after_a_while():
    received = reception()
    beat(received, 1.0, btc=1)
    received.mark_missed([BTC], "hole")
    for now, cause in ((1.0, None), (3.0, None), (4.0, StaleCause("bus_unreadable", "NOPERM no"))):
        received.mark_not_repaired(received.take_missed(10), "NOPERM no", now)
        assert received.find_stale_cause(BTC, now) == cause
    assert repaired(received) == {BTC}
    assert received.find_stale_cause(BTC, 4.0) is None


def test_a_shard_of_our_own_that_another_took_is_read_again():
    received = reception()
    received.set_position(BTC, Position("0.20", 9))
    received.on_shard_lost(0, 5.0)
    assert repaired(received) == {BTC, ETH}
    assert received.on_message(BTC, Position("0.10", 99)) is REPEATED
    assert received.on_message(BTC, Position("0.21", 1)) is GAP
    assert repaired(received, Position("0.21", 1)) == {BTC}
    assert received.on_message(BTC, Position("0.21", 2)) is NEXT


def test_a_newer_state_that_was_read_spares_the_messages_before_it():
    received = reception()
    assert received.on_newest_read(BTC, Position("0.10", 5)) == ("0.10", 5)
    assert received.on_message(BTC, Position("0.10", 5)) is REPEATED
    assert received.on_newest_read(BTC, Position("0.9", 50)) == ("0.10", 5)


def test_a_market_without_a_newest_state_is_where_its_fence_is():
    received = reception()
    beat(received, 1.0, btc=2, eth=0, epoch="0.11")
    assert received.on_newest_read(BTC, None, (11, 2)) == ("0.11", 2)
    assert received.on_message(BTC, Position("0.11", 3)) is NEXT


# ---------------------------------------------------------------- what a leader publishes and nobody gets


def test_a_market_whose_messages_do_not_come_is_stale_until_they_do():
    """Redis refuses messages and accepts heartbeats."""
    received = reception()
    beat(received, 1.0, btc=5)
    causes, read = [], []
    for number in range(40):
        beat(received, 2.0 + number, btc=5 + number)
        read.append(repaired(received) == {BTC})  # and nothing newer was there
        causes.append(received.find_stale_cause(BTC, 2.0 + number))
    assert causes == [None] + 39 * [NOT_ARRIVING]
    assert received.find_stale_cause(ETH, 50.0) is None
    assert sum(read) < 10  # not with every heartbeat: all processes ask the same Redis
    assert received.on_message(BTC, Position("0.10", 44)) is GAP
    assert repaired(received, Position("0.10", 44)) == {BTC}
    assert received.find_stale_cause(BTC, 50.0) is None
    beat(received, 51.0, btc=44)
    assert (repaired(received), received.find_stale_cause(BTC, 51.0)) == (set(), None)


def test_a_market_that_the_leader_does_not_name_is_stale():
    received = reception()
    for now, cause in ((1.0, None), (2.0, NOT_LISTED), (3.0, NOT_LISTED)):
        received.on_heartbeat(Heartbeat(0, "0.10", {"btc": 1}), CHANNELS, now)
        assert (received.find_stale_cause(BTC, now), received.find_stale_cause(ETH, now)) == (None, cause)
    beat(received, 4.0, btc=1)
    assert received.find_stale_cause(ETH, 4.0) is None


# ---------------------------------------------------------------- forged and broken messages

LOST, KEPT = None, (10, 1)  # the fence: Redis knows nothing of the market, or what its leader published


class Follower:
    """A process that hears a real leader every second, and forged messages between; reading finds what is real."""

    def __init__(self, fence: tuple[int, int] | None) -> None:
        self.received = reception()
        self.fence = fence
        self.seq = 1
        self.now = 0.0
        self.arrived = 0
        self.second()

    def forge(self, position: Position) -> bool:
        """A message that the leader did not publish; return whether it was believed."""
        result = self.received.on_message(BTC, position)
        proven = result is NEXT or (result is GAP and self.received.confirm_jump(BTC, position, self.fence))
        self.read()
        return proven

    def read(self) -> None:
        newest = None if self.fence is None else Position("0.10", self.seq)
        for market in self.received.take_missed(10):
            self.received.mark_repaired(market)
            self.received.on_newest_read(
                market, newest if market == BTC else None, self.fence if market == BTC else None
            )

    def second(self) -> None:
        """The leader publishes a message and a heartbeat."""
        self.now += 1.0
        self.seq += 1
        if self.fence is not None:
            self.fence = (10, self.seq)
        position = Position("0.10", self.seq)
        result = self.received.on_message(BTC, position)
        self.arrived += result is NEXT or (result is GAP and self.received.confirm_jump(BTC, position, self.fence))
        self.read()
        beat(self.received, self.now, btc=self.seq)
        self.read()
        self.received.update_lateness(self.now)


@pytest.mark.parametrize(
    ("position", "fence", "seconds"),
    [
        pytest.param(Position("0.10", 1_000_000), KEPT, 0, id="a jump"),
        pytest.param(Position("0.10", 2**53), KEPT, 0, id="the largest number"),
        pytest.param(Position("0.9007199254740992", 1), KEPT, 0, id="the largest token"),
        pytest.param(Position("0.9", 10**6), KEPT, 0, id="of a leader before"),
        pytest.param(Position("0.10", 3), KEPT, 1, id="the very next number"),
        pytest.param(Position("0.10", 1_000_000), LOST, 3, id="a jump, and Redis forgot"),
        pytest.param(Position("0.9007199254740992", 1), LOST, 3, id="the largest token, and Redis forgot"),
    ],
)
def test_no_single_message_stops_a_feed(position, fence, seconds):
    one = Follower(fence)
    believed = one.forge(position)
    assert believed is (seconds > 0)
    for _ in range(seconds):
        one.second()
    before = one.arrived
    for _ in range(5):
        one.second()
    assert one.arrived == before + 5
    assert one.received.position_of(BTC) == ("0.10", one.seq)
    assert one.received.find_stale_cause(BTC, one.now) is None


@pytest.mark.parametrize(
    ("epoch", "seq", "seconds"),
    [
        pytest.param("0.10", 10**12, 0, id="more than there is"),
        pytest.param("0.10", 0, 0, id="less than there is"),
        pytest.param("0.9007199254740992", 1, 2, id="of a leader that does not exist"),
        pytest.param("0.9", 10**6, 0, id="of a leader before"),
    ],
)
@pytest.mark.parametrize("fence", [KEPT, LOST])
def test_no_single_heartbeat_stops_a_feed(epoch, seq, seconds, fence):
    one = Follower(fence)
    beat(one.received, one.now + 0.5, btc=seq, epoch=epoch)
    one.read()
    for _ in range(seconds + 1):
        one.second()
        assert one.received.find_stale_cause(BTC, one.now) is None
    before = one.arrived
    for _ in range(5):
        one.second()
    assert one.arrived == before + 5
    assert one.received.position_of(BTC) == ("0.10", one.seq)
    assert one.received.find_stale_cause(BTC, one.now) is None


def test_messages_that_came_ahead_of_a_slow_heartbeat_do_not_set_a_feed_back():
    """Channels of a cluster come over different connections."""
    received = reception()
    for second in range(1, 20):
        for seq in range(second * 10 - 8, second * 10 + 2):
            assert received.on_message(BTC, Position("0.10", seq)) is NEXT
        beat(received, float(second), btc=second * 10 - 9)  # a second late
    assert received.missed_counts == {}


def test_the_leaders_clock_is_what_two_heartbeats_in_a_row_agree_on():
    received = reception()
    beat(received, 1.0, 1, as_of_ms=1_000_000)
    assert received.leader_ms(0, 1.0) == 0
    beat(received, 2.0, 1, as_of_ms=1_001_000)
    assert received.leader_ms(0, 2.5) == 1_001_500
    beat(received, 3.0, 1, as_of_ms=10**14)  # forged
    assert received.leader_ms(0, 3.0) == 1_002_000
    beat(received, 4.0, 1, as_of_ms=1_003_000)
    assert received.leader_ms(0, 4.0) == 1_003_000


@pytest.mark.slow
@given(st.data())
def test_nothing_is_lost_in_silence(data):
    """Whatever is lost of three feeds in a row, once heartbeats come through every loss has led to a reading."""
    received, now = reception(), 0.0
    behind: set[MarketKey] = set()  # whose listener has not seen everything
    for token in (10, 11, 12):
        epoch, seqs = f"0.{token}", {BTC: 1 if token == 10 else 0, ETH: 1 if token == 10 else 0}

        def read(epoch=epoch, seqs=seqs) -> None:
            for market in received.take_missed(10):
                received.mark_repaired(market)
                received.on_newest_read(market, Position(epoch, seqs[market]))
                behind.discard(market)

        for _ in range(data.draw(st.integers(0, 12))):
            now += 0.5
            if data.draw(st.booleans()):
                market = data.draw(st.sampled_from([BTC, ETH]))
                seqs[market] += 1
                if data.draw(st.booleans()):
                    received.on_message(market, Position(epoch, seqs[market]))
                else:
                    behind.add(market)
            elif data.draw(st.booleans()):
                beat(received, now, seqs[BTC], seqs[ETH], epoch)
            read()
    for _ in range(2):
        now += 1.0
        beat(received, now, seqs[BTC], seqs[ETH], epoch)
        read()
    assert behind == set()
    assert {received.find_stale_cause(market, now) for market in (BTC, ETH)} == {None}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["message", "heartbeat", "second"]),
            st.sampled_from([1, 9, 10, 11, 2**53]),
            st.integers(0, 30) | st.sampled_from([10**6, 2**53]),
        ),
        max_size=60,
    ),
    st.sampled_from([KEPT, LOST]),
)
@example(
    [("message", 11, 0), ("heartbeat", 1, 0), ("heartbeat", 1, 0), ("heartbeat", 11, 0), ("message", 2**53, 0)], LOST
)
def test_four_seconds_after_any_forgery_the_feed_is_that_of_its_leader(forged, fence):
    one = Follower(fence)
    for kind, token, seq in forged:
        if kind == "message":
            one.forge(Position(f"0.{token}", max(1, seq)))
        elif kind == "heartbeat":
            beat(one.received, one.now + 0.5, btc=seq, epoch=f"0.{token}")
            one.read()
        else:
            one.second()
    for _ in range(5):
        one.second()
    before = one.arrived
    for _ in range(3):
        one.second()
    assert one.arrived == before + 3
    assert one.received.position_of(BTC) == ("0.10", one.seq)
    assert one.received.find_stale_cause(BTC, one.now) is None
