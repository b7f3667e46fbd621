from hypothesis import given
from hypothesis import strategies as st

from candled.aggregate.feed_log import FeedLog
from candled.bus import FeedMetadata
from candled.model import Position, Range


def followed(*positions: tuple[str, int]) -> FeedLog:
    feed_log = FeedLog()
    for position in positions:
        feed_log.record_message(Position(*position))
    return feed_log


def test_a_feed_followed_from_its_first_message_lacks_nothing():
    feed_log = followed(("a", 1), ("a", 2), ("a", 3))
    assert not feed_log.is_broken
    assert feed_log.position == ("a", 3)


def test_an_older_message_is_no_change_and_several_may_stand_at_one_position():
    feed_log = followed(("a", 1), ("a", 2))
    assert feed_log.record_message(Position("a", 2))
    assert not feed_log.record_message(Position("a", 1))
    assert not feed_log.is_broken
    assert feed_log.position == ("a", 2)


def test_a_missing_number_is_noticed_with_the_last_one_before_it():
    feed_log = followed(("a", 1), ("a", 2), ("a", 5), ("a", 9))
    assert feed_log.is_broken
    assert feed_log.lost_since == ("a", 2)
    feed_log.mark_repaired()
    assert not feed_log.is_broken


def test_a_log_that_begins_in_the_middle_has_missed_what_came_before():
    assert followed(("a", 7)).is_broken
    assert followed(("a", 7)).lost_since is None


def test_a_new_feed_may_have_followed_on_lost_messages():
    feed_log = followed(("a", 1), ("b", 1))
    assert feed_log.is_broken
    assert feed_log.lost_since == ("a", 1)


def test_a_feed_whose_numbers_go_back_is_followed_on_and_everything_of_it_may_be_lost():
    """The bus found out that a message was forged."""
    feed_log = followed(("a", 1), ("a", 2), ("a", 1_000_000))
    feed_log.mark_repaired()
    change_id = feed_log.change_id
    feed_log.log_change(change_id, 0, 60_000)
    feed_log.mark_unreliable(Position("a", 7))
    assert feed_log.position == ("a", 7)
    assert feed_log.change_id > change_id
    assert (feed_log.is_broken, feed_log.lost_since, feed_log.is_lost_logged) == (True, ("a", 0), False)
    feed_log.mark_repaired()
    assert feed_log.record_message(Position("a", 8))
    assert not feed_log.is_broken
    assert feed_log.ranges_since(feed_log.change_id_of(Position("a", 2))), (
        "a client that saw the real minute must be sent the change"
    )


def test_a_feed_that_never_was_gives_way_to_the_one_before():
    feed_log = followed(("a", 1), ("a", 2), ("z", 1))
    feed_log.mark_unreliable(Position("a", 4))
    assert feed_log.record_message(Position("a", 5))
    assert not feed_log.record_message(Position("z", 1))
    assert feed_log.position == ("a", 5)


def test_what_was_lost_is_logged_once_the_log_has_the_last_message_that_may_have_been():
    feed_log = followed(("a", 1), ("a", 5))
    feed_log.update_metadata(FeedMetadata(logged_seq=3))
    assert not feed_log.is_lost_logged
    feed_log.update_metadata(FeedMetadata(logged_seq=4))
    assert feed_log.is_lost_logged
    feed_log.record_message(Position("b", 3))
    assert not feed_log.is_lost_logged, "a number of another feed was used for this one"
    feed_log.update_metadata(FeedMetadata(logged_seq=2))
    assert feed_log.is_lost_logged
    assert list(feed_log.repaired_since(Position("b", 3))) == [("b", 3), ("a", 5)]
    assert list(feed_log.repaired_since(Position("c", 1))) == [("c", 1)]


def test_a_late_message_of_a_replaced_feed_is_dropped():
    feed_log = followed(("a", 1), ("a", 2), ("b", 1))
    assert not feed_log.record_message(Position("a", 2))
    assert feed_log.position == ("b", 1)


def test_a_feed_that_comes_back_is_followed_again():
    feed_log = followed(("a", 1), ("b", 1), ("a", 2))
    assert feed_log.position == ("a", 2)
    assert feed_log.is_broken


def test_what_changed_since_a_position_is_known_as_far_as_the_feed_was_followed():
    feed_log = followed(("a", 4), ("a", 5))
    feed_log.log_change(feed_log.change_id, 100, 200)
    feed_log.record_message(Position("a", 6))
    feed_log.record_message(Position("b", 3))
    feed_log.log_change(feed_log.change_id + 1, 300, 400)
    assert list(feed_log.ranges_since(feed_log.change_id_of(Position("a", 4)))) == [Range(100, 200), Range(300, 400)]
    assert list(feed_log.ranges_since(feed_log.change_id_of(Position("a", 5)))) == [Range(300, 400)]
    assert list(feed_log.ranges_since(feed_log.change_id_of(Position("b", 3)))) == [
        Range(300, 400)
    ]  # found after it was sent
    assert feed_log.change_id_of(Position("a", 2)) is None
    assert feed_log.change_id_of(Position("a", 7)) is None
    assert feed_log.change_id_of(Position("c", 1)) is None


def test_changes_that_were_dropped_are_not_answered_for():
    feed_log = followed(("a", 1))
    first = Position("a", 1)
    for seq in range(2, 3000):
        feed_log.record_message(Position("a", seq))
        feed_log.log_change(feed_log.change_id, seq, seq + 1)
    assert feed_log.change_id_of(first) is None
    assert feed_log.change_id_of(Position("a", 2990)) is not None


def test_the_log_can_be_believed_once_it_has_what_came_before_this_process_began():
    feed_log = followed(("a", 10))
    feed_log.metadata = FeedMetadata(logged_seq=9)
    assert not feed_log.is_logged
    feed_log.metadata = FeedMetadata(logged_seq=10)
    assert feed_log.is_logged


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), max_size=30))
def test_stamps_only_grow(positions):
    feed_log, last = FeedLog(), 0
    for position in positions:
        if feed_log.record_message(Position(*position)):
            assert feed_log.change_id >= last
            last = feed_log.change_id
            assert feed_log.change_id_of(feed_log.position) == feed_log.change_id


def test_the_watermark_of_a_moment_is_remembered():
    feed_log = FeedLog()
    for seq, watermark in ((1, 60_000), (2, 60_000), (3, 120_000), (4, None), (5, 180_000)):
        feed_log.record_message(Position("one", seq))
        feed_log.update_metadata(FeedMetadata(watermark_ms=watermark or 120_000))
    stamps = [feed_log.change_id_of(Position("one", seq)) for seq in range(1, 6)]
    assert [feed_log.watermark_at(change_id) for change_id in stamps] == [60_000, 60_000, 120_000, 120_000, 180_000]
    assert feed_log.watermark_at(-1) is None
    assert feed_log.metadata.watermark_ms == 180_000


def test_a_gap_that_disappears_counts_as_a_change_of_its_range():
    feed_log = FeedLog()
    feed_log.record_message(Position("one", 1))
    feed_log.update_metadata(FeedMetadata(watermark_ms=10**6, gap=Range(60_000, 180_000)))
    before = feed_log.change_id
    feed_log.record_message(Position("one", 2))
    feed_log.update_metadata(FeedMetadata(watermark_ms=10**6, gap=Range(60_000, 180_000)))
    assert not feed_log.ranges_since(before)
    feed_log.record_message(Position("one", 3))
    feed_log.update_metadata(FeedMetadata(watermark_ms=10**6))
    assert list(feed_log.ranges_since(before)) == [(60_000, 180_000)]


def test_messages_may_be_lost_before_any_came():
    feed_log = FeedLog()
    feed_log.mark_unreliable(until=Position("one", 7))
    assert feed_log.is_broken
    assert not feed_log.is_lost_logged
    feed_log.record_message(Position("one", 8))
    feed_log.update_metadata(FeedMetadata(logged_seq=7))
    assert feed_log.is_lost_logged
