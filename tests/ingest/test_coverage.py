from hypothesis import given, settings
from hypothesis import strategies as st

from candled.ingest.coverage import MOST_ATTEMPTS, Coverage, Urgency, Window
from candled.model import MINUTE_MS, Range
from tests.rows import MONDAY_MS

NOW_MS = MONDAY_MS + 3 * 86_400_000


def ms(minutes: int) -> int:
    return MONDAY_MS + minutes * MINUTE_MS


UNTIL = (NOW_MS - MONDAY_MS) // MINUTE_MS


def coverage(present=(), holes=(), since=None, start=MONDAY_MS - 7 * 86_400_000) -> Coverage:
    ranges = [Range(ms(a), ms(b)) for a, b in present]
    return Coverage(present=ranges, holes=holes, since_ms=since, from_ms=start, absence="exchange_outage")


def want(held: Coverage, most: int = 1000, confirm: bool = False) -> Window | None:
    return held.want(NOW_MS, NOW_MS, most, NOW_MS if confirm else 0)


def fill(held: Coverage, window: Window, without=()) -> None:
    for open_ms in range(window.start_ms, window.end_ms, MINUTE_MS):
        if open_ms not in without:
            held.add(open_ms, confirmed=True)
    held.answered(window, NOW_MS, NOW_MS)


def test_a_fresh_market_asks_for_the_last_hours_first_then_the_week_then_history_newest_first():
    held = coverage()
    windows = []
    while window := want(held):
        windows.append(window)
        fill(held, window)
    assert windows[0] == Window(Urgency.RECENT, NOW_MS - 120 * MINUTE_MS, NOW_MS)
    assert [window.urgency for window in windows] == sorted(window.urgency for window in windows)
    week = [window for window in windows if window.urgency is Urgency.WEEK]
    assert week == sorted(week, key=lambda window: -window.start_ms)
    assert held.since_ms == MONDAY_MS - 7 * 86_400_000
    assert sum(window.end_ms - window.start_ms for window in windows) == NOW_MS - held.since_ms


def test_history_is_complete_from_the_oldest_minute_reached_without_a_break():
    held = coverage()
    fill(held, want(held))
    assert held.since_ms == NOW_MS - 120 * MINUTE_MS
    held.add(ms(5), confirmed=True)
    assert held.since_ms == NOW_MS - 120 * MINUTE_MS


def test_a_hole_that_appears_later_does_not_move_the_beginning():
    held = coverage(present=[(0, UNTIL - 30)], since=MONDAY_MS, start=MONDAY_MS)
    assert want(held) == Window(Urgency.RECENT, NOW_MS - 30 * MINUTE_MS, NOW_MS)
    assert held.since_ms == MONDAY_MS


def test_what_the_exchange_does_not_have_is_remembered_and_asked_for_a_bounded_number_of_times():
    held = coverage(present=[(0, 100), (110, UNTIL)], since=MONDAY_MS, start=MONDAY_MS)
    now_ms, asked = NOW_MS, 0
    for _ in range(40):
        window = held.want(NOW_MS, now_ms, 1000, 0)
        if window is not None:
            asked += 1
            held.answered(window, NOW_MS, now_ms)
        now_ms += 3_600_000
    assert asked == MOST_ATTEMPTS
    (hole,) = held.holes
    assert (hole.start_ms, hole.end_ms, hole.reason, hole.retry_ms) == (ms(100), ms(110), "exchange_outage", None)


def test_a_hole_that_is_filled_later_is_forgotten():
    held = coverage(present=[(0, 100), (102, UNTIL)], since=MONDAY_MS, start=MONDAY_MS)
    held.answered(want(held), NOW_MS, NOW_MS)
    held.add(ms(100), confirmed=True)
    assert [(hole.start_ms, hole.end_ms) for hole in held.holes] == [(ms(101), ms(102))]


def test_time_before_the_first_candle_is_beyond_history_not_a_hole():
    held = coverage(present=[(500, UNTIL)], since=ms(500), start=MONDAY_MS)
    held.answered(want(held), NOW_MS, NOW_MS)
    assert [hole.reason for hole in held.holes] == ["beyond_history"]
    assert held.since_ms == MONDAY_MS


def test_final_minutes_are_confirmed_once_in_one_request():
    held = coverage(present=[(0, UNTIL - 3)], since=MONDAY_MS, start=MONDAY_MS)
    for number in range(UNTIL - 3, UNTIL):
        held.add(ms(number), confirmed=False)
    window = want(held, confirm=True)
    assert window == Window(Urgency.CONFIRM, ms(UNTIL - 3), ms(UNTIL))
    held.answered(window, NOW_MS, NOW_MS)
    assert want(held, confirm=True) is None


def test_a_final_minute_that_could_not_be_kept_is_missing_again():
    held = coverage(present=[(0, UNTIL)], since=MONDAY_MS, start=MONDAY_MS)
    held.lost(ms(UNTIL - 2))
    assert want(held) == Window(Urgency.RECENT, ms(UNTIL - 2), ms(UNTIL - 1))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_was_there_and_whatever_the_exchange_lacks_asking_ends_with_every_minute_accounted_for(data):
    start = NOW_MS - 600 * MINUTE_MS
    numbers = st.integers(0, 599)
    present = data.draw(st.sets(numbers, max_size=300))
    lacking = {start + n * MINUTE_MS for n in data.draw(st.sets(numbers, max_size=60)) - present}
    held = Coverage(present=[], holes=[], since_ms=None, from_ms=start, absence="exchange_outage")
    for number in present:
        held.add(start + number * MINUTE_MS, confirmed=True)
    for _ in range(700):
        window = held.want(NOW_MS, NOW_MS, data.draw(st.integers(1, 200)), 0)
        if window is None:
            break
        fill(held, window, lacking)
    known = {open_ms for hole in held.holes for open_ms in range(hole.start_ms, hole.end_ms, MINUTE_MS)}
    assert known == lacking
    assert held.since_ms == start
