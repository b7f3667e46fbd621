import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.model import DEFAULT_INTERVALS, MarketKey, Symbol, Topic
from candled.transport.outbox import MOST_BARS_WAITING, MOST_REPLIES, Outbox

TOPICS = [Topic(MarketKey("x", Symbol("BTC", "USDT")), interval) for interval in DEFAULT_INTERVALS]
ONE, TWO = TOPICS[:2]


def drain(box: Outbox) -> list:
    items = []
    while (item := box.pop_next()) is not None:
        items.append(item)
    return items


def test_the_newest_state_of_a_bar_replaces_the_one_that_waits():
    box = Outbox()
    for volume in "1234":
        box.put_update(ONE, 0, volume)
    assert drain(box) == ["4"]


def test_bars_of_a_topic_leave_oldest_first_and_topics_take_turns():
    box = Outbox()
    box.put_update(ONE, 60, "one-new")
    box.put_update(ONE, 0, "one-old")
    box.put_update(TWO, 0, "two")
    assert drain(box) == ["one-old", "two", "one-new"]


def test_a_correction_takes_the_place_of_a_correction_and_not_of_the_update_that_shows_the_bar():
    box = Outbox()
    box.put_update(ONE, 0, "update")
    box.put_update(ONE, 60, "next")
    for text in ("correction", "newer correction"):
        box.put_update(ONE, 0, text, corrects=True)
    assert drain(box) == ["update", "newer correction", "next"]


def test_replies_go_first_and_keep_their_order():
    box = Outbox()
    box.put_update(ONE, 0, "update")
    box.put_reply("a")
    box.put_reply("b")
    assert drain(box) == ["a", "b", "update"]


def test_an_initial_takes_the_place_of_the_updates_that_wait():
    box = Outbox()
    box.put_update(ONE, 0, "update")
    box.put_initial(ONE)
    box.put_initial(ONE)
    assert drain(box) == [ONE]


def test_too_many_waiting_bars_or_replies_are_reported():
    box = Outbox()
    assert all(box.put_update(ONE, number, "x") for number in range(MOST_BARS_WAITING))
    assert not box.put_update(ONE, 99, "x")
    assert all(box.put_update(TWO, number, "x", most=20) for number in range(20))
    assert not box.put_update(TWO, 99, "x", most=20)
    assert all(box.put_reply("x") for _ in range(MOST_REPLIES))
    assert not box.put_reply("x")


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(TOPICS), st.integers(0, 5), st.integers())))
def test_space_is_bounded_and_the_newest_state_of_each_bar_survives(updates):
    box, newest, dropped = Outbox(), {}, set()
    for topic, open_ms, value in updates:
        if topic in dropped:
            continue
        newest[topic, open_ms] = value
        if not box.put_update(topic, open_ms, json.dumps([value])):
            box.put_initial(topic)
            dropped.add(topic)
    items = drain(box)
    assert len(items) <= len(TOPICS) * MOST_BARS_WAITING
    texts = [item for item in items if isinstance(item, str)]
    kept = [json.dumps([value]) for (topic, _), value in newest.items() if topic not in dropped]
    assert sorted(texts) == sorted(kept)
    assert {item for item in items if isinstance(item, Topic)} == dropped
