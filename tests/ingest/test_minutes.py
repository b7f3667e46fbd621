import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.ingest.minutes import Minutes
from tests.rows import MONDAY_MS, minute

SETTLE_MS = 2_000


def at(seconds: float) -> int:
    return MONDAY_MS + round(seconds * 1000)


def minutes() -> Minutes:
    return Minutes(SETTLE_MS)


def test_a_minute_is_not_final_by_the_clock_alone():
    kept = minutes()
    kept.apply_version(minute(0, as_of=50_000), at(50))
    assert kept.finalize_minutes(at(3600)) == []


def test_a_minute_is_final_when_its_successor_opened_and_late_versions_had_their_chance():
    kept = minutes()
    kept.apply_version(minute(0, as_of=59_000), at(59))
    kept.apply_version(minute(1, as_of=500), at(60.5))
    assert kept.finalize_minutes(at(62)) == []
    (finalized,) = kept.finalize_minutes(at(62.5))
    assert (finalized.open_ms, finalized.final) == (MONDAY_MS, True)


def test_a_late_version_before_settling_is_in_the_final_minute():
    kept = minutes()
    kept.apply_version(minute(0, "11", volume="3", as_of=59_000), at(59))
    kept.apply_version(minute(1, as_of=500), at(60.5))
    kept.apply_version(minute(0, "12", volume="4", as_of=60_900), at(61))
    (finalized,) = kept.finalize_minutes(at(63))
    assert (finalized.close, finalized.volume) == (12, 4)


def test_a_later_statement_revises_a_final_minute_and_an_older_copy_does_not():
    kept = minutes()
    kept.apply_version(minute(0, "11", as_of=63_000, final=True), at(63))
    revised = kept.apply_version(minute(0, "12", as_of=65_000), at(65))
    assert (revised.close, revised.final) == (12, True)
    assert kept.apply_version(minute(0, "11", as_of=63_000), at(66)) is None
    assert kept.get_minute(MONDAY_MS).close == 12


def test_a_statement_made_long_after_the_end_is_final_only_where_that_is_proven():
    assert not minutes().apply_version(minute(0, as_of=62_000), at(62)).final
    assert minutes().apply_version(minute(0, as_of=62_000, final=True), at(62)).final


def test_a_successor_from_the_future_ends_no_minute_before_its_time():
    kept = minutes()
    kept.apply_version(minute(0, as_of=20_000), at(20))
    kept.apply_version(minute(1, as_of=500), at(21))
    assert kept.finalize_minutes(at(40)) == []
    assert [candle.open_ms for candle in kept.finalize_minutes(at(62))] == [MONDAY_MS]


def test_a_stale_cached_copy_does_not_shrink_the_running_minute():
    kept = minutes()
    kept.apply_version(minute(0, "12", volume="5", as_of=20_000), at(20))
    assert kept.apply_version(minute(0, "11", volume="3", as_of=21_000), at(21)) is None


def test_a_minute_cut_short_by_a_disconnect_is_not_proved_final_by_its_successor():
    kept = minutes()
    kept.apply_version(minute(0, as_of=30_000), at(30))
    kept.mark_interrupted()
    kept.apply_version(minute(5, as_of=500), at(300.5))
    assert kept.finalize_minutes(at(400)) == []
    assert kept.apply_version(minute(0, "12", volume="2", as_of=400_000, final=True), at(400)).final


def test_only_the_newest_hour_is_in_memory():
    kept = minutes()
    for number in range(200):
        kept.apply_version(minute(number, as_of=62_000, final=True), at(number * 60 + 62))
    assert kept.get_minute(minute(100).open_ms) is None
    assert kept.get_minute(minute(150).open_ms) is not None


@pytest.mark.slow
@given(st.data())
def test_any_order_and_duplication_of_versions_ends_in_the_same_minute(data):
    stamps = data.draw(st.lists(st.integers(1, 120_000), unique=True, min_size=1, max_size=8))
    versions = [minute(0, str(10 + index), str(index + 1), as_of=stamp) for index, stamp in enumerate(sorted(stamps))]
    order = data.draw(st.permutations(versions + data.draw(st.lists(st.sampled_from(versions)))))
    kept = minutes()
    for version in order:
        kept.apply_version(version, at(200))
    assert kept.get_minute(MONDAY_MS).values == versions[-1].values


def test_a_minute_that_the_stream_left_early_does_not_become_final():
    kept = minutes()
    kept.apply_version(minute(0, volume="3", as_of=30_000), at(30))
    kept.apply_version(minute(120, as_of=500), at(7200.5))
    kept.apply_version(minute(121, as_of=500), at(7260.5))
    assert [candle.open_ms for candle in kept.finalize_minutes(at(7265))] == [minute(120).open_ms]


def test_a_known_minute_is_no_change_and_another_version_of_it_is_a_revision():
    """As where a process takes over from another: the first snapshot holds an hour that is stored already."""
    kept = Minutes(SETTLE_MS, [minute(0, final=True)._replace(src="rest"), minute(1, final=True)._replace(rev=2)])
    assert kept.apply_version(minute(0, as_of=600_000)._replace(src="live"), at(600)) is None
    assert kept.watermark_ms == at(120)
    revised = kept.apply_version(minute(1, volume="7", as_of=600_000), at(600))
    assert (revised.volume, revised.final, revised.rev) == (7, True, 3)
    assert kept.apply_version(minute(2, as_of=500), at(120.5)) is not None


def test_the_source_of_a_minute_is_who_stated_its_values_first():
    """Whoever shows it has that one already, and the store is to agree with them."""
    kept = minutes()
    kept.apply_version(minute(0, as_of=60_000)._replace(src="live"), at(60))
    confirmed = kept.apply_version(minute(0, as_of=70_000, final=True)._replace(src="rest"), at(70))
    assert (confirmed.final, confirmed.src) == (True, "live")
    assert kept.apply_version(minute(0, volume="9", as_of=80_000)._replace(src="rest"), at(80)).src == "rest"
