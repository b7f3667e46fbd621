"""What is noticed of messages that do not come."""

from hypothesis import given
from hypothesis import strategies as st

from candled.bus import Position
from candled.bus.codec import Heartbeat
from candled.bus.reception import LATE_S, OUTSIDE_LATE_S, Reception
from candled.model import MarketKey, Symbol

BTC, ETH = (MarketKey("bitget", Symbol(base, "USDT")) for base in ("BTC", "ETH"))
CHANNELS = {"btc": BTC, "eth": ETH}


def reception() -> Reception:
    """One shard, and both markets have been heard up to message 1 of the feed 0.10."""
    heard = Reception({0: [BTC, ETH]}, 0.0)
    for market in (BTC, ETH):
        heard.message(market, Position("0.10", 1))
    return heard


def healed(heard: Reception) -> set[MarketKey]:
    """What was to be read again; afterwards it was."""
    markets = heard.take_missed(100)
    for market in markets:
        heard.healed(market)
    return set(markets)


def beat(heard: Reception, now: float, btc: int, eth: int = 1, epoch: str = "0.10") -> bool:
    return heard.heartbeat(Heartbeat(0, epoch, {"btc": btc, "eth": eth}), CHANNELS, now)


def test_a_number_left_out_is_a_hole():
    heard = reception()
    assert heard.message(BTC, Position("0.10", 2))
    assert healed(heard) == set()
    assert heard.message(BTC, Position("0.10", 4))
    assert healed(heard) == {BTC}
    assert heard.reasons == {"hole": 1}


def test_a_feed_whose_beginning_was_not_heard_is_read():
    heard = Reception({0: [BTC, ETH]}, 0.0)
    heard.message(BTC, Position("0.10", 1))
    heard.message(ETH, Position("0.10", 2))
    assert healed(heard) == {ETH}


def test_a_repeated_message_is_no_news():
    heard = reception()
    heard.message(BTC, Position("0.10", 2))
    assert not heard.message(BTC, Position("0.10", 2))
    assert not heard.message(BTC, Position("0.10", 1))
    assert healed(heard) == set()


def test_another_feed_is_read_from_its_beginning():
    heard = reception()
    assert heard.message(BTC, Position("0.11", 1))
    assert healed(heard) == {BTC}
    assert not heard.message(BTC, Position("0.10", 2))  # of the leader before
    assert heard.position(BTC) == ("0.11", 1)


def test_a_leader_with_a_lower_token_is_heard_once_the_other_has_gone():
    heard = reception()
    heard.late(LATE_S + 1)
    assert beat(heard, LATE_S + 1, btc=0, epoch="0.3")
    assert heard.message(BTC, Position("0.3", 1))


def test_a_heartbeat_tells_of_messages_that_did_not_come_by_the_next_one():
    heard = reception()
    beat(heard, 1.0, btc=3)
    assert healed(heard) == set()
    beat(heard, 2.0, btc=3)
    assert healed(heard) == {BTC}
    beat(heard, 3.0, btc=3)
    assert healed(heard) == set()
    assert heard.reasons == {"heartbeat": 1}


def test_a_heartbeat_that_overtook_a_message_is_no_hole():
    heard = reception()
    beat(heard, 1.0, btc=2)
    heard.message(BTC, Position("0.10", 2))
    beat(heard, 2.0, btc=2)
    assert healed(heard) == set()


def test_the_heartbeat_of_another_leader_is_enough_to_read_again():
    heard = reception()
    beat(heard, 1.0, btc=0, eth=0, epoch="0.11")
    assert healed(heard) == {BTC, ETH}
    assert heard.message(BTC, Position("0.11", 1))
    assert healed(heard) == set()


def test_a_shard_without_a_heartbeat_falls_silent_once_and_is_read_again_after():
    heard = reception()
    beat(heard, 1.0, btc=1)
    assert heard.late(1.0 + LATE_S) == []
    assert set(heard.late(1.1 + LATE_S)) == {BTC, ETH}
    assert heard.late(9.0) == []
    assert beat(heard, 10.0, btc=1)
    assert healed(heard) == {BTC, ETH}
    assert heard.late(10.1) == []


def test_minutes_of_other_programs_count_only_where_nobody_leads():
    heard = reception()
    assert not heard.outside(BTC, 1.0)
    heard.late(5.0)
    assert heard.outside(BTC, 5.0)
    assert heard.late(5.0 + OUTSIDE_LATE_S) == []
    assert heard.late(5.1 + OUTSIDE_LATE_S) == [BTC]


def test_what_was_missed_while_it_was_read_is_read_once_more():
    heard = reception()
    heard.miss([BTC], "hole")
    assert heard.take_missed(10) == [BTC]
    assert heard.is_missed(BTC)
    heard.miss([BTC], "hole")
    heard.healed(BTC)
    assert heard.is_missed(BTC)
    assert heard.take_missed(10) == [BTC]


def test_what_could_not_be_read_is_read_later():
    heard = reception()
    heard.miss([BTC], "hole")
    heard.not_healed(heard.take_missed(10))
    assert heard.take_missed(10) == [BTC]


def test_a_shard_of_our_own_that_another_took_is_read_again():
    heard = reception()
    heard.own(BTC, Position("0.20", 9))
    heard.forget(0, 5.0)
    assert healed(heard) == {BTC, ETH}
    assert not heard.message(BTC, Position("0.10", 99))
    assert heard.message(BTC, Position("0.21", 1))


def test_a_newer_state_that_was_read_spares_the_messages_before_it():
    heard = reception()
    assert heard.read(BTC, Position("0.10", 5)) == ("0.10", 5)
    assert not heard.message(BTC, Position("0.10", 5))
    assert heard.read(BTC, Position("0.9", 50)) == ("0.10", 5)


@given(st.data())
def test_nothing_is_lost_in_silence(data):
    """Whatever is lost of three feeds in a row, once heartbeats come through every loss has led to a reading."""
    heard, now = reception(), 0.0
    behind: set[MarketKey] = set()  # whose listener has not seen everything
    for token in (10, 11, 12):
        epoch, seqs = f"0.{token}", {BTC: 1 if token == 10 else 0, ETH: 1 if token == 10 else 0}
        for _ in range(data.draw(st.integers(0, 12))):
            now += 0.5
            if data.draw(st.booleans()):
                market = data.draw(st.sampled_from([BTC, ETH]))
                seqs[market] += 1
                if data.draw(st.booleans()):
                    heard.message(market, Position(epoch, seqs[market]))
                else:
                    behind.add(market)
            elif data.draw(st.booleans()):
                beat(heard, now, seqs[BTC], seqs[ETH], epoch)
            behind -= healed(heard)
    for _ in range(2):
        now += 1.0
        beat(heard, now, seqs[BTC], seqs[ETH], epoch)
        behind -= healed(heard)
    assert behind == set()
