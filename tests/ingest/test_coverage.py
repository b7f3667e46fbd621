from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.ingest.coverage import Coverage, Urgency, Window
from candled.ingest.evidence import Evidence
from candled.model import MINUTE_MS, Gap, Range
from tests import deadlines
from tests.rows import MONDAY_MS

NOW_MS = MONDAY_MS + 3 * 86_400_000


def ms(minutes: int) -> int:
    return MONDAY_MS + minutes * MINUTE_MS


UNTIL = (NOW_MS - MONDAY_MS) // MINUTE_MS


def coverage(present=(), known_gaps=(), since=None, start=MONDAY_MS - 7 * 86_400_000) -> Coverage:
    ranges = [Range(ms(a), ms(b)) for a, b in present]
    return Coverage(present=ranges, known_gaps=known_gaps, since_ms=since, from_ms=start, absence="exchange_outage")


def want(covered: Coverage, most: int = 1000, confirm: bool = False) -> Window | None:
    return covered.next_window(NOW_MS, NOW_MS, most, NOW_MS if confirm else 0)


def fill(covered: Coverage, window: Window, without=()) -> None:
    for open_ms in range(window.start_ms, window.end_ms, MINUTE_MS):
        if open_ms not in without:
            covered.add_minute(open_ms, confirmed=True)
    covered.on_answer(window, NOW_MS, NOW_MS)


@pytest.mark.slow
def test_a_fresh_market_asks_for_the_newest_minutes_first_then_the_week_then_history_newest_first():
    covered = coverage()
    windows = []
    while window := want(covered):
        windows.append(window)
        fill(covered, window)
    assert windows[0] == Window(Urgency.RECENT, NOW_MS - 1000 * MINUTE_MS, NOW_MS)
    assert [window.urgency for window in windows] == sorted(window.urgency for window in windows)
    week = [window for window in windows if window.urgency is Urgency.WEEK]
    assert week == sorted(week, key=lambda window: -window.start_ms)
    assert covered.since_ms == MONDAY_MS - 7 * 86_400_000
    assert sum(window.end_ms - window.start_ms for window in windows) == NOW_MS - covered.since_ms


def test_history_is_complete_from_the_oldest_minute_reached_without_a_break():
    covered = coverage()
    fill(covered, want(covered))
    assert covered.since_ms == NOW_MS - 1000 * MINUTE_MS
    covered.add_minute(ms(5), confirmed=True)
    assert covered.since_ms == NOW_MS - 1000 * MINUTE_MS


def test_a_gap_that_appears_later_does_not_move_the_beginning():
    covered = coverage(present=[(0, UNTIL - 30)], since=MONDAY_MS, start=MONDAY_MS)
    assert want(covered) == Window(Urgency.RECENT, NOW_MS - 30 * MINUTE_MS, NOW_MS)
    assert covered.since_ms == MONDAY_MS


# Why minutes are missing, how many hours the exchange withholds them, and within how many more they are found.
WITHHELD = [
    pytest.param("exchange_outage", 1, 1.5, id="an outage of an hour"),
    pytest.param("exchange_outage", 9, 12, id="an outage of nine hours"),
    pytest.param("exchange_outage", 24, 24, id="an outage of a day"),
    pytest.param("exchange_outage", 24 * 6, 36, id="an outage of six days"),
    pytest.param("exchange_outage", 24 * 40, 45 * 24, id="an outage of forty days"),
    pytest.param("no_trades", 1, 9, id="no trades for an hour"),
    pytest.param("no_trades", 9, 36, id="no trades for nine hours"),
    pytest.param("no_trades", 24 * 40, 45 * 24, id="no trades for forty days"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("absence", "hours", "within_hours"), WITHHELD)
def test_what_the_exchange_does_not_have_is_asked_for_after_growing_pauses_without_an_end(absence, hours, within_hours):
    covered = Coverage(
        present=[Range(ms(0), ms(100)), Range(ms(110), NOW_MS)],
        known_gaps=[],
        since_ms=MONDAY_MS,
        from_ms=MONDAY_MS,
        absence=absence,
    )
    asked = []
    for now_ms in range(NOW_MS, NOW_MS + round((hours + within_hours) * 60) * MINUTE_MS, 5 * MINUTE_MS):
        window = covered.next_window(NOW_MS, now_ms, 1000, 0)
        if window is None:
            continue
        asked.append(now_ms)
        if now_ms - NOW_MS >= hours * 3_600_000:
            covered.add_stored(ms(100), ms(110))
        covered.on_answer(window, NOW_MS, now_ms)
        assert all(known_gap.reason == absence and known_gap.retry_ms > now_ms for known_gap in covered.known_gaps)
    assert covered.known_gaps == []
    assert len(asked) <= 15 + hours // (24 * 15)
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert max(pauses) <= 45 * 86_400_000


def test_a_final_minute_that_rest_lacks_is_counted_as_unconfirmed_for_a_day_and_asked_for_a_few_times():
    covered = coverage(present=[(0, UNTIL - 3)], since=MONDAY_MS, start=MONDAY_MS)
    for number in range(UNTIL - 3, UNTIL):
        covered.add_minute(ms(number), confirmed=False)
    asked = []
    for now_ms in range(NOW_MS, NOW_MS + 3 * 86_400_000, 5 * MINUTE_MS):
        window = covered.next_window(NOW_MS, now_ms, 1000, NOW_MS)
        if window is not None:
            assert window.urgency is Urgency.CONFIRM
            asked.append(now_ms)
            covered.on_answer(window, NOW_MS, now_ms)
        if now_ms - NOW_MS <= 86_400_000:
            assert covered.unconfirmed.minute_count == 3
    assert covered.unconfirmed.minute_count == 0
    assert not covered.unconfirmed.was_deferred(ms(UNTIL - 1))
    assert 5 <= len(asked) <= 8


def test_a_gap_that_is_filled_later_is_dropped():
    covered = coverage(present=[(0, 100), (102, UNTIL)], since=MONDAY_MS, start=MONDAY_MS)
    covered.on_answer(want(covered), NOW_MS, NOW_MS)
    covered.add_minute(ms(100), confirmed=True)
    assert [(known_gap.start_ms, known_gap.end_ms) for known_gap in covered.known_gaps] == [(ms(101), ms(102))]


def test_final_minutes_are_confirmed_once_in_one_request():
    covered = coverage(present=[(0, UNTIL - 3)], since=MONDAY_MS, start=MONDAY_MS)
    for number in range(UNTIL - 3, UNTIL):
        covered.add_minute(ms(number), confirmed=False)
    window = want(covered, confirm=True)
    assert window == Window(Urgency.CONFIRM, ms(UNTIL - 3), ms(UNTIL))
    covered.on_answer(window, NOW_MS, NOW_MS)
    assert want(covered, confirm=True) is None


def test_a_final_minute_that_could_not_be_kept_is_missing_again():
    covered = coverage(present=[(0, UNTIL)], since=MONDAY_MS, start=MONDAY_MS)
    covered.mark_not_stored(ms(UNTIL - 2), ms(UNTIL - 1))
    assert want(covered) == Window(Urgency.RECENT, ms(UNTIL - 2), ms(UNTIL - 1))


def asked_about(windows, known_gap) -> int:
    return sum(window.start_ms < known_gap.end_ms and known_gap.start_ms < window.end_ms for window in windows)


def ask_for_days(covered: Coverage, days: int, most: int, without=(), confirm: bool = False) -> list[Window]:
    """Everything that is asked for in so many days, while the exchange answers all but some minutes."""
    windows = []
    for now_ms in range(NOW_MS, NOW_MS + days * 86_400_000, 7 * MINUTE_MS):
        while window := covered.next_window(NOW_MS, now_ms, most, NOW_MS if confirm else 0):
            windows.append(window)
            for open_ms in range(window.start_ms, window.end_ms, MINUTE_MS):
                if open_ms not in without:
                    covered.add_minute(open_ms, confirmed=True)
            covered.on_answer(window, NOW_MS, now_ms)
    return windows


def test_ten_gaps_of_an_exchange_share_the_windows_of_their_requests():
    missing = {ms(100 + known_gap * known_gap + n) for known_gap in range(10) for n in range(known_gap % 3 + 1)}
    covered = coverage(present=[(0, 90), (300, UNTIL)], since=MONDAY_MS, start=MONDAY_MS)
    windows = ask_for_days(covered, days=3, most=1000, without=missing)
    known_gaps = covered.known_gaps
    assert sum(known_gap.end_ms - known_gap.start_ms for known_gap in known_gaps) == len(missing) * MINUTE_MS
    assert {asked_about(windows, known_gap) for known_gap in known_gaps} == {len(windows)}
    assert {known_gap.attempts for known_gap in known_gaps} == {len(windows)}
    assert 6 <= len(windows) <= 9


@pytest.mark.slow
def test_gaps_found_at_different_times_are_not_requested_more_often_because_they_are_neighbours():
    covered = coverage(present=[(0, 100)], since=MONDAY_MS, start=MONDAY_MS)
    missing = {ms(number) for number in range(100, 400, 3)}
    windows = []
    for minute in range(101, 3 * 1440):
        while window := covered.next_window(ms(minute), ms(minute), 200, ms(minute)):
            windows.append(window)
            for open_ms in range(window.start_ms, window.end_ms, MINUTE_MS):
                if open_ms not in missing:
                    covered.add_minute(open_ms, confirmed=True)
            covered.on_answer(window, ms(minute), ms(minute))
        if ms(minute) not in missing:
            covered.add_minute(ms(minute), confirmed=False)
    assert len(covered.known_gaps) == len(missing)
    assert max(asked_about(windows, known_gap) for known_gap in covered.known_gaps) <= 9


@pytest.mark.slow
def test_a_thin_market_without_quiet_minutes_costs_few_requests():
    covered = Coverage(present=[], known_gaps=[], since_ms=None, from_ms=MONDAY_MS, absence="no_trades")
    missing = {ms(number) for number in range(1, UNTIL, 2)}
    first_pass = -(-UNTIL // 1000) + 2
    assert len(ask_for_days(covered, days=2, most=1000, without=missing)) <= 4 * first_pass
    assert {(known_gap.reason, known_gap.retry_ms is None) for known_gap in covered.known_gaps} == {
        ("no_trades", False)
    }


def test_gaps_that_fit_into_one_request_are_asked_for_together():
    covered = coverage(present=[(0, 100), (101, 200), (205, 300), (310, UNTIL)], since=MONDAY_MS, start=MONDAY_MS)
    assert want(covered) == Window(Urgency.WEEK, ms(100), ms(310))
    assert want(covered, most=150) == Window(Urgency.WEEK, ms(200), ms(310))


def streamed() -> Coverage:
    """A market that got its newest minutes from the stream."""
    covered = coverage(start=ms(UNTIL - 990))
    covered.add_minutes(ms(UNTIL - 500), ms(UNTIL), confirmed=False)
    return covered


def test_one_answer_fills_the_week_and_confirms_the_minutes_of_the_stream_that_follow():
    covered = streamed()
    window = want(covered, most=999, confirm=True)
    assert window == Window(Urgency.WEEK, ms(UNTIL - 990), ms(UNTIL))
    fill(covered, window)
    assert covered.unconfirmed.minute_count == 0
    assert want(covered, most=999, confirm=True) is None


def test_an_answer_confirms_what_fits_into_it_and_nothing_if_minutes_are_not_confirmed():
    assert want(streamed(), most=600, confirm=True) == Window(Urgency.WEEK, ms(UNTIL - 990), ms(UNTIL - 390))
    assert want(streamed(), most=600) == Window(Urgency.WEEK, ms(UNTIL - 990), ms(UNTIL - 500))


def test_a_request_for_missing_minutes_reaches_no_known_gap_that_is_not_due():
    known_gap = Gap(
        start_ms=ms(UNTIL - 300), end_ms=ms(UNTIL - 299), reason="exchange_outage", attempts=1, retry_ms=NOW_MS + 1
    )
    covered = Coverage(
        present=[Range(ms(UNTIL - 500), ms(UNTIL - 300)), Range(ms(UNTIL - 299), ms(UNTIL))],
        known_gaps=[known_gap],
        since_ms=None,
        from_ms=ms(UNTIL - 990),
        absence="exchange_outage",
    )
    covered.recheck_since(ms(UNTIL - 990))
    assert want(covered, most=999, confirm=True) == Window(Urgency.WEEK, ms(UNTIL - 990), ms(UNTIL - 300))


def test_a_gap_at_the_beginning_is_no_beginning_where_older_candles_are_stored():
    present = [Range(ms(10), ms(UNTIL))]
    covered = Coverage(
        present=present, known_gaps=[], since_ms=ms(10), from_ms=MONDAY_MS, absence="exchange_outage", older=True
    )
    covered.on_answer(want(covered), NOW_MS, NOW_MS)
    assert [known_gap.reason for known_gap in covered.known_gaps] == ["exchange_outage"]


def test_known_gaps_that_have_been_filled_since_are_not_gaps_any_more():
    known_gap = Gap(start_ms=ms(50), end_ms=ms(80), reason="exchange_outage", attempts=2, retry_ms=None)
    covered = coverage(present=[(0, 60), (70, UNTIL)], known_gaps=[known_gap], since=MONDAY_MS, start=MONDAY_MS)
    assert [(one.start_ms, one.end_ms, one.attempts) for one in covered.known_gaps] == [(ms(60), ms(70), 2)]


def test_changes_of_gaps_are_reported_once_as_the_range_they_lie_in():
    covered = coverage(present=[(0, 100), (110, UNTIL)], since=MONDAY_MS, start=MONDAY_MS)
    assert covered.take_changes() is None
    covered.on_answer(want(covered), NOW_MS, NOW_MS)
    assert covered.take_changes() == Range(ms(100), ms(110))
    assert covered.take_changes() is None
    covered.add_minute(ms(105), confirmed=True)
    changed = covered.take_changes()
    assert [(known_gap.start_ms, known_gap.end_ms) for known_gap in covered.known_gaps_within(*changed)] == []
    assert [(known_gap.start_ms, known_gap.end_ms) for known_gap in covered.known_gaps] == [
        (ms(100), ms(105)),
        (ms(106), ms(110)),
    ]


def test_an_older_minute_disproves_that_history_begins_later_by_any_source():
    covered = coverage(start=ms(0))
    covered.on_answer(Window(Urgency.HISTORY, ms(0), ms(2)), ms(70), NOW_MS, is_credible=False)
    covered.add_minute(ms(0), confirmed=False)
    covered.mark_not_stored(ms(0), ms(1))
    covered.apply_evidence(Evidence(begins_ms=ms(3)), NOW_MS)
    assert [known_gap.reason for known_gap in covered.known_gaps] == ["beyond_history"]
    covered.add_minute(ms(2), confirmed=False)
    covered.add_minute(ms(0), confirmed=False)
    assert covered.known_gaps == []


@pytest.mark.slow
@given(st.data())
def test_gaps_never_touch_each_other_or_stored_minutes(data):
    covered = coverage(start=ms(0))
    minutes = st.integers(0, 60)
    for step in range(data.draw(st.integers(1, 30))):
        first, length = data.draw(minutes), data.draw(st.integers(1, 15))
        what = data.draw(st.sampled_from(["add", "answer", "lose", "find", "reopen", "evidence"]))
        if what == "add":
            covered.add_minute(ms(first), confirmed=data.draw(st.booleans()))
        elif what == "answer":
            window = Window(Urgency.HISTORY, ms(first), ms(first + length))
            covered.on_answer(window, ms(70), NOW_MS + step * 500_000, is_credible=data.draw(st.booleans()))
        elif what == "reopen":
            covered.reopen_unconfirmed()
        elif what == "evidence":
            facts = st.sampled_from([{"begins_ms": ms(first)}, {"has_before": True}, {"is_contradicted": True}, {}])
            covered.apply_evidence(Evidence(**data.draw(facts)), NOW_MS + step * 500_000)
        elif what == "lose":
            for start_ms, end_ms in covered.covered_within(ms(first), ms(first + length)):
                covered.mark_not_stored(start_ms, end_ms)
        else:
            covered.add_stored(ms(first), ms(first + length))
    spans = [(known_gap.start_ms, known_gap.end_ms) for known_gap in covered.known_gaps]
    assert all(start < end for start, end in spans)
    assert all(left[1] <= right[0] for left, right in pairwise(spans))
    for start_ms, end_ms in spans:
        assert not covered.covered_within(start_ms, end_ms)
        assert not covered.unasked_within(start_ms, end_ms)
    for known_gap in covered.known_gaps:
        assert bool(covered.missing_within(known_gap.start_ms, known_gap.end_ms)) == (known_gap.reason == "unconfirmed")
        assert known_gap.reason != "beyond_history" or known_gap.end_ms <= (covered.first_ms or ms(1000))


@pytest.mark.slow
@given(st.data())
def test_whatever_was_there_and_whatever_the_exchange_lacks_asking_ends_with_every_minute_accounted_for(data):
    start = NOW_MS - 600 * MINUTE_MS
    numbers = st.integers(0, 599)
    present = data.draw(st.sets(numbers, max_size=300))
    missing = {start + n * MINUTE_MS for n in data.draw(st.sets(numbers, max_size=60)) - present}
    covered = Coverage(present=[], known_gaps=[], since_ms=None, from_ms=start, absence="exchange_outage")
    for number in present:
        covered.add_minute(start + number * MINUTE_MS, confirmed=True)
    for _ in range(700):
        window = covered.next_window(NOW_MS, NOW_MS, data.draw(st.integers(1, 200)), 0)
        if window is None:
            break
        fill(covered, window, missing)
    known = {
        open_ms
        for known_gap in covered.known_gaps
        for open_ms in range(known_gap.start_ms, known_gap.end_ms, MINUTE_MS)
    }
    assert known == missing
    if covered.first_ms is not None:
        covered.apply_evidence(Evidence(begins_ms=covered.first_ms), NOW_MS)
        assert covered.since_ms == start


def test_after_a_start_in_the_middle_of_a_minute_whole_minutes_are_asked_for():
    """Else the minute at the edge would count as confirmed by an answer that need not hold it."""
    covered = coverage(present=[(0, 300)], since=MONDAY_MS, start=MONDAY_MS)
    covered.recheck_since(ms(200) + 15_000)
    window = covered.next_window(ms(300), ms(300), 1000, ms(300))
    assert (window.start_ms, window.end_ms) == (ms(200), ms(300))
    covered.recheck_since(ms(100) + 45_000)
    window = covered.next_window(ms(300), ms(300), 150, ms(300))
    assert (window.start_ms % MINUTE_MS, window.end_ms % MINUTE_MS) == (0, 0)


def test_a_minute_before_the_reported_beginning_disproves_all_that_was_taken_to_be_before_history():
    covered = coverage(present=[(10, UNTIL)], start=ms(0))
    covered.on_answer(Window(Urgency.HISTORY, ms(5), ms(10)), NOW_MS, NOW_MS)
    covered.apply_evidence(Evidence(begins_ms=ms(8)), NOW_MS)
    assert [known_gap.reason for known_gap in covered.known_gaps] == ["beyond_history", "unconfirmed"]
    covered.add_minute(ms(0), confirmed=True)
    assert "beyond_history" not in {known_gap.reason for known_gap in covered.known_gaps}
    assert covered.missing_within(ms(0), ms(10)).total_ms >= 7 * MINUTE_MS


def test_an_unconfirmed_minute_that_is_not_stored_makes_no_window_without_minutes():
    covered = coverage(present=[(0, 10), (11, UNTIL)], start=ms(0))
    covered.on_answer(Window(Urgency.HISTORY, ms(10), ms(11)), NOW_MS, NOW_MS - 3_600_000)
    covered.mark_unconfirmed(ms(10))
    window = want(covered, confirm=True)
    assert window is not None
    assert (window.start_ms, window.end_ms) == (ms(10), ms(11))


@pytest.mark.slow
def test_many_gaps_cost_time_in_proportion():
    gaps, began = 30_000, deadlines.now()
    reasons = ("no_trades", "unconfirmed")
    known_gaps = [
        Gap(start_ms=ms(2 * n), end_ms=ms(2 * n + 1), reason=reasons[n % 2], attempts=1, retry_ms=None)
        for n in range(gaps)
    ]
    covered = Coverage(
        present=[Range(ms(2 * n + 1), ms(2 * n + 2)) for n in reversed(range(gaps))],
        known_gaps=known_gaps,
        since_ms=MONDAY_MS,
        from_ms=MONDAY_MS,
        absence="no_trades",
    )
    assert covered.missing_within(MONDAY_MS, ms(2 * gaps)).total_ms == gaps // 2 * MINUTE_MS
    covered.recheck_since(ms(2 * gaps - 1440))
    assert covered.unconfirmed.minute_count == 720
    covered.reopen_unconfirmed()
    assert len(covered.known_gaps) == gaps // 2
    assert deadlines.now() - began <= 3
