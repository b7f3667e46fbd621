"""What waits of one market while it cannot be sent."""

from hypothesis import given
from hypothesis import strategies as st

from candled.bus import FeedMetadata, HistoryChanged, MinuteChanged, StateChanged
from candled.bus.redis.outbound import OutboundQueue
from candled.model import Decimals, MarketKey, Symbol
from tests.rows import minute

BTC = MarketKey("bitget", Symbol("BTC", "USDT"))


def running(number: int, volume: int) -> MinuteChanged:
    return MinuteChanged(BTC, minute(number, volume=str(volume)))


def final(number: int) -> MinuteChanged:
    return MinuteChanged(BTC, minute(number, final=True))


def seqs(outgoing: OutboundQueue) -> list[int]:
    return [one.seq for one in outgoing.next_batch()]


def test_everything_is_sent_in_order_while_redis_is_available():
    outgoing = OutboundQueue()
    for volume in range(5):
        outgoing.enqueue(running(0, volume))
    assert seqs(outgoing) == [1, 2, 3, 4, 5]
    outgoing.forget_sent(3)
    assert (seqs(outgoing), outgoing.sent_seq) == ([4, 5], 3)


def test_only_the_newest_version_of_a_minute_is_queued_while_redis_is_unavailable():
    outgoing = OutboundQueue()
    outgoing.is_blocked = True
    for volume in range(100):
        outgoing.enqueue(running(0, volume))
    outgoing.enqueue(final(0))
    outgoing.enqueue(running(1, 0))
    assert seqs(outgoing) == [101, 102]  # the final version replaces those before it too
    assert [one.message.candle.final for one in outgoing.next_batch()] == [True, False]


def test_states_and_repairs_wait_too_and_of_states_only_the_newest():
    outgoing = OutboundQueue()
    outgoing.is_blocked = True
    outgoing.enqueue(StateChanged(BTC, "stale", 1))
    outgoing.enqueue(HistoryChanged(BTC, 0, 60_000, 0, FeedMetadata()))
    outgoing.enqueue(StateChanged(BTC, "live", 2))
    assert seqs(outgoing) == [2, 3]


@given(st.lists(st.sampled_from(["running", "final", "healed", "state", "away", "sent"]), max_size=200))
def test_what_waits_is_bounded_and_in_order_whatever_happens(events):
    outgoing, sent = OutboundQueue(), 0
    for number, event in enumerate(events):
        if event == "away":
            outgoing.is_blocked = True
        elif event == "sent":
            batch = seqs(outgoing)
            if batch:
                outgoing.forget_sent(batch[-1])
                sent = batch[-1]
        elif event == "healed":
            outgoing.enqueue(HistoryChanged(BTC, 0, 60_000, 0, FeedMetadata()))
        elif event == "state":
            outgoing.enqueue(StateChanged(BTC, "live", number))
        else:
            outgoing.enqueue(running(number // 3, number) if event == "running" else final(number // 3))
        waiting = seqs(outgoing)
        assert len(waiting) <= 16
        assert waiting == sorted(set(waiting))
        assert all(sent < seq <= outgoing.seq for seq in waiting)
        if event not in ("away", "sent"):
            assert waiting[-1] == outgoing.seq  # what is newest is never dropped


def test_the_newest_minutes_are_kept_with_their_last_metadata():
    outgoing = OutboundQueue()
    assert outgoing.newest_state("0.1", 0) is None
    facts = FeedMetadata(60_000, None, 3)
    for number in range(5):
        outgoing.enqueue(MinuteChanged(BTC, minute(number), facts))
    outgoing.enqueue(MinuteChanged(BTC, minute(1, "12"), facts))  # a late version of an old minute
    outgoing.enqueue(StateChanged(BTC, "quiet", 77, decimals=Decimals(2, 6)))
    newest = outgoing.newest_state("0.1", 6)
    assert [candle.open_ms for candle in newest.candles] == [minute(number).open_ms for number in (2, 3, 4)]
    state = StateChanged(BTC, "quiet", 77, decimals=Decimals(2, 6))
    assert (newest.position, newest.metadata, newest.state) == (("0.1", 6), facts, state)


def test_another_feed_begins_with_the_number_one_and_nothing_to_send():
    outgoing = OutboundQueue()
    outgoing.enqueue(final(0))
    outgoing.begin_feed()
    assert (seqs(outgoing), outgoing.enqueue(final(1))) == ([], 1)
    assert len(outgoing.newest_state("0.2", 1).candles) == 2
