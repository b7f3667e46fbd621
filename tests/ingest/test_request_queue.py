"""The order of the requests of an exchange's markets."""

from hypothesis import given
from hypothesis import strategies as st

from candled.ingest.coverage import Urgency
from candled.ingest.request_queue import Place, RequestQueue
from tests.tiers import few_examples


class Market:
    """The queue only compares which market it is."""


def make_markets(count):
    return [Market() for _ in range(count)]


def filled(*requests):
    """A queue with a market for each pair of urgency and place, and these markets."""
    queue, markets = RequestQueue(), make_markets(len(requests))
    for market, (urgency, place) in zip(markets, requests, strict=True):
        queue.add_market(market, urgency, place)
    return queue, markets


def test_the_most_urgent_goes_first_then_one_that_clients_wait_for_then_the_oldest():
    queue, markets = filled(
        (Urgency.CONFIRM, Place.AWAITED),
        (Urgency.WEEK, Place.USUAL),
        (Urgency.RECENT, Place.USUAL),
        (Urgency.RECENT, Place.AWAITED),
        (Urgency.RECENT, Place.USUAL),
        (Urgency.WEEK, Place.AWAITED),
    )
    assert queue.first == (Urgency.RECENT, Place.AWAITED)
    assert [queue.take_first() for _ in markets] == [markets[number] for number in (3, 2, 4, 5, 1, 0)]
    assert (queue.first, queue.take_first(), len(queue)) == (None, None, 0)


def test_a_market_whose_snapshot_is_awaited_goes_behind_the_missing_minutes_of_all_others():
    queue, markets = filled(
        (Urgency.RECENT, Place.LATE),
        (Urgency.CONFIRM, Place.USUAL),
        (Urgency.WEEK, Place.USUAL),
        (Urgency.CONFIRM, Place.LATE),
    )
    assert [queue.take_first() for _ in markets] == [markets[number] for number in (2, 0, 1, 3)]


def test_a_market_moves_ahead_once_clients_wait_for_it():
    queue, markets = filled((Urgency.RECENT, Place.USUAL), (Urgency.RECENT, Place.LATE), (Urgency.WEEK, Place.USUAL))
    queue.move_ahead(markets[1], Place.AWAITED)
    queue.move_ahead(markets[1], Place.AWAITED)
    queue.move_ahead(Market(), Place.AWAITED)  # it does not wait
    assert [queue.take_first() for _ in range(4)] == [markets[1], markets[0], markets[2], None]


def test_a_market_whose_snapshot_has_come_goes_back_to_the_urgency_of_its_request():
    queue, markets = filled((Urgency.WEEK, Place.USUAL), (Urgency.RECENT, Place.LATE), (Urgency.RECENT, Place.LATE))
    queue.move_ahead(markets[2], Place.USUAL)
    queue.move_ahead(markets[2], Place.LATE)  # never backward
    assert [queue.take_first() for _ in markets] == [markets[2], markets[0], markets[1]]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "move", "remove", "take"]),
            st.integers(0, 5),
            st.sampled_from(Urgency),
            st.sampled_from(Place),
        ),
        max_size=40,
    )
)
@few_examples
def test_each_market_is_taken_once_in_order(steps):
    queue, markets, expected = RequestQueue(), make_markets(6), {}
    for order, (step, number, urgency, place) in enumerate(steps):
        if step == "add" and number not in expected:
            queue.add_market(markets[number], urgency, place)
            rank = max(urgency, Urgency.WEEK) if place is Place.LATE else urgency
            expected[number] = rank, place, order, urgency
        elif step == "move":
            queue.move_ahead(markets[number], place)
            if number in expected and place < expected[number][1]:
                expected[number] = expected[number][3], place, order, expected[number][3]
        elif step == "remove":
            queue.remove_market(markets[number])
            expected.pop(number, None)
        elif step == "take":
            first = min(expected, key=expected.__getitem__, default=None)
            assert queue.take_first() is (None if first is None else markets[first])
            expected.pop(first, None)
        assert len(queue) == len(expected)
        assert queue.first == (min(expected.values())[:2] if expected else None)
