from hypothesis import given
from hypothesis import strategies as st

from candled.aggregate.feed_log import FeedLog
from candled.bus import FeedMetadata, Position
from candled.model import Range


def followed(*positions: tuple[str, int]) -> FeedLog:
    track = FeedLog()
    for position in positions:
        track.on_message(Position(*position))
    return track


def test_a_feed_followed_from_its_first_message_lacks_nothing():
    track = followed(("a", 1), ("a", 2), ("a", 3))
    assert not track.is_broken
    assert track.position == ("a", 3)


def test_an_older_message_is_not_news_and_several_may_stand_at_one_position():
    track = followed(("a", 1), ("a", 2))
    assert track.on_message(Position("a", 2))
    assert not track.on_message(Position("a", 1))
    assert not track.is_broken
    assert track.position == ("a", 2)


def test_a_missing_number_is_noticed_with_the_last_one_before_it():
    track = followed(("a", 1), ("a", 2), ("a", 5), ("a", 9))
    assert track.is_broken
    assert track.lost_since == ("a", 2)
    track.mark_repaired()
    assert not track.is_broken


def test_whoever_joins_in_the_middle_has_missed_what_came_before():
    assert followed(("a", 7)).is_broken
    assert followed(("a", 7)).lost_since is None


def test_a_new_feed_may_have_followed_on_lost_messages():
    track = followed(("a", 1), ("b", 1))
    assert track.is_broken
    assert track.lost_since == ("a", 1)


def test_a_feed_whose_numbers_go_back_is_followed_on_and_everything_of_it_may_be_lost():
    """The bus found out that a message was forged."""
    track = followed(("a", 1), ("a", 2), ("a", 1_000_000))
    track.mark_repaired()
    stamp = track.change_id
    track.log_change(stamp, 0, 60_000)
    track.mark_unreliable(Position("a", 7))
    assert track.position == ("a", 7)
    assert track.change_id > stamp
    assert (track.is_broken, track.lost_since, track.is_lost_logged) == (True, ("a", 0), False)
    track.mark_repaired()
    assert track.on_message(Position("a", 8))
    assert not track.is_broken
    assert track.changes_since(track.change_id_of(Position("a", 2))), (
        "a client that saw the real minute must be sent the change"
    )


def test_a_feed_that_never_was_gives_way_to_the_one_before():
    track = followed(("a", 1), ("a", 2), ("z", 1))
    track.mark_unreliable(Position("a", 4))
    assert track.on_message(Position("a", 5))
    assert not track.on_message(Position("z", 1))
    assert track.position == ("a", 5)


def test_what_was_lost_is_logged_once_the_log_has_the_last_message_that_may_have_been():
    track = followed(("a", 1), ("a", 5))
    track.update_metadata(FeedMetadata(logged_seq=3))
    assert not track.is_lost_logged
    track.update_metadata(FeedMetadata(logged_seq=4))
    assert track.is_lost_logged
    track.on_message(Position("b", 3))
    assert not track.is_lost_logged, "a number of another feed was used for this one"
    track.update_metadata(FeedMetadata(logged_seq=2))
    assert track.is_lost_logged
    assert list(track.repaired_since(Position("b", 3))) == [("b", 3), ("a", 5)]
    assert list(track.repaired_since(Position("c", 1))) == [("c", 1)]


def test_a_late_message_of_a_replaced_feed_is_dropped():
    track = followed(("a", 1), ("a", 2), ("b", 1))
    assert not track.on_message(Position("a", 2))
    assert track.position == ("b", 1)


def test_a_feed_that_comes_back_is_followed_again():
    track = followed(("a", 1), ("b", 1), ("a", 2))
    assert track.position == ("a", 2)
    assert track.is_broken


def test_what_changed_since_a_position_is_known_as_far_as_the_feed_was_followed():
    track = followed(("a", 4), ("a", 5))
    track.log_change(track.change_id, 100, 200)
    track.on_message(Position("a", 6))
    track.on_message(Position("b", 3))
    track.log_change(track.change_id + 1, 300, 400)
    assert list(track.changes_since(track.change_id_of(Position("a", 4)))) == [Range(100, 200), Range(300, 400)]
    assert list(track.changes_since(track.change_id_of(Position("a", 5)))) == [Range(300, 400)]
    assert list(track.changes_since(track.change_id_of(Position("b", 3)))) == [
        Range(300, 400)
    ]  # found after it was sent
    assert track.change_id_of(Position("a", 2)) is None
    assert track.change_id_of(Position("a", 7)) is None
    assert track.change_id_of(Position("c", 1)) is None


def test_changes_that_were_forgotten_are_not_answered_for():
    track = followed(("a", 1))
    first = Position("a", 1)
    for seq in range(2, 3000):
        track.on_message(Position("a", seq))
        track.log_change(track.change_id, seq, seq + 1)
    assert track.change_id_of(first) is None
    assert track.change_id_of(Position("a", 2990)) is not None


def test_the_log_can_be_believed_once_it_holds_what_came_before_this_process_began():
    track = followed(("a", 10))
    track.metadata = FeedMetadata(logged_seq=9)
    assert not track.is_logged
    track.metadata = FeedMetadata(logged_seq=10)
    assert track.is_logged


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), max_size=30))
def test_stamps_only_grow(positions):
    track, last = FeedLog(), 0
    for position in positions:
        if track.on_message(Position(*position)):
            assert track.change_id >= last
            last = track.change_id
            assert track.change_id_of(track.position) == track.change_id


def test_what_was_settled_at_a_moment_is_remembered():
    track = FeedLog()
    for seq, settled_ms in ((1, 60_000), (2, 60_000), (3, 120_000), (4, None), (5, 180_000)):
        track.on_message(Position("one", seq))
        track.update_metadata(FeedMetadata(watermark_ms=settled_ms or 120_000))
    stamps = [track.change_id_of(Position("one", seq)) for seq in range(1, 6)]
    assert [track.watermark_at(stamp) for stamp in stamps] == [60_000, 60_000, 120_000, 120_000, 180_000]
    assert track.watermark_at(-1) is None
    assert track.metadata.watermark_ms == 180_000


def test_a_gap_that_goes_away_counts_as_a_change_of_where_it_was():
    track = FeedLog()
    track.on_message(Position("one", 1))
    track.update_metadata(FeedMetadata(watermark_ms=10**6, gap=Range(60_000, 180_000)))
    before = track.change_id
    track.on_message(Position("one", 2))
    track.update_metadata(FeedMetadata(watermark_ms=10**6, gap=Range(60_000, 180_000)))
    assert not track.changes_since(before)
    track.on_message(Position("one", 3))
    track.update_metadata(FeedMetadata(watermark_ms=10**6))
    assert list(track.changes_since(before)) == [(60_000, 180_000)]


def test_messages_may_be_lost_before_any_came():
    track = FeedLog()
    track.mark_unreliable(until=Position("one", 7))
    assert track.is_broken
    assert not track.is_lost_logged
    track.on_message(Position("one", 8))
    track.update_metadata(FeedMetadata(logged_seq=7))
    assert track.is_lost_logged
